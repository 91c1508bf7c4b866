"""The suite `spark`: does a small model draw, edit, describe and answer about scenes composed from real drawings?

Everything is measured apart on scenes made of combinations that training may contain ("seen") and on combinations that
it never contains ("held_out"). First the instrument: how often the judge is right about *real* scenes that fit the
drawing prompts, and about these after a round trip through the model's codec. That is the ceiling of any drawing of
this model. Then drawing, describing, answering, the codec, text, and a Frechet distance; on request, editing, which not
every model has learned.

Items come from `eval/data` (see `train/suite.py` for their columns) and `train/data`; metrics from `eval/metrics`.
Each part returns its numbers and its items, one dictionary for each image, caption or answer.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from .benchmark import load_metric
from .facts import HANDS, PLACE_OF_CELL, Fact, Scene, facts_from_json, facts_of, parse
from .features import ImageFeatures
from .intervals import with_intervals
from .items import read_items
from .judge import Judge, Layout
from .load import HubModel

HERE = Path(__file__).parent
TEXT_FILE = HERE.parent / "train" / "data" / "glosses.parquet"
DRAWINGS_FILE = HERE.parent / "train" / "data" / "drawings.parquet"
SPLITS = ("held_out", "seen")
TASKS = ("drawing", "describing", "answering", "codec", "text", "editing")
DEFAULT_TASKS = TASKS[:-1]
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

Row = dict[str, Any]


def evenly(items: list[Row], limit: int | None) -> list[Row]:
    """At most `limit` items, spread over the whole list."""
    if limit is None or len(items) <= limit:
        return items
    return [items[index * len(items) // limit] for index in range(limit)]


def of_split(rows: list[Row], split: str, limit: int | None) -> list[Row]:
    return evenly([row for row in rows if row["split"] == split], limit)


def as_text(facts: frozenset[Fact]) -> list[str]:
    """Facts as the metric modules take them."""
    return sorted(json.dumps(list(fact)) for fact in facts)


def facts_seen(layout: Layout) -> frozenset[Fact]:
    """What is true in a judged image. Things that the judge does not recognise count towards the total, and where one
    stands, or hands are mixed, the image is in no hand."""
    scene = Scene(layout.hand or HANDS[0], tuple(seen[:4] for seen in layout.objects))
    facts = {fact for fact in facts_of(scene) if fact[0] not in ("hand", "total")}
    facts.add(("total", len(layout.objects) + len(layout.unknown)))
    if layout.hand and not layout.unknown:
        facts.add(("hand", layout.hand))
    return frozenset(facts)


def real_scene(scene: Scene, judge: Judge) -> Image.Image:
    """The scene as its drawings make it: the judge's references, set into their cells."""
    canvas = Image.new("RGB", (judge.large.size, judge.large.size), "white")
    for concept, row, col, large in scene.objects:
        references = judge.large if large else judge.small
        canvas.paste(references.image(concept, scene.hand), (col * references.size, row * references.size))
    return canvas


def judge_drawings(judge: Judge, rows: list[Row], images: Sequence[Image.Image]) -> tuple[Row, list[Row]]:
    """Scores one image for each drawing item: shares by category, and by kind of required fact the share that holds."""
    layouts = judge(images)
    found = [as_text(facts_seen(layout)) for layout in layouts]
    required = [as_text(facts_from_json(row["facts"])) for row in rows]
    scores = load_metric("drawing").compute(
        predictions=found, references=required, categories=[row["category"] for row in rows]
    )
    by_kind = load_metric("describing").compute(predictions=found, references=required)["by_kind"]
    scores["facts"] = {
        kind: by_kind[kind]["recall"] for kind in sorted({json.loads(f)[0] for r in required for f in r})
    }
    items = [
        {key: row[key] for key in ("id", "category", "split", "prompt")}
        | {"right": set(want) <= set(have), "judged": str(layout), "missing": sorted(set(want) - set(have))}
        for row, layout, have, want in zip(rows, layouts, found, required, strict=True)
    ]
    return scores, items


