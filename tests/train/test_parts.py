"""Parts of a model: each parameter has one, what is frozen stays bit-equal, what has a rate of its own learns at it."""

import copy
from fnmatch import fnmatchcase

import pytest
import torch
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from modeling_unified.configuration_unified import PARADIGMS
from train.parts import CODEC, PARTS, choose_trained, parameter_groups, part_of

PATCHES = "model.encoders.features.tower.embeddings.patch_embedding.weight"


@pytest.fixture
def make_model(make_tiny_config):
    from modeling_unified import UnifiedForConditionalGeneration

    def make(paradigm, **overrides):
        torch.manual_seed(0)
        return UnifiedForConditionalGeneration(make_tiny_config(paradigm, **overrides))

    return make


@pytest.fixture
def make_stage(make_model, make_tiny_processor, make_image, scenes):
    """Callable: a run of the row that reads through codes and features, captioning and drawing in turns."""
    from dataclasses import replace

    from train.conversations import image, image_to_text, text_to_image
    from train.language_model import build_trainer
    from train.mixture import Mixture, SceneSource
    from train.recipes import spark

    model = make_model("unitoken")

    def make(folder, **fields):
        defaults = {"steps": 2, "batch_size": 4, "steps_per_code": None, "warmup_steps": 0, "log_every": 1}
        defaults |= {"save_every": 1, "bf16": False, "attention": "sdpa", "question_share": 0.0}
        recipe = replace(spark.ugen(), **defaults | fields)
        sources = {"image_to_text_parts": image_to_text(recipe, lambda scene, tokens: image(tokens, make_image(0)))}
        sources |= {"text_to_image_parts": text_to_image(recipe)}
        parts = [(SceneSource(scenes, 0, write), 1) for name, write in sources.items() if getattr(recipe, name)]
        mixture = Mixture(parts, recipe.steps * recipe.batch_size, recipe.seed)
        return build_trainer(recipe, folder, copy.deepcopy(model), make_tiny_processor(model.config), mixture)

    return make


def parameters_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before, model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def in_parts(names, *parts) -> set[str]:
    return {name for name in names if part_of(name) in parts}


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_every_parameter_belongs_to_one_part_or_to_the_codec(make_model, paradigm):
    model = make_model(paradigm)
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        patterns = [CODEC, *(pattern for patterns in PARTS.values() for pattern in patterns)]
        assert sum(fnmatchcase(name, pattern) for pattern in patterns) == 1, name
    expected = {None, "language_model"}  # None: the codec
    expected |= {"tower", "projector"} if "features" in model.config.image_inputs else set()
    expected |= {"image_head"} if model.config.image_head == "diffusion" else set()
    expected |= {"image_order"} if model.config.image_order == "random" else set()
    if paradigm == "uvu":
        expected -= {None}  # its codewords are pixels, in a buffer
    assert {part_of(name) for name in names} == expected


@pytest.mark.parametrize(
    ("trained", "frozen"),
    [
        (("tower", "projector"), ()),
        (("projector",), ()),
        (("language_model",), ()),
        (None, ()),
        (None, ("tower.*patch_embedding", "position_embedding")),
        (("tower", "projector"), (PATCHES,)),
    ],
)
def test_what_is_frozen_is_bit_equal_after_a_stage(make_stage, tmp_path, trained, frozen):
    """At a large rate and with strong weight decay, which would move what has no gradient too."""
    fields = {"trained_parts": trained, "frozen_parameters": frozen, "weight_decay": 0.5, "learning_rate": 0.01}
    trainer = make_stage(tmp_path, text_to_image_parts=0, **fields)
    before, buffers = parameters_of(trainer.model), dict(trainer.model.named_buffers())
    expected = in_parts(before, *(PARTS if trained is None else trained))
    expected -= {name for name in before for pattern in frozen if fnmatchcase(name, f"*{pattern}*")}
    if frozen:
        assert PATCHES not in expected and expected
    buffers = {name: value.clone() for name, value in buffers.items()}
    trainer.train()
    assert changed(before, trainer.model) == expected
    assert all(torch.equal(value, buffers[name]) for name, value in trainer.model.named_buffers())
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for name, parameter in trainer.model.named_parameters() if name in expected}


def test_without_rates_the_groups_are_those_of_the_trainer(make_stage, tmp_path):
    """So runs go on that were begun before there were rates, too."""
    ours, theirs = make_stage(tmp_path, weight_decay=0.1), make_stage(tmp_path, weight_decay=0.1)
    groups = [trainer.param_groups for trainer in (ours.create_optimizer(), Trainer.create_optimizer(theirs))]
    of_name = [{id(p): name for name, p in trainer.model.named_parameters()} for trainer in (ours, theirs)]
    assert len(groups[0]) == len(groups[1]) == 2
    for own, plain in zip(*groups, strict=True):
        names = [[names[id(p)] for p in group["params"]] for names, group in zip(of_name, (own, plain), strict=True)]
        assert names[0] == names[1] and names[0]
        assert {key: own[key] for key in own if key != "params"} == {key: plain[key] for key in own if key != "params"}


