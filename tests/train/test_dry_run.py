"""The page on every recipe can be made, says what the papers say, and names what cannot work."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from train.dry_run import build_on_meta, describe, dry_run
from train.estimate import count_parts
from train.parts import choose_trained
from train.recipes import RECIPES
from train.recipes.kinds import LanguageModelRecipe, Source

CARDS = Path(__file__).parents[2] / "model_cards"
DEVICES = {  # that the recipes of the papers are meant for
    "ugen/text": 64, "ugen/pretraining": 64, "ugen/sft": 64, "unifluid/pretraining": 128, "uvu/pretraining": 256,
    "uvu/sft": 32, "unitoken/1": 32, "unitoken/2": 32, "unitoken/3": 32,
}  # fmt: skip


@pytest.fixture(autouse=True)
def far_from_runs(monkeypatch, tmp_path):
    """What lies in somebody's `runs` is of no concern."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of every recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("nothing"))
        return {name: dry_run(recipe(), DEVICES.get(name, 1)) for name, recipe in RECIPES.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_passes(pages, name):
    page, recipe = pages[name], RECIPES[name]()
    assert page.startswith(name)
    batches = r"(\d+) steps of (\d+) samples: (\d+) devices? x (\d+) micro-batch(?:es)? x (\d+)"
    steps, batch, *shares = map(int, re.search(batches, page.replace(",", "")).groups())
    assert (steps, batch) == (recipe.steps, recipe.batch_size) and math.prod(shares) == batch
    assert ("operations a step" in page) == isinstance(recipe, LanguageModelRecipe)


def test_recipes_of_all_papers_have_a_number_of_devices():
    assert {name for name in RECIPES if not name.startswith("spark/")} == DEVICES.keys()


def test_the_numbers_of_the_papers(pages):
    assert "the last of 16,384 after step 98,304, 65.5% of the run" in pages["ugen/pretraining"]
    assert "none of 16,384 codes ever joins" in pages["ugen/text"]
    assert "1.04e+12 in all" in pages["uvu/pretraining"]
    row = re.search(r"activations of 1 x ([\d,]+) tokens", pages["uvu/pretraining"]).group(1)  # on each device
    assert 31_500 < int(row.replace(",", "")) <= 32_768
    assert re.search(r"codec +0 +0  and 614,400,000 bytes", pages["uvu/pretraining"])
    assert re.search(r"backbone +6,476,795,904 +0\n", pages["unitoken/1"])


@pytest.mark.parametrize("name", ["ugen", "unifluid"])
def test_counts_equal_those_of_the_models_that_ship(name):
    real = UnifiedForConditionalGeneration.from_pretrained(CARDS / f"{name}-spark")
    recipe = RECIPES[f"spark/{name}"]()
    choose_trained(real, recipe.trained_parts)
    counted = [(part.name, part.parameters, part.trained) for part in count_parts(build_on_meta(recipe))]
    assert counted == [(part.name, part.parameters, part.trained) for part in count_parts(real)]


def test_a_whole_model_that_is_there_is_described_by_its_config(make_tiny_config, tmp_path):
    config = make_tiny_config("uvu")
    config.save_pretrained(tmp_path / "run")
    found = describe(replace(RECIPES["uvu/sft"](), model=str(tmp_path / "run")))
    assert found.text_config.vocab_size == config.text_config.vocab_size
    assert found.codec_config.num_codewords == config.codec_config.num_codewords == 16


@pytest.mark.parametrize(
    ("name", "fields", "devices", "message"),
    [
        ("spark/ugen", {}, 3, "batch_size 32 is not a multiple of 3 devices x 1 micro-batches"),
        ("spark/vq", {"micro_batches": 5}, 1, "batch_size 32 is not a multiple of 1 devices x 5 micro-batches"),
        ("spark/ugen", {}, 0, "devices 0 must be at least 1"),
        ("uvu/pretraining", {"max_features": 40_000}, 256, "interleaved may have 40,389 tokens, more than the 32,768"),
        ("ugen/pretraining", {"packed_length": 1080}, 64, "may have 1,092 tokens, more than the 1,080 tokens"),
        ("spark/ugen", {"codec": "runs/other"}, 1, "runs/other holds no codec, and no recipe is called spark/other"),
        ("spark/ugen", {"sources": (Source("mine", 1, "new"),)}, 1, "source mine has the form 'new': known are text"),
        ("spark/text", {"text_parts": 0}, 1, "spark/text has no data"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named(name, fields, devices, message):
    with pytest.raises(ValueError, match=message):
        dry_run(replace(RECIPES[name](), **fields), devices)


def test_a_schedule_that_ends_too_early_is_told():
    page = dry_run(replace(RECIPES["ugen/pretraining"](), steps=60_000), 64)
    assert "WARNING: after all 60,000 steps 10,000 of 16,384 codes are active" in page


def test_time_follows_from_devices_and_their_speed():
    def seconds(devices, flops):
        return float(re.search(r"([\d.e-]+) seconds a step", dry_run(RECIPES["spark/ugen"](), devices, flops)).group(1))

    assert seconds(1, 1e12) == pytest.approx(4 * seconds(2, 2e12), rel=0.01)
