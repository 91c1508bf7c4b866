"""Edits: pairs of scenes with the words that lead from one to the other, without end, from a seed.

    edit = sample_edit(random.Random(7), HeldOut.load())
    edit.kind, edit.instruction                             "move", "move the apple to the bottom right"
    render(edit.source, drawings), render(edit.target, drawings)

Six kinds (our choice: what scenes in cells allow). All that an edit does not name stays where it is, in its hand:

    replace     one object by a thing of another kind, in its cell
    add         one object into a named empty cell
    remove      one of two to four objects
    move        one object to a named empty cell
    recolour    one coloured shape, which stays the same shape
    redraw      all in another hand; the only edit of a large object

The source and the instruction determine the target: an object that its name alone does not single out is called by its
place ("the cat in the top left"). Functions are pure: all chance comes from the `random.Random` they are given.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from eval.facts import HANDS, PLACE_OF_CELL, Placed, Scene, vocabulary
from train.held_out import HeldOut
from train.scenes import CELLS, sample_scene

# Our choice: mostly edits that ask to find an object and to leave the others alone, since that is hardest to learn.
EDIT_KINDS = {"replace": 25, "add": 20, "remove": 15, "move": 20, "recolour": 10, "redraw": 10}
WORDINGS = {
    "replace": (
        "replace {old} with {new}",
        "swap {old} for {new}",
        "turn {old} into {new}",
        "change {old} to {new}",
        "put {new} in place of {old}",
    ),
    "add": ("add {new} in the {place}", "put {new} in the {place}", "draw {new} in the {place}"),
    "remove": ("remove {old}", "delete {old}", "erase {old}", "take away {old}"),
    "move": ("move {old} to the {place}", "shift {old} to the {place}", "bring {old} to the {place}"),
    "recolour": ("make {old} {colour}", "paint {old} {colour}", "colour {old} {colour}", "turn {old} {colour}"),
    "redraw": (
        "redraw it in {hand} style",
        "redraw everything in {hand} style",
        "change the style to {hand}",
        "make it {hand} style",
    ),
}


@dataclass(frozen=True)
class Edit:
    """What is asked of a source, and the one scene that fulfils it. ValueError if `kind` is not what the scenes show.

    `instruct(source, target, rng)` says the same in other words.
    """

    kind: str
    source: Scene
    instruction: str
    target: Scene

    def __post_init__(self) -> None:
        shown = kind_of(self.source, self.target)
        if self.kind != shown:
            raise ValueError(f"the edit is called {self.kind!r}, but its scenes show {shown!r}; correct its kind")

    def to_json(self) -> str:
        scenes = {"source": json.loads(self.source.to_json()), "target": json.loads(self.target.to_json())}
        return json.dumps({"kind": self.kind, "instruction": self.instruction, **scenes})

    @classmethod
    def from_json(cls, text: str) -> "Edit":
        row = json.loads(text)
        source, target = (Scene.from_json(json.dumps(row[key])) for key in ("source", "target"))
        return cls(row["kind"], source, row["instruction"], target)


def sample_edit(rng: random.Random, held_out: HeldOut, split: str = "train", kind: str | None = None) -> Edit:
    """A random edit. With `split="train"` neither scene shows a held-out combination, with "held_out" the target shows
    at least one; its source may show one too, and must where an edit makes no new combination.

    `kind` (a key of EDIT_KINDS) is drawn with the weights of that table if not given.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
    if kind is None:
        kind = rng.choices(list(EDIT_KINDS), list(EDIT_KINDS.values()))[0]
    if kind not in EDIT_KINDS:
        raise ValueError(f"unknown kind of edit {kind!r}; use one of {tuple(EDIT_KINDS)}")
    while True:
        source = sample_scene(rng, held_out, split if split == "train" else rng.choice(("train", "held_out")))
        target = _PROPOSALS[kind](rng, source)
        if target is not None and bool(held_out.shown_by(target)) == (split == "held_out"):
            return Edit(kind, source, instruct(source, target, rng), target)


def instruct(source: Scene, target: Scene, rng: random.Random) -> str:
    """An instruction, in words drawn by `rng`, that turns the source into the target and into nothing else.

    Raises:
        ValueError: two scenes that no single edit connects.
    """
    gone, new = _difference(source, target)
    words = {"hand": target.hand}
    if gone:
        words["old"] = _definite(gone[0], source, rng)
    if new:
        concept = vocabulary()[new[0].concept]
        corner = " corner" if rng.random() < 0.2 else ""
        words |= {"new": concept.with_article, "colour": concept.colour or ""}
        words |= {"place": PLACE_OF_CELL[new[0].row, new[0].col] + corner}
    return rng.choice(WORDINGS[kind_of(source, target)]).format(**words)


