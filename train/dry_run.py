"""What a run would be, without running it: `python -m train.run --recipe ugen/pretraining --dry-run --devices 64`.

Contract: `dry_run(recipe, devices, flops) -> str`, a page to read: parameters by part, memory of a device, what a step
takes, the schedule, the time. The real model is built on the meta device, which holds shapes and no numbers: so the
counts are exact at any size, and nothing is read from the Hub. What is estimated is called so, and explained in
`train.estimate` and `train.samples`.

    a whole model whose folder exists       is described by its config.json
    parts from the Hub (no `text_config`)   by the paradigm's own sizes (`PARADIGMS`): the named parts are not looked at
    parts of the small models               by the recipes that make them
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig

from modeling_unified.codecs_unified import CODECS
from modeling_unified.configuration_unified import (
    CodecConfig,
    KLCodecConfig,
    PatchCodecConfig,
    UnifiedConfig,
    VQCodecConfig,
)
from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from train.estimate import (
    Part,
    activations,
    arithmetic,
    count_numbers,
    count_parts,
    stored,
    stored_sharded,
    vocabulary_bytes,
)
from train.initialise import build_config
from train.parts import choose_trained
from train.recipes import CODEBOOKS, RECIPES
from train.recipes.kinds import CodebookRecipe, CodecRecipe, LanguageModelRecipe, Recipe, VQCodecRecipe
from train.samples import Sample, average, check_lengths, rows_of, samples_of
from train.tokenizer import train_tokenizer
from train.vocabulary import every

FLOPS = 312e12  # an A100's, in bfloat16
UTILISATION = 0.4  # of them, beside what memory and communication cost (Llama 3: 0.38 to 0.43, arXiv 2407.21783)
GIB = 2**30


def dry_run(recipe: Recipe, devices: int = 1, flops: float = FLOPS) -> str:
    """The page on a recipe.

    Args:
        devices: that share a batch.
        flops: operations that each of them can do in a second; it is taken to do `UTILISATION` of them.

    Raises:
        ValueError: a batch that devices and micro-batches do not divide, a sample that is longer than the model or a
            row takes, a part that nothing describes.
    """
    if devices < 1 or not flops > 0:
        raise ValueError(f"devices {devices} must be at least 1, and flops {flops:g} above 0")
    pieces = devices * recipe.micro_batches
    if recipe.batch_size % pieces:
        raise ValueError(
            f"batch_size {recipe.batch_size} is not a multiple of {devices} devices x {recipe.micro_batches} "
            "micro-batches: change one of them"
        )
    if isinstance(recipe, CodecRecipe):
        return "\n".join(codec_page(recipe, devices))
    return "\n".join(language_model_page(recipe, devices, flops))


def codec_page(recipe: CodecRecipe, devices: int) -> Iterator[str]:
    """Parameters, memory of weights, schedule. Convolutions are not counted, hence no activations and no time."""
    config = config_of(recipe)
    with torch.device("meta"):
        codec = CODECS[config.model_type.removeprefix("unified_")](config)
    count = count_numbers(codec)
    parts = [Part("autoencoder", count, count, 0)]
    yield f"{recipe.name}: a codec of {config.stride} pixels a token and side, {config.num_codes or 'no'} codes"
    yield from parameters_table(parts)
    yield from memory_table({"whole": stored(parts, recipe.bf16)})
    yield from steps(recipe, devices)
    if isinstance(recipe, VQCodecRecipe):
        yield f"  quantised from step {recipe.autoencoder_steps:,}"


def language_model_page(recipe: LanguageModelRecipe, devices: int, flops: float) -> Iterator[str]:
    """All that there is to say."""
    model = build_on_meta(recipe)
    parts, samples = count_parts(model, recipe.lora), samples_of(recipe, model.config)
    check_lengths(recipe, model.config)
    yield from described(recipe, model.config)
    yield from parameters_table(parts)
    yield from memory(recipe, model, parts, samples, devices)
    yield from steps(recipe, devices)
    yield from codes_joining(recipe, model.config.num_codes)
    yield from tokens(recipe, samples)
    yield from time_taken(recipe, arithmetic(recipe, model, parts, average(samples)), devices, flops)


def memory(
    recipe: LanguageModelRecipe,
    model: UnifiedForConditionalGeneration,
    parts: Sequence[Part],
    samples: Sequence[Sample],
    devices: int,
) -> Iterator[str]:
    """Of a device that has the whole model, and of one that has its share of it."""
    mean, share = average(samples), recipe.batch_size // (devices * recipe.micro_batches)
    rows, longest = rows_of(recipe, samples, share)
    columns = {
        "whole (DDP)": stored(parts, recipe.bf16),
        f"FSDP over {devices:,}": stored_sharded(parts, model, devices, recipe.bf16),
    }
    less, more = (activations(recipe, model, rows, longest, share * mean.shown, again) for again in (True, False))
    for name, column in columns.items():
        targets = share * mean.text_targets, share * mean.image_targets
        column["losses over the vocabulary"] = vocabulary_bytes(model, *targets, sharded=name.startswith("FSDP"))
        column["activations, estimated"] = less if recipe.activation_checkpointing else more
    yield from memory_table(columns)
    with_it, without = f"{less / GIB:,.1f} with checkpointing", f"{more / GIB:,.1f} without"
    yield f"  activations of {rows:,} x {longest:,} tokens: {with_it}, {without}"
    yield "  left out: DDP's buckets (the gradients once more), what the allocator wastes, pixels"


def build_on_meta(recipe: LanguageModelRecipe) -> UnifiedForConditionalGeneration:
    """The recipe's model without numbers. What the recipe trains requires gradients."""
    config = describe(recipe)
    with torch.device("meta"):
        model = UnifiedForConditionalGeneration(config)
    choose_trained(model, recipe.trained_parts, recipe.frozen_parameters)
    return model


