"""Scenes: what is sampled, what is held out, what is drawn, said and asked."""

import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.facts import HANDS, NUMBERS, PLACES, Placed, Scene, facts_of, parse, vocabulary
from train.held_out import HeldOut, combinations_of
from train.scenes import CANVAS, CELL, DATA, KINDS, Drawings, describe, questions, render, sample_scene


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    return HeldOut.load()


@pytest.fixture(scope="module")
def drawings() -> Drawings:
    return Drawings.load()


@pytest.fixture(scope="module")
def train_scenes(held_out) -> list[Scene]:
    rng = random.Random(0)
    return [sample_scene(rng, held_out) for _ in range(20_000)]


@pytest.fixture(scope="module")
def held_out_scenes(held_out) -> list[Scene]:
    rng = random.Random(1)
    return [sample_scene(rng, held_out, "held_out") for _ in range(1_000)]


@pytest.fixture(scope="module")
def some_scenes(train_scenes, held_out_scenes) -> list[Scene]:
    return train_scenes[:1_500] + held_out_scenes[:500]


def pairs_counts_places(scene: Scene) -> set[tuple]:
    """Written apart from `combinations_of`, so that one checks the other."""
    names = [o.concept for o in scene.objects]
    found = {("pair", a, b) for a in names for b in names if a < b}
    found |= {("count", a, names.count(a)) for a in names if names.count(a) > 1}
    if len(names) == 1 and not scene.objects[0].large:
        place = ("top ", "bottom ")[scene.objects[0].row] + ("left", "right")[scene.objects[0].col]
        found.add(("place", names[0], place))
    return found


def test_training_never_shows_a_held_out_combination(train_scenes, held_out):
    assert not any(pairs_counts_places(scene) & held_out.combinations for scene in train_scenes)


def test_held_out_scenes_always_show_one(held_out_scenes, held_out):
    assert all(pairs_counts_places(scene) & held_out.combinations for scene in held_out_scenes)
    kinds = Counter(c[0] for scene in held_out_scenes for c in held_out.shown_by(scene))
    assert kinds.keys() == {"pair", "count", "place"}


def test_combinations_agree_with_the_plain_version(some_scenes):
    assert all(combinations_of(scene) == pairs_counts_places(scene) for scene in some_scenes)


def test_every_concept_is_trained_in_every_hand_and_both_sizes(train_scenes):
    seen = {(o.concept, scene.hand, o.large) for scene in train_scenes for o in scene.objects}
    assert seen == {(name, hand, large) for name in vocabulary() for hand in HANDS for large in (False, True)}


def test_committed_list_is_what_build_draws(held_out):
    assert HeldOut.build() == held_out


def test_shares_of_held_out_combinations(held_out):
    names = vocabulary()
    kinds = Counter(c[0] for c in held_out.combinations)
    is_shapes = [bool(names[a].shape and names[b].shape) for kind, a, b in held_out.combinations if kind == "pair"]
    n_shapes = sum(c.shape is not None for c in names.values())
    shape_pairs, all_pairs = n_shapes * (n_shapes - 1) / 2, len(names) * (len(names) - 1) / 2
    assert sum(is_shapes) / shape_pairs == pytest.approx(0.15, abs=0.01)
    assert (len(is_shapes) - sum(is_shapes)) / (all_pairs - shape_pairs) == pytest.approx(0.12, abs=0.01)
    assert kinds["count"] / (3 * len(names)) == pytest.approx(0.10, abs=0.01)
    assert kinds["place"] / (4 * len(names)) == pytest.approx(0.08, abs=0.01)
    for kind in ("count", "place"):
        lost = Counter(c[1] for c in held_out.combinations if c[0] == kind)
        assert max(lost.values()) == 1


