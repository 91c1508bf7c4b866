"""RCC files written here, after the format in `train/rcc.py`, are read back; damaged ones are named, never followed."""

import struct
import zlib

import pyarrow
import pytest

from train.rcc import read_rcc

TREE = {
    "photos": {"köln.webp": b"RIFF" + bytes(range(256)), "empty.txt": b"", "deep": {"er": {"text": b"word " * 400}}},
    "README": b"Copyright: nobody\n",
}
FILES = {
    "photos/köln.webp": TREE["photos"]["köln.webp"],
    "photos/empty.txt": b"",
    "photos/deep/er/text": TREE["photos"]["deep"]["er"]["text"],
    "README": TREE["README"],
}


def store(data: bytes, compression: str) -> tuple[int, bytes]:
    """(flags, data) of a file."""
    if compression == "zlib":
        return 1, struct.pack(">I", len(data)) + zlib.compress(data)
    if compression == "zstd":
        return 4, pyarrow.compress(data, codec="zstd", asbytes=True)
    return 0, data


def write_rcc(tree: dict, version: int = 3, compression: str = "") -> bytes:
    """The children of a folder are neighbours in the tree, as Qt's own writer lays them out."""
    names, contents, nodes = b"", b"", []
    queue = [("", tree)]
    known = 1  # nodes whose place in the tree is settled
    while queue:
        name, content = queue.pop(0)
        entry = struct.pack(">I", len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(content, dict):
            entry += struct.pack(">HII", 2, len(content), known)
            known += len(content)
            queue += content.items()
        else:
            flags, data = store(content, compression)
            entry += struct.pack(">HHHI", flags, 0, 1, len(contents))
            contents += struct.pack(">I", len(data)) + data
        nodes.append(entry + (bytes(8) if version > 1 else b""))
    header = 20 + 4 * (version > 2)
    tree_bytes = b"".join(nodes)
    offsets = (header + len(contents) + len(names), header, header + len(contents))  # tree, data, names
    return struct.pack(">4s4I", b"qres", version, *offsets) + bytes(header - 20) + contents + names + tree_bytes


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compression", ["", "zlib", "zstd"])
def test_what_is_written_is_read(version, compression):
    assert list(read_rcc(write_rcc(TREE, version, compression))) == list(FILES.items())


def test_other_files_and_versions_are_named():
    with pytest.raises(ValueError, match="begins with b'qres', this one with b'RIFF'"):
        list(read_rcc(b"RIFF" + bytes(100)))
    with pytest.raises(ValueError, match="version 4 is unknown"):
        list(read_rcc(b"qres" + struct.pack(">I", 4) + write_rcc(TREE)[8:]))


@pytest.mark.parametrize("compression", ["", "zlib", "zstd"])
def test_a_cut_file_is_named_wherever_it_is_cut(compression):
    whole = write_rcc(TREE, compression=compression)
    for size in range(len(whole)):
        with pytest.raises(ValueError, match="damaged RCC file|begins with"):
            list(read_rcc(whole[:size]))


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_damaged_data_is_named(compression):
    damaged = bytearray(write_rcc({"text": b"word " * 400}, compression=compression))
    start = 24 + 4 + (4 if compression == "zlib" else 0)
    damaged[start : start + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(ValueError, match="damaged RCC file"):
        list(read_rcc(bytes(damaged)))


@pytest.mark.parametrize("name", ["..", ".", "", "/etc", "a/b", "a\\b", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(ValueError, match="is no file name"):
        list(read_rcc(write_rcc({name: b"data"})))


def test_a_folder_that_holds_itself_is_refused():
    rcc = write_rcc({"folder": {"file": b"data"}})
    root, folder = struct.pack(">HII", 2, 1, 1), struct.pack(">HII", 2, 1, 2)
    assert root in rcc and folder in rcc
    with pytest.raises(ValueError, match="node 1 of the tree stands in two folders"):
        list(read_rcc(rcc.replace(folder, root)))


def test_more_children_than_nodes_are_refused_before_they_are_listed():
    rcc = write_rcc({"folder": {"file": b"data"}})
    root = struct.pack(">HII", 2, 1, 1)
    with pytest.raises(ValueError, match="damaged RCC file: it has"):
        list(read_rcc(rcc.replace(root, struct.pack(">HII", 2, 2**32 - 1, 1))))


def test_depth_is_not_limited():
    tree = {"file": b"data"}
    for _ in range(2000):
        tree = {"d": tree}
    assert dict(read_rcc(write_rcc(tree))) == {"d/" * 2000 + "file": b"data"}
