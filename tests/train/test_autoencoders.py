"""Codecs of others become ours: with tiny random weights, codes, latents and pixels are the same.

LlamaGen's VQ is written here once more from its published layout; a VQ-GAN with attention beside the middle's, as
taming-transformers has it, is transformers' Janus.

B batch, C channels, H, W height and width, L tokens, D numbers in a codeword, h, w rows and columns of the grid
"""

import json
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import JanusVQVAE, JanusVQVAEConfig

from modeling_unified.codecs_unified import VQCodec
from modeling_unified.configuration_unified import VQCodecConfig
from train.autoencoders import from_llamagen, load_codec, sizes

SIZES = {
    "block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"], "layers_per_block": 1, "latent_channels": 4,
    "norm_num_groups": 4,
}  # fmt: skip
CODES = 16


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def shaken(module: nn.Module) -> nn.Module:
    """Norms and biases that differ from none at all."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def spread_codes(codebook_KD: torch.Tensor, latents_BDhw: torch.Tensor) -> None:
    """Codewords where the latents are, so that many are used."""
    latents_ND = latents_BDhw.movedim(1, -1).flatten(0, 2)
    codebook_KD.copy_(latents_ND[:: len(latents_ND) // CODES][:CODES])


def save_diffusers(model, folder) -> str:
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("norm_type", ["group", "spatial"])
def test_a_vqmodel_gives_the_same_codes_and_pixels(tmp_path, pixels, norm_type):
    wide = {**SIZES, "block_out_channels": [32, 64]}  # spatial norms are of 32 groups
    width = 6 if norm_type == "group" else wide["latent_channels"]  # spatial norms take latents for codes
    source = shaken(VQModel(**wide, vq_embed_dim=width, num_vq_embeddings=CODES, norm_type=norm_type))
    spread_codes(source.quantize.embedding.weight, source.encode(pixels).latents)
    codec = load_codec(save_diffusers(source, tmp_path))
    latents_BDhw = source.encode(pixels).latents
    quantised_BDhw, _, (_, _, expected) = source.quantize(latents_BDhw)
    codes_BL = codec.encode(pixels)
    assert torch.equal(codes_BL.flatten(), expected) and len(expected.unique()) > 4
    pixels_BCHW = source.decode(quantised_BDhw, force_not_quantize=True).sample
    torch.testing.assert_close(codec.decode(codes_BL, (8, 8)), pixels_BCHW, atol=1e-5, rtol=1e-5)
    assert (codec.config.stride, codec.config.num_codes, codec.config.norm_type) == (2, CODES, norm_type)


def test_an_autoencoder_kl_gives_the_same_latents_and_pixels(tmp_path, pixels):
    source = shaken(AutoencoderKL(**SIZES, scaling_factor=0.3, shift_factor=0.1))
    folder = save_diffusers(source, tmp_path)
    codec = load_codec(folder)
    mean_BZyx = source.encode(pixels).latent_dist.mean
    tokens_BLD = codec.encode(pixels)
    assert torch.equal(codec.into_tokens(mean_BZyx), tokens_BLD) and tokens_BLD.shape == (2, 16, 16)
    torch.testing.assert_close(codec.decode(tokens_BLD, (4, 4)), source.decode(mean_BZyx).sample, atol=1e-5, rtol=0)
    assert (codec.config.scaling_factor, codec.config.shift_factor) == (0.3, 0.1)
    single = load_codec(folder, {"group_size": 1, "scaling_factor": 0.6})
    torch.testing.assert_close(single.encode(pixels)[0, 0], 2 * codec.encode(pixels)[0, 0, ::4])


def test_older_names_of_attention_are_known(tmp_path, pixels):
    """The published autoencoders of Stable Diffusion have them."""
    source = shaken(AutoencoderKL(**SIZES))
    folder = save_diffusers(source, tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    older = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = {}
    for name, tensor in load_file(file).items():
        for now, then in older.items():
            name = name.replace(now, then)
        weights[name] = tensor
    save_file(weights, file, {"format": "pt"})
    mean_BZyx = source.encode(pixels).latent_dist.mean
    codec = load_codec(folder)
    assert torch.equal(codec.encode(pixels), codec.into_tokens(mean_BZyx))


def test_ours_come_back(tmp_path, tiny_codec, pixels):
    tiny_codec.save_pretrained(tmp_path)
    assert torch.equal(load_codec(str(tmp_path)).encode(pixels), tiny_codec.encode(pixels))
    tiles = load_codec(str(tmp_path), {"encoder_tile_size": 4})
    assert tiles.config.encoder_tile_size == 4
    assert torch.equal(tiles.encode(pixels[..., :4, :4]), tiny_codec.encode(pixels[..., :4, :4]))


class Attention(nn.Module):
    """LlamaGen, `AttnBlock`."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x_BChw):
        q, k, v = (part(self.norm(x_BChw)).flatten(2) for part in (self.q, self.k, self.v))
        seen_BLL = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, -1)
        return x_BChw + self.proj_out((v @ seen_BLL.transpose(1, 2)).view_as(x_BChw))


