"""Image tokens of data of one's own: what the codec says, computed once, and anew when anything that decides them
changes."""

import json
import os

import pytest
import torch

import train.row_tokens
from modeling_unified import UnifiedForConditionalGeneration
from modeling_unified.configuration_unified import PARADIGMS
from train.recipes.kinds import Source
from train.row_tokens import store_tokens
from train.sources import open_source
from train.trainer import Collator

ROWS = 5


@pytest.fixture
def data(tmp_path, make_image):
    """Conversations in which images are read and written, and one of words alone."""
    rows = []
    for number in range(ROWS):
        for name, side in (("read", 10), ("written", 12)):
            make_image(number, side, side).save(tmp_path / f"{name}-{number}.png")
        user = [{"type": "image", "image": f"read-{number}.png"}, {"type": "text", "text": f"picture {number}"}]
        assistant = [{"type": "image", "image": f"written-{number}.png"}, {"type": "text", "text": "done"}]
        rows.append([{"role": "user", "content": user}, {"role": "assistant", "content": assistant}])
    rows.append([{"role": "user", "content": "how are you?"}, {"role": "assistant", "content": "well"}])
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    return path


@pytest.fixture
def opened(data):
    return lambda skip_bad_rows=False: open_source(Source("own", 1, path=str(data)), 0, skip_bad_rows)


@pytest.fixture(params=PARADIGMS)
def parts(request, make_tiny_row, make_tiny_processor):
    torch.manual_seed(0)
    config = make_tiny_row(request.param)
    return UnifiedForConditionalGeneration(config).eval(), make_tiny_processor(config)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Stores the tokens of a source in shards of two rows: how many images the codec was shown."""
    monkeypatch.setattr(train.row_tokens, "SHARD", 2)
    shown = []

    def run(source, model, processor, **options) -> int:
        original, codec = model.model.codec.encode, model.model.codec
        with monkeypatch.context() as patch:
            patch.setattr(codec, "encode", lambda pixels: shown.append(len(pixels)) or original(pixels))
            shown.clear()
            store_tokens(source, model, processor.image_processor, tmp_path / "cache", **options)
        return sum(shown) - 1  # one for the shape

    return run


def batch_of(source, model, processor) -> dict[str, torch.Tensor]:
    samples = [{"index": number, "conversation": source[number]} for number in range(ROWS + 1)]
    return Collator(processor, 4096)(samples)


@torch.no_grad()
def test_losses_are_those_of_the_images(opened, store, parts):
    model, processor = parts
    source = opened()
    with_pixels, untouched = batch_of(source, model, processor), opened()
    slots = {"codes", "latents"} & set(model.config.image_inputs)
    assert store(source, model, processor) == (2 if slots else 1) * ROWS
    with_tokens = batch_of(source, model, processor)
    assert "pixel_values" in with_pixels and "pixel_values" not in with_tokens
    assert "image_tokens" in with_tokens and untouched.tokens is None
    losses = []
    for batch in (with_pixels, with_tokens):
        batch.pop("sample_indices")
        torch.manual_seed(1)  # orders and noises
        losses.append(model(**batch))
    torch.testing.assert_close(losses[0].text_loss, losses[1].text_loss, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(losses[0].image_loss, losses[1].image_loss, rtol=2e-2, atol=2e-2)


def test_pixels_are_opened_for_a_tower_alone(opened, store, parts):
    model, processor = parts
    source = opened()
    store(source, model, processor)
    looked_at = bool({"features", "tiles"} & set(model.config.image_inputs))
    images = [
        part
        for number in range(ROWS + 1)
        for turn in source[number]
        for part in turn["content"]
        if part["type"] == "image"
    ]
    assert {("image" in part, "image_tokens" in part) for part in images[:2]} == {
        (looked_at, bool({"codes", "latents"} & set(model.config.image_inputs))), (False, True),
    }  # fmt: skip
    whole = opened()
    store(whole, model, processor, features_of_written=True)
    assert all("image" in part for turn in whole[0] if turn["role"] == "assistant" for part in turn["content"][:1])


def test_tokens_are_computed_once(opened, store, parts):
    model, processor = parts
    first, second = opened(), opened()
    assert store(first, model, processor) > 0 and store(second, model, processor) == 0
    for number in range(ROWS + 1):
        ours, theirs = ([part for turn in source[number] for part in turn["content"]] for source in (first, second))
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.keys() == other.keys()
            if "image_tokens" in mine:
                assert torch.equal(mine["image_tokens"], other["image_tokens"])


@pytest.fixture
def ugen(make_tiny_row, make_tiny_processor):
    torch.manual_seed(0)
    config = make_tiny_row("ugen")
    return UnifiedForConditionalGeneration(config).eval(), make_tiny_processor(config)


def test_a_killed_run_goes_on_at_the_missing_shard(opened, store, ugen, tmp_path):
    store(opened(), *ugen)
    folder = next((tmp_path / "cache").iterdir())
    assert sorted(path.name for path in folder.iterdir()) == ["00000", "00001", "00002"]
    (folder / "00001").rename(folder / "00001.incomplete")
    assert store(opened(), *ugen) == 4


@torch.no_grad()
@pytest.mark.parametrize("change", ["codec", "size", "image", "rows"])
def test_whatever_changes_the_tokens_are_computed_anew(opened, store, ugen, data, make_image, change):
    model, processor = ugen
    store(opened(), model, processor)
    if change == "codec":
        next(model.model.codec.parameters()).add_(1e-3)
    elif change == "size":
        processor.image_processor.size = {"height": 16, "width": 16}
    elif change == "image":
        make_image(99, 12, 12).save(data.parent / "written-3.png")
        os.utime(data.parent / "written-3.png", ns=(1, 1))
    else:
        data.write_text("\n".join(data.read_text().splitlines()[1:]))
    assert store(opened(), model, processor) > 0


def test_an_image_that_cannot_be_read_is_known_before_training(opened, store, ugen, data):
    (data.parent / "written-3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="1 rows of own hold images that cannot be read, row 3 for one: .*image 1"):
        store(opened(), *ugen)
    source = opened(skip_bad_rows=True)
    store(source, *ugen)
    assert source.bad_rows == 1
    rows = {source.describe_row(number) for number in range(3 * ROWS)}
    assert rows == {f"row {row} of own" for row in (0, 1, 2, 4, 5)}
    assert all(source[number] for number in range(ROWS))
