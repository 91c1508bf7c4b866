"""How the language model reads an image.

Contract: `forward(images) -> [N, H] of each image`, `num_tokens(height, width) -> N` of an image as this encoder is
shown it, `placeholder`: the config field that names the id which the processor writes once for each embedding. Images
of one batch may have different sizes where the encoder says so.

B images, L image tokens, N embeddings of an image, C channels, H hidden size (height in pixel shapes), W width, P side
of a patch in pixels, M side of a square of features that becomes one, F numbers in a feature, r, c rows and columns, V
views of an image, S side of a tile in pixels, n features along a side of a tile, y, x places in the map of all tiles.
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
        features = self.features_of(images.feature_pixels)
        return list(self.projector(torch.cat(features)).split([len(features_NF) for features_NF in features]))

    def features_of(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the projector is given of each image, [N, M^2 * F]."""
        grids = []
        for pixels_CHW in images:
            height, width = pixels_CHW.shape[-2:]
            if height % self.stride or width % self.stride:
                raise ValueError(
                    f"an image of {height}x{width} pixels is not divided by features of {self.stride}: resize it"
                )
            grids.append((height // self.patch_size, width // self.patch_size))
        return self.see(images, grids)

    def see(self, views: list[torch.Tensor], grids: list[tuple[int, int]]) -> list[torch.Tensor]:
        """Features of what the tower is shown, [C, H, W] on `grids` of patches each -> merged, [N, M^2 * F] each."""
        dtype = next(self.projector.parameters()).dtype
        features = self.run_tower([view_CHW.to(dtype) for view_CHW in views], grids)
        return [merge_squares(*each, self.merge) for each in zip(features, grids, strict=True)]

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


class TileEncoder(FeatureEncoder):
    """Shows a tower of one size a larger image: the whole, made as small as the tower's, and tiles of it (AnyRes).

    An image comes scaled to fit one of the grids of tiles, where it lies at the top and left; what it leaves free is
    black. Its embeddings are those of the thumbnail, then those of the tiles as one map, row by row:

        thumbnail      tiles, 1x2         map: features that show nothing of the image are left out
        a a a          b b b | c c c      b b b c c
        a a a          b b b | c c c      b b b c c
        a a a          . . . | . . .

    Grids, black and the map without padding are as in UniToken's code. Ours are the place of the image (there it is
    the middle), that all features stay that show any of it, and the thumbnail, made of the scaled image instead of the
    image itself, so that one view carries both. What follows a row of the map is the processor's.

    Attention stays inside a tile: in one that the image fills only in part, black is seen by the features that stay.
    """

    def __init__(self, config: UnifiedConfig):
        super().__init__(config)
        self.grids, self.side = config.tile_grids, config.vision_config.image_size
        self.in_tile = self.side // self.stride  # 27 of 384 pixels with patches of 14: the last 6 are shown to none

    def num_tokens(self, height: int, width: int) -> int:
        return self.in_tile**2 + self.in_map(height) * self.in_map(width)

    def in_map(self, pixels: int) -> int:
        """Features along a side of the map that show any of so many pixels."""
        tiles, rest = divmod(pixels, self.side)
        return tiles * self.in_tile + min(self.in_tile, -(-rest // self.stride))

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles of an image that was scaled to fit them: the smallest grid that holds it.

        It is the grid that the processor chose: a smaller one that holds the image would have shrunk it no more, and
        been chosen for its size. Hence sizes are rounded up there.

        Raises:
            ValueError: no grid holds the image.
        """
        sizes = [(rows * self.side, columns * self.side) for rows, columns in self.grids]
        holding = [size for size in sizes if height <= size[0] and width <= size[1]]
        if not holding:
            raise ValueError(
                f"an image of {height}x{width} pixels fits into none of the grids of tiles, {sizes} pixels: pass it as "
                "the processor makes it, with the same tile_grids"
            )
        rows, columns = min(holding, key=lambda size: size[0] * size[1])
        return rows // self.side, columns // self.side

    def features_of(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        sizes = [tuple(pixels_CHW.shape[-2:]) for pixels_CHW in images]
        grids = [self.grid_of(*size) for size in sizes]
        views = []
        for pixels_CHW, grid in zip(images, grids, strict=True):
            views += [thumbnail(pixels_CHW, self.side), *cut_tiles(pixels_CHW, grid, self.side)]
        patches = self.side // self.patch_size
        seen_VNF = torch.stack(self.see(views, [(patches, patches)] * len(views)))
        seen = seen_VNF.split([1 + rows * columns for rows, columns in grids])
        return [self.join(*each) for each in zip(seen, grids, sizes, strict=True)]

    def join(self, seen_VNF: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
        """Features of an image's thumbnail, followed by the map of its tiles without what shows only padding."""
        height, width = (self.in_map(pixels) for pixels in size)
        tiles_rcnnF = seen_VNF[1:].unflatten(1, (self.in_tile, self.in_tile)).unflatten(0, grid)
        map_yxF = tiles_rcnnF.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        return torch.cat([seen_VNF[0], map_yxF[:height, :width].flatten(0, 1)])


def feature_encoder(config: UnifiedConfig) -> FeatureEncoder:
    """One view of an image, or tiles. The weights are the same: a trained tower may be shown tiles later."""
    return FeatureEncoder(config) if config.tile_grids is None else TileEncoder(config)


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


def thumbnail(pixels_CHW: torch.Tensor, side: int) -> torch.Tensor:
    """A whole image in [-1, 1] as a square, whatever its shape; bicubic, as Pillow resizes, which cuts to the range."""
    resized_1CSS = nn.functional.interpolate(pixels_CHW[None].float(), (side, side), mode="bicubic", antialias=True)
    return resized_1CSS[0].clamp(-1, 1)


def cut_tiles(pixels_CHW: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """Tiles in raster order [r * c, C, S, S] of an image that is padded, with black at the right and below, to fill
    them."""
    (rows, columns), (height, width) = grid, pixels_CHW.shape[-2:]
    missing = (0, columns * side - width, 0, rows * side - height)
    padded_CHW = nn.functional.pad(pixels_CHW, missing, value=-1.0)
    tiles_CrScS = padded_CHW.unflatten(2, (columns, side)).unflatten(1, (rows, side))
    return tiles_CrScS.permute(1, 3, 0, 2, 4).flatten(0, 1)


def merge_squares(features_NF: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """Features in raster order on `grid` -> [N / M^2, M^2 * F]: squares in raster order, each in raster order."""
    features_rMcMF = features_NF.unflatten(0, (grid[0] // side, side, grid[1] // side, side))
    return features_rMcMF.transpose(1, 2).flatten(2).flatten(0, 1)


ENCODERS = {"codes": TokenEncoder, "latents": TokenEncoder, "features": feature_encoder}
