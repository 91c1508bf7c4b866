"""Both trainers, transformers' and TRL's, teach the same: every part of every row, whole or through adapters."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForMultimodalLM, AutoProcessor, TrainerCallback
from trl import SFTConfig, SFTTrainer

from modeling_unified.configuration_unified import PARADIGMS
from train.arguments import training_arguments
from train.conversations import assistant, text, user
from train.dropout import ResidualDropout
from train.lora import add_lora
from train.mixture import Mixture
from train.parts import choose_trained, part_of
from train.recipes.kinds import LanguageModelRecipe, Lora
from train.sft import UnifiedSFTTrainer
from train.tower_guard import TowerGuard
from train.trainer import Collator, UnifiedTrainer
from train.vocabulary import ProgressiveVocabulary, every

BESIDE = {
    "ugen": (),
    "unifluid": ("tower", "projector", "image_head", "image_order"),
    "uvu": ("tower", "projector"),
    "unitoken": ("tower", "projector"),
}
TRAINERS = [UnifiedTrainer, UnifiedSFTTrainer]
LOSSES = ("loss", "text_loss", "image_loss", "grad_norm")


class Listed:
    """A source of a few conversations, again and again."""

    def __init__(self, conversations):
        self.conversations = conversations

    def __getitem__(self, number):
        return self.conversations[number % len(self.conversations)]

    def describe_row(self, number):
        return f"conversation {number % len(self.conversations)}"


@pytest.fixture(scope="module")
def saved(make_tiny_row, make_tiny_processor, picture, tmp_path_factory):
    """Callable: folder of a row's model, its processor, and conversations of every task."""
    from modeling_unified import UnifiedForConditionalGeneration

    rows = {}

    def make(paradigm: str):
        if paradigm in rows:
            return rows[paradigm]
        config = make_tiny_row(paradigm)
        config.text_config.initializer_range = 0.2
        torch.manual_seed(0)
        model, processor = UnifiedForConditionalGeneration(config), make_tiny_processor(config)
        folder = tmp_path_factory.mktemp(paradigm)
        model.save_pretrained(folder)

        shown = [picture(model, processor, seed) for seed in (1, 2, 3, 4)]
        conversations = [
            [user(shown[0], text("how many?")), assistant(text("two cats"))],
            [user(text("a pizza")), assistant(shown[1])],
            [assistant(text("a red heart above a blue circle"))],
            [user(shown[2]), assistant(text("what is left?")), user(text("a bus")), assistant(shown[3])],
        ]
        rows[paradigm] = folder, processor, conversations
        return rows[paradigm]

    return make


@pytest.fixture
def make_trainer(saved):
    """Callable: a trainer of a row's model, of all of it or, with `lora`, of adapters."""
    from modeling_unified import UnifiedForConditionalGeneration

    def make(trainer_class, paradigm, folder, lora=None, micro_batches=1, steps=2, **options):
        base, processor, conversations = saved(paradigm)
        model = UnifiedForConditionalGeneration.from_pretrained(base)
        choose_trained(model)
        recipe = LanguageModelRecipe("tiny", steps=steps, batch_size=4, micro_batches=micro_batches, warmup_steps=0)
        recipe = replace(recipe, log_every=1, save_every=2, bf16=False, weight_decay=0.1)
        torch.manual_seed(5)  # adapters begin at random
        return trainer_class(
            model=add_lora(model, lora) if lora else model,
            args=training_arguments(recipe, folder),
            train_dataset=Mixture([(Listed(conversations), 1)], 4 * steps, seed=0),
            data_collator=Collator(processor, 256, supervise_features=model.config.image_inputs == ["features"]),
            processing_class=processor,
            **options,
        )

    return make


def everything(paradigm: str) -> Lora:
    return Lora(rank=2, modules_to_save=BESIDE[paradigm], new_rows=True)


def trained(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in trainer.unified.named_parameters() if parameter.requires_grad}


def logged(trainer, keys=LOSSES) -> list[list[float]]:
    return [[row[key] for key in keys] for row in trainer.state.log_history if "loss" in row]


def one_backward(trainer) -> dict[str, torch.Tensor]:
    """Gradients of the first batch."""
    loader = iter(trainer.get_train_dataloader())
    batches, counts = trainer.get_batch_samples(loader, 1, trainer.args.device)
    torch.manual_seed(7)
    trainer.compute_loss(trainer.model.train(), batches[0], num_items_in_batch=counts).backward()
    return {name: parameter.grad for name, parameter in trained(trainer).items()}


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_every_part_is_trained_by_the_gradients_of_our_trainer(make_trainer, tmp_path, paradigm):
    ours, theirs = (one_backward(make_trainer(trainer, paradigm, tmp_path)) for trainer in TRAINERS)
    assert ours.keys() == theirs.keys()
    norms = dict.fromkeys(("language_model", *BESIDE[paradigm]), 0.0)
    for name, gradient in theirs.items():
        assert gradient is not None and torch.equal(gradient, ours[name]), name
        norms[part_of(name)] += float(gradient.norm())
    assert all(norms.values()), norms


