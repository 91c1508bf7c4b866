"""Puts measured numbers into documents: `python -m eval.report eval/results/ugen-spark.json README.md ...`.

What stands between the two marker lines of a document is replaced by tables made from the JSON, so that a printed
number is always a measured one; a test compares them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

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
        cells = [
            percent(drawing[source][split].get(key)) for split in ("held_out", "seen") for source in ("model", "codec")
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def reading_table(record: dict[str, Any]) -> list[str]:
    """Describing and answering, on held-out combinations and on seen ones."""
    describing, answering = record["describing"], record["answering"]
    rows = {
        "describing: all facts right, none missing": [describing[s]["exact_match"] for s in ("held_out", "seen")],
        "describing: F1 over facts": [describing[s]["f1"] for s in ("held_out", "seen")],
        "answering: accuracy": [answering[s]["accuracy"] for s in ("held_out", "seen")],
    }
    for kind in answering["seen"]["by_kind"]:
        rows[f"answering: {kind}"] = [answering[s]["by_kind"].get(kind) for s in ("held_out", "seen")]
    rows["answering: F1 of yes and no"] = [answering[s]["yes_no"]["f1"] for s in ("held_out", "seen")]
    lines = ["| reading | held-out combinations | seen combinations |", "|---|---|---|"]
    return lines + [f"| {name} | {percent(a)} | {percent(b)} |" for name, (a, b) in rows.items()]


def markdown(record: dict[str, Any]) -> str:
    """All tables of a result of the suite `spark`."""
    codec, text, frechet = record["codec"], record["text"], record["frechet"]
    scenes, drawings = codec["scenes"], codec["held_out_drawings"]
    sentence = (
        f"Codec: {scenes['psnr']:.1f} dB PSNR and {scenes['ssim']:.3f} SSIM on scenes, {drawings['psnr']:.1f} dB and "
        f"{drawings['ssim']:.3f} on drawings it never saw; {scenes['codes_in_use']} of {scenes['num_codes']} codes in "
        f"use on the suite's scenes. Text: perplexity {text['perplexity']:.1f} per token, {text['bits_per_byte']:.2f} "
        f"bits per byte on held-out WordNet glosses. Frechet distance to real scenes ({frechet['features']}, "
        f"n = {frechet['model']['n']}, not comparable with other FIDs): {frechet['model']['frechet']:.1f}, of real "
        f"scenes through the codec {frechet['codec']['frechet']:.1f}."
    )
    return "\n".join([*drawing_table(record["drawing"]), "", *reading_table(record), "", sentence])


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
