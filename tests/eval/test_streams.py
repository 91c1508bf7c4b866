"""Reading with a view blank: the view that is named is white and no other, and a model of one view is refused."""

import json

import pytest
import torch
from PIL import Image

import eval.streams
from eval.streams import VIEWS, PartlyBlind, measure_streams, views_of


@pytest.fixture(scope="module")
def make_folder(make_tiny_config, make_tiny_processor, tmp_path_factory):
    """Random weights that read 8x8 pixels; features of a row are read where the row has a tower."""
    from modeling_unified import UnifiedForConditionalGeneration

    def make(paradigm: str):
        config = make_tiny_config(paradigm)
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("models") / f"tiny-{paradigm}"
        UnifiedForConditionalGeneration(config).save_pretrained(folder)
        make_tiny_processor(config).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def folder(make_folder):
    return make_folder("unitoken")


@pytest.mark.parametrize("blank", [["tokens"], ["features"], ["tokens", "features"]])
def test_the_views_that_are_named_are_white(folder, blank, make_image):
    model = PartlyBlind.load(str(folder))
    conversation = [[{"role": "user", "content": [{"type": "image", "image": make_image()}]}]]
    whole = model._inputs(conversation, "text")
    model.blank = blank
    inputs = model._inputs(conversation, "text")
    assert inputs.keys() == whole.keys() >= set(VIEWS.values())
    for name, values in inputs.items():
        if name in {VIEWS[view] for view in blank}:
            assert bool((values == 1).all()) and values.shape == whole[name].shape
        else:
            assert torch.equal(values, whole[name]), name


def test_white_is_what_the_processor_makes_of_a_white_image(folder):
    model = PartlyBlind.load(str(folder))
    white = Image.new("RGB", (8, 8), "white")
    inputs = model._inputs([[{"role": "user", "content": [{"type": "image", "image": white}]}]], "text")
    assert all(bool((inputs[name] == 1).all()) for name in VIEWS.values())


def test_writes_all_sets_of_views(folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "results" / "tiny.streams.json"
    arguments = ["streams", "--model", str(folder), "--output", str(output), "--limit", "2", "--batch-size", "4"]
    monkeypatch.setattr("sys.argv", arguments)
    eval.streams.main()
    record = json.loads(output.read_text())
    assert list(record["streams"]) == ["tokens + features", "tokens", "features", "nothing"]
    assert all(rows["answering"]["seen"]["n"] == 2 for rows in record["streams"].values())
    assert record["settings"]["limit"] == 2 and record["environment"]["packages"]["torch"]
    assert Image.open(output.with_suffix(".png")).width >= 800
    assert "tokens + features" in capsys.readouterr().out


def test_a_model_with_one_view_is_refused(make_folder):
    model = PartlyBlind.load(str(make_folder("ugen")))
    assert views_of(model) == ["tokens"]
    with pytest.raises(ValueError, match=r"\['tokens'\] alone"):
        measure_streams(model, 1)
