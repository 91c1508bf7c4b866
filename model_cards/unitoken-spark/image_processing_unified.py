"""Pixels in and out: images of any kind to normalised tensors of one size, and back.

Contract: `UnifiedImageProcessor()(images)` gives `pixel_values` [N,3,H,W] in [-1,1], float32; `postprocess` is its
inverse. An image that already has the wanted size passes without resampling, so that the round trip is bit-exact.
Built on Pillow and numpy alone; no torchvision. Called once for each view, that of the codec and that for features.

Legend: N images, C channels, H height, W width, both divisible by `stride` (pixels per side of an image token, or of a
feature).
"""

import base64
import math
import os
from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from itertools import count
from typing import Any

import numpy as np
import torch
from huggingface_hub import get_session
from PIL import Image, ImageOps
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs

CHANNELS = (1, 3, 4)


class UnifiedImageProcessorKwargs(ImagesKwargs, total=False):
    """stride: pixels per image token, or feature, and side; the image size must be a multiple of it."""

    stride: int


class UnifiedImageProcessor(PilBackend):
    """Resizes to `size` (bicubic, aspect ratio not kept), scales to [-1,1].

    Images may be PIL images, uint8 arrays or tensors ([H,W], [H,W,C] or [C,H,W]), file paths, URLs or base64 strings,
    in a list, a nested list or alone. Transparent ones are laid on white, as drawings are meant to be seen; the usual
    conversion would show the colour stored beneath full transparency, mostly black.
    """

    valid_kwargs = UnifiedImageProcessorKwargs
    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"height": 64, "width": 64}
    stride = 8
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Loads every image of a (nested) list to RGB, keeping the nesting.

        Raises:
            ValueError: naming the image by its place in reading order and, where known, its path.
        """
        counter = count()

        def fetch(item: Any) -> Any:
            return [fetch(entry) for entry in item] if isinstance(item, list | tuple) else load_rgb(item, next(counter))

        if isinstance(image_url_or_urls, np.ndarray | torch.Tensor) and image_url_or_urls.ndim == 4:
            image_url_or_urls = list(image_url_or_urls)
        return fetch(image_url_or_urls)

    def _preprocess(self, images: list[np.ndarray], size: Any, stride: int, do_resize: bool, **kwargs) -> BatchFeature:
        if not images:
            raise ValueError("no images: pass at least one")
        sizes = [(size.height, size.width)] if do_resize else [image.shape[-2:] for image in images]
        for index, (height, width) in enumerate(sizes):
            if not height or not width or height % stride or width % stride:
                raise ValueError(
                    f"image {index} would be {height}x{width} (height x width), which a stride of {stride} does not "
                    f"divide into whole image tokens: choose a size of multiples of {stride}"
                )
            if (height, width) != tuple(sizes[0]):
                raise ValueError(
                    f"image {index} is {height}x{width}, image 0 is {sizes[0][0]}x{sizes[0][1]}: the images of one "
                    "call share one size; leave do_resize on or call once per size"
                )
        return super()._preprocess(images, size=size, do_resize=do_resize, **kwargs)

    def postprocess(self, pixels: Any) -> list[Image.Image]:
        """Pixels in [-1,1], as [N,3,H,W] or a list of [3,H,W] (nested lists are flattened), to RGB images.

        Values outside of [-1,1], which a decoder may produce, are cut to the range.
        """
        if isinstance(pixels, list | tuple):
            return [image for entry in pixels for image in self.postprocess(entry)]
        pixels = np.asarray(pixels.detach().float().cpu() if isinstance(pixels, torch.Tensor) else pixels, np.float32)
        if pixels.ndim not in (3, 4) or pixels.shape[-3] != 3:
            raise ValueError(f"pixels have the shape {list(pixels.shape)}: expected [N,3,H,W] or [3,H,W]")
        mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (self.image_mean, self.image_std))
        pixels_NCHW = pixels.reshape(-1, *pixels.shape[-3:]) * std + mean
        bytes_NHWC = np.rint(pixels_NCHW.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return [Image.fromarray(image_HWC) for image_HWC in bytes_NHWC]


def native_size(height: int, width: int, stride: int, max_tokens: int) -> tuple[int, int]:
    """Height and width, multiples of `stride`, nearest to an image's own; smaller, at its own aspect ratio, where more
    than `max_tokens` squares of `stride` pixels would cover it.

    Raises:
        ValueError: an image that does not cover one square.
    """
    if min(height, width) < stride:
        raise ValueError(f"it is {height}x{width} (height x width), less than a token of {stride} pixels: enlarge it")
    rows, columns = round(height / stride), round(width / stride)
    if rows * columns > max_tokens:
        scale = math.sqrt(max_tokens / (height * width))
        # Of a very long image one side is raised to 1, and the other may not exceed the whole.
        rows, columns = (min(max(1, math.floor(side * scale)), max_tokens) for side in (height, width))
    return rows * stride, columns * stride


def best_grid(height: int, width: int, tile_size: int, grids: list[list[int]]) -> tuple[int, int]:
    """Rows and columns of the tiles that an image is best cut into: those in which it is shrunk least, of these the
    fewest, hence with the least waste, of these the first. It is LLaVA-NeXT's rule; UniToken uses functions of the same
    names, whose file was not found.
    """

    def shrunk(grid: list[int]) -> Fraction:
        return min(Fraction(1), _scale(height, width, tile_size, grid))

    rows, columns = min(grids, key=lambda grid: (-shrunk(grid), grid[0] * grid[1]))
    return rows, columns


def tiled_size(height: int, width: int, tile_size: int, grids: list[list[int]]) -> tuple[int, int]:
    """Height and width of an image, in its own aspect ratio, as large as the best grid of tiles takes it; rounded up,
    so that the model finds the grid again from them."""
    scale = _scale(height, width, tile_size, best_grid(height, width, tile_size, grids))
    return math.ceil(height * scale), math.ceil(width * scale)


def _scale(height: int, width: int, tile_size: int, grid: Sequence[int]) -> Fraction:
    """By what an image is multiplied to fill the height or the width of a grid of tiles; exact, since ties are many."""
    return min(Fraction(grid[0] * tile_size, height), Fraction(grid[1] * tile_size, width))


def features_along(pixels: int, tile_size: int, stride: int) -> int:
    """Features along a side of an image in tiles: those that show any of it. A tile has as many as fit in whole."""
    in_tile = tile_size // stride
    tiles, rest = divmod(pixels, tile_size)
    return tiles * in_tile + min(in_tile, -(-rest // stride))


def load_rgb(source: Any, index: int) -> Image.Image:
    """One image of any accepted kind, fully read, turned upright, RGB; `index` is its name in errors.

    Raises:
        ValueError: if it is missing, truncated, no image, empty, or an array that is not uint8.
    """
    name = f"image {index}" + (f" ({source[:100]})" if isinstance(source, str) else "")
    if isinstance(source, np.ndarray | torch.Tensor):
        return _from_array(np.asarray(source.cpu() if isinstance(source, torch.Tensor) else source), name)
    try:
        image = source if isinstance(source, Image.Image) else Image.open(_open(source))
        if not image.width or not image.height:
            raise ValueError(f"it is empty ({image.height}x{image.width})")
        return _on_white(ImageOps.exif_transpose(image))  # reads all of the file, hence finds a truncated one
    except Exception as error:  # Pillow's decoders raise many kinds; all of them mean that this image cannot be read
        path = f" ({source.filename})" if getattr(source, "filename", "") else ""
        raise ValueError(f"{name}{path} cannot be read: {error}. Replace the image or leave it out") from error


def _open(source: Any) -> Any:
    """A path, URL, base64 string or bytes to what `Image.open` takes."""
    if isinstance(source, bytes):
        return BytesIO(source)
    if isinstance(source, os.PathLike) or (isinstance(source, str) and os.path.isfile(source)):
        return source
    if not isinstance(source, str):
        raise ValueError(f"{type(source).__name__} is not an image, an array, a path or a URL")
    if source.startswith(("http://", "https://")):
        response = get_session().get(source, follow_redirects=True)
        response.raise_for_status()
        return BytesIO(response.content)
    try:
        return BytesIO(
            base64.b64decode(source.split(",")[-1] if source.startswith("data:image/") else source, validate=True)
        )
    except ValueError:
        raise ValueError("no such file, and neither a URL nor base64") from None


def _from_array(pixels: np.ndarray, name: str) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise ValueError(f"{name} is an array of {pixels.dtype}: pass uint8 in 0..255 (float ranges are ambiguous)")
    shape = list(pixels.shape)
    if pixels.ndim == 3 and shape[0] in CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if 0 in shape or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in CHANNELS)):
        raise ValueError(f"{name} is an array of shape {shape}: pass [H,W], [H,W,C] or [C,H,W] with C in {CHANNELS}")
    return _on_white(Image.fromarray(np.ascontiguousarray(pixels)))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"it has the mode {image.mode}, more than 8 bits a channel: bring it to 8 bits first")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


__all__ = ["UnifiedImageProcessor"]
