"""Edits: what is sampled, what an instruction means, what stays, and the conversation they become."""

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch

from eval.facts import HANDS, PLACES, Placed, Scene, vocabulary
from train.conversations import editing, image
from train.edits import EDIT_KINDS, WORDINGS, Edit, instruct, kind_of, sample_edit
from train.held_out import HeldOut
from train.scenes import CELL, Drawings, render

CAT, DOG = Placed("cat", 0, 0), Placed("dog", 1, 1)


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    return HeldOut.load()


@pytest.fixture(scope="module")
def train_edits(held_out) -> list[Edit]:
    rng = random.Random(0)
    return [sample_edit(rng, held_out) for _ in range(4_000)]


@pytest.fixture(scope="module")
def held_out_edits(held_out) -> list[Edit]:
    rng = random.Random(1)
    return [sample_edit(rng, held_out, "held_out") for _ in range(1_000)]


def in_cells(scene: Scene) -> dict[tuple[int, int], tuple]:
    return {(o.row, o.col): (o.concept, o.large) for o in scene.objects}


# Instructions are read here without the code that words them, so that one checks the other.
OLD = rf"the (?P<noun>[a-z ]+?)(?: in the (?P<where>{'|'.join(PLACES)}))?"
NEW = r"(?P<new>an? [a-z ]+?)"
PLACE = rf"(?P<place>{'|'.join(PLACES)})(?: corner)?"
COLOUR = rf"(?P<colour>{'|'.join(sorted({c.colour for c in vocabulary().values() if c.colour}))})"
HAND = rf"(?P<hand>{'|'.join(HANDS)})"
GRAMMAR = (
    *(f"{verb} {OLD} {word} {NEW}" for verb, word in {"replace": "with", "swap": "for", "turn": "into"}.items()),
    f"change {OLD} to {NEW}",
    f"put {NEW} in place of {OLD}",
    f"(?:add|put|draw) {NEW} in the {PLACE}",
    f"(?:remove|delete|erase|take away) {OLD}",
    f"(?:move|shift|bring) {OLD} to the {PLACE}",
    f"(?:make|paint|colour|turn) {OLD} {COLOUR}",
    f"redraw (?:it|everything) in {HAND} style",
    f"change the style to {HAND}",
    f"make it {HAND} style",
)


def is_meant(placed: Placed, noun: str, where: str | None) -> bool:
    concept = vocabulary()[placed.concept]
    return noun in (concept.name, concept.shape) and (where is None or PLACES[where] == (placed.row, placed.col))


def readings(instruction: str, source: Scene) -> set[Scene]:
    """Every scene that the instruction could ask for."""
    with_article = {c.with_article: c.name for c in vocabulary().values()}
    found = set()
    for said in (match.groupdict() for pattern in GRAMMAR if (match := re.fullmatch(pattern, instruction))):
        meant = [o for o in source.objects if is_meant(o, said["noun"], said["where"])] if "noun" in said else [None]
        for old in meant:
            objects = [o for o in source.objects if o != old]
            name = with_article.get(said["new"]) if "new" in said else old.concept if old else None
            if "colour" in said:
                name = f"{said['colour']} {vocabulary()[old.concept].shape}"
            cell = PLACES[said["place"]] if "place" in said else (old.row, old.col) if old else None
            if said.keys() & {"new", "place", "colour"}:
                objects.append(Placed(name, *cell))
            if len({(o.row, o.col) for o in objects}) == len(objects):  # nothing is put where something stands
                found.add(Scene(said.get("hand", source.hand), tuple(objects)))
    return found


def test_training_edits_show_no_held_out_combination(train_edits, held_out):
    assert not any(held_out.shown_by(scene) for edit in train_edits for scene in (edit.source, edit.target))


def test_targets_of_held_out_edits_always_show_one(held_out_edits, held_out):
    assert all(held_out.shown_by(edit.target) for edit in held_out_edits)
    known = Counter(edit.kind for edit in held_out_edits if not held_out.shown_by(edit.source))
    assert min(known[kind] for kind in ("replace", "add", "remove", "recolour")) > 0


@pytest.mark.parametrize("split", ["train_edits", "held_out_edits"])
def test_source_and_instruction_determine_the_target(split, request):
    for edit in request.getfixturevalue(split):
        assert readings(edit.instruction, edit.source) == {edit.target}, edit


def test_all_else_stays(train_edits, held_out_edits):
    for edit in train_edits + held_out_edits:
        before, after = in_cells(edit.source), in_cells(edit.target)
        cells = {cell for cell in PLACES.values() if before.get(cell) != after.get(cell)}
        assert len(cells) == {"move": 2, "redraw": 0}.get(edit.kind, 1)
        assert (edit.source.hand != edit.target.hand) == (edit.kind == "redraw")
        if edit.kind == "move":
            assert Counter(before.values()) == Counter(after.values())


