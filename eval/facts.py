"""What a scene shows, and what a caption says about it: the one grammar shared by training texts and by the metrics.

A *scene* is one drawing style (the `hand`) and either one object over the whole canvas (`large`) or one to four objects
in the cells of a 2 x 2 grid. A *fact* is a tuple of strings and integers; as JSON it is a list. There are seven kinds:

    ("total", 3)                                exactly three objects in all
    ("count", "cat", 2)                         exactly two of them are cats (one or more; absence is no fact)
    ("colour", "circle", "red")                 some circle is red
    ("size", "bus", "large")                    some bus is "large" (whole canvas) or "small" (one cell)
    ("place", "dog", "top right")               some small dog stands in that cell
    ("relation", "cat", "left of", "pizza")     all cats stand in a column left of all pizzas and they share a row;
    ("relation", "cat", "above", "pizza")       likewise with rows and columns exchanged
    ("hand", "noto")                            every object is drawn in this style

"right of" and "below" are written the other way round, so equal statements are equal facts. Relations ask for a shared
row or column, so two concepts stand in at most one, and objects on a diagonal in none (captions give their places).

Captions (`parse` accepts exactly these; any other text raises ValueError and counts as wrong):

    caption  = [hand " style: "] scene [", " hand " style"]                 at most one of the two
    scene    = group " " relation " " group  |  item  |  item {", " item} " and " item
    item     = group [" in the " place [" corner"]]                         a place needs a group of one
    group    = ("a" | "an" | "two" | "three" | "four") " " [size " "] noun  a size needs one object, alone in its scene
    relation = ["to the "] ("left of" | "right of")  |  "above" | "over"  |  "below" | "under"
    size     = "large" | "big" | "small" | "little"

A concept stands in one group only. Nouns come from `train/data/concepts.json`, read by `vocabulary`.
All of this is our own design, made small and regular for models of a few million parameters.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

CONCEPTS = Path(__file__).parents[1] / "train" / "data" / "concepts.json"
HANDS = ("noto", "twemoji", "fluent")
NUMBERS = ("zero", "one", "two", "three", "four")
PLACES = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
PLACE_OF_CELL = {cell: place for place, cell in PLACES.items()}
# Wording -> (relation of the canonical fact, whether subject and object change sides for it).
RELATIONS = {
    "left of": ("left of", False),
    "to the left of": ("left of", False),
    "right of": ("left of", True),
    "to the right of": ("left of", True),
    "above": ("above", False),
    "over": ("above", False),
    "below": ("above", True),
    "under": ("above", True),
}
SIZES = {"large": "large", "big": "large", "small": "small", "little": "small"}

Fact = tuple[str | int, ...]


@dataclass(frozen=True)
class Concept:
    """One drawable thing. `colour` and `shape` are set for the coloured shapes ("red circle") only."""

    name: str
    plural: str
    hexcode: str
    kind: str
    colour: str | None = None
    shape: str | None = None

    @property
    def with_article(self) -> str:
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


@lru_cache
def vocabulary() -> dict[str, Concept]:
    """Every concept by its name, in the order of the committed list."""
    return {row["name"]: Concept(**row) for row in json.loads(CONCEPTS.read_text())}


class Placed(NamedTuple):
    """One object: its concept's name and its cell (row 0 is the top, column 0 is left; both 0 if `large`)."""

    concept: str
    row: int
    col: int
    large: bool = False


@dataclass(frozen=True)
class Scene:
    """Objects in raster order and the style all of them are drawn in. Two scenes are equal if they look the same."""

    hand: str
    objects: tuple[Placed, ...]

    def __post_init__(self) -> None:
        if self.hand not in HANDS:
            raise ValueError(f"unknown hand {self.hand!r}; use one of {HANDS}")
        objects = tuple(sorted((Placed(*o) for o in self.objects), key=lambda o: (o.row, o.col)))
        cells = {(o.row, o.col) for o in objects}
        if len(cells) != len(objects) or not cells <= PLACE_OF_CELL.keys():
            raise ValueError(f"objects must stand in different cells of {sorted(PLACE_OF_CELL)}, got {objects}")
        if any(o.large for o in objects) and (len(objects) != 1 or cells != {(0, 0)}):
            raise ValueError(f"a large object stands alone and has row 0, column 0, got {objects}")
        object.__setattr__(self, "objects", objects)

    def to_json(self) -> str:
        return json.dumps({"hand": self.hand, "objects": [list(o) for o in self.objects]})

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        row = json.loads(text)
        return cls(row["hand"], tuple(Placed(*o) for o in row["objects"]))


def relation_between(cells_a: list[tuple[int, int]], cells_b: list[tuple[int, int]]) -> str | None:
    """The relation in which a group of (row, column) cells stands to another, or None: see the module's docstring."""
    rows_a, cols_a = map(set, zip(*cells_a, strict=True))
    rows_b, cols_b = map(set, zip(*cells_b, strict=True))
    if max(cols_a) < min(cols_b) and rows_a & rows_b:
        return "left of"
    if max(rows_a) < min(rows_b) and cols_a & cols_b:
        return "above"
    return None


