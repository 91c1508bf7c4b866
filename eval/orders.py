"""Does a model of random order draw as well in any order? The same prompts and seeds, drawn in orders of all kinds.

    python -m eval.orders --model model_cards/unifluid-spark

A model that has learned from random permutations has been shown every order alike; how much its drawings lose in one
that is regular, all neighbours first or none, says how far it has learned that. Orders:

    random      each image in one of its own, drawn by its seed: as in training
    raster      row by row from the top left
    reversed    row by row from the bottom right
    columns     column by column from the left
    centre      from the middle outwards
    scattered   no neighbours until every second place is filled: a checkerboard, then the rest

Writes NAME.orders.json with 95 % intervals, NAME.orders.png, the shares, and NAME.orders.drawings.png, the same
prompts in every order.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from .environment import environment
from .intervals import with_intervals
from .items import read_items
from .judge import Judge
from .load import HubModel
from .pictures import Strip, draw_strips
from .spark import HERE, SPLITS, Row, judge_drawings, of_split

Place = tuple[int, int]
# What places are sorted by, of row, column and the middle of the grid.
ORDERS: dict[str, Callable[[int, int, Place], Any]] = {
    "raster": lambda row, column, middle: (row, column),
    "reversed": lambda row, column, middle: (-row, -column),
    "columns": lambda row, column, middle: (column, row),
    "centre": lambda row, column, middle: (row - middle[0]) ** 2 + (column - middle[1]) ** 2,
    "scattered": lambda row, column, middle: ((row + column) % 2, row, column),
}


def permutation(name: str, rows: int, columns: int) -> list[int]:
    """Places of a grid, row by row numbered, in the order in which they are drawn."""
    middle = ((rows - 1) / 2, (columns - 1) / 2)
    return sorted(range(rows * columns), key=lambda place: ORDERS[name](*divmod(place, columns), middle))


class Ordered(HubModel):
    """Draws in the order `order`; in the model's own where that is None."""

    order: str | None = None

    def _inputs(self, conversations: list[list[dict]], generation_mode: str) -> dict[str, Any]:
        inputs = super()._inputs(conversations, generation_mode)
        if self.order is None or generation_mode != "image":
            return inputs
        places_L = torch.tensor(permutation(self.order, *self.grid), device=self.model.device)
        return {**inputs, "image_order": places_L.expand(len(conversations), -1)}

    @property
    def grid(self) -> tuple[int, int]:
        return self.model.model.codec.grid(*self.model.config.image_size)


def measure_orders(hub_model: Ordered, limit: int | None, seed: int) -> tuple[dict[str, Row], dict[str, list[Row]]]:
    """By order: the share of right drawings of each split, and its items, which hold images.

    Raises:
        ValueError: a model that has learned one order.
    """
    if hub_model.model.config.image_order != "random":
        raise ValueError(
            f"this model has learned {hub_model.model.config.image_order!r} order only: there is nothing to compare"
        )
    judge, rows = Judge.load(HERE / "data"), read_items(HERE / "data" / "spark_drawing.parquet")
    results: dict[str, Row] = {}
    items: dict[str, list[Row]] = {}
    for order in (None, *ORDERS):
        hub_model.order, name = order, order or "random"
        results[name], items[name] = {}, []
        for split in SPLITS:
            chosen = of_split(rows, split, limit)
            images = hub_model.draw([row["prompt"] for row in chosen], range(seed, seed + len(chosen)))
            _, judged = judge_drawings(judge, chosen, images)
            share = with_intervals(judged, lambda of: {"right": sum(item["right"] for item in of) / len(of)})
            results[name][split] = share["right"]
            items[name] += [item | {"drawn": image} for item, image in zip(judged, images, strict=True)]
    hub_model.order = None
    return results, items


def draw_bars(results: dict[str, Row], title: str, path: Path) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    panel = figure.subplots()
    for offset, split in zip((-0.2, 0.2), SPLITS, strict=True):
        shares = [rows[split] for rows in results.values()]
        values = [share["value"] for share in shares]
        errors = [[s["value"] - s["low"] for s in shares], [s["high"] - s["value"] for s in shares]]
        bars = panel.bar([place + offset for place in range(len(results))], values, 0.38, label=split.replace("_", "-"))
        panel.errorbar([place + offset for place in range(len(results))], values, errors, fmt="none", color="black")
        panel.bar_label(bars, [f"{value:.0%}" for value in values], fontsize=8, label_type="center")
    panel.set_xticks(range(len(results)), results)
    panel.set(title=title, ylabel="share of right drawings", ylim=(0, 1.05))
    panel.legend()
    figure.savefig(path, dpi=100)


def table(results: dict[str, Row]) -> str:
    lines = [f"{'order':14}" + "".join(f"{split:>26}" for split in SPLITS)]
    for order, rows in results.items():
        cells = [f"{s['value']:.3f} ({s['low']:.3f} to {s['high']:.3f})" for s in (rows[split] for split in SPLITS)]
        lines.append(f"{order:14}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def first_of_categories(items: list[Row]) -> list[Row]:
    """The first held-out drawing of each category that was measured."""
    first: dict[str, Row] = {}
    for item in items:
        if item["split"] == "held_out":
            first.setdefault(item["category"], item)
    return list(first.values())


def run(model: str, output: Path, limit: int | None, seed: int, batch_size: int, trust_remote_code: bool) -> Row:
    """Loads and measures a model and writes the three files; arguments as on the command line. Returns the JSON."""
    started = time.monotonic()
    results, items = measure_orders(Ordered.load(model, trust_remote_code, batch_size), limit, seed)
    record = {
        "model": model,
        "settings": {"limit": limit, "seeds": f"{seed} + number of the prompt in its split", "batch_size": batch_size},
        "environment": environment(),
        "seconds": round(time.monotonic() - started, 1),
        "orders": results,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    name = Path(model).name
    draw_bars(results, f"{name}: the same prompts in several orders", output.with_suffix(".png"))
    shown = {order: first_of_categories(of) for order, of in items.items()}
    strips = [Strip(order, [i["drawn"] for i in of], [i["right"] for i in of]) for order, of in shown.items()]
    prompts = [item["prompt"] for item in shown["random"]]
    subtitle = "The same seed in each column. Green: all that is asked for is there, as the judge sees it; red: not."
    draw_strips(f"{name}: the same words in several orders", subtitle, prompts, strips, len(prompts),
                output.with_suffix(".drawings.png"))  # fmt: skip
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--output", type=Path, help="JSON file; default eval/results/NAME.orders.json")
    parser.add_argument("--limit", type=int, help="at most so many prompts of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--trust-remote-code", action="store_true", help="use the model's own code")
    arguments = vars(parser.parse_args())
    name = f"{Path(arguments['model']).name}.orders.json"
    output = arguments.pop("output") or Path(__file__).parent / "results" / name
    record = run(output=output, **arguments)
    print(table(record["orders"]))
    print(f"\n{record['seconds']:.0f} seconds. Written: {output} and the pictures beside it")


if __name__ == "__main__":
    main()
