"""Exports the items of the `spark` evaluation suite: `python -m train.suite --output eval/data`.

Five files, so that evaluating needs nothing of `train`. Facts are JSON in the schema of `eval.facts`, scenes are
`Scene.to_json`, images lossless WebP on white, ids name category, split and number:

    spark_drawing.parquet     id, category, split, prompt, facts, hand, scene      one real scene that fits the prompt
    spark_describing.parquet  id, split, image, scene, caption, facts               caption: the canonical one
    spark_answering.parquet   id, scene_id, split, kind, question, answer           scene_id: a row of describing
    spark_editing.parquet     id, kind, split, instruction, source, target          source, target: scenes
    spark_references.parquet  concept, hand, large, image                           every drawing as scenes show it

Categories of drawing prompts are those of GenEval (arXiv 2310.11513, section 3). split is "seen" (every combination is
allowed in training, which meets most of these scenes sooner or later) or "held_out" (see `HeldOut`: never in training).
Edits are those of `train.edits`, equally many of each kind; beside what changes in cells an object always stays. Where
they are held out, the target shows a held-out combination.
In single_object and colors only the place of a small object can be held out, so held-out colors has fewer items.
All chance is seeded by the names of file, category and split: the same lists give the same rows.
"""

import argparse
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import datasets
from PIL import Image

from eval.facts import HANDS, Scene, facts_to_json, parse, relation_between, vocabulary
from train.edits import EDIT_KINDS, Edit, sample_edit
from train.held_out import HeldOut
from train.scenes import KINDS, Drawings, describe, questions, render, sample_scene

SPLITS = {"seen": "train", "held_out": "held_out"}
DRAWING_ITEMS = 50
DESCRIBING_ITEMS = 150
# Presence gets the largest share: its yes and no are measured apart. Per split.
ANSWERING_ITEMS = {"presence": 80, "count": 50, "place": 80, "colour": 30, "hand": 30, "object": 25}
EDITING_ITEMS = 20  # of each kind and split
# Kinds with few answers, all of which come equally often as far as there are such scenes: always "one" must not score.
BALANCED = ("presence", "count", "colour", "hand")


@dataclass(frozen=True)
class Category:
    """A kind of drawing prompt: scenes of `kinds` that `fits` accepts, worded by `prompt`."""

    kinds: tuple[str, ...]
    fits: Callable[[Scene], bool]
    prompt: Callable[[Scene], str] = describe


def _coloured(scene: Scene) -> int:
    return sum(vocabulary()[o.concept].shape is not None for o in scene.objects)


def _related(scene: Scene) -> bool:
    a, b = ([(o.row, o.col)] for o in scene.objects)
    return bool(relation_between(a, b) or relation_between(b, a))


def _differ_in_shape(scene: Scene) -> bool:
    """Coloured shapes of one scene always differ in colour: with this, neither word alone tells them apart."""
    a, b = (vocabulary()[o.concept] for o in scene.objects)
    return a.shape != b.shape


def _side_by_side(scene: Scene) -> str:
    a, b = (vocabulary()[o.concept].with_article for o in scene.objects)
    return f"{a} and {b}, {scene.hand} style"


CATEGORIES = {
    "single_object": Category(("large", "small"), lambda scene: not _coloured(scene)),
    "two_object": Category(("pair",), lambda scene: _coloured(scene) < 2, _side_by_side),
    "counting": Category(("count",), lambda scene: True),
    "colors": Category(("large", "small"), lambda scene: bool(_coloured(scene))),
    "position": Category(("pair",), lambda scene: _coloured(scene) < 2 and _related(scene)),
    "color_attr": Category(("shapes",), _differ_in_shape, _side_by_side),
}


def _kinds(kinds: tuple[str, ...], split: str) -> list[str]:
    """Without those of which nothing can be held out."""
    return [kind for kind in kinds if not (kind == "large" and split == "held_out")]


def drawing_items(held_out: HeldOut) -> list[dict]:
    """Up to DRAWING_ITEMS different prompts for each category and split."""
    rows = []
    for name, category in CATEGORIES.items():
        for split, scene_split in SPLITS.items():
            rng = random.Random(f"drawing {name} {split}")
            kinds = _kinds(category.kinds, split)
            scenes: dict[str, Scene] = {}
            # Some categories have fewer different prompts than wanted: stop after enough tries to have met them all.
            for _ in range(200 * DRAWING_ITEMS):
                scene = sample_scene(rng, held_out, scene_split, rng.choice(kinds))
                if category.fits(scene):
                    scenes.setdefault(category.prompt(scene), scene)
                if len(scenes) == DRAWING_ITEMS:
                    break
            rows += [
                {
                    "id": f"{name}-{split}-{i:03d}",
                    "category": name,
                    "split": split,
                    "prompt": prompt,
                    "facts": facts_to_json(parse(prompt)),
                    "hand": scene.hand,
                    "scene": scene.to_json(),
                }
                for i, (prompt, scene) in enumerate(scenes.items())
            ]
    return rows