def test_pixels_change_only_in_the_cells_that_change(train_edits):
    drawings = Drawings.load()
    for edit in [edit for edit in train_edits if edit.kind != "redraw"][:200]:
        before, after = (np.asarray(render(scene, drawings)) for scene in (edit.source, edit.target))
        for row, col in PLACES.values():
            cell = np.s_[row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL]
            stays = in_cells(edit.source).get((row, col)) == in_cells(edit.target).get((row, col))
            assert (before[cell] == after[cell]).all() == stays


def test_kinds_come_with_their_weights(train_edits):
    counts = Counter(edit.kind for edit in train_edits)
    for kind, weight in EDIT_KINDS.items():
        assert counts[kind] / len(train_edits) == pytest.approx(weight / sum(EDIT_KINDS.values()), abs=0.03)
    large = {edit.kind for edit in train_edits if edit.source.objects[0].large}
    assert large == {"redraw"}


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_a_kind_can_be_asked_for(kind, held_out):
    for split in ("train", "held_out"):
        assert sample_edit(random.Random(0), held_out, split, kind).kind == kind


def test_every_concept_goes_and_comes(train_edits):
    cells = [(set(edit.source.objects), set(edit.target.objects)) for edit in train_edits]
    assert {o.concept for before, after in cells for o in before - after} == set(vocabulary())
    assert {o.concept for before, after in cells for o in after - before} == set(vocabulary())


def test_all_wordings_are_used(train_edits):
    openings = {words.split("{")[0].strip() for wordings in WORDINGS.values() for words in wordings}
    used = {opening for edit in train_edits for opening in openings if edit.instruction.startswith(opening)}
    assert used == openings
    scenes = (Scene("noto", (CAT, DOG)), Scene("noto", (CAT,)))
    assert len({instruct(*scenes, random.Random(seed)) for seed in range(100)}) == 2 * len(WORDINGS["remove"])


def test_a_seed_fixes_the_edit(held_out):
    first, same, other = (sample_edit(random.Random(seed), held_out) for seed in (3, 3, 4))
    assert first == same != other


def test_json_gives_the_edit_back(train_edits):
    for edit in train_edits[:200]:
        assert Edit.from_json(edit.to_json()) == edit
    scenes = Scene("noto", (CAT, DOG)), Scene("noto", (CAT,))
    with pytest.raises(ValueError, match="'add'.*'remove'"):
        Edit("add", scenes[0], "add a dog in the bottom right", scenes[1])


@pytest.mark.parametrize(
    "hands, before, after",
    [
        (("noto", "noto"), (CAT,), (CAT,)),
        (("noto", "fluent"), (CAT,), (DOG,)),
        (("noto", "noto"), (CAT,), (DOG,)),
        (("noto", "noto"), (CAT,), (CAT, DOG, Placed("bus", 0, 1))),
        (("noto", "noto"), (Placed("cat", 0, 0, True),), (CAT,)),
        (("noto", "noto"), (CAT,), ()),
    ],
    ids=["nothing", "hand and object", "other thing elsewhere", "two more", "size", "emptied"],
)
def test_scenes_that_no_single_edit_connects_are_refused(hands, before, after):
    with pytest.raises(ValueError, match="no single edit"):
        kind_of(Scene(hands[0], before), Scene(hands[1], after))


def test_unknown_kinds_and_splits_are_refused(held_out):
    with pytest.raises(ValueError, match="unknown kind of edit 'paint'"):
        sample_edit(random.Random(0), held_out, kind="paint")
    with pytest.raises(ValueError, match="split"):
        sample_edit(random.Random(0), held_out, "test")


def test_the_source_is_read_and_the_target_written(tiny_processor):
    source, target = torch.arange(16), torch.arange(16).flip(0)
    conversation = editing(image(source), "remove the cat", image(target))
    assert [message["role"] for message in conversation] == ["user", "assistant"]
    batch = tiny_processor.encode_conversations([conversation])
    assert batch["image_tokens"].tolist() == [source.tolist(), target.tolist()]
    slots = (batch["input_ids"][0] == tiny_processor.image_token_id).nonzero()[:, 0]
    assert len(slots) == 32 and slots[16] > slots[15] + 1  # the instruction stands between
    labels = batch["labels"][0]
    assert (labels[: slots[16] - 1] == -100).all() and (labels[slots[16:]] == tiny_processor.image_token_id).all()
