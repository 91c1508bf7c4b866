"""How the language model reads an image.

Contract: `forward(images) -> embeds_BNH`, `num_tokens(height, width) -> N`, `placeholder`: the config field that names
the id which the processor writes once for each embedding.

B images, L image tokens, N embeddings of an image, H hidden size.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from .configuration_unified import UnifiedConfig


class ImageBatch(NamedTuple):
    """Everything an encoder may read of the images of a batch."""

    tokens: torch.Tensor  # the codec's tokens, [B, L]
    embed_tokens: Callable[[torch.Tensor], torch.Tensor]  # how the head feeds tokens back: [B, L] -> [B, L, H]


class CodeEncoder(nn.Module):
    """Reads the codec's own tokens, embedded exactly as a written image's are: one embedding per slot."""

    placeholder = "image_token_id"

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.stride = config.codec_config.stride

    def num_tokens(self, height: int, width: int) -> int:
        return (height // self.stride) * (width // self.stride)

    def forward(self, images: ImageBatch) -> torch.Tensor:
        return images.embed_tokens(images.tokens)


ENCODERS = {"codes": CodeEncoder}
