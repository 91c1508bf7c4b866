"""How the language model reads an image.

Contract: `forward(images) -> [N, H] of each image`, `num_tokens(height, width) -> N` of an image as this encoder is
shown it, `placeholder`: the config field that names the id which the processor writes once for each embedding. Images
of one batch may have different sizes where the encoder says so.

B images, L image tokens, N embeddings of an image, C channels, H hidden size (height in pixel shapes), W width, P side
of a patch in pixels, M side of a square of features that becomes one, F numbers in a feature, r, c rows and columns.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel

from .configuration_unified import UnifiedConfig


class ImageBatch(NamedTuple):
    """Everything an encoder may read of the images of a batch. What no encoder of the model needs may be None."""

    tokens: torch.Tensor | None  # the codec's tokens, [B, L] codes or [B, L, D] vectors
    embed_tokens: Callable[[torch.Tensor], torch.Tensor]  # how the head feeds tokens back: [B, L, ...] -> [B, L, H]
    feature_pixels: list[torch.Tensor] | None  # the vision tower's view, B times [C, H, W] in [-1, 1]


class Encoder(nn.Module):
    """One embedding for each square of `stride` x `stride` pixels."""

    placeholder: str
    stride: int

    def num_tokens(self, height: int, width: int) -> int:
        return (height // self.stride) * (width // self.stride)


class TokenEncoder(Encoder):
    """Reads the codec's own tokens, embedded exactly as a written image's are: one embedding per slot."""

    placeholder = "image_token_id"

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.stride = config.codec_config.stride

    def forward(self, images: ImageBatch) -> list[torch.Tensor]:
        if images.tokens is None:
            raise ValueError("this model reads images as tokens: pass pixel_values or image_tokens")
        return list(images.embed_tokens(images.tokens))


class FeatureEncoder(Encoder):
    """Reads the features of a SigLIP tower through a projector; M x M neighbours are joined to one before it.

    A SigLIP-2 tower (NaFlex) sees images of any size, each at its own, in one batch. Tower and projector are trained
    with the model unless their parameters are frozen.
    """

    placeholder = "image_feature_token_id"

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.patch_size, self.merge = config.vision_config.patch_size, config.spatial_merge_size
        self.stride = config.feature_stride
        self.tower = AutoModel.from_config(config.vision_config)
        self.projector = projector(config)
        towers = {"siglip_vision_model": self._siglip, "siglip2_vision_model": self._siglip2}
        if config.vision_config.model_type not in towers:
            raise ValueError(f"no tower {config.vision_config.model_type!r}: choose one of {', '.join(towers)}")
        self.run_tower = towers[config.vision_config.model_type]

    def forward(self, images: ImageBatch) -> list[torch.Tensor]:
        if images.feature_pixels is None:
            raise ValueError("this model reads images as features: pass feature_pixel_values")
        grids = []
        for pixels_CHW in images.feature_pixels:
            height, width = pixels_CHW.shape[-2:]
            if height % self.stride or width % self.stride:
                raise ValueError(
                    f"an image of {height}x{width} pixels is not divided by features of {self.stride}: resize it"
                )
            grids.append((height // self.patch_size, width // self.patch_size))
        dtype = next(self.projector.parameters()).dtype
        features = self.run_tower([pixels_CHW.to(dtype) for pixels_CHW in images.feature_pixels], grids)
        merged = [merge_squares(*each, self.merge) for each in zip(features, grids, strict=True)]
        return list(self.projector(torch.cat(merged)).split([len(merged_NF) for merged_NF in merged]))

    def _siglip(self, images: list[torch.Tensor], grids: list[tuple[int, int]]) -> list[torch.Tensor]:
        if len(set(grids)) > 1:
            raise ValueError(f"this tower takes images of one size at a time, not of {sorted(set(grids))} patches")
        side = self.tower.config.image_size
        pixels_BCHW = torch.stack(images)
        interpolate = tuple(pixels_BCHW.shape[-2:]) != (side, side)  # learned positions fit one size
        return list(self.tower(pixel_values=pixels_BCHW, interpolate_pos_encoding=interpolate).last_hidden_state)

    def _siglip2(self, images: list[torch.Tensor], grids: list[tuple[int, int]]) -> list[torch.Tensor]:
        """The tower takes flattened patches, P x P x C numbers each, padded to the longest, and their grids."""
        patches = [into_patches(pixels_CHW, self.patch_size) for pixels_CHW in images]
        device = patches[0].device
        mask = pad_sequence([torch.ones(len(each), dtype=torch.long, device=device) for each in patches], True)
        hidden_BNF = self.tower(
            pixel_values=pad_sequence(patches, True),
            pixel_attention_mask=mask,
            spatial_shapes=torch.tensor(grids, device=device),
        ).last_hidden_state
        return [hidden_NF[: len(each)] for hidden_NF, each in zip(hidden_BNF, patches, strict=True)]


def projector(config: UnifiedConfig) -> nn.Module:
    """From merged features to the language model, see `projector_layers` of the config."""
    merged, hidden = config.vision_config.hidden_size * config.spatial_merge_size**2, config.text_config.hidden_size
    if config.projector_layers == 1:
        return nn.Linear(merged, hidden)
    return nn.Sequential(nn.Linear(merged, hidden), nn.GELU(), nn.Linear(hidden, hidden))


def into_patches(pixels_CHW: torch.Tensor, side: int) -> torch.Tensor:
    """Patches of an image in raster order, [r * c, P * P * C]: by row, then column, then channel within each."""
    patches_CrPcP = pixels_CHW.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return patches_CrPcP.permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)


def merge_squares(features_NF: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """Features in raster order on `grid` -> [N / M^2, M^2 * F]: squares in raster order, each in raster order."""
    features_rMcMF = features_NF.unflatten(0, (grid[0] // side, side, grid[1] // side, side))
    return features_rMcMF.transpose(1, 2).flatten(2).flatten(0, 1)


ENCODERS = {"codes": TokenEncoder, "latents": TokenEncoder, "features": FeatureEncoder}
