"""How pixels become image tokens and back. A codec is frozen while the language model trains.

Contract: `encode(pixels_BCHW) -> tokens`, `decode(tokens, grid) -> pixels_BCHW`, `grid(height, width)`. Pixels lie in
[-1, 1]; tokens are in raster order: codes int64 [B, L], or vectors float32 [B, L, D].

B batch, C channels, H height, W width (pixels), h, w rows and columns of the grid, L = h * w tokens, K codes, D numbers
in a code's entry or in a token, Z channels of latents, y, x rows and columns of latents, P = 2 * Z parameters of the
posterior, N tiles or patches, S side of a tile or patch in pixels, s the same in latents.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_unified import AutoencoderCodecConfig, CodecConfig, KLCodecConfig, PatchCodecConfig, VQCodecConfig

try:
    from diffusers import AutoencoderKL, VQModel
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
except ImportError:
    AutoencoderKL = DiagonalGaussianDistribution = VQModel = None


# What a search for codewords holds at once: at 3,072 numbers a patch 150 MB of scores and codewords.
PATCHES_AT_ONCE, CODEWORDS_AT_ONCE = 1024, 8192


class Codec(PreTrainedModel):
    """A model of its own, so that it is trained, saved and loaded alone before it joins a language model."""

    config_class = CodecConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # It has no attention of transformers' kind: whatever the language model uses is no concern of the codec.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image of `height` x `width` pixels."""
        stride = self.config.stride
        if height % stride or width % stride or height <= 0 or width <= 0:
            raise ValueError(f"image size {height}x{width} is not a multiple of the codec's stride {stride}: resize it")
        return height // stride, width // stride


