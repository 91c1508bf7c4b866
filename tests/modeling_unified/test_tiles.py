"""Images larger than the vision tower's, shown to it as a thumbnail and tiles (AnyRes).

The tiny tower has tiles of 8 pixels, 2x2 features of 4 pixels each.

C channels, H hidden size (height in pixel shapes), W width, N features, T sequence.
"""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import pad

from modeling_unified import UnifiedConfig
from modeling_unified.encoders_unified import FeatureEncoder, ImageBatch, TileEncoder, thumbnail
from processing_unified.image_processing_unified import best_grid, features_along, tiled_size

PAPER = [[2, 1], [1, 2], [2, 2], [3, 1], [1, 3]]
TILE, PLACES = 8, 2


@pytest.fixture
def config(make_tiny_config):
    return make_tiny_config("unitoken", tile_grids=PAPER)


@pytest.fixture
def model(sharp, config):
    return sharp(config)


@pytest.fixture
def encoder(model):
    return model.model.encoders["features"]


@pytest.fixture
def plain(encoder, make_tiny_config):
    """The same tower and projector, without tiles."""
    encoder_of_one_view = FeatureEncoder(make_tiny_config("unitoken")).eval()
    encoder_of_one_view.load_state_dict(encoder.state_dict())
    return encoder_of_one_view


@pytest.fixture
def processor(make_tiny_processor, config):
    return make_tiny_processor(config)


def read(encoder, *images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return encoder(ImageBatch(None, None, list(images)))


def noise(height: int, width: int) -> torch.Tensor:
    return torch.rand(3, height, width) * 2 - 1


def many_sizes(count: int) -> list[tuple[int, int]]:
    draw = random.Random(1)
    return [(round(2 ** draw.uniform(0, 12)), round(2 ** draw.uniform(0, 12))) for _ in range(count)]


# Grids of which a smaller one may hold an image that was not chosen for it, or two have as many tiles.
@pytest.mark.parametrize("grids", [PAPER, [[2, 2]], [[1, 1], [2, 3], [3, 2], [6, 1], [1, 6]], [[3, 3], [2, 4], [4, 2]]])
@pytest.mark.parametrize("tile, patch, merge", [(384, 14, 1), (384, 14, 3), (8, 4, 1)])
def test_the_model_finds_the_grid_and_counts_the_features_of_the_processor(make_tiny_config, grids, tile, patch, merge):
    tower = make_tiny_config("unitoken").vision_config.to_dict() | {"image_size": tile, "patch_size": patch}
    encoder = TileEncoder(make_tiny_config("unitoken", vision_config=tower, tile_grids=grids, spatial_merge_size=merge))
    stride = patch * merge
    for size in many_sizes(1000):
        tiled = tiled_size(*size, tile, grids)
        assert encoder.grid_of(*tiled) == best_grid(*size, tile, grids), size
        rows, columns = (features_along(pixels, tile, stride) for pixels in tiled)
        assert encoder.num_tokens(*tiled) == (tile // stride) ** 2 + rows * columns


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (30, 7), (3, 50), (13, 14), (24, 8), (1, 1), (17, 24)])
def test_each_placeholder_gets_a_feature_and_newlines_stay_text(model, config, encoder, processor, make_image, size):
    inputs = processor(images=make_image(1, *size), text="<|image_slot|>what is it")
    ids_T = inputs["input_ids"][0]
    (content,) = inputs["feature_sizes"].tolist()
    view = {name: inputs[name] for name in ("feature_pixel_values", "feature_sizes")}
    embeds_NH = encoder(ImageBatch(None, None, [inputs["feature_pixel_values"][0][:, : content[0], : content[1]]]))[0]
    assert int((ids_T == config.image_feature_token_id).sum()) == encoder.num_tokens(*content) == len(embeds_NH)
    with torch.no_grad():
        embeds_TH = model.model.embed(inputs["input_ids"], model.encode_images(inputs["pixel_values"]), **view)[0]
    torch.testing.assert_close(embeds_TH[ids_T == config.image_feature_token_id], embeds_NH)
    newline_H = model.get_input_embeddings().weight[config.newline_token_id]
    ends = embeds_TH[ids_T == config.newline_token_id]
    assert torch.equal(ends, newline_H.expand_as(ends)) and len(ends) == 4 + encoder.in_map(content[0])


