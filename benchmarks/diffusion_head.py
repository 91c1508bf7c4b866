"""Image tokens per second of the diffusion head's sampler, and of a straightforward reading of the published algorithm.

    python -m benchmarks.diffusion_head [--sizes 256x3 1024x6] [--rows 1 16] [--steps 100] [--repeats 5]

Both have the same weights, noise, steps and guidance, and must give the same tokens. The straightforward one follows
MAR's code: at every step and for each of two passes (with the condition and without) it embeds the time, projects the
hidden state, multiplies every block's modulating matrix, and looks each coefficient up in its table. They run in turn;
the times are medians. Writes a table, where our time goes, and benchmarks/results/diffusion_head.json.

N rows (images drawn at once), H hidden size, D numbers of a token, W width, S steps.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.hardware import hardware
from modeling_unified.configuration_unified import UnifiedConfig
from modeling_unified.diffusion_unified import noising_chain
from modeling_unified.heads_unified import DiffusionHead

RESULTS = Path(__file__).parent / "results" / "diffusion_head.json"
THREADS = 2
HIDDEN = 1024


def build_head(width: int, depth: int) -> DiffusionHead:
    """Tokens of 16 numbers, guided by a hidden state of 1,024; random weights, none of them zero."""
    text = {"model_type": "llama", "vocab_size": 64, "hidden_size": HIDDEN, "num_attention_heads": 8}
    special = ("boi", "eoi", "mask", "image", "image_feature")
    config = UnifiedConfig(
        image_inputs=["latents"],
        image_codec="kl",
        image_head="diffusion",
        text_config=text,
        codec_config={"model_type": "unified_kl", "latent_channels": 4, "group_size": 2},
        diffusion_width=width,
        diffusion_depth=depth,
        pad_token_id=0,
        **{f"{name}_token_id": 10 + i for i, name in enumerate(special)},
    )
    torch.manual_seed(0)
    head = DiffusionHead(config).eval()
    for linear in (head.net.modulation, head.net.output):
        nn.init.normal_(linear.weight, std=0.2 / width**0.5)
    return head


def published_pass(head: DiffusionHead, x_ND: torch.Tensor, times_N: torch.Tensor, hidden_NH: torch.Tensor):
    """The whole network for one branch of one step."""
    net, width = head.net, head.net.width
    condition_NW = F.silu(net.embed_times(times_N) + net.hidden_projection(hidden_NH))

    def modulating(first: int, count: int) -> tuple[torch.Tensor, ...]:
        rows = slice(first * width, (first + count) * width)
        return F.linear(condition_NW, net.modulation.weight[rows], net.modulation.bias[rows]).chunk(count, -1)

    x_NW = net.token_projection(x_ND)
    for i, block in enumerate(net.blocks):
        x_NW = block(x_NW, *modulating(3 * i, 3))
    shift_NW, scale_NW = modulating(3 * len(net.blocks), 2)
    return net.output(net.norm(x_NW) * (1 + scale_NW) + shift_NW).chunk(2, -1)


@torch.no_grad()
def published(head, hidden_NH, null_NH, sampling, generators) -> torch.Tensor:
    """MAR's algorithm with guidance, as one would write it from its description."""
    steps, scale, rows = sampling["num_inference_steps"], sampling["guidance_scale"], len(hidden_NH)
    chain = noising_chain(steps)
    noise_NSD = torch.stack([torch.randn(steps, head.token_size, generator=g) for g in generators])
    x_ND = noise_NSD[:, 0]

    def at_time(values_S, t: int) -> torch.Tensor:
        return torch.from_numpy(values_S)[torch.full((rows,), t)].float()[:, None].expand_as(x_ND)

    for t in reversed(range(steps)):
        times_N = torch.full((rows,), int(chain.times[t]))
        predicted_ND, share_ND = published_pass(head, x_ND, times_N, hidden_NH)
        without_ND, _ = published_pass(head, x_ND, times_N, null_NH)
        guided_ND = without_ND + scale * (predicted_ND - without_ND)
        share_ND = (share_ND + 1) / 2
        log_ND = share_ND * at_time(chain.max_log_variance, t) + (1 - share_ND) * at_time(chain.min_log_variance, t)
        x_ND = at_time(chain.mean_x, t) * x_ND - at_time(chain.mean_noise, t) * guided_ND
        if t:
            x_ND = x_ND + sampling["temperature"] * (log_ND / 2).exp() * noise_NSD[:, steps - t]
    return x_ND


def seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


@torch.no_grad()
def parts(head: DiffusionHead, hidden_NH, null_NH, sampling) -> dict[str, Callable[[], Any]]:
    """The sampler's three large parts alone; what is left of its time are steps' arithmetic and the loop."""
    steps, rows = sampling["num_inference_steps"], len(hidden_NH)
    both_NH = torch.cat([hidden_NH, null_NH])
    times_S = torch.tensor(head.objective.times(steps), dtype=torch.float32)
    modulation_NMW = next(head.net.modulate_steps(times_S[:1], both_NH))
    x_ND = torch.randn(2 * rows, head.token_size)

    def noise():
        return [torch.randn(steps, head.token_size, generator=g) for g in generators_of(rows)]

    @torch.no_grad()
    def modulation():
        for _ in head.net.modulate_steps(times_S, both_NH):
            pass

    @torch.no_grad()
    def blocks():
        for _ in range(steps):
            head.net(x_ND, modulation_NMW)

    return {"noise": noise, "modulation of all steps": modulation, "blocks": blocks}


def generators_of(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(rows)]


def measure(width: int, depth: int, rows: int, steps: int, repeats: int) -> dict[str, Any]:
    head = build_head(width, depth)
    hidden_NH, null_NH = torch.randn(2, rows, HIDDEN)
    constant = {"num_inference_steps": steps, "guidance_scale": 3.0, "guidance_schedule": "constant"}
    sampling = head.sampling_defaults | constant
    runs = {
        "ours": lambda: head.sample(hidden_NH, None, sampling, null_NH, generators_of(rows)),
        "published": lambda: published(head, hidden_NH, null_NH, sampling, generators_of(rows)),
    }
    ours_ND, published_ND = (run() for run in runs.values())  # also warms both up
    difference = float((ours_ND - published_ND).abs().max() / published_ND.abs().max())
    if not difference < 1e-3:
        raise SystemExit(f"the two samplers differ by {difference:.1e} of the largest number: they must not")
    runs |= parts(head, hidden_NH, null_NH, sampling)
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    median = {name: statistics.median(values) for name, values in times.items()}
    whole, theirs = median.pop("ours"), median.pop("published")
    shares = {name: part / whole for name, part in median.items()}
    return {
        "width": width,
        "depth": depth,
        "rows": rows,
        "tokens_per_second": {"ours": round(rows / whole, 2), "published": round(rows / theirs, 2)},
        "times_as_fast": round(theirs / whole, 2),
        "share_of_our_time": {name: round(share, 2) for name, share in shares.items()}
        | {"step arithmetic and loop": round(1 - sum(shares.values()), 2)},
        "seconds": {name: [round(value, 4) for value in values] for name, values in times.items()},
        "largest_relative_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["256x3", "1024x6"], help="width x depth of the head")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16], help="images drawn at once")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    record = {
        "command": " ".join(["python -m benchmarks.diffusion_head", *sys.argv[1:]]),
        "hardware": hardware(threads=torch.get_num_threads()),
        "packages": {name: version(name) for name in ("torch", "transformers")},
        "setting": f"float32, tokens of 16 numbers, {arguments.steps} steps, guidance 3",
        "repeats": arguments.repeats,
        "results": [],
    }
    print(f"{'size':>8} {'rows':>4} {'ours':>9} {'published':>9} {'ratio':>6}   where our time goes")
    for size in arguments.sizes:
        width, depth = map(int, size.split("x"))
        for rows in arguments.rows:
            row = measure(width, depth, rows, arguments.steps, arguments.repeats)
            record["results"].append(row)
            speed, shares = row["tokens_per_second"], row["share_of_our_time"]
            where = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            numbers = f"{speed['ours']:9.2f} {speed['published']:9.2f} {row['times_as_fast']:6.2f}"
            print(f"{size:>8} {rows:4} {numbers}   {where}", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