class Residual(nn.Module):
    """LlamaGen, `ResnetBlock`."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, width, eps=1e-6), nn.GroupNorm(32, out, eps=1e-6)
        self.conv1, self.conv2 = nn.Conv2d(width, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x_BChw):
        inner = self.conv1(F.silu(self.norm1(x_BChw)))
        return self.nin_shortcut(x_BChw) + self.conv2(F.silu(self.norm2(inner)))


class Level(nn.Module):
    """An entry of LlamaGen's `conv_blocks`: `res`, `attn` where it is the deepest, then another size."""

    def __init__(self, width: int, out: int, count: int, deepest: bool, resize: str | None):
        super().__init__()
        self.res = nn.ModuleList(Residual(width if n == 0 else out, out) for n in range(count))
        self.attn = nn.ModuleList(Attention(out) for _ in range(count if deepest else 0))
        if resize:
            stride, padding = (2, 0) if resize == "downsample" else (1, 1)
            setattr(self, resize, nn.ModuleDict({"conv": nn.Conv2d(out, out, 3, stride, padding)}))

    def forward(self, x_BChw):
        for number, residual in enumerate(self.res):
            x_BChw = residual(x_BChw)
            if len(self.attn):
                x_BChw = self.attn[number](x_BChw)
        if hasattr(self, "downsample"):
            x_BChw = self.downsample["conv"](F.pad(x_BChw, (0, 1, 0, 1)))
        if hasattr(self, "upsample"):
            x_BChw = self.upsample["conv"](F.interpolate(x_BChw, scale_factor=2.0, mode="nearest"))
        return x_BChw


class Half(nn.Module):
    """LlamaGen's `Encoder` or `Decoder`: the middle stands after the levels or before them."""

    def __init__(self, levels: list[Level], middle: int, begin: tuple[int, int], end: tuple[int, int], first: bool):
        super().__init__()
        self.first = first
        self.conv_in, self.conv_out = nn.Conv2d(*begin, 3, padding=1), nn.Conv2d(*end, 3, padding=1)
        self.conv_blocks = nn.ModuleList(levels)
        self.mid = nn.ModuleList([Residual(middle, middle), Attention(middle), Residual(middle, middle)])
        self.norm_out = nn.GroupNorm(32, end[0], eps=1e-6)

    def forward(self, x_BChw):
        x_BChw = self.conv_in(x_BChw)
        parts = [*self.mid, *self.conv_blocks] if self.first else [*self.conv_blocks, *self.mid]
        for part in parts:
            x_BChw = part(x_BChw)
        return self.conv_out(F.silu(self.norm_out(x_BChw)))


