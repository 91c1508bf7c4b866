"""The judge on real scenes, on worse copies of them, and on images that show nothing it knows."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from eval.facts import Scene
from eval.items import read_items
from eval.judge import Judge
from eval.spark import facts_seen, real_scene

DATA = Path(__file__).parents[2] / "eval" / "data"


@pytest.fixture(scope="module")
def judge():
    return Judge.load(DATA)


@pytest.fixture(scope="module")
def scenes():
    return [(row["image"], Scene.from_json(row["scene"])) for row in read_items(DATA / "spark_describing.parquet")]


def as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=10)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def with_noise(image: Image.Image) -> Image.Image:
    values = np.asarray(image) + np.random.default_rng(0).normal(0, 20, (64, 64, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def shrunk_and_back(image: Image.Image) -> Image.Image:
    return image.resize((32, 32), Image.Resampling.BOX).resize((64, 64), Image.Resampling.BICUBIC)


DEGRADATIONS = {
    "none": lambda image: image,
    "jpeg": as_jpeg,
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    "half size": shrunk_and_back,
    "noise": with_noise,
}


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_names_everything_in_real_scenes(judge, scenes, name):
    chosen = scenes if name == "none" else scenes[::3]
    layouts = judge([DEGRADATIONS[name](image) for image, _ in chosen])
    right = [
        layout.hand == scene.hand
        and [seen[:4] for seen in layout.objects] == list(scene.objects)
        and not layout.unknown
        for layout, (_, scene) in zip(layouts, chosen, strict=True)
    ]
    assert np.mean(right) == 1 if name == "none" else np.mean(right) >= 0.99


def test_every_reference_is_its_own_drawing(judge):
    rows = read_items(DATA / "spark_references.parquet")
    scenes = [Scene(row["hand"], ((row["concept"], 0, 0, row["large"]),)) for row in rows]
    layouts = judge([real_scene(scene, judge) for scene in scenes])
    for layout, scene in zip(layouts, scenes, strict=True):
        assert [seen[:4] for seen in layout.objects] == list(scene.objects) and layout.hand == scene.hand
        assert layout.objects[0].confidence > 0.99


def test_nothing_is_not_called_something(judge, scenes):
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(50)]
    assert not any(layout.objects for layout in judge(noise))
    (blank,) = judge([Image.new("RGB", (64, 64), "white")])
    assert blank.objects == () and blank.unknown == () and blank.hand is None
    large = [image for image, scene in scenes if scene.objects[0].large]
    blends = [Image.blend(a, b, 0.5) for a, b in zip(large, large[1:] + large[:1], strict=True)]
    assert np.mean([bool(layout.objects) for layout in judge(blends)]) < 0.1


def test_unknown_things_count_and_belong_to_no_hand(judge):
    canvas = real_scene(Scene("noto", (("cat", 0, 0), ("pizza", 0, 1))), judge)
    rng = np.random.default_rng(0)
    canvas.paste(Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)), (32, 32))
    (layout,) = judge([canvas])
    assert layout.unknown == ((1, 1),)
    facts = facts_seen(layout)
    assert ("relation", "cat", "left of", "pizza") in facts and ("total", 3) in facts
    assert not any(fact[0] == "hand" for fact in facts)


def test_mixed_hands_are_no_hand(judge):
    canvas = real_scene(Scene("noto", (("cat", 0, 0),)), judge)
    canvas.paste(judge.small.image("pizza", "fluent"), (32, 0))
    (layout,) = judge([canvas])
    assert {seen.hand for seen in layout.objects} == {"noto", "fluent"} and layout.hand is None
    assert ("hand", "noto") not in facts_seen(layout)


def test_real_scenes_are_rendered_as_in_training(judge):
    from train.scenes import Drawings, render

    drawings = Drawings.load()
    for row in read_items(DATA / "spark_drawing.parquet")[::20]:
        scene = Scene.from_json(row["scene"])
        assert np.array_equal(np.asarray(real_scene(scene, judge)), np.asarray(render(scene, drawings)))


def test_other_sizes_are_refused(judge):
    with pytest.raises(ValueError, match=r"\(32, 64\).*64 x 64"):
        judge([Image.new("RGB", (32, 64))])
