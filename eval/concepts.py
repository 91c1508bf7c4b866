"""What a text model became by learning a few concepts: what it draws and describes, and whether it writes as before.

    python -m eval.concepts --model runs/concepts --before runs/smollm2 --data runs/concepts-data/drawings

`--data` is a folder of drawings, each as large as a cell of the judge, with `metadata.jsonl` of `file_name` and
`caption` (`train.concepts` writes one). Each caption is drawn with several seeds, and each drawing is described. They
are the ones that training showed: it is recall that is measured, not generalisation. Text is of two kinds that no such
run is trained on. Writes eval/results/NAME.concepts.json and .png.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from .environment import environment
from .facts import parse
from .judge import Judge
from .load import HubModel
from .pictures import RIGHT, WRONG, Card, Line, Section, draw_sheet
from .spark import HERE, TEXT_FILE, Row, evenly, facts_seen, read_items, stated_facts

SEEDS = 4  # drawings of each caption
GLOSSES = 200
LEAST_PARAGRAPH = 80  # characters
COLUMNS = 6


def read_drawings(folder: Path) -> list[Row]:
    """Rows `caption` and `image`; ValueError if the folder has none."""
    metadata = folder / "metadata.jsonl"
    if not metadata.is_file():
        raise ValueError(f"{metadata} does not exist: `python -m train.concepts` writes such a folder")
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    return [{"caption": row["caption"], "image": Image.open(folder / row["file_name"]).convert("RGB")} for row in rows]


def judge_images(judge: Judge, images: list[Image.Image], captions: list[str]) -> list[dict[str, Any]]:
    """For each image, alone in a corner of a white canvas: is it what the caption says, with and without its hand?"""
    canvases = []
    for image in images:
        canvas = Image.new("RGB", (judge.large.size, judge.large.size), "white")
        canvas.paste(image, (0, 0))
        canvases.append(canvas)
    items = []
    for layout, caption in zip(judge(canvases), captions, strict=True):
        missing = parse(caption) - facts_seen(layout)
        things = {fact for fact in missing if fact[0] != "hand"}
        items.append({"caption": caption, "concept": not things, "right": not missing, "judged": str(layout)})
    return items


def shares(items: list[Row]) -> Row:
    return {key: sum(item[key] for item in items) / len(items) for key in ("concept", "right")} | {"n": len(items)}


def measure_drawing(hub_model: HubModel, judge: Judge, rows: list[Row], seeds: int) -> tuple[Row, list[Row]]:
    """Shares for the real drawings, for these through the codec, and for what the model draws; items with images."""
    captions, real = [row["caption"] for row in rows], [row["image"] for row in rows]
    restored, _ = hub_model.reconstruct(real)
    drawn = hub_model.draw(captions * seeds, list(range(len(rows) * seeds)))
    items = judge_images(judge, drawn, captions * seeds)
    results = {
        "real": shares(judge_images(judge, real, captions)),
        "codec": shares(judge_images(judge, restored, captions)),
        "model": shares(items),
    }
    return results, [item | {"drawn": image} for item, image in zip(items, drawn, strict=True)]


def measure_describing(hub_model: HubModel, rows: list[Row]) -> tuple[Row, list[Row]]:
    """Shares of captions that name the concept, and that name its hand too."""
    items = []
    for row, said in zip(rows, hub_model.describe([row["image"] for row in rows]), strict=True):
        stated, wanted = stated_facts(said), parse(row["caption"])
        of_things = {fact for fact in wanted if fact[0] != "hand"}
        items.append(
            {"caption": row["caption"], "said": said, "concept": of_things <= stated, "right": wanted == stated}
        )
    return shares(items), items


def prose() -> list[str]:
    """Paragraphs of this project's README: sentences that no model of others was trained on."""
    blocks = (HERE.parent / "README.md").read_text().split("\n\n")
    return [block for block in blocks if block[0].isalpha() and len(block) > LEAST_PARAGRAPH]


