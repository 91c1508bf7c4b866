"""A learned style: what counts as right, and the command from folder to picture."""

import json

import numpy as np
import pytest
from PIL import Image

from eval.concepts import read_drawings
from eval.spark import HERE
from eval.style import by_folder, load_references, recognised, run
from train.scenes import Drawings
from train.style import COUNT, split_concepts, write_images


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("style")
    for name, concepts in split_concepts().items():
        write_images(folder / name, concepts)
    return folder


def test_no_thing_is_taught_and_tested():
    folders = split_concepts()
    assert len(folders["taught"]) == COUNT and not set(folders["taught"]) & set(folders["others"])
    assert "cat" in folders["taught"] and "dog" in folders["others"] and len(folders["others"]) == 60


def test_a_drawing_is_right_by_thing_and_style(data):
    rows = [row for folder in ("taught", "others") for row in read_drawings(data / folder)]
    captions, images = [row["caption"] for row in rows], [row["image"] for row in rows]
    references = load_references(rows)
    assert recognised(references, images) == captions
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    coloured = Image.fromarray(Drawings.load().pixels("frog", "noto", large=True))
    seen = recognised(references, [noise, coloured, Image.new("RGB", (64, 64), "white")])
    assert seen == [None, "a frog, noto style", None]


def test_counts_by_folder():
    rows = [{"folder": "taught"}, {"folder": "others"}, {"folder": "others"}]
    assert by_folder(rows, [True, False, True]) == {"taught": {"right": 1, "n": 1}, "others": {"right": 1, "n": 2}}


def test_draws_before_and_after(tmp_path):
    write_images(tmp_path / "data" / "taught", ["cat"])
    write_images(tmp_path / "data" / "others", ["dog", "car"])
    model = str(HERE.parent / "model_cards" / "ugen-spark")
    record = run(model, model, tmp_path / "data", tmp_path / "out.json", batch_size=8, trust_remote_code=False)
    assert record == json.loads((tmp_path / "out.json").read_text())
    assert record["right"]["as it should be"] == {"taught": {"right": 1, "n": 1}, "others": {"right": 2, "n": 2}}
    assert record["right"]["before"] == record["right"]["after"]
    assert Image.open(tmp_path / "out.png").width > 1000
