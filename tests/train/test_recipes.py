"""Every recipe can be built, its derived ones differ in what they say, and the command line is what we promised."""

import dataclasses
import json
import math

import pytest

from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from train.arguments import training_arguments
from train.language_model import build_trainer
from train.mixture import Mixture, TextSource
from train.recipes import CODEBOOKS, RECIPES
from train.recipes.kinds import LanguageModelRecipe
from train.record import open_run, to_json
from train.run import main, parser

LANGUAGE_MODELS = [name for name, recipe in RECIPES.items() if isinstance(recipe(), LanguageModelRecipe)]


def differences(first: str, second: str) -> dict:
    one, two = (dataclasses.asdict(RECIPES[name]()) for name in (first, second))
    return {key: two[key] for key in one if one[key] != two[key]}


def test_names_are_those_they_are_registered_under():
    assert {name: recipe().name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}
    assert RECIPES.keys() >= {"spark/vq", "spark/text", "spark/ugen", "spark/ugen-vanilla"}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_recipe_becomes_a_trainer(name, tmp_path, make_tiny_config, make_tiny_processor):
    # Flash attention, which some recipes ask for, is not everywhere.
    recipe = dataclasses.replace(RECIPES[name](), bf16=False, attention="sdpa")
    mixture = Mixture([(TextSource(["a text"], 0, 100), 1)], 10, 0)
    # A row with stages must have the parts they name; of the others any will do.
    config = make_tiny_config(recipe.paradigm if recipe.features_of_written else "ugen")
    model = UnifiedForConditionalGeneration(config)
    model.name_or_path = recipe.model or ""  # adapters say whose they are
    trainer = build_trainer(recipe, tmp_path, model, make_tiny_processor(config), mixture)
    trainer.create_optimizer()
    assert trainer.args.max_steps == recipe.steps
    assert trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps == recipe.batch_size
    grows = "ProgressiveVocabulary" in [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert grows == (recipe.steps_per_code is not None)


def test_the_baselines_differ_from_ugen_in_the_vocabulary_alone():
    assert differences("spark/ugen", "spark/ugen-vanilla") == {"name": "spark/ugen-vanilla", "steps_per_code": None}
    assert differences("spark/ugen", "spark/ugen-never") == {"name": "spark/ugen-never", "steps_per_code": math.inf}


def test_ugen_mixes_three_two_five_and_starts_from_text_alone():
    text, ugen = RECIPES["spark/text"](), RECIPES["spark/ugen"]()
    assert (ugen.text_parts, ugen.image_to_text_parts, ugen.text_to_image_parts) == (3, 2, 5)
    assert (text.text_parts, text.image_to_text_parts, text.text_to_image_parts) == (1, 0, 0)
    assert text.text_config == ugen.text_config and text.codec is None
    assert ugen.steps > 1024 * ugen.steps_per_code, "some codes of a thousand would never become active"


def test_unitoken_trains_in_three_stages_each_from_the_one_before():
    first, second, third = (RECIPES[f"spark/unitoken{stage}"]() for stage in ("-1", "-2", ""))
    assert (first.model, second.model, third.model) == (None, "runs/unitoken-1", "runs/unitoken-2")
    assert (second.steps_before, third.steps_before) == (first.steps, first.steps + second.steps)
    assert first.steps + second.steps + third.steps == RECIPES["spark/ugen"]().steps
    assert (first.trained_parts, second.trained_parts, third.trained_parts) == (("tower", "projector"), None, None)
    assert first.question_share == 0 and (first.text_parts, first.text_to_image_parts) == (0, 0)
    assert second.image_to_text_parts == second.text_to_image_parts
    assert third.learning_rate < second.learning_rate
    assert third.learning_rates == {"tower": pytest.approx(third.learning_rate / 100)}
    for recipe in (first, second, third):
        assert recipe.features_of_written and recipe.parts["z_loss_weight"] == 1e-5
        assert (recipe.betas, recipe.max_grad_norm, recipe.weight_decay, recipe.dropout) == ((0.9, 0.95), 4, 0.1, 0.05)


def test_unitokens_comparisons_keep_the_samples_of_what_they_do_not_change():
    def samples(name):
        recipe = RECIPES[name]()
        kinds = recipe.text_parts, recipe.image_to_text_parts, recipe.text_to_image_parts
        return tuple(recipe.steps * recipe.batch_size * parts / sum(kinds) for parts in kinds)

    for base in ("spark/unitoken-2", "spark/unitoken-codes"):
        text, read, drawn = samples(base)
        assert read == drawn
        assert samples(f"{base}-read-only") == (text, read, 0) and samples(f"{base}-draw-only") == (text, 0, drawn)
    text, read, drawn = samples("spark/unitoken-2")
    assert samples("spark/unitoken-2-half-drawn") == (text, read, drawn / 2)
    assert samples("spark/unitoken-2-fifth") == (text / 5, read / 5, drawn / 5)
    assert samples("spark/unitoken-2-fifth-half-drawn") == (text / 5, read / 5, drawn / 10)
    both = differences("spark/unitoken-2", "spark/unitoken-codes")
    assert both.keys() == {"name", "model", "steps_before", "steps", "parts", "features_of_written"}
    assert both["steps"] == sum(RECIPES[f"spark/unitoken-{stage}"]().steps for stage in (1, 2))


def parts(recipe: LanguageModelRecipe) -> tuple[int, ...]:
    return tuple(source.parts for source in recipe.sources)


def test_ugen_at_the_papers_size():
    text, pretraining, sft = (RECIPES[f"ugen/{stage}"]() for stage in ("text", "pretraining", "sft"))
    assert (parts(text), parts(pretraining), parts(sft)) == ((1,), (3, 2, 5), (2, 6, 2))
    assert pretraining.steps_per_code in (3, 6, 9) and pretraining.steps > 16_384 * pretraining.steps_per_code
    assert (text.steps_per_code, sft.steps_per_code) == (math.inf, None)
    assert [recipe.model for recipe in (text, pretraining, sft)] == [
        None, "runs/ugen-1b/text", "runs/ugen-1b/pretraining"
    ]  # fmt: skip


def test_unifluid_at_the_papers_size():
    recipe = RECIPES["unifluid/pretraining"]()
    assert (recipe.batch_size, recipe.learning_rate, recipe.steps) == (2048, 1e-4, 1_000_000)
    assert recipe.text_weight == 0.005 and recipe.image_weight == 1.0
    assert recipe.attention == "eager", "torch's fused attention refuses Gemma-2's soft caps"


def test_uvu_at_the_papers_size():
    codebook, pretraining, sft = CODEBOOKS["uvu/codebook"](), RECIPES["uvu/pretraining"](), RECIPES["uvu/sft"]()
    assert (codebook.num_codewords, codebook.patches_per_round, codebook.patch_size) == (200_000, 20_000_000, 32)
    assert (pretraining.image_weight, pretraining.text_weight, pretraining.packed_length) == (0.5, 1.0, 32_768)
    assert pretraining.supervise_features and not sft.supervise_features
    for recipe in (pretraining, sft):
        assert recipe.learning_rate == 2e-5 and recipe.warmup_steps == recipe.steps // 100


def test_unitoken_at_the_papers_size():
    first, second, third = (RECIPES[f"unitoken/{stage}"]() for stage in (1, 2, 3))
    assert [recipe.model for recipe in (first, second, third)] == [None, "runs/unitoken-7b/1", "runs/unitoken-7b/2"]
    assert [recipe.learning_rate for recipe in (first, second, third)] == [1e-3, 1e-5, 1e-5]
    assert [recipe.trained_parts for recipe in (first, second, third)] == [("tower", "projector"), None, None]
    assert [recipe.steps for recipe in (first, second, third)] == [19_531, 155_460, 4_085]  # one epoch each
    read, drawn = sum(parts(second)[:-1]), parts(second)[-1]
    assert drawn == 10_000 and 0.98 < read / drawn < 1, "ten million each, of which the table names 9.9"
    for recipe in (first, second, third):
        assert recipe.learning_rates == {"tower": 1e-5} and recipe.batch_size == 128
        assert recipe.features_of_written and recipe.parts["z_loss_weight"] == 1e-5 and not recipe.drop_prompt_share
        assert (recipe.betas, recipe.max_grad_norm, recipe.weight_decay, recipe.dropout) == ((0.9, 0.95), 4, 0.1, 0.05)
        assert recipe.frozen_parameters == ("tower.*patch_embedding", "tower.*position_embedding")


PAPERS = [name for name in LANGUAGE_MODELS if not name.startswith("spark/")]


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_of_a_paper_leaves_data_to_the_user_and_sizes_to_the_table(name):
    recipe = RECIPES[name]()
    assert recipe.sources and all(source.path is None for source in recipe.sources)
    assert len({source.name for source in recipe.sources}) == len(recipe.sources)
    assert recipe.text_config is None and recipe.text_model and recipe.codec
    assert (recipe.tower is None) == (name.startswith("ugen/"))


def test_the_collapse_differs_in_the_rate_of_the_tower():
    changed = differences("spark/unitoken-1", "spark/unitoken-collapse")
    assert changed.pop("learning_rates") == {"tower": 50 * RECIPES["spark/unitoken-1"]().learning_rate}
    assert changed.keys() == {"name", "steps", "sample_every"}


def test_the_recipe_reaches_the_optimiser(tmp_path):
    recipe = dataclasses.replace(RECIPES["spark/ugen"](), micro_batches=4, weight_decay=0.07, betas=(0.8, 0.9))
    arguments = training_arguments(recipe, tmp_path)
    assert (arguments.weight_decay, arguments.adam_beta1, arguments.adam_beta2) == (0.07, 0.8, 0.9)
    assert (
        arguments.per_device_train_batch_size == recipe.batch_size // 4 and arguments.gradient_accumulation_steps == 4
    )


def test_a_folder_keeps_to_its_recipe(tmp_path):
    recipe = RECIPES["spark/ugen-never"]()
    assert open_run(recipe, tmp_path, resume=True) is None
    (tmp_path / "checkpoint-7").mkdir()
    assert open_run(recipe, tmp_path, resume=True) == str(tmp_path / "checkpoint-7")
    with pytest.raises(ValueError, match="checkpoint-7 already: pass --resume"):
        open_run(recipe, tmp_path, resume=False)
    with pytest.raises(ValueError, match="batch_size 32 -> 33"):
        open_run(dataclasses.replace(recipe, batch_size=33), tmp_path, resume=True)


def test_a_run_from_before_a_field_existed_goes_on_with_its_default(tmp_path):
    recipe = RECIPES["spark/ugen-never"]()
    open_run(recipe, tmp_path, resume=False)
    (tmp_path / "checkpoint-7").mkdir()
    stored = json.loads((tmp_path / "recipe.json").read_text())
    del stored["keep_checkpoints"]
    (tmp_path / "recipe.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="keep_checkpoints 2 -> None"):
        open_run(dataclasses.replace(recipe, keep_checkpoints=None), tmp_path, resume=True)
    assert open_run(recipe, tmp_path, resume=True) == str(tmp_path / "checkpoint-7")


def test_infinity_is_written_as_json_anyone_can_read():
    assert to_json(RECIPES["spark/ugen-never"]())["steps_per_code"] == "Infinity"


def test_the_flags_of_the_command_are_these():
    flags = {flag for action in parser()._actions for flag in action.option_strings if flag.startswith("--")}
    assert flags == {
        "--help", "--recipe", "--output", "--resume", "--max-steps", "--text-model", "--codec", "--skip-bad-rows",
        "--data", "--lora", "--report-to", "--model", "--micro-batches", "--dry-run", "--devices", "--flops",
    }  # fmt: skip


def test_a_dry_run_needs_no_folder_and_training_does(capsys):
    assert main(["--recipe", "spark/text", "--dry-run", "--devices", "2"]) == 0
    assert "2 devices x 1 micro-batch x 16" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--recipe", "spark/text"])
    assert "--output is needed" in capsys.readouterr().err
