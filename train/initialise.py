"""The first weights of a run: a new unified model, and parts of trained ones put into it.

A text model gives its backbone and the rows of its text ids; the rows of image codes stay random (UGen starts from a
pretrained text model and learns the visual embeddings). A codec gives all of its weights.

V rows of the vocabulary, H hidden size
"""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedTokenizerBase

from modeling_unified.configuration_unified import PARADIGMS, CodecConfig, UnifiedConfig, VQCodecConfig
from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from processing_unified.image_processing_unified import UnifiedImageProcessor
from processing_unified.processing_unified import UnifiedProcessor
from train.recipes.kinds import LanguageModelRecipe


def build_model(recipe: LanguageModelRecipe, tokenizer: PreTrainedTokenizerBase) -> UnifiedForConditionalGeneration:
    """A model as the recipe says, with the trained parts of the folders it names. Without a codec no code is active."""
    torch.manual_seed(recipe.seed)
    codec = AutoModel.from_pretrained(trained_folder(recipe.codec, "codec")) if recipe.codec else None
    model = UnifiedForConditionalGeneration(build_config(recipe, tokenizer, codec.config if codec else VQCodecConfig()))
    if codec:
        model.model.codec.load_state_dict(codec.state_dict())
    else:
        model.model.image_head.active_codes.fill_(False)
    if recipe.text_model:
        folder = trained_folder(recipe.text_model, "text model")
        copy_text_model(UnifiedForConditionalGeneration.from_pretrained(folder), model)
    return model


def build_config(
    recipe: LanguageModelRecipe, tokenizer: PreTrainedTokenizerBase, codec_config: CodecConfig
) -> UnifiedConfig:
    """Joins backbone and parts of the recipe, ids of the tokenizer and codes of the codec, which follow the last id.

    The tokenizer is given the tokens between those of an image, where the recipe's images have some.
    """
    text, row = dict(recipe.text_config), PARADIGMS[recipe.paradigm] | recipe.parts
    lines = row["image_order"] == "lines"
    between = add_image_lines(tokenizer, codec_config.stride, recipe.image_size) if lines else {}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text_config = CONFIG_MAPPING[text.pop("model_type")](
        **text, **ids, vocab_size=len(tokenizer) + codec_config.num_codes, tie_word_embeddings=True
    )
    return UnifiedConfig.for_paradigm(
        recipe.paradigm,
        text_config=text_config,
        codec_config=codec_config,
        code_offset=len(tokenizer),
        image_size=[recipe.image_size, recipe.image_size],
        **ids,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        mask_token_id=tokenizer.mask_token_id,
        image_token_id=tokenizer.image_token_id,
        image_feature_token_id=tokenizer.image_feature_token_id,
        loss_on_mask=recipe.loss_on_mask,
        inactive_codes_in_softmax=recipe.inactive_codes_in_softmax,
        tie_word_embeddings=True,
        **between,
        **recipe.parts,
    )


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


def build_processor(
    config: UnifiedConfig, tokenizer: PreTrainedTokenizerBase, max_features: int | None = None
) -> UnifiedProcessor:
    """The processor that writes what a model of this config reads; the vision tower sees the codec's own view, with
    `max_features` an image at its own size, or tiles where the config has some."""
    height, width = config.image_size
    return UnifiedProcessor(
        UnifiedImageProcessor(size={"height": height, "width": width}),
        tokenizer,
        image_stride=config.codec_config.stride,
        image_inputs=config.image_inputs,
        feature_stride=config.feature_stride,
        max_features=max_features,
        feature_tiles=config.feature_tiles,
        image_lines=config.image_lines,
        sep_token_id=config.sep_token_id,
    )


@torch.no_grad()
def copy_text_model(source: Any, target: Any) -> None:
    """Copies the backbone and the rows of text ids; the two may have different codecs, hence numbers of codes, and the
    target may know more text ids, which follow those of the source.

    Raises:
        ValueError: the source has more text ids, or a backbone of another shape.
    """
    rows, own = source.config.code_offset, target.config.code_offset
    if rows > own:
        raise ValueError(f"the text model has {rows} text ids, this one has {own}: use the tokenizer of that run")
    vocabularies = [source.get_input_embeddings().weight, target.get_input_embeddings().weight]
    mine = target.model.language_model.state_dict()
    for name, weights in source.model.language_model.state_dict().items():
        if weights.data_ptr() == vocabularies[0].data_ptr():
            continue  # the embedding: only its text rows are copied, below
        if name not in mine or mine[name].shape != weights.shape:
            found = tuple(mine[name].shape) if name in mine else "missing"
            raise ValueError(f"{name} is {tuple(weights.shape)} in the text model, {found} here: use its text_config")
        mine[name].copy_(weights)
    vocabularies[1][:rows].copy_(vocabularies[0][:rows])
    if not target.config.tie_word_embeddings:
        target.lm_head.weight[:rows].copy_(source.lm_head.weight[:rows])


def trained_folder(path: str, what: str) -> str:
    """`path`, if a trained model lies there."""
    if not (Path(path) / "config.json").exists():
        raise ValueError(f"{path} holds no trained {what} (no config.json): train it first, or name another folder")
    return path
