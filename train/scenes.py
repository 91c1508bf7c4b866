"""Scenes composed from drawings, without end, from a seed; their captions, questions and answers.

    scene = sample_scene(random.Random(7), HeldOut.load())
    render(scene, Drawings.load())                              PIL RGB image, CANVAS x CANVAS, white background
    describe(scene)                                             "two cats left of a pizza, noto style"
    questions(scene, random.Random(7))                          [("count", "how many cats?", "two"), ...]

Every function is pure: all chance comes from the `random.Random` it is given. What a scene is, and the grammar of its
captions, stand in `eval.facts` (the metrics need them too). One object fills the canvas, or one to four fill cells of
CELL pixels. Both are multiples of the image codec's stride (8), so an object has the same tokens wherever it stands.
Training scenes show no combination of `train.held_out`.

Array shapes: S side of an object in pixels (CELL or CANVAS), 3 colour channels.
"""

import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from eval.facts import (
    HANDS,
    NUMBERS,
    PLACE_OF_CELL,
    PLACES,
    Concept,
    Placed,
    Scene,
    facts_of,
    relation_between,
    vocabulary,
)
from train.held_out import HeldOut

CANVAS = 64
CELL = 32
DATA = Path(__file__).parent / "data"
CELLS = tuple(PLACES.values())

# Our choice: mostly scenes in which objects stand in a relation, since relations and bindings are hardest to learn.
KINDS = {"large": 20, "small": 12, "pair": 28, "count": 15, "groups": 8, "several": 7, "shapes": 10}


def sample_scene(rng: random.Random, held_out: HeldOut, split: str = "train", kind: str | None = None) -> Scene:
    """A random scene: `split="train"` shows no held-out combination, `split="held_out"` at least one.

    `kind` (a key of KINDS) is drawn with the weights of that table if not given.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
    if kind == "large" and split == "held_out":
        raise ValueError("kind 'large' combines nothing, so nothing of it can be held out; use another kind")
    if kind is None:
        kinds = [k for k in KINDS if not (k == "large" and split == "held_out")]
        kind = rng.choices(kinds, [KINDS[k] for k in kinds])[0]
    while True:
        scene = Scene(rng.choice(HANDS), tuple(_sample_objects(rng, kind)))
        if bool(held_out.shown_by(scene)) == (split == "held_out"):
            return scene


def _sample_objects(rng: random.Random, kind: str) -> list[Placed]:
    names = list(vocabulary())
    if kind == "large":
        return [Placed(rng.choice(names), 0, 0, True)]
    if kind == "small":
        return [Placed(rng.choice(names), *rng.choice(CELLS))]
    if kind == "pair":
        return [Placed(*p) for p in _in_cells(rng.sample(names, 2), rng.sample(CELLS, 2))]
    if kind == "count":
        number = rng.choice((2, 3, 4))
        return [Placed(*p) for p in _in_cells([rng.choice(names)] * number, rng.sample(CELLS, number))]
    if kind == "groups":
        return _sample_groups(rng, *rng.sample(names, 2))
    if kind == "several":
        number = rng.choice((3, 4))
        return [Placed(*p) for p in _in_cells(rng.sample(names, number), rng.sample(CELLS, number))]
    if kind == "shapes":
        pair = _sample_shapes(rng)
        return [Placed(*p) for p in _in_cells(pair, rng.sample(CELLS, 2))]
    raise ValueError(f"unknown kind of scene {kind!r}; use one of {tuple(KINDS)}")


def _in_cells(names: list[str], cells: list[tuple[int, int]]) -> list[tuple[str, int, int]]:
    return [(name, row, col) for name, (row, col) in zip(names, cells, strict=True)]


def _sample_groups(rng: random.Random, a: str, b: str) -> list[Placed]:
    """Two of `a` fill a row or a column; one or two of `b` stand in the other."""
    line, in_columns = rng.choice((0, 1)), rng.random() < 0.5
    others = rng.choice(((0,), (1,), (0, 1)))
    along = [(a, i, line) for i in (0, 1)] + [(b, i, 1 - line) for i in others]
    return [Placed(name, i, j) if in_columns else Placed(name, j, i) for name, i, j in along]


def _sample_shapes(rng: random.Random) -> list[str]:
    """Two coloured shapes that differ in colour, mostly also in shape: the test of attribute binding."""
    shapes = [c for c in vocabulary().values() if c.shape]
    first = rng.choice(shapes)
    others = [c for c in shapes if c.colour != first.colour]
    if rng.random() < 0.75:
        others = [c for c in others if c.shape != first.shape]
    return [first.name, rng.choice(others).name]


class Drawings:
    """Every concept in every hand, on white, at the two sizes scenes need: `pixels(...)` is uint8 [S, S, 3]."""

    def __init__(self, pixels: dict[tuple[str, str, bool], np.ndarray]) -> None:
        self._pixels = pixels

    @classmethod
    def load(cls, path: Path = DATA / "drawings.parquet") -> "Drawings":
        """Reads the concepts' drawings; ValueError if one is missing, unreadable or of another size than the canvas."""
        names = {c.hexcode: c.name for c in vocabulary().values()}
        rows = pq.read_table(path, columns=["hexcode", "hand", "image"], filters=[("hexcode", "in", list(names))])
        pixels = {}
        for row in rows.to_pylist():
            where = f"drawing {row['hexcode']} ({row['hand']}) of {path}"
            try:
                image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA")
            except OSError as error:
                raise ValueError(f"{where} is not a readable image: {error}; build the file again") from error
            if image.size != (CANVAS, CANVAS):
                raise ValueError(f"{where} has size {image.size}, scenes need {(CANVAS, CANVAS)}; build the file again")
            # Composing on white before scaling equals scaling with premultiplied alpha: no dark fringes.
            on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            name = names[row["hexcode"]]
            pixels[name, row["hand"], True] = np.asarray(on_white)
            pixels[name, row["hand"], False] = np.asarray(on_white.resize((CELL, CELL), Image.Resampling.LANCZOS))
        missing = [(name, hand) for name in names.values() for hand in HANDS if (name, hand, True) not in pixels]
        if missing:
            raise ValueError(f"{path} lacks {len(missing)} of {len(names) * len(HANDS)} drawings, e.g. {missing[:3]}")
        return cls(pixels)

    def pixels(self, concept: str, hand: str, large: bool) -> np.ndarray:
        return self._pixels[concept, hand, large]