@pytest.mark.parametrize("rows, columns", PAPER)
def test_a_whole_grid_is_what_the_plain_encoder_makes_of_each_tile(encoder, plain, rows, columns):
    pixels_CHW = noise(rows * TILE, columns * TILE)
    (embeds_NH,) = read(encoder, pixels_CHW)
    tiles = [strip.chunk(columns, -1) for strip in pixels_CHW.chunk(rows, -2)]
    maps = [[embeds.view(PLACES, PLACES, -1) for embeds in read(plain, *row)] for row in tiles]
    map_yxH = torch.cat([torch.cat(row, 1) for row in maps], 0)
    torch.testing.assert_close(embeds_NH[PLACES**2 :], map_yxH.flatten(0, 1), atol=1e-5, rtol=1e-5)
    whole = read(plain, thumbnail(pixels_CHW, TILE))[0]
    torch.testing.assert_close(embeds_NH[: PLACES**2], whole, atol=1e-5, rtol=1e-5)


def test_what_an_image_leaves_free_is_black_and_left_out(encoder, plain):
    """13x16 in 2x2: the lower tiles show 5 of 8 pixels, hence both rows of features; 12x16 only one of them."""
    for height, rows in ((13, 4), (12, 3)):
        pixels_CHW = noise(height, 16)
        (embeds_NH,) = read(encoder, pixels_CHW)
        assert len(embeds_NH) == 4 + rows * 4
        black_CHW = pad(pixels_CHW, (0, 0, 0, 16 - height), value=-1.0)
        (in_black_NH,) = read(encoder, black_CHW)
        torch.testing.assert_close(embeds_NH[4:], in_black_NH[4 : 4 + rows * 4], atol=1e-5, rtol=1e-5)
        corner_NH = read(plain, black_CHW[:, 8:, :8])[0]
        torch.testing.assert_close(embeds_NH[4 + 2 * 4 : 4 + 2 * 4 + 2], corner_NH[:2], atol=1e-5, rtol=1e-5)
        (whole_NH,) = read(plain, thumbnail(pixels_CHW, TILE))  # of the image alone: there is no black in it
        torch.testing.assert_close(embeds_NH[:4], whole_NH, atol=1e-5, rtol=1e-5)


def test_a_change_reaches_the_thumbnail_and_its_own_tile_alone(encoder):
    """Attention ends with the tile; the thumbnail shows all."""
    pixels_CHW = noise(16, 16)
    changed_CHW = pixels_CHW.clone()
    changed_CHW[:, 9:12, 1:4] *= -1  # in the lower left tile
    before_NH, after_NH = (read(encoder, each)[0] for each in (pixels_CHW, changed_CHW))
    changed_N = (before_NH != after_NH).any(-1)
    left = [[False] * 4] * 2 + [[True, True, False, False]] * 2
    assert changed_N[:4].all() and changed_N[4:].view(4, 4).tolist() == left


def test_padding_of_a_batch_is_not_seen_and_grids_may_mix(model, processor, make_image):
    """Images of four grids in one batch are each what they are alone; pixels beyond their sizes count for nothing."""
    images = [make_image(1, 16, 16), make_image(2, 8, 24), make_image(3, 20, 9), make_image(4, 8, 8)]
    inputs = processor(images=[[each] for each in images], text=["<|image_slot|>"] * 4)
    view = {name: inputs[name] for name in ("feature_pixel_values", "feature_sizes", "pixel_values")}
    with torch.no_grad():
        together = model.get_image_features(**view).pooler_output
        for row, (height, width) in enumerate(view["feature_sizes"].tolist()):
            view["feature_pixel_values"][row, :, height:] = view["feature_pixel_values"][row, :, :, width:] = 7.0
        again = model.get_image_features(**view).pooler_output
        for image, embeds_NH, other_NH in zip(images, together, again, strict=True):
            alone = processor(images=image, text="<|image_slot|>")
            parts = {name: alone[name] for name in view}
            (single_NH,) = model.get_image_features(**parts).pooler_output
            torch.testing.assert_close(single_NH, embeds_NH, atol=1e-5, rtol=1e-5)
            assert torch.equal(embeds_NH, other_NH)


def test_a_tile_that_patches_do_not_divide_has_as_many_as_fit(make_tiny_config, sharp):
    """As 384 pixels in patches of 14: here 10 in patches of 4, with 2x2 features and 2 pixels that none shows."""
    tower = make_tiny_config("unitoken").vision_config.to_dict() | {"image_size": 10}
    encoder = sharp(make_tiny_config("unitoken", vision_config=tower, tile_grids=PAPER)).model.encoders["features"]
    pixels_CHW = noise(20, 20)
    unseen_CHW = pixels_CHW.clone()
    unseen_CHW[:, 8:10] = unseen_CHW[:, :, 18:] = 0.0
    first_NH, second_NH = (read(encoder, each)[0] for each in (pixels_CHW, unseen_CHW))
    assert len(first_NH) == encoder.num_tokens(20, 20) == 4 + 16
    assert torch.equal(first_NH[4:], second_NH[4:]) and not torch.equal(first_NH[:4], second_NH[:4])
    for pixels, features in ((1, 1), (4, 1), (5, 2), (9, 2), (10, 2), (11, 3)):
        assert encoder.in_map(pixels) == features


