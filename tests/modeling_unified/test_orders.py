"""An order is a permutation of an image's places, and the model is told of it by places added to its inputs."""

import pytest
import torch

from modeling_unified.configuration_unified import PARTS
from modeling_unified.orders_unified import (
    ORDERS,
    RandomOrder,
    RasterOrder,
    check_order,
    next_places,
    places_of_slots,
    put_in_order,
)


@pytest.fixture(params=ORDERS)
def order(request, tiny_config):
    return ORDERS[request.param](tiny_config)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_every_order_that_is_offered_exists():
    assert ORDERS.keys() == set(PARTS["image_order"])


def test_every_row_is_a_permutation(order):
    order_BL = order.draw(3, 7, torch.device("cpu"))
    assert order_BL.shape == (3, 7) and order_BL.dtype == torch.int64
    check_order(order_BL, 7)


def test_raster_is_the_identity_and_adds_nothing(tiny_config):
    raster, embeds_BTH = RasterOrder(tiny_config), torch.randn(1, 3, 32)
    assert torch.equal(raster.draw(2, 5), torch.arange(5).expand(2, 5))
    assert raster(embeds_BTH, torch.tensor([[-1, 0, 1]]), torch.tensor([[0, 1, -1]])) is embeds_BTH


def test_rows_of_a_batch_have_orders_of_their_own(tiny_config):
    order_BL = RandomOrder(tiny_config).draw(8, 16)
    assert len(order_BL.unique(dim=0)) == 8


def test_a_seed_gives_the_same_order_in_any_batch(tiny_config):
    order = RandomOrder(tiny_config)
    together = order.draw(3, 16, None, generators(1, 2, 3))
    assert torch.equal(together[1:2], order.draw(1, 16, None, generators(2)))
    assert not torch.equal(together[0], together[1])


def test_own_and_next_places_are_added_where_they_are(tiny_config):
    order, embeds_BTH = RandomOrder(tiny_config), torch.randn(1, 4, 32)
    own_BT, next_BT = torch.tensor([[-1, 5, 2, -1]]), torch.tensor([[5, 2, -1, -1]])
    told = order(embeds_BTH, own_BT, next_BT) - embeds_BTH

    def place(tables, number):  # of a grid of 4x4
        return tables[0].weight[number // 4] + tables[1].weight[number % 4]

    own, following = order.own, order.next
    expected = torch.stack([place(following, 5), place(own, 5) + place(following, 2), place(own, 2), torch.zeros(32)])[
        None
    ]
    torch.testing.assert_close(told, expected)


def test_an_image_beyond_the_learned_places_is_refused(tiny_config):
    order = RandomOrder(tiny_config)
    with pytest.raises(ValueError, match="an image of 17 tokens exceeds the 16 places"):
        order(torch.zeros(1, 1, 32), torch.tensor([[16]]), torch.tensor([[-1]]))


def test_places_of_slots_count_from_the_start_of_each_image():
    slots_BT = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0]]).bool()
    raster = [[-1, 0, 1, 2, -1, 0, 1, 2], [0, 1, 2, -1, -1, -1, -1, -1]]
    assert places_of_slots(slots_BT).tolist() == raster
    order_NL = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0]])
    own_BT = places_of_slots(slots_BT, order_NL)
    assert own_BT.tolist() == [[-1, 0, 1, 2, -1, 2, 0, 1], [1, 2, 0, -1, -1, -1, -1, -1]]
    assert next_places(own_BT)[0].tolist() == [0, 1, 2, -1, 2, 0, 1, -1]
    identity_NL = torch.arange(3).expand(3, 3)
    assert places_of_slots(slots_BT, identity_NL).tolist() == raster


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3)])
def test_tokens_stand_in_the_order_asked_for(shape):
    tokens = torch.randn(shape)
    order_NL = torch.tensor([[3, 1, 0, 2], [0, 1, 2, 3]])
    placed = put_in_order(tokens, order_NL)
    assert torch.equal(placed[0], tokens[0][order_NL[0]]) and torch.equal(placed[1], tokens[1])


@pytest.mark.parametrize("order", [[[0, 1, 1]], [[0, 1]], [[1, 2, 3]]])
def test_what_is_no_permutation_is_refused(order):
    with pytest.raises(ValueError, match="is no permutation of the 3 places"):
        check_order(torch.tensor(order), 3)
