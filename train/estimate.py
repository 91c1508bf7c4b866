"""What a run takes, before it is started: parameters by part, memory of a device, arithmetic of a step.

Contract: functions of a recipe and of its model on the meta device, where tensors have shapes and no numbers
(`train.dry_run` builds it and prints all of this). Parameters are exact. What depends on kernels is an estimate, and
its docstring says how it is made. Bytes and floating-point operations are plain numbers.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from modeling_unified.language_head_unified import positions_at_once
from train.parts import part_of
from train.recipes.kinds import LanguageModelRecipe, Lora
from train.samples import Sample, pixels_shown
from train.tower_guard import tower_encoder

# In the order in which the model comes to them: what is trained behind a part needs no gradient through it.
PARTS = (
    "codec", "tower", "projector", "image_order", "embedding", "adapters", "backbone", "head", "image_head"
)  # fmt: skip
FLOAT32, BFLOAT16 = 4, 2  # bytes of a number
SCORE = FLOAT32 + BFLOAT16  # of attention that is not fused: its softmax, and what the values are multiplied by
LOGIT = BFLOAT16 + 2 * FLOAT32  # the product, the logit, its softmax


@dataclass(frozen=True)
class Part:
    """Numbers of one part of a model; `buffers` are bytes that are stored and not learned, such as a codebook's."""

    name: str
    parameters: int
    trained: int
    buffers: int


def count_parts(model: nn.Module, lora: Lora | None = None) -> list[Part]:
    """The parts that have anything in them, as `choose_trained` left them; rows that embedding and head share are the
    embedding's. With `lora` adapters are trained, and the parts that it saves whole."""
    counts = {name: [0, 0, 0] for name in PARTS}
    for name, parameter in model.named_parameters():
        part = place_of(name)
        learns = parameter.requires_grad if lora is None else part in lora.modules_to_save
        counts[part][0] += parameter.numel()
        counts[part][1] += parameter.numel() * learns
    for name, buffer in model.named_buffers():
        counts[place_of(name)][2] += buffer.nbytes
    if lora:
        counts["adapters"][:2] = [count_adapters(model, lora)] * 2
    return [Part(name, *numbers) for name, numbers in counts.items() if any(numbers)]


def place_of(name: str) -> str:
    """The part of a parameter or buffer, in the words of `train.parts`, but the vocabulary's rows by themselves."""
    part = part_of(name) or "codec"
    if part != "language_model":
        return part
    return "head" if name.startswith("lm_head.") else "embedding" if "embed_tokens" in name else "backbone"


def count_adapters(model: nn.Module, lora: Lora) -> int:
    """Parameters of the adapters: two matrices beside each linear layer that is named, and the rows that are new."""
    count = sum(
        lora.rank * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(lora.target_modules, name)
    )
    if lora.new_rows:
        from train.lora import new_rows  # needs PEFT, as the run itself will

        config = model.config
        count += len(new_rows(config)) * config.text_config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return count


def stored(parts: Sequence[Part], bf16: bool) -> dict[str, int]:
    """Bytes of the model and its optimiser on a device that has all of it, as DDP does.

    As transformers' Trainer trains with `bf16`: weights, gradients and both moments of AdamW in float32, frozen weights
    in float32 too, and under autocast a copy in bfloat16 of each matrix in use. The codec has no such copies: images
    are encoded before.
    """
    trained = sum(part.trained for part in parts)
    used = sum(part.parameters for part in parts if part.name != "codec")
    return {
        "weights": sum(FLOAT32 * part.parameters + part.buffers for part in parts),
        "gradients": FLOAT32 * trained,
        "AdamW": 2 * FLOAT32 * trained,
        "copies in use": BFLOAT16 * used * bf16,
    }


