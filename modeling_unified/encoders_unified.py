"""How the language model reads an image.

Contract: `forward(images) -> embeds_BNH`, `num_tokens(height, width) -> N` of an image as this encoder is shown it,
`placeholder`: the config field that names the id which the processor writes once for each embedding.

B images, L image tokens, N embeddings of an image, C channels, H hidden size (height in pixel shapes), W width,
P side of a patch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModel

from .configuration_unified import UnifiedConfig


class ImageBatch(NamedTuple):
    """Everything an encoder may read of the images of a batch. What no encoder of the model needs may be None."""

    tokens: torch.Tensor | None  # the codec's tokens, [B, L] codes or [B, L, D] vectors
    embed_tokens: Callable[[torch.Tensor], torch.Tensor]  # how the head feeds tokens back: [B, L, ...] -> [B, L, H]
    feature_pixels: torch.Tensor | None  # the vision tower's view, [B, C, H, W] in [-1, 1]


class TokenEncoder(nn.Module):
    """Reads the codec's own tokens, embedded exactly as a written image's are: one embedding per slot."""

    placeholder = "image_token_id"

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.stride = config.codec_config.stride

    def num_tokens(self, height: int, width: int) -> int:
        return (height // self.stride) * (width // self.stride)

    def forward(self, images: ImageBatch) -> torch.Tensor:
        if images.tokens is None:
            raise ValueError("this model reads images as tokens: pass pixel_values or image_tokens")
        return images.embed_tokens(images.tokens)


class FeatureEncoder(nn.Module):
    """Reads the features of a SigLIP tower through a linear projector (PaliGemma's; UniFluid's own was not found).

    Tower and projector are trained with the model unless their parameters are frozen.
    """

    placeholder = "image_feature_token_id"

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.patch_size = config.vision_config.patch_size
        self.tower = AutoModel.from_config(config.vision_config)
        self.projector = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        towers = {"siglip_vision_model": self._siglip, "siglip2_vision_model": self._siglip2}
        if config.vision_config.model_type not in towers:
            raise ValueError(f"no tower {config.vision_config.model_type!r}: choose one of {', '.join(towers)}")
        self.run_tower = towers[config.vision_config.model_type]

    def num_tokens(self, height: int, width: int) -> int:
        return (height // self.patch_size) * (width // self.patch_size)

    def forward(self, images: ImageBatch) -> torch.Tensor:
        pixels_BCHW = images.feature_pixels
        if pixels_BCHW is None:
            raise ValueError("this model reads images as features: pass feature_pixel_values")
        if any(side % self.patch_size for side in pixels_BCHW.shape[-2:]):
            raise ValueError(
                f"an image of {tuple(pixels_BCHW.shape[-2:])} pixels is not divided by the tower's patches of "
                f"{self.patch_size}: resize it"
            )
        return self.projector(self.run_tower(pixels_BCHW.to(self.projector.weight.dtype)))

    def _siglip(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        side = self.tower.config.image_size
        interpolate = tuple(pixels_BCHW.shape[-2:]) != (side, side)  # learned positions fit one size
        return self.tower(pixel_values=pixels_BCHW, interpolate_pos_encoding=interpolate).last_hidden_state

    def _siglip2(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """The tower takes flattened patches, P x P x C numbers each, and the grid they come from."""
        patches_BCrPcP = pixels_BCHW.unflatten(3, (-1, self.patch_size)).unflatten(2, (-1, self.patch_size))
        rows, columns = patches_BCrPcP.shape[2], patches_BCrPcP.shape[4]
        patches = patches_BCrPcP.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        grid = torch.tensor([[rows, columns]] * len(patches), device=patches.device)
        mask = torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device)
        return self.tower(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=grid).last_hidden_state


ENCODERS = {"codes": TokenEncoder, "latents": TokenEncoder, "features": FeatureEncoder}
