"""Shows what a model can do: `python -m eval.demo --model model_cards/ugen-spark`, about a minute on two cores.

It draws a dozen prompts, most of them combinations that training never contained; describes a dozen real scenes of such
combinations and answers questions about them; and goes on with a sentence. The text is printed; `demo.png` shows the
images with it. Nothing is picked by result: the items are a seeded choice from the evaluation suite.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .facts import facts_from_json
from .items import read_items
from .load import HubModel
from .pictures import RIGHT, SOFT, WRONG, Card, Line, Section, draw_sheet
from .spark import HERE, evenly, stated_facts

SEED = 0
NEW_PROMPTS, FAMILIAR_PROMPTS, SCENES, QUESTIONS = 9, 3, 12, 2
CATEGORIES = ("two_object", "counting", "position", "color_attr", "single_object")
OPENINGS = ("cat:", "to run:", "a small house in the")


class Told(NamedTuple):
    """A real scene, what the model wrote about it, and what is right: (given, reference) of caption and answers."""

    image: Any
    caption: str
    reference: str
    caption_is_right: bool
    answers: list[tuple[str, str, str]]  # question, given, right answer


def choose_prompts(rng: random.Random) -> list[dict[str, Any]]:
    """Held-out prompts of all categories in turn, then a few that training contained."""
    rows = read_items(HERE / "data" / "spark_drawing.parquet")
    chosen = []
    for split, count in (("held_out", NEW_PROMPTS), ("seen", FAMILIAR_PROMPTS)):
        for number in range(count):
            category = CATEGORIES[number % len(CATEGORIES)]
            of_category = [row for row in rows if row["split"] == split and row["category"] == category]
            chosen.append(rng.choice([row for row in of_category if row not in chosen]))
    return chosen


def tell(hub_model: HubModel, rng: random.Random) -> list[Told]:
    """Captions of held-out scenes and answers to questions about them, those that have enough questions."""
    asked: dict[str, list[dict[str, Any]]] = {}
    for row in read_items(HERE / "data" / "spark_answering.parquet"):
        asked.setdefault(row["scene_id"], []).append(row)
    rows = [row for row in read_items(HERE / "data" / "spark_describing.parquet") if row["split"] == "held_out"]
    rows = evenly([row for row in rows if len(asked.get(row["id"], [])) >= QUESTIONS], SCENES)
    questions = [rng.sample(asked[row["id"]], QUESTIONS) for row in rows]
    captions = hub_model.describe([row["image"] for row in rows])
    answers = iter(
        hub_model.answer(
            [(row["image"], q["question"]) for row, asked in zip(rows, questions, strict=True) for q in asked]
        )
    )
    return [
        Told(
            row["image"],
            caption.strip(),
            row["caption"],
            stated_facts(caption) == facts_from_json(row["facts"]),
            [(question["question"], next(answers).strip(), question["answer"]) for question in of_row],
        )
        for row, caption, of_row in zip(rows, captions, questions, strict=True)
    ]


def told_lines(told: Told) -> list[Line]:
    """The words of a card, wrong ones followed by what would be right."""
    lines = [Line(told.caption, RIGHT if told.caption_is_right else WRONG)]
    if not told.caption_is_right:
        lines.append(Line(f"(it is: {told.reference})", SOFT))
    for question, given, right in told.answers:
        verdict = "" if given == right else f" (it is: {right})"
        lines += [Line(question), Line(f"{given}{verdict}", WRONG if verdict else RIGHT)]
    return lines


def show(name: str, prompts: Sequence[dict], drawn: Sequence[Any], told: Sequence[Told], path: Path) -> None:
    """Writes the sheet."""
    cards = [
        Card(image, [Line(row["prompt"])] + [Line("known from training", SOFT)] * (row["split"] == "seen"))
        for row, image in zip(prompts, drawn, strict=True)
    ]
    scenes = [Card(item.image, told_lines(item)) for item in told]
    described = sum(item.caption_is_right for item in told)
    answered = sum(given == right for item in told for _, given, right in item.answers)
    sections = [
        Section(
            "Drawn from words",
            f"{NEW_PROMPTS} of the {len(cards)} prompts name combinations that training never contained",
            cards,
            columns=6,
        ),
        Section(
            "Told about real scenes",
            f"new combinations of real drawings; {described} of {len(told)} captions and {answered} of "
            f"{sum(len(item.answers) for item in told)} answers are right (green)",
            scenes,
            columns=3,
            beside=True,
        ),
    ]
    draw_sheet(name, sections, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="model_cards/ugen-spark", help="folder or Hub id")
    parser.add_argument("--output", type=Path, default=Path("demo.png"))
    arguments = parser.parse_args()
    started = time.monotonic()
    rng = random.Random(SEED)
    hub_model = HubModel.load(arguments.model)
    name = Path(arguments.model).name

    prompts = choose_prompts(rng)
    drawn = hub_model.draw([row["prompt"] for row in prompts], [SEED + number for number in range(len(prompts))])
    print(f"\n{name} draws (see {arguments.output}):")
    for row in prompts:
        print(f"  {row['prompt']}{'' if row['split'] == 'held_out' else '   [known from training]'}")

    told = tell(hub_model, rng)
    print("\nIt looks at real scenes it never saw, and writes:")
    for item in told:
        print(f"  {item.caption}" + ("" if item.caption_is_right else f"   [it is: {item.reference}]"))
        for question, given, right in item.answers:
            print(f"      {question} {given}" + ("" if given == right else f"   [it is: {right}]"))

    print("\nIt goes on with:")
    for opening in OPENINGS:
        print(f"  {opening} ...{hub_model.complete(opening).removeprefix(opening)}")

    show(name, prompts, drawn, told, arguments.output)
    print(f"\n{time.monotonic() - started:.0f} seconds. The picture: {arguments.output.resolve()}")


if __name__ == "__main__":
    main()
