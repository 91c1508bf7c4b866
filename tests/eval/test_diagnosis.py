"""Orders are those they are called; losses over training are the model's own, on the right tokens."""

import json
import math

import pytest
import torch

import eval.losses
import eval.orders
from eval.load import HubModel
from eval.losses import KINDS, conversations, measure_losses, place_of
from eval.orders import ORDERS, Ordered, permutation


def test_orders_are_what_they_are_called():
    grids = {name: permutation(name, 2, 3) for name in ORDERS}
    assert grids["raster"] == [0, 1, 2, 3, 4, 5]
    assert grids["reversed"] == [5, 4, 3, 2, 1, 0]
    assert grids["columns"] == [0, 3, 1, 4, 2, 5]
    assert grids["scattered"] == [0, 2, 4, 1, 3, 5]
    assert permutation("centre", 3, 3)[0] == 4 and set(permutation("centre", 3, 3)[5:]) == {0, 2, 6, 8}
    for name in ORDERS:
        assert sorted(permutation(name, 4, 5)) == list(range(20)), name


@pytest.fixture(scope="module")
def make_folder(make_tiny_config, make_tiny_processor, tmp_path_factory):
    """Random weights that draw and read 64 x 64 pixels."""
    from modeling_unified import UnifiedForConditionalGeneration
    from processing_unified import UnifiedImageProcessor

    def make(paradigm: str):
        blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
        widths = [8, 8, 8, 16] if paradigm == "ugen" else [8] * 4
        codec = make_tiny_config(paradigm).codec_config.to_dict() | blocks | {"block_out_channels": widths}
        tower = make_tiny_config("unifluid").vision_config.to_dict() | {"image_size": 64, "patch_size": 32}
        parts = {} if paradigm == "ugen" else {"vision_config": tower}
        config = make_tiny_config(paradigm, codec_config=codec, image_size=[64, 64], **parts)
        torch.manual_seed(0)
        model = UnifiedForConditionalGeneration(config)
        processor = make_tiny_processor(config)
        processor.image_processor = UnifiedImageProcessor(
            size={"height": 64, "width": 64}, stride=config.codec_config.stride
        )
        folder = tmp_path_factory.mktemp("runs") / paradigm / "checkpoint-20"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def fluid(make_folder):
    return make_folder("unifluid")


@pytest.fixture(scope="module")
def codes(make_folder):
    return make_folder("ugen")


def test_every_order_is_drawn_in(fluid, tmp_path, monkeypatch, capsys):
    output = tmp_path / "tiny.orders.json"
    monkeypatch.setattr("sys.argv", ["orders", "--model", str(fluid), "--output", str(output), "--limit", "2"])
    eval.orders.main()
    record = json.loads(output.read_text())
    assert list(record["orders"]) == ["random", *ORDERS]
    assert all(0 <= share["low"] <= share["value"] <= share["high"] <= 1 and share["n"] == 2
               for of in record["orders"].values() for share in of.values())  # fmt: skip
    assert output.with_suffix(".png").is_file() and output.with_suffix(".drawings.png").is_file()
    assert "scattered" in capsys.readouterr().out


def test_an_order_changes_the_drawing_and_raster_is_the_models_own(fluid):
    model = Ordered.load(str(fluid))
    drawn = {}
    for order in (None, "raster", "columns"):
        model.order = order
        drawn[order] = model.draw(["a cat"], [1])[0].tobytes()
    assert len(set(drawn.values())) == 3
    inputs = HubModel._inputs(model, [[{"role": "user", "content": [{"type": "text", "text": "a cat"}]}]], "image")
    output = model.model.generate(
        **inputs, generation_mode="image", seed=[1], image_order="raster", return_dict_in_generate=True
    )
    assert (
        model.processor.post_process_multimodal_output(output.images[0], generation_mode="image")[0].tobytes()
        == (drawn["raster"])
    )


def test_a_model_of_one_order_is_refused(codes):
    with pytest.raises(ValueError, match="this model has learned 'raster' order only"):
        eval.orders.measure_orders(Ordered.load(str(codes)), 2, 0)


def test_losses_are_those_of_the_model_on_what_is_asked(codes):
    model, asked = HubModel.load(str(codes), batch_size=2), conversations(3)
    found = measure_losses(model, asked)
    assert list(found) == list(KINDS) and all(len(rows) == 3 for rows in asked.values())
    for kind in KINDS:
        predicted = "image_loss" if kind.startswith("image") else "text_loss"
        with torch.no_grad():
            losses = [
                getattr(model.model(**model.processor.encode_conversations([row])), predicted) for row in asked[kind]
            ]
        losses = torch.cat(losses)
        assert found[kind]["tokens"] == len(losses)
        assert found[kind]["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
        assert found[kind]["perplexity"] == pytest.approx(math.exp(found[kind]["loss"]))
    assert found["image given text"]["tokens"] == 3 * 64


def test_a_diffusion_loss_is_the_same_twice_and_no_perplexity(fluid):
    model, asked = HubModel.load(str(fluid), batch_size=2), conversations(2)
    once, again = measure_losses(model, asked), measure_losses(model, asked)
    assert once == again and "perplexity" not in once["image given text"]
    assert measure_losses(model, asked, seed=1)["image given text"]["loss"] != once["image given text"]["loss"]


def test_checkpoints_of_a_run_make_a_curve(codes, tmp_path, monkeypatch, capsys):
    output = tmp_path / "tiny.losses.json"
    monkeypatch.setattr("sys.argv", ["losses", "--models", str(codes), "--output", str(output), "--limit", "2"])
    eval.losses.main()
    points = json.loads(output.read_text())["points"]
    assert [(point["run"], point["step"]) for point in points] == [("ugen", 20)]
    assert output.with_suffix(".png").is_file() and "ugen" in capsys.readouterr().out
    with pytest.raises(ValueError, match="final is no checkpoint of a run"):
        place_of("runs/ugen/final")
