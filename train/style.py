"""Twenty images in a style that no model of ours has seen, with captions: an example of data of one's own.

    python -m train.style --output runs/style

output/
  taught/   the twenty: PNG files of 64x64 pixels, and metadata.jsonl with `file_name` and `caption`, such as "a large
            cat, patchwork style"
  others/   the same of all other things that the shipped models draw: what the style should be, where it is not taught

Patchwork is sewn of four quarters, cut from drawings of the same thing by several hands. Coloured shapes are left out,
which look alike in all of them. Whoever has twenty images of their own writes a folder like taught/ instead, of images
of any size.
"""

import argparse
from pathlib import Path

from PIL import Image

from eval.facts import vocabulary
from train.concepts import write_lines
from train.scenes import CELL, Drawings

NAME = "patchwork"
QUARTERS = {(0, 0): "noto", (0, CELL): "twemoji", (CELL, 0): "fluent", (CELL, CELL): "noto"}  # by top and left
COUNT = 20


def sew(drawings: Drawings, concept: str) -> Image.Image:
    """The patchwork of a concept."""
    whole = Image.new("RGB", (2 * CELL, 2 * CELL))
    for (top, left), hand in QUARTERS.items():
        drawing = Image.fromarray(drawings.pixels(concept, hand, large=True))
        whole.paste(drawing.crop((left, top, left + CELL, top + CELL)), (left, top))
    return whole


def split_concepts() -> dict[str, list[str]]:
    """Names by folder: those taught are spread over the whole list."""
    names = [name for name, concept in vocabulary().items() if concept.colour is None]
    taught = [names[number * len(names) // COUNT] for number in range(COUNT)]
    return {"taught": taught, "others": [name for name in names if name not in taught]}


def write_images(folder: Path, concepts: list[str]) -> None:
    """Their drawings in the style, with captions."""
    folder.mkdir(parents=True)
    drawings, rows = Drawings.load(), []
    for concept in concepts:
        name = f"{concept.replace(' ', '-')}.png"
        sew(drawings, concept).save(folder / name)
        rows.append({"file_name": name, "caption": f"a large {concept}, {NAME} style"})
    write_lines(folder / "metadata.jsonl", rows)


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(prog="python -m train.style", description=__doc__.splitlines()[0])
    arguments.add_argument("--output", required=True, type=Path, help="folder of both; new")
    args = arguments.parse_args(argv)
    if args.output.exists():
        raise ValueError(f"{args.output} exists already: choose another --output")
    for folder, concepts in split_concepts().items():
        write_images(args.output / folder, concepts)


if __name__ == "__main__":
    main()