def render(scene: Scene, drawings: Drawings) -> Image.Image:
    """The scene as an RGB image of CANVAS x CANVAS pixels on white. Objects fill their cells, nothing overlaps."""
    canvas = np.full((CANVAS, CANVAS, 3), 255, np.uint8)
    for concept, row, col, large in scene.objects:
        side = CANVAS if large else CELL
        canvas[row * CELL : row * CELL + side, col * CELL : col * CELL + side] = drawings.pixels(
            concept, scene.hand, large
        )
    return Image.fromarray(canvas)


def describe(scene: Scene, rng: random.Random | None = None) -> str:
    """A true caption in the grammar of `eval.facts`: what, how many, where, which relation, colour and hand.

    Without `rng` it is the *canonical* caption: one per scene, always naming the hand, the text a captioner should
    write. With `rng` wording, order and the amount said vary (the hand is left out of 15 %): prompts for drawing.
    Cells that a caption leaves open ("three apples") are free: several scenes fit it.
    """
    body = _vary_body(scene, rng) if rng else _canonical_body(scene)
    chance = rng.random() if rng else 0.0
    if chance < 0.75:
        return f"{body}, {scene.hand} style"
    return f"{scene.hand} style: {body}" if chance < 0.85 else body


def _groups(scene: Scene) -> dict[str, list[tuple[int, int]]]:
    """Concept -> its cells, in raster order of the first one."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for o in scene.objects:
        groups.setdefault(o.concept, []).append((o.row, o.col))
    return groups


def _phrase(name: str, number: int = 1, size: str = "", place: str = "") -> str:
    concept = vocabulary()[name]
    if number > 1:
        return f"{NUMBERS[number]} {concept.plural}"
    return f"{f'a {size} {name}' if size else concept.with_article}{f' in the {place}' if place else ''}"


def _listed(phrases: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def _related(groups: dict[str, list[tuple[int, int]]]) -> tuple[str, str, str] | None:
    """(first, relation, second) if the scene's two groups stand in a relation."""
    if len(groups) != 2:
        return None
    a, b = groups
    for first, second in ((a, b), (b, a)):
        relation = relation_between(groups[first], groups[second])
        if relation:
            return first, relation, second
    return None


def _canonical_body(scene: Scene) -> str:
    groups = _groups(scene)
    related = _related(groups)
    if related:
        first, relation, second = related
        return f"{_phrase(first, len(groups[first]))} {relation} {_phrase(second, len(groups[second]))}"
    if len(scene.objects) == 1:
        (name, row, col, large) = scene.objects[0]
        return _phrase(name, 1, "large") if large else _phrase(name, 1, "small", PLACE_OF_CELL[row, col])
    return _list_body(groups, with_places=len(scene.objects) == 2 == len(groups))


