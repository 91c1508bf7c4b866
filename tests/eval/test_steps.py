"""The curve of sampling steps on a tiny real model: what is measured with what, and who is refused."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval.steps
from eval.facts import Scene
from eval.judge import Judge
from eval.load import HubModel
from eval.pictures import RIGHT, WRONG
from eval.spark import judge_drawings, real_scene
from eval.steps import SETTING, choose_prompts, draw_curve, draw_in_turns, measure_steps, standard_error

DATA = Path(__file__).parents[2] / "eval" / "data"
SAMPLING = {"temperature": 0.9, "guidance_scale": 1.5}


@pytest.fixture(scope="module")
def model_folder(make_tiny_config, make_tiny_processor, tmp_path_factory):
    """Random weights that draw 64 x 64 pixels as 16 vectors, in steps of denoising."""
    from modeling_unified import UnifiedForConditionalGeneration
    from processing_unified import UnifiedImageProcessor

    codec = make_tiny_config("unifluid").codec_config.to_dict() | {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [8] * 4,
    }
    tower = make_tiny_config("unifluid").vision_config.to_dict() | {"image_size": 64, "patch_size": 32}
    config = make_tiny_config("unifluid", codec_config=codec, vision_config=tower, image_size=[64, 64])
    torch.manual_seed(0)
    model = UnifiedForConditionalGeneration(config)
    model.generation_config.image_sampling = SAMPLING
    processor = make_tiny_processor(config)
    processor.image_processor = UnifiedImageProcessor(size={"height": 64, "width": 64}, stride=16)
    folder = tmp_path_factory.mktemp("models") / "tiny-spark"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hub_model(model_folder):
    return HubModel.load(str(model_folder), batch_size=4)


def test_writes_the_curve_with_everything_it_was_measured_with(model_folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "results" / "tiny.steps.json"
    arguments = ["steps", "--model", str(model_folder), "--steps", "2", "4", "3", "--prompts", "1", "--batch-size", "4"]
    monkeypatch.setattr("sys.argv", [*arguments, "--output", str(output), "--image-sampling", '{"temperature": 0.5}'])
    eval.steps.main()
    record = json.loads(output.read_text())
    assert [point["steps"] for point in record["points"]] == record["settings"]["steps"] == [2, 4, 3]
    for point in record["points"]:
        assert point["drawing"]["n"] == 6 and point["drawing"]["images"] < 1  # it has random weights
        # Two batches, of 4 and of 2 images.
        assert point["seconds_per_image"] == pytest.approx(sum(point["seconds_of_batches"]) / 2)
        assert len(point["seconds_of_batches"]) == 2
    sampling = record["settings"]["image_sampling"]
    assert sampling == {"temperature": 0.5, "guidance_scale": 1.5, "guidance_schedule": "linear"}
    assert record["settings"]["split"] == "seen" and record["environment"]["packages"]["torch"]
    assert record["codec"]["n"] == 6 and record["seconds"] > 0
    assert Image.open(tmp_path / "results" / "tiny.steps.png").width >= 800
    assert "seconds per image" in capsys.readouterr().out


def test_steps_take_turns_and_each_image_is_that_of_its_prompt_seed_and_steps(hub_model):
    class Witness(HubModel):
        """Notes whose turn it is."""

        turns = []

        def draw_timed(self, prompts, seeds, image_sampling):
            self.turns.append((image_sampling[SETTING], list(seeds)))
            return super().draw_timed(prompts, seeds, image_sampling)

    witness = Witness(hub_model.model, hub_model.processor, batch_size=2)
    prompts = ["two cats", "a bus", "a red heart", "three apples", "a pizza"]
    images, seconds = draw_in_turns(witness, prompts, [2, 3], 7, {})
    first, *turns = witness.turns
    assert first == (2, [7])  # not timed
    assert turns == [(2, [7, 8]), (3, [7, 8]), (3, [9, 10]), (2, [9, 10]), (2, [11]), (3, [11])]
    assert {count: len(of) for count, of in seconds.items()} == {2: 3, 3: 3}
    for count in (2, 3):
        assert len(images[count]) == 5
        assert images[count][3].tobytes() == hub_model.draw(prompts[3:4], [7 + 3], {SETTING: count})[0].tobytes()
    assert images[2][3].tobytes() != images[3][3].tobytes()


def test_prompts_are_of_all_categories_in_turn_and_seen_in_training():
    rows = choose_prompts(3)
    assert set(Counter(row["category"] for row in rows).values()) == {3} and len({row["id"] for row in rows}) == 18
    assert {row["split"] for row in rows} == {"seen"} and len({row["category"] for row in rows[:6]}) == 6
    for count in (0, 51):
        with pytest.raises(ValueError, match=f"{count} prompts per category: choose 1 to 50"):
            choose_prompts(count)


def test_samples_are_framed_as_the_judge_found_them(tmp_path):
    """Real scenes are all right; every second one is called wrong here."""
    judge = Judge.load(DATA)
    rows = choose_prompts(1)
    real = [real_scene(Scene.from_json(row["scene"]), judge) for row in rows]
    scores, judged = judge_drawings(judge, rows, real)
    assert scores["images"] == 1 and standard_error(scores) == 0
    assert standard_error({"images": 0.5, "n": 100}) == pytest.approx(0.05)
    items = [item | {"drawn": image, "right": i % 2} for i, (item, image) in enumerate(zip(judged, real, strict=True))]
    record = {"points": [{"steps": 2, "seconds_per_image": 0.1, "drawing": scores}], "codec": scores}
    draw_curve("title", record, {2: items}, tmp_path / "curve.png")
    pixels = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB"))
    right, wrong = ((pixels == tuple(bytes.fromhex(colour[1:]))).all(-1).sum() for colour in (RIGHT, WRONG))
    assert 500 < right == pytest.approx(wrong, rel=0.05)


def test_refuses_what_it_cannot_measure(hub_model, tiny_model, tiny_processor):
    with pytest.raises(ValueError, match=r"without num_inference_steps: .*do_sample, temperature"):
        measure_steps(HubModel(tiny_model, tiny_processor), [2], 1)
    with pytest.raises(ValueError, match="num_inference_steps 7 among the settings"):
        measure_steps(hub_model, [2], 1, image_sampling={SETTING: 7})
    with pytest.raises(ValueError, match="3 numbers of steps, 2 different ones"):
        measure_steps(hub_model, [2, 4, 2], 1)
    with pytest.raises(ValueError, match="num_inference_steps 0 must be a whole number"):
        measure_steps(hub_model, [0], 1)
