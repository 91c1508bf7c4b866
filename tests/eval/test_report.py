"""Numbers in documents are those of the results, and come from one place."""

import json
from pathlib import Path

import pytest

from eval.report import BEGIN, END, markdown, percent, with_results

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "eval" / "results").glob("*-spark.json"))


def test_percent_rounds_and_marks_what_was_not_measured():
    assert [percent(x) for x in (0.0, 0.994, 1.0, None)] == ["0 %", "99 %", "100 %", "-"]


def test_tables_stand_between_the_markers():
    record = json.loads(RESULTS[0].read_text())
    document = with_results(f"before\n{BEGIN}\nold\n{END}\nafter\n", record)
    assert document.startswith("before\n") and document.endswith("\nafter\n") and "old" not in document
    assert with_results(document, record) == document
    with pytest.raises(ValueError, match="needs one line"):
        with_results("no markers", record)


def test_editing_has_its_table_where_it_was_measured():
    def of(shares):
        kind = dict(zip(("changed", "stayed", "exact"), shares, strict=True))
        return {
            "held_out": {**kind, "by_kind": {"move": kind}},
            "seen": {**kind, "by_kind": {"move": kind, "add": kind}},
        }

    editing = {"model": of((0.5, 0.75, 0.25)), "codec": of((1, 1, 0.99))}
    table = markdown({"editing": editing})
    assert "| move | 50 % | 75 % | 25 % | 99 % | 50 % | 75 % | 25 % | 99 % |" in table
    assert "| add | - | - | - | - | 50 % | 75 % | 25 % | 99 % |" in table
    assert table.splitlines()[-1] == "| overall | 50 % | 75 % | 25 % | 99 % | 50 % | 75 % | 25 % | 99 % |"
    record = json.loads(RESULTS[0].read_text())
    assert markdown(record | {"editing": editing}).split("\n\n")[1] == table and "editing" not in markdown(record)


def test_only_what_was_measured_is_told():
    record = json.loads(RESULTS[0].read_text())
    del record["codec"]["scenes"]["num_codes"]  # a codec whose tokens are vectors has no codebook
    told = markdown({"codec": record["codec"]})
    assert told.startswith("Codec:") and told.endswith("drawings it never saw.") and "\n" not in told
    answering = markdown({"answering": record["answering"]})
    assert "answering: accuracy" in answering and "describing" not in answering


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_card_and_readme_hold_the_measured_numbers(path):
    tables = markdown(json.loads(path.read_text()))
    card = ROOT / "model_cards" / path.stem / "README.md"
    assert tables in card.read_text()
    if path.stem == "ugen-spark":
        assert tables in (ROOT / "README.md").read_text()
