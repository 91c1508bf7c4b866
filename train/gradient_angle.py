"""Do image loss and text loss pull the shared weights the same way? The angle between their gradients (UVU, CVPR 2026).

    python -m train.gradient_angle --model runs/uvu/checkpoint-* --data spark --output runs/uvu-angle

measures checkpoints of one run on the same batches and writes

    gradient_angle.json   every number, with settings and packages
    gradient_angle.png    the cosine over training, of all shared weights together and layer by layer

    cos = g_i . g_t / (|g_i| |g_t|)

where g_i and g_t are the gradients of the mean image loss and of the mean text loss of one batch. Above 0 (less than 90
degrees) a small step down one loss goes down the other, too. Weights of the losses change nothing. Over which weights
the paper takes the angle was not found; ours are

    layer N     one block of the language model
    norm, ...   what else it has, by its own names
    embedding   the vocabulary's matrix, and `lm_head` where the two are not tied
    backbone    all but the vocabulary
    overall     all of them

without parameters that only one of the losses reaches. The vocabulary stands apart since its rows are mostly those of
one kind, text or image, which the other loss hardly moves: there the angle says little about what is shared.

Batches are the run's own samples, in the size it trains on, from behind its last one: the scenes are those of the
training, in other words. Where the recipe supervises images that are read they are in the image loss, thinned by the
checkpoint's own counts where it balances long tails. Everything is float32 and without dropout; whatever is drawn
(orders, times, noise) is the same for every checkpoint. An error is the standard error of the mean over the batches.

B batches, C checkpoints, G groups of weights
"""

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm
from transformers import TrainerState

from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from processing_unified.processing_unified import UnifiedProcessor
from train.balance import LongTailBalance
from train.language_model import build_mixture, read_texts
from train.recipes import RECIPES
from train.recipes.kinds import LanguageModelRecipe
from train.record import PACKAGES, write_json
from train.scenes import DATA
from train.trainer import Collator

OWN = "spark"  # the name of the data that every run has: its own
VOCABULARY = ("embedding", "lm_head")
SUMS = ("overall", "backbone")


def weight_groups(model: Any) -> dict[str, list[nn.Parameter]]:
    """Parameters of the language model by the names above, from its input to its output."""
    embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
    groups = {"embedding": [embedding]}
    for name, parameter in model.model.language_model.named_parameters():
        if parameter is not embedding:
            layer = next((part for part in name.split(".") if part.isdigit()), None)
            groups.setdefault(f"layer {layer}" if layer else name.split(".")[0], []).append(parameter)
    return groups if head is embedding else groups | {"lm_head": [head]}


def cosines(
    text_loss: torch.Tensor, image_loss: torch.Tensor, groups: dict[str, list[nn.Parameter]]
) -> dict[str, float]:
    """Cosine between the gradients of two losses (scalars, of one graph) over each group, and over `SUMS` of groups.

    A group that only one loss reaches is left out; a gradient of zeros has no angle, nan.

    Raises:
        ValueError: no parameter that both losses reach.
    """
    parameters = [parameter for group in groups.values() for parameter in group]
    text = torch.autograd.grad(text_loss, parameters, retain_graph=True, allow_unused=True)
    image = torch.autograd.grad(image_loss, parameters, allow_unused=True)
    names = [name for name, group in groups.items() for _ in group]
    products: dict[str, torch.Tensor] = {}
    for name, g_t, g_i in zip(names, text, image, strict=True):
        if g_t is not None and g_i is not None:
            products[name] = products.get(name, 0.0) + dot_products(g_t, g_i)
    if not products:
        raise ValueError(f"{len(parameters)} parameters, but none that both losses reach: they share no weights")
    backbone = [product for name, product in products.items() if name not in VOCABULARY]
    sums = dict(zip(SUMS, (sum(products.values()), sum(backbone, torch.zeros(3))), strict=True))
    return {name: float(dot / (tt * ii).sqrt()) for name, (dot, tt, ii) in (sums | products).items()}


def dot_products(g_t: torch.Tensor, g_i: torch.Tensor) -> torch.Tensor:
    """[g_t . g_i, g_t . g_t, g_i . g_i], summed in float64: a matrix has millions of entries."""
    return torch.stack([(a * b).sum(dtype=torch.float64) for a, b in ((g_t, g_i), (g_t, g_t), (g_i, g_i))]).cpu()