class LlamaGen(nn.Module):
    """LlamaGen's `VQModel` (tokenizer/tokenizer_image/vq_model.py), codes on the unit sphere."""

    def __init__(self, widths: list[int], count: int, numbers: int, latent: int):
        super().__init__()
        last, middle = len(widths) - 1, widths[-1]
        down = [
            Level(*pair, count, n == last, "downsample" if n < last else None)
            for n, pair in enumerate(pairwise([widths[0], *widths]))
        ]
        up = [
            Level(*pair, count + 1, n == 0, "upsample" if n < last else None)
            for n, pair in enumerate(pairwise([middle, *reversed(widths)]))
        ]
        self.encoder = Half(down, middle, (3, widths[0]), (middle, latent), first=False)
        self.decoder = Half(up, middle, (latent, middle), (widths[0], 3), first=True)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(CODES, numbers)})
        self.quantize.register_buffer("codebook_used", torch.zeros(9))
        self.quant_conv, self.post_quant_conv = nn.Conv2d(latent, numbers, 1), nn.Conv2d(numbers, latent, 1)

    def encode(self, pixels_BCHW):
        latents_BLD = self.quant_conv(self.encoder(pixels_BCHW)).flatten(2).transpose(1, 2)
        codebook_KD = F.normalize(self.quantize["embedding"].weight, dim=-1)
        return torch.cdist(F.normalize(latents_BLD, dim=-1), codebook_KD[None]).argmin(-1)

    def decode(self, codes_BL, grid):
        codebook_KD = F.normalize(self.quantize["embedding"].weight, dim=-1)
        return self.decoder(self.post_quant_conv(codebook_KD[codes_BL].transpose(1, 2).unflatten(2, grid)))


def test_llamagens_codes_and_pixels_are_the_same(tmp_path, pixels):
    torch.manual_seed(3)
    source = shaken(LlamaGen([32, 64], count=1, numbers=8, latent=12))
    codebook_KD = source.quantize["embedding"].weight
    spread_codes(codebook_KD, source.quant_conv(source.encoder(pixels)))
    codebook_KD.mul_(torch.rand(CODES, 1) * 3 + 0.5)  # of any length: theirs are stored so
    save_file(source.state_dict(), tmp_path / "vq.safetensors")
    codec = load_codec(str(tmp_path / "vq.safetensors"))
    codes_BL = codec.encode(pixels)
    assert torch.equal(codes_BL, source.encode(pixels)) and len(codes_BL.unique()) > 4
    torch.testing.assert_close(codec.decode(codes_BL, (8, 8)), source.decode(codes_BL, (8, 8)), atol=1e-5, rtol=1e-5)
    lengths_K = codec.vq.quantize.embedding.weight.norm(dim=-1)
    torch.testing.assert_close(lengths_K, torch.ones(CODES))
    assert (codec.config.stride, codec.config.vq_embed_dim, codec.config.latent_channels) == (2, 8, 12)


@pytest.fixture(scope="module")
def janus():
    torch.manual_seed(2)
    sizes = {"embed_dim": 8, "num_embeddings": CODES, "latent_channels": 8, "base_channels": 32, "num_patches": 8}
    return shaken(JanusVQVAE(JanusVQVAEConfig(**sizes, channel_multiplier=[1, 2], num_res_blocks=1)))


def as_taming(weights: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """Janus counts the levels of its decoder from the beginning, taming-transformers from the end."""
    for level in range(levels):
        weights = {
            name.replace(f"decoder.up.{level}.", f"decoder.level.{levels - 1 - level}."): tensor
            for name, tensor in weights.items()
        }
    return {name.replace("decoder.level.", "decoder.up."): tensor for name, tensor in weights.items()}


def test_attention_in_a_taming_vqgan_is_found(tmp_path, pixels, janus):
    weights = as_taming(janus.state_dict(), levels=2) | {"loss.discriminator.weight": torch.zeros(1)}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "vq.safetensors")
    codec = load_codec(str(tmp_path / "vq.safetensors"))
    expected = janus.quant_conv(janus.encoder(pixels))
    torch.testing.assert_close(codec.encode_latents(pixels), expected, atol=1e-5, rtol=1e-5)
    codes_BL = codec.encode(pixels)
    quantised_BDhw = janus.quantize.embedding(codes_BL).transpose(1, 2).unflatten(2, (8, 8))
    pixels_BCHW = janus.decoder(janus.post_quant_conv(quantised_BDhw))
    torch.testing.assert_close(codec.decode(codes_BL, (8, 8)), pixels_BCHW, atol=1e-5, rtol=1e-5)
    assert codec.config.down_block_types == ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
    assert codec.config.up_block_types == ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]