def test_a_part_learns_at_its_own_rate(make_stage, tmp_path):
    rates = {"tower": 1e-5, "projector": 2e-4}
    trainer = make_stage(tmp_path, learning_rate=1e-3, learning_rates=rates, weight_decay=0.1)
    decayed = trainer.get_decay_parameter_names(trainer.model)
    of_name = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    seen = set()
    for group in trainer.create_optimizer().param_groups:
        for name in (of_name[id(parameter)] for parameter in group["params"]):
            assert group["lr"] == rates.get(part_of(name), 1e-3)
            assert group["weight_decay"] == (0.1 if name in decayed else 0.0)
            seen.add(name)
    assert seen == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    trainer.train()
    logged = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    assert logged[0] == pytest.approx(1e-3), "the first group's, which has the rate of the recipe"


def test_a_rate_of_zero_leaves_a_part_alone(make_stage, tmp_path):
    trainer = make_stage(tmp_path, learning_rates={"tower": 0.0}, weight_decay=0.5)
    before = parameters_of(trainer.model)
    trainer.train()
    assert changed(before, trainer.model) == in_parts(before, "language_model", "projector")


def test_a_stage_that_was_stopped_goes_on_as_if_it_never_was(make_stage, tmp_path):
    """With everything that a stage has: frozen tensors, rates, dropout."""
    fields = {"learning_rates": {"tower": 1e-4}, "frozen_parameters": ("patch_embedding",), "dropout": 0.2}
    whole = make_stage(tmp_path / "whole", weight_decay=0.1, **fields)
    whole.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-1")
    assert get_last_checkpoint(tmp_path / "whole").endswith("checkpoint-2")
    resumed = make_stage(tmp_path / "resumed", weight_decay=0.1, **fields)
    torch.manual_seed(17)  # whatever was drawn before, the checkpoint decides
    resumed.train(resume_from_checkpoint=checkpoint)
    logs = [
        [
            {key: row[key] for key in row if "second" not in key and key != "mfu"}
            for row in trainer.state.log_history
            if "loss" in row
        ]
        for trainer in (whole, resumed)
    ]
    assert logs[0] == logs[1] and "tower_rank" in logs[0][-1]
    assert not changed(parameters_of(whole.model), resumed.model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trained_parts": ("tower", "image_order")}, "names image_order, but the model has language_model, tower"),
        ({"trained_parts": ("vision",)}, "trained_parts names vision, but the model has language_model"),
        ({"frozen_parameters": ("patch_embeding",)}, "names 'patch_embeding', but none of the .* parameters"),
        ({"trained_parts": ()}, r"nothing is trained: trained_parts is \[\]"),
        ({"trained_parts": ("tower",), "frozen_parameters": ("tower",)}, "nothing is trained: .*'tower'.*'tower'"),
    ],
)
def test_parts_that_do_not_exist_are_refused(make_stage, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        make_stage(tmp_path, **fields)


@pytest.mark.parametrize("rates", [{"image_head": 1e-3}, {"language_model": 1e-3}])
def test_a_rate_of_what_is_not_trained_is_refused(make_stage, tmp_path, rates):
    part = next(iter(rates))
    trainer = make_stage(tmp_path, trained_parts=("tower", "projector"), learning_rates=rates)
    with pytest.raises(ValueError, match=f"learning_rates names {part}, but this run trains tower, projector"):
        trainer.create_optimizer()


def test_a_parameter_of_no_part_is_named():
    with pytest.raises(ValueError, match="model.adapter.weight belongs to none of the parts language_model, tower"):
        part_of("model.adapter.weight")


def test_data_that_teach_nothing_are_refused(make_stage, tmp_path):
    """Drawings without features, where nothing but the tower learns."""
    trainer = make_stage(tmp_path, trained_parts=("tower",), image_to_text_parts=0)
    with pytest.raises(ValueError, match="nothing that is trained takes part in sample 0 .*leave such data out"):
        trainer.train()


def test_groups_of_one_part_have_no_others(make_model):
    """All rates given: the groups without a rate of their own are there, and empty."""
    model = make_model("unitoken")
    choose_trained(model, ("tower", "projector"))
    groups = parameter_groups(model, set(), 0.1, 1e-3, {"projector": 1e-4, "tower": 1e-5})
    assert [len(group["params"]) for group in groups[:2]] == [0, 0]
    assert [group["lr"] for group in groups] == [1e-3] * 2 + [1e-4] * 2 + [1e-5] * 2
