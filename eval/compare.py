"""One table of all models that ship: what the suite says of them, how long they trained, and how fast they are.

    python -m eval.compare --models model_cards/*-spark
    python -m eval.report README.md eval/results/compare.json    # puts the table into a document

What a model can do is read from NAME.json, which `eval.run` has written; how long it trained, from the `training.json`
beside its weights. Only speed is measured here, of all models in one process and in turns, batch by batch, forwards and
backwards, so that a machine that gets slower or faster meanwhile does so for all of them. Writes next to each other

    compare.json            the models' results, each with training, speed and the command that reproduces it
    compare.md              the table, and the two pictures
    compare.drawings.png    twelve prompts drawn by every model, below the real drawings, with the judge's verdicts
    compare.chart.png       the numbers that matter most, a panel for each

The prompts are of combinations that no training contained, two of each category, evenly from the suite's list: nothing
is picked by result.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from .environment import environment
from .facts import Scene
from .items import read_items
from .judge import Judge
from .load import MAX_TEXT_TOKENS, HubModel
from .pictures import SOFT, Strip, draw_strips
from .report import check_comparable, markdown, model_name, read_record
from .spark import CATEGORIES, HERE, Row, evenly, judge_drawings, real_scene

PROMPTS_OF_CATEGORY = 2
FILES = {"json": ".json", "table": ".md", "drawings": ".drawings.png", "chart": ".chart.png"}


class Measure(NamedTuple):
    """A panel of the chart: where its number stands in a result, and that of real scenes through the codec."""

    title: str
    path: str
    ceiling: str = ""
    scale: float = 100  # shares become per cent
    form: str = ".0f"


MEASURES = (
    Measure("drawn right, %", "drawing model held_out overall", "drawing codec held_out overall"),
    Measure("drawn right: attributes, %", "drawing model held_out color_attr", "drawing codec held_out color_attr"),
    Measure("described right, %", "describing held_out exact_match"),
    Measure("answered right, %", "answering held_out accuracy"),
    Measure("edited right, %", "editing model held_out exact", "editing codec held_out exact"),
    Measure("codec: PSNR, dB", "codec scenes psnr", scale=1, form=".1f"),
    Measure("Frechet distance (less is better)", "frechet model frechet", "frechet codec frechet", scale=1),
    Measure("text: bits per byte (less is better)", "text bits_per_byte", scale=1, form=".2f"),
    Measure("seconds per image (less is better)", "speed seconds_per_image", scale=1, form=".2g"),
    Measure("text tokens per second", "speed tokens_per_second", scale=1),
    Measure("minutes of training", "training_minutes", scale=1),
    Measure("million parameters", "parameters", scale=1e-6, form=".1f"),
)


def choose_prompts() -> list[Row]:
    """Held-out drawing items, the same each time; the first of all categories, then the second of all."""
    rows = [row for row in read_items(HERE / "data" / "spark_drawing.parquet") if row["split"] == "held_out"]
    chosen = [evenly([row for row in rows if row["category"] == c], PROMPTS_OF_CATEGORY) for c in CATEGORIES]
    return [row for in_turn in zip(*chosen, strict=True) for row in in_turn]


def read_result(model: str, results: Path) -> Row:
    """What the suite says of a model, and its training. Raises ValueError where the suite has not been run."""
    path = results / f"{Path(model).name}.json"
    if not path.is_file():
        raise ValueError(f"no {path}: run `python -m eval.run --model {model} --output {path}` first")
    record = read_record(path)
    # Where results are of several moments, only speeds taken in turns compare.
    record.get("drawing", {}).pop("seconds_per_image", None)
    return record | training_of(Path(model) / "training.json")


def training_of(path: Path) -> Row:
    """Minutes of each run that a model came from, by recipe; nothing of a model that ships no records of them."""
    if not path.is_file():
        return {}
    minutes = {}
    for recipe, record in json.loads(path.read_text()).items():
        seconds = record["seconds"]  # of a codebook by part, of other runs in all
        minutes[recipe] = (sum(seconds.values()) if isinstance(seconds, dict) else seconds) / 60
    return {"training": minutes, "training_minutes": sum(minutes.values())}


def command_of(record: Row, own_sampling: Row) -> str:
    """The command that gives a result again. Settings of images stand in it where they are not the model's own."""
    settings = record["settings"]
    seed = settings["seeds"].split()[0]  # "0 + number of the prompt in its split"
    parts = ["python -m eval.run --model", record["model"], "--suite", record["suite"]]
    parts += ["--tasks", *settings["tasks"], "--seed", seed, "--batch-size", str(settings["batch_size"])]
    if settings["limit"] is not None:
        parts += ["--limit", str(settings["limit"])]
    changed = {key: value for key, value in settings["image_sampling"].items() if own_sampling.get(key) != value}
    if changed:
        parts += ["--image-sampling", f"'{json.dumps(changed)}'"]
    return " ".join(parts)


