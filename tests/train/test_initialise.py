"""First weights: what comes from the text model, what from the codec, and what stays new."""

from dataclasses import replace

import pytest
import torch

from modeling_unified.configuration_unified import VQCodecConfig
from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from train.initialise import build_config, build_model, copy_text_model
from train.recipes import spark

SHAPE = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture
def recipe(tiny_tokenizer, tiny_codec, tmp_path):
    """A recipe whose text model (made with another number of codes) and codec lie in folders."""
    text = UnifiedForConditionalGeneration(
        build_config(
            replace(spark.text(), text_config=SHAPE, image_size=8),
            tiny_tokenizer,
            VQCodecConfig(**{**tiny_codec.config.to_dict(), "num_vq_embeddings": 40}),
        )
    )
    text.save_pretrained(tmp_path / "text")
    tiny_codec.save_pretrained(tmp_path / "vq")
    folders = {"text_model": str(tmp_path / "text"), "codec": str(tmp_path / "vq")}
    return replace(spark.ugen(), text_config=SHAPE, image_size=8, **folders)


def test_backbone_and_text_rows_come_from_the_text_model(recipe, tiny_tokenizer):
    model = build_model(recipe, tiny_tokenizer)
    text = UnifiedForConditionalGeneration.from_pretrained(recipe.text_model)
    rows = len(tiny_tokenizer)
    for name, weights in text.model.language_model.state_dict().items():
        if "embed_tokens" not in name:
            assert torch.equal(weights, model.model.language_model.state_dict()[name]), name
    assert torch.equal(model.lm_head.weight[:rows], text.lm_head.weight[:rows])
    assert model.lm_head.weight.shape[0] == rows + 16
    assert not torch.equal(model.lm_head.weight[rows:], text.lm_head.weight[rows : rows + 16])
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_codec_comes_from_its_folder(recipe, tiny_tokenizer, tiny_codec):
    model = build_model(recipe, tiny_tokenizer)
    for name, weights in tiny_codec.state_dict().items():
        assert torch.equal(weights, model.model.codec.state_dict()[name]), name
    assert bool(model.model.image_head.active_codes.all())


def test_without_a_codec_no_code_is_active(tiny_tokenizer):
    model = build_model(replace(spark.text(), text_config=SHAPE), tiny_tokenizer)
    assert not bool(model.model.image_head.active_codes.any())


def test_the_flags_of_the_vocabulary_reach_the_config(recipe, tiny_tokenizer):
    recipe = replace(recipe, loss_on_mask=False, inactive_codes_in_softmax=True)
    config = build_model(recipe, tiny_tokenizer).config
    assert (config.loss_on_mask, config.inactive_codes_in_softmax) == (False, True)
    assert config.code_offset == len(tiny_tokenizer) and config.image_size == [8, 8]


def test_the_seed_decides_the_random_rows(recipe, tiny_tokenizer):
    first, again = (build_model(recipe, tiny_tokenizer).lm_head.weight for _ in range(2))
    other = build_model(replace(recipe, seed=1), tiny_tokenizer).lm_head.weight
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_parts_that_do_not_fit_are_named(recipe, tiny_tokenizer, tiny_model):
    with pytest.raises(ValueError, match="/nowhere holds no trained codec"):
        build_model(replace(recipe, codec="/nowhere"), tiny_tokenizer)
    wider = {**SHAPE, "intermediate_size": 96}
    with pytest.raises(ValueError, match=r"\(64, 32\) in the text model, \(96, 32\) here"):
        build_model(replace(recipe, text_config=wider), tiny_tokenizer)
    text = UnifiedForConditionalGeneration.from_pretrained(recipe.text_model)
    tiny_model.config.code_offset -= 1
    with pytest.raises(ValueError, match=f"{len(tiny_tokenizer)} text ids, this one has {len(tiny_tokenizer) - 1}"):
        copy_text_model(text, tiny_model)
