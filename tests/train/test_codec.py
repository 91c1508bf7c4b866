"""The codecs' training: what it looks at, codebook and scale, and that it repeats itself exactly after a stop."""

import dataclasses
import functools
import json
import random

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from modeling_unified.codecs_unified import KLCodec, VQCodec
from train.codec import (
    CodecImages,
    build_trainer,
    kmeans,
    load_drawings,
    nearest,
    new_codec,
    on_canvas,
    reconstruction_loss,
    scale_latents,
    train_codec,
)
from train.recipes import RECIPES
from train.record import open_run

TINY = {
    "block_out_channels": [4, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4,
    "vq_embed_dim": 4, "num_vq_embeddings": 16, "mid_block_add_attention": False,
}  # fmt: skip
TINY_KL = {
    "block_out_channels": [4, 8, 8], "norm_num_groups": 4, "latent_channels": 4, "mid_block_add_attention": False,
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
    "encoder_tile_size": 32,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def drawings_read_once():
    """Decoding thousands of drawings takes longer than all these tests, and nobody changes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.codec.load_drawings", functools.cache(load_drawings))
        yield


@pytest.fixture
def kl_recipe():
    return dataclasses.replace(
        RECIPES["spark/kl"](), codec_config=TINY_KL, bf16=False, steps=4, batch_size=2, warmup_steps=0, log_every=1,
        save_every=2, sample_every=100,
    )  # fmt: skip


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


@pytest.fixture
def small_sample(monkeypatch):
    """Rendering all of the sample's images takes longer than the rest of these tests."""
    monkeypatch.setattr("train.codec.SAMPLE_IMAGES", 16)
    return 16


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_training_brings_codes_into_use_and_resumes_exactly(recipe, tmp_path, small_sample):
    assert train_codec(recipe, tmp_path / "whole")
    whole = VQCodec.from_pretrained(tmp_path / "whole")
    assert len(whole.encode(torch.stack([CodecImages(recipe)[n] for n in range(16)])).unique()) > 4
    log = json.loads((tmp_path / "whole" / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in log if "codes_in_use" in row] == [2, 4]

    open_run(recipe, tmp_path / "stopped", resume=False)
    stopped = build_trainer(recipe, tmp_path / "stopped", new_codec(recipe))
    stopped.add_callback(StopAt(3))
    stopped.train()
    assert get_last_checkpoint(tmp_path / "stopped").endswith("checkpoint-3")
    assert train_codec(recipe, tmp_path / "stopped", resume=True)
    resumed = VQCodec.from_pretrained(tmp_path / "stopped").state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed[name]), name


def test_recipes_of_both_kinds_have_their_own_fields_alone(recipe, kl_recipe):
    fields, kl_fields = (set(dataclasses.asdict(one)) for one in (recipe, kl_recipe))
    # Runs under way compare their recipe field by field when they are resumed.
    assert fields - kl_fields == {"autoencoder_steps", "mend_every", "quantiser_weight"}
    assert kl_fields - fields == {"kl_weight"}


def test_the_spark_kl_codec_makes_64_tokens_of_16():
    with torch.device("meta"):
        codec = new_codec(RECIPES["spark/kl"]())
        assert codec.encode(torch.empty(1, 3, 64, 64)).shape == (1, 64, 16)
    assert 2.5e6 < sum(parameter.numel() for parameter in codec.parameters()) < 3e6


def test_the_kl_loss_adds_the_weighted_divergence(kl_recipe, tmp_path):
    trainer = build_trainer(kl_recipe, tmp_path, new_codec(kl_recipe))
    pixels = torch.stack([trainer.train_dataset[n] for n in range(2)])

    def loss(weight, images=pixels):
        trainer.recipe = dataclasses.replace(kl_recipe, kl_weight=weight)
        torch.manual_seed(1)
        return trainer.compute_loss(trainer.model, {"pixel_values": images})

    torch.manual_seed(1)
    rebuilt, divergence, _ = trainer.model(pixels)
    torch.testing.assert_close(loss(0.0), reconstruction_loss(rebuilt, pixels))
    torch.testing.assert_close(loss(0.5) - loss(0.0), 0.5 * divergence, atol=1e-5, rtol=0)
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        loss(0.5, pixels * float("nan"))


def test_scaled_tokens_have_mean_0_and_variance_1(kl_recipe):
    images = CodecImages(kl_recipe)
    batches = [torch.stack([images[n] for n in range(start, start + 2)]) for start in (0, 2)]
    codec = new_codec(kl_recipe)
    with torch.no_grad():
        before = codec.encode(batches[0])
        scale_latents(codec, batches)
        tokens = torch.cat([codec.encode(batch) for batch in batches])
        rebuilt = codec.decode(tokens[:2], (8, 8))
        torch.testing.assert_close(rebuilt, codec.decode_latents(codec.posterior(batches[0]).mean), atol=1e-4, rtol=0)
        scale_latents(codec, batches)  # what it finds does not depend on what was set before
        assert torch.equal(torch.cat([codec.encode(batch) for batch in batches]), tokens)
    assert not torch.allclose(tokens[:2], before)
    assert float(tokens.mean()) == pytest.approx(0, abs=1e-4) and float(tokens.std()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("value, deviation", [(0.0, "0.0"), (float("nan"), "nan")])
def test_latents_that_cannot_be_scaled_are_refused(kl_recipe, value, deviation):
    codec = new_codec(kl_recipe)
    for parameter in codec.kl.quant_conv.parameters():
        torch.nn.init.constant_(parameter, value)
    with pytest.raises(FloatingPointError, match=f"standard deviation {deviation} cannot be scaled"):
        scale_latents(codec, [torch.zeros(1, 3, 64, 64)])


def test_kl_training_scales_in_the_end_and_resumes_exactly(kl_recipe, tmp_path, small_sample):
    assert train_codec(kl_recipe, tmp_path / "whole")
    assert (tmp_path / "whole" / "reconstructions.png").stat().st_size > 1000
    whole = KLCodec.from_pretrained(tmp_path / "whole")
    sample = torch.cat(list(CodecImages(kl_recipe).sample(f"latents/{kl_recipe.seed}")))
    with torch.no_grad():
        tokens = whole.encode(sample)
    assert len(sample) == small_sample and whole.config.shift_factor != 0
    assert float(tokens.mean()) == pytest.approx(0, abs=1e-3) and float(tokens.std()) == pytest.approx(1, abs=1e-3)

    open_run(kl_recipe, tmp_path / "stopped", resume=False)
    stopped = build_trainer(kl_recipe, tmp_path / "stopped", new_codec(kl_recipe))
    stopped.add_callback(StopAt(2))
    stopped.train()
    assert train_codec(kl_recipe, tmp_path / "stopped", resume=True)
    resumed = KLCodec.from_pretrained(tmp_path / "stopped")
    assert resumed.config.scaling_factor == whole.config.scaling_factor
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert json.loads((tmp_path / "whole" / "training.json").read_text())["steps"] == 4
