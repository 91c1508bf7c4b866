"""The codecs are diffusers' `VQModel` and `AutoencoderKL`, exactly: tokens, pixels, sizes, initialisation."""

import pytest
import torch
from torch import nn

from modeling_unified import UnifiedForConditionalGeneration, VQCodec, VQCodecConfig
from modeling_unified.codecs_unified import Codec, KLCodec
from modeling_unified.configuration_unified import KLCodecConfig, UnifiedConfig

TINY_KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16], "norm_num_groups": 4, "latent_channels": 3, "scaling_factor": 0.4,
    "shift_factor": 0.3, "mid_block_add_attention": False,
}  # fmt: skip


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


def has_torch_convolutions(codec: Codec) -> bool:
    """Uniform within 1 / sqrt(fan in), torch's default for convolutions, and not a normal of deviation 0.02."""
    convolutions = [module for module in codec.modules() if isinstance(module, nn.Conv2d)]
    bounds = [module.weight[0].numel() ** -0.5 for module in convolutions]
    weights = [module.weight for module in convolutions]
    return all(
        weight.abs().max() <= bound and 0.4 < weight.std() / bound < 0.75
        for weight, bound in zip(weights, bounds, strict=True)
    )


def is_torch_initialised(codec: VQCodec) -> bool:
    """And the codebook uniform within 1 / its size."""
    codebook = codec.vq.quantize.embedding.weight
    within = codebook.abs().max() <= 1 / len(codebook) and codebook.std() > 0.4 / len(codebook)
    return has_torch_convolutions(codec) and within


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


@pytest.fixture
def make_kl():
    def make(**fields) -> KLCodec:
        torch.manual_seed(0)
        return KLCodec(KLCodecConfig(**TINY_KL | fields)).eval()

    return make


@pytest.fixture
def kl_codec(make_kl):
    return make_kl()


