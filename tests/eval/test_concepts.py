"""What is measured of a text model that learned a few concepts, on real drawings."""

import json

import pytest
from PIL import Image

from eval.concepts import judge_images, read_drawings, run
from eval.judge import Judge
from eval.spark import HERE
from train.concepts import CONCEPTS, write_drawings, write_lines
from train.scenes import Drawings


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts") / "drawings"
    write_drawings(folder)
    return folder


@pytest.fixture(scope="module")
def judge():
    return Judge.load(HERE / "data")


def test_the_judge_knows_all_drawings_by_their_captions(drawings, judge):
    rows = read_drawings(drawings)
    assert len(rows) == 3 * len(CONCEPTS)
    images, captions = [row["image"] for row in rows], [row["caption"] for row in rows]
    assert all(item["right"] and item["concept"] for item in judge_images(judge, images, captions))


def test_another_hand_is_half_right_and_another_thing_wrong(drawings, judge):
    images = {row["caption"]: row["image"] for row in read_drawings(drawings)}
    captions = ["a cat, noto style", "a cat, twemoji style", "a fish, noto style"]
    items = judge_images(judge, [images["a cat, noto style"]] * 3, captions)
    assert [(item["concept"], item["right"]) for item in items] == [(True, True), (True, False), (False, False)]
    assert not judge_images(judge, [Image.new("RGB", (32, 32), "white")], captions[:1])[0]["concept"]


def test_measures_before_and_after(tmp_path):
    """A shipped model beside itself, on two drawings as large as its own."""
    data, captions = tmp_path / "data", {"cat": "a large cat, noto style", "car": "a large car, noto style"}
    data.mkdir()
    for name in captions:
        Image.fromarray(Drawings.load().pixels(name, "noto", large=True)).save(data / f"{name}.png")
    write_lines(data / "metadata.jsonl", [{"file_name": f"{name}.png", "caption": c} for name, c in captions.items()])
    model = str(HERE.parent / "model_cards" / "ugen-spark")
    record = run(model, model, data, tmp_path / "out.json", batch_size=32, trust_remote_code=False)
    assert record == json.loads((tmp_path / "out.json").read_text())
    assert record["text"]["ratio"] == {"definitions": 1.0, "prose": 1.0} and record["drawing"]["real"]["right"] == 1.0
    assert record["drawing"]["model"]["n"] == 8 and record["describing"]["n"] == 2
    assert record["drawing"]["model"]["concept"] > 0.5 and record["describing"]["concept"] == 1.0
    items = [json.loads(line) for line in (tmp_path / "out.items.jsonl").read_text().splitlines()]
    assert [item["part"] for item in items] == ["drawing"] * 8 + ["describing"] * 2
    assert Image.open(tmp_path / "out.png").width > 1000


def test_a_folder_without_captions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train.concepts"):
        read_drawings(tmp_path)