def stored_sharded(parts: Sequence[Part], model: nn.Module, devices: int, bf16: bool) -> dict[str, int]:
    """The same where FSDP cuts weights, gradients and moments into as many pieces as there are devices. What is in use
    is gathered: a layer, with the next one on its way, or the rows of the vocabulary."""
    whole = stored(parts, bf16)
    layers = [count_numbers(layers[0]) for layers in stacks_of(model)]
    gathered = max(2 * max(layers), model.get_input_embeddings().weight.numel())
    shards = {name: whole[name] // devices for name in ("weights", "gradients", "AdamW")}
    return shards | {"copies in use": (BFLOAT16 if bf16 else FLOAT32) * gathered}


def activations(
    recipe: LanguageModelRecipe, model: nn.Module, rows: int, longest: int, shown: float, checkpointing: bool
) -> int:
    """Bytes that wait for the backward pass of a micro-batch, of `rows` rows of `longest` tokens:

        tokens x layers x kept                     see `kept_bytes`
        + rows x layers x heads x longest^2 x 6    where attention is not fused
        tokens x layers x 4 x width + one layer    with activation checkpointing

    And the same of `shown` images in the tower where that is trained, and of the diffusion head, as if every token were
    an image's.
    """
    config, bf16 = model.config, recipe.bf16

    def waiting(layers: Sequence[nn.Module], tokens: float, width: int, scores: float = 0) -> float:
        one = tokens * kept_bytes(layers[0], bf16) + scores
        return tokens * len(layers) * FLOAT32 * width + one if checkpointing else len(layers) * one

    backbone, *tower = stacks_of(model)
    scores = rows * config.text_config.num_attention_heads * longest**2 * SCORE * (recipe.attention == "eager")
    total = waiting(backbone, rows * longest, config.text_config.hidden_size, scores)
    if tower and any(parameter.requires_grad for parameter in tower[0].parameters()):
        views, patches = pixels_shown(recipe, config)
        total += waiting(tower[0], shown * views * patches, config.vision_config.hidden_size)
    if hasattr(model.model.image_head, "net"):
        total += rows * longest * config.diffusion_batch_mul * kept_bytes(model.model.image_head.net, bf16)
    return round(total)


def kept_bytes(module: nn.Module, bf16: bool) -> int:
    """Bytes that a module keeps of one token for its backward pass: what goes into its linear layers and what comes
    out of them, and what its norms see, in float32 (of an RMS norm, which is written out, also what it makes of that).

    An estimate: activation functions and rotations keep more, outputs that are only added keep less. Of layers of
    Llama, Qwen2, Gemma-2, Chameleon and SigLIP autograd kept between 0.9 and 1.2 times as much (held by a test).
    """
    linear, norms = 0, 0
    for each in module.modules():
        if isinstance(each, nn.Linear):
            linear += each.in_features + each.out_features
        elif isinstance(each, nn.LayerNorm):
            norms += math.prod(each.normalized_shape) if each.weight is None else each.weight.numel()
        elif type(each).__name__.endswith("RMSNorm"):
            norms += 2 * each.weight.numel()
    return (BFLOAT16 if bf16 else FLOAT32) * linear + FLOAT32 * norms


def vocabulary_bytes(model: nn.Module, text_targets: float, image_targets: float, sharded: bool) -> int:
    """Bytes of the losses over the vocabulary in a micro-batch. Logits are made a chunk at a time; until the backward
    pass there is a gradient of the whole matrix for each kind of target, but not where FSDP cuts the matrix."""
    targets = [text_targets, image_targets * (model.config.num_codes > 0)]
    rows, width = model.lm_head.weight.shape
    chunk = LOGIT * rows * min(positions_at_once(rows), math.ceil(max(targets)))
    learns = model.lm_head.weight.requires_grad and not sharded
    return chunk + FLOAT32 * rows * width * sum(count > 0 for count in targets) * learns


class Passes(NamedTuple):
    """How often a step goes through a part: forwards, and backwards to what it was given and to its weights."""

    forward: int
    inputs: int
    weights: int


def passes(name: str, parts: Sequence[Part], again: bool) -> Passes:
    """Of the part of that name. `again`: its activations are computed a second time for the backward pass."""
    trained = {part.name for part in parts if part.trained}
    learns = not trained.isdisjoint(PARTS[: PARTS.index(name) + 1])
    return Passes(1 + (again and learns), learns, name in trained)


def arithmetic(
    recipe: LanguageModelRecipe, model: nn.Module, parts: Sequence[Part], sample: Sample
) -> dict[str, float]:
    """Floating-point operations for a mean sample, by part: 2 for each parameter, token and pass through the part
    (6 N D in all where everything is trained: Kaplan et al., arXiv 2001.08361), and those of attention. With activation
    checkpointing a whole forward pass more; torch spares a layer's last product.

    Left out: codec, lookups, norms, activation functions, softmaxes, optimiser, padding, communication.
    """
    config, sizes = model.config, {part.name: part.parameters for part in parts}
    text, vision, found = config.text_config, config.vision_config, {}

    def operations(name: str, tokens: float, size: int = 0, attention: float = 0.0) -> float:
        again = recipe.activation_checkpointing and name in ("backbone", "tower")
        forward, inputs, weights = passes(name, parts, again)
        products = 2 * (forward + inputs + weights) * (size or sizes[name]) * tokens
        return products + (forward + 2 * inputs) * attention  # of its two operands both have gradients

    if "tower" in sizes:
        views, patches = pixels_shown(recipe, config)
        count = views * sample.shown
        seen = 4 * vision.num_hidden_layers * vision.hidden_size * patches**2 * count  # by all, of all
        found["tower"] = operations("tower", patches * count, attention=seen)
        found["projector"] = operations("projector", sample.features)
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    # Two operations in each of two products, and of these half: nothing attends to what comes later.
    seen = 2 * text.num_hidden_layers * width * sample.squares
    found["backbone"] = operations("backbone", sample.tokens)
    found["attention"] = operations("backbone", 0, attention=seen)
    head, rows = model.model.image_head, range(model.lm_head.weight.shape[0])
    targets = sample.text_targets * len(rows[head.text_rows])
    if config.num_codes:
        targets += sample.image_targets * len(rows[head.code_rows])
    else:
        condition = count_numbers(head.net.hidden_projection)  # once for all times
        size = count_numbers(head.net) - condition
        found["image_head"] = operations("image_head", sample.image_targets * config.diffusion_batch_mul, size)
        found["image_head"] += operations("image_head", sample.image_targets, condition)
    found["vocabulary"] = operations("head" if "head" in sizes else "embedding", targets, text.hidden_size)
    return found


def count_numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def stacks_of(model: nn.Module) -> list[Sequence[nn.Module]]:
    """The layers of the backbone, and those of the tower where there is one."""
    encoder = tower_encoder(model)
    return [model.model.language_model.layers, *([encoder.tower.encoder.layers] if encoder else [])]
