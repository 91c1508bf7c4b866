"""Time and memory of the language head's loss and its gradients, ours beside the plain computation and checkpointing.

    python -m benchmarks.vocabulary_loss [--text 151936] [--codes 200000] [--hidden 2048] [--positions 2048]
        [--repeats 3] [--chunks 26] [--cases "two softmaxes" ...] [--output FILE]

One step is the mean loss of all targets and its gradients by hidden states and by the matrix. Three ways:

    plain        F.cross_entropy of all logits, by autograd
    checkpointed chunks of positions, whose logits are computed again in the backward pass: four products, not three
    ours         `losses_together`: one call for both softmaxes, where there are two

Three cases: one softmax over text and codes; two, half of the targets text and half codes; and these with nine of ten
codes dropped before the loss, as balancing does. Ours must give the plain gradients, by test at small sizes and here to
1e-5 of the largest number.

Times: all ways in turn, in one process, medians. Memory: each way in a process of its own; the peak of the resident set
(`resource.getrusage`) above what is resident before the step, hence with the matrix's gradient [V, H], which every way
must make, and again less the bytes of this gradient. (The plain way is at its peak before it makes this gradient: to
take it off is in its favour.) Where the plain way would not fit into memory, the positions are halved until it does,
and ours is measured at the full number as well. Writes FILE, by default benchmarks/results/vocabulary_loss.json.

N positions, H hidden size, V vocabulary.
"""

import argparse
import json
import math
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig

from benchmarks.hardware import hardware
from modeling_unified import language_head_unified
from modeling_unified.language_head_unified import LanguageHead, Targets, losses_together

RESULTS = Path(__file__).parent / "results" / "vocabulary_loss.json"
THREADS = 2
CHECKPOINTED_LOGITS = 2**24  # of a chunk; what the package had when it checkpointed
MATRICES_OF_PLAIN = 5  # logits, their softmax and both derivatives, and one to spare; of N x V numbers
CASES = ("one softmax", "two softmaxes", "two, 90 % of codes dropped")

Losses = Callable[[list[Targets], LanguageHead], list[torch.Tensor]]


def plain_losses(hidden_NH: torch.Tensor, ids_N: torch.Tensor, lm_head: LanguageHead, rows: slice) -> torch.Tensor:
    logits_NR = F.linear(hidden_NH, lm_head.weight[rows])
    return F.cross_entropy(logits_NR, ids_N - (rows.start or 0), reduction="none")


def plain(groups: list[Targets], lm_head: LanguageHead) -> list[torch.Tensor]:
    return [plain_losses(hidden_NH, ids_N, lm_head, rows) for hidden_NH, ids_N, rows in groups]


