"""In what order the tokens of an image are produced, what stands between them, and how the language model is told.

An order is data: order_BL[b, i] is the place filled at step i. Places count the codec's grid row by row from the top
left. Contract: `draw(batch, length, device, generators) -> int64 [B, L]`, each row a permutation of 0..L-1;
`forward(embeds_BTH, own_BT, next_BT) -> embeds_BTH` adds to each input of the language model what it must know of
places: that of the image token which it holds, and that of the image token which is predicted next (-1: none);
`script(grid) -> int64 [S]` are the ids between [SOI] and [EOI], slots for image tokens. What is no slot there is text
that the grid alone decides: it is predicted in training and forced in generation.

    input       [SOI]         slot 0                     slot 1                     slot 2      [EOI]
    own place                 order[0]                   order[1]                   order[2]
    next place  order[0]      order[1]                   order[2]
    predicts    token of      token of                   token of                   [EOI]       text
                order[0]      order[1]                   order[2]

A causal language model with a plain cache can then draw in any order (our choice: how a next place reaches the causal
model of UniFluid is not known).

B batch, T sequence, H hidden size, L image tokens, S positions of an image, N images.
"""

from typing import Any

import torch
from torch import nn


def raster(batch: int, length: int, device: torch.device | None = None) -> torch.Tensor:
    """Places row by row from the top left, int64 [B, L]."""
    return torch.arange(length, device=device).expand(batch, length)


class RasterOrder(nn.Module):
    """Row by row from the top left, the same for every image: places follow from positions, nothing is added."""

    def __init__(self, config: Any):
        super().__init__()
        self.slot = config.image_token_id

    def draw(
        self,
        batch: int,
        length: int,
        device: torch.device | None = None,
        generators: list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        return raster(batch, length, device)

    def script(self, grid: tuple[int, int]) -> torch.Tensor:
        """Slots, and nothing between them."""
        return torch.full((grid[0] * grid[1],), self.slot)

    def forward(self, embeds_BTH: torch.Tensor, own_BT: torch.Tensor, next_BT: torch.Tensor) -> torch.Tensor:
        return embeds_BTH


class LinesOrder(RasterOrder):
    """Raster, with the image's size before it and a newline after each row (Lumina-mGPT, UniToken):

    size(height) size(width)  slot ... slot newline  slot ... slot newline  ...
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.newline, self.stride, self.size_ids = config.newline_token_id, config.codec_config.stride, config.size_ids

    def script(self, grid: tuple[int, int]) -> torch.Tensor:
        """Raises ValueError for a size that no token names."""
        rows, columns = grid
        line = [self.slot] * columns + [self.newline]
        return torch.tensor([*self.size_ids(rows * self.stride, columns * self.stride), *line * rows])


class RandomOrder(RasterOrder):
    """A new permutation for each image. A place is told as the sum of a learned vector of its row and one of its column
    (our choice: what is near in the image is then near for the model from the first step)."""

    def __init__(self, config: Any):
        super().__init__(config)
        (height, width), stride = config.image_size, config.codec_config.stride
        self.grid, hidden = (height // stride, width // stride), config.text_config.hidden_size
        self.own = nn.ModuleList(nn.Embedding(count, hidden) for count in self.grid)
        self.next = nn.ModuleList(nn.Embedding(count, hidden) for count in self.grid)

    def draw(
        self,
        batch: int,
        length: int,
        device: torch.device | None = None,
        generators: list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Each row by its own (CPU) generator, hence the same in any batch; by torch's global one if there are none."""
        rows = [torch.randperm(length, generator=generators[row] if generators else None) for row in range(batch)]
        return torch.stack(rows).to(device) if rows else torch.zeros(0, length, dtype=torch.long, device=device)

    def forward(self, embeds_BTH: torch.Tensor, own_BT: torch.Tensor, next_BT: torch.Tensor) -> torch.Tensor:
        rows, columns = self.grid
        for (row_table, column_table), places_BT in ((self.own, own_BT), (self.next, next_BT)):
            if places_BT.numel() and int(places_BT.max()) >= rows * columns:
                raise ValueError(
                    f"an image of {int(places_BT.max()) + 1} tokens exceeds the {rows * columns} places that this "
                    "model has learned: use its own image_size"
                )
            known_BT, told_BT1 = places_BT.clamp(min=0), (places_BT >= 0)[..., None].to(embeds_BTH.dtype)
            place_BTH = row_table(known_BT // columns) + column_table(known_BT % columns)
            embeds_BTH = embeds_BTH + place_BTH * told_BT1
        return embeds_BTH


def places_of_slots(slots_BT: torch.Tensor, order_NL: torch.Tensor | None = None) -> torch.Tensor:
    """Place of the image token in each slot, int64 [B, T], -1 elsewhere.

    Args:
        slots_BT: bool, where the slots are; without an order, those of one image stand together.
        order_NL: order of each image, in reading order; None for raster.
    """
    positions_BT = torch.arange(slots_BT.shape[1], device=slots_BT.device).expand_as(slots_BT)
    if order_NL is not None:
        own_BT = torch.full_like(positions_BT, -1)
        own_BT[slots_BT] = order_NL.to(slots_BT.device).flatten()
        return own_BT
    outside_BT = torch.where(slots_BT, -1, positions_BT)  # the last position outside an image, carried to the right
    return torch.where(slots_BT, positions_BT - outside_BT.cummax(-1).values - 1, -1)


def next_places(own_BT: torch.Tensor) -> torch.Tensor:
    """Place of the slot after each position, -1 where none follows."""
    return torch.cat([own_BT[:, 1:], torch.full_like(own_BT[:, :1], -1)], 1)


def put_in_order(tokens: torch.Tensor, order_NL: torch.Tensor) -> torch.Tensor:
    """Image tokens [N, L] or [N, L, D], given by place, as they stand in the slots."""
    index = order_NL.to(tokens.device).view(*order_NL.shape, *[1] * (tokens.dim() - 2)).expand_as(tokens)
    return tokens.gather(1, index)


def check_order(order_NL: torch.Tensor, length: int) -> None:
    """ValueError unless each row is a permutation of 0..length-1."""
    raster_NL = raster(len(order_NL), length, order_NL.device)
    if order_NL.shape != raster_NL.shape or not torch.equal(order_NL.sort(-1).values, raster_NL):
        raise ValueError(
            f"an order of shape {list(order_NL.shape)} is no permutation of the {length} places of an image: each row "
            f"must name every one of 0..{length - 1} once"
        )


ORDERS = {"raster": RasterOrder, "lines": LinesOrder, "random": RandomOrder}