def measure_drawing(
    hub_model: HubModel, judge: Judge, limit: int | None, seed: int, image_sampling: Row | None
) -> tuple[Row, list[Row]]:
    """The judge on real scenes, on real scenes through the codec, and on what the model draws; the median over batches
    of the seconds that one drawing takes. Items hold images."""
    rows = read_items(HERE / "data" / "spark_drawing.parquet")
    results: Row = {"real": {}, "codec": {}, "model": {}}
    items: list[Row] = []
    seconds: list[float] = []
    for split in SPLITS:
        chosen = of_split(rows, split, limit)
        real = [real_scene(Scene.from_json(row["scene"]), judge) for row in chosen]
        restored, _ = hub_model.reconstruct(real)
        drawn, of_batches = hub_model.draw_timed(
            [row["prompt"] for row in chosen], [seed + number for number in range(len(chosen))], image_sampling
        )
        seconds += of_batches
        results["real"][split], _ = judge_drawings(judge, chosen, real)
        results["codec"][split], _ = judge_drawings(judge, chosen, restored)
        results["model"][split], judged = judge_drawings(judge, chosen, drawn)
        for item, *images in zip(judged, real, restored, drawn, strict=True):
            items.append(item | dict(zip(("real", "restored", "drawn"), images, strict=True)))
    results["seconds_per_image"] = statistics.median(seconds)
    return results, items


def measure_frechet(items: list[Row]) -> Row:
    """Frechet distance of drawn images to real scenes of the same prompts; and of these through the codec."""
    features = ImageFeatures()
    real, restored, drawn = (features([item[kind] for item in items]).numpy() for kind in ("real", "restored", "drawn"))
    return {
        "features": features.name,
        "model": load_metric("frechet").compute(predictions=drawn, references=real),
        "codec": load_metric("frechet").compute(predictions=restored, references=real),
    }


def edit_verdict(source: Scene, target: Scene, layout: Layout) -> dict[str, bool]:
    """Whether a judged image is the edited source: what had to change is as asked, all the rest has stayed, and both.

    What changes is the cells in which source and target differ; in all other cells the image must show what the source
    shows, in its hand. Where everything is redrawn, the hand changes, and what stands where stays. Something that the
    judge does not recognise is neither right nor empty. The suite's edits always leave some object, so that an empty or
    shapeless image never counts as one in which the rest has stayed.
    """
    if source.hand != target.hand:
        stayed = tuple(seen[:4] for seen in layout.objects) == source.objects and not layout.unknown
        changed = layout.hand == target.hand and not layout.unknown
    else:
        before, after = ({(o.row, o.col): (*o, scene.hand) for o in scene.objects} for scene in (source, target))
        now = {(o.row, o.col): o[:5] for o in layout.objects} | dict.fromkeys(layout.unknown, "unknown")
        asked = {cell for cell in PLACE_OF_CELL if before.get(cell) != after.get(cell)}
        changed = all(now.get(cell) == after.get(cell) for cell in asked)
        stayed = all(now.get(cell) == before.get(cell) for cell in PLACE_OF_CELL.keys() - asked)
    return {"changed": changed, "stayed": stayed, "exact": changed and stayed}


def judge_edits(judge: Judge, rows: list[Row], images: Sequence[Image.Image]) -> tuple[Row, list[Row]]:
    """Scores one image for each editing item: shares of `edit_verdict`'s three, over all items and by kind of edit."""
    items = []
    for row, layout in zip(rows, judge(images), strict=True):
        verdict = edit_verdict(Scene.from_json(row["source"]), Scene.from_json(row["target"]), layout)
        items.append({key: row[key] for key in ("id", "kind", "split", "instruction")} | verdict)
        items[-1]["judged"] = str(layout)

    def shares(of: list[Row]) -> Row:
        return {key: sum(item[key] for item in of) / len(of) for key in ("changed", "stayed", "exact")} | {"n": len(of)}

    kinds = dict.fromkeys(row["kind"] for row in rows)
    by_kind = {kind: shares([item for item in items if item["kind"] == kind]) for kind in kinds}
    return {**shares(items), "by_kind": by_kind}, items