@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_token_is_a_square_of_latents_scaled(make_kl, group):
    codec, pixels = make_kl(group_size=group), torch.rand(2, 3, 16, 24) * 2 - 1
    rows, columns = codec.grid(16, 24)
    assert (rows, columns) == (8 // group, 12 // group)
    tokens_BLD = codec.encode(pixels)
    assert tokens_BLD.shape == (2, rows * columns, 3 * group**2) and tokens_BLD.dtype == torch.float32
    latents = (codec.kl.encode(pixels).latent_dist.mean - 0.3) * 0.4
    for row, column in [(0, 0), (0, columns - 1), (rows - 1, 0), (1, 1)]:
        square = latents[:, :, group * row : group * (row + 1), group * column : group * (column + 1)]
        # by channel, then row, then column within the square
        torch.testing.assert_close(tokens_BLD[:, row * columns + column], square.flatten(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_round_trip_is_that_of_diffusers(make_kl, group):
    codec, pixels = make_kl(group_size=group), torch.rand(2, 3, 16, 24) * 2 - 1
    decoded = codec.decode(codec.encode(pixels), codec.grid(16, 24))
    assert decoded.shape == pixels.shape
    torch.testing.assert_close(decoded, codec.kl(pixels).sample, atol=1e-5, rtol=0)


def test_tokens_of_latents_are_in_raster_order(kl_codec):
    latents = torch.randn(1, 3, 4, 6)  # a grid of 2x3
    changed = latents.clone()
    changed[:, 1, 2, 5] += 1  # channel 1, in the square of row 1 and column 2
    moved_LD = (kl_codec.into_tokens(changed) != kl_codec.into_tokens(latents))[0]
    assert moved_LD.nonzero().tolist() == [[5, 1 * 4 + 0 * 2 + 1]]
    back = kl_codec.out_of_tokens(kl_codec.into_tokens(changed), (2, 3))
    torch.testing.assert_close(back, changed, atol=1e-6, rtol=0)


def test_tokens_are_means_and_in_training_samples_where_the_config_says(kl_codec, make_kl, pixels):
    posterior = kl_codec.kl.encode(pixels).latent_dist
    mean = kl_codec.into_tokens(posterior.mean)
    assert torch.equal(kl_codec.encode(pixels), mean) and torch.equal(kl_codec.train().encode(pixels), mean)
    sampling = make_kl(sample_latents=True)
    assert torch.equal(sampling.encode(pixels), mean)
    torch.manual_seed(5)
    sample = kl_codec.into_tokens(posterior.sample())
    torch.manual_seed(5)
    assert torch.equal(sampling.train().encode(pixels), sample) and not torch.allclose(sample, mean)


def test_the_kl_loss_is_the_mean_divergence_from_the_standard_normal(kl_codec, pixels):
    torch.manual_seed(5)
    reconstruction, loss, tokens_BLD = kl_codec(pixels)
    posterior = kl_codec.kl.encode(pixels).latent_dist
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(posterior.mean, posterior.std), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(loss, expected)
    torch.manual_seed(5)
    sample = posterior.sample()
    assert torch.equal(tokens_BLD, kl_codec.into_tokens(sample))
    torch.testing.assert_close(reconstruction, kl_codec.kl.decode(sample).sample, atol=1e-5, rtol=0)


def test_gradients_pass_the_sample_of_the_posterior(kl_codec, pixels):
    kl_codec(pixels)[0].pow(2).mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in kl_codec.parameters())
    log_variance = kl_codec.kl.quant_conv.weight.grad[3:]  # reaches the pixels through the sample's noise alone
    assert log_variance.abs().sum(1).all()


def test_a_kl_tile_is_encoded_as_if_it_were_alone(make_kl):
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    whole_BhwD, codec = make_kl().encode(pixels).unflatten(1, (4, 6)), make_kl(encoder_tile_size=8)
    tokens_BhwD = codec.encode(pixels).unflatten(1, codec.grid(16, 24))
    assert tokens_BhwD.shape == whole_BhwD.shape and not torch.allclose(tokens_BhwD, whole_BhwD)
    for row, column in [(0, 0), (0, 2), (1, 1)]:
        alone_BLD = codec.encode(pixels[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8])
        part_BhwD = tokens_BhwD[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(part_BhwD.flatten(1, 2), alone_BLD, atol=1e-5, rtol=0)


def test_sizes_and_tokens_off_the_kl_grid_are_refused(make_kl):
    codec = make_kl()
    with pytest.raises(ValueError, match="image size 8x10 is not a multiple of the codec's stride 4"):
        codec.encode(torch.zeros(1, 3, 8, 10))  # the latents would fit, their squares do not
    with pytest.raises(ValueError, match="image size 8x12 is not a multiple of the codec's tiles of 8"):
        make_kl(encoder_tile_size=8).encode(torch.zeros(1, 3, 8, 12))
    with pytest.raises(ValueError, match="encoder_tile_size 6 is not a multiple of the codec's stride 4"):
        make_kl(encoder_tile_size=6)
    for shape in [(1, 5, 12), (1, 6, 11), (1, 6)]:
        with pytest.raises(ValueError, match=rf"tokens \[{str(list(shape))[1:-1]}\] .* 2x3: pass \[images, 6, 12\]"):
            codec.decode(torch.zeros(shape), (2, 3))


def test_a_kl_codec_is_saved_and_loaded_alone(kl_codec, pixels, tmp_path):
    kl_codec.save_pretrained(tmp_path)
    back = KLCodec.from_pretrained(tmp_path)
    assert not back.training
    assert (back.config.scaling_factor, back.config.shift_factor, back.config.group_size) == (0.4, 0.3, 2)
    assert torch.equal(back.encode(pixels), kl_codec.encode(pixels))


def test_a_kl_codec_is_initialised_as_torch_does(make_kl):
    assert has_torch_convolutions(make_kl(latent_channels=8))


def test_kl_tokens_are_float32_whatever_the_weights_are(kl_codec, pixels):
    tokens_BLD = kl_codec.encode(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert kl_codec.encode(pixels).dtype == torch.float32 and kl_codec(pixels)[1].dtype == torch.float32
    half = kl_codec.bfloat16()
    torch.testing.assert_close(half.encode(pixels.bfloat16()), tokens_BLD, atol=0.05, rtol=0)
    assert half.decode(tokens_BLD, (2, 3)).dtype == torch.bfloat16


def test_the_published_kl_codec_is_that_of_stable_diffusion():
    with torch.device("meta"):
        codec = KLCodec(UnifiedConfig.for_paradigm("unifluid").codec_config)
        assert codec.encode(torch.empty(1, 3, 256, 256)).shape == (1, 256, 16)
    assert sum(parameter.numel() for parameter in codec.parameters()) == 83_653_863  # stabilityai/sd-vae-ft-mse
