"""Read Qt's binary resource files (.rcc), which hold a folder tree in one file.

    for path, data in read_rcc(Path("explore_monuments.rcc").read_bytes()): ...

Contract: `read_rcc` gives every file of the tree as (path, bytes), in the order of the tree; nothing is written, and
nothing of the file is trusted: a path that could leave a folder, a loop, or an offset outside the file is a ValueError.

The format, all numbers big-endian (written by Qt's `rcc`, src/tools/rcc/rcc.cpp; read by qtbase's qresource.cpp):

    header   "qres", then u32: version, offsets of tree, data and names; from version 3 on also u32 flags of all files
    tree     nodes of 14 bytes (from version 2 on 22, the last 8 being a time); node 0 is the root
             folder  u32 name, u16 flags, u32 number of children, u32 number of its first child
             file    u32 name, u16 flags, u16 country, u16 language, u32 data
    names    u16 number of UTF-16 units, u32 hash, the units          "name" counts from the start of the names
    data     u32 number of bytes, the bytes                           "data" counts from the start of the data
             zlib   the bytes are u32 plain size, then a zlib stream  zstd  the bytes are a Zstandard frame
"""

import struct
import zlib
from collections.abc import Iterator

import pyarrow

MAGIC = b"qres"
VERSIONS = (1, 2, 3)
ZLIB, FOLDER, ZSTD = 1, 2, 4


def read_rcc(rcc: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (path, bytes) of each file in an RCC file, a path being names joined by "/".

    Raises ValueError for what is no RCC file, an unknown version, a cut or damaged file, and for names that are no
    plain file names ("..", or with a slash in them).
    """
    if rcc[:4] != MAGIC:
        raise ValueError(f"an RCC file begins with {MAGIC!r}, this one with {rcc[:4]!r}")
    version, tree, data, names = _unpack(">4I", rcc, 4)
    if version not in VERSIONS:
        raise ValueError(f"RCC version {version} is unknown; known are {VERSIONS}")
    node_size = 14 if version == 1 else 22
    seen = set()
    pending = [(0, ())]  # nodes still to be read, each with the names above it
    while pending:
        node, above = pending.pop()
        if node in seen:
            raise ValueError(f"damaged RCC file: node {node} of the tree stands in two folders")
        seen.add(node)
        entry = _cut(rcc, tree + node * node_size, node_size)
        name, flags = _unpack(">IH", entry, 0)
        path = (*above, _name(rcc, names + name)) if node else above  # the root has no name
        if flags & FOLDER:
            count, first = _unpack(">2I", entry, 6)
            _cut(rcc, tree + first * node_size, count * node_size)  # so many children the file does hold
            pending += [(child, path) for child in reversed(range(first, first + count))]
        else:
            (offset,) = _unpack(">I", entry, 10)
            yield "/".join(path), _data(rcc, data + offset, flags)


def _name(rcc: bytes, offset: int) -> str:
    (units,) = _unpack(">H", rcc, offset)
    name = _cut(rcc, offset + 6, 2 * units).decode("utf-16-be")
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(f"damaged RCC file: {name!r} is no file name")
    return name


def _data(rcc: bytes, offset: int, flags: int) -> bytes:
    (size,) = _unpack(">I", rcc, offset)
    data = _cut(rcc, offset + 4, size)
    try:
        if flags & ZSTD:
            with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd") as stream:
                return stream.read()
        if flags & ZLIB:
            return zlib.decompress(data[4:])
    except (OSError, zlib.error) as error:
        raise ValueError(f"damaged RCC file: {error}") from error
    return data


def _cut(rcc: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(rcc):
        raise ValueError(f"damaged RCC file: it has {len(rcc)} bytes, but refers to byte {offset + size}")
    return rcc[offset : offset + size]


def _unpack(form: str, rcc: bytes, offset: int) -> tuple[int, ...]:
    return struct.unpack(form, _cut(rcc, offset, struct.calcsize(form)))
