"""Codes of scenes, computed once: the right ones, not computed again, and never those of another codec."""

import random

import datasets
import numpy as np
import pytest
import torch

import train.codes
from train.codes import EncodedScenes, encode_scenes, fingerprint, to_pixels, training_scene
from train.scenes import Drawings, HeldOut, Scene, render

COUNT = 10


@pytest.fixture(scope="module")
def drawings():
    return Drawings.load()


@pytest.fixture
def encode(tiny_codec, tmp_path, monkeypatch):
    """Encodes COUNT scenes in shards of four and counts the images the codec was shown."""
    monkeypatch.setattr(train.codes, "SHARD", 4)
    shown = []
    original = tiny_codec.encode
    monkeypatch.setattr(tiny_codec, "encode", lambda pixels: shown.append(len(pixels)) or original(pixels))

    def run() -> tuple[datasets.Dataset, int]:
        shown.clear()
        return encode_scenes(tiny_codec, COUNT, seed=0, cache=tmp_path), sum(shown)

    return run


def test_codes_are_those_of_the_rendered_scene(encode, tiny_codec, drawings):
    rows, shown = encode()
    scenes = EncodedScenes(rows, num_codes=16)
    assert len(scenes) == COUNT == shown
    for number in (0, 5, 9):
        scene, codes_L = scenes[number]
        assert scene == training_scene(0, number, HeldOut.load())
        # Not bit for bit: the codec's batch was another, and a latent may lie between two codes.
        expected = tiny_codec.encode(to_pixels([render(scene, drawings)]))[0]
        assert (codes_L == expected).float().mean() > 0.99


def test_a_second_call_computes_nothing(encode):
    first, _ = encode()
    again, shown = encode()
    assert shown == 0 and again[:] == first[:]


def test_a_killed_run_goes_on_at_the_missing_shard(encode, tmp_path):
    whole, _ = encode()
    folder = next(path for path in tmp_path.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == ["00000", "00001", "00002"]
    (folder / "00001").rename(folder / "00001.incomplete")
    again, shown = encode()
    assert shown == 4 and again[:] == whole[:]
    assert sorted(path.name for path in folder.iterdir()) == ["00000", "00001", "00002"]


def test_another_codec_is_another_cache(tiny_codec, drawings):
    held_out = HeldOut.load()
    before = fingerprint(tiny_codec, drawings, held_out, seed=0)
    assert before == fingerprint(tiny_codec, drawings, held_out, seed=0)
    assert before != fingerprint(tiny_codec, drawings, held_out, seed=1)
    with torch.no_grad():
        next(tiny_codec.parameters()).view(-1)[0] += 1e-3
    assert before != fingerprint(tiny_codec, drawings, held_out, seed=0)


def test_training_scenes_show_nothing_that_is_held_out():
    held_out = HeldOut.load()
    assert not any(held_out.shown_by(training_scene(0, number, held_out)) for number in range(500))


def test_a_row_that_cannot_be_used_is_named_or_counted():
    scene = training_scene(0, 0, HeldOut.load()).to_json()
    rows = datasets.Dataset.from_dict({"scene": [scene, scene, scene], "codes": [[0, 1], [2, 99], [3, 4]]})
    with pytest.raises(ValueError, match="row 1: 2 codes up to 99, expected 2 below 16"):
        EncodedScenes(rows, num_codes=16)
    scenes = EncodedScenes(rows, num_codes=16, skip_bad_rows=True)
    assert scenes.bad_rows == 1 and len(scenes) == 2
    assert scenes[1][1].tolist() == [3, 4]
    broken = datasets.Dataset.from_dict({"scene": [scene, "{"], "codes": [[0, 1], [2, 3]]})
    with pytest.raises(ValueError, match="row 1"):
        EncodedScenes(broken, num_codes=16)


def test_pixels_lie_between_minus_one_and_one(make_image):
    image = make_image()
    pixels_NCHW = to_pixels([image])
    assert pixels_NCHW.shape == (1, 3, 8, 8) and pixels_NCHW.dtype == torch.float32
    np.testing.assert_array_equal(((pixels_NCHW[0].permute(1, 2, 0) + 1) * 127.5).round(), np.asarray(image))


def test_scene_survives_json():
    scene = training_scene(0, random.Random(0).randrange(1000), HeldOut.load())
    assert Scene.from_json(scene.to_json()) == scene