def test_a_kl_autoencoder_of_latent_diffusion_needs_its_scale(tmp_path, pixels, janus):
    """MAR's KL-16 has this layout: no codebook, and the encoder makes mean and variance."""
    source = deepcopy(janus)
    source.encoder.conv_out = nn.Conv2d(64, 16, 3, padding=1)
    source.quant_conv, source.post_quant_conv = nn.Conv2d(16, 16, 1), nn.Conv2d(8, 8, 1)
    weights = as_taming(source.state_dict(), levels=2)
    del weights["quantize.embedding.weight"]
    file = tmp_path / "kl.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)
    with pytest.raises(ValueError, match=r"choose its scaling_factor \(MAR's KL-16: 0.2325\)"):
        load_codec(str(file))
    codec = load_codec(str(file), {"scaling_factor": 0.2325, "group_size": 1})
    mean_BZyx = source.quant_conv(source.encoder(pixels))[:, :8]
    tokens_BLD = codec.encode(pixels)
    torch.testing.assert_close(tokens_BLD, 0.2325 * mean_BZyx.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    expected = source.decoder(source.post_quant_conv(mean_BZyx))
    torch.testing.assert_close(codec.decode(tokens_BLD, (8, 8)), expected, atol=1e-5, rtol=1e-5)


def test_what_ours_cannot_be_is_refused(tmp_path, tiny_codec, tiny_model):
    def refused(message, name, chosen=None):
        with pytest.raises(ValueError, match=message):
            load_codec(str(name), chosen)

    tiny_codec.save_pretrained(tmp_path / "ours")
    tiny_model.save_pretrained(tmp_path / "model")
    AutoencoderTiny().save_pretrained(tmp_path / "tiny")
    AutoencoderKL(**SIZES, use_quant_conv=False).save_pretrained(tmp_path / "flux")
    refused("holds a AutoencoderTiny: of diffusers only VQModel, AutoencoderKL", tmp_path / "tiny")
    refused("use_quant_conv is False in this AutoencoderKL and always True here", tmp_path / "flux")
    refused("holds a 'unified', which is no codec", tmp_path / "model")
    refused("a 'unified_vq' has no group_size", tmp_path / "ours", {"group_size": 1})
    refused("latent_channels of the codec's config: its weights decide", tmp_path / "ours", {"latent_channels": 1})
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    refused("the layout neither of taming-transformers .* its first weight is a.weight", tmp_path / "other.safetensors")
    refused("/nowhere holds no trained codec", "/nowhere")


def test_nothing_is_unpickled(tmp_path):
    torch.save({"encoder.conv_in.weight": torch.zeros(1)}, tmp_path / "vq.ckpt")
    with pytest.raises(ValueError, match="vq.ckpt is no safetensors file .* torch.load.file, weights_only=True"):
        load_codec(str(tmp_path / "vq.ckpt"))
    source = AutoencoderKL(**SIZES)
    source.save_pretrained(tmp_path / "kl", safe_serialization=False)
    with pytest.raises(ValueError, match="no folder with model.*pickled weights are not opened"):
        load_codec(str(tmp_path / "kl"))


def test_weights_that_are_missing_or_more_are_named(tmp_path):
    folder = tmp_path / "vq"
    VQModel(**SIZES, vq_embed_dim=6, num_vq_embeddings=CODES).save_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({**weights, "adapter": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="1 weights in .* are not those of its config.json, adapter for one"):
        load_codec(str(folder))
    weights.pop("quant_conv.bias")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="not those of its config.json, quant_conv.bias for one"):
        load_codec(str(folder))
    fields = json.loads((folder / "config.json").read_text()) | {"brightness": 3}
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="brightness is 3 in this VQModel and not known to this diffusers"):
        load_codec(str(folder))


def test_every_weight_of_the_published_llamagen_has_a_place():
    """VQ-16, by its names and shapes alone."""
    widths = [128, 128, 256, 256, 512]
    with torch.device("meta"):
        weights = from_llamagen(LlamaGen(widths, count=2, numbers=8, latent=256).state_dict())
        config = VQCodecConfig(**sizes(weights))
        wanted = VQCodec(config).state_dict()
    shapes = {f"vq.{name}": tensor.shape for name, tensor in weights.items()}
    assert shapes == {name: tensor.shape for name, tensor in wanted.items()}
    assert (config.block_out_channels, config.layers_per_block, config.stride) == (widths, 2, 16)