def test_kinds_come_with_their_weights(train_scenes):
    large = sum(scene.objects[0].large for scene in train_scenes) / len(train_scenes)
    assert large == pytest.approx(KINDS["large"] / sum(KINDS.values()), abs=0.01)
    numbers = Counter(len(scene.objects) for scene in train_scenes)
    assert numbers.keys() == {1, 2, 3, 4} and min(numbers.values()) > 0.05 * len(train_scenes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_can_be_asked_for(kind, held_out):
    scenes = [sample_scene(random.Random(seed), held_out, kind=kind) for seed in range(200)]
    groups = {(len(s.objects), len({o.concept for o in s.objects}), s.objects[0].large) for s in scenes}
    assert (
        groups
        == {
            "large": {(1, 1, True)},
            "small": {(1, 1, False)},
            "pair": {(2, 2, False)},
            "count": {(2, 1, False), (3, 1, False), (4, 1, False)},
            "groups": {(3, 2, False), (4, 2, False)},
            "several": {(3, 3, False), (4, 4, False)},
            "shapes": {(2, 2, False)},
        }[kind]
    )
    if kind == "shapes":
        for a, b in ((vocabulary()[o.concept] for o in s.objects) for s in scenes):
            assert a.shape and b.shape and a.colour != b.colour


def test_unknown_split_and_kind_are_refused(held_out):
    with pytest.raises(ValueError, match="test"):
        sample_scene(random.Random(0), held_out, "test")
    with pytest.raises(ValueError, match="huge"):
        sample_scene(random.Random(0), held_out, kind="huge")
    with pytest.raises(ValueError, match="large"):
        sample_scene(random.Random(0), held_out, "held_out", kind="large")


DIGEST = """
import hashlib, random
from train.scenes import *
from train.held_out import HeldOut
rng, held_out, digest = random.Random(3), HeldOut.load(), hashlib.sha256()
for _ in range(200):
    scene = sample_scene(rng, held_out)
    digest.update(repr((scene.to_json(), describe(scene, rng), questions(scene, rng))).encode())
print(digest.hexdigest())
"""


def test_same_seed_gives_the_same_in_another_process():
    """Python hashes strings differently in every process: no set's order may leak into a scene or text."""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            cwd=DATA.parents[1],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_render_draws_each_object_in_its_cell(drawings):
    scene = Scene("fluent", (Placed("cat", 0, 1), Placed("red heart", 1, 0)))
    image = np.asarray(render(scene, drawings))
    assert image.shape == (CANVAS, CANVAS, 3)
    assert (image[:CELL, CELL:] == drawings.pixels("cat", "fluent", False)).all()
    assert (image[CELL:, :CELL] == drawings.pixels("red heart", "fluent", False)).all()
    assert (image[:CELL, :CELL] == 255).all() and (image[CELL:, CELL:] == 255).all()
    large = np.asarray(render(Scene("noto", (Placed("bus", 0, 0, True),)), drawings))
    assert (large == drawings.pixels("bus", "noto", True)).all()


def test_drawings_stand_on_white_and_differ(drawings):
    blocks = {(n, h): drawings.pixels(n, h, False) for n in vocabulary() for h in HANDS}
    assert len({block.tobytes() for block in blocks.values()}) == len(blocks)
    for key, block in blocks.items():
        assert 0.05 < (block < 250).any(axis=-1).mean(), f"{key} is nearly invisible on white"
    assert (drawings.pixels("cat", "noto", True)[:4, :4] == 255).all()
    heart = drawings.pixels("red heart", "noto", True)[32, 32].astype(int)
    assert heart[0] > 200 > 100 > max(heart[1:])


def test_a_file_without_the_drawings_is_refused(tmp_path):
    path = tmp_path / "drawings.parquet"
    table = pq.read_table(DATA / "drawings.parquet", columns=["hexcode", "hand", "image"])
    pq.write_table(table.slice(0, 0), path)
    with pytest.raises(ValueError, match="lacks 312 of 312"):
        Drawings.load(path)


def test_speed(drawings, held_out):
    """Processor time, so that a busy machine does not fail it: 10,000 scenes a second are usual, 2,000 are wanted."""
    rng, start = random.Random(0), time.process_time()
    for _ in range(500):
        render(sample_scene(rng, held_out), drawings)
    assert time.process_time() - start < 0.25


def test_captions_are_true(some_scenes):
    rng = random.Random(0)
    for scene in some_scenes:
        for caption in (describe(scene), describe(scene, rng)):
            assert parse(caption) <= facts_of(scene), caption
            assert len(caption.split()) <= 19, caption


def test_captions_name_everything(some_scenes):
    """Each concept with its number: nothing shown is left unsaid, save what the docstring allows."""
    rng = random.Random(0)
    for scene in some_scenes:
        counts = {fact for fact in facts_of(scene) if fact[0] in ("count", "total", "colour")}
        assert counts <= parse(describe(scene, rng))
        assert counts | {("hand", scene.hand)} <= parse(describe(scene))


def test_canonical_captions_tell_lone_and_paired_objects_apart(train_scenes):
    """Scenes of one object have a caption each; two different objects share one with the other row or column only."""
    scenes_of = defaultdict(set)
    for scene in train_scenes:
        scenes_of[describe(scene)].add(scene)
    for scenes in scenes_of.values():
        objects = next(iter(scenes)).objects
        if len(objects) == 1:
            assert len(scenes) == 1
        elif len(objects) == 2 and objects[0].concept != objects[1].concept:
            assert len(scenes) <= 2


def test_wording_varies_and_the_hand_is_sometimes_left_out():
    scene = Scene("noto", (Placed("cat", 0, 0), Placed("pizza", 0, 1)))
    rng = random.Random(0)
    captions = Counter(describe(scene, rng) for _ in range(2_000))
    for wanted in (
        "a cat left of a pizza, noto style",
        "a pizza to the right of a cat",
        "noto style: a cat and a pizza",
    ):
        assert captions[wanted]
    assert sum(n for c, n in captions.items() if "noto" not in c) / 2_000 == pytest.approx(0.15, abs=0.03)
    assert {describe(scene) for _ in range(9)} == {"a cat left of a pizza, noto style"}


def answers_by_brute_force(question: str, scene: Scene) -> set[str]:
    """Every right answer, from the grid alone."""
    concepts = vocabulary()
    cells = {(o.row, o.col): o.concept for o in scene.objects}
    names = list(cells.values())
    plural = {c.plural: c.name for c in concepts.values()}
    if match := re.fullmatch(r"how many (.+)\?", question):
        return {NUMBERS[names.count(plural[match[1]])]}
    if match := re.fullmatch(r"is there an? (.+)\?", question):
        return {"yes" if match[1] in names else "no"}
    if match := re.fullmatch(r"what colour is the (.+)\?", question):
        return {concepts[n].colour for n in names if concepts[n].shape == match[1]}
    if question == "which style?":
        return {scene.hand}
    if question == "what is this?":
        return set(names)
    if match := re.fullmatch(r"what is in the (.+)\?", question):
        return {cells[PLACES[match[1]]]}
    if match := re.fullmatch(r"where is the (.+)\?", question):
        return {place for place, cell in PLACES.items() if cells.get(cell) == match[1]}
    match = re.fullmatch(r"what is (left of|right of|above|below) the (.+)\?", question)
    row, col = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}[match[1]]
    return {cells.get((r + row, c + col)) for (r, c), name in cells.items() if name == match[2]}


def test_each_question_has_exactly_one_right_answer(some_scenes):
    rng = random.Random(0)
    forms = Counter()
    for scene in some_scenes:
        for kind, question, answer in questions(scene, rng):
            assert answers_by_brute_force(question, scene) == {answer}, (question, scene)
            assert len(answer.split()) <= 2
            forms[kind, " ".join(question.split()[:3])] += 1
    assert {kind for kind, _ in forms} == {"count", "presence", "place", "colour", "hand", "object"}
    for start in ("what is left", "what is right", "what is above", "what is below", "what is in", "where is the"):
        assert forms["place", start], start


def test_presence_is_balanced(some_scenes):
    rng = random.Random(0)
    answers = Counter(a for scene in some_scenes for kind, _, a in questions(scene, rng) if kind == "presence")
    assert answers["yes"] / answers.total() == pytest.approx(0.5, abs=0.04)
