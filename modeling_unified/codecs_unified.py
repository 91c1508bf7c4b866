"""How pixels become image tokens and back. A codec is frozen while the language model trains.

Contract: `encode(pixels_BCHW) -> codes_BL`, `decode(codes_BL, grid) -> pixels_BCHW`, `grid(height, width)`. Pixels lie
in [-1, 1]; tokens are in raster order.

B batch, C channels, H height, W width (pixels), h, w rows and columns of the grid, L = h * w tokens, K codes, D code
dimension, N tiles, S side of a tile in pixels, s the same in tokens.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_unified import VQCodecConfig

try:
    from diffusers import VQModel
except ImportError:
    VQModel = None


class VQCodec(PreTrainedModel):
    """Vector-quantised autoencoder over diffusers' `VQModel`: plain VQGAN, or MoVQ with `norm_type="spatial"`.

    A model of its own, so that it is trained, saved and loaded alone before it joins a language model.
    """

    config_class = VQCodecConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["VQModel"]
    # It has no attention of transformers' kind: whatever the language model uses is no concern of the codec.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: VQCodecConfig):
        super().__init__(config)
        if VQModel is None:
            raise ImportError("the vq codec is built on diffusers: pip install diffusers")
        self.vq = VQModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            down_block_types=tuple(config.down_block_types),
            up_block_types=tuple(config.up_block_types),
            block_out_channels=tuple(config.block_out_channels),
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            vq_embed_dim=config.vq_embed_dim,
            num_vq_embeddings=config.num_vq_embeddings,
            norm_num_groups=config.norm_num_groups,
            norm_type=config.norm_type,
            mid_block_add_attention=config.mid_block_add_attention,
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # torch's own initialisation: the 0.02 normal of transformers starves a convolutional autoencoder.
        if isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -1 / module.num_embeddings, 1 / module.num_embeddings)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image of `height` x `width` pixels."""
        stride = self.config.stride
        if height % stride or width % stride or height <= 0 or width <= 0:
            raise ValueError(f"image size {height}x{width} is not a multiple of the codec's stride {stride}: resize it")
        tile = self.config.encoder_tile_size
        if tile and (height % tile or width % tile):
            raise ValueError(f"image size {height}x{width} is not a multiple of the codec's tiles of {tile}: resize it")
        return height // stride, width // stride

    def encode_latents(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Latents [B, D, h, w] before quantisation."""
        grid = self.grid(*pixels_BCHW.shape[-2:])
        side = self.config.encoder_tile_size
        if not side:
            return self.vq.encode(pixels_BCHW).latents
        latents_NDss = self.vq.encode(into_tiles(pixels_BCHW, side)).latents
        return out_of_tiles(latents_NDss, grid)

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


def into_tiles(pixels_BCHW: torch.Tensor, side: int) -> torch.Tensor:
    """Tiles [N, C, S, S], those of one image together in raster order."""
    tiles_BCrScS = pixels_BCHW.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return tiles_BCrScS.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def out_of_tiles(latents_NDss: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The inverse for latents: [B, D, h, w] on `grid` = (h, w)."""
    rows, columns = (size // latents_NDss.shape[-1] for size in grid)
    latents_BrcDss = latents_NDss.unflatten(0, (-1, rows, columns))
    return latents_BrcDss.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


CODECS = {"vq": VQCodec}