@torch.no_grad()
def measure_text(hub_model: HubModel) -> Row:
    """Perplexity on definitions outside training and on prose. That a text ends is not counted: a text model seldom
    meets the end of one, a trained one often."""
    glosses = [row["text"] for row in read_items(TEXT_FILE, filters=[("split", "==", "test")])]
    results = {}
    for name, texts in {"definitions": evenly(glosses, GLOSSES), "prose": prose()}.items():
        nats, tokens = 0.0, 0
        for text in tqdm(texts, desc=f"reading {name}", unit="text"):
            batch = hub_model.processor.encode_conversations([[{"role": "assistant", "content": text}]])
            losses = hub_model.model(**batch, skip_logits=True).text_loss[:-1]
            nats, tokens = nats + float(losses.double().sum()), tokens + len(losses)
        results[name] = {"perplexity": math.exp(nats / tokens), "tokens": tokens, "n": len(texts)}
    return results


def run(model: str, before: str, data: Path, output: Path, batch_size: int, trust_remote_code: bool) -> Row:
    """Loads and measures and writes the files; arguments as on the command line. Returns the JSON."""
    started = time.monotonic()
    rows, judge = read_drawings(data), Judge.load(HERE / "data")
    text = {"before": measure_text(HubModel.load(before, trust_remote_code, batch_size))}
    hub_model = HubModel.load(model, trust_remote_code, batch_size)
    text["after"] = measure_text(hub_model)
    text["ratio"] = {kind: of["perplexity"] / text["before"][kind]["perplexity"] for kind, of in text["after"].items()}
    drawing, drawn = measure_drawing(hub_model, judge, rows, SEEDS)
    describing, described = measure_describing(hub_model, rows)
    record = {
        "model": model,
        "before": before,
        "settings": {"image_sampling": hub_model.image_sampling, "seeds": SEEDS, "batch_size": batch_size},
        "environment": environment(),
        "seconds": round(time.monotonic() - started, 1),
        "drawing": drawing,
        "describing": describing,
        "text": text,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    with output.with_suffix(".items.jsonl").open("w") as file:
        for part, items in {"drawing": drawn, "describing": described}.items():
            for item in items:
                file.write(json.dumps({"part": part} | {k: v for k, v in item.items() if k != "drawn"}) + "\n")
    draw_sheet(
        f"{Path(model).name}: a text model that learned to draw", [section(drawn, rows)], output.with_suffix(".png")
    )
    return record


def section(drawn: list[Row], rows: list[Row]) -> Section:
    """The first drawing of each caption with the judge's verdict."""
    first = drawn[: len(rows)]
    cards = [
        Card(item["drawn"], [Line(item["caption"]), Line(item["judged"], RIGHT if item["right"] else WRONG)])
        for item in first
    ]
    right = sum(item["right"] for item in first)
    return Section("drawing", f"{right} of these {len(first)} are judged right", cards, COLUMNS)


def table(record: Row) -> str:
    """The numbers as text."""
    lines = [f"{'':24}{'concept':>9}{'and hand':>9}"]
    parts = {f"drawing: {name}": row for name, row in record["drawing"].items()} | {"describing": record["describing"]}
    lines += [f"{name:24}{row['concept']:9.3f}{row['right']:9.3f}" for name, row in parts.items()]
    for kind, ratio in record["text"]["ratio"].items():
        before, after = (record["text"][when][kind]["perplexity"] for when in ("before", "after"))
        lines.append(f"perplexity of {kind}: {before:.2f} before, {after:.2f} after ({ratio - 1:+.2%})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of the model or adapter")
    parser.add_argument("--before", required=True, help="of the model that it was made from")
    parser.add_argument("--data", required=True, type=Path, help="folder of drawings with metadata.jsonl")
    parser.add_argument("--output", type=Path, help="JSON file; default eval/results/NAME.concepts.json")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--trust-remote-code", action="store_true", help="use the models' own code")
    arguments = vars(parser.parse_args())
    name = f"{Path(arguments['model']).name}.concepts.json"
    output = arguments.pop("output") or HERE / "results" / name
    print(table(run(output=output, **arguments)))
    print(f"\nWritten: {output} and the files beside it")


if __name__ == "__main__":
    main()
