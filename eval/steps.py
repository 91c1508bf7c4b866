"""Quality against time of models that draw in denoising steps: how many steps are enough?

    python -m eval.steps --model model_cards/unifluid-spark --steps 5 10 25 50 100

Draws the same prompts of the suite `spark` with each number of steps, has the judge look, and takes the time. Writes
next to each other

    NAME.steps.json    all numbers, with settings, seeds, packages, commit, hardware and seconds
    NAME.steps.png     share of right drawings against seconds per image and against steps; below, what was drawn

The prompts are those of combinations seen in training: a setting chosen by this curve must not have met the prompts
that the result is measured on. The numbers of steps take turns batch by batch, forwards and backwards, so that a
machine that gets slower or faster meanwhile does so for all of them; seconds are medians over batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
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
from .pictures import RIGHT, SOFT, WRONG, wrap
from .spark import CATEGORIES, HERE, Row, evenly, judge_drawings, real_scene

SETTING = "num_inference_steps"
SPLIT = "seen"


def choose_prompts(per_category: int) -> list[Row]:
    """So many prompts of each category, the categories in turn: any batch is a mixture of them.

    Raises:
        ValueError: a category without so many.
    """
    rows = [row for row in read_items(HERE / "data" / "spark_drawing.parquet") if row["split"] == SPLIT]
    of_categories = [[row for row in rows if row["category"] == category] for category in CATEGORIES]
    least = min(map(len, of_categories))
    if not 1 <= per_category <= least:
        raise ValueError(f"{per_category} prompts per category: choose 1 to {least}, as many as each category has")
    return [row for in_turn in zip(*(evenly(of, per_category) for of in of_categories), strict=True) for row in in_turn]


def draw_in_turns(
    hub_model: HubModel, prompts: Sequence[str], steps: Sequence[int], seed: int, image_sampling: Row
) -> tuple[dict[int, list[Image.Image]], dict[int, list[float]]]:
    """For each number of steps the image of every prompt, and the seconds per image of every batch."""
    images: dict[int, list[Image.Image]] = {count: [] for count in steps}
    seconds: dict[int, list[float]] = {count: [] for count in steps}
    hub_model.draw(prompts[:1], [seed], image_sampling | {SETTING: steps[0]})  # the first call of all is slow
    starts = range(0, len(prompts), hub_model.batch_size)
    turns = [(start, count) for i, start in enumerate(starts) for count in (steps[::-1] if i % 2 else steps)]
    for start, count in tqdm(turns, desc="drawing", unit="batch"):
        batch = prompts[start : start + hub_model.batch_size]
        seeds = range(seed + start, seed + start + len(batch))
        drawn, of_batch = hub_model.draw_timed(batch, seeds, image_sampling | {SETTING: count})
        images[count] += drawn
        seconds[count] += of_batch
    return images, seconds


def measure_steps(
    hub_model: HubModel, steps: Sequence[int], per_category: int, seed: int = 0, image_sampling: Row | None = None
) -> tuple[Row, dict[int, list[Row]]]:
    """The curve's points, and the judge on real scenes through the codec (the ceiling); for each number of steps its
    items, which hold images.

    Raises:
        ValueError: a model that takes no steps, numbers of steps that it refuses or that repeat, too many prompts.
    """
    if SETTING not in hub_model.image_sampling:
        settings = ", ".join(hub_model.image_sampling)
        raise ValueError(f"this model draws without {SETTING}: its settings of images are {settings}")
    if SETTING in (image_sampling or {}):
        raise ValueError(
            f"{SETTING} {image_sampling[SETTING]} among the settings, {list(steps)} as steps: leave one out"
        )
    if len(set(steps)) < len(steps):
        raise ValueError(f"{len(steps)} numbers of steps, {len(set(steps))} different ones: pass each once")
    rows = choose_prompts(per_category)
    judge = Judge.load(HERE / "data")
    images, seconds = draw_in_turns(hub_model, [row["prompt"] for row in rows], steps, seed, image_sampling or {})
    restored, _ = hub_model.reconstruct([real_scene(Scene.from_json(row["scene"]), judge) for row in rows])
    results: Row = {"points": [], "codec": judge_drawings(judge, rows, restored)[0]}
    items = {}
    for count in steps:
        scores, judged = judge_drawings(judge, rows, images[count])
        median = statistics.median(seconds[count])
        point = {"steps": count, "seconds_per_image": median, "seconds_of_batches": seconds[count], "drawing": scores}
        results["points"].append(point)
        items[count] = [item | {"drawn": image} for item, image in zip(judged, images[count], strict=True)]
    return results, items


def standard_error(scores: Row) -> float:
    """Of a share of n right drawings, binomial."""
    return (scores["images"] * (1 - scores["images"]) / scores["n"]) ** 0.5


def draw_curve(title: str, record: Row, items: dict[int, list[Row]], path: Path) -> None:
    """Writes the curve, with bars of one standard error, and below it the first drawing of each category by each
    number of steps, framed as the judge has found it."""
    counts = [point["steps"] for point in record["points"]]
    figure = Figure(figsize=(max(10.0, 1.7 * (len(counts) + 1)), 15), layout="constrained")
    figure.suptitle(title)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 2.6))
    shares = [point["drawing"]["images"] for point in record["points"]]
    errors = [standard_error(point["drawing"]) for point in record["points"]]
    axes = {"seconds_per_image": "seconds per image", "steps": "denoising steps"}
    panels = dict(zip(axes, top.subplots(1, 2, sharey=True), strict=True))
    for key, panel in panels.items():
        values = [point[key] for point in record["points"]]
        panel.errorbar(values, shares, errors, marker="o", capsize=3, label=f"drawn, {record['codec']['n']} prompts")
        panel.axhline(record["codec"]["images"], color=SOFT, linestyle="--", label="real scenes through the codec")
        for value, share, count in zip(values, shares, counts, strict=True):
            panel.annotate(str(count), (value, share), xytext=(4, 6), textcoords="offset points")
        panel.set(xlabel=axes[key], ylabel="share of right drawings", ylim=(-0.05, 1.05))
    panels["seconds_per_image"].set_xlim(left=0)
    panels["steps"].set_xscale("log")
    panels["steps"].set_xticks(counts, [str(count) for count in counts])
    panels["steps"].minorticks_off()
    panels["steps"].legend()
    draw_samples(bottom, items)
    figure.savefig(path, dpi=80)


def draw_samples(figure: Any, items: dict[int, list[Row]]) -> None:
    """A row for each category, a column for each number of steps; one seed in a row."""
    panels = figure.subplots(len(CATEGORIES), len(items), squeeze=False)
    for column, (count, drawn) in enumerate(items.items()):
        panels[0, column].set_title(f"{count} steps")
        for row, category in enumerate(CATEGORIES):
            item = next(item for item in drawn if item["category"] == category)
            panel = panels[row, column]
            panel.imshow(item["drawn"])
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(color=RIGHT if item["right"] else WRONG, linewidth=2)
            if column == 0:
                panel.set_ylabel("\n".join(wrap(item["prompt"], 200)), rotation=0, ha="right", va="center")


def table(record: Row) -> str:
    """The curve as text."""
    lines = [f"{'steps':>8}{'seconds per image':>20}{'right':>8}{'+-':>8}"]
    for point in record["points"]:
        share, error = point["drawing"]["images"], standard_error(point["drawing"])
        lines.append(f"{point['steps']:8}{point['seconds_per_image']:20.4f}{share:8.3f}{error:8.3f}")
    return "\n".join([*lines, f"{'real scenes through the codec':28}{record['codec']['images']:8.3f}"])


def run(
    model: str,
    output: Path,
    steps: Sequence[int],
    prompts: int,
    seed: int = 0,
    batch_size: int = 32,
    image_sampling: Row | None = None,
    trust_remote_code: bool = False,
) -> Row:
    """Loads and measures a model and writes the two files; arguments as on the command line. Returns the JSON."""
    started = time.monotonic()
    hub_model = HubModel.load(model, trust_remote_code, batch_size)
    results, items = measure_steps(hub_model, steps, prompts, seed, image_sampling)
    settings = {**hub_model.image_sampling, **(image_sampling or {})}
    record = {
        "model": model,
        "settings": {
            "image_sampling": {key: value for key, value in settings.items() if key != SETTING},
            "steps": list(steps),
            "split": SPLIT,
            "prompts_per_category": prompts,
            "seeds": f"{seed} + number of the prompt",
            "batch_size": batch_size,
        },
        "environment": environment(),
        "seconds": round(time.monotonic() - started, 1),
        **results,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    draw_curve(f"{Path(model).name}: quality against time", record, items, output.with_suffix(".png"))
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 25, 50, 100])
    parser.add_argument("--output", type=Path, help="JSON file; default eval/results/NAME.steps.json")
    parser.add_argument("--prompts", type=int, default=16, help="of each category")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-sampling", type=json.loads, help='JSON, e.g. {"guidance_scale": 1.5}')
    parser.add_argument("--trust-remote-code", action="store_true", help="use the model's own code")
    arguments = vars(parser.parse_args())
    name = f"{Path(arguments['model']).name}.steps.json"
    output = arguments.pop("output") or Path(__file__).parent / "results" / name
    record = run(output=output, **arguments)
    print(table(record))
    print(f"\n{record['seconds']:.0f} seconds. Written: {output} and {output.with_suffix('.png').name} beside it")


if __name__ == "__main__":
    main()
