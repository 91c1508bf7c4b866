"""Residual dropout: what it drops, when, and that nothing of it stays."""

import pytest
import torch
from transformers import GPT2Config, GPT2Model, TrainerCallback

from train.dropout import ResidualDropout


def branches(model) -> list[torch.nn.Module]:
    return [branch for layer in model.model.language_model.layers for branch in (layer.self_attn, layer.mlp)]


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.fixture
def ids_BT():
    return torch.randint(40, 200, (8, 60))  # text


def test_a_share_of_what_each_branch_says_is_dropped_and_the_rest_is_louder(tiny_model, ids_BT):
    said, heard = {}, {}
    for branch in branches(tiny_model):
        branch.register_forward_hook(lambda module, args, output: said.update({module: first(output).clone()}))
    dropout = ResidualDropout(0.25)
    dropout.on_train_begin(None, None, None, model=tiny_model)
    for branch in branches(tiny_model):
        branch.register_forward_hook(lambda module, args, output: heard.update({module: first(output).clone()}))
    tiny_model.train()(ids_BT)
    assert len(heard) == 4
    for branch, output_BTH in heard.items():
        kept_BTH = output_BTH != 0
        assert float(kept_BTH.float().mean()) == pytest.approx(0.75, abs=0.02)
        torch.testing.assert_close(output_BTH[kept_BTH], said[branch][kept_BTH] / 0.75)
    tiny_model.eval()(ids_BT)
    assert all(torch.equal(heard[branch], said[branch]) for branch in heard)


def test_only_training_is_changed_and_only_while_it_lasts(tiny_model, ids_BT):
    names = set(tiny_model.state_dict())
    plain = tiny_model.eval()(ids_BT).logits
    dropout = ResidualDropout(0.1)
    dropout.on_train_begin(None, None, None, model=tiny_model)
    assert set(tiny_model.state_dict()) == names
    assert torch.equal(tiny_model.eval()(ids_BT).logits, plain)
    assert not torch.allclose(tiny_model.train()(ids_BT).logits, plain)
    dropout.on_train_end(None, None, None)
    assert torch.equal(tiny_model.train()(ids_BT).logits, plain)
    assert not any(branch._forward_hooks for branch in branches(tiny_model))


def test_a_probability_of_zero_changes_nothing(make_trainer, tmp_path):
    def losses(**fields):
        trainer = make_trainer(tmp_path, steps=2, **fields)
        trainer.train()
        return [row["loss"] for row in trainer.state.log_history if "loss" in row]

    plain = losses()
    assert losses(dropout=0.0) == plain
    assert losses(dropout=0.1) != plain


def test_nothing_of_it_is_saved_and_no_hook_is_left_after_a_run(make_trainer, tmp_path):
    class Hooks(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.count = sum(len(branch._forward_hooks) for branch in branches(model))

    trainer, hooks = make_trainer(tmp_path, steps=2, dropout=0.1, save_every=2), Hooks()
    trainer.add_callback(hooks)
    trainer.train()
    assert hooks.count == 4 and not any(branch._forward_hooks for branch in branches(trainer.model))
    loaded = type(trainer.model).from_pretrained(tmp_path / "checkpoint-2").train()
    ids_BT = torch.randint(40, 200, (2, 20))
    assert torch.equal(loaded(ids_BT).logits, trainer.model.eval()(ids_BT).logits)


def test_what_cannot_be_dropped_is_refused(tiny_model):
    with pytest.raises(ValueError, match="dropout 1.0 must be at least 0 and below 1"):
        ResidualDropout(1.0)
    tiny_model.model.language_model = GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50))
    with pytest.raises(ValueError, match="layers of GPT2Model have no self_attn and no mlp, .* dropout 0.1 is for"):
        ResidualDropout(0.1).on_train_begin(None, None, None, model=tiny_model)
