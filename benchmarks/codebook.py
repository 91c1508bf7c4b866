"""Time and memory of building a patch codebook, against patches, codewords, the kind of index and processes.

    python -m benchmarks.codebook [--patches 16384 65536 262144] [--codewords 512 2048 8192] [--threads 1]

Every point is a run of `train.codebook` by itself, recipe `photo/patch`, on made-up photographs of 512x512 pixels; the
first of each list is what the other varies at. The run's own record says how long each part took and the most memory a
process held, so what is measured is the command that users run. Writes a table, benchmarks/results/codebook.json and
benchmarks/results/codebook.png. About five minutes on a core.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.hardware import hardware

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SIDE, PATCH = 512, 32
PATCHES_OF_AN_IMAGE = sum((SIDE // reduction // PATCH) ** 2 for reduction in (1, 2, 4))
SAMPLE = 8192  # patches a round
ROUNDS = 6
HELD_OUT_IMAGES = 3


def write_images(folder: Path, count: int) -> None:
    """Noise of several sizes on top of each other, coarse strong and fine weak, as in photographs."""
    folder.mkdir()
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels_HWC = np.full((SIDE, SIDE, 3), 128, np.float32)
        for side, share in ((4, 0.5), (16, 0.25), (64, 0.15), (256, 0.1)):
            noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
            pixels_HWC += (np.asarray(noise.resize((SIDE, SIDE)), np.float32) - 128) * share
        Image.fromarray(pixels_HWC.astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=90)


def first_images(folder: Path, count: int) -> Path:
    """A folder of the first `count` of these images."""
    part = folder.with_name(f"images-{count}")
    if not part.exists():
        part.mkdir()
        for path in sorted(folder.iterdir())[:count]:
            os.link(path, part / path.name)
    return part


def build(images: Path, held_out: Path, codewords: int, index: str, processes: int, threads: int) -> dict[str, Any]:
    """Runs the builder; what of its record belongs in the table."""
    output = images.with_name(f"{images.name}-{codewords}-{index}-{processes}")
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [
        *launcher, "train.codebook", "--recipe", "photo/patch", "--images", str(images), "--held-out", str(held_out),
        "--num-codewords", str(codewords), "--rounds", str(ROUNDS), "--patches-per-round", str(SAMPLE),
        "--index", index, "--output", str(output),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    record = json.loads((output / "training.json").read_text())
    return {
        "patches": record["patches"],
        "codewords": codewords,
        "index": index,
        "processes": processes,
        "patches_in_rounds": sum(row["patches"] for row in record["history"]),
        "seconds": record["seconds"],
        "peak_megabytes_of_a_process": record["peak_megabytes_of_a_process"],
        "prp": round(record["metrics"]["prp"], 4),
    }


def points(patches: list[int], codewords: list[int]) -> list[tuple[int, int, str, int]]:
    """(patches, codewords, index, processes)."""
    by_patches = [(count, codewords[0], "flat", processes) for processes in (1, 2) for count in patches]
    by_codewords = [(patches[0], count, index, 1) for index in ("flat", "ivf") for count in codewords]
    return list(dict.fromkeys(by_patches + by_codewords))


def draw(results: list[dict[str, Any]], codewords: int, path: Path) -> None:
    """Four panels: looking at all images, and memory, against patches; clustering, and memory, against codewords."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    (look, cluster), (memory, memory_of_codewords) = figure.subplots(2, 2)
    for processes in (1, 2):
        rows = [r for r in results if (r["codewords"], r["index"], r["processes"]) == (codewords, "flat", processes)]
        for axes, values in (
            (look, [row["seconds"]["survey"] for row in rows]),
            (memory, [row["peak_megabytes_of_a_process"] for row in rows]),
        ):
            axes.plot([row["patches"] for row in rows], values, marker="o", label=f"processes: {processes}")
    for index in ("flat", "ivf"):
        rows = [r for r in results if r["index"] == index and r["processes"] == 1]
        rows = [r for r in rows if r["patches"] == min(row["patches"] for row in results)]
        rows.sort(key=lambda row: row["codewords"])
        for axes, values in (
            (cluster, [1e6 * row["seconds"]["cluster"] / row["patches_in_rounds"] for row in rows]),
            (memory_of_codewords, [row["peak_megabytes_of_a_process"] for row in rows]),
        ):
            axes.plot([row["codewords"] for row in rows], values, marker="o", label=index)
    look.set(title="looking at all images once", xlabel="patches", ylabel="seconds", xscale="log", yscale="log")
    cluster.set(title="a round of clustering", xlabel="codewords", ylabel="seconds per million patches", xscale="log")
    cluster.set_yscale("log")
    memory.set(title="memory", xlabel="patches", ylabel="peak MB of a process", xscale="log", ylim=(0, None))
    memory_of_codewords.set(title="memory", xlabel="codewords", ylabel="peak MB of a process", ylim=(0, None))
    for axes in (look, cluster, memory, memory_of_codewords):
        axes.legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patches", nargs="+", type=int, default=[16_384, 65_536, 262_144])
    parser.add_argument("--codewords", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--threads", type=int, default=1, help="of each process, so that two processes are two cores")
    arguments = parser.parse_args()
    record = {
        "command": " ".join(["python -m benchmarks.codebook", *sys.argv[1:]]),
        "hardware": hardware(threads_of_a_process=arguments.threads),
        "packages": {name: version(name) for name in ("torch", "faiss-cpu", "numpy", "pillow")},
        "setting": f"{PATCH}x{PATCH} pixels a patch, {ROUNDS} rounds of about {SAMPLE} patches, all steps of the paper",
        "results": [],
    }
    print(f"{'patches':>9} {'codewords':>9} {'index':>5} {'processes':>9} {'survey':>7} {'cluster':>8} {'MB':>6}")
    with tempfile.TemporaryDirectory() as work:
        images, held_out = Path(work) / "images", Path(work) / "held_out"
        write_images(images, round(max(arguments.patches) / PATCHES_OF_AN_IMAGE) + HELD_OUT_IMAGES)
        held_out.mkdir()
        for path in sorted(images.iterdir())[-HELD_OUT_IMAGES:]:
            path.rename(held_out / path.name)
        for patches, codewords, index, processes in points(arguments.patches, arguments.codewords):
            some = first_images(images, round(patches / PATCHES_OF_AN_IMAGE))
            row = build(some, held_out, codewords, index, processes, arguments.threads)
            record["results"].append(row)
            seconds, memory = row["seconds"], row["peak_megabytes_of_a_process"]
            numbers = f"{seconds['survey']:7.1f} {seconds['cluster']:8.1f} {memory:6}"
            print(f"{row['patches']:9} {codewords:9} {index:>5} {processes:9} {numbers}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "codebook.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(record["results"], arguments.codewords[0], RESULTS / "codebook.png")


if __name__ == "__main__":
    main()