def measure(
    model: Any, batches: Sequence[dict[str, torch.Tensor]], balance: LongTailBalance | None = None, seed: int = 0
) -> dict[str, Any]:
    """One checkpoint's numbers: mean losses, numbers of targets, and for each group cosine and degrees with errors.

    Args:
        model: in eval mode and float32.
        batches: its inputs with labels.
        balance: what takes labels of images that are read away, as in training; None: nothing does.

    Raises:
        ValueError: fewer than two batches, or one without targets of one of the kinds.
    """
    if len(batches) < 2:
        raise ValueError(f"{len(batches)} batches have no standard error: measure at least 2")
    groups, rows, losses = weight_groups(model), [], []
    for number, batch in enumerate(tqdm(batches, desc="measuring", unit="batch")):
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        if balance is not None:
            balance.thin([inputs], model, number)
        torch.manual_seed(seed + number)
        outputs = model(**inputs, skip_logits=True)
        targets = {"text": len(outputs.text_loss), "image": len(outputs.image_loss)}
        if not all(targets.values()):
            raise ValueError(
                f"batch {number} has {targets['text']} text targets and {targets['image']} image targets: an angle "
                "needs both; name a recipe that trains both by --data"
            )
        text_loss, image_loss = outputs.text_loss.mean(), outputs.image_loss.mean()
        rows.append(cosines(text_loss, image_loss, groups))
        losses.append((text_loss.item(), image_loss.item(), *targets.values()))
    names = ("text_loss", "image_loss", "text_targets", "image_targets")
    means = dict(zip(names, np.mean(losses, 0).tolist(), strict=True))
    found = dict.fromkeys(name for row in rows for name in row)
    return {**means, "angles": {name: summarise([row.get(name, math.nan) for row in rows]) for name in found}}


def summarise(cosines_B: Sequence[float]) -> dict[str, float | None]:
    """Means over batches and their standard errors; None (JSON has no nan) where a batch had no angle."""
    cosines_B = np.clip(cosines_B, -1, 1)  # of parallel gradients rounding makes a cosine of 1 + 1e-16
    found = {"cosine": cosines_B, "degrees": np.degrees(np.arccos(cosines_B))}
    numbers = {name: values_B.mean() for name, values_B in found.items()}
    numbers |= {f"{name}_error": values_B.std(ddof=1) / math.sqrt(len(values_B)) for name, values_B in found.items()}
    return {name: None if math.isnan(number) else float(number) for name, number in numbers.items()}


def origin(folder: Path) -> tuple[LanguageModelRecipe, int]:
    """The recipe that trained a model and the steps it was trained for: of a checkpoint, of a finished run, or of a
    folder to publish.

    Raises:
        ValueError: a folder without such a record, or with that of something else than a language model.
    """
    checkpoint = re.fullmatch(r"checkpoint-(\d+)", folder.resolve().name)
    path = folder.resolve().parent / "recipe.json" if checkpoint else folder / "training.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist: pass a folder checkpoint-N of a run, or a finished model")
    record = json.loads(path.read_text())
    if not checkpoint and "recipe" not in record:
        record = list(record.values())[-1]  # a folder to publish holds the records of earlier runs before its own
    values = record if checkpoint else record["recipe"]
    known = {field.name for field in fields(LanguageModelRecipe)}
    if not values.keys() <= known:
        raise ValueError(f"{path} is no recipe of a language model: it has {sorted(values.keys() - known)}")
    return LanguageModelRecipe(**values), int(checkpoint[1]) if checkpoint else record["steps"]


def counts_of(folder: Path, step: int, recipe: LanguageModelRecipe, num_codes: int) -> LongTailBalance | None:
    """The balance of long tails as it stood at the checkpoint, if the recipe has one.

    Raises:
        ValueError: a model whose checkpoint, and with it the counts, is gone.
    """
    if recipe.supervised_ratio is None:
        return None
    found = [path for path in (folder, folder / f"checkpoint-{step}") if (path / "trainer_state.json").exists()]
    if not found:
        raise ValueError(
            f"{recipe.name} thins labels by counts that its checkpoints hold, and {folder} has no trainer_state.json: "
            "pass a checkpoint, or name a recipe without supervised_ratio by --data"
        )
    balance = LongTailBalance(num_codes, recipe.supervised_ratio, recipe.seed)
    balance.restore(TrainerState.load_from_json(str(found[0] / "trainer_state.json")))
    return balance


def make_batches(
    recipe: LanguageModelRecipe, model: Any, processor: Any, cache: Path, count: int
) -> list[dict[str, torch.Tensor]]:
    """Batches of the recipe's samples that follow its last. Scenes are encoded where the cache does not hold them."""
    texts, _ = read_texts(DATA / "glosses.parquet", skip_bad_rows=False)
    mixture, _ = build_mixture(recipe, texts, model, processor, cache, skip_bad_rows=False)
    longest = model.config.text_config.max_position_embeddings
    collate = Collator(processor, longest, recipe.supervise_features, recipe.features_of_written)
    batches = []
    for number in range(count):
        first = (recipe.steps + number) * recipe.batch_size
        batch = collate([mixture[index] for index in range(first, first + recipe.batch_size)])
        del batch["sample_indices"]
        batches.append(batch)
    return batches


