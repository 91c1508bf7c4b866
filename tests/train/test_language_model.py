"""Runs of recipes from data to saved model, at tiny sizes: every row of the table, every variant of a paper's study."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

import train.language_model
from modeling_unified import KLCodec, KLCodecConfig, PatchCodec, PatchCodecConfig, VQCodec, VQCodecConfig
from modeling_unified.configuration_unified import PARADIGMS
from train.language_model import train_language_model
from train.packing import parts_of_like_length
from train.recipes import RECIPES
from train.recipes.studies import LAMBDAS, UNITOKEN_STUDIES
from train.scenes import Drawings, render

TINY = {"micro_batches": 1, "bf16": False, "attention": "sdpa", "warmup_steps": 1, "log_every": 1, "sample_every": 99}
TEXT = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 512}  # fmt: skip
BLOCKS = {"block_out_channels": [8] * 4, "norm_num_groups": 4, "mid_block_add_attention": False}
STUDIES = [name for name in RECIPES if name.startswith(("spark/unifluid", "spark/ugen", "spark/uvu", "spark/unitoken"))]
# The sweep of one number: its ends are tried always, all of it among the slow tests. Recipes that differ in shares of
# data alone are among these too.
MIDDLE = [f"spark/unifluid-lambda-{weight:g}" for weight in LAMBDAS[1:-1]] + list(UNITOKEN_STUDIES)
STUDIES = [pytest.param(name, marks=pytest.mark.slow) if name in MIDDLE else name for name in STUDIES]


@pytest.fixture(scope="module")
def parts_of_a_run(tmp_path_factory):
    """Folders of a text model of one step, and of codecs of eight pixels a token that no one has trained."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    VQCodec(VQCodecConfig(**BLOCKS, vq_embed_dim=4, num_vq_embeddings=32)).save_pretrained(folder / "vq")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    config = KLCodecConfig(**BLOCKS | blocks | {"block_out_channels": [8] * 3}, latent_channels=2, group_size=2)
    KLCodec(config).save_pretrained(folder / "kl")
    PatchCodec(PatchCodecConfig(patch_size=8, num_codewords=40)).save_pretrained(folder / "patch")
    scenes, train.language_model.TOKENIZER_SCENES = train.language_model.TOKENIZER_SCENES, 50
    try:
        text = replace(RECIPES["spark/text"](), **TINY, text_config=TEXT, text_vocab_size=400, steps=1, batch_size=4)
        assert train_language_model(text, folder / "text")
    finally:
        train.language_model.TOKENIZER_SCENES = scenes
    return folder


def tiny(name: str, folder) -> object:
    recipe = RECIPES[name]()
    codec = folder / recipe.codec.removeprefix("runs/")
    small = {"text_config": TEXT, "text_model": str(folder / "text"), "codec": str(codec), "scenes": 8, "edits": 6}
    small["model"] = recipe.model and str(folder / recipe.model.replace("runs/", "spark-"))
    small |= {"steps": 2, "batch_size": 12, "save_every": 2}
    if recipe.parts:
        small["parts"] = recipe.parts | {"diffusion_width": 16, "diffusion_depth": 1}
    if recipe.parts.get("vision_config"):
        narrow = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        small["parts"]["vision_config"] = recipe.parts["vision_config"] | narrow
    return replace(recipe, **TINY | small)


def run(recipe, output: Path) -> None:
    """Trains it, unless that has been done, after the runs that it goes on from."""
    before = recipe.model and Path(recipe.model)
    if before:
        run(tiny(before.name.replace("spark-", "spark/"), before.parent), before)
    if not output.exists():
        assert train_language_model(recipe, output)


@pytest.mark.parametrize("name", STUDIES)
def test_a_recipe_runs_from_data_to_a_saved_model(name, parts_of_a_run):
    recipe, output = tiny(name, parts_of_a_run), parts_of_a_run / name.replace("/", "-")
    run(recipe, output)
    record = json.loads((output / "training.json").read_text())
    assert record["steps"] == 2 and record["recipe"]["name"] == name
    model, processor = AutoModelForMultimodalLM.from_pretrained(output), AutoProcessor.from_pretrained(output)
    assert processor.image_inputs == model.config.image_inputs
    own_order = PARADIGMS[recipe.paradigm]["image_order"]
    assert model.config.image_order == recipe.parts.get("image_order", own_order)
    state = json.loads((output / "checkpoint-2/trainer_state.json").read_text())
    logged = {key for row in state["log_history"] for key in row}
    reads = recipe.image_to_text_parts or recipe.text_parts
    draws = recipe.text_to_image_parts or recipe.supervise_features
    assert ("text_loss" in logged) or not reads
    assert ("image_loss" in logged) == bool(draws)
    assert ("image_perplexity" in logged) == bool(draws and model.config.num_codes)
    assert ("balance_kept" in logged) == (recipe.supervised_ratio is not None)
    looks = recipe.image_to_text_parts or recipe.editing_parts or recipe.features_of_written
    assert ("tower_rank" in logged) == ("features" in model.config.image_inputs and bool(looks))
    if recipe.editing_parts:
        edits_read = [p for p in output.parent.joinpath("cache").iterdir() if p.name.endswith("-12")]
        assert edits_read, "six edits are twelve scenes"


