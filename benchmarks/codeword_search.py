"""Time to find a patch's codeword against the number of codewords: the exact index beside the inexact one.

    python -m benchmarks.codeword_search --images FOLDER [--codewords 4096 16384 65536 131072] [--threads 1]

Centres are as many patches of the images, 32x32 pixels at three scales as in recipe `photo/patch`; `python -m
train.photographs` fetches a folder of about 200,000. What is looked up are patches of held-out images. The two indices
take turns, so that a machine that gets slower does so for both; times are medians. Recall is the share of patches for
which the inexact index finds the nearest centre, excess how much farther than that its own is on average, of the
distance. Building an index is paid once in a round, for 20 million patches at the paper's size.

Writes a table, benchmarks/results/codeword_search.json and .png. About ten minutes on a core.

K codewords, N patches, D numbers of a patch.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from matplotlib.figure import Figure

from benchmarks.codebook import RESULTS
from benchmarks.hardware import hardware
from train.clustering import INDICES, Nearest, features
from train.patches import PatchSource
from train.recipes import photo

PATCHES = 1024  # looked up each time
REPEATS = 5


def timed(function: Any, *args: Any) -> tuple[Any, float]:
    """What it returns, and its seconds."""
    started = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - started


def compare(centres_KD: np.ndarray, patches_ND: np.ndarray) -> list[dict[str, Any]]:
    """One row for each index at this number of centres."""
    built = {index: timed(Nearest, centres_KD, index) for index in INDICES}
    found, seconds = {}, {index: [] for index in INDICES}
    for _ in range(REPEATS):
        for index, (nearest, _) in built.items():
            found[index], took = timed(nearest, patches_ND)
            seconds[index].append(took)

    def distances(index: str) -> np.ndarray:
        return np.linalg.norm(patches_ND - centres_KD[found[index]], axis=1)

    nearest_N = distances("flat")
    return [
        {
            "codewords": len(centres_KD),
            "index": index,
            "seconds_to_build": round(took, 2),
            "seconds_per_million_patches": round(1e6 * statistics.median(seconds[index]) / len(patches_ND), 1),
            "recall": round(float((distances(index) <= nearest_N * (1 + 1e-5)).mean()), 4),
            "excess": round(float(distances(index).mean() / nearest_N.mean() - 1), 5),
        }
        for index, (_, took) in built.items()
    ]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Seconds, and recall, against codewords; with the slope between the ends of each line."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    time_axes, recall_axes = figure.subplots(1, 2)
    for index in INDICES:
        rows = [row for row in results if row["index"] == index]
        codewords, seconds = ([row[name] for row in rows] for name in ("codewords", "seconds_per_million_patches"))
        slope = np.log(seconds[-1] / seconds[0]) / np.log(codewords[-1] / codewords[0]) if len(rows) > 1 else np.nan
        time_axes.plot(codewords, seconds, marker="o", label=f"{index}: codewords to the power of {slope:.2f}")
        recall_axes.plot(codewords, [row["recall"] for row in rows], marker="o", label=index)
    time_axes.set(title="search", xlabel="codewords", ylabel="seconds per million patches", xscale="log", yscale="log")
    recall_axes.set(title="the nearest is found", xlabel="codewords", ylabel="share", xscale="log", ylim=(0, 1.02))
    for axes in (time_axes, recall_axes):
        axes.legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="a folder of images, as train.codebook takes it")
    parser.add_argument("--codewords", nargs="+", type=int, default=[4096, 16_384, 65_536, 131_072])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(arguments.threads)
    record = {
        "command": " ".join(["python -m benchmarks.codeword_search", *sys.argv[1:]]),
        "hardware": hardware(threads_of_a_process=arguments.threads),
        "packages": {name: version(name) for name in ("faiss-cpu", "numpy", "pillow")},
        "setting": f"{PATCHES} held-out patches looked up, median of {REPEATS} times",
        "results": [],
    }
    recipe = replace(
        photo.patch(), images=arguments.images, num_codewords=max(arguments.codewords), held_out_patches=PATCHES
    )
    survey = PatchSource(recipe).survey()
    centres_KD, patches_ND = (features(part, recipe.position_strength) for part in (survey.first, survey.held_out))
    print(f"{'codewords':>9} {'index':>5} {'build s':>8} {'s per million':>13} {'recall':>7} {'excess':>7}")
    shuffled_K = np.random.default_rng(0).permutation(len(centres_KD))
    for codewords in arguments.codewords:
        for row in compare(centres_KD[shuffled_K[:codewords]], patches_ND):
            record["results"].append(row)
            numbers = f"{row['seconds_to_build']:8.1f} {row['seconds_per_million_patches']:13.1f}"
            print(f"{codewords:9} {row['index']:>5} {numbers} {row['recall']:7.3f} {row['excess']:7.4f}", flush=True)
    (RESULTS / "codeword_search.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(record["results"], RESULTS / "codeword_search.png")


if __name__ == "__main__":
    main()