def test_the_loss_of_trl_would_not_train_the_image_head(make_trainer, tmp_path):
    trainer = make_trainer(UnifiedSFTTrainer, "unifluid", tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    del batch["sample_indices"]
    SFTTrainer.compute_loss(trainer, trainer.model.train(), batch).backward()
    missing = {part_of(name) for name, parameter in trained(trainer).items() if parameter.grad is None}
    assert "image_head" in missing


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_both_trainers_teach_adapters_and_parts_the_same(make_trainer, tmp_path, paradigm):
    runs = [make_trainer(trainer, paradigm, tmp_path / trainer.__name__, everything(paradigm)) for trainer in TRAINERS]
    before = {name: parameter.detach().clone() for name, parameter in trained(runs[0]).items()}
    for run in runs:
        torch.manual_seed(6)  # of noise and orders
        run.train()
    assert logged(runs[0]) == logged(runs[1]) and len(logged(runs[0])) == 2
    learned, changed = trained(runs[1]), set()
    for name, parameter in trained(runs[0]).items():
        assert torch.equal(parameter, learned[name]), name
        changed |= set() if torch.equal(parameter, before[name]) else {part_of(name)}
    assert changed == {"language_model", *BESIDE[paradigm]}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_four_micro_batches_are_one_batch(make_trainer, tmp_path, trainer):
    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    found = []
    for micro_batches in (1, 4):
        gradients = Gradients()
        lora = Lora(rank=2, new_rows=True)
        run = make_trainer(trainer, "unitoken", tmp_path, lora, micro_batches, steps=1, callbacks=[gradients])
        run.args.max_grad_norm = 0.0
        run.train()
        found.append((gradients.found, logged(run, LOSSES[:3])[0]))
    (whole, log), (cut, cut_log) = found
    assert whole.keys() == cut.keys() and whole
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert cut_log == pytest.approx(log, abs=1e-5)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_adapters_that_were_stopped_go_on_as_if_they_never_were(make_trainer, saved, tmp_path, trainer):
    lora = everything("unitoken")
    whole = make_trainer(trainer, "unitoken", tmp_path / "whole", lora, steps=4)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").exists() and not (checkpoint / "model.safetensors").exists()
    resumed = make_trainer(trainer, "unitoken", tmp_path / "resumed", lora, steps=4)
    with torch.no_grad():  # whatever was there before, the checkpoint decides
        for parameter in trained(resumed).values():
            parameter.zero_()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert logged(resumed) == logged(whole) and len(logged(whole)) == 4
    learned = trained(whole)
    for name, parameter in trained(resumed).items():
        assert torch.equal(parameter, learned[name]), name

    last = tmp_path / "whole" / "checkpoint-4"
    processor, model = AutoProcessor.from_pretrained(last), AutoModelForMultimodalLM.from_pretrained(last)
    assert processor.image_inputs == model.config.image_inputs
    batch = resumed.data_collator([resumed.train_dataset[index] for index in range(4)])
    del batch["sample_indices"]
    losses = [each.eval()(**batch).loss.item() for each in (model, whole.model)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    beneath = type(whole.unified).from_pretrained(saved("unitoken")[0])
    again = PeftModel.from_pretrained(beneath, last).eval()
    assert again(**batch).loss.item() == pytest.approx(losses[1], abs=1e-6)


def test_parts_beside_adapters_learn_at_their_own_rates(make_trainer, tmp_path):
    rates = {"projector": 3e-4, "language_model": 2e-3}
    trainer = make_trainer(UnifiedSFTTrainer, "unitoken", tmp_path, everything("unitoken"), learning_rates=rates)
    names = {id(parameter): name for name, parameter in trained(trainer).items()}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            assert group["lr"] == rates.get(part_of(names.pop(id(parameter))), 1e-3)
    assert not names


def test_callbacks_are_handed_the_model_that_has_the_adapters(make_trainer, saved, tmp_path):
    """The growing vocabulary, the dropout and the guard of the tower look into its parts."""
    _, processor, conversations = saved("unitoken")
    guard = TowerGuard(Collator(processor, 256)([{"index": 0, "conversation": conversations[n]} for n in (0, 3)]))
    grow = ProgressiveVocabulary(list(range(16)), every(0.125))
    trainer = make_trainer(
        UnifiedSFTTrainer, "unitoken", tmp_path, Lora(), guard=guard, callbacks=[grow, ResidualDropout(0.1)]
    )
    trainer.train()
    assert [row["active_codes"] for row in trainer.state.log_history if "loss" in row] == [0, 8]
    assert "tower_rank" in trainer.state.log_history[0]


@pytest.mark.parametrize("field", [{"packing": True}, {"assistant_only_loss": True}, {"loss_type": "dft"}])
def test_options_without_effect_are_refused(tiny_model, tmp_path, field):
    args = SFTConfig(str(tmp_path), bf16=False, use_cpu=True, report_to=[], **field)
    name, value = next(iter(field.items()))
    with pytest.raises(ValueError, match=f"{name}={value!r} has no effect here"):
        UnifiedSFTTrainer(model=tiny_model, args=args, train_dataset=Mixture([(Listed([[]]), 1)], 4, seed=0))
