"""The loss of an update: per kind, over global counts, the same however the batch is cut; and it must be finite."""

import math

import pytest
import torch
from transformers import TrainerCallback


class Gradients(TrainerCallback):
    """Keeps the gradients and the loss of the first update."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        self.gradients = {name: gradient.clone() for name, gradient in named.items()}


def first_update(trainer) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    return gradients.gradients, trainer.state.log_history[0]


@pytest.mark.parametrize("micro_batches", [2, 5, 10])
def test_accumulation_is_one_batch(make_trainer, tmp_path, micro_batches):
    fields = {"steps": 1, "max_grad_norm": 0.0, "steps_per_code": None, "text_weight": 0.7}
    whole, log = first_update(make_trainer(tmp_path / "whole", **fields))
    cut, cut_log = first_update(make_trainer(tmp_path / "cut", micro_batches=micro_batches, **fields))
    assert whole.keys() == cut.keys() and len(whole) > 10
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    for key in ("loss", "text_loss", "image_loss"):
        assert cut_log[key] == pytest.approx(log[key], abs=1e-5)


def test_the_loss_is_the_weighted_sum_of_the_means_of_each_kind(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, steps=1, steps_per_code=None, text_weight=0.25, image_weight=3.0)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(10)])
    batch.pop("sample_indices")
    outputs = trainer.model.train()(**batch)
    text, image = outputs.text_loss.mean().item(), outputs.image_loss.mean().item()
    _, log = first_update(trainer)
    assert log["loss"] == pytest.approx(0.25 * text + 3.0 * image, abs=1e-4)
    assert log["text_loss"] == pytest.approx(text, abs=1e-5)
    assert log["image_perplexity"] == pytest.approx(math.exp(image), rel=1e-4)


def test_the_log_shows_the_growing_vocabulary(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, steps=6, steps_per_code=0.25)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["active_codes"] for row in rows] == [0, 4, 8, 12, 16, 16]
    shares = [row["mask_share"] for row in rows]
    assert shares[0] == 1.0 and shares[-1] == 0.0 and 0.0 < shares[2] < 1.0


def test_masked_targets_without_loss_have_no_part_in_the_perplexity(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, steps=3, steps_per_code=0.25)
    trainer.model.model.image_head.loss_on_mask = False
    trainer.train()
    first, second = [row for row in trainer.state.log_history if "loss" in row][:2]
    assert "image_loss" not in first  # no code was active: nothing was predicted
    # Over the active targets alone it is near that of a uniform guess; averaged with zeros it would be far below.
    assert second["image_loss"] > 4.0


def test_vanilla_has_all_codes_active_from_the_first_step(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, steps=1, steps_per_code=None)
    _, log = first_update(trainer)
    assert log["active_codes"] == 16 and log["mask_share"] == 0.0


def test_the_codec_stays_bit_equal_and_the_rest_is_trained(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, steps=2)
    assert not any(parameter.requires_grad for parameter in trainer.model.model.codec.parameters())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    for name, value in trainer.model.state_dict().items():
        if "codec" in name:
            assert torch.equal(value, before[name]), name
    assert not torch.equal(trainer.model.lm_head.weight, before["lm_head.weight"])


def test_a_loss_that_is_not_finite_stops_before_the_update(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, steps=3, steps_per_code=None)
    before = {}

    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                with torch.no_grad():
                    model.model.language_model.norm.weight[0] = math.inf
                before.update({name: value.clone() for name, value in model.state_dict().items()})

    trainer.add_callback(Break())
    with pytest.raises(FloatingPointError, match="not finite at step 2.*sample 10 .*sample 19 ") as caught:
        trainer.train()
    assert "text page" in str(caught.value) and "scene" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_a_batch_that_cannot_be_cut_equally_is_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="10 is not a multiple of micro_batches 3"):
        make_trainer(tmp_path, micro_batches=3)


def test_samples_that_share_rows_teach_what_they_teach_alone(make_trainer, tmp_path):
    fields = {"steps": 1, "max_grad_norm": 0.0, "steps_per_code": None}
    alone, log = first_update(make_trainer(tmp_path / "alone", **fields))
    trainer = make_trainer(tmp_path / "packed", **fields)
    trainer.packed_length = 200
    shapes = []
    trainer.model.register_forward_pre_hook(
        lambda model, args, given: shapes.append(given["input_ids"].shape), with_kwargs=True
    )
    packed, packed_log = first_update(trainer)
    assert len(shapes) == 1 and shapes[0][0] < 10 and shapes[0][1] <= 200
    for name, gradient in alone.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    for key in ("loss", "text_loss", "image_loss"):
        assert packed_log[key] == pytest.approx(log[key], abs=1e-5)


@pytest.mark.parametrize("fields", [{}, {"micro_batches": 2}, {"packed_length": 200}])
def test_losses_are_told_by_source(make_trainer, tmp_path, fields):
    """The mean of a source is the one of a batch that holds its samples alone."""
    trainer = make_trainer(tmp_path, steps=1, steps_per_code=None, **fields)
    trainer.model.train()
    expected = {}
    mixture = trainer.train_dataset
    for name in mixture.names:
        samples = [mixture[index] for index in range(10) if mixture.name_of(index) == name]
        batch = trainer.data_collator(samples)
        batch.pop("sample_indices")
        outputs = trainer.model(**batch)
        for kind in ("text", "image"):
            if len(outputs[f"{kind}_loss"]):
                expected[f"{name}/{kind}_loss"] = outputs[f"{kind}_loss"].mean().item()
    _, log = first_update(trainer)
    assert {key for key in log if "/" in key} == expected.keys() > {"0/text_loss", "1/text_loss", "2/image_loss"}
    for key, value in expected.items():
        assert log[key] == pytest.approx(value, abs=1e-4)
    assert log["tokens_per_second"] > 0


def test_a_single_source_is_not_told_apart(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, steps=1)
    trainer.train_dataset.names = trainer.train_dataset.names[:1]
    _, log = first_update(trainer)
    assert not any("/" in key for key in log)
