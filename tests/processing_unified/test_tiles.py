"""Images in tiles: which grid, what size, what stands in the sequence. That the model agrees is tested beside it."""

import random
from fractions import Fraction

import pytest
from transformers.image_processing_utils import select_best_resolution

from processing_unified import UnifiedImageProcessor, UnifiedProcessor
from processing_unified.image_processing_unified import best_grid, features_along, tiled_size
from processing_unified.layout_unified import Span, SpecialIds, feature_script, lay_out

PAPER = [[2, 1], [1, 2], [2, 2], [3, 1], [1, 3]]
FEATURE = "<|image_feature|>"


def many_sizes(count: int) -> list[tuple[int, int]]:
    draw = random.Random(0)
    return [(round(2 ** draw.uniform(0, 12)), round(2 ** draw.uniform(0, 12))) for _ in range(count)]


@pytest.mark.parametrize(
    "size, grid, tiled",
    [
        ((768, 768), (2, 2), (768, 768)),
        ((3000, 3000), (2, 2), (768, 768)),
        ((384, 384), (2, 1), (384, 384)),  # 1x2 serves as well: the first
        ((10, 10), (2, 1), (384, 384)),
        ((384, 768), (1, 2), (384, 768)),
        ((768, 384), (2, 1), (768, 384)),
        ((385, 768), (2, 2), (385, 768)),  # one row of tiles would shrink it
        ((400, 2000), (1, 3), (231, 1152)),  # 230.4 is rounded up
        ((2000, 400), (3, 1), (1152, 231)),
        ((1, 4000), (1, 3), (1, 1152)),
    ],
)
def test_the_grid_that_shrinks_least_and_wastes_least(size, grid, tiled):
    assert best_grid(*size, 384, PAPER) == grid
    assert tiled_size(*size, 384, PAPER) == tiled


def test_grids_are_those_of_llava_next():
    """Where transformers' version of the rule chooses otherwise, its rounding to pixels has made the difference."""
    differ, sizes = 0, many_sizes(2000)
    for height, width in sizes:
        ours = best_grid(height, width, 384, PAPER)
        theirs = select_best_resolution((height, width), [(384 * rows, 384 * columns) for rows, columns in PAPER])
        if theirs == (384 * ours[0], 384 * ours[1]):
            continue
        differ += 1
        rooms = (384 * ours[0], 384 * ours[1]), theirs
        shrunk = [min(Fraction(1), Fraction(rows, height), Fraction(columns, width)) for rows, columns in rooms]
        assert shrunk[0] >= shrunk[1]
        assert (shrunk[0] - shrunk[1]) * min(height, width) <= 2  # pixels: one for each side that is cut to a whole
    assert differ < len(sizes) // 20


def test_an_image_keeps_its_shape_and_fills_its_tiles():
    for height, width in many_sizes(2000):
        rows, columns = best_grid(height, width, 384, PAPER)
        tall, wide = tiled_size(height, width, 384, PAPER)
        assert tall <= 384 * rows and wide <= 384 * columns and (tall == 384 * rows or wide == 384 * columns)
        assert abs(tall - wide * height / width) <= max(1, height / width)


def ids_of(size: tuple[int, int]) -> int:
    """Of the features of an image at the paper's sizes, newlines among them."""
    grid = tuple(features_along(pixels, 384, 14) for pixels in tiled_size(*size, 384, PAPER))
    return len(feature_script(features_along(384, 384, 14) ** 2, grid, 0, 1))


@pytest.mark.parametrize(
    "size, ids",
    [
        ((768, 768), 729 + 54 * (54 + 1)),  # 3,699
        ((384, 768), 729 + 27 * (54 + 1)),  # 2,214
        ((768, 384), 729 + 54 * (27 + 1)),  # 2,241
        ((384, 1152), 729 + 27 * (81 + 1)),  # 2,943
        ((1152, 384), 729 + 81 * (27 + 1)),  # 2,997
    ],
)
def test_the_largest_counts_of_the_paper(size, ids):
    assert features_along(384, 384, 14) ** 2 == 729
    assert ids_of(size) == ids


def test_no_image_needs_more_than_the_largest():
    assert max(map(ids_of, many_sizes(2000))) <= 3699


def test_features_of_which_the_image_shows_nothing_are_left_out():
    along = {pixels: features_along(pixels, 384, 14) for pixels in (1, 14, 15, 378, 384, 385, 384 + 14, 384 + 15, 768)}
    assert list(along.values()) == [1, 1, 2, 27, 27, 28, 28, 29, 54]


