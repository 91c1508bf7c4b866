"""The codec's training: what it looks at, its codebook, and that it repeats itself exactly after a stop."""

import dataclasses
import random

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from modeling_unified.codecs_unified import VQCodec
from train.codec import (
    CodecImages,
    build_trainer,
    kmeans,
    load_drawings,
    nearest,
    new_codec,
    on_canvas,
    reconstruction_loss,
    train_codec,
)
from train.recipes import RECIPES
from train.record import open_run

TINY = {
    "block_out_channels": [4, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4,
    "vq_embed_dim": 4, "num_vq_embeddings": 16, "mid_block_add_attention": False,
}  # fmt: skip


@pytest.fixture
def recipe():
    return dataclasses.replace(
        RECIPES["spark/vq"](), codec_config=TINY, bf16=False, steps=6, batch_size=2, autoencoder_steps=2,
        mend_every=2, warmup_steps=0, log_every=1, save_every=3, sample_every=100,
    )  # fmt: skip


def test_images_are_a_function_of_seed_and_number(recipe):
    images, again = CodecImages(recipe), CodecImages(recipe)
    other = CodecImages(dataclasses.replace(recipe, seed=1))
    assert all(torch.equal(images[n], again[n]) for n in (0, 3, 10**6))
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[0], other[0])
    assert images[0].shape == (3, 64, 64) and -1 <= float(images[0].min()) < float(images[0].max()) <= 1


def test_held_out_drawings_are_not_trained_on(recipe):
    seen = {drawing.tobytes() for drawing in CodecImages(recipe).others}
    held_out = load_drawings(held_out=True)
    assert len(held_out) == 114
    # Twemoji draws two of the held-out families exactly as families of other labels.
    assert len(seen & {drawing.tobytes() for drawing in held_out}) == 2


def test_a_drawing_lies_over_the_canvas_or_in_a_quarter():
    drawing = load_drawings(held_out=True)[0]
    sides = set()
    for seed in range(20):
        box = on_canvas(drawing, random.Random(seed)).convert("L").point(lambda grey: 255 * (grey < 250)).getbbox()
        sides.add(max(box[2] - box[0], box[3] - box[1]) > 32)
    assert sides == {True, False}


def test_kmeans_finds_separate_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = centres.repeat(50, 1) + 0.1 * torch.randn(200, 2, generator=generator)
    found = kmeans(points, 8, generator)
    assert found.shape == (8, 2) and bool(torch.isfinite(found).all())
    assert set(nearest(centres, found).tolist()) <= set(range(8))
    assert float(torch.cdist(centres, found).min(1).values.max()) < 0.2


def test_reconstruction_loss_sees_edges():
    flat = torch.zeros(1, 3, 8, 8)
    stripes = flat.clone()
    stripes[..., ::2] = 0.1
    assert float(reconstruction_loss(flat, flat)) == 0
    shifted = float(reconstruction_loss(flat + 0.05, flat))
    assert float(reconstruction_loss(stripes, flat)) > shifted == pytest.approx(0.05)


class StopAt(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


def test_training_brings_codes_into_use_and_resumes_exactly(recipe, tmp_path):
    assert train_codec(recipe, tmp_path / "whole")
    whole = VQCodec.from_pretrained(tmp_path / "whole")
    assert len(whole.encode(torch.stack([CodecImages(recipe)[n] for n in range(16)])).unique()) > 4

    open_run(recipe, tmp_path / "stopped", resume=False)
    stopped = build_trainer(recipe, tmp_path / "stopped", new_codec(recipe))
    stopped.add_callback(StopAt())
    stopped.train()
    assert get_last_checkpoint(tmp_path / "stopped").endswith("checkpoint-3")
    assert train_codec(recipe, tmp_path / "stopped", resume=True)
    resumed = VQCodec.from_pretrained(tmp_path / "stopped").state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed[name]), name
