"""Paper scale, the table of paradigms, and configurations that cannot be."""

import pytest
import torch

from modeling_unified import PARADIGMS, KLCodecConfig, UnifiedConfig, UnifiedForConditionalGeneration, VQCodecConfig
from modeling_unified.configuration_unified import PARTS

TINYLLAMA_PARAMETERS = 1_100_048_384  # the published model's count: embedding and lm_head of 32,000 rows
MOVQ_PARAMETERS = 67_832_495  # SBER-MoVQGAN "67M"
GEMMA2_2B_PARAMETERS = 2_614_341_888  # google/gemma-2-2b, embedding tied
# google/siglip-so400m-patch14-384 has 428,225,600 in its tower; 15,238,352 of them are the pooling head, which is left
# out, and it has a position for each of its 27x27 patches, where 224 pixels have 16x16.
SIGLIP_PARAMETERS = 428_225_600 - 15_238_352 - (27**2 - 16**2) * 1152
SD_VAE_PARAMETERS = 83_653_863  # stabilityai/sd-vae-ft-mse


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_ugen_is_described_at_the_sizes_of_the_paper():
    config = UnifiedConfig.for_paradigm("ugen")
    with torch.device("meta"):
        model = UnifiedForConditionalGeneration(config)
    added_rows = config.text_config.vocab_size - 32_000
    assert added_rows == 16_384 + 6
    language = count(model.model.language_model) + count(model.lm_head)
    assert language - 2 * added_rows * config.text_config.hidden_size == TINYLLAMA_PARAMETERS
    assert count(model.model.codec) == MOVQ_PARAMETERS
    assert count(model) == language + MOVQ_PARAMETERS
    assert config.num_codes == 16_384 and config.code_offset == 32_006
    assert model.model.codec.grid(*config.image_size) == (32, 32)
    assert model.model.encoders["codes"].num_tokens(256, 256) == 1_024
    assert not any(parameter.requires_grad for parameter in model.model.codec.parameters())


def test_unifluid_is_described_at_the_sizes_of_the_paper():
    config = UnifiedConfig.for_paradigm("unifluid")
    with torch.device("meta"):
        model = UnifiedForConditionalGeneration(config)
    assert count(model.model.language_model) - 6 * config.text_config.hidden_size == GEMMA2_2B_PARAMETERS
    assert model.lm_head.weight is model.get_input_embeddings().weight and model.lm_head.cap == 30.0
    features = model.model.encoders["features"]
    assert count(features.tower) == SIGLIP_PARAMETERS and count(features.projector) == (1152 + 1) * 2304
    assert count(model.model.codec) == SD_VAE_PARAMETERS
    assert config.num_codes == 0 and config.code_offset == 256_006 == config.text_config.vocab_size
    assert model.model.codec.grid(*config.image_size) == (16, 16) and config.codec_config.token_size == 16
    assert features.num_tokens(224, 224) == 256
    assert count(model.model.image_order) == 4 * 16 * 2304  # own and next, rows and columns
    assert len(model.model.image_head.net.blocks) == 6 and model.model.image_head.net.width == 1024


def test_unitoken_at_the_papers_sizes():
    """Chameleon-7B without the encoder of its VQ-GAN, SigLIP so400m at 384 pixels, codes inside the vocabulary."""
    config = UnifiedConfig.for_paradigm("unitoken")
    with torch.device("meta"):
        model = UnifiedForConditionalGeneration(config)
    features = model.model.encoders["features"]
    assert count(model.model.language_model) == 6_745_231_360 and count(model.lm_head) == 65_536 * 4096
    assert count(model.model.codec) == 68_718_467 and count(features.tower) == 412_987_248
    assert count(features.projector) == (1152 + 1) * 4096 + (4096 + 1) * 4096
    assert (config.code_offset, config.num_codes) == (4, 8192)
    assert len(model.model.image_order.script((32, 32))) == 1060 - 2  # without [SOI] and [EOI]
    assert features.num_tokens(768, 768) == 729 + 54 * 54


def test_every_row_of_the_table_names_one_choice_on_each_axis():
    for row in PARADIGMS.values():
        assert PARTS.keys() <= row.keys() and isinstance(row["image_inputs"], list)


def test_an_unknown_paradigm_is_refused():
    with pytest.raises(ValueError, match="unknown paradigm 'ugne': choose one of ugen"):
        UnifiedConfig.for_paradigm("ugne")


