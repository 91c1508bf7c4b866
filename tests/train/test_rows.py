"""Rows by number: each once a turn, a function of (seed, number) alone, and no more read than needed."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch

from train.rows import ParquetReader, StoredRows, StreamedRows, StreamReader

FEATURES = datasets.Features({"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["odd", "even"])})
ROWS = [{"text": f"row {number}", "kind": ("even", "odd")[number % 2]} for number in range(47)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The rows in Parquet files of 20, 20 and 7, in row groups of 5, and in JSON lines."""
    folder = tmp_path_factory.mktemp("files")
    whole = datasets.Dataset.from_list(ROWS, features=FEATURES)
    paths = []
    for start in range(0, 47, 20):
        paths.append(str(folder / f"{start:02d}.parquet"))
        whole.select(range(start, min(start + 20, 47))).to_parquet(paths[-1], batch_size=5)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return paths


@pytest.fixture(params=["parquet", "jsonl"])
def reader(request, files):
    if request.param == "parquet":
        return ParquetReader(files, ["text", "kind"], FEATURES)
    path = files[0].replace("00.parquet", "rows.jsonl")
    return StreamReader(datasets.load_dataset("json", data_files=path, split="train", streaming=True))


def texts(rows, numbers) -> list[str]:
    return [rows.at(number)[1]["text"] for number in numbers]


def test_stored_rows_come_once_a_turn_and_without_those_left_out():
    images = [{"bytes": b"not opened", "path": None}] * 3 + [None]
    labels = [0, 1, -1, 0]
    features = datasets.Features(
        {"image": datasets.Image(), "images": datasets.List(datasets.Image()), "label": FEATURES["kind"]}
    )
    columns = {"image": images, "images": [[image] * (image is not None) for image in images], "label": labels}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    rows = StoredRows(dataset, np.array([0, 2, 3]), seed=0)
    turns = [dict(rows.at(number) for number in range(turn * 3, turn * 3 + 3)) for turn in range(2)]
    assert turns[0] == turns[1] and sorted(turns[0]) == [0, 2, 3]
    assert turns[0][2] == {"image": images[0], "images": images[:1], "label": None}
    assert turns[0][3] == {"image": None, "images": [], "label": "odd"}


@pytest.mark.parametrize("start", [0, 3, 5, 19, 20, 33, 46, 47, 60])
def test_readers_begin_anywhere(reader, start):
    assert reader.read(start, 9) == ROWS[start : start + 9]
    assert reader.read(start + 9, 2) == ROWS[start + 9 : start + 11]  # reads on
    assert reader.read(start + 15, 2) == ROWS[start + 15 : start + 17]  # skips
    assert reader.read(1, 2) == ROWS[1:3]  # goes back
    assert reader.count() == 47


@pytest.mark.parametrize("block", [10, 47, 100])
def test_a_streamed_sample_is_a_function_of_seed_and_number(reader, block):
    rows = StreamedRows(reader, seed=3, block=block)
    order = [rows.at(number)[0] for number in range(3 * 47)]
    turns = [order[start : start + 47] for start in (0, 47, 94)]
    assert all(sorted(turn) == list(range(47)) for turn in turns)
    assert turns[0] != turns[1] != turns[2] != turns[0]
    for begin in range(0, 47, block):  # shuffled within blocks
        assert sorted(turns[1][begin : begin + block]) == list(range(begin, min(begin + block, 47)))
    for number in (0, 25, 46, 47, 93, 130):  # as a resumed run that begins there
        fresh = StreamedRows(pickle.loads(pickle.dumps(reader)), seed=3, block=block)
        assert [fresh.at(later)[0] for later in range(number, number + 11)] == order[number : number + 11]
    assert [StreamedRows(reader, seed=4, block=block).at(number)[0] for number in range(47)] != turns[0]


class Texts(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return 60

    def __getitem__(self, number):
        return self.rows.at(number)[1]["text"]


def test_workers_get_what_one_process_gets(reader):
    rows = StreamedRows(reader, seed=0, block=10)
    expected = texts(rows, range(60))
    rows.at(0)  # what is open here is forked
    loader = torch.utils.data.DataLoader(Texts(rows), batch_size=4, num_workers=2)
    assert [text for batch in loader for text in batch] == expected


def test_another_process_opens_its_own(reader, monkeypatch):
    begin, begun = type(reader).begin, []
    monkeypatch.setattr(type(reader), "begin", lambda self, start: begun.append(start) or begin(self, start))
    assert reader.read(0, 5) + reader.read(5, 5) == ROWS[:10]
    assert begun == [0]
    monkeypatch.setattr("os.getpid", lambda: -1)  # as after a fork, where an open file would be shared
    assert reader.read(10, 5) + reader.read(15, 5) == ROWS[10:20]
    assert begun == [0, 10]


def test_skipping_reads_footers_and_one_row_group(files, tmp_path):
    whole = Path(files[1]).read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1" + bytes(len(whole) - footer - 4) + whole[-footer:])
    reader = ParquetReader([files[0], str(broken), files[2]], ["text", "kind"], FEATURES)
    assert reader.read(0, 5) == ROWS[:5] and reader.read(40, 5) == ROWS[40:45]
    with pytest.raises(OSError):
        reader.read(20, 1)

    # And of the file itself no row group before the one that the row is in.
    start = offset_of(files[1], 2)
    broken.write_bytes(b"PAR1" + bytes(start - 4) + whole[start:])
    assert reader.read(30, 3) == ROWS[30:33]


def offset_of(path: str, group: int) -> int:
    columns = pyarrow.parquet.read_metadata(path).row_group(group)
    chunks = [columns.column(number) for number in range(columns.num_columns)]
    return min(chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks)


def test_an_error_while_reading_is_not_the_end(reader, monkeypatch):
    begin, failures = type(reader).begin, iter([True])

    def fail_once(self, start):
        for place, row in enumerate(begin(self, start)):
            if place == 7 and next(failures, False):
                raise OSError("the connection was lost")
            yield row

    monkeypatch.setattr(type(reader), "begin", fail_once)
    assert reader.read(0, 5) == ROWS[:5]
    with pytest.raises(OSError, match="lost"):
        reader.read(5, 5)
    assert reader.read(5, 5) == ROWS[5:10]


def test_a_stream_without_rows_is_an_error():
    class Empty:
        def read(self, start, count):
            return []

        def count(self):
            return 0

    with pytest.raises(ValueError, match="no rows"):
        StreamedRows(Empty(), seed=0).at(0)
