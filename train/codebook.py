"""Builds the codebook of the patch codec (UVU): `python -m train.codebook --recipe spark/patch --output runs/patch`.

    python -m train.codebook --recipe photo/patch --images FOLDER --output runs/photo [--num-codewords 8192] [--resume]
    accelerate launch --multi_gpu --num_processes 4 -m train.codebook ...    (or torchrun --nproc-per-node 4)

First every image is looked at once: patches are counted, as many as codewords become the first centres, and some of
held-out images are put by. Then come rounds of clustering (`train.clustering`), each on a sample of the patches
(`train.patches`). What stays in memory is of the codebook's size or of a sample's, never of the data's. After each
round a whole checkpoint stands in the folder: killed at any moment, a build loses the round it was in.

Processes need no GPU (but accelerate's --cpu starts only one); those of several machines need a shared folder.

output/
  config.json, model.safetensors   the codec, when finished
  training.json                    recipe, metrics over rounds, seconds, skipped images, a forecast for the paper's size
  codewords.png                    codewords, held-out images rebuilt, curves
  recipe.json, checkpoint-N/       after round N, to resume and to continue from

N patches, K codewords, D numbers of a patch.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from train import ranks
from train.clustering import INDICES, Clusters, Nearest, Round, assign, to_unit
from train.codebook_report import draw_codebook, forecast, judge
from train.patches import Patches, PatchSource, Survey
from train.recipes import CODEBOOKS
from train.recipes.kinds import CodebookRecipe

PACKAGES = ("faiss-cpu", "safetensors", "pillow")  # beside those of every run
COUNTS = ("images", "patches", "pixels_left_out")  # of a survey


@dataclass
class Build:
    """Everything that goes on from round to round, and into a checkpoint."""

    clusters: Clusters
    held_out: Patches
    counts: dict[str, int]
    skipped: tuple[dict[int, str], dict[int, str]]  # images to train on, held-out images
    history: list[dict[str, Any]]  # one row a round
    seconds: dict[str, float]

    @classmethod
    def start(cls, recipe: CodebookRecipe, survey: Survey) -> "Build":
        if recipe.continue_from:
            clusters = continue_from(recipe)
        else:
            clusters = Clusters.start(survey.first, recipe.position_strength)
        counts = {name: getattr(survey, name) for name in COUNTS}
        skipped = (survey.skipped, survey.held_out_skipped)
        return cls(clusters, survey.held_out, counts, skipped, [], dict.fromkeys(("read", "cluster", "judge"), 0.0))

    @property
    def finished(self) -> bool:
        return bool(self.history) and self.history[-1]["last"]

    def is_last(self, recipe: CodebookRecipe) -> bool:
        """Whether the next round is: rounds are used up, or centres hardly moved in the one before."""
        done = len(self.history)
        rest = done > recipe.initial_rounds and self.history[-1]["moved"] < recipe.tolerance
        return done + 1 >= recipe.rounds or (rest and not self.clusters.aside_K.any())

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begin

    def save(self, output: Path) -> None:
        """Writes `checkpoint-N` aside, renames it when whole, then removes the one before."""
        tensors = {name: value for name, value in vars(self.clusters).items() if isinstance(value, np.ndarray)}
        tensors |= {f"cache.{name}": value for name, value in vars(self.clusters.cache).items()}
        tensors |= {f"held_out.{name}": value for name, value in vars(self.held_out).items()}
        state = {name: getattr(self, name) for name in ("counts", "skipped", "history", "seconds")}
        staging, target = output / "incomplete", output / f"checkpoint-{len(self.history)}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        save_file(tensors, staging / "state.safetensors", {"state": json.dumps(state)})
        os.replace(staging, target)
        for old in output.glob("checkpoint-*"):
            if old != target:
                shutil.rmtree(old)

    @classmethod
    def load(cls, checkpoint: Path) -> "Build":
        with safe_open(checkpoint / "state.safetensors", "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            state = json.loads(file.metadata()["state"])
        parts = {"cache": {}, "held_out": {}}
        for part, values in parts.items():
            for name in [field.name for field in fields(Patches)]:
                values[name] = tensors.pop(f"{part}.{name}")
        cache, held_out = (Patches(**values) for values in parts.values())
        skipped = tuple({int(number): why for number, why in images.items()} for images in state.pop("skipped"))
        clusters = Clusters(cache=cache, **{"positions_KD": None} | tensors)
        return cls(clusters, held_out, skipped=skipped, **state)


def continue_from(recipe: CodebookRecipe) -> Clusters:
    """The clusters of a finished codebook; its codewords weigh as many patches as its last round had.

    Raises:
        ValueError: no finished codebook, or one of other sizes.
    """
    folder = Path(recipe.continue_from)
    found = sorted(folder.glob("checkpoint-*"))
    if not (folder / "training.json").exists() or not found:
        raise ValueError(f"{folder} holds no finished codebook with its last checkpoint to continue from")
    stored = json.loads((folder / "training.json").read_text())["recipe"]
    for name in ("num_codewords", "patch_size", "position_strength"):
        if stored[name] != getattr(recipe, name):
            raise ValueError(f"{name} of {folder} is {stored[name]}, of the recipe {getattr(recipe, name)}: make equal")
    return Build.load(found[0]).clusters.continued()


# --- the build ------------------------------------------------------------------------------------------------------


def build_codebook(recipe: CodebookRecipe, output: Path, resume: bool = False, skip_bad_images: bool = False) -> bool:
    """Builds and saves a codebook; True when it is finished, False when stopped before, to be resumed.

    Raises:
        ValueError: what `train.patches` and `continue_from` refuse, and fewer rounds than the initial ones.
    """
    if not 1 <= recipe.initial_rounds < recipe.rounds:
        raise ValueError(f"initial_rounds {recipe.initial_rounds} must be at least 1 and below rounds {recipe.rounds}")
    checkpoint = ranks.from_first(open_folder(recipe, output, resume) if ranks.rank() == 0 else None)
    source = PatchSource(recipe, skip_bad_images)
    with stop_after_round() as stopped:
        build = Build.load(Path(checkpoint)) if checkpoint else survey(recipe, source, output)
        source.mark_skipped(*build.skipped)
        run_rounds(recipe, build, source, output, stopped)
    if not build.finished:
        return False
    finish(recipe, build, source, output)
    return True


def open_folder(recipe: CodebookRecipe, output: Path, resume: bool) -> str | None:
    from train.record import open_run  # it imports transformers, which only the first process needs

    return open_run(recipe, output, resume)


def survey(recipe: CodebookRecipe, source: PatchSource, output: Path) -> Build:
    begin = time.perf_counter()
    build = Build.start(recipe, source.survey())
    build.seconds["survey"] = time.perf_counter() - begin
    save(build, output)
    return build


def save(build: Build, output: Path) -> None:
    if ranks.rank() == 0:
        build.save(output)


def run_rounds(recipe: CodebookRecipe, build: Build, source: PatchSource, output: Path, stopped: list[bool]) -> None:
    """Rounds until the last one, or until this process or another was told to stop."""
    number_held, sample = None, None
    total = build.counts["patches"]
    with tqdm(total=recipe.rounds, initial=len(build.history), desc="rounds", disable=ranks.rank() > 0) as bar:
        while not build.finished and not ranks.largest(np.array([bool(stopped)], np.uint8))[0]:
            number = len(build.history) + 1
            refining, last = number > recipe.initial_rounds, build.is_last(recipe)
            # One sample for the initial rounds, and for all if a sample is everything.
            wanted = number if refining and recipe.patches_per_round < total else 0
            with build.timed("read"):
                if wanted != number_held:
                    sample = None  # the old one goes before the new one comes
                    number_held, sample = wanted, source.sample(wanted, total)
            with build.timed("cluster"):
                row = Round(build.clusters, recipe, number, refining, last).run(sample)
            with build.timed("judge"):
                # Of all codewords, those that are aside where they last were: what the codebook would be now.
                codewords_KD = build.clusters.codewords_KD
                row |= ranks.from_first(judge(codewords_KD, build.held_out) if ranks.rank() == 0 else None)
            fresh = 0 if number > 1 and wanted == build.history[-1]["sample"] else row["patches"]
            build.history.append({"round": number, "sample": wanted, "read": fresh, "last": last} | row)
            save(build, output)
            bar.set_postfix(prp=f"{row['prp']:.4f}", psc=f"{row['psc']:.3f}", aside=row["aside"])
            bar.update()


def finish(recipe: CodebookRecipe, build: Build, source: PatchSource, output: Path) -> None:
    """Writes codec, record and picture. How often a codeword is used is counted on one more sample, as the codec uses
    it: by pixels alone, rounded to bytes, repeats counted."""
    codewords_KD = build.clusters.codewords_KD
    sample = source.sample(recipe.rounds + 1, build.counts["patches"])
    # Its comparisons are those of a round, but exact: what is reported does not hang on the index.
    labels_N = assign(Nearest(to_unit(codewords_KD), "flat"), sample, 0.0)
    uses_K = ranks.add(np.bincount(labels_N, minlength=len(codewords_KD)))
    memory = float(ranks.largest(np.array([peak_megabytes()]))[0])
    if ranks.rank() > 0:
        return
    from modeling_unified.codecs_unified import PatchCodec, PatchCodecConfig
    from train.record import write_json

    codec = PatchCodec(PatchCodecConfig(patch_size=recipe.patch_size, num_codewords=recipe.num_codewords))
    codec.codebook.numpy()[:] = codewords_KD.reshape(codec.codebook.shape)
    codec.save_pretrained(output)
    draw_codebook(output / "codewords.png", codewords_KD, uses_K, source.held_out_images(), build.history)
    write_json(output / "training.json", describe_build(recipe, build) | {"peak_megabytes_of_a_process": round(memory)})


def describe_build(recipe: CodebookRecipe, build: Build) -> dict[str, Any]:
    """The record of a finished build."""
    from train.record import PACKAGES as PACKAGES_OF_EVERY_RUN
    from train.record import to_json

    compared, read = (sum(row[name] for row in build.history) for name in ("patches", "read"))
    rounds, last, seconds = len(build.history), build.history[-1], build.seconds
    return {
        "recipe": to_json(recipe),
        "metrics": {name: last[name] for name in ("prp", "psc", "in_use", "entropy")},
        "held_out_patches": len(build.held_out),
        **build.counts,
        "skipped_images": [why for images in build.skipped for why in images.values()],
        "rounds": rounds,
        "processes": ranks.world(),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "patches_per_second": {
            "surveyed": round(build.counts["patches"] / seconds["survey"]),
            "in_rounds": round(compared / (seconds["read"] + seconds["cluster"])),
        },
        "forecast": forecast(recipe, build.counts["patches"], read, compared, rounds, seconds),
        "history": build.history,
        "packages": {name: version(name) for name in (*PACKAGES_OF_EVERY_RUN, *PACKAGES)},
    }


def peak_megabytes() -> float:
    """The most memory this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes there, kilobytes elsewhere


