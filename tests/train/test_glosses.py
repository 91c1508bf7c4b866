"""The committed glosses are what their contract says, and the functions that clean them do so on real WordNet lines."""

from pathlib import Path

import pytest
from datasets import Dataset

from train import glosses

PATH = Path(glosses.__file__).parent / "data" / "glosses.parquet"


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    dataset = Dataset.from_parquet(str(PATH), cache_dir=str(tmp_path_factory.mktemp("cache")))
    assert dataset.features == glosses.FEATURES
    return dataset.to_list()


def test_rows_are_sorted_unique_and_as_many_as_said(rows):
    keys = [(row["lemma"], row["text"]) for row in rows]
    assert len(keys) == glosses.ROWS
    assert keys == sorted(set(keys))


def test_texts_are_plain_and_short(rows):
    for row in rows:
        assert row["text"].startswith(f"{row['lemma']}: ")
        assert glosses.PLAIN_TEXT.fullmatch(row["text"]) and len(row["text"]) <= glosses.MAX_CHARACTERS, row


def test_test_split_is_one_percent_of_whole_lemmas(rows):
    split = {}
    for row in rows:
        assert split.setdefault(row["lemma"], row["split"]) == row["split"], row
    test_lemmas = sum(value == "test" for value in split.values())
    assert 0.007 < test_lemmas / len(split) < 0.013
    assert set(split.values()) == {"train", "test"}


def test_read_senses_takes_the_first_synonym(tmp_path):
    (tmp_path / "data.adj").write_text(
        "  1 This software and database is being provided\n"
        "00014358 00 s 03 abounding 0 galore(ip) 0 001 & 00013887 a 0000 | existing in abundance\n"
        "00004258 03 n 02 living_thing 0 animate_thing 0 000 | a living (or once living) entity  \n"
    )
    assert glosses.read_senses(tmp_path / "data.adj") == [
        ("abounding", "existing in abundance"),
        ("living thing", "a living (or once living) entity"),
    ]


@pytest.mark.parametrize(
    ("lemma", "gloss", "text"),
    [
        ("living thing", "a living (or once living) entity", "living thing: a living entity"),
        ("cat", "feline mammal having soft fur: domestic cats; wildcats", "cat: feline mammal having soft fur"),
        ("bus", 'a vehicle; "he rode the bus"', 'bus: a vehicle, as in "he rode the bus"'),
        ("labor", 'work hard; "She was digging away"; "they labored"', 'labor: work hard, as in "they labored"'),
        ("toil", 'work hard; "She was digging away"', "toil: work hard"),
        ("work", "do " + "very " * 40 + "much", None),
        ("Paris", "the capital of France", None),
        ("wolf", "(slang) a man", None),
    ],
)
def test_sentence(lemma, gloss, text):
    assert glosses.sentence(lemma, gloss) == text


def test_plainest_senses_come_first():
    senses = [("cat", "an animal"), ("dog", "an animal"), ("animal", "a living cat or dog"), ("okapi", "a quagga")]
    assert {row["lemma"] for row in glosses.list_glosses(senses, rows=3)} == {"cat", "dog", "animal"}
    with pytest.raises(ValueError, match="4 plain glosses were found where 5"):
        glosses.list_glosses(senses, rows=5)


def test_missing_apt_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get was not found"):
        glosses.fetch(tmp_path)


@pytest.mark.slow
def test_committed_file_is_what_the_script_builds(tmp_path, rows):
    try:
        folder = glosses.fetch(tmp_path)
    except RuntimeError as error:
        pytest.skip(f"needs apt and its archive: {error}")
    senses = [sense for part in glosses.PARTS_OF_SPEECH for sense in glosses.read_senses(folder / f"data.{part}")]
    assert glosses.list_glosses(senses) == rows
