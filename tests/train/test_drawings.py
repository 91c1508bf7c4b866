"""The committed drawings are what their contract says, and building them twice gives the same bytes."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from datasets import Dataset

from train import drawings

PATH = Path(drawings.__file__).parent / "data" / "drawings.parquet"
NOTICE = PATH.with_name("NOTICE.md")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return Dataset.from_parquet(str(PATH), cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def texts(dataset) -> list[dict]:
    return dataset.remove_columns("image").to_list()


def test_columns(dataset):
    assert dataset.features == drawings.FEATURES


def test_rows_per_hand(texts):
    assert Counter(row["hand"] for row in texts) == {"noto": 1911, "twemoji": 1911, "fluent": 1852}


def test_rows_are_sorted_and_unique(texts):
    keys = [(row["hexcode"], row["hand"]) for row in texts]
    assert keys == sorted(set(keys))


def test_every_row_says_what_it_is(texts):
    for row in texts:
        assert row["label"].strip() and row["group"].strip() and row["emoji"], row
        assert drawings.code_points(row["hexcode"]) == "-".join(f"{ord(c):04X}" for c in row["emoji"] if c != "\ufe0f")


def test_pictures_are_small_rgba_and_not_empty(dataset):
    for row in dataset.select(range(0, len(dataset), 7)):
        assert (row["image"].format, row["image"].size, row["image"].mode) == ("WEBP", (64, 64), "RGBA"), row["label"]
        _, alpha_max = row["image"].getchannel("A").getextrema()
        assert alpha_max == 255, row["label"]


def test_held_out_concepts_are_few_whole_and_rare(texts):
    flags = defaultdict(list)
    for row in texts:
        flags[row["hexcode"]].append(row["held_out"])
    held_out = {hexcode for hexcode, flag in flags.items() if any(flag)}
    assert len(held_out) == drawings.HELD_OUT_CONCEPTS
    assert all(flags[hexcode] == [True] * 3 for hexcode in held_out)
    labels = {row["label"] for row in texts if row["held_out"]}
    assert all(len(label.split()) >= 3 and drawings.COLOURS.isdisjoint(label.split()) for label in labels)


def test_notice_names_every_source():
    notice = NOTICE.read_text()
    for package in [drawings.TEXTS, *(package for package, _ in drawings.HANDS.values())]:
        name, version = package.rsplit("@", 1)
        assert f"`{name}` {version}" in notice


def test_missing_npm_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="npm was not found"):
        drawings.fetch_npm(drawings.TEXTS, tmp_path)


@pytest.mark.slow
def test_build_is_deterministic(tmp_path, dataset):
    packages = [drawings.TEXTS, *(package for package, _ in drawings.HANDS.values())]
    try:
        archives = {package: drawings.fetch_npm(package, tmp_path) for package in packages}
    except RuntimeError as error:
        pytest.skip(f"needs npm and its registry: {error}")
    rows = drawings.list_drawings(archives)
    built = Dataset.from_list(rows, features=drawings.FEATURES).remove_columns("image").to_list()
    assert built == dataset.remove_columns("image").to_list()
    for name in ("first.parquet", "second.parquet"):
        drawings.write_drawings(rows[::100], tmp_path / name)
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "second.parquet").read_bytes()
