"""In what order the tokens of an image are produced. An order is data: order_BL[b, i] is the place filled at step i.

Contract: order(batch, length, device) -> int64 [B, L], each row a permutation of 0..L-1. Places count the codec's grid
row by row from the top left.

B batch, L image tokens.
"""

import torch


def raster(batch: int, length: int, device: torch.device | None = None) -> torch.Tensor:
    """Row by row from the top left, the same for every image: int64 [B, L]."""
    return torch.arange(length, device=device).expand(batch, length)


ORDERS = {"raster": raster}