@pytest.mark.parametrize("size", [(16, 16), (24, 8), (11, 16), (8, 8)])
def test_the_thumbnail_is_what_pillow_would_make(make_image, size):
    image = make_image(1, *size)
    pixels_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    made_HWC = (thumbnail(pixels_CHW, TILE).permute(1, 2, 0) + 1) * 127.5
    expected_HWC = np.asarray(image.resize((TILE, TILE), Image.Resampling.BICUBIC), np.float32)
    assert np.abs(made_HWC.numpy() - expected_HWC).max() < 1.5  # Pillow rounds to bytes, after each direction
    edge_CHW = torch.ones(3, *size)
    edge_CHW[:, :, 3:] = -1  # beside it bicubic would be whiter than white
    assert thumbnail(edge_CHW, TILE).abs().max() == 1


def test_tiles_of_a_half_precision_model(model, encoder, processor, make_image):
    inputs = processor(images=make_image(1, 16, 16), text="<|image_slot|>")
    (exact_NH,) = read(encoder, inputs["feature_pixel_values"][0])
    (embeds_NH,) = read(encoder.to(torch.bfloat16), inputs["feature_pixel_values"][0].to(torch.bfloat16))
    assert embeds_NH.dtype == torch.bfloat16
    torch.testing.assert_close(embeds_NH.float(), exact_NH, atol=0.1 * float(exact_NH.abs().max()), rtol=0)


def test_an_image_that_no_grid_holds_is_refused(encoder):
    with pytest.raises(ValueError, match=r"an image of 16x24 pixels fits into none of the grids of tiles, \[\(16, 8\)"):
        read(encoder, noise(16, 24))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"tile_grids": []}, r"tile_grids \[\]: pass at least one \[rows, columns\]"),
        ({"tile_grids": [[0, 2]]}, r"tile_grids \[\[0, 2\]\]: pass at least one"),
        ({"tile_grids": [[2]]}, r"tile_grids \[\[2\]\]: pass at least one"),
        ({"tile_grids": PAPER, "spatial_merge_size": 3}, "a tile of 8 pixels has 2x2 patches of 4, which squares of 3"),
        (
            {"tile_grids": PAPER, "image_inputs": ["codes"], "vision_config": None},
            r"a tower of one size, a 'siglip_vision_model', and image_inputs \['codes'\] have none",
        ),
    ],
)
def test_tiles_that_do_not_fit_the_tower_are_refused(make_tiny_config, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_tiny_config("unitoken", **overrides)


def test_a_tower_of_any_size_needs_no_tiles_and_rows_need_an_end(make_tiny_config):
    with pytest.raises(ValueError, match="of one size, .* and this one is a 'siglip2_vision_model'"):
        make_tiny_config("uvu", tile_grids=PAPER)
    with pytest.raises(ValueError, match=r"tile_grids .* need a newline_token_id"):
        make_tiny_config("unifluid", tile_grids=PAPER)


def test_the_published_system_reads_tiles_of_384_pixels():
    """A whole image of codes and the largest view fit its context: 1,060 ids, [SEP], 3,699 and [SOS]."""
    config = UnifiedConfig.for_paradigm("unitoken")
    assert config.feature_tiles == {"tile_size": 384, "tile_grids": PAPER, "newline_token_id": 8803}
    assert config.text_config.max_position_embeddings >= 1 + 1060 + 1 + 3699


def test_tiles_behind_a_written_image_have_no_labels_and_tell_its_codes_nothing(model, config, processor, make_image):
    """As one view in training: no end of a row of features is learned, and other features change no loss of a code."""
    said = [
        ("user", {"type": "text", "text": "a cat"}),
        ("assistant", {"type": "image", "image": make_image(1, 16, 16)}),
    ]
    conversation = [{"role": role, "content": [part]} for role, part in said]
    batch = processor.encode_conversations([conversation], features_of_written=True)
    ids_T, labels_T = batch["input_ids"][0], batch["labels"][0]
    newlines = [int((each_T == config.newline_token_id).sum()) for each_T in (ids_T, labels_T)]
    assert newlines == [4 + 4, 4]  # rows of codes and of features, rows of codes
    with torch.no_grad():
        own = model(**batch)
        others = model(**batch | {"feature_pixel_values": -batch["feature_pixel_values"]})
    assert torch.equal(own.image_loss, others.image_loss) and len(own.image_loss) == 16
    assert not torch.equal(own.text_loss, others.text_loss)  # [EOI] stands behind them