def describe(recipe: LanguageModelRecipe) -> UnifiedConfig:
    """The config of the recipe's model; see the top of this file."""
    if found(recipe.model):
        return UnifiedConfig.from_pretrained(recipe.model)
    if recipe.text_config is None:
        return UnifiedConfig.for_paradigm(
            recipe.paradigm, image_size=[recipe.image_size, recipe.image_size], **recipe.parts
        )
    # As many ids as the recipe allows; what they mean changes no count.
    tokenizer = train_tokenizer([], recipe.text_vocab_size)
    tokenizer.add_tokens([f"<filler {number}>" for number in range(recipe.text_vocab_size - len(tokenizer))])
    return build_config(recipe, tokenizer, codec_config(recipe))


def codec_config(recipe: LanguageModelRecipe) -> CodecConfig:
    """Of the folder that the recipe names, or of the recipe that fills it: `runs/vq` is filled by `.../vq`.

    Raises:
        ValueError: neither is there.
    """
    if recipe.codec is None:
        return VQCodecConfig()  # as `build_model`: no code is ever active
    if found(recipe.codec):
        return AutoConfig.from_pretrained(recipe.codec)
    name = f"{recipe.name.split('/')[0]}/{Path(recipe.codec).name}"
    made_by = (RECIPES | CODEBOOKS).get(name)
    if made_by is None:
        raise ValueError(f"{recipe.codec} holds no codec, and no recipe is called {name}: name another folder")
    return config_of(made_by())


def found(folder: str | None) -> bool:
    """Whether a model lies there."""
    return folder is not None and (Path(folder) / "config.json").exists()


def config_of(recipe: CodecRecipe | CodebookRecipe) -> CodecConfig:
    """Of the codec that the recipe makes."""
    if isinstance(recipe, CodebookRecipe):
        return PatchCodecConfig(patch_size=recipe.patch_size, num_codewords=recipe.num_codewords)
    return (VQCodecConfig if isinstance(recipe, VQCodecRecipe) else KLCodecConfig)(**recipe.codec_config)


def described(recipe: LanguageModelRecipe, config: UnifiedConfig) -> Iterator[str]:
    text, codes = config.text_config, config.num_codes
    height, width = config.image_size
    yield (
        f"{recipe.name}: {text.model_type}, {text.num_hidden_layers} layers of width {text.hidden_size:,}; "
        f"{text.vocab_size - codes:,} rows of text, {codes:,} of codes; codec {config.image_codec}; "
        f"images {height}x{width}"
    )
    if recipe.text_config is None and not found(recipe.model):
        named = {field: getattr(recipe, field) for field in ("model", "text_model", "codec", "tower")}
        yield "  sizes are the paradigm's own; not looked at:"
        yield from (f"    {field} {name}" for field, name in named.items() if name)


