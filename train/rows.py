"""Rows of a data set by the numbers of samples: `rows.at(number) -> (row, values)` for any number >= 0, going over all
rows again and again in a new order each time. Which row that is depends on the seed and the number alone, so that a
resumed run, or one with other workers and ranks, gets the same samples.

    StoredRows      all of them on disk: a permutation of all rows each turn
    StreamedRows    read as they come, in blocks: a permutation of the rows of each block, block after block

Images are not opened: values hold what `datasets` stores of them, `{"bytes", "path"}`.
"""

import os
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

import datasets
import fsspec
import numpy as np
import pyarrow.parquet

from train.mixture import Shuffle

Row = dict[str, Any]

BLOCK = 1000  # rows that are shuffled together, as many as in a buffer of `datasets`; two blocks are kept in memory
BATCH = 100  # rows that are brought into Python at once


class StoredRows:
    """Rows of `dataset`, or of them those whose numbers are `kept`."""

    def __init__(self, dataset: datasets.Dataset, kept: np.ndarray, seed: int):
        self.dataset, self.kept = dataset.with_format("arrow"), kept
        self.decode = Decoder(dataset.features)
        self.order = Shuffle(len(kept), seed)

    def at(self, number: int) -> tuple[int, Row]:
        row = int(self.kept[self.order[number]])
        return row, self.values(row)

    def values(self, row: int) -> Row:
        return self.decode(self.dataset[row].to_pylist()[0])


class Reader(Protocol):
    """`read(start, count)`: rows from the row `start` on, fewer at the end; `count()`: how many there are."""

    def read(self, start: int, count: int) -> list[Row]: ...

    def count(self) -> int: ...


class StreamedRows:
    """Rows that a reader gives in their order.

    Every worker of every rank reads the whole stream, since it needs a share of every block (samples may not depend on
    how many of them there are). Where that is too much traffic, download the data.
    """

    def __init__(self, reader: Reader, seed: int, block: int = BLOCK):
        self.reader, self.seed, self.block = reader, seed, block
        self.count: int | None = None  # of all rows; known when their end has been met
        self.blocks: dict[int, list[Row]] = {}

    def at(self, number: int) -> tuple[int, Row]:
        turn, row = (0, number) if self.count is None else divmod(number, self.count)
        block, place = divmod(row, self.block)
        rows = self._read(block)
        if self.count is None and len(rows) < self.block:
            self.count = block * self.block + len(rows) if rows else self.reader.count()
            if not self.count:
                raise ValueError("the stream has no rows: nothing to train on")
            return self.at(number)
        order = np.random.default_rng([self.seed, turn, block]).permutation(len(rows))
        return block * self.block + int(order[place]), rows[order[place]]

    def _read(self, block: int) -> list[Row]:
        if block not in self.blocks:
            rows = self.reader.read(block * self.block, self.block)
            self.blocks = dict([*self.blocks.items(), (block, rows)][-2:])  # a sample may reach into the next block
        return self.blocks[block]


class SequentialReader:
    """Reads on from where it is, as far as that goes; `begin(start)` opens what gives the rows from `start` on.

    What is open belongs to one process: a worker, forked or not, opens its own.
    """

    seeks = False  # whether `begin` is cheaper than reading on to a row that lies ahead

    def __init__(self):
        self._opened: tuple[int, int, Iterator[Row]] | None = None  # process, next row, rows from it on

    def begin(self, start: int) -> Iterator[Row]:
        raise NotImplementedError

    def read(self, start: int, count: int) -> list[Row]:
        process, following, rows = self._opened or (None, 0, iter(()))
        self._opened = None  # an error below must not look like the end of the rows
        if process != os.getpid():
            fsspec.asyn.reset_lock()  # a forked process has the lock, but not the thread that opens it
        if process != os.getpid() or start < following or (start > following and self.seeks):
            rows = self.begin(start)
        elif start > following:
            deque(islice(rows, start - following), maxlen=0)
        found = list(islice(rows, count))
        self._opened = os.getpid(), start + len(found), rows
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class StreamReader(SequentialReader):
    """Rows of a streaming data set of any format.

    Skipping reads the rows without making Python values of them: 2 seconds for a million rows of LLaVA's JSON, 530 MB,
    on one core of a CPU, and as long as it takes to fetch them.
    """

    def __init__(self, stream: datasets.IterableDataset):
        super().__init__()
        self.stream = stream.with_format("arrow")

    def begin(self, start: int) -> Iterator[Row]:
        # Not `for row in`: in a worker that would be the rows of one worker's share.
        for table in self.stream.skip(start).iter(batch_size=BATCH):
            decode = Decoder(datasets.Features.from_arrow_schema(table.schema))
            yield from map(decode, table.to_pylist())

    def count(self) -> int:
        return sum(len(table) for table in self.stream.iter(batch_size=BATCH))


class ParquetReader(SequentialReader):
    """Rows of Parquet files, here or on the Hub.

    Footers say where a row is: skipping reads those of the files before it, and of rows only the row group it is in. To
    the end of a file of 200 MB of images that took 0.02 seconds, 0.85 by `datasets`, whose `skip` reads all of it.
    """

    seeks = True

    def __init__(self, files: list[str], columns: list[str], features: datasets.Features):
        super().__init__()
        self.files, self.columns = files, columns
        self.decode = Decoder(datasets.Features({name: features[name] for name in columns}))
        self._groups: list[list[int]] = []  # rows of each group of each file whose footer was read

    def begin(self, start: int) -> Iterator[Row]:
        for number, file in enumerate(self.files):
            groups = self._groups_of(number)
            if start >= sum(groups):
                start -= sum(groups)
                continue
            group = int(np.searchsorted(np.cumsum(groups), start, side="right"))
            start -= sum(groups[:group])
            with fsspec.open(file, "rb") as opened:
                parquet = pyarrow.parquet.ParquetFile(opened)
                chosen = list(range(group, len(groups)))
                for batch in parquet.iter_batches(BATCH, row_groups=chosen, columns=self.columns):
                    skipped = min(start, len(batch))
                    start -= skipped
                    yield from map(self.decode, batch.slice(skipped).to_pylist())

    def count(self) -> int:
        return sum(sum(self._groups_of(number)) for number in range(len(self.files)))

    def _groups_of(self, number: int) -> list[int]:
        while len(self._groups) <= number:
            with fsspec.open(self.files[len(self._groups)], "rb") as opened:
                footer = pyarrow.parquet.read_metadata(opened)
            self._groups.append([footer.row_group(group).num_rows for group in range(footer.num_row_groups)])
        return self._groups[number]


class Decoder:
    """From rows as Arrow holds them to those of `datasets`, but for images, which stay as they are stored, and labels,
    which become their names; what is not labelled, -1 in `datasets`, is None."""

    def __init__(self, features: datasets.Features):
        self.features = datasets.Features({name: _undecoded(feature) for name, feature in features.items()})
        self.labels = {name: kind.names for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}

    def __call__(self, row: Row) -> Row:
        row = self.features.decode_example(row)
        return row | {
            name: None if row[name] in (None, -1) else names[row[name]] for name, names in self.labels.items()
        }


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, dict):
        return {name: _undecoded(inner) for name, inner in feature.items()}
    if isinstance(feature, datasets.List | datasets.LargeList):
        return datasets.List(_undecoded(feature.feature))
    return feature