def checkpointed(groups: list[Targets], lm_head: LanguageHead) -> list[torch.Tensor]:
    losses = []
    for hidden_NH, ids_N, rows in groups:
        chunk = max(1, CHECKPOINTED_LOGITS // len(range(*rows.indices(lm_head.out_features))))
        chunks = zip(hidden_NH.split(chunk), ids_N.split(chunk), strict=True)
        parts = [checkpoint(plain_losses, *pair, lm_head, rows, use_reentrant=False) for pair in chunks]
        losses.append(torch.cat(parts))
    return losses


WAYS: dict[str, Losses] = {"plain": plain, "checkpointed": checkpointed, "ours": losses_together}


def softmaxes(case: str, sizes: dict[str, int]) -> list[tuple[int, slice]]:
    """Positions and rows of each softmax of a case."""
    half = sizes["positions"] // 2
    text, codes = slice(sizes["text"]), slice(sizes["text"], None)
    return {
        "one softmax": [(sizes["positions"], slice(None))],
        "two softmaxes": [(half, text), (half, codes)],
        "two, 90 % of codes dropped": [(half, text), (half // 10, codes)],
    }[case]


class Step:
    """The tensors of one case, and the step on them by any way."""

    def __init__(self, case: str, sizes: dict[str, int]):
        torch.manual_seed(0)
        vocab_size = sizes["text"] + sizes["codes"]
        self.lm_head = LanguageHead(PreTrainedConfig(hidden_size=sizes["hidden"], vocab_size=vocab_size))
        self.groups = [
            Targets(torch.randn(count, sizes["hidden"]), torch.randint(*rows.indices(vocab_size)[:2], (count,)), rows)
            for count, rows in softmaxes(case, sizes)
        ]

    def __call__(self, way: Losses) -> list[torch.Tensor]:
        """Gradients: of the matrix, then of each softmax's hidden states."""
        self.lm_head.weight.grad = None
        groups = [group._replace(hidden_NH=group.hidden_NH.detach().requires_grad_()) for group in self.groups]
        losses = way(groups, self.lm_head)
        (sum(losses_N.sum() for losses_N in losses) / sum(map(len, losses))).backward()
        return [self.lm_head.weight.grad, *(group.hidden_NH.grad for group in groups)]


def largest_difference(case: str, sizes: dict[str, int]) -> float:
    """Of ours from the plain gradients, relative to the largest number of each."""
    step = Step(case, sizes)
    found = [grad.clone() for grad in step(losses_together)]
    wanted = step(plain)
    return max(float(a.sub_(b).abs_().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


def times(case: str, sizes: dict[str, int], ways: list[str], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, all ways in turn, after one of each to warm up."""
    step, seconds = Step(case, sizes), {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way in ways:
            begin = time.perf_counter()
            step(WAYS[way])
            if repeat:
                seconds[way].append(round(time.perf_counter() - begin, 3))
    return seconds


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes(case: str, sizes: dict[str, int], way: str) -> int:
    """Peak of one step above what is resident before it; to be called in a fresh process."""
    step = Step(case, sizes)
    tiny = Step(case, {name: 32 for name in sizes})
    tiny(WAYS[way])  # what the libraries set up once is no part of a step
    before = resident_bytes()
    step(WAYS[way])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def in_own_process(task: str, **arguments: Any) -> Any:
    command = [sys.executable, "-m", "benchmarks.vocabulary_loss", "--task", json.dumps({"task": task, **arguments})]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise SystemExit(f"{task} of {arguments} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_task(task: str, threads: int, max_logits: int, **arguments: Any) -> Any:
    """What a process of its own does; its last line of output is the answer."""
    torch.set_num_threads(threads)
    language_head_unified.MAX_LOGITS = max_logits
    return {"difference": largest_difference, "times": times, "peak": peak_bytes}[task](**arguments)


def positions_that_fit(sizes: dict[str, int]) -> int:
    """As many as the plain way has memory for, by halves of those asked for."""
    free = int(next(line for line in Path("/proc/meminfo").open() if line.startswith("MemAvailable")).split()[1]) * 1024
    vocab_size, positions = sizes["text"] + sizes["codes"], sizes["positions"]
    matrices = 2 * 4 * vocab_size * sizes["hidden"]  # the language head's and its gradient
    while positions > 1 and matrices + MATRICES_OF_PLAIN * 4 * vocab_size * positions > free:
        positions //= 2
    return positions


def measure(
    case: str, sizes: dict[str, int], ways: list[str], repeats: int, threads: int, max_logits: int
) -> dict[str, Any]:
    """One case: the ways side by side."""
    common = {"case": case, "sizes": sizes, "threads": threads, "max_logits": max_logits}
    seconds = in_own_process("times", ways=ways, repeats=repeats, **common)
    peaks = {way: in_own_process("peak", way=way, **common) for way in ways}
    gradient = 4 * (sizes["text"] + sizes["codes"]) * sizes["hidden"]
    row = {
        "case": case,
        **sizes,
        "max_logits": max_logits,
        "median_seconds": {way: statistics.median(values) for way, values in seconds.items()},
        "peak_gib": {way: round(peak / 2**30, 3) for way, peak in peaks.items()},
        "peak_gib_less_gradient": {way: round((peak - gradient) / 2**30, 3) for way, peak in peaks.items()},
        "seconds": seconds,
    }
    if "plain" in ways:
        row["largest_relative_difference"] = in_own_process("difference", **common)
        row["plain_seconds_by_ours"] = round(row["median_seconds"]["plain"] / row["median_seconds"]["ours"], 2)
        row["our_share_of_plain_peak"] = round(peaks["ours"] / peaks["plain"], 3)
        row["our_share_of_plain_peak_less_gradient"] = round(
            (peaks["ours"] - gradient) / (peaks["plain"] - gradient), 3
        )
        if not row["largest_relative_difference"] < 1e-5:
            raise SystemExit(f"gradients differ by {row['largest_relative_difference']:.1e} of the largest: {case}")
    return row


def show(row: dict[str, Any]) -> None:
    rows, chunk = f"{row['text']:,} + {row['codes']:,} rows of {row['hidden']:,}", math.log2(row["max_logits"])
    print(f"\n{row['case']}: {rows}, {row['positions']:,} positions, 2^{chunk:g} logits at once")
    print(f"{'':>14} {'seconds':>8} {'peak GiB':>9} {'less gradient':>14}")
    for way, seconds in row["median_seconds"].items():
        print(f"{way:>14} {seconds:8.2f} {row['peak_gib'][way]:9.2f} {row['peak_gib_less_gradient'][way]:14.2f}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("text", 151_936), ("codes", 200_000), ("hidden", 2048), ("positions", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=THREADS)
    log_of_own = int(math.log2(language_head_unified.MAX_LOGITS))
    parser.add_argument("--chunks", type=int, nargs="+", default=[log_of_own], help="logits at once, powers of two")
    parser.add_argument("--cases", choices=CASES, nargs="+", default=CASES)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--task", help=argparse.SUPPRESS)  # how this file starts itself
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(run_task(**json.loads(arguments.task))))
        return
    asked = {name: getattr(arguments, name) for name in ("text", "codes", "hidden", "positions")}
    fitting = asked | {"positions": positions_that_fit(asked)}
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.vocabulary_loss", *sys.argv[1:]]),
        "hardware": hardware(threads=arguments.threads),
        "packages": {name: version(name) for name in ("torch", "transformers")},
        "setting": "float32; a step is the losses, the gradient of the hidden states and that of the matrix",
        "repeats": arguments.repeats,
        "results": [],
    }
    plans = [(fitting, list(WAYS))] + ([(asked, ["checkpointed", "ours"])] if fitting != asked else [])
    for max_logits in (2**power for power in arguments.chunks):
        for sizes, ways in plans:
            for case in arguments.cases:
                row = measure(case, sizes, ways, arguments.repeats, arguments.threads, max_logits)
                record["results"].append(row)
                show(row)
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
