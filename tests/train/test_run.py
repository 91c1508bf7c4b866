"""The command on data of one's own: named on the command line, read, trained on, told of in the record."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForMultimodalLM

import train.language_model
from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from train.curves import draw_curves
from train.recipes import RECIPES, spark
from train.recipes.kinds import Source
from train.run import located, main


@pytest.fixture
def own_data(tmp_path, make_image):
    """A folder of images with captions, and texts: (folder, file)."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    captions = []
    for number in range(6):
        make_image(number, 8, 8).save(folder / f"{number}.png")
        captions.append({"file_name": f"{number}.png", "text": f"picture {number}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, captions)))
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": f"text {number}"}) for number in range(5)))
    return folder, texts


@pytest.fixture
def recipe(tmp_path, make_tiny_config, make_tiny_processor, monkeypatch):
    torch.manual_seed(0)
    config = make_tiny_config("ugen")
    UnifiedForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    make_tiny_processor(config).save_pretrained(tmp_path / "model")
    sources = (
        Source("texts", 1, "text"),
        Source("read", 1, "image_to_caption"),
        Source("drawn", 2, "caption_to_image"),
    )
    recipe = replace(
        spark.ugen(), name="spark/own", model=str(tmp_path / "model"), sources=sources, packed_length=200, steps=3,
        batch_size=4, steps_per_code=None, text_model=None, bf16=False, attention="sdpa", log_every=1, sample_every=10,
    )  # fmt: skip
    monkeypatch.setitem(RECIPES, "spark/own", lambda: recipe)
    return recipe


def placed(own_data) -> list[str]:
    """Where the command line says that the recipe's sources lie."""
    folder, texts = own_data
    return [f"--data={name}={path}" for name, path in (("texts", texts), ("read", folder), ("drawn", folder))]


def test_trains_on_data_that_the_command_line_names(recipe, own_data, tmp_path):
    folder, texts = own_data
    output = tmp_path / "run"
    assert main(["--recipe", "spark/own", "--output", str(output), *placed(own_data)]) == 0
    record = json.loads((output / "training.json").read_text())
    assert record["steps"] == 3 and record["skipped_rows"] == {"texts": 0, "read": 0, "drawn": 0}
    assert {source["name"]: source["path"] for source in record["recipe"]["sources"]} == {
        "texts": str(texts), "read": str(folder), "drawn": str(folder),
    }  # fmt: skip
    assert (output / "curves.png").exists() and (output / "samples" / "step-000003.png").exists()
    by_source = {"texts/text_loss", "read/text_loss", "drawn/image_loss"}
    assert {"text_loss", "image_loss", "tokens_per_second", "mfu", *by_source} <= record["last_log"].keys()
    assert record["samples"] == {"texts": 3, "read": 3, "drawn": 6}
    UnifiedForConditionalGeneration.from_pretrained(output)


def test_nothing_is_shown_of_texts_that_answer_nobody(recipe, own_data, monkeypatch, tmp_path):
    monkeypatch.setitem(RECIPES, "spark/own", lambda: replace(recipe, sources=recipe.sources[:1], steps=1))
    output = tmp_path / "run"
    assert main(["--recipe", "spark/own", "--output", str(output), placed(own_data)[0]]) == 0
    assert (output / "curves.png").exists() and not (output / "samples").exists()
    assert not any("/" in key for key in json.loads((output / "training.json").read_text())["last_log"])


def test_logs_go_to_tensorboard_if_asked(recipe, own_data, tmp_path):
    output = tmp_path / "run"
    command = ["--recipe", "spark/own", "--output", str(output), "--max-steps", "1", "--report-to", "tensorboard"]
    assert main([*command, *placed(own_data)]) == 0
    (events,) = output.glob("runs/*/events*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    logged = json.loads((output / "training.json").read_text())["last_log"]
    for key in ("text_loss", "drawn/image_loss", "tokens_per_second", "mfu"):
        (event,) = accumulator.Scalars(f"train/{key}")
        assert event.step == 1 and event.value == pytest.approx(logged[key], rel=1e-6)
    draw_curves([], tmp_path / "empty.png")
    assert (output / "curves.png").read_bytes() != (tmp_path / "empty.png").read_bytes()  # after one step


@pytest.mark.parametrize(
    ("service", "message"),
    [("nowhere", "nowhere is not supported, only"), ("trackio", "trackio to be installed. Run `pip install trackio`")],
)
def test_a_service_that_is_not_there_is_refused(recipe, own_data, tmp_path, service, message):
    """Before anything is read or written; trackio is not in constraints.txt."""
    with pytest.raises(ValueError, match=f"--report-to {service}: .*{message}"):
        main(["--recipe", "spark/own", "--output", str(tmp_path / "run"), "--report-to", service, *placed(own_data)])
    assert not (tmp_path / "run").exists()


def test_a_source_without_a_place_is_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match="texts"):
        main(["--recipe", "spark/own", "--output", str(tmp_path / "run")])


def test_a_source_that_the_recipe_does_not_have_is_refused(recipe):
    with pytest.raises(ValueError, match="--data names words, but the sources of spark/own are: texts, read, drawn"):
        located(recipe, ["words=/nowhere"])


def test_data_of_ones_own_need_a_tokenizer(recipe, monkeypatch, tmp_path):
    monkeypatch.setitem(RECIPES, "spark/own", lambda: replace(recipe, model=None))
    with pytest.raises(ValueError, match="neither a model nor a text_model"):
        main(["--recipe", "spark/own", "--output", str(tmp_path / "run")])


def test_lora_leaves_an_adapter_that_loads(recipe, own_data, tmp_path):
    output = tmp_path / "run"
    assert (
        main(["--recipe", "spark/own", "--output", str(output), "--lora", "--max-steps", "2", *placed(own_data)]) == 0
    )
    assert (output / "samples" / "step-000002.png").exists()
    assert (output / "adapter_model.safetensors").exists() and not (output / "model.safetensors").exists()
    whole = UnifiedForConditionalGeneration.from_pretrained(recipe.model).state_dict()
    adapted = AutoModelForMultimodalLM.from_pretrained(output)
    weights = adapted.state_dict()
    learned = [name for name in weights if "lora_B" in name]
    assert learned and any(bool(weights[name].any()) for name in learned)
    kept = {name.replace(".base_layer", ""): value for name, value in weights.items() if "lora_" not in name}
    assert all(torch.equal(kept[name], value) for name, value in whole.items())


def test_adapters_need_a_model(recipe, monkeypatch, tmp_path):
    monkeypatch.setitem(RECIPES, "spark/own", lambda: replace(recipe, model=None, sources=()))
    with pytest.raises(ValueError, match="belong to a trained model"):
        main(["--recipe", "spark/own", "--output", str(tmp_path / "run"), "--lora"])


def test_instruction_tuning_is_trls_and_teaches_the_same(recipe, own_data, monkeypatch, tmp_path):
    used = []
    for trainer in ("UnifiedTrainer", "UnifiedSFTTrainer"):
        kind = getattr(train.language_model, trainer)
        monkeypatch.setattr(
            train.language_model, trainer, lambda kind=kind, **given: used.append(kind) or kind(**given)
        )
    adapters = []
    for tuning in (False, True):
        changed = replace(recipe, instruction_tuning=tuning)
        monkeypatch.setitem(RECIPES, "spark/own", lambda changed=changed: changed)
        output = tmp_path / f"tuning-{tuning}"
        assert main(["--recipe", "spark/own", "--output", str(output), "--lora", *placed(own_data)]) == 0
        adapters.append(load_file(output / "adapter_model.safetensors"))
    assert [kind.__name__ for kind in used] == ["UnifiedTrainer", "UnifiedSFTTrainer"]
    ours, theirs = adapters
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_trained_beside_adapters_is_said_in_one_place(recipe, own_data, monkeypatch, tmp_path):
    monkeypatch.setitem(RECIPES, "spark/own", lambda: replace(recipe, trained_parts=("head",)))
    with pytest.raises(ValueError, match="names trained_parts"):
        main(["--recipe", "spark/own", "--output", str(tmp_path / "run"), "--lora", *placed(own_data)])


@pytest.mark.parametrize("flag", [["--lora"], ["--data", "drawn=/nowhere"], ["--text-model", "/nowhere"]])
def test_flags_of_a_language_model_are_refused_for_a_codec(flag):
    with pytest.raises(ValueError, match="spark/vq trains a codec, which has no"):
        main(["--recipe", "spark/vq", "--dry-run", *flag])
