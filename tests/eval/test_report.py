"""Numbers in documents are those of the results, and come from one place."""

import copy
import json
from pathlib import Path

import pytest

import eval.report
from eval.report import BEGIN, END, markdown, percent, with_results

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "eval" / "results").glob("*-spark.json"))


def test_percent_rounds_and_marks_what_was_not_measured():
    assert [percent(x) for x in (0.0, 0.994, 1.0, None)] == ["0 %", "99 %", "100 %", "-"]


def test_tables_stand_between_the_markers():
    record = json.loads(RESULTS[0].read_text())
    document = with_results(f"before\n{BEGIN}\nold\n{END}\nafter\n", [record])
    assert document.startswith("before\n") and document.endswith("\nafter\n") and "old" not in document
    assert with_results(document, [record]) == document
    with pytest.raises(ValueError, match="needs one line"):
        with_results("no markers", [record])


def test_editing_has_its_table_where_it_was_measured():
    def of(shares):
        kind = dict(zip(("changed", "stayed", "exact"), shares, strict=True))
        return {
            "held_out": {**kind, "by_kind": {"move": kind}},
            "seen": {**kind, "by_kind": {"move": kind, "add": kind}},
        }

    editing = {"model": of((0.5, 0.75, 0.25)), "codec": of((1, 1, 0.99))}
    table = markdown([{"editing": editing}])
    assert "| move | 50 % | 75 % | 25 % | 99 % | 50 % | 75 % | 25 % | 99 % |" in table
    assert "| add | - | - | - | - | 50 % | 75 % | 25 % | 99 % |" in table
    assert table.splitlines()[-1] == "| overall | 50 % | 75 % | 25 % | 99 % | 50 % | 75 % | 25 % | 99 % |"
    record = json.loads(RESULTS[0].read_text())
    assert markdown([record | {"editing": editing}]).split("\n\n")[1] == table and "editing" not in markdown([record])


def test_only_what_was_measured_is_told():
    record = json.loads(RESULTS[0].read_text())
    del record["codec"]["scenes"]["num_codes"]  # a codec whose tokens are vectors has no codebook
    told = markdown([{"codec": record["codec"]}])
    assert told.startswith("Codec:") and told.endswith("drawings it never saw.") and "\n" not in told
    answering = markdown([{"answering": record["answering"]}])
    assert "answering: accuracy" in answering and "describing" not in answering


def numbers_of(record, path=()):
    """All numbers of a result, by their keys."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from numbers_of(value, (*path, key))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield (*path, key), value


@pytest.fixture
def two_results():
    """A measured result, and one of another model in which every number is another."""
    first = json.loads(RESULTS[0].read_text())
    del first["drawing"]["seconds_per_image"]  # as of an older result
    kind = dict(zip(("changed", "stayed", "exact"), (0.5, 0.75, 0.25), strict=True))
    second = copy.deepcopy(first) | {"model": "folder/other-spark"}
    for path, value in numbers_of(first):
        *parents, key = path
        part = second
        for parent in parents:
            part = part[parent]
        part[key] = 0.9 * value
    second["editing"] = {s: {"held_out": kind, "seen": kind} for s in ("model", "codec")}
    second["drawing"]["seconds_per_image"] = 0.123
    return first, second


def test_several_results_stand_beside_each_other(two_results):
    table, notes = markdown(two_results).split("\n\n")
    rows = {label: cells for label, *cells in (line.strip("| ").split(" | ") for line in table.splitlines())}
    assert rows["held-out / seen combinations"] == ["ugen-spark", "other-spark"]
    for column, record in enumerate(two_results):
        drawing, scenes = record["drawing"]["model"], record["codec"]["scenes"]
        said = {label: cells[column] for label, cells in rows.items() if len(cells) == 2}
        for category, label in (("two_object", "two objects"), ("overall", "overall")):
            shares = [record["shares"]["drawing"][split][category] for split in ("held_out", "seen")]
            held_out, seen = (f"{100 * of['value']:.0f}±{50 * (of['high'] - of['low']):.0f}" for of in shares)
            assert said[f"drawing: {label}"] == f"{held_out} / {seen} %"
            assert column or [of["value"] for of in shares] == pytest.approx([drawing[s][category] for s in drawing])
        assert said["codec: PSNR, SSIM on scenes"] == f"{scenes['psnr']:.1f} dB, {scenes['ssim']:.3f}"
        assert said["text: bits per byte"] == f"{record['text']['bits_per_byte']:.2f}"
        assert said["parameters, codec included"] == f"{record['parameters'] / 1e6:.1f}M"
        answered = record["shares"]["answering"]["held_out"]["overall"]["value"]
        assert said["answering: accuracy"].startswith(f"{100 * answered:.0f}±")
    assert "± is half of a 95 % interval" in notes
    assert rows["drawing: ceiling of overall"] == ["100 / 100 %", "90 / 90 %"]
    assert rows["editing: as asked"] == ["-", "50 / 50 %"] and rows["editing: ceiling of both"] == ["-", "25 / 25 %"]
    assert rows["drawing: seconds per image"] == ["-", "0.12"]
    # Features are the same, their numbers are not; seconds are of one model only.
    assert "ugen-spark: Frechet: EfficientNet" in notes and "other-spark: Frechet: " in notes
    assert notes.count("Seconds: median over batches") == 1 and "other-spark: Seconds" not in notes


def test_a_task_keeps_its_place_whoever_has_it(two_results):
    first, second = two_results

    def labels(records):
        return [line.split(" | ")[0] for line in markdown(records).splitlines() if line.startswith("| ")]

    assert labels([first, second]) == labels([second, first])
    assert not any("editing" in label for label in labels([first, first | {"model": "third"}]))


def test_results_that_do_not_compare_are_refused(two_results, tmp_path):
    first, second = two_results
    with pytest.raises(ValueError, match="two results of ugen-spark"):
        markdown([first, second | {"model": "elsewhere/ugen-spark"}])
    with pytest.raises(ValueError, match="results of other items"):
        markdown([first, second | {"settings": second["settings"] | {"limit": 6}}])
    (tmp_path / "curve.json").write_text('{"points": []}')
    with pytest.raises(ValueError, match="curve.json holds no result of a suite"):
        eval.report.read_record(tmp_path / "curve.json")


def test_command_line_fills_a_document(two_results, tmp_path, monkeypatch):
    document = tmp_path / "README.md"
    document.write_text(f"{BEGIN}\n{END}\n")
    paths = []
    for name, record in zip("ab", two_results, strict=True):
        paths.append(tmp_path / f"{name}-spark.json")
        paths[-1].write_text(json.dumps(record))
    monkeypatch.setattr("sys.argv", ["report", str(document), *map(str, paths)])
    eval.report.main()
    assert document.read_text() == f"{BEGIN}\n\n{markdown(two_results)}\n\n{END}\n"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_card_holds_the_measured_numbers(path):
    card = ROOT / "model_cards" / path.stem / "README.md"
    assert markdown([json.loads(path.read_text())]) in card.read_text(), "run model_cards.build"
