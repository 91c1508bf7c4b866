"""The guard of the vision tower: its numbers by their definitions, and that it warns of a collapse and of nothing else.

B images, N places, F numbers in a feature
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from train.curves import PANELS, draw_curves
from train.tower_guard import LEAST_RANK, MOST_COSINE, TowerGuard, statistics


def test_the_statistics_are_what_they_are_called():
    features_BNF = torch.randn(5, 3, 6) * torch.tensor([4.0, 3, 2, 1, 0.5, 0.1]) + torch.randn(1, 3, 6)
    found = statistics(features_BNF)
    deviations = [features_BNF[:, place].var(0, correction=0) for place in range(3)]
    assert found["tower_std"] == pytest.approx(math.sqrt(float(torch.stack(deviations).mean())), rel=1e-5)
    cosines = [
        float(torch.cosine_similarity(features_BNF[one, place], features_BNF[two, place], dim=0))
        for one, two in itertools.combinations(range(5), 2)
        for place in range(3)
    ]
    assert found["tower_cosine"] == pytest.approx(sum(cosines) / 30, rel=1e-5)
    values = torch.linalg.svdvals((features_BNF - features_BNF.mean(0)).flatten(0, 1))
    shares = (values / values.sum()).tolist()
    assert found["tower_rank"] == pytest.approx(math.prod(share**-share for share in shares), rel=1e-4)


@pytest.mark.parametrize("places", ["all alike", "each its own"])
def test_features_that_say_nothing_of_the_image_are_those_of_a_collapse(places):
    features_1NF = torch.randn(1, 1 if places == "all alike" else 4, 6).expand(1, 4, 6)
    found = statistics(features_1NF.expand(5, 4, 6))
    assert found["tower_std"] == pytest.approx(0, abs=1e-6) and found["tower_cosine"] == pytest.approx(1)
    assert statistics(torch.ones(5, 4, 6)) == pytest.approx({"tower_std": 0, "tower_cosine": 1, "tower_rank": 1})


def test_features_of_one_direction_have_rank_one_and_independent_ones_their_number():
    lengths_BN1, direction_F = torch.randn(40, 4, 1), torch.randn(6)
    assert statistics(lengths_BN1 * direction_F)["tower_rank"] == pytest.approx(1, abs=1e-3)
    assert statistics(torch.randn(2000, 4, 6))["tower_rank"] == pytest.approx(6, abs=0.01)


def test_features_that_are_not_finite_are_not_healthy():
    features_BNF = torch.randn(3, 2, 4)
    features_BNF[1, 0, 2] = math.inf
    assert all(math.isnan(value) for value in statistics(features_BNF).values())


@pytest.fixture
def guarded(make_tiny_config, make_tiny_processor, make_image):
    """A model that reads through codes and features, and a guard that watches it see eight images."""
    from modeling_unified import UnifiedForConditionalGeneration

    config = make_tiny_config("unitoken")
    torch.manual_seed(0)
    model = UnifiedForConditionalGeneration(config)
    rows = [[{"role": "user", "content": [{"type": "image", "image": make_image(n)}]}] for n in range(8)]
    return model, TowerGuard(make_tiny_processor(config).encode_conversations(rows))


def test_it_looks_at_the_tower_alone_and_leaves_no_trace(guarded):
    model, guard = guarded
    tower, state = model.model.encoders["features"].tower, torch.get_rng_state()
    tower.train()
    features_BNF = guard.features(model)
    expected_BNF = tower.eval()(torch.stack(guard.images)).last_hidden_state
    assert features_BNF.shape == (8, 4, 16) and torch.equal(features_BNF, expected_BNF)
    assert not features_BNF.requires_grad and not tower._forward_hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for name, module in model.named_modules() if "tower" not in name)


def test_it_warns_once_for_each_collapse(guarded, caplog):
    model, guard = guarded
    norm = model.model.encoders["features"].tower.post_layernorm
    healthy = {name: value.clone() for name, value in norm.state_dict().items()}
    collapsed = {"weight": torch.zeros(16), "bias": torch.ones(16)}
    warnings = []
    for step, state in enumerate([healthy, collapsed, collapsed, healthy, collapsed]):
        norm.load_state_dict(state)
        caplog.clear()
        guard.logs(model, step)
        warnings.append([record.getMessage() for record in caplog.records])
    assert [len(messages) for messages in warnings] == [0, 1, 0, 0, 1]
    message = warnings[1][0]
    assert message.startswith("step 1: ") and "rank is 1.0 (healthy: 4.0 and more)" in message
    assert "images 1.000 (healthy: up to 0.99)" in message and "Lower the tower's learning rate" in message


def test_a_single_image_cannot_be_compared(guarded, caplog):
    model, guard = guarded
    alone = TowerGuard({"feature_pixel_values": torch.stack(guard.images[:1]), "input_ids": torch.zeros(3, 4)})
    assert alone.logs(model, 0) == {}
    assert "not watched: 1 of the run's first 3 samples" in caplog.text
    assert TowerGuard({"input_ids": torch.zeros(3, 4)}).images == []


def test_images_of_other_sizes_are_left_out(make_tiny_config, make_tiny_processor, make_image):
    config = make_tiny_config("uvu")
    sizes = [(8, 8), (4, 8), (8, 8), (8, 6)]
    rows = [[{"role": "user", "content": [{"type": "image", "image": make_image(0, *size)}]}] for size in sizes]
    guard = TowerGuard(make_tiny_processor(config).encode_conversations(rows))
    assert [tuple(image.shape) for image in guard.images] == [(3, 8, 8)] * 2


@pytest.fixture
def run_stage(make_tiny_config, make_tiny_processor, make_image, scenes, tmp_path):
    """Callable: logs of a run of captioning in which the tower has its own rate."""
    from modeling_unified import UnifiedForConditionalGeneration
    from train.conversations import image, image_to_text
    from train.language_model import build_trainer
    from train.mixture import Mixture, SceneSource
    from train.recipes import spark

    config = make_tiny_config("unitoken")
    picture = {scene: make_image(number) for number, (scene, _) in enumerate(scenes)}

    def run(rate, seed):
        recipe = replace(
            spark.unitoken_1(), steps=10, batch_size=8, log_every=2, save_every=99, bf16=False, attention="sdpa",
            warmup_steps=0, seed=seed, learning_rates={"tower": rate},
        )  # fmt: skip
        write = image_to_text(recipe, lambda scene, tokens: image(tokens, picture[scene]))
        mixture = Mixture([(SceneSource(scenes, seed, write), 1)], 80, seed)
        torch.manual_seed(seed)
        model = UnifiedForConditionalGeneration(config)
        trainer = build_trainer(recipe, tmp_path, model, make_tiny_processor(config), mixture)
        trainer.train()
        return [row for row in trainer.state.log_history if "loss" in row]

    return run


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_absurd_rate_makes_it_warn_and_a_good_one_does_not(run_stage, caplog, tmp_path, seed):
    def warned():
        return "the features of the vision tower degenerate" in caplog.text

    healthy = run_stage(1e-3, seed)
    assert not warned()
    assert all(row["tower_rank"] > LEAST_RANK and row["tower_cosine"] < MOST_COSINE for row in healthy)
    collapsed = run_stage(1.0, seed)
    assert warned()
    assert collapsed[-1]["tower_rank"] < LEAST_RANK or collapsed[-1]["tower_cosine"] > MOST_COSINE
    assert len(healthy) == 5 and all({"tower_std", "tower_cosine", "tower_rank"} <= row.keys() for row in healthy)
    assert {"tower_std", "tower_cosine", "tower_rank"} <= {key for keys, _ in PANELS.values() for key in keys}
    draw_curves(healthy, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
