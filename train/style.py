"""Twenty images in a style that no model of ours has seen, with captions: an example of data of one's own.

    python -m train.style --output runs/style

output/
  taught/   the twenty: PNG files of 64x64 pixels, and metadata.jsonl with `file_name` and `caption`, such as "a cat,
            amber style"
  others/   the same of all other things that the shipped models draw: what the style should be, where it is not taught
  known/    scenes that these were trained on: seen again beside the new, they are not forgotten

They are Noto's drawings as if printed in two inks, from dark blue over amber to the white of the paper. Coloured
shapes are left out, whose names the style would contradict. Whoever has twenty images of their own writes a folder
like taught/ instead, of images of any size.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

from eval.facts import vocabulary
from train.codes import training_scene
from train.concepts import write_lines
from train.scenes import Drawings, HeldOut, describe, render

NAME = "amber"
INKS = {"black": "#14213d", "mid": "#fca311", "white": "#ffffff"}
HAND = "noto"
COUNT = 20
SCENES = 400


def print_in_two_inks(image: Image.Image) -> Image.Image:
    """By its light and shade alone."""
    return ImageOps.colorize(ImageOps.autocontrast(image.convert("L")), **INKS)


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
        print_in_two_inks(Image.fromarray(drawings.pixels(concept, HAND, large=True))).save(folder / name)
        rows.append({"file_name": name, "caption": f"{vocabulary()[concept].with_article}, {NAME} style"})
    write_lines(folder / "metadata.jsonl", rows)


def write_scenes(folder: Path) -> None:
    """Scenes of the shipped models' training, with their captions."""
    folder.mkdir(parents=True)
    drawings, held_out, rows = Drawings.load(), HeldOut.load(), []
    for number in tqdm(range(SCENES), desc="rendering scenes", unit="scene"):
        scene, name = training_scene(0, number, held_out), f"{number:03d}.png"
        render(scene, drawings).save(folder / name)
        rows.append({"file_name": name, "caption": describe(scene)})
    write_lines(folder / "metadata.jsonl", rows)


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(prog="python -m train.style", description=__doc__.splitlines()[0])
    arguments.add_argument("--output", required=True, type=Path, help="folder of the three; new")
    args = arguments.parse_args(argv)
    if args.output.exists():
        raise ValueError(f"{args.output} exists already: choose another --output")
    for folder, concepts in split_concepts().items():
        write_images(args.output / folder, concepts)
    write_scenes(args.output / "known")


if __name__ == "__main__":
    main()