def test_parts_of_like_length_keep_each_image_with_its_row(
    make_tiny_config, make_tiny_processor, make_image, sharp_text
):
    config = make_tiny_config("unifluid", image_inputs=["features", "latents"])
    processor, model = make_tiny_processor(config), sharp_text(config)
    drawn = [torch.randn(16, 8, generator=torch.Generator().manual_seed(n)) for n in range(4)]

    def read(n):
        return {"type": "image", "image": make_image(n), "image_tokens": drawn[n]}

    def said(role, *content):
        return {"role": role, "content": list(content)}

    def text(words):
        return {"type": "text", "text": words}

    batch = processor.encode_conversations(
        [
            [said("user", read(0), text("how many cats are there? " * 4)), said("assistant", text("two " * 12))],
            [said("assistant", text("a short text"))],
            [said("user", text("a cat")), said("assistant", {"type": "image", "image_tokens": drawn[1]})],
            [said("user", read(2)), said("assistant", text("a cat"))],
            [said("user", read(3), text("red")), said("assistant", {"type": "image", "image_tokens": drawn[0]})],
        ]
    )
    parts = list(parts_of_like_length(batch, model))
    assert len(parts) > 1 and sum(len(part["input_ids"]) for part in parts) == 5
    whole = model(**batch)
    losses = [model(**{name: value for name, value in part.items() if name != "samples"}) for part in parts]
    torch.testing.assert_close(sum(part.text_loss.sum() for part in losses), whole.text_loss.sum())
    assert sum(len(part.image_loss) for part in losses) == len(whole.image_loss) == 32


def test_parts_keep_images_of_many_sizes_with_their_rows(make_tiny_config, make_tiny_processor, make_image, sharp_text):
    """Each with its supervised targets, computed before or not."""
    config = make_tiny_config("uvu")
    processor, model = make_tiny_processor(config), sharp_text(config)
    sizes = [(8, 8), (2, 4), (6, 10), (4, 4), (10, 8)]
    images = iter([{"type": "image", "image": make_image(n, *size)} for n, size in enumerate(sizes)])

    def said(count, words):
        read = [next(images) for _ in range(count)]
        return [{"role": "user", "content": read}, {"role": "assistant", "content": words}]

    rows = [said(2, "two cats"), said(0, "nothing"), said(1, "a very " * 30), said(2, "a cat")]
    batch = processor.encode_conversations(rows, supervise_features=True)
    whole = model(**batch)
    for given in (
        {},
        {"feature_tokens": model.model.encode_read_images(batch["feature_pixel_values"], batch["feature_sizes"])},
    ):
        parts = list(parts_of_like_length(batch | given, model))
        assert len(parts) > 1
        losses = [model(**{name: value for name, value in part.items() if name != "samples"}) for part in parts]
        for kind in ("text_loss", "image_loss"):
            assert sum(len(part[kind]) for part in losses) == len(whole[kind])
            torch.testing.assert_close(sum(part[kind].sum() for part in losses), whole[kind].sum())


def test_parts_keep_images_in_tiles_with_their_rows(make_tiny_config, make_tiny_processor, make_image, sharp_text):
    """Of which each has a thumbnail too, and as many tiles as its shape asks for."""
    config = make_tiny_config("unitoken", tile_grids=[[1, 2], [2, 1], [2, 2]])
    processor, model = make_tiny_processor(config), sharp_text(config)
    rows = []
    for number, (height, width, words) in enumerate(
        [(8, 16, "a very " * 30), (16, 8, "two"), (16, 16, "a very " * 25)]
    ):
        image = {"type": "image", "image": make_image(number, height, width)}
        rows.append([{"role": "user", "content": [image]}, {"role": "assistant", "content": words}])
    batch = processor.encode_conversations([rows[0], rows[1], rows[2]])
    whole, parts = model(**batch), list(parts_of_like_length(batch, model))
    for part in parts:
        part.pop("samples")
    assert len(parts) > 1
    torch.testing.assert_close(sum(model(**part).text_loss.sum() for part in parts), whole.text_loss.sum())


@pytest.fixture
def sharp_text():
    """A random model in raster order: with the same places in every call, text losses can be compared."""
    from modeling_unified import UnifiedForConditionalGeneration

    def build(config):
        config.image_order = "raster"
        torch.manual_seed(0)
        return UnifiedForConditionalGeneration(config).eval()

    return build


def test_features_are_read_from_the_scene_that_the_tokens_show(scenes):
    show = train.language_model.shown_by(["features", "latents"])
    scene, tokens = scenes[0]
    part = show(scene, tokens)
    assert part["image"].tobytes() == render(scene, Drawings.load()).tobytes() and part["image_tokens"] is tokens
    assert "image" not in train.language_model.shown_by(["codes"])(scene, tokens)