def describing_scenes(held_out: HeldOut) -> dict[str, Scene]:
    """id -> scene, DESCRIBING_ITEMS for each split, all kinds in turn."""
    scenes = {}
    for split, scene_split in SPLITS.items():
        rng = random.Random(f"describing {split}")
        kinds = _kinds(tuple(KINDS), split)
        for i in range(DESCRIBING_ITEMS):
            scenes[f"scene-{split}-{i:03d}"] = sample_scene(rng, held_out, scene_split, kinds[i % len(kinds)])
    return scenes


def describing_items(scenes: dict[str, Scene], drawings: Drawings) -> list[dict]:
    return [
        {
            "id": scene_id,
            "split": _split_of(scene_id),
            "image": _lossless(render(scene, drawings)),
            "scene": scene.to_json(),
            "caption": describe(scene),
            "facts": facts_to_json(parse(describe(scene))),
        }
        for scene_id, scene in scenes.items()
    ]


def answering_items(scenes: dict[str, Scene]) -> list[dict]:
    """ANSWERING_ITEMS questions of each kind for each split, on the scenes of describing."""
    rows = []
    for split in SPLITS:
        rng = random.Random(f"answering {split}")
        pool = {
            (scene_id, *question)
            for scene_id, scene in scenes.items()
            if _split_of(scene_id) == split
            # Two rounds: another place, another absent concept.
            for _ in range(2)
            for question in questions(scene, rng)
        }
        for kind, number in ANSWERING_ITEMS.items():
            of_kind = sorted(item for item in pool if item[1] == kind)
            chosen = _balanced(rng, of_kind, number) if kind in BALANCED else rng.sample(of_kind, number)
            rows += [
                {
                    "id": f"{kind}-{split}-{i:03d}",
                    "scene_id": scene_id,
                    "split": split,
                    "kind": kind,
                    "question": question,
                    "answer": answer,
                }
                for i, (scene_id, _, question, answer) in enumerate(chosen)
            ]
    return rows


def _balanced(rng: random.Random, items: list[tuple], number: int) -> list[tuple]:
    """`number` items (the last field is the answer), taken from each answer's in turn."""
    by_answer: dict[str, list[tuple]] = {}
    for item in rng.sample(items, len(items)):
        by_answer.setdefault(item[-1], []).append(item)
    turns = zip_longest(*by_answer.values())
    return [item for turn in turns for item in turn if item is not None][:number]


def editing_items(held_out: HeldOut) -> list[dict]:
    """EDITING_ITEMS different edits of each kind for each split."""
    rows = []
    for kind in EDIT_KINDS:
        for split, scene_split in SPLITS.items():
            rng = random.Random(f"editing {kind} {split}")
            edits: dict[tuple[Scene, Scene], Edit] = {}
            while len(edits) < EDITING_ITEMS:
                edit = sample_edit(rng, held_out, scene_split, kind)
                if _something_stays(edit):
                    edits.setdefault((edit.source, edit.target), edit)
            rows += [
                {
                    "id": f"{kind}-{split}-{i:03d}",
                    "kind": kind,
                    "split": split,
                    "instruction": edit.instruction,
                    "source": edit.source.to_json(),
                    "target": edit.target.to_json(),
                }
                for i, edit in enumerate(edits.values())
            ]
    return rows


def _something_stays(edit: Edit) -> bool:
    """An object beside the one that changes; in a redrawn scene every object stays in its place."""
    return bool(set(edit.source.objects) & set(edit.target.objects))


def reference_items(drawings: Drawings) -> list[dict]:
    """Every concept in every hand and both sizes, as the judge will meet it in a scene."""
    return [
        {
            "concept": name,
            "hand": hand,
            "large": large,
            "image": _lossless(Image.fromarray(drawings.pixels(name, hand, large))),
        }
        for name in vocabulary()
        for hand in HANDS
        for large in (False, True)
    ]


def _split_of(scene_id: str) -> str:
    return scene_id.split("-")[1]


def _lossless(image: Image.Image) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return {"bytes": buffer.getvalue(), "path": None}


def export(output: Path) -> dict[str, int]:
    """Writes the five files and returns their row counts."""
    output.mkdir(parents=True, exist_ok=True)
    held_out, drawings = HeldOut.load(), Drawings.load()
    scenes = describing_scenes(held_out)
    files = {
        "drawing": drawing_items(held_out),
        "describing": describing_items(scenes, drawings),
        "answering": answering_items(scenes),
        "editing": editing_items(held_out),
        "references": reference_items(drawings),
    }
    for name, rows in files.items():
        table = datasets.Dataset.from_list(rows)
        if "image" in table.column_names:
            table = table.cast_column("image", datasets.Image())
        table.to_parquet(output / f"spark_{name}.parquet")
    return {name: len(rows) for name, rows in files.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Export the items of the spark evaluation suite.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the parquet files, e.g. eval/data")
    for name, count in export(parser.parse_args().output).items():
        print(f"spark_{name}.parquet: {count} rows")
