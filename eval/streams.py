"""What a model sees through each of its views of an image: reading with one of them blank.

    python -m eval.streams --model model_cards/unitoken-spark

A model may read an image twice, as tokens of its codec and as features of its vision tower. Here it describes and
answers with both, with one of them shown a white canvas instead, and with both: what is left then is what words alone
give away. The sequence stays as it is, so that a model is not asked to read a layout that it never met (UniToken's
comparison trains models without a view; this one asks what a trained model uses). Writes next to each other

    NAME.streams.json    all numbers, with settings, packages, commit, hardware and seconds
    NAME.streams.png     what is right with each set of views
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from .environment import environment
from .load import HubModel
from .spark import SPLITS, Row, measure_answering, measure_describing

VIEWS = {"tokens": "pixel_values", "features": "feature_pixel_values"}  # by the processor's names
SHARES = {"describing": "exact_match", "answering": "accuracy"}


class PartlyBlind(HubModel):
    """Reads images with the views `blank` showing white."""

    blank: Sequence[str] = ()

    def _inputs(self, conversations: list[list[dict]], generation_mode: str) -> dict[str, torch.Tensor]:
        inputs = super()._inputs(conversations, generation_mode)
        white = {VIEWS[view]: torch.ones_like(inputs[VIEWS[view]]) for view in self.blank}  # pixels lie in [-1, 1]
        return {**inputs, **white}


def views_of(hub_model: HubModel) -> list[str]:
    """The views that the model's processor makes of an image that is read."""
    inputs = hub_model.processor.image_inputs
    return [view for view, read in (("tokens", {"codes", "latents"}), ("features", {"features"})) if read & set(inputs)]


def measure_streams(hub_model: PartlyBlind, limit: int | None = None) -> dict[str, Row]:
    """Describing and answering, by what is seen: all views, each alone, none.

    Raises:
        ValueError: a model with one view, which leaves nothing to compare.
    """
    views = views_of(hub_model)
    if len(views) < 2:
        raise ValueError(f"this model reads images through {views} alone: there is no other view to compare it with")
    results = {}
    for seen in (views, *([view] for view in views), []):
        hub_model.blank = [view for view in views if view not in seen]
        results[" + ".join(seen) or "nothing"] = {
            "describing": measure_describing(hub_model, limit)[0],
            "answering": measure_answering(hub_model, limit)[0],
        }
    hub_model.blank = ()
    return results


def draw_bars(title: str, results: dict[str, Row], path: Path) -> None:
    """A panel for each task, a pair of bars for each set of views."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    for panel, (task, key) in zip(figure.subplots(1, 2, sharey=True), SHARES.items(), strict=True):
        for offset, split in zip((-0.2, 0.2), SPLITS, strict=True):
            shares = [rows[task][split][key] for rows in results.values()]
            bars = panel.bar(
                [place + offset for place in range(len(results))], shares, 0.38, label=split.replace("_", "-")
            )
            panel.bar_label(bars, [f"{share:.0%}" for share in shares], fontsize=8)
        panel.set_xticks(range(len(results)), results)
        panel.set(title=task, ylim=(0, 1.05), xlabel="views that show the image")
    figure.axes[0].set_ylabel("share that is right")
    figure.axes[0].legend()
    figure.savefig(path, dpi=100)


def table(results: dict[str, Row]) -> str:
    """The shares as text, held-out before seen."""
    lines = [f"{'seen through':20}{'describing':>20}{'answering':>20}"]
    for seen, rows in results.items():
        cells = [" / ".join(f"{rows[task][split][key]:.1%}" for split in SPLITS) for task, key in SHARES.items()]
        lines.append(f"{seen:20}{cells[0]:>20}{cells[1]:>20}")
    return "\n".join(lines)


def run(model: str, output: Path, limit: int | None, batch_size: int, trust_remote_code: bool) -> Row:
    """Loads and measures a model and writes the two files; arguments as on the command line. Returns the JSON."""
    started = time.monotonic()
    results = measure_streams(PartlyBlind.load(model, trust_remote_code, batch_size), limit)
    record: dict[str, Any] = {
        "model": model,
        "settings": {"limit": limit, "batch_size": batch_size, "blank": "white"},
        "environment": environment(),
        "seconds": round(time.monotonic() - started, 1),
        "streams": results,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    draw_bars(f"{Path(model).name}: reading with views blank", results, output.with_suffix(".png"))
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--output", type=Path, help="JSON file; default eval/results/NAME.streams.json")
    parser.add_argument("--limit", type=int, help="at most so many items of each part and split")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--trust-remote-code", action="store_true", help="use the model's own code")
    arguments = vars(parser.parse_args())
    name = f"{Path(arguments['model']).name}.streams.json"
    output = arguments.pop("output") or Path(__file__).parent / "results" / name
    record = run(output=output, **arguments)
    print(table(record["streams"]))
    print(f"\n{record['seconds']:.0f} seconds. Written: {output} and {output.with_suffix('.png').name} beside it")


if __name__ == "__main__":
    main()
