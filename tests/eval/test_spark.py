"""The suite, end to end on a tiny real model: full marks for what is right, none for what is wrong."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval.demo
import eval.run
from eval.facts import Placed, Scene
from eval.items import read_items
from eval.judge import Judge, Layout, Seen
from eval.load import HubModel
from eval.pictures import Card, Line, Section, draw_sheet, wrap
from eval.spark import (
    CATEGORIES,
    DEFAULT_TASKS,
    TASKS,
    TEXT_FILE,
    edit_verdict,
    evaluate_spark,
    evenly,
    judge_drawings,
    measure_editing,
    measure_text,
    real_scene,
    stated_facts,
)

DATA = Path(__file__).parents[2] / "eval" / "data"


@pytest.fixture(scope="module")
def judge():
    return Judge.load(DATA)


@pytest.fixture(scope="module")
def hub_model(model_folder):
    return HubModel.load(str(model_folder), batch_size=4)


def test_real_scenes_get_full_marks_and_other_scenes_none(judge):
    rows = [row for row in read_items(DATA / "spark_drawing.parquet") if row["split"] == "held_out"]
    real = [real_scene(Scene.from_json(row["scene"]), judge) for row in rows]
    scores, items = judge_drawings(judge, rows, real)
    assert scores["overall"] == 1 and set(scores["facts"].values()) == {1.0}
    assert set(CATEGORIES) <= scores.keys() and all(item["right"] for item in items)
    wrong, items = judge_drawings(judge, rows, real[1:] + real[:1])
    assert wrong["overall"] < 0.03 and any(item["missing"] for item in items)


class KnownAnswers:
    """Edits by looking up what to draw for each item: `answer(source, target)`, a scene. Its codec loses nothing."""

    def __init__(self, judge, answer):
        self.answers = {}
        for row in read_items(DATA / "spark_editing.parquet"):
            source, target = (Scene.from_json(row[key]) for key in ("source", "target"))
            self.answers[real_scene(source, judge).tobytes(), row["instruction"]] = answer(source, target)
        self.judge = judge

    def edit(self, images, instructions, seeds, image_sampling):
        assert len(set(seeds)) == len(images)
        pairs = zip(images, instructions, strict=True)
        return [real_scene(self.answers[image.tobytes(), words], self.judge) for image, words in pairs]

    def reconstruct(self, images):
        return list(images), None


def shares_of(results):
    """All shares of the model, of both splits and every kind: {"changed": {...}, ...}, and the numbers of items."""
    parts = [part for split in results["model"].values() for part in (split, *split["by_kind"].values())]
    return {key: {part[key] for part in parts} for key in ("changed", "stayed", "exact", "n")}


def test_real_targets_are_perfect_edits_and_sources_change_nothing(judge):
    results, items = measure_editing(KnownAnswers(judge, lambda source, target: target), judge, None, 0, None)
    assert shares_of(results) == {"changed": {1}, "stayed": {1}, "exact": {1}, "n": {120, 20}}
    assert results["real"] == results["codec"] == results["model"]
    assert len(items) == 240 and all(item["exact"] and item["drawn"].size == (64, 64) for item in items)
    results, items = measure_editing(KnownAnswers(judge, lambda source, target: source), judge, 24, 0, None)
    assert shares_of(results) == {"changed": {0}, "stayed": {1}, "exact": {0}, "n": {24, 4}}
    assert results["codec"]["seen"]["exact"] == 1 and not any(item["exact"] for item in items)


def test_drawing_only_what_was_asked_for_loses_the_rest(judge):
    def forgetful(source, target):
        return Scene(target.hand, tuple(set(target.objects) - set(source.objects)) or target.objects)

    results, _ = measure_editing(KnownAnswers(judge, forgetful), judge, 24, 0, None)
    for split in ("held_out", "seen"):
        for kind in ("replace", "add", "move", "recolour"):
            scores = results["model"][split]["by_kind"][kind]
            assert (scores["changed"], scores["stayed"], scores["exact"]) == (1, 0, 0)


CAT, DOG, BUS, APPLE = Placed("cat", 0, 0), Placed("dog", 1, 1), Placed("bus", 0, 0), Placed("apple", 0, 1)


def judged(*objects: Placed, hands: str = "noto noto noto noto", unknown: tuple = ()) -> Layout:
    return Layout(tuple(Seen(*o, hand, 1.0) for o, hand in zip(objects, hands.split(), strict=False)), unknown)


@pytest.mark.parametrize(
    "layout, changed, stayed",
    [
        (judged(BUS, DOG), True, True),
        (judged(CAT, DOG), False, True),
        (judged(BUS), True, False),
        (judged(BUS, APPLE, DOG), True, False),
        (judged(BUS, DOG, hands="noto fluent"), True, False),
        (judged(BUS, DOG, hands="fluent noto"), False, True),
        (judged(DOG, unknown=((0, 0),)), False, True),
        (judged(BUS, DOG, unknown=((0, 1),)), True, False),
        (judged(Placed("bus", 0, 0, True)), False, False),
        (judged(), False, False),
    ],
)
def test_verdict_on_a_cat_replaced_by_a_bus(layout, changed, stayed):
    verdict = edit_verdict(Scene("noto", (CAT, DOG)), Scene("noto", (BUS, DOG)), layout)
    assert verdict == {"changed": changed, "stayed": stayed, "exact": changed and stayed}


def test_verdict_on_a_copy_instead_of_a_move():
    moved = Placed("cat", 0, 1)
    verdict = edit_verdict(Scene("noto", (CAT, DOG)), Scene("noto", (moved, DOG)), judged(CAT, moved, DOG))
    assert verdict == {"changed": False, "stayed": True, "exact": False}


@pytest.mark.parametrize(
    "layout, changed, stayed",
    [
        (judged(CAT, DOG, hands="fluent fluent"), True, True),
        (judged(CAT, DOG), False, True),
        (judged(CAT, DOG, hands="fluent noto"), False, True),
        (judged(BUS, DOG, hands="fluent fluent"), True, False),
        (judged(CAT, hands="fluent", unknown=((1, 1),)), False, False),
        (judged(), False, False),
    ],
)
def test_verdict_on_a_scene_redrawn(layout, changed, stayed):
    verdict = edit_verdict(Scene("noto", (CAT, DOG)), Scene("fluent", (CAT, DOG)), layout)
    assert verdict == {"changed": changed, "stayed": stayed, "exact": changed and stayed}


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
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 1.5}
    assert record["settings"]["image_sampling"] == sampling
    assert 0 < record["drawing"]["seconds_per_image"] * 12 < record["seconds"] and record["parameters"] > 1000
    assert record["environment"]["packages"]["torch"] and record["seconds"] > 0
    assert record["codec"]["scenes"]["num_codes"] == 16
    assert record["settings"]["tasks"] == list(DEFAULT_TASKS) and "editing" not in record
    items = [json.loads(line) for line in output.with_suffix(".items.jsonl").read_text().splitlines()]
    assert len(items) == 3 * 2 * 6 and {item["part"] for item in items} == {"drawing", "describing", "answering"}
    assert Image.open(output.with_suffix(".png")).width > 1000
    assert "single_object" in capsys.readouterr().out


def test_editing_is_measured_where_it_is_asked_for(model_folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "tiny.json"
    arguments = ["run", "--model", str(model_folder), "--limit", "6", "--output", str(output)]
    monkeypatch.setattr("sys.argv", [*arguments, "--tasks", "editing", "codec"])
    eval.run.main()
    record = json.loads(output.read_text())
    assert record.keys() & {*TASKS, "frechet"} == {"editing", "codec"}
    for split in ("held_out", "seen"):
        assert record["editing"]["real"][split]["exact"] == 1
        assert record["editing"]["model"][split]["exact"] == 0  # it has random weights
        assert len(record["editing"]["model"][split]["by_kind"]) == record["editing"]["model"][split]["n"] == 6
    items = [json.loads(line) for line in output.with_suffix(".items.jsonl").read_text().splitlines()]
    assert len(items) == 12 and all(item["part"] == "editing" and item["judged"] for item in items)
    assert Image.open(output.with_suffix(".png")).width > 1000
    assert re.search(r"recolour( +0\.000){4}", capsys.readouterr().out)


def test_unknown_tasks_are_refused(hub_model):
    with pytest.raises(ValueError, match=r"no \['painting'\].*editing"):
        evaluate_spark(hub_model, tasks=["painting"])


def test_same_seed_same_edit_in_any_batch_but_not_of_another_image(hub_model):
    images = [row["image"] for row in read_items(DATA / "spark_describing.parquet")[:3]]
    words = ["remove the cat", "make the circle red", "move the apple to the top left"]
    together = [image.tobytes() for image in hub_model.edit(images, words, seeds=[5, 6, 7])]
    assert hub_model.edit(images[2:], words[2:], seeds=[7])[0].tobytes() == together[2]
    assert hub_model.edit(images[2:], words[2:], seeds=[8])[0].tobytes() != together[2]
    # Chosen, not drawn: the logits of random weights differ, but too little to change many draws.
    greedy = {"do_sample": False}
    chosen = [image.tobytes() for image in hub_model.edit(images[1:] * 2, [*words[1:], *words[:2]], [0] * 4, greedy)]
    assert chosen[0] != chosen[2] and chosen[1] != chosen[3]  # another instruction
    same_words = hub_model.edit(images, words[2:] * 3, [0] * 3, greedy)
    assert same_words[2].tobytes() == chosen[1] != same_words[0].tobytes()  # another image


def test_same_seed_same_image_in_any_batch(hub_model):
    prompts = ["two cats", "a bus", "a red heart above a blue circle"]
    together = hub_model.draw(prompts, seeds=[5, 6, 7])
    alone = hub_model.draw(prompts[2:], seeds=[7])
    assert together[2].tobytes() == alone[0].tobytes()
    assert hub_model.draw(prompts[2:], seeds=[8])[0].tobytes() != alone[0].tobytes()


def test_batches_do_not_change_texts(hub_model):
    images = [row["image"] for row in read_items(DATA / "spark_describing.parquet")[:5]]
    questions = ["what is this?", "how many cats?", "is there a bus?", "which style?", "where is the cat?"]
    contents = list(zip(images, questions, strict=True))
    assert hub_model.answer(contents) == [hub_model.answer([content])[0] for content in contents]


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


def test_sheet_shows_source_and_result_apart_from_the_words(tmp_path):
    source, result = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    section = Section("edits", "", [Card(source, [Line("words " * 60)], result)] * 2, columns=2, beside=True)
    draw_sheet("title", [section], tmp_path / "edits.png")
    sheet = np.asarray(Image.open(tmp_path / "edits.png"))
    red, blue = ((sheet == colour).all(-1) for colour in ((255, 0, 0), (0, 0, 255)))
    assert red.sum() == blue.sum() == 2 * 192 * 192  # whole: no word runs into an image
    assert red.any(0).argmax() + 192 < blue.any(0).argmax()  # columns of the first card
