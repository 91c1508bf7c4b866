"""Measures a model: `python -m eval.run --model model_cards/ugen-spark --suite spark`.

`--tasks` chooses what is measured; by default all but editing, for models that have learned to edit.

Prints tables, the judge's accuracy on real scenes (the ceiling) beside the model's, and writes next to each other

    NAME.json          all numbers, with settings, seeds, packages, commit, hardware and seconds
    NAME.items.jsonl   every drawing's verdict, every caption, every answer
    NAME.png           drawings under their prompts, edits beside their sources, with what the judge saw

Seeds are fixed: the same model, settings, packages and threads give the same numbers, but for seconds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .load import HubModel
from .pictures import RIGHT, WRONG, Card, Line, Section, draw_sheet
from .spark import DEFAULT_TASKS, SPLITS, TASKS, evaluate_spark

SUITES = {"spark": evaluate_spark}
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PACKAGES = ("torch", "transformers", "diffusers", "evaluate", "datasets", "numpy", "pillow", "scipy")
SPLIT_NAMES = {"held_out": "held-out", "seen": "seen"}


def environment() -> dict[str, Any]:
    """What the numbers were measured with."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    return {
        "commit": f"{commit or 'unknown'}{' with changes' if changed else ''}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, no GPU used",
    }


def table(results: dict[str, Any]) -> str:
    """The numbers that matter, as text, of the tasks that were measured."""
    parts = {
        "drawing": drawing_lines,
        "editing": editing_lines,
        "describing": describing_lines,
        "answering": answering_lines,
        "codec": codec_lines,
    }
    lines = [line for task, of in parts.items() if task in results for line in of(results[task])]
    if text := results.get("text"):
        lines.append(f"text: perplexity {text['perplexity']:.2f}, {text['bits_per_byte']:.3f} bits per byte")
    if frechet := results.get("frechet"):
        distances = f"drawn {frechet['model']['frechet']:.2f}, codec {frechet['codec']['frechet']:.2f}"
        scenes = f"real scenes ({frechet['features']}, n = {frechet['model']['n']})"
        lines.append(f"Frechet distance to {scenes}: {distances}")
    return "\n".join(lines)


def drawing_lines(drawing: dict[str, Any]) -> list[str]:
    lines = ["Drawing: share of images in which everything asked for holds (judge on real scenes = ceiling)", ""]
    lines.append(f"{'':16}" + "".join(f"{SPLIT_NAMES[s]:>10}{'via codec':>11}{'real':>7}" for s in SPLITS))
    for category in (*CATEGORIES, "overall"):
        shares = [
            drawing[source][split].get(category, float("nan"))
            for split in SPLITS
            for source in ("model", "codec", "real")
        ]
        lines.append(f"{category:16}" + "".join(f"{x:{w}.3f}" for x, w in zip(shares, (10, 11, 7) * 2, strict=True)))
    return [*lines, f"{'seconds an image':16}{drawing['seconds_per_image']:10.3f}", ""]


def editing_lines(editing: dict[str, Any]) -> list[str]:
    """All kinds over one split, then over the other: eight numbers do not fit beside each other."""
    lines = ["Editing: what had to change is as asked, the rest has stayed, both (targets via codec = ceiling)", ""]
    for split in SPLITS:
        lines.append(f"{SPLIT_NAMES[split]:16}{'changed':>10}{'stayed':>10}{'both':>10}{'via codec':>11}")
        own, ceiling = (editing[source][split] for source in ("model", "codec"))
        rows = {kind: (own["by_kind"][kind], ceiling["by_kind"][kind]) for kind in own["by_kind"]}
        for name, (scores, best) in (rows | {"overall": (own, ceiling)}).items():
            shares = [scores[key] for key in ("changed", "stayed", "exact")]
            lines.append(f"{name:16}" + "".join(f"{share:10.3f}" for share in shares) + f"{best['exact']:11.3f}")
    return [*lines, ""]


def describing_lines(describing: dict[str, Any]) -> list[str]:
    return by_split(
        {f"describing: {key}": [describing[s][key] for s in SPLITS] for key in ("exact_match", "f1", "in_grammar")}
    )


def answering_lines(answering: dict[str, Any]) -> list[str]:
    rows = {"answering: accuracy": [answering[split]["accuracy"] for split in SPLITS]}
    for kind in sorted({kind for split in SPLITS for kind in answering[split]["by_kind"]}):
        rows[f"answering: {kind}"] = [answering[split]["by_kind"].get(kind, float("nan")) for split in SPLITS]
    for key in ("f1", "yes_ratio"):
        rows[f"answering: yes/no {key}"] = [answering[s].get("yes_no", {}).get(key, float("nan")) for s in SPLITS]
    return by_split(rows)