def facts_of(scene: Scene) -> frozenset[Fact]:
    """Every fact that is true in the scene. A caption is right if `parse(caption) <= facts_of(scene)`."""
    cells: dict[str, list[tuple[int, int]]] = {}
    facts: set[Fact] = {("hand", scene.hand), ("total", len(scene.objects))}
    for concept, row, col, large in scene.objects:
        cells.setdefault(concept, []).append((row, col))
        facts.add(("size", concept, "large" if large else "small"))
        if not large:
            facts.add(("place", concept, PLACE_OF_CELL[row, col]))
    for name, own in cells.items():
        facts |= _group_facts(name, len(own))
        for other, others in cells.items():
            relation = relation_between(own, others) if name != other else None
            if relation:
                facts.add(("relation", name, relation, other))
    return frozenset(facts)


def holds(fact: Fact, scene: Scene) -> bool:
    """Whether one fact is true in the scene."""
    return tuple(fact) in facts_of(scene)


def facts_to_json(facts: frozenset[Fact]) -> str:
    """A sorted list of lists, so that equal sets give equal text."""
    return json.dumps(sorted(map(list, facts), key=str))


def facts_from_json(text: str) -> frozenset[Fact]:
    return frozenset(map(tuple, json.loads(text)))


@lru_cache
def _patterns() -> tuple[re.Pattern, re.Pattern, re.Pattern, dict[str, str], dict[str, str]]:
    hands = "|".join(HANDS)
    caption = re.compile(rf"(?:(?P<before>{hands}) style: )?(?P<scene>.+?)(?:, (?P<after>{hands}) style)?")
    # Longest wording first, so that "to the left of" is not read as a noun that ends in "to the".
    relation = re.compile(f" ({'|'.join(sorted(RELATIONS, key=len, reverse=True))}) ")
    item = re.compile(
        rf"(?P<number>an?|two|three|four) (?:(?P<size>{'|'.join(SIZES)}) )?(?P<noun>[a-z ]+?)"
        rf"(?: in the (?P<place>{'|'.join(PLACES)})(?: corner)?)?"
    )
    concepts = vocabulary().values()
    return caption, relation, item, {c.with_article: c.name for c in concepts}, {c.plural: c.name for c in concepts}


def parse(caption: str) -> frozenset[Fact]:
    """The facts a caption states. Raises ValueError, naming the part, on text outside the grammar."""
    caption_pattern, relation_pattern, _, _, _ = _patterns()
    match = caption_pattern.fullmatch(caption)
    if match is None or (match["before"] and match["after"]):
        raise ValueError(f"not a caption of the grammar: {caption!r}")
    facts: set[Fact] = {("hand", hand) for hand in (match["before"], match["after"]) if hand}
    parts = relation_pattern.split(match["scene"])
    related = len(parts) > 1
    if related and len(parts) != 3:
        raise ValueError(f"more than one relation in {caption!r}")
    items = parts[::2] if related else _split_list(parts[0])
    counts: Counter[str] = Counter()
    for item in items:
        name, number, more = _parse_item(item, bare=related, alone=len(items) == 1)
        if name in counts:
            raise ValueError(f"{name!r} is named twice in {caption!r}")
        counts[name] = number
        facts |= more | _group_facts(name, number)
    if related:
        relation, swapped = RELATIONS[parts[1]]
        subject, other = reversed(counts) if swapped else counts
        facts.add(("relation", subject, relation, other))
    facts.add(("total", counts.total()))
    return frozenset(facts)


def _split_list(text: str) -> list[str]:
    """ "a cat, a dog and a bus" -> its three items."""
    head, _, last = text.rpartition(" and ")
    return [*head.split(", "), last] if head else [last]


def _parse_item(text: str, bare: bool, alone: bool) -> tuple[str, int, set[Fact]]:
    """Concept, number, and facts on size and place. `bare`: neither is allowed; `alone`: the only item of its scene."""
    _, _, item_pattern, singular, plural = _patterns()
    match = item_pattern.fullmatch(text)
    if match is None:
        raise ValueError(f"not a group of objects: {text!r}")
    number, size, noun, place = match["number"], match["size"], match["noun"], match["place"]
    one = number in ("a", "an")
    # The article agrees with the word that follows it, which is the size if there is one ("a small apple").
    name = plural.get(noun) if not one else singular.get(f"{number} {noun}")
    if one and size:
        name = singular.get(f"a {noun}", singular.get(f"an {noun}")) if number == "a" else None
    if name is None:
        raise ValueError(f"no concept is called {noun!r} after {number!r}")
    if (size or place) and (bare or not one) or size and not alone or size and SIZES[size] == "large" and place:
        raise ValueError(f"size or place does not fit here: {text!r}")
    facts: set[Fact] = set()
    if size:
        facts.add(("size", name, SIZES[size]))
    if place:
        facts.add(("place", name, place))
    return name, 1 if one else NUMBERS.index(number), facts


def _group_facts(name: str, number: int) -> set[Fact]:
    concept = vocabulary().get(name)
    if concept is None:
        raise ValueError(f"unknown concept {name!r}; the {len(vocabulary())} known ones stand in {CONCEPTS.name}")
    facts: set[Fact] = {("count", name, number)}
    if concept.colour:
        facts.add(("colour", concept.shape, concept.colour))
    return facts
