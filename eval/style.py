"""Did a model learn a style from few images, and does it know it of things that it was not shown?

    python -m eval.style --before model_cards/ugen-spark --after runs/lora --data runs/style

`--data` is a folder of `taught/` and `others/` as `python -m train.style` writes them. Each caption is drawn once by
both models, with the same seeds. A drawing is right in which the judge recognises thing and style, among those of the
folder and all that the models had learned before. Writes eval/results/NAME.style.json and .png: what the style should
be, before, after.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from .concepts import read_drawings
from .environment import environment
from .facts import vocabulary
from .items import read_items
from .judge import References
from .load import HubModel
from .pictures import Strip, draw_strips
from .spark import HERE, Row, evenly

FOLDERS = ("taught", "others")
SHOWN = 6  # captions of each folder in the picture


def load_references(rows: list[Row]) -> References:
    """The folder's drawings, and beside them all that the suite knows in the hands that models have already learned."""
    known = [row for row in read_items(HERE / "data" / "spark_references.parquet") if row["large"]]
    things, styles = zip(*(row["caption"].rsplit(", ", 1) for row in rows), strict=True)
    return References(
        [row["image"] for row in rows + known],
        [*things, *(vocabulary()[row["concept"]].with_article for row in known)],
        [*styles, *(f"{row['hand']} style" for row in known)],
    )


def recognised(references: References, images: list[Image.Image]) -> list[str | None]:
    """The caption of what each image shows, None where that is nothing clearly enough: which thing clearly, and the
    style of the drawing that is nearest."""
    pixels_NHWC = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) / 255 - 1 for image in images])
    match = references.match(pixels_NHWC)
    seen = [references.see(match, index, (0, 0), large=True) for index in range(len(images))]
    return [f"{one.concept}, {one.hand}" if one else None for one in seen]


def run(before: str, after: str, data: Path, output: Path, batch_size: int, trust_remote_code: bool) -> Row:
    """Loads and measures and writes the two files; arguments as on the command line. Returns the JSON."""
    started = time.monotonic()
    rows = [row | {"folder": folder} for folder in FOLDERS for row in read_drawings(data / folder)]
    captions, real = [row["caption"] for row in rows], [row["image"] for row in rows]
    references = load_references(rows)
    images = {"as it should be": real}
    record: Row = {"before": before, "after": after, "environment": environment()}
    for name, folder in (("before", before), ("after", after)):
        hub_model = HubModel.load(folder, trust_remote_code, batch_size)
        if name == "before":
            images["through the codec"] = hub_model.reconstruct(real)[0]
        images[name] = hub_model.draw(captions, list(range(len(captions))))
    right = {
        name: [seen == caption for seen, caption in zip(recognised(references, drawn), captions, strict=True)]
        for name, drawn in images.items()
    }
    record["right"] = {name: by_folder(rows, verdicts) for name, verdicts in right.items()}
    record["seconds"] = round(time.monotonic() - started, 1)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    draw_before_and_after(rows, images, right, output.with_suffix(".png"))
    return record


def by_folder(rows: list[Row], right: list[bool]) -> dict[str, Row]:
    """How many drawings are right, of how many."""
    found = {}
    for folder in FOLDERS:
        verdicts = [verdict for verdict, row in zip(right, rows, strict=True) if row["folder"] == folder]
        found[folder] = {"right": sum(verdicts), "n": len(verdicts)}
    return found


def draw_before_and_after(
    rows: list[Row], images: dict[str, list[Image.Image]], right: dict[str, list[bool]], path: Path
) -> None:
    """Captions spread evenly over both folders, those taught first."""
    numbers = {folder: [n for n, row in enumerate(rows) if row["folder"] == folder] for folder in FOLDERS}
    shown = [number for folder in FOLDERS for number in evenly(numbers[folder], SHOWN)]
    strips = [
        Strip(name, [images[name][number] for number in shown], [right[name][number] for number in shown])
        for name in images
    ]
    counts = {folder: "{right} of {n}".format(**of) for folder, of in by_folder(rows, right["after"]).items()}
    draw_strips(
        "A style taught by twenty images",
        f"First row: things it was taught, {counts['taught']} drawn right after training. Second row: other things, "
        f"{counts['others']}. What the judge recognises is framed green.",
        [rows[number]["caption"] for number in shown],
        strips,
        SHOWN,
        path,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", required=True, help="folder or Hub id of the model")
    parser.add_argument("--after", required=True, help="of the model or adapter that it became")
    parser.add_argument("--data", required=True, type=Path, help="folder of taught/ and others/")
    parser.add_argument("--output", type=Path, help="JSON file; default eval/results/NAME.style.json")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--trust-remote-code", action="store_true", help="use the models' own code")
    arguments = vars(parser.parse_args())
    output = arguments.pop("output") or HERE / "results" / f"{Path(arguments['after']).name}.style.json"
    record = run(output=output, **arguments)
    for name, shares in record["right"].items():
        print(f"{name:20}" + "".join(f"{folder:>10} {of['right']} of {of['n']}" for folder, of in shares.items()))
    print(f"\nWritten: {output} and {output.with_suffix('.png').name} beside it")


if __name__ == "__main__":
    main()
