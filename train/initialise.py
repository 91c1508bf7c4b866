"""The first weights of a run: a new unified model, and parts of trained ones put into it.

    python -m train.initialise --recipe ugen/pretraining --output FOLDER

writes model and processor of what a recipe's `text_model`, `codec` and `tower` name, each a folder or a Hub id, and
beside them `initialise.json`: what came from where.

A text model gives its backbone and the rows of its text ids (`train.pretrained`): one of ours, or any causal language
model of transformers. A codec (`train.autoencoders`) and a tower give all of their weights. Rows of image codes,
projector and image head are new. A Chameleon goes a way of its own, since its vocabulary holds the codes
(`train.chameleon`). A `model` that the recipe goes on from, made by an earlier stage, is not looked at.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from modeling_unified.configuration_unified import PARADIGMS, CodecConfig, UnifiedConfig, VQCodecConfig
from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from train import chameleon
from train.autoencoders import load_codec
from train.pretrained import (
    backbone_config,
    config_of,
    copy_text_model,
    end_ids,
    is_tied,
    load_text_model,
    load_tokenizer,
    load_tower,
    text_rows,
)
from train.processors import build_processor
from train.recipes import RECIPES
from train.recipes.kinds import LanguageModelRecipe
from train.record import write_json
from train.tokenizer import SPECIAL_TOKENS
from train.weights import check_weights, revision_of, trained_folder

PARTS = ("text_model", "codec", "tower")  # fields of a recipe that name a trained part


def build_model(recipe: LanguageModelRecipe, tokenizer: PreTrainedTokenizerBase) -> UnifiedForConditionalGeneration:
    """A model as the recipe says, with the trained parts that it names. Without a codec no code is active.

    Fields of the codec that its source does not say stand in the recipe's `parts`, under "codec_config".

    Raises:
        ValueError: a part that is not there or does not fit; see the functions that load them.
    """
    if is_chameleon(recipe):
        return build_chameleon(recipe)
    if recipe.codec is None and "codec_config" in recipe.parts:
        raise ValueError(f"parts change fields of a codec, {recipe.parts['codec_config']}, but the recipe names none")
    codec = load_codec(recipe.codec, recipe.parts.get("codec_config")) if recipe.codec else None
    text_model = load_text_model(recipe.text_model) if recipe.text_model else None
    tower, features = load_tower(recipe.tower) if recipe.tower else (None, {})
    config = build_config(recipe, tokenizer, codec.config if codec else VQCodecConfig(), text_model, tower)
    torch.manual_seed(recipe.seed)
    model = UnifiedForConditionalGeneration(config)
    if codec:
        model.model.codec.load_state_dict(codec.state_dict())
    else:
        model.model.image_head.active_codes.fill_(False)
    if tower:
        mine = model.model.encoders["features"].tower
        check_weights(features, mine.state_dict(), f"a {tower.model_type!r} of this config")
        mine.load_state_dict(features)
    if text_model:
        copy_text_model(text_model, model)
    return model


def build_config(
    recipe: LanguageModelRecipe,
    tokenizer: PreTrainedTokenizerBase,
    codec_config: CodecConfig,
    text_model: PreTrainedModel | None = None,
    vision_config: PreTrainedConfig | None = None,
) -> UnifiedConfig:
    """Joins backbone and parts of the recipe, ids of the tokenizer and codes of the codec, which follow the last row of
    text: the last id, or that of the text model's padding.

    The tokenizer is given the tokens between those of an image, where the recipe's images have some.

    Raises:
        ValueError: a `text_config` beside a text model of others, a tower beside a `vision_config` or without features.
    """
    parts = {name: value for name, value in recipe.parts.items() if name != "codec_config"}  # it is in the codec's
    row = PARADIGMS[recipe.paradigm] | parts
    between = {}
    if row["image_order"] == "lines":
        between = add_image_lines(tokenizer, codec_config.stride, recipe.image_size)
    code_offset = max(len(tokenizer), text_rows(text_model) if text_model else 0)
    text_config, tied = text_config_of(recipe, text_model)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text_config.vocab_size, text_config.tie_word_embeddings = code_offset + codec_config.num_codes, tied
    for name, token_id in ids.items():
        setattr(text_config, name, token_id)
    if text_config.pad_token_id in (text_config.bos_token_id, text_config.eos_token_id):
        text_config.pad_token_id = None  # torch trains no row of an embedding that is said to be padding
    if text_model:
        ends = [ids["eos_token_id"], *(end for end in end_ids(text_model) if end != ids["eos_token_id"])]
        ids["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return UnifiedConfig.for_paradigm(
        recipe.paradigm,
        text_config=text_config,
        codec_config=codec_config,
        code_offset=code_offset,
        image_size=[recipe.image_size, recipe.image_size],
        **ids,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        mask_token_id=tokenizer.mask_token_id,
        image_token_id=tokenizer.image_token_id,
        image_feature_token_id=tokenizer.image_feature_token_id,
        loss_on_mask=recipe.loss_on_mask,
        inactive_codes_in_softmax=recipe.inactive_codes_in_softmax,
        tie_word_embeddings=tied,
        **between,
        **tower_fields(recipe, row, vision_config),
        **parts,
    )


def text_config_of(recipe: LanguageModelRecipe, text_model: PreTrainedModel | None) -> tuple[PreTrainedConfig, bool]:
    """The backbone's config, and whether embedding and head are one: as in the text model; as in `text_config`; or of
    the paradigm's own size."""
    if text_model is not None and recipe.text_config is None:
        return backbone_config(text_model), is_tied(text_model)
    if text_model is not None and text_model.config.model_type != UnifiedConfig.model_type:
        raise ValueError(
            f"{recipe.text_model} has a shape of its own, which text_config {recipe.text_config} may contradict: set "
            "text_config to None"
        )
    row = PARADIGMS[recipe.paradigm]
    fields = dict(recipe.text_config or row["text_config"])
    tied = True if recipe.text_config else row.get("tie_word_embeddings", False)
    return CONFIG_MAPPING[fields.pop("model_type")](**fields), tied