def test_a_row_of_features_ends_without_a_label():
    """Of a written image, too: its features are there to be seen."""
    ids = SpecialIds(sos=1, eos=2, soi=3, eoi=4, slot=5, feature=6)
    newline, sep, size = 7, 8, 9
    codes = [size, size, 5, 5, newline, 5, 5, newline]
    content = [*codes, sep, *feature_script(1, (2, 2), 6, newline)]
    input_ids, labels = lay_out([Span("image", True, content), Span("end", True)], ids)
    assert input_ids == [1, 3, *codes, sep, 6, 6, 6, newline, 6, 6, newline, 4, 2]
    assert labels == [-100, 3, *codes, sep, *[-100] * 7, 4, 2]


@pytest.fixture
def make_processor(tokenizer_with_lines):
    tokenizer, fields = tokenizer_with_lines

    def make(**arguments):
        tiles = {"tile_size": 8, "tile_grids": [[2, 1], [1, 2], [2, 2]], "newline_token_id": fields["newline_token_id"]}
        tiles |= arguments.pop("tiles", {})
        return UnifiedProcessor(
            UnifiedImageProcessor(size={"height": 8, "width": 8}, stride=2),
            tokenizer,
            **{"image_inputs": ["features"], "feature_stride": 4, "feature_tiles": tiles} | arguments,
        )

    return make


def spell(processor, ids) -> str:
    return processor.tokenizer.decode(ids).replace(FEATURE, "f").replace("<|newline|>", "n")


def test_a_prompt_holds_the_whole_image_and_rows_of_its_tiles(make_processor, make_image):
    processor = make_processor()
    images = [make_image(1, 8, 16), make_image(2, 32, 32), make_image(3, 16, 6)]
    inputs = processor(images=images, text=["<|image_slot|><|image_slot|>", "<|image_slot|>"])
    wide, square, thin = "ffff" + "ffffn" * 2, "ffff" + "ffffn" * 4, "ffff" + "ffn" * 4
    assert spell(processor, inputs["input_ids"][0]) == f"[SOS][SOI]{wide}[EOI][SOI]{square}[EOI]"
    assert spell(processor, inputs["input_ids"][1]).endswith(f"[SOS][SOI]{thin}[EOI]")
    assert inputs["feature_sizes"].tolist() == [[8, 16], [16, 16], [16, 6]]
    assert inputs["feature_pixel_values"].shape == (3, 3, 16, 16)
    assert set(inputs) == set(processor.model_input_names) - {"pixel_values"}


def test_tiles_are_saved_with_the_processor(make_processor, make_image, tmp_path):
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    again = UnifiedProcessor.from_pretrained(tmp_path)
    assert again.feature_tiles == processor.feature_tiles
    inputs = [each(images=make_image(1, 9, 30), text="<|image_slot|>") for each in (processor, again)]
    assert inputs[0]["input_ids"].tolist() == inputs[1]["input_ids"].tolist()


def test_an_image_that_the_context_does_not_hold_is_refused(make_processor, make_image):
    processor = make_processor()
    longest, processor.tokenizer.model_max_length = processor.tokenizer.model_max_length, 20
    try:
        with pytest.raises(ValueError, match="text 0 has 27 tokens with its images, but the model takes 20"):
            processor(images=make_image(1, 16, 16), text="<|image_slot|>")
    finally:
        processor.tokenizer.model_max_length = longest  # the tokenizer is shared by the session


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tiles": {"tile_grids": []}}, r"tiles of 8 pixels in grids \[\]: pass at least the 4 pixels of a feature"),
        ({"tiles": {"tile_grids": [[2, 0]]}}, r"in grids \[\[2, 0\]\]"),
        ({"tiles": {"tile_grids": [[2, 2, 1]]}}, r"in grids \[\[2, 2, 1\]\]"),
        ({"tiles": {"tile_size": 3}}, "tiles of 3 pixels .* at least the 4 pixels of a feature"),
        ({"max_features": 64}, "tiles? are of 8 pixels, feature_size is None, max_features 64: pass one of them"),
        ({"feature_size": {"height": 8, "width": 8}}, "feature_size is .*'width': 8}, max_features None: pass one"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(make_processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_processor(**arguments)


def test_features_in_tiles_cannot_be_supervised(make_processor, make_image):
    conversation = [{"role": "user", "content": [{"type": "image", "image": make_image()}]}]
    with pytest.raises(ValueError, match="features in tiles show a scaled image"):
        make_processor().encode_conversations([conversation], supervise_features=True)
