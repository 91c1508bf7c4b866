"""Puts measured numbers into documents: `python -m eval.report eval/results/ugen-spark.json README.md ...`.

What stands between the two marker lines of a document is replaced by tables made from the JSON, so that a printed
number is always a measured one; a test compares them.
"""

from __future__ import annotations

import argparse
import json
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


def markdown(record: dict[str, Any]) -> str:
    """All tables of a result of the suite `spark`, for the tasks that were measured."""
    tables = {"drawing": drawing_table, "editing": editing_table}
    blocks = ["\n".join(table(record[task])) for task, table in tables.items() if task in record]
    if "describing" in record or "answering" in record:
        blocks.append("\n".join(reading_table(record)))
    sentences = {"codec": codec_sentence, "text": text_sentence, "frechet": frechet_sentence}
    blocks.append(" ".join(sentence(record[task]) for task, sentence in sentences.items() if task in record))
    return "\n\n".join(filter(None, blocks))


def with_results(document: str, record: dict[str, Any]) -> str:
    """The document with fresh tables between its markers.

    Raises:
        ValueError: a document without the two markers.
    """
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise ValueError(f"the document needs one line {BEGIN} and, after it, one line {END}")
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n\n{markdown(record)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="JSON written by eval.run")
    parser.add_argument("documents", type=Path, nargs="+", help="Markdown files to bring up to date")
    arguments = parser.parse_args()
    record = json.loads(arguments.results.read_text())
    for path in arguments.documents:
        path.write_text(with_results(path.read_text(), record))


if __name__ == "__main__":
    main()