def measure_editing(
    hub_model: HubModel, judge: Judge, limit: int | None, seed: int, image_sampling: Row | None
) -> tuple[Row, list[Row]]:
    """The judge on the real targets, on these through the codec, and on what the model makes. Items hold images."""
    rows = read_items(HERE / "data" / "spark_editing.parquet")
    results: Row = {"real": {}, "codec": {}, "model": {}}
    items: list[Row] = []
    for split in SPLITS:
        chosen = of_split(rows, split, limit)
        sources, targets = (
            [real_scene(Scene.from_json(row[key]), judge) for row in chosen] for key in ("source", "target")
        )
        restored, _ = hub_model.reconstruct(targets)
        seeds = [seed + number for number in range(len(chosen))]
        edited = hub_model.edit(sources, [row["instruction"] for row in chosen], seeds, image_sampling)
        results["real"][split], _ = judge_edits(judge, chosen, targets)
        results["codec"][split], _ = judge_edits(judge, chosen, restored)
        results["model"][split], judged = judge_edits(judge, chosen, edited)
        for item, *images in zip(judged, sources, targets, edited, strict=True):
            items.append(item | dict(zip(("source", "real", "drawn"), images, strict=True)))
    return results, items


def stated_facts(caption: str) -> frozenset[Fact]:
    """What a caption says; nothing, if it is outside the grammar."""
    try:
        return parse(caption.strip())
    except ValueError:
        return frozenset()


def measure_describing(hub_model: HubModel, limit: int | None) -> tuple[Row, list[Row]]:
    """Captions of real scenes: exact match of facts and of words, per-fact scores, and the share that can be parsed."""
    rows = read_items(HERE / "data" / "spark_describing.parquet")
    results, items = {}, []
    for split in SPLITS:
        chosen = of_split(rows, split, limit)
        captions = hub_model.describe([row["image"] for row in chosen])
        stated = [stated_facts(caption) for caption in captions]
        wanted = [facts_from_json(row["facts"]) for row in chosen]
        true = [facts_of(Scene.from_json(row["scene"])) for row in chosen]
        results[split] = load_metric("describing").compute(
            predictions=[as_text(facts) for facts in stated],
            references=[as_text(facts) for facts in wanted],
            true_facts=[as_text(facts) for facts in true],
        )
        same_words = [caption.strip() == row["caption"] for caption, row in zip(captions, chosen, strict=True)]
        results[split]["same_words"] = sum(same_words) / len(chosen)
        results[split]["in_grammar"] = sum(map(bool, stated)) / len(chosen)
        items += [
            {"id": row["id"], "split": split, "caption": caption, "reference": row["caption"], "right": says == want}
            for row, caption, says, want in zip(chosen, captions, stated, wanted, strict=True)
        ]
    return results, items


def measure_answering(hub_model: HubModel, limit: int | None) -> tuple[Row, list[Row]]:
    """Answers to questions about real scenes, by kind of question."""
    images = {row["id"]: row["image"] for row in read_items(HERE / "data" / "spark_describing.parquet")}
    rows = read_items(HERE / "data" / "spark_answering.parquet")
    results, items = {}, []
    for split in SPLITS:
        chosen = of_split(rows, split, limit)
        answers = hub_model.answer([(images[row["scene_id"]], row["question"]) for row in chosen])
        scorer, references = load_metric("answering"), [row["answer"] for row in chosen]
        results[split] = scorer.compute(
            predictions=answers, references=references, kinds=[row["kind"] for row in chosen]
        )
        for row, given, scored in zip(chosen, answers, scorer.score_items(answers, references), strict=True):
            items.append({key: row[key] for key in ("id", "scene_id", "split", "kind", "question", "answer")})
            items[-1] |= {"given": given, "right": bool(scored["right"])}
    return results, items