def load_models(records: Sequence[Row], models: Sequence[str], trust_remote_code: bool) -> dict[str, HubModel]:
    """By name. Raises ValueError for a model that has other parameters than the one that was measured."""
    loaded = {}
    for record, model in zip(records, models, strict=True):
        hub_model = HubModel.load(model, trust_remote_code, batch_size=PROMPTS_OF_CATEGORY * len(CATEGORIES))
        count = sum(p.numel() for p in hub_model.model.parameters())
        if count != record["parameters"]:
            raise ValueError(
                f"{model} has {count} parameters, its results are of {record['parameters']}: run eval.run again"
            )
        loaded[model_name(record)] = hub_model
    return loaded


def tokens_per_second(hub_model: HubModel, images: Sequence[Image.Image]) -> float:
    """Text tokens that a batch writes about images, as many for each, from pixels to ids: no text may end early."""
    started = time.monotonic()
    inputs = hub_model.processor.apply_chat_template(
        [[{"role": "user", "content": [{"type": "image", "image": image}]}] for image in images],
        generation_mode="text",
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    length = {"min_new_tokens": MAX_TEXT_TOKENS, "max_new_tokens": MAX_TEXT_TOKENS}
    hub_model.model.generate(**inputs, generation_mode="text", do_sample=False, **length)
    return len(images) * MAX_TEXT_TOKENS / (time.monotonic() - started)


def measure_in_turns(
    hub_models: dict[str, HubModel], prompts: Sequence[str], scenes: Sequence[Image.Image], repetitions: int
) -> tuple[dict[str, list[Image.Image]], dict[str, Row]]:
    """For each model its drawings of the prompts, one batch with seeds 0, 1, 2, ..., and its speed.

    Raises:
        ValueError: no repetition.
    """
    if repetitions < 1:
        raise ValueError(f"{repetitions} repetitions: medians need 1 or more")
    images: dict[str, list[Image.Image]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in hub_models}
    rates: dict[str, list[float]] = {name: [] for name in hub_models}
    turns = [(turn, name) for turn in range(repetitions + 1) for name in (list(hub_models)[:: -1 if turn % 2 else 1])]
    for turn, name in tqdm(turns, desc="drawing and writing", unit="batch"):
        images[name], of_batches = hub_models[name].draw_timed(prompts, range(len(prompts)))
        rate = tokens_per_second(hub_models[name], scenes)
        if turn:  # the first calls are slow
            seconds[name] += of_batches
            rates[name].append(rate)
    return images, {
        name: {
            "seconds_per_image": statistics.median(seconds[name]),
            "tokens_per_second": statistics.median(rates[name]),
            "seconds_of_repetitions": seconds[name],
            "rates_of_repetitions": rates[name],
        }
        for name in hub_models
    }


def value_at(record: Row, path: str) -> float | None:
    """A number of a nested result, by its keys with spaces between; None where it was not measured."""
    value: Any = record
    for key in path.split():
        value = value.get(key) if isinstance(value, dict) else None
    return value


def chart(records: Sequence[Row]) -> Figure:
    """A panel for each measure, in it a bar for each model; "-" where a model was not measured."""
    names = [model_name(record) for record in records]
    columns = 4
    rows = -(-len(MEASURES) // columns)
    figure = Figure(figsize=(14, 1 + rows * (0.8 + 0.3 * len(names))), layout="constrained")
    figure.suptitle("Models beside each other, on combinations that no training contained")
    figure.supxlabel(
        "dotted line: real scenes through the model's own codec, the best it could do", color=SOFT, fontsize=10
    )
    for panel, measure in zip(figure.subplots(rows, columns, sharey=True).flat, MEASURES, strict=True):
        values = [value_at(record, measure.path) for record in records]
        widths = [measure.scale * (value or 0) for value in values]
        bars = panel.barh(names, widths, color=[f"C{number}" for number in range(len(names))])
        labels = ["-" if v is None else f"{w:{measure.form}}" for v, w in zip(values, widths, strict=True)]
        panel.bar_label(bars, labels, padding=3)
        for number, record in enumerate(records):
            if measure.ceiling and (ceiling := value_at(record, measure.ceiling)) is not None:
                panel.plot([measure.scale * ceiling] * 2, [number - 0.45, number + 0.45], color="black", ls=":")
        panel.set_title(measure.title, fontsize=11)
        panel.set_xlim(0, 122 if measure.scale == 100 else 1.25 * max(widths) or 1)
        panel.set_xticks([])
        panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.invert_yaxis()  # of all panels: the first model on top, as in the table
    return figure


def aligned(text: str) -> str:
    """Markdown with the cells of its tables padded to columns, for a terminal."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for line in text.splitlines():
        if line.startswith("| "):
            cells = zip(line.strip("| ").split(" | "), widths, strict=True)
            line = "  ".join(cell.ljust(width) for cell, width in cells).rstrip()
        elif line.startswith("|"):
            line = "-" * (sum(widths) + 2 * len(widths) - 2)
        lines.append(line)
    return "\n".join(lines)


def run(
    models: Sequence[str],
    output: Path,
    results: Path = HERE / "results",
    repetitions: int = 5,
    trust_remote_code: bool = False,
) -> Row:
    """Compares models and writes the four files; arguments as on the command line. Returns the JSON.

    Raises:
        ValueError: no models, models without results, results that do not stand beside each other or are of a model
            with other parameters, no repetition.
    """
    if not models:
        raise ValueError("0 models to compare: pass folders, e.g. --models model_cards/*-spark")
    started, load_before = time.monotonic(), os.getloadavg()[0]
    records = [read_result(model, results) for model in models]
    check_comparable(records)
    hub_models = load_models(records, models, trust_remote_code)
    judge = Judge.load(HERE / "data")
    rows = choose_prompts()
    prompts = [row["prompt"] for row in rows]
    scenes = [real_scene(Scene.from_json(row["scene"]), judge) for row in rows]
    images, speeds = measure_in_turns(hub_models, prompts, scenes, repetitions)
    strips = []
    for name, drawn in ({"real drawings": scenes} | images).items():
        _, items = judge_drawings(judge, rows, drawn)
        strips.append(Strip(name, drawn, [item["right"] for item in items]))
    comparison = {
        "command": f"python -m eval.compare --models {' '.join(models)} --repetitions {repetitions}",
        "settings": {
            "repetitions": repetitions,
            "batch_size": len(rows),
            "seeds": "0 + number of the prompt",
            "text_tokens": MAX_TEXT_TOKENS,
            "load_before": load_before,
            "prompts": {row["id"]: row["prompt"] for row in rows},
        },
        "environment": environment(),
        "seconds": round(time.monotonic() - started, 1),
        "models": [
            record | {"speed": speeds[name], "command": command_of(record, hub_models[name].image_sampling)}
            for name, record in zip(hub_models, records, strict=True)
        ],
    }
    write(comparison, strips, output)
    return comparison


def write(comparison: Row, strips: Sequence[Strip], output: Path) -> None:
    """The four files; `output` is their common beginning."""
    paths = {kind: output.with_name(output.name + ending) for kind, ending in FILES.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    paths["json"].write_text(json.dumps(comparison, indent=1) + "\n")
    pictures = [f"![{kind}]({paths[kind].name})" for kind in ("drawings", "chart")]
    paths["table"].write_text("\n\n".join(["# Models beside each other", markdown([comparison]), *pictures]) + "\n")
    subtitle = (
        "Combinations that no training contained, none picked. Green: all that is asked for is there, as a judge sees "
        "it that knows the real drawings; red: not."
    )
    prompts = list(comparison["settings"]["prompts"].values())
    draw_strips("The same words, every model", subtitle, prompts, strips, len(CATEGORIES), paths["drawings"])
    chart(comparison["models"]).savefig(paths["chart"], dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shipped = sorted(map(str, Path("model_cards").glob("*-spark")))
    parser.add_argument("--models", nargs="+", default=shipped, help="folders; default model_cards/*-spark")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "compare", help="beginning of four files")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder with what eval.run has written")
    parser.add_argument("--repetitions", type=int, default=5, help="of the measurement of speed, after one to warm up")
    parser.add_argument("--trust-remote-code", action="store_true", help="use the models' own code")
    comparison = run(**vars(parser.parse_args()))
    print(aligned(markdown([comparison])))
    print(f"\n{comparison['seconds']:.0f} seconds")


if __name__ == "__main__":
    main()
