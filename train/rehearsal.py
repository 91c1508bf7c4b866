"""What a shipped model draws, with the captions it was asked by: trained on beside something new, it is not forgotten.

    python -m train.rehearsal --model model_cards/ugen-spark --output runs/rehearsal

Contract: a folder of PNG files and `metadata.jsonl` with `file_name` and `caption`. Captions are of scenes that training
may show, in the shipped models' own grammar. (DreamBooth, arXiv 2208.12242, section 3.3, keeps what a model knew of a
class by its own samples in the same way.)
"""

import argparse
import random
from pathlib import Path

from eval.load import HubModel
from train.codes import training_scene
from train.concepts import write_lines
from train.scenes import HeldOut, describe

COUNT = 240
SEED = 1  # other scenes than those the shipped models met first


def write_rehearsal(model: str, folder: Path) -> None:
    """Draws as `eval` does, with the model's own settings."""
    folder.mkdir(parents=True)
    held_out = HeldOut.load()
    captions = [
        describe(training_scene(SEED, number, held_out), random.Random(f"rehearsal/{number}"))
        for number in range(COUNT)
    ]
    names = [f"{number:03d}.png" for number in range(COUNT)]
    for name, image in zip(names, HubModel.load(model).draw(captions, list(range(COUNT))), strict=True):
        image.save(folder / name)
    write_lines(
        folder / "metadata.jsonl",
        [{"file_name": name, "caption": caption} for name, caption in zip(names, captions, strict=True)],
    )


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(prog="python -m train.rehearsal", description=__doc__.splitlines()[0])
    arguments.add_argument("--model", required=True, help="folder or Hub id")
    arguments.add_argument("--output", required=True, type=Path, help="folder of the drawings; new")
    args = arguments.parse_args(argv)
    if args.output.exists():
        raise ValueError(f"{args.output} exists already: choose another --output")
    write_rehearsal(args.model, args.output)


if __name__ == "__main__":
    main()
