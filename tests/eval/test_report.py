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


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_card_and_readme_hold_the_measured_numbers(path):
    tables = markdown(json.loads(path.read_text()))
    card = ROOT / "model_cards" / path.stem / "README.md"
    assert tables in card.read_text()
    if path.stem == "ugen-spark":
        assert tables in (ROOT / "README.md").read_text()
