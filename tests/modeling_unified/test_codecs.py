"""The vq codec is diffusers' `VQModel`, exactly: codes, pixels, sizes, initialisation."""

import pytest
import torch
from torch import nn

from modeling_unified import UnifiedForConditionalGeneration, VQCodec, VQCodecConfig


@pytest.fixture(params=["group", "spatial"])
def codec(request, tiny_codec):
    """Plain VQGAN and MoVQ, with codes scattered among the latents so that they differ from place to place."""
    torch.manual_seed(0)
    widths = {"block_out_channels": [32, 32]}  # diffusers' spatial norm takes multiples of 32 channels
    codec = VQCodec(VQCodecConfig(**{**tiny_codec.config.to_dict(), **widths, "norm_type": request.param})).eval()
    with torch.no_grad():
        latents_ND = codec.encode_latents(torch.rand(4, 3, 8, 8) * 2 - 1).movedim(1, -1).flatten(0, 2)
        codec.vq.quantize.embedding.weight.copy_(latents_ND[::4])
    return codec


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 8, 12) * 2 - 1


def test_codes_are_those_of_diffusers(codec, pixels):
    codes_BL = codec.encode(pixels)
    _, _, (_, _, expected) = codec.vq.quantize(codec.vq.encode(pixels).latents)
    assert codes_BL.shape == (3, 24) and codes_BL.dtype == torch.int64
    assert torch.equal(codes_BL.flatten(), expected.flatten())
    assert len(codes_BL.unique()) > 4


def test_pixels_are_those_of_diffusers(codec, pixels):
    codes_BL = codec.encode(pixels)
    decoded = codec.decode(codes_BL, (4, 6))
    quantised = codec.vq.quantize.get_codebook_entry(codes_BL.flatten(), (3, 4, 6, 4))
    assert decoded.shape == pixels.shape
    # Memory formats differ, and with them the last bit of a convolution.
    expected = codec.vq.decode(quantised, force_not_quantize=True).sample
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=0)
    # The whole of diffusers' own model, which quantises for itself:
    torch.testing.assert_close(decoded, codec.vq(pixels).sample, atol=1e-5, rtol=0)


def test_tokens_are_in_raster_order(codec, pixels):
    codes_Bhw = codec.encode(pixels).unflatten(1, codec.grid(8, 12))
    top_right_BD = codec.encode_latents(pixels)[:, :, 0, 5]
    nearest = torch.cdist(top_right_BD, codec.vq.quantize.embedding.weight).argmin(-1)
    assert torch.equal(codes_Bhw[:, 0, 5], nearest)


def test_an_image_is_encoded_alike_in_any_batch(codec, pixels):
    assert torch.equal(codec.encode(pixels)[1:2], codec.encode(pixels[1:2]))


def test_a_tile_is_encoded_as_if_it_were_alone(codec, pixels):
    whole = codec.encode_latents(pixels)
    codec.config.encoder_tile_size = 4
    tiled = codec.encode_latents(pixels)
    assert tiled.shape == whole.shape and not torch.allclose(tiled, whole)
    for row, column in [(0, 0), (0, 2), (1, 1)]:
        alone = codec.encode_latents(pixels[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4])
        part = tiled[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(part, alone, atol=1e-5, rtol=0)


def test_tiles_must_fit_the_stride_and_the_image(tiny_codec):
    with pytest.raises(ValueError, match="encoder_tile_size 5 is not a multiple of the codec's stride 2"):
        VQCodecConfig(**{**tiny_codec.config.to_dict(), "encoder_tile_size": 5})
    codec = VQCodec(VQCodecConfig(**{**tiny_codec.config.to_dict(), "encoder_tile_size": 4}))
    assert codec.grid(8, 12) == (4, 6)
    with pytest.raises(ValueError, match="image size 8x10 is not a multiple of the codec's tiles of 4"):
        codec.encode(torch.zeros(1, 3, 8, 10))


@pytest.mark.parametrize("height, width", [(7, 8), (8, 7), (0, 8), (-2, 8)])
def test_sizes_off_the_grid_are_refused(tiny_codec, height, width):
    with pytest.raises(ValueError, match=f"image size {height}x{width} is not a multiple of the codec's stride 2"):
        tiny_codec.grid(height, width)


def test_pixels_and_codes_off_the_grid_are_refused(tiny_codec):
    with pytest.raises(ValueError, match="7x8"):
        tiny_codec.encode(torch.zeros(1, 3, 7, 8))
    with pytest.raises(ValueError, match="15 codes per image do not fill a grid of 4x4"):
        tiny_codec.decode(torch.zeros(1, 15, dtype=torch.long), (4, 4))


def test_a_codec_is_saved_and_loaded_alone(codec, pixels, tmp_path):
    codec.save_pretrained(tmp_path)
    back = VQCodec.from_pretrained(tmp_path)
    assert not back.training
    assert torch.equal(back.encode(pixels), codec.encode(pixels))
    assert torch.equal(back(pixels)[0], codec(pixels)[0])


def test_training_passes_the_quantiser_straight_through(codec, pixels):
    reconstruction, loss, codes_BL = codec(pixels)
    assert torch.equal(codes_BL, codec.encode(pixels)) and loss > 0
    (reconstruction.pow(2).mean() + loss).backward()
    assert all(p.grad is not None and p.grad.any() for p in codec.vq.encoder.parameters())
    plain, no_loss, no_codes = codec(pixels, quantise=False)
    assert torch.equal(plain, codec.decode_latents(codec.encode_latents(pixels)))
    assert no_loss == 0 and no_codes is None


def is_torch_initialised(codec: VQCodec) -> bool:
    """Uniform within 1 / sqrt(fan in), torch's default for convolutions, and not a normal of deviation 0.02."""
    convolutions = [module for module in codec.modules() if isinstance(module, nn.Conv2d)]
    bounds = [module.weight[0].numel() ** -0.5 for module in convolutions]
    weights = [module.weight for module in convolutions]
    codebook = codec.vq.quantize.embedding.weight
    return (
        all(weight.abs().max() <= bound for weight, bound in zip(weights, bounds, strict=True))
        and all(0.4 < weight.std() / bound < 0.75 for weight, bound in zip(weights, bounds, strict=True))
        and codebook.abs().max() <= 1 / len(codebook)
        and codebook.std() > 0.4 / len(codebook)
    )


def test_a_codec_is_initialised_as_torch_does(tiny_codec, tiny_config):
    assert is_torch_initialised(tiny_codec)
    assert is_torch_initialised(UnifiedForConditionalGeneration(tiny_config).model.codec)
    assert is_torch_initialised(UnifiedForConditionalGeneration._from_config(tiny_config).model.codec)


def test_a_missing_key_is_initialised_and_its_loaded_neighbours_stay(tiny_model, tmp_path):
    state = tiny_model.state_dict()
    missing = "model.codec.vq.encoder.conv_in.weight"
    neighbour = "model.codec.vq.encoder.conv_in.bias"
    state[neighbour].fill_(7.0)
    tiny_model.save_pretrained(tmp_path, state_dict={k: v for k, v in state.items() if k != missing})
    back, report = UnifiedForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {missing}
    loaded = back.state_dict()
    assert is_torch_initialised(back.model.codec)
    assert all(torch.equal(loaded[key], state[key]) for key in state if key != missing)