def by_split(rows: dict[str, list[float]]) -> list[str]:
    lines = [f"{'':30}" + "".join(f"{SPLIT_NAMES[split]:>10}" for split in SPLITS)]
    return lines + [f"{name:30}" + "".join(f"{value:10.3f}" for value in values) for name, values in rows.items()]


def codec_lines(codec: dict[str, Any]) -> list[str]:
    lines = []
    for name, part in codec.items():
        lines.append(f"codec, {name}: PSNR {part['psnr']:.2f} dB, SSIM {part['ssim']:.3f}")
        if "num_codes" in part:
            used = f"{part['codes_in_use']} of {part['num_codes']} codes, {part['entropy']:.2f} bits"
            lines[-1] += f", {used}"
    return lines


def drawing_sections(drawn_items: list[dict[str, Any]], per_category: int = 7) -> list[Section]:
    """One row of held-out drawings per category, each with its prompt and the judge's verdict."""
    sections = []
    for category in CATEGORIES:
        chosen = [item for item in drawn_items if item["category"] == category and item["split"] == "held_out"]
        chosen = chosen[:per_category]
        cards = [
            Card(item["drawn"], [Line(item["prompt"]), Line(item["judged"], RIGHT if item["right"] else WRONG)])
            for item in chosen
        ]
        right = sum(item["right"] for item in chosen)
        sections.append(Section(category, f"{right} of these {len(chosen)} are judged right", cards, per_category))
    return sections


def editing_sections(edited_items: list[dict[str, Any]], per_kind: int = 2) -> list[Section]:
    """Held-out edits, the first ones of each kind: source, instruction with the judge's verdict, result."""
    held_out = [item for item in edited_items if item["split"] == "held_out"]
    kinds = dict.fromkeys(item["kind"] for item in held_out)
    chosen = [item for kind in kinds for item in [i for i in held_out if i["kind"] == kind][:per_kind]]
    cards = [
        Card(
            item["source"],
            [Line(item["instruction"]), Line(item["judged"], RIGHT if item["exact"] else WRONG)],
            item["drawn"],
        )
        for item in chosen
    ]
    exact = sum(item["exact"] for item in chosen)
    subtitle = f"source, instruction, result: {exact} of these {len(chosen)} are judged right"
    return [Section("editing", subtitle, cards, columns=2, beside=True)]


def run(
    model: str,
    output: Path,
    suite: str = "spark",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    image_sampling: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    tasks: Sequence[str] = DEFAULT_TASKS,
) -> dict[str, Any]:
    """Loads and measures a model and writes the three files; arguments as on the command line. Returns the JSON.
    There is no picture where nothing is drawn or edited.

    Raises ValueError if the suite's data is missing or the model draws images of another size than the suite's.
    """
    started = time.monotonic()
    hub_model = HubModel.load(model, trust_remote_code, batch_size)
    results, items = SUITES[suite](hub_model, limit, seed, image_sampling, tasks)
    record = {
        "suite": suite,
        "model": model,
        "parameters": sum(p.numel() for p in hub_model.model.parameters()),
        "settings": {
            "image_sampling": {**hub_model.image_sampling, **(image_sampling or {})},
            "text": "greedy",
            "seeds": f"{seed} + number of the prompt in its split",
            "batch_size": batch_size,
            "limit": limit,
            "tasks": list(tasks),
        },
        "environment": environment(),
        "seconds": round(time.monotonic() - started, 1),
        **results,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    write_items(items, output.with_suffix(".items.jsonl"))
    makers = {"drawing": drawing_sections, "editing": editing_sections}
    sections = [section for task, make in makers.items() if task in items for section in make(items[task])]
    if sections:
        draw_sheet(f"{Path(model).name}: combinations never seen in training", sections, output.with_suffix(".png"))
    return record


def write_items(items: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One JSON line for each item, without its images."""
    with path.open("w") as file:
        for part, rows in items.items():
            for row in rows:
                plain = {key: value for key, value in row.items() if not isinstance(value, Image.Image)}
                file.write(json.dumps({"part": part, **plain}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--suite", choices=sorted(SUITES), default="spark")
    parser.add_argument("--output", type=Path, help="JSON file; default eval/results/NAME.json")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=DEFAULT_TASKS, help="default: all but editing")
    parser.add_argument("--limit", type=int, help="at most so many items of each part and split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-sampling", type=json.loads, help='JSON, e.g. {"guidance_scale": 1.5}')
    parser.add_argument("--trust-remote-code", action="store_true", help="use the model's own code")
    arguments = vars(parser.parse_args())
    output = arguments.pop("output") or Path(__file__).parent / "results" / f"{Path(arguments['model']).name}.json"
    record = run(output=output, **arguments)
    print(table(record))
    print(f"\n{record['seconds']:.0f} seconds. Written: {output} and the files beside it")


if __name__ == "__main__":
    main()