def _list_body(groups: dict[str, list[tuple[int, int]]], with_places: bool) -> str:
    phrases = []
    for name, cells in groups.items():
        place = PLACE_OF_CELL[cells[0]] if with_places and len(cells) == 1 else ""
        phrases.append(_phrase(name, len(cells), place=place))
    return _listed(phrases)


def _vary_body(scene: Scene, rng: random.Random) -> str:
    groups = _groups(scene)
    related = _related(groups)
    if len(scene.objects) == 1:
        (name, row, col, large) = scene.objects[0]
        if large:
            return _phrase(name, 1, rng.choices(("large", "big", ""), (60, 15, 25))[0])
        place = PLACE_OF_CELL[row, col] + (" corner" if rng.random() < 0.2 else "")
        return _phrase(name, 1, rng.choices(("small", "little", ""), (60, 15, 25))[0], place)
    if related and rng.random() < 0.7:
        first, relation, second = related
        words = {"left of": ("left of", "to the left of"), "above": ("above", "over")}[relation]
        if rng.random() < 0.5:
            first, second = second, first
            words = {"left of": ("right of", "to the right of"), "above": ("below", "under")}[relation]
        word = rng.choices(words, (70, 30))[0]
        return f"{_phrase(first, len(groups[first]))} {word} {_phrase(second, len(groups[second]))}"
    shuffled = dict(rng.sample(list(groups.items()), len(groups)))
    # No places for three or more objects: the caption would get too long.
    return _list_body(shuffled, with_places=len(groups) == 2 == len(scene.objects) and rng.random() < 0.5)


def questions(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """(kind, question, answer) for every kind the scene allows, at most one of each question form.

    Kinds: count, presence, place, colour, hand, object. Each question has exactly one right answer, of one or two
    words; ambiguous ones are left out. Half of the presence questions ask for a concept that is absent.
    """
    concepts = vocabulary()
    groups = _groups(scene)
    counted = rng.choice(scene.objects).concept  # larger groups more often, or nearly every answer were "one"
    found = [
        ("count", f"how many {concepts[counted].plural}?", NUMBERS[len(groups[counted])]),
        _presence_question(groups, rng),
        ("hand", "which style?", scene.hand),
    ]
    if len(scene.objects) == 1:
        found.append(("object", "what is this?", scene.objects[0].concept))
    coloured = Counter(concepts[o.concept].shape for o in scene.objects if concepts[o.concept].shape)
    unique = [concepts[o.concept] for o in scene.objects if coloured[concepts[o.concept].shape] == 1]
    if unique:
        shape: Concept = rng.choice(unique)
        found.append(("colour", f"what colour is the {shape.shape}?", shape.colour))
    return found + _place_questions(scene, groups, rng)


def _presence_question(groups: dict[str, list[tuple[int, int]]], rng: random.Random) -> tuple[str, str, str]:
    present = rng.random() < 0.5
    name = rng.choice(list(groups) if present else [n for n in vocabulary() if n not in groups])
    return "presence", f"is there {vocabulary()[name].with_article}?", "yes" if present else "no"


def _place_questions(
    scene: Scene, groups: dict[str, list[tuple[int, int]]], rng: random.Random
) -> list[tuple[str, str, str]]:
    small = [o for o in scene.objects if not o.large]
    found = []
    if small:
        o = rng.choice(small)
        found.append(("place", f"what is in the {PLACE_OF_CELL[o.row, o.col]}?", o.concept))
    alone = [o for o in small if len(groups[o.concept]) == 1]
    if alone:
        o = rng.choice(alone)
        found.append(("place", f"where is the {o.concept}?", PLACE_OF_CELL[o.row, o.col]))
    # (words of the relation, asked concept) -> what stands there.
    answers: dict[tuple[str, str], list[str]] = {}
    for fact in facts_of(scene):
        if fact[0] == "relation":
            _, first, relation, second = fact
            answers.setdefault((relation, second), []).append(first)
            answers.setdefault(({"left of": "right of", "above": "below"}[relation], first), []).append(second)
    clear = sorted(k for k, v in answers.items() if len(v) == 1 and len(groups[v[0]]) == len(groups[k[1]]) == 1)
    if clear:
        relation, name = rng.choice(clear)
        found.append(("place", f"what is {relation} the {name}?", answers[relation, name][0]))
    return found