def kind_of(source: Scene, target: Scene) -> str:
    """The kind of the one edit that leads from source to target; ValueError if there is none."""
    gone, new = _difference(source, target)
    changes = len(gone), len(new)
    small = not any(o.large for o in (*source.objects, *target.objects))
    if source.hand != target.hand:
        if changes == (0, 0):
            return "redraw"
    elif small and changes in ((0, 1), (1, 0)) and source.objects and target.objects:
        return "add" if new else "remove"
    elif small and changes == (1, 1):
        (old, old_cell), (other, other_cell) = ((vocabulary()[o.concept], (o.row, o.col)) for o in (gone[0], new[0]))
        if old == other:
            return "move"
        if old_cell == other_cell:
            return "recolour" if old.shape and old.shape == other.shape else "replace"
    raise ValueError(
        f"no single edit leads from {source} to {target}: {len(gone)} objects go and {len(new)} come, in the hands "
        f"{source.hand!r} and {target.hand!r}; use a pair as `sample_edit` makes it"
    )


def _difference(source: Scene, target: Scene) -> tuple[list[Placed], list[Placed]]:
    """Objects of the source that the target lacks, and those of the target that are new."""
    gone = [o for o in source.objects if o not in target.objects]
    return gone, [o for o in target.objects if o not in source.objects]


def _definite(placed: Placed, scene: Scene, rng: random.Random) -> str:
    """Words that fit this object of the scene and no other: its name, its shape, or its name with its place."""
    concepts = [vocabulary()[o.concept] for o in scene.objects]
    concept = vocabulary()[placed.concept]
    names = [n for n in (concept.name, concept.shape) if n and sum(n in (c.name, c.shape) for c in concepts) == 1]
    # The place is said in a few other cases too, or it would always mean that there are several.
    if names and rng.random() < 0.85:
        return f"the {rng.choice(names)}"
    return f"the {concept.name} in the {PLACE_OF_CELL[placed.row, placed.col]}"


def _with(source: Scene, gone: Placed | None = None, new: Placed | None = None) -> Scene:
    kept = tuple(o for o in source.objects if o != gone)
    return Scene(source.hand, kept if new is None else (*kept, new))


def _free_cells(scene: Scene) -> list[tuple[int, int]]:
    """A large object leaves none free."""
    if scene.objects[0].large:
        return []
    return [cell for cell in CELLS if cell not in {(o.row, o.col) for o in scene.objects}]


# One proposal for each kind: the target, or None where the scene does not allow such an edit.


def _replace(rng: random.Random, source: Scene) -> Scene | None:
    old = rng.choice(source.objects)
    if old.large:
        return None
    shape = vocabulary()[old.concept].shape
    others = [c.name for c in vocabulary().values() if c.name != old.concept and (shape is None or c.shape != shape)]
    return _with(source, old, old._replace(concept=rng.choice(others)))


def _add(rng: random.Random, source: Scene) -> Scene | None:
    free = _free_cells(source)
    return _with(source, new=Placed(rng.choice(list(vocabulary())), *rng.choice(free))) if free else None


def _remove(rng: random.Random, source: Scene) -> Scene | None:
    return _with(source, rng.choice(source.objects)) if len(source.objects) > 1 else None


def _move(rng: random.Random, source: Scene) -> Scene | None:
    old, free = rng.choice(source.objects), _free_cells(source)
    return _with(source, old, Placed(old.concept, *rng.choice(free))) if free else None


def _recolour(rng: random.Random, source: Scene) -> Scene | None:
    coloured = [o for o in source.objects if vocabulary()[o.concept].shape and not o.large]
    if not coloured:
        return None
    old = rng.choice(coloured)
    shape = vocabulary()[old.concept].shape
    others = [c.name for c in vocabulary().values() if c.shape == shape and c.name != old.concept]
    return _with(source, old, old._replace(concept=rng.choice(others)))


def _redraw(rng: random.Random, source: Scene) -> Scene:
    return Scene(rng.choice([hand for hand in HANDS if hand != source.hand]), source.objects)


_PROPOSALS: dict[str, Callable[[random.Random, Scene], Scene | None]] = {
    "replace": _replace,
    "add": _add,
    "remove": _remove,
    "move": _move,
    "recolour": _recolour,
    "redraw": _redraw,
}