def parameters_table(parts: Sequence[Part]) -> Iterator[str]:
    yield f"{'parameters':30}{'all':>18}{'trained':>18}"
    for part in parts:
        if part.parameters or part.buffers > 2**20:
            stored_only = f"  and {part.buffers:,} bytes" * (part.buffers > 2**20)
            yield f"  {part.name:28}{part.parameters:18,}{part.trained:18,}{stored_only}"
    yield f"  {'sum':28}{sum(part.parameters for part in parts):18,}{sum(part.trained for part in parts):18,}"


def memory_table(columns: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    yield f"{'GiB on a device':30}" + "".join(f"{name:>18}" for name in columns)
    for row in next(iter(columns.values())):
        yield f"  {row:28}" + "".join(f"{column[row] / GIB:18,.2f}" for column in columns.values())
    yield f"  {'sum':28}" + "".join(f"{sum(column.values()) / GIB:18,.2f}" for column in columns.values())


def steps(recipe: Recipe, devices: int) -> Iterator[str]:
    """Batches and rates."""
    share = recipe.batch_size // (devices * recipe.micro_batches)
    yield "schedule"
    yield (
        f"  {recipe.steps:,} steps of {recipe.batch_size:,} samples: {devices:,} device{'s' * (devices > 1)} x "
        f"{recipe.micro_batches} micro-batch{'es' * (recipe.micro_batches > 1)} x {share:,}"
    )
    rates = getattr(recipe, "learning_rates", {})
    others = "".join(f", {part} {rate:g}" for part, rate in rates.items())
    yield (
        f"  learning rate up to {recipe.learning_rate:g}{others} at step {recipe.warmup_steps:,}, then along a cosine "
        f"to 0 at step {recipe.steps:,}"
    )


def codes_joining(recipe: LanguageModelRecipe, num_codes: int) -> Iterator[str]:
    """When the last code joins the vocabulary, and a warning where it never does."""
    if recipe.steps_per_code is None or not num_codes:
        return
    active = min(num_codes, math.floor(every(recipe.steps_per_code)(recipe.steps)))
    if math.isinf(recipe.steps_per_code):
        yield f"  none of {num_codes:,} codes ever joins the vocabulary"
    elif active == num_codes:
        last = math.ceil(num_codes * recipe.steps_per_code)
        yield (
            f"  a code joins every {recipe.steps_per_code:g} steps; the last of {num_codes:,} after step {last:,}, "
            f"{last / recipe.steps:.1%} of the run"
        )
    else:
        yield (
            f"  WARNING: after all {recipe.steps:,} steps {active:,} of {num_codes:,} codes are active; the others "
            "stay masked and cannot be drawn"
        )


def tokens(recipe: LanguageModelRecipe, samples: Sequence[Sample]) -> Iterator[str]:
    """Of samples, steps and the run."""
    mean = average(samples)
    yield "tokens, of texts as long as we guess them"
    for sample in samples:
        yield (
            f"  {sample.name:28}{sample.parts / mean.parts:6.1%} of samples, {sample.tokens:6,.0f} each: predicts "
            f"{sample.text_targets:,.0f} of text, {sample.image_targets:,.0f} of images"
        )
    step = recipe.batch_size * mean.tokens
    yield f"  {step:,.0f} a step, {step * recipe.steps:.4g} in all"


def time_taken(
    recipe: LanguageModelRecipe, operations: Mapping[str, float], devices: int, flops: float
) -> Iterator[str]:
    """By the arithmetic alone."""
    step = recipe.batch_size * sum(operations.values())
    shares = ", ".join(f"{name} {count * recipe.batch_size / step:.0%}" for name, count in operations.items())
    seconds = step / (devices * flops * UTILISATION)
    whole = recipe.steps * seconds
    units = {"days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}
    unit = next((unit for unit, size in units.items() if whole >= 2 * size), "seconds")
    yield f"time, at {UTILISATION:.0%} of {flops / 1e12:g} TFLOP/s a device"
    yield f"  {step:.3g} operations a step ({shares})"
    yield f"  {seconds:.3g} seconds a step, {whole / units[unit]:.1f} {unit} in all"
    yield "  left out: codec, norms, softmaxes, optimiser, padding, reading of data, communication"
    if recipe.packed_length and "flash" not in recipe.attention:
        yield "  and what attention with a mask computes between samples of one row"
