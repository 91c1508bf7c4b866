"""The angle between gradients: its definition, by hand on real models, and the command over a run's checkpoints."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainerState

from modeling_unified import PatchCodec, PatchCodecConfig, UnifiedForConditionalGeneration
from processing_unified import UnifiedProcessor
from train.balance import LongTailBalance
from train.gradient_angle import cosines, main, make_batches, measure, origin, weight_groups
from train.initialise import build_model
from train.processors import build_processor
from train.recipes import spark
from train.record import to_json, write_json

PARADIGMS = ("ugen", "unifluid", "uvu")
TEXT = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 512}  # fmt: skip
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_same_opposite_and_orthogonal_losses():
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    groups = {"first": list(model[0].parameters()), "last": list(model[2].parameters())}
    for factor, expected in ((1, 1), (3, 1), (-1, -1)):
        loss = model(torch.randn(5))[0]
        found = cosines(loss, factor * loss, groups)
        assert found.keys() == {"overall", "backbone", "first", "last"}
        assert all(cosine == pytest.approx(expected, abs=1e-6) for cosine in found.values())
    first, second = model(torch.randn(5))
    assert cosines(first, second, {"last": groups["last"]})["overall"] == 0.0  # other rows of the same matrix


def test_parameters_of_one_loss_have_no_part():
    shared, own = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([5.0]))
    text, image = shared[0] * own.sum(), shared.sum()
    found = cosines(text, image, {"shared": [shared], "own": [own]})
    assert found.keys() == {"overall", "backbone", "shared"}
    assert found["overall"] == pytest.approx(math.sqrt(0.5))
    with pytest.raises(ValueError, match="1 parameters, but none that both losses reach"):
        cosines(text, image, {"own": [own]})


@pytest.fixture
def make_batch(make_tiny_processor, make_image):
    """Callable(config, seed) -> inputs: an image that is read and supervised where it can be, one that is written."""

    def make(config, seed=0):
        read, written = ({"type": "image", "image": make_image(2 * seed + n)} for n in range(2))
        rows = [
            [{"role": "user", "content": [read]}, {"role": "assistant", "content": "two cats"}],
            [{"role": "user", "content": f"a {'red ' * seed}heart"}, {"role": "assistant", "content": [written]}],
        ]
        supervise = config.image_codec == "patch"
        return make_tiny_processor(config).encode_conversations(rows, supervise_features=supervise)

    return make


@pytest.fixture
def make_tiny_model(make_tiny_config):
    """Callable(paradigm, **config fields) -> model of random weights in eval mode; none are zero, as a fresh head's."""

    def make(paradigm, **fields):
        torch.manual_seed(1)
        model = UnifiedForConditionalGeneration(make_tiny_config(paradigm, **fields)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return model

    return make


def gradient_by_hand(model, batch, kind: str, seed: int) -> dict[str, np.ndarray]:
    """Of the mean loss of a kind, by a forward and a backward pass of its own."""
    torch.manual_seed(seed)
    model.zero_grad()
    model(**batch)[f"{kind}_loss"].mean().backward()
    return {
        name: parameter.grad.double().numpy().ravel().copy()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def cosine_by_hand(gradients: list[dict[str, np.ndarray]], chosen) -> float:
    names = [name for name in gradients[0] if name in gradients[1] and chosen(name)]
    a, b = (np.concatenate([of_kind[name] for name in names]) for of_kind in gradients)
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_the_angle_is_that_of_gradients_taken_by_hand(paradigm, tied, make_tiny_model, make_batch):
    model = make_tiny_model(paradigm, tie_word_embeddings=tied)
    batches = [make_batch(model.config, seed) for seed in range(2)]
    angles = measure(model, batches, seed=5)["angles"]
    assert all(parameter.grad is None for parameter in model.parameters())
    by_hand = [[gradient_by_hand(model, b, kind, 5 + n) for kind in ("text", "image")] for n, b in enumerate(batches)]
    language, embedding = "model.language_model.", "model.language_model.embed_tokens.weight"
    groups = {
        "overall": lambda name: name.startswith((language, "lm_head")),
        "backbone": lambda name: name.startswith(language) and name != embedding,
        "embedding": lambda name: name == embedding,
        "layer 0": lambda name: name.startswith(f"{language}layers.0."),
        "layer 1": lambda name: name.startswith(f"{language}layers.1."),
        "norm": lambda name: name.startswith(f"{language}norm."),
        "lm_head": lambda name: name == "lm_head.weight",
    }
    if tied or paradigm == "unifluid":  # a head of vectors does not touch lm_head
        del groups["lm_head"]
    assert list(angles) == list(groups)
    for name, chosen in groups.items():
        expected = np.array([cosine_by_hand(gradients, chosen) for gradients in by_hand])
        assert angles[name]["cosine"] == pytest.approx(expected.mean(), abs=1e-5), name
        assert angles[name]["cosine_error"] == pytest.approx(expected.std(ddof=1) / math.sqrt(2), abs=1e-5), name
        angle = np.degrees(np.arccos(expected))
        assert angles[name]["degrees"] == pytest.approx(angle.mean(), abs=1e-3), name
        assert angles[name]["degrees_error"] == pytest.approx(angle.std(ddof=1) / math.sqrt(2), abs=1e-3), name


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_one_loss_twice_on_a_real_model(kind, sign, make_tiny_model, make_batch):
    model = make_tiny_model("uvu")
    loss = model(**make_batch(model.config))[f"{kind}_loss"].mean()
    found = cosines(loss, sign * loss, weight_groups(model))
    assert {"overall", "backbone", "embedding", "layer 0", "layer 1", "norm"} == found.keys()
    assert all(cosine == pytest.approx(sign, abs=1e-6) for cosine in found.values())


def test_a_gradient_of_zeros_has_no_angle(make_tiny_config, make_batch):
    """A fresh diffusion head ends in zeros, so its loss does not reach the language model behind it yet."""
    model = UnifiedForConditionalGeneration(make_tiny_config("unifluid")).eval()
    angles = measure(model, [make_batch(model.config, seed) for seed in range(2)])["angles"]
    assert set(angles["norm"].values()) == {None}


def test_what_is_drawn_is_the_same_for_every_checkpoint(make_tiny_model, make_batch):
    model = make_tiny_model("unifluid")
    batches = [make_batch(model.config, seed) for seed in range(2)]
    first = measure(model, batches)
    torch.manual_seed(99)
    assert measure(model, batches) == first
    assert measure(model, batches, seed=1) != first


def test_labels_are_thinned_as_in_training(make_tiny_model, make_batch):
    model = make_tiny_model("uvu")
    batches = [make_batch(model.config, seed) for seed in range(2)]
    whole = measure(model, batches)
    thinned = measure(model, batches, LongTailBalance(16, 2 / whole["text_targets"]))
    assert (whole["image_targets"], thinned["image_targets"]) == (16 + 16, 16 + 2)
    assert measure(model, batches) == whole, "the batches are left alone"


def test_bad_batches_are_named(make_tiny_model, make_batch):
    model = make_tiny_model("ugen")
    batch = make_batch(model.config)
    with pytest.raises(ValueError, match="1 batches have no standard error"):
        measure(model, [batch])
    text_only = batch | {"labels": batch["labels"].masked_fill(batch["labels"] == model.config.image_token_id, -100)}
    with pytest.raises(ValueError, match=r"batch 1 has \d+ text targets and 0 image targets"):
        measure(model, [batch, text_only])


@pytest.fixture
def make_run(tmp_path, tiny_tokenizer, monkeypatch):
    """Callable(name, **recipe fields) -> folder of a run with checkpoints 4 and 12 of a model nobody has trained."""
    texts = [f"word {n}: meaning" for n in range(20)]
    monkeypatch.setattr("train.gradient_angle.read_texts", lambda path, skip_bad_rows: (texts, 0))
    PatchCodec(PatchCodecConfig(patch_size=8, num_codewords=40)).save_pretrained(tmp_path / "patch")

    def make(name, **fields):
        recipe = spark.uvu()
        parts = recipe.parts | {"vision_config": recipe.parts["vision_config"] | TOWER}
        small = {"text_config": TEXT, "parts": parts, "text_model": None, "codec": str(tmp_path / "patch")}
        small |= {"scenes": 6, "batch_size": 10, "steps": 12, "questions_per_scene": 1}
        recipe = replace(recipe, **small | fields)
        model = build_model(recipe, tiny_tokenizer)
        processor = build_processor(model.config, tiny_tokenizer, recipe.max_features)
        for step in (4, 12):
            folder = tmp_path / name / f"checkpoint-{step}"
            with torch.no_grad():
                model.lm_head.weight.mul_(1.5)
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        write_json(tmp_path / name / "recipe.json", to_json(recipe))
        return tmp_path / name

    return make


def test_the_command_draws_the_curve_of_a_run(make_run, tmp_path, capsys):
    folder, output = make_run("run"), tmp_path / "angle"
    models = [str(folder / f"checkpoint-{step}") for step in (12, 4)]
    main(["--model", *models, "--data", "spark", "--output", str(output), "--batches", "2"])
    record = json.loads((output / "gradient_angle.json").read_text())
    assert [point["step"] for point in record["checkpoints"]] == [4, 12]
    assert record["recipe"] == record["settings"]["data"] == "spark/uvu"
    assert [path.name[:6] for path in (tmp_path / "cache").iterdir()] == ["tokens"], "runs side by side share scenes"
    assert (output / "gradient_angle.png").stat().st_size > 10_000
    # Samples behind the run's last one. Of ten, two show an image that is supervised, five draw one, of 64 tokens each.
    recipe, _ = origin(folder / "checkpoint-4")
    model = UnifiedForConditionalGeneration.from_pretrained(folder / "checkpoint-4").eval()
    processor = UnifiedProcessor.from_pretrained(folder / "checkpoint-4")
    batches = make_batches(recipe, model, processor, tmp_path / "cache", 2)
    (one_step_on,) = make_batches(replace(recipe, steps=13), model, processor, tmp_path / "cache", 1)
    assert torch.equal(one_step_on["input_ids"], batches[1]["input_ids"])
    expected = measure(model, batches)
    assert expected == {name: record["checkpoints"][0][name] for name in expected}
    assert expected["image_targets"] == (2 + 5) * 64
    sums = [expected["angles"][name] for name in ("overall", "backbone")]
    numbers = [angle[key] for angle in sums for key in ("cosine", "cosine_error", "degrees")]
    shown = [float(word) for word in capsys.readouterr().out.splitlines()[1].split()]
    assert shown == pytest.approx([4, *numbers], abs=0.01) and numbers[0] != numbers[3]


def test_a_balanced_run_is_measured_by_its_own_counts(make_run, tmp_path):
    folder = make_run("balanced", supervised_ratio=0.1)
    arguments = ["--output", str(tmp_path / "angle"), "--batches", "2", "--model"]
    with pytest.raises(ValueError, match="has no trainer_state.json"):
        main([*arguments, str(folder / "checkpoint-4")])
    targets = []
    for frequent in (0, 1):
        balance = LongTailBalance(40, 0.1)
        balance.counts[frequent::2] = 10**6
        state = TrainerState(global_step=4, stateful_callbacks=[balance])
        state.save_to_json(str(folder / "checkpoint-4/trainer_state.json"))
        main([*arguments, str(folder / "checkpoint-4")])
        targets.append(json.loads((tmp_path / "angle/gradient_angle.json").read_text())["checkpoints"][0])
    texts, images = (targets[0][f"{kind}_targets"] for kind in ("text", "image"))
    assert 5 * 64 < images < 7 * 64 and abs(images - 5 * 64 - 0.1 * texts) <= 0.5
    assert targets[0]["image_loss"] != targets[1]["image_loss"]


def test_bad_folders_are_named(make_run, tmp_path):
    first, second = make_run("first"), make_run("second", seed=1)
    output = ["--output", str(tmp_path / "angle")]
    with pytest.raises(ValueError, match="first/checkpoint-4 is of a run of spark/uvu, .*second/checkpoint-12 of ano"):
        main(["--model", str(first / "checkpoint-4"), "--model", str(second / "checkpoint-12"), *output])
    with pytest.raises(ValueError, match="training.json does not exist"):
        main(["--model", str(first), *output])
    model = UnifiedForConditionalGeneration.from_pretrained(second / "checkpoint-4")
    weights = model.state_dict()
    weights["model.stranger.weight"] = weights.pop("model.language_model.norm.weight")
    model.save_pretrained(second / "checkpoint-4", state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks \['model.language_model.norm.weight'\] and has \['model.stranger"):
        main(["--model", str(second / "checkpoint-4"), *output])
    write_json(first / "recipe.json", {"name": "spark/vq", "codec_config": {}})
    with pytest.raises(ValueError, match=r"no recipe of a language model: it has \['codec_config'\]"):
        main(["--model", str(first / "checkpoint-4"), *output])


def test_where_a_model_comes_from(make_run):
    folder = make_run("run")
    recipe, step = origin(folder / "checkpoint-12")
    assert step == 12 and recipe == origin(folder / "checkpoint-4")[0] and recipe.name == "spark/uvu"
    record = {"recipe": to_json(recipe), "steps": 20}
    write_json(folder / "training.json", record)
    assert origin(folder) == (recipe, 20)
    write_json(folder / "training.json", {"spark/vq": {"recipe": {}, "steps": 3}, "spark/uvu": record})
    assert origin(folder) == (recipe, 20)
