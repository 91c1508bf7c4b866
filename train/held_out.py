"""Combinations of concepts that are never trained on, so that composition is measured and not memory.

Each concept alone is well known from training: it is seen in every hand, large and small. What is held out is seeing it
beside a certain other concept, in a certain number, or alone in a certain place. The committed list
`train/data/held_out.json` is what `HeldOut.build` draws; `python -m train.held_out` writes it again.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass
from itertools import combinations as unordered_pairs
from pathlib import Path

from eval.facts import PLACE_OF_CELL, PLACES, Scene, vocabulary

HELD_OUT = Path(__file__).parent / "data" / "held_out.json"

# Shares of combinations (our choice: enough to measure, few enough that each concept stays well known).
PAIRS = 0.12
SHAPE_PAIRS = 0.15
COUNTS = 0.10
PLACES_OF_ONE = 0.08

Combination = tuple[str, str, str | int]


@dataclass(frozen=True)
class HeldOut:
    """Combinations that no training scene shows: ("pair", a, b) with a < b, ("count", concept, n >= 2) and
    ("place", concept, place), the last for scenes of one small object."""

    combinations: frozenset[Combination]

    @classmethod
    def load(cls, path: Path = HELD_OUT) -> "HeldOut":
        return cls(frozenset(map(tuple, json.loads(Path(path).read_text()))))

    @classmethod
    def build(cls) -> "HeldOut":
        """The list the committed file holds. No concept loses more than one count and one place."""
        rng = random.Random(0)
        names = sorted(vocabulary())
        shapes = [name for name in names if vocabulary()[name].shape]
        chosen: set[Combination] = set()
        shape_pairs = list(unordered_pairs(shapes, 2))
        other_pairs = sorted(set(unordered_pairs(names, 2)) - set(shape_pairs))
        for pairs, share in ((shape_pairs, SHAPE_PAIRS), (other_pairs, PAIRS)):
            chosen |= {("pair", a, b) for a, b in rng.sample(pairs, round(share * len(pairs)))}
        for kind, values, share in (("count", (2, 3, 4), COUNTS), ("place", tuple(PLACES), PLACES_OF_ONE)):
            each = round(share * len(names))
            drawn = rng.sample(names, each * len(values))
            chosen |= {(kind, name, values[i // each]) for i, name in enumerate(drawn)}
        return cls(frozenset(chosen))

    def to_json(self) -> str:
        rows = sorted((list(c) for c in self.combinations), key=str)
        return "[\n" + ",\n".join("  " + json.dumps(row) for row in rows) + "\n]\n"

    def shown_by(self, scene: Scene) -> frozenset[Combination]:
        """The held-out combinations the scene shows."""
        return combinations_of(scene) & self.combinations


def combinations_of(scene: Scene) -> frozenset[Combination]:
    """What a scene combines: pairs of concepts, a concept with its number, a lone small object with its place."""
    counts = Counter(o.concept for o in scene.objects)
    found: set[Combination] = {("pair", a, b) for a, b in unordered_pairs(sorted(counts), 2)}
    found |= {("count", name, n) for name, n in counts.items() if n > 1}
    first = scene.objects[0]
    if len(scene.objects) == 1 and not first.large:
        found.add(("place", first.concept, PLACE_OF_CELL[first.row, first.col]))
    return frozenset(found)


if __name__ == "__main__":
    HELD_OUT.write_text(HeldOut.build().to_json())
