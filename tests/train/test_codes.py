"""Image tokens of scenes, computed once: the right ones, not computed again, and never those of another codec."""

import random

import datasets
import numpy as np
import pytest
import torch

import train.codes
from modeling_unified import KLCodecConfig, UnifiedForConditionalGeneration, VQCodecConfig
from train.codes import EncodedScenes, encode_scenes, fingerprint, to_pixels, training_scene
from train.scenes import Drawings, HeldOut, Scene, render

COUNT = 10


@pytest.fixture(scope="module")
def drawings():
    return Drawings.load()


@pytest.fixture(params=["ugen", "unifluid"])
def codec(request, make_tiny_config):
    """One whose tokens are codes, one whose tokens are vectors."""
    return UnifiedForConditionalGeneration(make_tiny_config(request.param)).model.codec.eval()


@pytest.fixture
def scene_of():
    held_out = HeldOut.load()
    return lambda number: training_scene(0, number, held_out)


@pytest.fixture
def encode(codec, scene_of, tmp_path, monkeypatch):
    """Encodes COUNT scenes in shards of four and counts the images the codec was shown."""
    monkeypatch.setattr(train.codes, "SHARD", 4)
    shown = []
    original = codec.encode
    monkeypatch.setattr(codec, "encode", lambda pixels: shown.append(len(pixels)) or original(pixels))

    def run() -> tuple[datasets.Dataset, int]:
        shown.clear()
        return encode_scenes(codec, scene_of, COUNT, tmp_path), sum(shown)

    return run


def test_tokens_are_those_of_the_rendered_scene(encode, codec, scene_of, drawings):
    rows, shown = encode()
    scenes = EncodedScenes(rows, codec.config)
    assert len(scenes) == COUNT == shown
    for number in (0, 5, 9):
        scene, tokens = scenes[number]
        assert scene == scene_of(number)
        expected = codec.encode(to_pixels([render(scene, drawings)]))[0]
        assert tokens.shape == expected.shape and tokens.dtype == expected.dtype
        # Not bit for bit: another batch, a latent may lie between two codes, and vectors are kept in half precision.
        assert torch.isclose(tokens, expected, rtol=1e-3, atol=1e-3).float().mean() > 0.99


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


def test_another_codec_is_another_cache(codec, scene_of, drawings):
    scenes, others = ([scene_of(start + number) for number in range(8)] for start in (0, 8))
    before = fingerprint(codec, drawings, scenes)
    assert before == fingerprint(codec, drawings, scenes)
    assert before != fingerprint(codec, drawings, others)
    codec.config.encoder_tile_size = 32
    assert before != fingerprint(codec, drawings, scenes)
    codec.config.encoder_tile_size = None
    with torch.no_grad():
        next(codec.parameters()).view(-1)[0] += 1e-3
    assert before != fingerprint(codec, drawings, scenes)


def test_training_scenes_show_nothing_that_is_held_out():
    held_out = HeldOut.load()
    assert not any(held_out.shown_by(training_scene(0, number, held_out)) for number in range(500))


def test_a_row_that_cannot_be_used_is_named_or_counted(scene_of):
    scene, sixteen = scene_of(0).to_json(), VQCodecConfig(num_vq_embeddings=16)

    def rows(tokens: list, texts: list[str] | None = None) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"scene": texts or [scene] * len(tokens), "tokens": tokens})

    with pytest.raises(ValueError, match="row 1: codes up to 99, expected codes below 16"):
        EncodedScenes(rows([[0, 1], [2, 99], [3, 4]]), sixteen)
    scenes = EncodedScenes(rows([[0, 1], [2, 99], [3, 4]]), sixteen, skip_bad_rows=True)
    assert scenes.bad_rows == 1 and len(scenes) == 2
    assert scenes[1][1].tolist() == [3, 4]
    with pytest.raises(ValueError, match="row 1"):
        EncodedScenes(rows([[0, 1], [2, 3]], [scene, "{"]), sixteen)
    with pytest.raises(ValueError, match="row 1: 1 of 16 numbers are not finite"):
        EncodedScenes(rows([[0.0] * 16, [float("nan")] + [0.0] * 15]), KLCodecConfig())


def test_pixels_lie_between_minus_one_and_one(make_image):
    image = make_image()
    pixels_NCHW = to_pixels([image])
    assert pixels_NCHW.shape == (1, 3, 8, 8) and pixels_NCHW.dtype == torch.float32
    np.testing.assert_array_equal(((pixels_NCHW[0].permute(1, 2, 0) + 1) * 127.5).round(), np.asarray(image))


def test_scene_survives_json():
    scene = training_scene(0, random.Random(0).randrange(1000), HeldOut.load())
    assert Scene.from_json(scene.to_json()) == scene