def tower_fields(
    recipe: LanguageModelRecipe, row: dict[str, Any], vision_config: PreTrainedConfig | None
) -> dict[str, Any]:
    """The field of the config that describes the tower, where one was loaded."""
    if vision_config is None:
        return {}
    if "features" not in row["image_inputs"] or "vision_config" in recipe.parts:
        raise ValueError(
            f"the recipe names the tower {recipe.tower}, but images are read through {row['image_inputs']}"
            + (" and its parts hold another vision_config" if "vision_config" in recipe.parts else "")
            + ": take one of them out"
        )
    return {"vision_config": vision_config}


def add_image_lines(tokenizer: PreTrainedTokenizerBase, unit: int, longest: int) -> dict[str, int]:
    """Gives the tokenizer tokens for the ends of an image's rows and for its sides, and one between slots and features.

    Args:
        unit: pixels in whose steps a side is named, up to `longest`.

    Returns:
        the fields of the config that name the tokens.
    """
    sides = [f"<|side_{side}|>" for side in range(unit, longest + 1, unit)]
    tokenizer.add_special_tokens({"extra_special_tokens": ["[SEP]", "<|newline|>", *sides]})
    sep, newline, first = tokenizer.convert_tokens_to_ids(["[SEP]", "<|newline|>", sides[0]])
    return {
        "sep_token_id": sep,
        "newline_token_id": newline,
        "size_token_offset": first - 1,
        "size_token_unit": unit,
        "max_image_side": longest,
    }


def build_tokenizer(recipe: LanguageModelRecipe) -> PreTrainedTokenizerBase:
    """The tokenizer of the recipe's text model, with our special tokens; see `train.pretrained.load_tokenizer`."""
    if is_chameleon(recipe):
        return chameleon.build_tokenizer(Path(trained_folder(recipe.text_model, "Chameleon")), chameleon_config(recipe))
    return load_tokenizer(recipe.text_model)


def is_chameleon(recipe: LanguageModelRecipe) -> bool:
    return recipe.text_model is not None and config_of(recipe.text_model).model_type == "chameleon"


