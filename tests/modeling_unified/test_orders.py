"""An order is a permutation of an image's places, row by row of the batch."""

import pytest
import torch

from modeling_unified.configuration_unified import PARTS
from modeling_unified.orders_unified import ORDERS, raster


def test_every_order_that_is_offered_exists():
    assert ORDERS.keys() == set(PARTS["image_order"])


@pytest.mark.parametrize("name", ORDERS)
def test_every_row_is_a_permutation(name):
    order_BL = ORDERS[name](3, 7, torch.device("cpu"))
    assert order_BL.shape == (3, 7) and order_BL.dtype == torch.int64
    assert torch.equal(order_BL.sort(-1).values, torch.arange(7).expand(3, 7))


def test_raster_is_the_identity():
    assert torch.equal(raster(2, 5), torch.arange(5).expand(2, 5))