def measure_codec(hub_model: HubModel, limit: int | None) -> Row:
    """PSNR, SSIM and, of codes, use of the codebook: on drawings no training ever saw and on the suite's scenes."""
    drawings = read_items(DRAWINGS_FILE, filters=[("held_out", "==", True)])
    scenes = read_items(HERE / "data" / "spark_describing.parquet")
    results = {}
    for name, rows in {"held_out_drawings": drawings, "scenes": scenes}.items():
        images = [row["image"] for row in evenly(rows, limit)]
        restored, tokens = hub_model.reconstruct(images)
        num_codes = hub_model.model.config.num_codes
        codebook = {"codes": tokens.numpy(), "num_codes": num_codes} if num_codes else {}
        results[name] = load_metric("reconstruction").compute(predictions=restored, references=images, **codebook)
    return results


def measure_text(hub_model: HubModel, limit: int | None) -> Row:
    """Perplexity on WordNet glosses outside training. Bits per byte do not depend on the tokenizer."""
    rows = read_items(TEXT_FILE, filters=[("split", "==", "test")])
    texts = [row["text"] for row in evenly(rows, limit)]
    nats, tokens = hub_model.text_loss(texts)
    return {
        "perplexity": math.exp(nats / tokens),
        "bits_per_byte": nats / math.log(2) / sum(len(text.encode()) for text in texts),
        "tokens": tokens,
        "n": len(texts),
    }


RIGHT = {"drawing": "right", "describing": "right", "answering": "right", "editing": "exact"}
GROUPS = {"drawing": "category", "answering": "kind", "editing": "kind"}


def shares_of_items(items: dict[str, list[Row]]) -> Row:
    """By part and split, the share of items that are right, with its interval: overall, and by category or kind.

    Of drawings the overall share is the mean of the categories' shares, as GenEval has it.
    """

    def share(rows: Sequence[Row], part: str, by: str | None = None) -> dict[str, float]:
        groups: dict[Any, list[bool]] = {}
        for row in rows:
            groups.setdefault(row[by] if by else None, []).append(row[RIGHT[part]])
        return {"share": statistics.mean(sum(right) / len(right) for right in groups.values())}

    found: Row = {}
    for part, rows in items.items():
        for split in SPLITS:
            chosen = [row for row in rows if row["split"] == split]
            by = "category" if part == "drawing" else None
            shares = {"overall": with_intervals(chosen, partial(share, part=part, by=by))["share"]}
            for name in dict.fromkeys(row[GROUPS[part]] for row in chosen) if part in GROUPS else ():
                group = [row for row in chosen if row[GROUPS[part]] == name]
                shares[name] = with_intervals(group, partial(share, part=part))["share"]
            found.setdefault(part, {})[split] = shares
    return found


def evaluate_spark(
    hub_model: HubModel,
    limit: int | None = None,
    seed: int = 0,
    image_sampling: Row | None = None,
    tasks: Sequence[str] = DEFAULT_TASKS,
) -> tuple[Row, dict[str, list[Row]]]:
    """The suite's numbers, and its items by part. With `limit`, so many items of each part and split.

    `tasks` are of TASKS; the Frechet distance comes with drawing. Editing is left out unless it is asked for: the score
    of a model that never learned it says nothing, and nothing in a checkpoint tells what it has learned.
    """
    if unknown := set(tasks) - set(TASKS):
        raise ValueError(f"the suite has no {sorted(unknown)}; its tasks are {', '.join(TASKS)}")
    judge = Judge.load(HERE / "data")
    results: Row = {}
    items: dict[str, list[Row]] = {}
    if "drawing" in tasks:
        results["drawing"], items["drawing"] = measure_drawing(hub_model, judge, limit, seed, image_sampling)
    if "describing" in tasks:
        results["describing"], items["describing"] = measure_describing(hub_model, limit)
    if "answering" in tasks:
        results["answering"], items["answering"] = measure_answering(hub_model, limit)
    if "codec" in tasks:
        results["codec"] = measure_codec(hub_model, limit)
    if "text" in tasks:
        results["text"] = measure_text(hub_model, limit)
    if "drawing" in tasks:
        results["frechet"] = measure_frechet(items["drawing"])
    if "editing" in tasks:
        results["editing"], items["editing"] = measure_editing(hub_model, judge, limit, seed, image_sampling)
    results["shares"] = shares_of_items(items)
    return results, items