def chameleon_config(recipe: LanguageModelRecipe) -> UnifiedConfig:
    """The paradigm as it was published, whose ids are Chameleon's."""
    fields = {
        "image_size": [recipe.image_size, recipe.image_size],
        "loss_on_mask": recipe.loss_on_mask,
        "inactive_codes_in_softmax": recipe.inactive_codes_in_softmax,
    }
    return UnifiedConfig.for_paradigm(recipe.paradigm, **(fields | recipe.parts))


def build_chameleon(recipe: LanguageModelRecipe) -> UnifiedForConditionalGeneration:
    """Chameleon's language model and VQ-GAN with a SigLIP; see `train.chameleon.convert`."""
    if recipe.tower is None:
        raise ValueError(f"{recipe.text_model} is a Chameleon, which becomes a model with a vision tower: name a tower")
    if recipe.codec is None or not Path(recipe.codec).is_file():
        raise ValueError(
            f"{recipe.text_model} is a Chameleon, whose codec is its own VQ-GAN, and {recipe.codec} is no file: name "
            "that VQ-GAN's weights as safetensors, in the layout of taming-transformers (vqgan.ckpt of Meta's release)"
        )
    return chameleon.convert(
        chameleon_config(recipe),
        Path(trained_folder(recipe.text_model, "Chameleon")),
        Path(trained_folder(recipe.tower, "SigLIP")),
        Path(recipe.codec),
    )


def write_checkpoint(recipe: LanguageModelRecipe, output: Path) -> dict[str, Any]:
    """Builds the model of a recipe from its trained parts and saves it with its processor; returns the record.

    Where the vocabulary grows in training (`steps_per_code`) no code is active yet.

    Raises:
        ValueError: a recipe without a text model, a folder that holds a model already, parts that do not fit.
    """
    if recipe.text_model is None:
        raise ValueError(
            f"the recipe {recipe.name} names no text_model: its run trains a tokenizer and begins by itself"
        )
    if (output / "config.json").exists():
        raise ValueError(f"{output} holds a model already: choose another --output")
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    if recipe.steps_per_code is not None:
        model.model.image_head.active_codes.fill_(False)
    model.save_pretrained(output)
    build_processor(model.config, tokenizer, recipe.max_features).save_pretrained(output)
    record = describe(recipe, model.config, tokenizer)
    write_json(output / "initialise.json", record)
    return record


def describe(recipe: LanguageModelRecipe, config: UnifiedConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What came from where: names, commits on the Hub, ids of the special tokens, rows of the vocabulary that are the
    text model's, those that are new tokens', and those of codes."""
    names = {part: getattr(recipe, part) for part in PARTS if getattr(recipe, part)}
    published = {part: name for part, name in names.items() if not Path(name).exists()}
    source = config_of(recipe.text_model)
    ours = source.model_type == UnifiedConfig.model_type
    rows = source.code_offset if ours else source.get_text_config().vocab_size
    return {
        "recipe": recipe.name,
        **names,
        "revisions": {part: revision_of(trained_folder(name, part)) for part, name in published.items()},
        "rows": {"text_model": rows, "new_tokens": max(0, config.code_offset - rows), "codes": config.num_codes},
        "tokens": {name: [getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")] for name in SPECIAL_TOKENS},
    }


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="python -m train.initialise", description=__doc__.splitlines()[0])
    names = sorted(name for name, recipe in RECIPES.items() if isinstance(recipe(), LanguageModelRecipe))
    arguments.add_argument("--recipe", required=True, choices=names)
    arguments.add_argument("--output", required=True, type=Path, help="folder of the checkpoint")
    for part in PARTS:
        flag = f"--{part.replace('_', '-')}"
        arguments.add_argument(flag, help=f"folder or Hub id of the {part.replace('_', ' ')}, instead of the recipe's")
    return arguments


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    given = {part: getattr(args, part) for part in PARTS if getattr(args, part) is not None}
    print(json.dumps(write_checkpoint(replace(RECIPES[args.recipe](), **given), args.output)))


if __name__ == "__main__":
    main()