@pytest.mark.parametrize("axis", PARTS)
def test_an_unknown_part_is_refused_by_name(make_tiny_config, axis):
    value = ["codes", "smell"] if axis == "image_inputs" else "smell"
    with pytest.raises(ValueError, match=f"{axis}: there is no part 'smell'; available: {PARTS[axis][0]}"):
        make_tiny_config(**{axis: value})


def test_a_model_that_reads_no_image_tokens_is_refused(make_tiny_config):
    with pytest.raises(ValueError, match="image_inputs"):
        make_tiny_config(image_inputs=[])
    with pytest.raises(ValueError, match="names a part twice"):
        make_tiny_config(image_inputs=["codes", "codes"])


def test_vocabulary_sizes_must_agree(make_tiny_config, tiny_config):
    offset, rows = tiny_config.code_offset, tiny_config.text_config.vocab_size
    with pytest.raises(ValueError, match=f"{offset + 1} \\+ 16 codes exceed text_config.vocab_size {rows}"):
        make_tiny_config(code_offset=offset + 1)
    with pytest.raises(ValueError, match=f"the codes end at {rows - 1}, the vocabulary at {rows}: a softmax of codes"):
        make_tiny_config(code_offset=offset - 1, joint_softmax=False)
    with pytest.raises(ValueError, match="leave no room for text"):
        make_tiny_config(code_offset=None, text_config={"model_type": "llama", "vocab_size": 16})
    assert make_tiny_config(code_offset=None).code_offset == offset


def test_special_ids_lie_among_the_text_ids_and_differ(make_tiny_config, tiny_config):
    offset = tiny_config.code_offset
    with pytest.raises(ValueError, match=f"mask_token_id {offset} must .* not among the codes, {offset} to"):
        make_tiny_config(mask_token_id=offset)
    with pytest.raises(ValueError, match=f"mask_token_id {offset + 16} must lie among the {offset + 16} rows"):
        make_tiny_config(mask_token_id=offset + 16)
    with pytest.raises(ValueError, match="two of boi_token_id, .* share an id"):
        make_tiny_config(boi_token_id=tiny_config.eoi_token_id)


@pytest.mark.parametrize("image_size", [[8], [8, 8, 8], [8, 9], [0, 8]])
def test_an_image_size_the_grid_cannot_take_is_refused(make_tiny_config, image_size):
    with pytest.raises(ValueError, match="image_size"):
        make_tiny_config(image_size=image_size)


@pytest.mark.parametrize("field, value", [("group_size", 0), ("scaling_factor", 0.0), ("scaling_factor", -1.0)])
def test_a_kl_codec_without_latents_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} {value}"):
        KLCodecConfig(**{field: value})


def test_an_unknown_codec_config_is_refused(make_tiny_config):
    with pytest.raises(ValueError, match="unknown codec_config model_type 'jpeg': choose one of .*unified_vq"):
        make_tiny_config(codec_config={"model_type": "jpeg"})


def test_a_config_survives_a_round_trip(make_tiny_config, tmp_path):
    config = make_tiny_config(loss_on_mask=False, inactive_codes_in_softmax=True, tie_word_embeddings=True)
    config.save_pretrained(tmp_path)
    for back in (UnifiedConfig.from_dict(config.to_dict()), UnifiedConfig.from_pretrained(tmp_path)):
        assert back.to_dict() == config.to_dict()
        assert isinstance(back.codec_config, VQCodecConfig) and back.codec_config.stride == 2
        assert back.text_config.model_type == "llama" and back.text_config.hidden_size == 32
        assert back.loss_on_mask is False and back.inactive_codes_in_softmax and back.tie_word_embeddings


def test_rows_of_the_table_are_not_shared_between_configs():
    first = UnifiedConfig.for_paradigm("ugen")
    first.text_config.hidden_size = 7
    first.codec_config.block_out_channels[0] = 7
    second = UnifiedConfig.for_paradigm("ugen")
    assert second.text_config.hidden_size == 2048 and second.codec_config.block_out_channels[0] == 128


@pytest.mark.parametrize(
    "name, value", [("projector_layers", 3), ("visual_target_offset", 2), ("spatial_merge_size", 0)]
)
def test_numbers_that_mean_nothing_are_refused(make_tiny_config, name, value):
    with pytest.raises(ValueError, match=f"{name} {value}: choose"):
        make_tiny_config("uvu", **{name: value})
