"""What a model makes of data of one's own while it trains, beside what it should."""

import json

import pytest
import torch
from PIL import Image

from train.pictures import RowPictures, ScenePictures, can_draw, examples_of
from train.recipes.kinds import Source
from train.sources import open_source


@pytest.fixture
def sources(tmp_path, make_image):
    """Texts, images with captions to read and to draw, and a conversation of two turns."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        make_image(number, 8, 8).save(folder / name)
    rows = [{"file_name": name, "text": f"picture {name[0]}"} for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "texts.jsonl").write_text('{"text": "nothing is asked"}')
    said = [("user", "<image>what is it?"), ("assistant", "a cat"), ("user", "sure?"), ("assistant", "yes")]
    chat = {"messages": [{"role": role, "content": words} for role, words in said], "images": ["pictures/0.png"]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat))
    given = [
        Source("texts", 1, "text", str(tmp_path / "texts.jsonl")),
        Source("read", 1, "image_to_caption", str(folder)),
        Source("drawn", 1, "caption_to_image", str(folder)),
        Source("chat", 1, "conversations", str(tmp_path / "chat.jsonl")),
    ]
    return [open_source(source, seed=0) for source in given]


def test_examples_are_rows_that_ask_of_each_source_in_turn(sources):
    first, second, third, *_ = examples_of(sources, 3)
    assert first.prompt[0]["content"][0]["type"] == "image" and first.expected.startswith("picture ")
    assert isinstance(second.expected, Image.Image) and second.prompt[0]["content"][0]["text"].startswith("picture ")
    assert len(third.prompt) == 1 and third.expected == "a cat"
    assert len(list(examples_of(sources, 3))) == 9


def test_a_grid_leaves_chance_and_mode_alone_and_differs_by_prompt(
    sources, make_tiny_row, make_tiny_processor, tmp_path
):
    from modeling_unified.modeling_unified import UnifiedForConditionalGeneration

    for row in ("ugen", "unifluid", "uvu"):
        torch.manual_seed(0)
        model = UnifiedForConditionalGeneration(make_tiny_row(row)).train()
        pictures = RowPictures(make_tiny_processor(model.config), tmp_path, 1, sources, count=5)
        before = torch.get_rng_state()
        pictures.draw(model, tmp_path / f"{row}.png")
        assert torch.equal(torch.get_rng_state(), before) and model.training
        width, height = Image.open(tmp_path / f"{row}.png").size
        assert (width, height) == (5 * 160, 400)


def test_words_are_shown_before_any_code_may_be_drawn(sources, tiny_model, tiny_processor, tmp_path):
    active_K = tiny_model.model.image_head.active_codes
    before = active_K.clone()
    active_K.fill_(False)
    try:
        assert not can_draw(tiny_model)
        assert ScenePictures(tiny_processor, tmp_path, 1, count=1).columns(tiny_model) == []
        columns = RowPictures(tiny_processor, tmp_path, 1, sources, count=3).columns(tiny_model)
    finally:
        active_K.copy_(before)
    assert len(columns) == 2 and all(below.image is None and below.title.startswith("said: ") for _, below in columns)
    assert all(above.image is not None and "training row" in above.title for above, _ in columns)


def test_a_row_that_cannot_be_shown_is_named_or_left_out(sources, tmp_path):
    (tmp_path / "pictures" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="row 0 of .*Mend it, or pass --skip-bad-rows"):
        list(examples_of(sources[1:3], 4))
    for source in sources:
        source.skip_bad_rows = True
    assert len(list(examples_of(sources[1:3], 4))) == 6
