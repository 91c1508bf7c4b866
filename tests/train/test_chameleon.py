"""Published weights become ours: with tiny random ones, transformers' models and ours compute the same.

What stands in for the files: `ChameleonForConditionalGeneration` and `SiglipModel`, saved by transformers, and a VQ-GAN
in the layout of taming-transformers, put together from Chameleon's encoder and Janus' decoder. Codes stand in the
middle of the vocabulary, as in the published one.

B batch, T sequence, L image tokens, D code dimension, h, w rows and columns of the grid
"""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAE,
    ChameleonVQVAEConfig,
    JanusVQVAE,
    JanusVQVAEConfig,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)

from modeling_unified.codecs_unified import VQCodec
from modeling_unified.configuration_unified import PARADIGMS, UnifiedConfig, VQCodecConfig
from train.chameleon import build_checkpoint, codec_weights, convert
from train.initialise import build_model, write_checkpoint
from train.recipes import unitoken
from train.tokenizer import SPECIAL_TOKENS

CODES, FIRST_TEXT, VOCABULARY = 16, 45, 301
NAMES = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<eoss>": 20, "<racm3:break>": 21, "<reserved08194>": 22}
NAMES |= {"<reserved08706>": 23, "<image>": 24, "<reserved08708>": 25, "<reserved08709>": 26}
NAMES |= {f"<reserved{8799 + n:05d}>": 27 + n for n in range(FIRST_TEXT - 27)}  # newline, sizes
IDS = {
    "bos_token_id": 0, "pad_token_id": 1, "code_offset": 4, "eoi_token_id": 20, "boi_token_id": 21, "sep_token_id": 22,
    "eos_token_id": 23, "image_token_id": 24, "image_feature_token_id": 25, "mask_token_id": 26, "newline_token_id": 27,
    "size_token_offset": 28, "size_token_unit": 4, "max_image_side": 64,
}  # fmt: skip
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
VQ = {
    "embed_dim": 8, "num_embeddings": CODES, "latent_channels": 8, "resolution": 16, "base_channels": 32,
    "channel_multiplier": [1, 1, 2], "num_res_blocks": 2,
}  # fmt: skip
CODEC = {
    "block_out_channels": [32, 32, 64], "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3, "layers_per_block": 2, "latent_channels": 8, "vq_embed_dim": 8,
    "num_vq_embeddings": CODES, "norm_num_groups": 32,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
TINY_PARTS = {
    "text_config": {"model_type": "chameleon", **TEXT, "vocabulary_map": {}, "vq_config": VQ},
    "codec_config": {"model_type": "unified_vq", **CODEC},
    "vision_config": {"model_type": "siglip_vision_model", **SIGLIP, "vision_use_head": False},
    "tile_grids": None,
}


def vocabulary() -> dict[str, int]:
    """Chameleon's names: of codes by letters that stand for digits; then bytes."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    codes = {f"IMGIMG{str(code).translate(letters)}Z": 4 + code for code in range(CODES)}
    byte_names = sorted(pre_tokenizers.ByteLevel.alphabet())
    return NAMES | codes | {name: FIRST_TEXT + n for n, name in enumerate(byte_names)}


def published_config(**overrides) -> UnifiedConfig:
    return UnifiedConfig.for_paradigm("unitoken", **(TINY_PARTS | IDS | {"image_size": [16, 16]} | overrides))


@torch.no_grad()
def shaken(model):
    """Norms and biases that differ from none at all, and convolutions as wide as torch makes them."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.reset_parameters()
    for name, parameter in model.named_parameters():
        if "norm" in name or parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def as_taming(decoder: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """Weights of Janus' decoder, which counts its levels from the beginning, by the names of taming-transformers, which
    counts them from the end. Attention beside the middle's is left out: Chameleon's has none."""
    weights = {}
    for name, tensor in decoder.items():
        part, *rest = name.split(".")
        if part == "up":
            rest[0] = str(levels - 1 - int(rest[0]))
        if part != "up" or rest[1] != "attn":
            weights[".".join(["decoder", part, *rest])] = tensor
    return weights


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def chameleon(pixels):
    torch.manual_seed(0)
    config = ChameleonConfig(**TEXT, vq_config=VQ, vocabulary_map=vocabulary())
    model = shaken(ChameleonForConditionalGeneration(config))
    vq = model.model.vqmodel
    with torch.no_grad():
        latents_ND = vq.quant_conv(vq.encoder(pixels)).movedim(1, -1).flatten(0, 2)
        vq.quantize.embedding.weight.copy_(latents_ND[::2])
    return model


@pytest.fixture(scope="module")
def siglip():
    torch.manual_seed(1)
    text = {**SIGLIP, "vocab_size": 50, "max_position_embeddings": 8, "projection_size": 16}
    text |= {"bos_token_id": 1, "eos_token_id": 2}
    return shaken(SiglipModel(SiglipConfig(vision_config=SIGLIP, text_config=text)))


@pytest.fixture(scope="module")
def janus():
    """A decoder that transformers has. The attention that Chameleon's has not, beside the middle's, adds nothing."""
    torch.manual_seed(2)
    sizes = {name: VQ[name] for name in VQ if name != "resolution"}
    decoder = shaken(JanusVQVAE(JanusVQVAEConfig(**sizes, num_patches=4))).decoder
    with torch.no_grad():
        for attention in decoder.up[0].attn:
            attention.proj_out.weight.zero_()
            attention.proj_out.bias.zero_()
    return decoder


@pytest.fixture(scope="module")
def vqgan(chameleon, janus):
    """Chameleon's VQ-GAN as taming-transformers saves it, with a part that only its training used."""
    encoder = {**chameleon.model.vqmodel.state_dict(), "loss.discriminator.main.0.weight": torch.zeros(1)}
    return encoder | as_taming(janus.state_dict(), levels=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, chameleon, siglip, vqgan):
    folder = tmp_path_factory.mktemp("published")
    chameleon.save_pretrained(folder / "chameleon")
    siglip.save_pretrained(folder / "siglip")
    save_file({name: tensor.contiguous() for name, tensor in vqgan.items()}, folder / "vqgan.safetensors")
    backend = Tokenizer(models.BPE(vocabulary(), []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.save(str(folder / "chameleon" / "tokenizer.json"))
    return folder


def parts_of(folder, **changed):
    return {
        "chameleon": folder / "chameleon",
        "siglip": folder / "siglip",
        "vqgan": folder / "vqgan.safetensors",
    } | changed


@pytest.fixture(scope="module")
def model(folders):
    return convert(published_config(), **parts_of(folders)).eval()


def copy_of(source, target, **config):
    """A folder with the same weights and config, fields of the config changed."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    fields = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(fields))
    return target


def drop_or_change(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


SEQUENCES = {
    "text": list(range(FIRST_TEXT, FIRST_TEXT + 20)),
    "image": [0, 60, 61, 23, 21, 32, 32, *[row * 4 + n for row in range(1, 5) for n in range(4)], 27, 20, 23],
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_logits_are_those_of_transformers(model, chameleon, kind):
    ids_BT = torch.tensor([SEQUENCES[kind]])
    with torch.no_grad():
        ours, masked = model(ids_BT).logits, chameleon(ids_BT).logits
        unmasked = chameleon.lm_head(chameleon.model(ids_BT).last_hidden_state)
    torch.testing.assert_close(ours, unmasked)
    others = [n for n in range(VOCABULARY) if not 4 <= n < 4 + CODES]
    torch.testing.assert_close(ours[..., others], masked[..., others])
    assert float(ours.std()) > 0.5  # predictions that differ


def test_logits_of_pixels_are_those_of_transformers(model, chameleon, pixels):
    """From pixels to codes to ids to logits: the same codes at the same rows."""
    slots = [24] * 16
    ids_BT = torch.tensor([[0, 60, 21, *slots, 20, 70], [0, 80, 21, *slots, 20, 90]])
    with torch.no_grad():
        ours = model(ids_BT, pixel_values=pixels).logits
        theirs = chameleon.lm_head(chameleon.model(ids_BT, pixel_values=pixels).last_hidden_state)
    torch.testing.assert_close(ours, theirs)


def test_norms_that_hold_for_all_heads_are_repeated(folders, tmp_path, chameleon):
    """As Lumina-mGPT's code stores them: one for each part that the model was trained in."""
    folder = copy_of(folders / "chameleon", tmp_path / "lumina")

    def first_of_each_two(weights):
        for name in weights:
            if ".q_norm." in name or ".k_norm." in name:
                weights[name] = weights[name][::2].contiguous()

    drop_or_change(folder, first_of_each_two)
    model = convert(published_config(), **parts_of(folders, chameleon=folder))
    for mine, theirs in zip(model.model.language_model.layers, chameleon.model.layers, strict=True):
        expected = theirs.self_attn.k_norm.weight[[0, 0, 2, 2]]
        assert torch.equal(mine.self_attn.k_norm.weight, expected)


def test_codes_are_those_of_transformers(model, chameleon, pixels):
    other = torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    vq, codec = chameleon.model.vqmodel, model.model.codec
    for images in (pixels, other):
        with torch.no_grad():
            expected = vq.encode(images, return_dict=True)
            torch.testing.assert_close(
                codec.encode_latents(images), vq.quant_conv(expected.last_hidden_state), atol=1e-5, rtol=1e-5
            )
            codes_BL = codec.encode(images)
        assert torch.equal(codes_BL.flatten(), expected.image_tokens)
        assert len(codes_BL.unique()) > 4


def test_pixels_are_those_of_a_taming_decoder(model, chameleon, janus):
    codes_BL = torch.randint(CODES, (2, 24), generator=torch.Generator().manual_seed(3))
    vq = chameleon.model.vqmodel
    with torch.no_grad():
        quantised_BDhw = vq.quantize.embedding(codes_BL).transpose(1, 2).unflatten(2, (4, 6))
        expected = janus(vq.post_quant_conv(quantised_BDhw))
        decoded = model.model.codec.decode(codes_BL, (4, 6))
    assert decoded.shape == (2, 3, 16, 24) and float(expected.std()) > 0.05
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)


def test_the_codec_of_the_table_takes_every_weight_of_the_published_sizes():
    """By name and shape: transformers' Chameleon has the published sizes by default, of a decoder Janus has."""
    config = VQCodecConfig(**PARADIGMS["unitoken"]["codec_config"])
    with torch.device("meta"):
        encoder, ours = ChameleonVQVAE(ChameleonVQVAEConfig()).state_dict(), VQCodec(config).state_dict()
        decoder = JanusVQVAE(JanusVQVAEConfig()).decoder.state_dict()
    converted = codec_weights(encoder | as_taming(decoder, levels=5), config)
    shapes = {"vq." + name: tensor.shape for name, tensor in converted.items()}
    assert shapes == {name: tensor.shape for name, tensor in ours.items()}


def test_the_tower_sees_as_siglip_does(model, siglip, pixels):
    with torch.no_grad():
        expected = siglip.vision_model(pixel_values=pixels).last_hidden_state
        features = model.model.encoders["features"].features_of(list(pixels))
    assert torch.equal(torch.stack(features), expected)


def test_a_vision_model_saved_alone_will_do(folders, tmp_path, model):
    SiglipVisionModel.from_pretrained(folders / "siglip").save_pretrained(tmp_path / "vision")
    again = convert(published_config(), **parts_of(folders, siglip=tmp_path / "vision"))
    for name, weights in model.model.encoders.state_dict().items():
        assert torch.equal(weights, again.model.encoders.state_dict()[name]), name
    assert bool(again.model.image_head.active_codes.all())


def test_without_the_vqgan_images_are_read_all_the_same(folders, model, pixels):
    reader = convert(published_config(), **parts_of(folders, vqgan=None))
    assert torch.equal(reader.model.codec.encode(pixels), model.model.codec.encode(pixels))


def test_a_checkpoint_is_saved_whole(folders, tmp_path, model, make_image):
    build_checkpoint(published_config(), **parts_of(folders), output=tmp_path)
    again, processor = AutoModelForMultimodalLM.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    for name, weights in model.state_dict().items():
        if "vqmodel" not in name:
            assert torch.equal(weights, again.state_dict()[name]), name
    for name in SPECIAL_TOKENS:
        assert getattr(processor.tokenizer, f"{name}_id") == IDS[f"{name}_id"], name
    content = [{"type": "image", "image": make_image(0, 16, 16)}, {"type": "text", "text": "a"}]
    said = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(said, tokenize=True, return_dict=True, return_tensors="pt")
    ids, line = inputs["input_ids"][0].tolist(), [24] * 4 + [27]
    image = [0, 21, 32, 32, *line * 4, 22, *[25] * 16, 20]
    assert ids[: len(image)] == image
    assert processor.tokenizer.decode(ids[len(image) :]) == "a"
    drawn = again.generate(**inputs, generation_mode="image", seed=0, return_dict_in_generate=True)
    assert drawn.images[0][0].shape == (3, 16, 16)
    codes = [4 + code for code in drawn.image_tokens[0][0].tolist()]
    rows = [token for row in range(4) for token in [*codes[4 * row : 4 * row + 4], 27]]
    assert drawn.sequences[0, len(ids) :].tolist() == [21, 32, 32, *rows, 20]


def test_a_recipe_begins_with_it(folders, tmp_path, model):
    recipe = replace(
        unitoken.stage_1(),
        text_model=str(folders / "chameleon"),
        tower=str(folders / "siglip"),
        codec=str(folders / "vqgan.safetensors"),
        image_size=16,
        parts=TINY_PARTS | IDS,
    )
    record = write_checkpoint(recipe, tmp_path)
    assert record["rows"] == {"text_model": VOCABULARY, "new_tokens": 0, "codes": CODES}
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    for name, weights in model.state_dict().items():
        if "vqmodel" not in name:
            assert torch.equal(weights, again.state_dict()[name]), name
    with pytest.raises(ValueError, match="whose codec is its own VQ-GAN, and facebook/chameleon-7b is no file"):
        build_model(replace(recipe, codec="facebook/chameleon-7b"), tokenizer=None)
    with pytest.raises(ValueError, match="is a Chameleon, which becomes a model with a vision tower"):
        build_model(replace(recipe, tower=None), tokenizer=None)


def test_another_vocabulary_is_refused(folders, tmp_path):
    def refused(message, config=None, **overrides):
        folder = copy_of(folders / "chameleon", tmp_path / str(len(list(tmp_path.iterdir()))), **(config or {}))
        with pytest.raises(ValueError, match=message):
            convert(published_config(**overrides), **parts_of(folders, chameleon=folder))

    refused("vocab_size is 400 in the Chameleon checkpoint, 301 in the config", {"vocab_size": 400})
    swapped = vocabulary() | {"IMGIMGAZ": 5, "IMGIMGBZ": 4}
    refused("code 1 has the id 4 in the Chameleon checkpoint, 5 by the config", {"vocabulary_map": swapped})
    refused("<eoss> has the id 20 .* eoi_token_id is 2 in the config", eoi_token_id=2)
    refused("<s> has the id None .* bos_token_id is 0", {"vocabulary_map": {"<image>": 24}})
    fewer = {name: n for name, n in vocabulary().items() if name != "IMGIMGAZ"}
    refused("names 15 codes, the codec has 16", {"vocabulary_map": fewer})
    refused("rms_norm_eps is 0.001 in the Chameleon checkpoint, 1e-05 in the config", {"rms_norm_eps": 0.001})


def test_weights_that_are_missing_or_do_not_fit_are_named(folders, tmp_path):
    def refused(message, part, change):
        folder = copy_of(folders / part, tmp_path / str(len(list(tmp_path.iterdir()))))
        drop_or_change(folder, change)
        with pytest.raises(ValueError, match=message):
            convert(published_config(), **parts_of(folders, **{part: folder}))

    norm, head, patches = "model.norm.weight", "lm_head.weight", "vision_model.embeddings.patch_embedding.bias"
    refused(r"1 of \d+ weights .* model.language_model.norm.weight for", "chameleon", lambda w: w.pop(norm))
    refused(r"lm_head.weight is \(9, 32\) .* \(301, 32\)", "chameleon", lambda w: w.update({head: w[head][:9].clone()}))
    more = {"model.adapter": torch.zeros(3)}
    refused(r"model.language_model.adapter, \(3,\), is no weight", "chameleon", lambda w: w.update(more))
    refused(r"1 of \d+ weights .*tower.embeddings.patch_embedding.bias for", "siglip", lambda w: w.pop(patches))


def test_a_vqgan_that_does_not_fit_is_named(folders, tmp_path, vqgan):
    def refused(message, weights, chameleon=folders / "chameleon", **overrides):
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "vqgan.safetensors")
        parts = parts_of(folders, chameleon=chameleon, vqgan=tmp_path / "vqgan.safetensors")
        with pytest.raises(ValueError, match=message):
            convert(published_config(**overrides), **parts)

    codebook = "quantize.embedding.weight"
    refused("codebook .* is not the one", vqgan | {codebook: vqgan[codebook] + 1})
    decoder = [name for name in vqgan if name.startswith("decoder.")]
    refused(f"{len(decoder)} of .*decoder.conv_in", {name: vqgan[name] for name in vqgan if name not in decoder})
    fewer = {"model_type": "unified_vq", **CODEC, "norm_num_groups": 16}
    refused("group norms of 32 groups, codec_config .* with 16", vqgan, codec_config=fewer)
    bare = copy_of(folders / "chameleon", tmp_path / "bare")
    drop_or_change(bare, lambda w: [w.pop(name) for name in list(w) if name.startswith("model.vqmodel.")])
    with pytest.raises(ValueError, match="weights are in none of the checkpoints, model.codec.vq.encoder.conv_in"):
        convert(published_config(), **parts_of(folders, chameleon=bare, vqgan=None))
    convert(published_config(), **parts_of(folders, chameleon=bare))


def test_a_siglip_of_another_shape_is_refused(folders):
    wider = {"model_type": "siglip_vision_model", **SIGLIP, "hidden_size": 24, "vision_use_head": False}
    with pytest.raises(ValueError, match="hidden_size is 16 in the SigLIP checkpoint, 24 in the config"):
        convert(published_config(vision_config=wider), **parts_of(folders))
    with pytest.raises(ValueError, match="model_type is 'chameleon' in the SigLIP checkpoint"):
        convert(published_config(), **parts_of(folders, siglip=folders / "chameleon"))


def test_nothing_is_unpickled(folders, tmp_path):
    torch.save({"encoder.conv_in.weight": torch.zeros(1)}, tmp_path / "vqgan.ckpt")
    with pytest.raises(ValueError, match="vqgan.ckpt is no safetensors file .* make safetensors of them first"):
        convert(published_config(), **parts_of(folders, vqgan=tmp_path / "vqgan.ckpt"))
    with pytest.raises(ValueError, match="holds no trained SigLIP"):
        convert(published_config(), **parts_of(folders, siglip=tmp_path))
