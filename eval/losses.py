"""What a model makes of held-out text and images over its training: losses of three kinds, a point for each checkpoint.

    python -m eval.losses --models runs/uvu-angle/checkpoint-* --output eval/results/uvu-angle.losses.json

    text                 WordNet glosses, as documents
    text given an image  captions of scenes
    image given text     scenes, drawn from the suite's prompts

of combinations that training never contains. Losses are means over predicted tokens, in nats: the perplexity is their
exponential. Of vectors (diffusion) the image's is a mean squared error, and has no perplexity. It is measured with
noises that are the same for all checkpoints. Curves of several runs may stand on one picture; a run is a folder's name,
a step what follows the hyphen of its checkpoint.

Writes the JSON and a PNG beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from .environment import environment
from .facts import Scene
from .items import read_items
from .judge import Judge
from .load import HubModel
from .spark import HERE, TEXT_FILE, Row, evenly, of_split, real_scene

KINDS = ("text", "text given an image", "image given text")


def message(role: str, part: str | Image.Image) -> Row:
    kind = "text" if isinstance(part, str) else "image"
    return {"role": role, "content": [{"type": kind, kind: part}]}


def conversations(limit: int) -> dict[str, list[list[Row]]]:
    """By kind, as many held-out conversations as `limit`, evenly from the suite's lists."""
    judge = Judge.load(HERE / "data")
    texts = evenly(read_items(TEXT_FILE, filters=[("split", "==", "test")]), limit)
    read = of_split(read_items(HERE / "data" / "spark_describing.parquet"), "held_out", limit)
    drawn = of_split(read_items(HERE / "data" / "spark_drawing.parquet"), "held_out", limit)
    return {
        "text": [[message("assistant", row["text"])] for row in texts],
        "text given an image": [[message("user", row["image"]), message("assistant", row["caption"])] for row in read],
        "image given text": [
            [message("user", row["prompt"]), message("assistant", real_scene(Scene.from_json(row["scene"]), judge))]
            for row in drawn
        ],
    }


def measure_losses(hub_model: HubModel, asked: dict[str, list[list[Row]]], seed: int = 0) -> Row:
    """By kind: mean loss, tokens, and the perplexity where the loss is in nats."""
    found: Row = {}
    for kind, rows in asked.items():
        predicted = "image" if kind.startswith("image") else "text"
        total, count = hub_model.losses(rows, seed)[predicted]
        found[kind] = {"loss": total / count, "tokens": count}
        if predicted == "text" or hub_model.model.config.num_codes:
            found[kind]["perplexity"] = math.exp(total / count)
    return found


def place_of(folder: str) -> tuple[str, int]:
    """The run and step of a checkpoint's folder.

    Raises:
        ValueError: a folder that is no checkpoint.
    """
    path = Path(folder)
    step = path.name.rpartition("-")[2]
    if not step.isdecimal():
        raise ValueError(f"{folder} is no checkpoint of a run: pass folders such as runs/X/checkpoint-100")
    return path.parent.name, int(step)


def draw_curves(points: Sequence[Row], path: Path) -> None:
    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle("Losses on what training never contains")
    for panel, kind in zip(figure.subplots(1, len(KINDS)), KINDS, strict=True):
        for run in dict.fromkeys(point["run"] for point in points):
            of = sorted((p["step"], p["losses"][kind]["loss"]) for p in points if p["run"] == run)
            panel.plot(*zip(*of, strict=True), marker="o", label=run)
        panel.set(title=kind, xlabel="step", ylabel="loss per predicted token")
    figure.axes[0].legend()
    figure.savefig(path, dpi=100)


def run(models: Sequence[str], output: Path, limit: int, batch_size: int, trust_remote_code: bool) -> Row:
    """Loads and measures checkpoints and writes the two files; arguments as on the command line. Returns the JSON."""
    started = time.monotonic()
    places = sorted((*place_of(model), model) for model in models)
    asked = conversations(limit)
    points = []
    for run, step, model in tqdm(places, desc="checkpoints", unit="checkpoint"):
        losses = measure_losses(HubModel.load(model, trust_remote_code, batch_size), asked)
        points.append({"run": run, "step": step, "losses": losses})
    record = {
        "settings": {"limit": limit, "batch_size": batch_size, "split": "held_out", "seed": 0},
        "environment": environment(),
        "seconds": round(time.monotonic() - started, 1),
        "points": points,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    draw_curves(points, output.with_suffix(".png"))
    return record


def table(record: Row) -> str:
    lines = [f"{'run':28}{'step':>8}" + "".join(f"{kind:>22}" for kind in KINDS)]
    for point in record["points"]:
        cells = "".join(f"{point['losses'][kind]['loss']:22.4f}" for kind in KINDS)
        lines.append(f"{point['run']:28}{point['step']:8}{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", required=True, help="checkpoints of one run or of several")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--limit", type=int, default=60, help="items of each kind")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--trust-remote-code", action="store_true", help="use the models' own code")
    record: Any = run(**vars(parser.parse_args()))
    print(table(record))


if __name__ == "__main__":
    main()
