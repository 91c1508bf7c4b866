"""Puts measured numbers into a document.

    python -m eval.report REPORT.md eval/results/ugen-spark.json   # all of one model
    python -m eval.report README.md eval/results/*-spark.json      # models beside each other
    python -m eval.report README.md eval/results/compare.json      # and their speed

What stands between the two marker lines of the document is replaced by tables made from the JSON, so that a printed
number is always a measured one; a test compares them. One result gives a table for each task, several give one table
with a column for each model; the file that `eval.compare` writes gives that table with more rows, and the commands that
every number comes from. The cards in `model_cards/` take these tables too, when `model_cards.build` writes them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

SPLITS = ("held_out", "seen")
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
CATEGORIES = {
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "colors": "colours",
    "position": "position",
    "color_attr": "attribute binding",
    "overall": "overall",
}
QUESTIONS = ("colour", "count", "hand", "object", "place", "presence")


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def drawing_table(drawing: dict[str, Any]) -> list[str]:
    """Shares of right drawings, and the ceiling: the same judge on real scenes through the model's own codec."""
    lines = [
        "| drawing | held-out combinations | ceiling | seen combinations | ceiling |",
        "|---|---|---|---|---|",
    ]
    for key, name in CATEGORIES.items():
        cells = [percent(drawing[source][split].get(key)) for split in SPLITS for source in ("model", "codec")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def reading_table(record: dict[str, Any]) -> list[str]:
    """Describing and answering, on held-out combinations and on seen ones."""
    rows = {}
    if describing := record.get("describing"):
        rows["describing: all facts right, none missing"] = [describing[s]["exact_match"] for s in SPLITS]
        rows["describing: F1 over facts"] = [describing[s]["f1"] for s in SPLITS]
    if answering := record.get("answering"):
        rows["answering: accuracy"] = [answering[s]["accuracy"] for s in SPLITS]
        for kind in answering["seen"]["by_kind"]:
            rows[f"answering: {kind}"] = [answering[s]["by_kind"].get(kind) for s in SPLITS]
        rows["answering: F1 of yes and no"] = [answering[s]["yes_no"]["f1"] for s in SPLITS]
    lines = ["| reading | held-out combinations | seen combinations |", "|---|---|---|"]
    return lines + [f"| {name} | {percent(a)} | {percent(b)} |" for name, (a, b) in rows.items()]


def editing_table(editing: dict[str, Any]) -> list[str]:
    """Shares of edits in which what had to change is as asked, the rest has stayed, and both; the ceiling of both."""
    lines = [
        "| editing | held-out: as asked | the rest stayed | both | ceiling "
        "| seen: as asked | the rest stayed | both | ceiling |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys(kind for split in SPLITS for kind in editing["model"][split]["by_kind"])
    for key in (*kinds, "overall"):
        cells = []
        for split in SPLITS:
            own, ceiling = ({**editing[s][split]["by_kind"], "overall": editing[s][split]} for s in ("model", "codec"))
            cells += [percent(own.get(key, {}).get(name)) for name in ("changed", "stayed", "exact")]
            cells.append(percent(ceiling.get(key, {}).get("exact")))
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return lines


def codec_sentence(codec: dict[str, Any]) -> str:
    scenes, drawings = codec["scenes"], codec["held_out_drawings"]
    quality = (
        f"Codec: {scenes['psnr']:.1f} dB PSNR and {scenes['ssim']:.3f} SSIM on scenes, {drawings['psnr']:.1f} dB and "
        f"{drawings['ssim']:.3f} on drawings it never saw"
    )
    if "num_codes" not in scenes:
        return f"{quality}."
    return f"{quality}; {scenes['codes_in_use']} of {scenes['num_codes']} codes in use on the suite's scenes."


def text_sentence(text: dict[str, Any]) -> str:
    return (
        f"Text: perplexity {text['perplexity']:.1f} per token, {text['bits_per_byte']:.2f} bits per byte on held-out "
        "WordNet glosses."
    )


def frechet_sentence(frechet: dict[str, Any]) -> str:
    return (
        f"Frechet distance to real scenes ({frechet['features']}, n = {frechet['model']['n']}, not comparable with "
        f"other FIDs): {frechet['model']['frechet']:.1f}, of real scenes through the codec "
        f"{frechet['codec']['frechet']:.1f}."
    )


def tables_of_one(record: dict[str, Any]) -> str:
    """All tables of a result of the suite `spark`, for the tasks that were measured."""
    tables = {"drawing": drawing_table, "editing": editing_table}
    blocks = ["\n".join(table(record[task])) for task, table in tables.items() if task in record]
    if "describing" in record or "answering" in record:
        blocks.append("\n".join(reading_table(record)))
    sentences = {"codec": codec_sentence, "text": text_sentence, "frechet": frechet_sentence}
    blocks.append(" ".join(sentence(record[task]) for task, sentence in sentences.items() if task in record))
    return "\n\n".join(filter(None, blocks))


def both(shares: Sequence[float | None]) -> str:
    """The shares of held-out and of seen combinations, in one cell."""
    return " / ".join("-" if share is None else f"{100 * share:.0f}" for share in shares) + " %"


def drawing_cells(drawing: dict[str, Any]) -> dict[str, str]:
    cells = {
        f"drawing: {name}": both([drawing["model"][s].get(key) for s in SPLITS]) for key, name in CATEGORIES.items()
    }
    cells["drawing: ceiling of overall"] = both([drawing["codec"][s].get("overall") for s in SPLITS])
    if "seconds_per_image" in drawing:  # older results lack it
        cells["drawing: seconds per image"] = f"{drawing['seconds_per_image']:.2g}"
    return cells


def describing_cells(describing: dict[str, Any]) -> dict[str, str]:
    names = {"exact_match": "all facts right, none missing", "f1": "F1 over facts", "in_grammar": "in the grammar"}
    return {f"describing: {name}": both([describing[s][key] for s in SPLITS]) for key, name in names.items()}


def answering_cells(answering: dict[str, Any]) -> dict[str, str]:
    return {
        "answering: accuracy": both([answering[s]["accuracy"] for s in SPLITS]),
        **{
            f"answering: {kind}": both([answering[s]["by_kind"].get(kind) for s in SPLITS])
            for kind in answering["seen"]["by_kind"]
        },
        "answering: F1 of yes and no": both([answering[s]["yes_no"]["f1"] for s in SPLITS]),
    }


def editing_cells(editing: dict[str, Any]) -> dict[str, str]:
    names = {"changed": "as asked", "stayed": "the rest stayed", "exact": "both"}
    cells = {f"editing: {name}": both([editing["model"][s][key] for s in SPLITS]) for key, name in names.items()}
    return cells | {"editing: ceiling of both": both([editing["codec"][s]["exact"] for s in SPLITS])}


def codec_cells(codec: dict[str, Any]) -> dict[str, str]:
    names = {"scenes": "scenes", "held_out_drawings": "drawings it never saw"}
    cells = {
        f"codec: PSNR, SSIM on {name}": f"{codec[key]['psnr']:.1f} dB, {codec[key]['ssim']:.3f}"
        for key, name in names.items()
    }
    if num_codes := codec["scenes"].get("num_codes"):
        cells["codec: codes in use on scenes"] = f"{codec['scenes']['codes_in_use']:.0f} of {num_codes:.0f}"
    return cells


def text_cells(text: dict[str, Any]) -> dict[str, str]:
    return {
        "text: perplexity per token": f"{text['perplexity']:.1f}",
        "text: bits per byte": f"{text['bits_per_byte']:.2f}",
    }


def frechet_cells(frechet: dict[str, Any]) -> dict[str, str]:
    distances = f"{frechet['model']['frechet']:.1f}, {frechet['codec']['frechet']:.1f}"
    return {"Frechet distance to real scenes: drawn, through the codec": distances}


def speed_cells(speed: dict[str, Any]) -> dict[str, str]:
    seconds, rates = speed["seconds_of_repetitions"], speed["rates_of_repetitions"]
    return {
        "speed: seconds per image": f"{speed['seconds_per_image']:.2g} ({min(seconds):.2g} to {max(seconds):.2g})",
        "speed: text tokens per second": f"{speed['tokens_per_second']:.0f} ({min(rates):.0f} to {max(rates):.0f})",
    }


# What a result may hold -> its rows in the table of several models, label -> cell.
CELLS: dict[str, Callable[[Any], dict[str, str]]] = {
    "parameters": lambda count: {"parameters, codec included": f"{count / 1e6:.1f}M"},
    "training_minutes": lambda minutes: {"training: minutes": f"{minutes:.0f}"},
    "speed": speed_cells,
    "drawing": drawing_cells,
    "describing": describing_cells,
    "answering": answering_cells,
    "editing": editing_cells,
    "codec": codec_cells,
    "text": text_cells,
    "frechet": frechet_cells,
}


# What a share with an interval is called in the table: part and group -> label.
INTERVAL_LABELS = {
    **{("drawing", key): f"drawing: {name}" for key, name in CATEGORIES.items()},
    ("describing", "overall"): "describing: all facts right, none missing",
    ("answering", "overall"): "answering: accuracy",
    **{
        ("answering", kind): f"answering: {kind}" for kind in ("colour", "count", "hand", "object", "place", "presence")
    },
    ("editing", "overall"): "editing: both",
}


def interval_cells(shares: dict[str, Any]) -> dict[str, str]:
    """Shares with half the width of their intervals, label -> "78±5 / 76±4 %"; they take the place of bare shares."""

    def cell(part: str, group: str) -> str:
        of = [shares[part][split].get(group) for split in SPLITS]
        halves = ["-" if s is None else f"{100 * s['value']:.0f}±{50 * (s['high'] - s['low']):.0f}" for s in of]
        return " / ".join(halves) + " %"

    return {label: cell(*key) for key, label in INTERVAL_LABELS.items() if key[0] in shares}


def model_name(record: dict[str, Any]) -> str:
    return Path(record["model"]).name


def frechet_note(record: dict[str, Any]) -> str | None:
    if frechet := record.get("frechet"):
        return f"Frechet: {frechet['features']}, n = {frechet['model']['n']}, not comparable with other FIDs."
    return None


def seconds_note(record: dict[str, Any]) -> str | None:
    if "seconds_per_image" in record.get("drawing", {}):
        batch_size, machine = record["settings"]["batch_size"], record["environment"]["machine"]
        return f"Seconds: median over batches of {batch_size} ({machine})."
    return None


def interval_note(record: dict[str, Any]) -> str | None:
    return "± is half of a 95 % interval (bootstrap over items)." if "shares" in record else None


def counts_note(records: Sequence[dict[str, Any]]) -> str:
    """How many items a share is of, of held-out and of seen combinations."""
    names = {"drawing": "drawings", "describing": "captions", "answering": "answers", "editing": "edits"}

    def count(task: str, record: dict[str, Any]) -> str | None:
        part = record.get(task, {})
        part = part.get("model", part)  # of pictures the judge has more to say than of texts
        return f"{' / '.join(str(part[s]['n']) for s in SPLITS)} {names[task]}" if part else None

    counts = [common_note(records, partial(count, task)) for task in names]
    return f"Shares are of {', '.join(filter(None, counts))}."


def training_note(record: dict[str, Any]) -> str:
    """Which runs the minutes are of; a run that several models start from counts for each of them."""
    runs = [f"`{recipe}` {minutes:.0f}" for recipe, minutes in record.get("training", {}).items()]
    return f"Training: recipes {' + '.join(runs)} minutes." if runs else ""


def speed_note(settings: dict[str, Any]) -> str:
    batch_size, repetitions = settings["batch_size"], settings["repetitions"]
    return (
        f"Speed: medians (and ranges) of {repetitions} repetitions, the models in turns, after one to warm up; "
        f"{batch_size} images at a time, from words to pixels; {batch_size} texts at a time, {settings['text_tokens']} "
        f"tokens about an image each, reading it included; load average {settings['load_before']:.1f} before."
    )


def where_measured(environment: dict[str, Any]) -> tuple[str, str, str]:
    """The state of the code, the machine, and the packages, in words."""
    commit, *changes = environment["commit"].split(" ", 1)
    packages = " and ".join(f"{name} {environment['packages'][name]}" for name in ("torch", "transformers"))
    return " ".join([f"at commit {commit[:7]}", *changes]), f"on {environment['machine']}", f"with {packages}"


def environment_note(comparison: dict[str, Any]) -> str:
    """What the numbers were measured with, and a warning where that is not the same for all of them."""
    environments = {model_name(record): record["environment"] for record in comparison["models"]}
    measured = {name: where_measured(of) for name, of in (environments | {"speed": comparison["environment"]}).items()}
    parts = []
    for texts in zip(*measured.values(), strict=True):
        names_of: dict[str, list[str]] = {}
        for name, text in zip(measured, texts, strict=True):
            names_of.setdefault(text, []).append(name)
        parts += [text if len(names_of) == 1 else f"{text} ({', '.join(names)})" for text, names in names_of.items()]
    alike = len(set(measured.values())) == 1
    return f"{'Measured' if alike else '**Not all measured alike**:'} {', '.join(parts)}."


def common_note(records: Sequence[dict[str, Any]], note: Callable[[dict[str, Any]], str | None]) -> str:
    """What `note` says of the records: once where it is the same of all, else after the models' names."""
    said = {model_name(record): text for record in records if (text := note(record))}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return " ".join(f"{name}: {text}" for name, text in said.items())


def check_comparable(records: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError for results that do not stand beside each other: of one name, or of other items."""
    names = [model_name(record) for record in records]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two results of {', '.join(sorted(twice))}: pass one of each model")
    items = {(record["suite"], record["settings"]["limit"]) for record in records}
    if len(items) > 1:
        raise ValueError(f"results of other items, (suite, limit) {items}: measure all models with the same")


def table_of_several(records: Sequence[dict[str, Any]]) -> str:
    """One table with a column for each model, "-" where something was not measured, and notes below it.

    Raises:
        ValueError: see `check_comparable`.
    """
    check_comparable(records)
    names = [model_name(record) for record in records]
    lines = ["| held-out / seen combinations | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for part, cells_of in CELLS.items():
        columns = [cells_of(record[part]) if part in record else {} for record in records]
        sure = [interval_cells(record.get("shares", {})) for record in records]
        columns = [
            column | {label: cells[label] for label in column.keys() & cells.keys()}
            for column, cells in zip(columns, sure, strict=True)
        ]
        for label in dict.fromkeys(label for column in columns for label in column):
            lines.append(f"| {label} | " + " | ".join(column.get(label, "-") for column in columns) + " |")
    notes = [common_note(records, note) for note in (interval_note, frechet_note, seconds_note)]
    return "\n\n".join(filter(None, ["\n".join(lines), " ".join(filter(None, notes))]))


def table_of_comparison(comparison: dict[str, Any]) -> str:
    """The table of several models with their training and speed; below it where each number comes from."""
    records = comparison["models"]
    notes = [
        counts_note(records),
        common_note(records, training_note),
        speed_note(comparison["settings"]),
        environment_note(comparison),
    ]
    commands = "\n".join([*(record["command"] for record in records), comparison["command"]])
    return "\n\n".join(
        [
            table_of_several(records),
            " ".join(filter(None, notes)),
            "A model's numbers come from its command; training, speed and pictures from the last one:",
            f"```bash\n{commands}\n```",
        ]
    )


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """The tables of one result, one table of several, or that of a comparison.

    Raises:
        ValueError: results that do not stand beside each other.
    """
    if "models" in records[0] and len(records) == 1:
        return table_of_comparison(records[0])
    if comparisons := sum("models" in record for record in records):
        raise ValueError(f"{len(records)} files, {comparisons} of eval.compare: pass one of these alone, or results")
    return tables_of_one(records[0]) if len(records) == 1 else table_of_several(records)


def with_results(document: str, records: Sequence[dict[str, Any]]) -> str:
    """The document with fresh tables between its markers.

    Raises:
        ValueError: a document without the two markers.
    """
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise ValueError(f"the document needs one line {BEGIN} and, after it, one line {END}")
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n\n{markdown(records)}\n\n{END}{rest.split(END)[1]}"


def read_record(path: Path) -> dict[str, Any]:
    """A result of `eval.run` or `eval.compare`. Raises ValueError for any other file."""
    record = json.loads(path.read_text())
    if not {"suite", "models"} & record.keys():
        raise ValueError(f"{path} holds no result of a suite: pass the files that eval.run or eval.compare writes")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("document", type=Path, help="Markdown file to bring up to date")
    parser.add_argument(
        "results", type=Path, nargs="+", help="JSON of eval.run, in the order of columns, or of eval.compare"
    )
    arguments = parser.parse_args()
    records = [read_record(path) for path in arguments.results]
    arguments.document.write_text(with_results(arguments.document.read_text(), records))


if __name__ == "__main__":
    main()
