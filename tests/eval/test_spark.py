"""The suite, end to end on a tiny real model: full marks for what is right, none for what is wrong."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval.demo
import eval.run
from eval.facts import Scene
from eval.items import read_items
from eval.judge import Judge
from eval.load import HubModel
from eval.pictures import Card, Line, Section, draw_sheet, wrap
from eval.spark import TEXT_FILE, evenly, judge_drawings, measure_text, real_scene, stated_facts

DATA = Path(__file__).parents[2] / "eval" / "data"


@pytest.fixture(scope="module")
def judge():
    return Judge.load(DATA)


@pytest.fixture(scope="module")
def model_folder(make_tiny_config, trained_tokenizer, tmp_path_factory):
    """A random model of two layers that draws 64 x 64 pixels from 64 codes, saved as a Hub repository would hold it."""
    from modeling_unified import UnifiedForConditionalGeneration
    from processing_unified import UnifiedImageProcessor, UnifiedProcessor

    codec = make_tiny_config().codec_config.to_dict() | {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [8, 8, 8, 16],
    }
    torch.manual_seed(0)
    model = UnifiedForConditionalGeneration(make_tiny_config(codec_config=codec, image_size=[64, 64]))
    image_processor = UnifiedImageProcessor(size={"height": 64, "width": 64}, stride=8)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(folder)
    UnifiedProcessor(image_processor, trained_tokenizer, image_stride=8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hub_model(model_folder):
    return HubModel.load(str(model_folder), batch_size=4)


def test_real_scenes_get_full_marks_and_other_scenes_none(judge):
    rows = [row for row in read_items(DATA / "spark_drawing.parquet") if row["split"] == "held_out"]
    real = [real_scene(Scene.from_json(row["scene"]), judge) for row in rows]
    scores, items = judge_drawings(judge, rows, real)
    assert scores["overall"] == 1 and set(scores["facts"].values()) == {1.0}
    assert set(eval.run.CATEGORIES) <= scores.keys() and all(item["right"] for item in items)
    wrong, items = judge_drawings(judge, rows, real[1:] + real[:1])
    assert wrong["overall"] < 0.03 and any(item["missing"] for item in items)


def test_captions_outside_the_grammar_state_nothing():
    assert stated_facts("a cat and a cat or so") == frozenset()
    assert ("count", "cat", 1) in stated_facts(" a large cat, noto style")


def test_evenly_spreads_and_keeps_short_lists():
    rows = [{"n": n} for n in range(10)]
    assert [row["n"] for row in evenly(rows, 4)] == [0, 2, 5, 7]
    assert evenly(rows, None) == rows and evenly(rows, 20) == rows


def test_suite_writes_its_three_files(model_folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "results" / "tiny.json"
    arguments = ["run", "--model", str(model_folder), "--limit", "6", "--output", str(output), "--batch-size", "8"]
    monkeypatch.setattr("sys.argv", [*arguments, "--image-sampling", '{"guidance_scale": 1.5}'])
    eval.run.main()
    record = json.loads(output.read_text())
    for split in ("held_out", "seen"):
        assert record["drawing"]["real"][split]["overall"] == 1
        assert record["drawing"]["model"][split]["overall"] < 1  # it has random weights
        assert record["drawing"]["model"][split]["n"] == record["describing"][split]["n"] == 6
    assert record["settings"]["image_sampling"]["guidance_scale"] == 1.5
    assert record["environment"]["packages"]["torch"] and record["seconds"] > 0
    assert record["codec"]["scenes"]["num_codes"] == 16
    items = [json.loads(line) for line in output.with_suffix(".items.jsonl").read_text().splitlines()]
    assert len(items) == 3 * 2 * 6 and {item["part"] for item in items} == {"drawing", "describing", "answering"}
    assert Image.open(output.with_suffix(".png")).width > 1000
    assert "single_object" in capsys.readouterr().out


def test_same_seed_same_image_in_any_batch(hub_model):
    prompts = ["two cats", "a bus", "a red heart above a blue circle"]
    together = hub_model.draw(prompts, seeds=[5, 6, 7])
    alone = hub_model.draw(prompts[2:], seeds=[7])
    assert together[2].tobytes() == alone[0].tobytes()
    assert hub_model.draw(prompts[2:], seeds=[8])[0].tobytes() != alone[0].tobytes()


def test_batches_do_not_change_texts(hub_model):
    images = [row["image"] for row in read_items(DATA / "spark_describing.parquet")[:5]]
    questions = ["what is this?", "how many cats?", "is there a bus?", "which style?", "where is the cat?"]
    together = hub_model.answer(images, questions)
    assert together == [hub_model.answer([i], [q])[0] for i, q in zip(images, questions, strict=True)]


def test_perplexity_is_that_of_the_model(hub_model):
    result = measure_text(hub_model, limit=3)
    rows = evenly(read_items(TEXT_FILE, filters=[("split", "==", "test")]), 3)
    nats = tokens = 0
    for row in rows:
        ids = [hub_model.processor.tokenizer.bos_token_id]
        ids += hub_model.processor.tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        ids += [hub_model.processor.tokenizer.eos_token_id]
        with torch.no_grad():
            logits = hub_model.model(input_ids=torch.tensor([ids])).logits[0, :-1]
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
        tokens += len(ids) - 1
    assert result["tokens"] == tokens
    assert result["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_demo_writes_its_picture(model_folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "demo.png"
    monkeypatch.setattr("sys.argv", ["demo", "--model", str(model_folder), "--output", str(output)])
    monkeypatch.setattr(eval.demo, "SCENES", 2)
    monkeypatch.setattr(eval.demo, "NEW_PROMPTS", 2)
    monkeypatch.setattr(eval.demo, "FAMILIAR_PROMPTS", 1)
    eval.demo.main()
    assert Image.open(output).width > 1000
    assert str(output) in capsys.readouterr().out


def test_prompts_of_the_demo_are_new_for_the_most_part():
    prompts = eval.demo.choose_prompts(random.Random(0))
    assert len(prompts) == len({row["id"] for row in prompts}) == 12
    assert sum(row["split"] == "held_out" for row in prompts) == 9


def test_missing_data_says_how_to_get_it(tmp_path):
    with pytest.raises(ValueError, match="train.suite"):
        read_items(tmp_path / "spark_drawing.parquet")


def test_sheet_wraps_its_text_and_holds_every_card(tmp_path):
    assert " ".join(wrap("a red heart above a blue circle", 80)) == "a red heart above a blue circle"
    assert len(wrap("a red heart above a blue circle", 80)) > 1
    card = Card(Image.new("RGB", (64, 64), "red"), [Line("words " * 30)])
    draw_sheet("title", [Section("one", "row", [card] * 2, columns=4)], tmp_path / "one.png")
    draw_sheet("title", [Section("two", "rows", [card] * 5, columns=4)], tmp_path / "two.png")
    one, two = (Image.open(tmp_path / name) for name in ("one.png", "two.png"))
    assert two.height > one.height + 192
    assert (np.asarray(two) == (255, 0, 0)).all(-1).sum() == 5 * 192 * 192