def run(models: Sequence[Path], data: str, output: Path, batches: int, seed: int = 0) -> dict[str, Any]:
    """Measures all models and writes both files; arguments as on the command line. Returns the JSON.

    Raises:
        ValueError: models of different runs, and whatever the functions above say.
    """
    own, points = one_run(models)
    recipe = own if data == OWN else RECIPES[data]()
    made: list[dict[str, torch.Tensor]] = []
    checkpoints = []
    for step, folder in points:
        model = load(folder)
        if not made:  # with the first model: all have its codec and its processor
            processor = UnifiedProcessor.from_pretrained(folder)
            made = make_batches(recipe, model, processor, output.parent / "cache", batches)
        numbers = measure(model, made, counts_of(folder, step, recipe, model.config.num_codes), seed)
        checkpoints.append({"model": str(folder), "step": step, **numbers})
    record = {
        "recipe": own.name,
        "settings": {"data": recipe.name, "batches": batches, "batch_size": recipe.batch_size, "seed": seed},
        "packages": {name: version(name) for name in PACKAGES},
        "checkpoints": checkpoints,
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "gradient_angle.json", record)
    draw(record, output / "gradient_angle.png")
    return record


def one_run(models: Sequence[Path]) -> tuple[LanguageModelRecipe, list[tuple[int, Path]]]:
    """The recipe of all models, and (step, folder) of each by step."""
    origins = [origin(folder) for folder in models]
    recipe = origins[0][0]
    for folder, (other, _) in zip(models, origins, strict=True):
        if other != recipe:
            raise ValueError(
                f"{models[0]} is of a run of {recipe.name}, {folder} of another one, of {other.name}: measure one run "
                "at a time"
            )
    return recipe, sorted((step, folder) for (_, step), folder in zip(origins, models, strict=True))


def load(folder: Path) -> UnifiedForConditionalGeneration:
    """A checkpoint in eval mode and float32.

    Raises:
        ValueError: one that does not hold all weights: random ones in their place would be measured.
    """
    model, info = UnifiedForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise ValueError(
            f"{folder} lacks {sorted(info['missing_keys'])} and has {sorted(info['unexpected_keys'])} instead: measure "
            "it with the code that it was trained with"
        )
    return model.eval().to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")


def draw(record: dict[str, Any], path: Path) -> None:
    """Writes the picture: sums of groups over training with bars of one standard error, and every group."""
    checkpoints = record["checkpoints"]
    steps = [point["step"] for point in checkpoints]
    groups = [name for name in checkpoints[0]["angles"] if name not in SUMS]
    figure = Figure(figsize=(max(11.0, 5 + 0.5 * len(steps)), max(4.0, 1.5 + 0.3 * len(groups))), layout="constrained")
    figure.suptitle(f"{record['recipe']}: cosine between the gradients of image loss and text loss")
    curves, cells = figure.subplots(1, 2)
    for name in SUMS:
        means, errors = (series(checkpoints, name, key) for key in ("cosine", "cosine_error"))
        curves.errorbar(steps, means, errors, marker="o", capsize=3, label=name)
    curves.axhline(0, color="gray", linestyle="--", label="90 degrees")
    curves.set(xlabel="step", ylabel="cosine")
    curves.legend()
    cosines_GC = np.stack([series(checkpoints, name, "cosine") for name in groups])
    bound = np.nanmax(np.abs(cosines_GC), initial=1e-3)
    shown = cells.imshow(cosines_GC, cmap="coolwarm_r", vmin=-bound, vmax=bound, aspect="auto")
    cells.set_xticks(range(len(steps)), steps, rotation=90)
    cells.set_yticks(range(len(groups)), groups)
    cells.set(xlabel="step")
    figure.colorbar(shown, ax=cells)
    figure.savefig(path, dpi=80)


def series(checkpoints: list[dict[str, Any]], name: str, key: str) -> np.ndarray:
    """One number of a group over checkpoints, nan where there is none."""
    return np.array([point["angles"].get(name, {}).get(key) for point in checkpoints], dtype=float)


def table(record: dict[str, Any]) -> str:
    """The sums as text."""
    lines = [f"{'step':>8}" + "".join(f"{name:>12}{'+-':>8}{'degrees':>9}" for name in SUMS)]
    for point in record["checkpoints"]:
        line = f"{point['step']:8}"
        for name in SUMS:
            cosine, error, angle = (series([point], name, key)[0] for key in ("cosine", "cosine_error", "degrees"))
            line += f"{cosine:12.4f}{error:8.4f}{angle:9.2f}"
        lines.append(line)
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="python -m train.gradient_angle", description=__doc__.splitlines()[0])
    arguments.add_argument(
        "--model", type=Path, required=True, nargs="+", action="extend", help="folders of one run's checkpoints"
    )
    names = sorted(name for name, recipe in RECIPES.items() if isinstance(recipe(), LanguageModelRecipe))
    arguments.add_argument(
        "--data", default=OWN, choices=[OWN, *names], metavar="NAME",
        help=f"{OWN}: the run's own samples; or the name of a recipe: its samples",
    )  # fmt: skip
    arguments.add_argument("--output", type=Path, required=True, help="folder, beside the run's: scenes are shared")
    arguments.add_argument("--batches", type=int, default=8)
    arguments.add_argument("--seed", type=int, default=0, help="of orders, times and noise")
    return arguments


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    record = run(args.model, args.data, args.output, args.batches, args.seed)
    print(table(record))
    print(f"\nwritten: {args.output / 'gradient_angle.json'} and gradient_angle.png beside it")


if __name__ == "__main__":
    main()