@contextmanager
def stop_after_round() -> Iterator[list[bool]]:
    """Ctrl-C, or a polite kill, fills the list; a second one ends the build at once."""
    stopped: list[bool] = []

    def note(number: int, frame: Any) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(True)
        print("\nstopping after this round with a checkpoint; once more stops at once", flush=True)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# --- the command ----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="python -m train.codebook", description=__doc__.splitlines()[0])
    arguments.add_argument("--recipe", required=True, choices=sorted(CODEBOOKS))
    arguments.add_argument("--output", required=True, type=Path, help="folder of the build")
    arguments.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    arguments.add_argument("--skip-bad-images", action="store_true", help="leave out and list images of no use")
    instead = arguments.add_argument_group("instead of what the recipe says")
    instead.add_argument("--images", help="a folder, a parquet file, a saved data set or the id of one on the Hub")
    instead.add_argument("--held-out", help="the same, of images to judge by; without it a share of the images")
    instead.add_argument("--continue-from", help="folder of a finished codebook that more images continue")
    instead.add_argument("--num-codewords", type=int)
    instead.add_argument("--rounds", type=int)
    instead.add_argument("--patches-per-round", type=int, help="as many are held in memory, by all processes together")
    instead.add_argument("--index", choices=sorted(INDICES))
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 when the codebook is finished, 130 when the build was interrupted and can be resumed."""
    args = parser().parse_args(argv)
    chosen = {name: value for name, value in vars(args).items() if value is not None}
    known = {field.name for field in fields(CodebookRecipe)}
    recipe = replace(CODEBOOKS[args.recipe](), **{name: chosen[name] for name in chosen if name in known})
    ranks.join()
    try:
        done = build_codebook(recipe, args.output, args.resume, args.skip_bad_images)
        first = ranks.rank() == 0
    finally:
        ranks.leave()
    if first and not done:
        given = [argument for argument in argv or sys.argv[1:] if argument != "--resume"]
        print(f"stopped; go on with: python -m train.codebook {' '.join(given)} --resume")
    elif first:
        print(f"finished: {args.output}")
    return 0 if done else 130


if __name__ == "__main__":
    sys.exit(main())