class AutoencoderCodec(Codec):
    """What the codecs over a convolutional autoencoder of diffusers share: initialisation and tiles."""

    config_class = AutoencoderCodecConfig

    def __init__(self, config: AutoencoderCodecConfig):
        super().__init__(config)
        if AutoencoderKL is None:
            raise ImportError(f"the codec {config.model_type} is built on diffusers: pip install diffusers")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # torch's own initialisation: the 0.02 normal of transformers starves a convolutional autoencoder.
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        tile = self.config.encoder_tile_size
        if tile and (height % tile or width % tile):
            raise ValueError(f"image size {height}x{width} is not a multiple of the codec's tiles of {tile}: resize it")
        return super().grid(height, width)

    def encode_tiles(self, encode: Callable[[torch.Tensor], torch.Tensor], pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """What `encode` makes of the images, [B, Z, y, x]: of each whole, or by the config of each tile by itself."""
        height, width = pixels_BCHW.shape[-2:]
        self.grid(height, width)  # refuses sizes off the grid
        pixels_BCHW, side = pixels_BCHW.to(self.dtype), self.config.encoder_tile_size
        if not side:
            return encode(pixels_BCHW)
        return out_of_tiles(encode(into_tiles(pixels_BCHW, side)), (height // side, width // side))


class VQCodec(AutoencoderCodec):
    """Vector-quantised autoencoder over diffusers' `VQModel`: plain VQGAN, or MoVQ with `norm_type="spatial"`."""

    config_class = VQCodecConfig
    _no_split_modules = ["VQModel"]

    def __init__(self, config: VQCodecConfig):
        super().__init__(config)
        self.vq = VQModel(
            **shared_arguments(config),
            vq_embed_dim=config.vq_embed_dim,
            num_vq_embeddings=config.num_vq_embeddings,
            norm_type=config.norm_type,
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -1 / module.num_embeddings, 1 / module.num_embeddings)
        else:
            super()._init_weights(module)

    def encode_latents(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Latents [B, D, h, w] before quantisation."""
        return self.encode_tiles(lambda pixels: self.vq.encode(pixels).latents, pixels_BCHW)

    def encode(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Codes int64 [B, L]: the nearest codebook entry of each latent."""
        latents_BDhw = self.encode_latents(pixels_BCHW)
        latents_BLD = latents_BDhw.flatten(2).transpose(1, 2).float()  # cdist takes no half precision
        codebook_KD = self.vq.quantize.embedding.weight.float()
        # One image at a time: the distances of a whole batch to 16,384 codes need not stand in memory together.
        return torch.stack([torch.cdist(latents_LD, codebook_KD).argmin(-1) for latents_LD in latents_BLD])

    def decode(self, codes_BL: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Pixels [B, C, H, W] of codes laid out on `grid` = (rows, columns); not clipped."""
        if codes_BL.shape[1] != grid[0] * grid[1]:
            raise ValueError(f"{codes_BL.shape[1]} codes per image do not fill a grid of {grid[0]}x{grid[1]}")
        quantized_BLD = self.vq.quantize.embedding(codes_BL)
        return self.decode_latents(quantized_BLD.transpose(1, 2).unflatten(2, grid))

    def decode_latents(self, latents_BDhw: torch.Tensor) -> torch.Tensor:
        """Pixels [B, C, H, W] of latents, quantised or not."""
        return self.vq.decode(latents_BDhw, force_not_quantize=True).sample

    def forward(
        self, pixel_values: torch.Tensor, quantise: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """For training: reconstruction [B, C, H, W], quantisation loss (scalar), codes [B, L].

        Gradients pass the quantiser straight through (VQ-VAE, section 3.2). With `quantise=False` it is a plain
        autoencoder: no loss of the quantiser, no codes.
        """
        latents_BDhw = self.encode_latents(pixel_values)
        if not quantise:
            return self.decode_latents(latents_BDhw), latents_BDhw.new_zeros(()), None
        quantised_BDhw, loss, (_, _, codes) = self.vq.quantize(latents_BDhw)
        return self.decode_latents(quantised_BDhw), loss, codes.view(len(pixel_values), -1)


class KLCodec(AutoencoderCodec):
    """Autoencoder with a Gaussian posterior over diffusers' `AutoencoderKL` (LDM, section 3.1). Tokens are vectors.

    A token is a square of `group_size` x `group_size` latents, shifted and scaled to unit variance; its D numbers are
    ordered by channel, then row, then column within the square (as MAR's `patchify` does).
    """

    config_class = KLCodecConfig
    _no_split_modules = ["AutoencoderKL"]

    def __init__(self, config: KLCodecConfig):
        super().__init__(config)
        self.kl = AutoencoderKL(**shared_arguments(config))
        self.post_init()

    def posterior(self, pixels_BCHW: torch.Tensor) -> DiagonalGaussianDistribution:
        """Distribution of the latents [B, Z, y, x], neither shifted nor scaled, in float32 whatever the weights are."""
        parameters_BPyx = self.encode_tiles(lambda pixels: self.kl.encode(pixels).latent_dist.parameters, pixels_BCHW)
        return DiagonalGaussianDistribution(parameters_BPyx.float())

    def encode(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Tokens float32 [B, L, D]: the posterior's mean.

        With `config.sample_latents`, and in training mode only, a sample instead, by torch's global generator: a
        language model then trains on samples and is evaluated on means, and nobody has to say which.
        """
        posterior = self.posterior(pixels_BCHW)
        sampled = self.training and self.config.sample_latents
        return self.into_tokens(posterior.sample() if sampled else posterior.mean)

    def decode(self, tokens_BLD: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Pixels [B, C, H, W] of tokens laid out on `grid` = (rows, columns); not clipped."""
        expected = (grid[0] * grid[1], self.config.token_size)
        if tuple(tokens_BLD.shape[1:]) != expected:
            raise ValueError(
                f"tokens {list(tokens_BLD.shape)} do not fill a grid of {grid[0]}x{grid[1]}: pass "
                f"[images, {expected[0]}, {expected[1]}], as `encode` makes them"
            )
        return self.decode_latents(self.out_of_tokens(tokens_BLD, grid))

    def decode_latents(self, latents_BZyx: torch.Tensor) -> torch.Tensor:
        """Pixels [B, C, H, W] of latents that are neither shifted nor scaled."""
        return self.kl.decode(latents_BZyx.to(self.dtype)).sample

    def into_tokens(self, latents_BZyx: torch.Tensor) -> torch.Tensor:
        """Tokens [B, L, D] of latents as the posterior gives them."""
        scaled_BZyx = (latents_BZyx - self.config.shift_factor) * self.config.scaling_factor
        return F.pixel_unshuffle(scaled_BZyx, self.config.group_size).flatten(2).transpose(1, 2)

    def out_of_tokens(self, tokens_BLD: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """The inverse: latents float32 [B, Z, y, x] of tokens on `grid` = (rows, columns)."""
        grouped_BDhw = tokens_BLD.float().transpose(1, 2).unflatten(2, grid)
        scaled_BZyx = F.pixel_shuffle(grouped_BDhw, self.config.group_size)
        return scaled_BZyx / self.config.scaling_factor + self.config.shift_factor

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For training: reconstruction [B, C, H, W] of a sample, KL loss (scalar), tokens [B, L, D] of that sample.

        The loss is the divergence of the posterior from the standard normal in nats, the mean over all latents of the
        batch, so that its weight does not depend on the image size. Gradients pass the sample (VAE, section 2.4).
        """
        posterior = self.posterior(pixel_values)
        latents_BZyx = posterior.sample()
        loss = posterior.kl().sum() / latents_BZyx.numel()
        return self.decode_latents(latents_BZyx), loss, self.into_tokens(latents_BZyx)


class PatchCodec(Codec):
    """A codebook of raw pixel patches (UVU): a token is the nearest patch's number, decoding is a lookup.

    Nothing is learned here: `train.codebook` makes the codebook. It is stored as bytes, [K, C, S, S] in 0..255.
    """

    config_class = PatchCodecConfig

    def __init__(self, config: PatchCodecConfig):
        super().__init__(config)
        side = config.patch_size
        codebook = torch.zeros(config.num_codewords, config.in_channels, side, side, dtype=torch.uint8)
        self.register_buffer("codebook", codebook)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init.copy_(self.codebook, torch.randint_like(self.codebook, 256))

    @property
    def device(self) -> torch.device:  # transformers asks the first parameter, and there is none
        return self.codebook.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def encode(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Codes int64 [B, L]: the codeword at the least squared distance from each patch, in float32."""
        rows, columns = self.grid(*pixels_BCHW.shape[-2:])
        patches_NCSS = into_tiles(pixels_BCHW.to(self.device, torch.float32), self.config.patch_size)
        with torch.autocast(self.device.type, enabled=False):  # half precision would confuse like codewords
            codes = [self.nearest(part_ND) for part_ND in patches_NCSS.flatten(1).split(PATCHES_AT_ONCE)]
        return torch.cat(codes).view(-1, rows * columns)

    def nearest(self, patches_ND: torch.Tensor) -> torch.Tensor:
        """Codes int64 [N] of patches in [-1, 1].

        By the greatest p . c - |c|^2 / 2, block after block of the codebook: neither all distances nor the codebook in
        float32 ever stand in memory.
        """
        best_N = patches_ND.new_full((len(patches_ND),), -torch.inf)
        codes_N = torch.zeros_like(best_N, dtype=torch.long)
        for start in range(0, len(self.codebook), CODEWORDS_AT_ONCE):
            block_KD = to_pixels(self.codebook[start : start + CODEWORDS_AT_ONCE]).flatten(1)
            scores_NK = torch.addmm(-block_KD.square().sum(1) / 2, patches_ND, block_KD.T)
            score_N, code_N = scores_NK.max(1)
            better_N = score_N > best_N  # of equals the first
            codes_N, best_N = torch.where(better_N, code_N + start, codes_N), torch.where(better_N, score_N, best_N)
        return codes_N

    def decode(self, codes_BL: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Pixels float32 [B, C, H, W] in [-1, 1] of codes laid out on `grid` = (rows, columns)."""
        if codes_BL.shape[1] != grid[0] * grid[1]:
            raise ValueError(f"{codes_BL.shape[1]} codes per image do not fill a grid of {grid[0]}x{grid[1]}")
        return out_of_tiles(to_pixels(self.codebook[codes_BL.flatten()]), grid)


def to_pixels(bytes_NCSS: torch.Tensor) -> torch.Tensor:
    """0..255 to float32 in [-1, 1], as the image processor does it."""
    return bytes_NCSS.float() / 127.5 - 1


def shared_arguments(config: AutoencoderCodecConfig) -> dict[str, Any]:
    """What every autoencoder of diffusers takes, by its own names."""
    names = (
        "in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups",
        "mid_block_add_attention",
    )  # fmt: skip
    tuples = ("down_block_types", "up_block_types", "block_out_channels")
    return {name: getattr(config, name) for name in names} | {name: tuple(getattr(config, name)) for name in tuples}


def into_tiles(pixels_BCHW: torch.Tensor, side: int) -> torch.Tensor:
    """Tiles [N, C, S, S], those of one image together in raster order."""
    tiles_BCrScS = pixels_BCHW.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return tiles_BCrScS.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def out_of_tiles(latents_NZss: torch.Tensor, tiles: tuple[int, int]) -> torch.Tensor:
    """The inverse, for latents too: [B, Z, y, x] of images that are `tiles` = (rows, columns) of tiles each."""
    latents_BrcZss = latents_NZss.unflatten(0, (-1, *tiles))
    return latents_BrcZss.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


CODECS = {"vq": VQCodec, "kl": KLCodec, "patch": PatchCodec}
