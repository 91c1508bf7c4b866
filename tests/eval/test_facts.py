"""The grammar of captions and the facts of scenes, on hand-written cases."""

import pytest

from eval.facts import (
    Placed,
    Scene,
    facts_from_json,
    facts_of,
    facts_to_json,
    holds,
    parse,
    relation_between,
    vocabulary,
)

CATS_AND_PIZZA = Scene("noto", (Placed("cat", 0, 0), Placed("cat", 1, 0), Placed("pizza", 1, 1)))


def test_facts_of_a_scene_are_complete():
    assert facts_of(CATS_AND_PIZZA) == {
        ("hand", "noto"),
        ("total", 3),
        ("count", "cat", 2),
        ("count", "pizza", 1),
        ("size", "cat", "small"),
        ("size", "pizza", "small"),
        ("place", "cat", "top left"),
        ("place", "cat", "bottom left"),
        ("place", "pizza", "bottom right"),
        ("relation", "cat", "left of", "pizza"),
    }


def test_facts_of_large_and_coloured():
    assert facts_of(Scene("fluent", (Placed("red heart", 0, 0, True),))) == {
        ("hand", "fluent"),
        ("total", 1),
        ("count", "red heart", 1),
        ("colour", "heart", "red"),
        ("size", "red heart", "large"),
    }


@pytest.mark.parametrize(
    ("caption", "facts"),
    [
        (
            "two cats left of a pizza, noto style",
            {
                ("hand", "noto"),
                ("total", 3),
                ("count", "cat", 2),
                ("count", "pizza", 1),
                ("relation", "cat", "left of", "pizza"),
            },
        ),
        (
            "fluent style: a cat below an apple",
            {
                ("hand", "fluent"),
                ("total", 2),
                ("count", "cat", 1),
                ("count", "apple", 1),
                ("relation", "apple", "above", "cat"),
            },
        ),
        (
            "a small blue circle in the top right corner",
            {
                ("total", 1),
                ("count", "blue circle", 1),
                ("colour", "circle", "blue"),
                ("size", "blue circle", "small"),
                ("place", "blue circle", "top right"),
            },
        ),
        ("a big bus", {("total", 1), ("count", "bus", 1), ("size", "bus", "large")}),
        ("a cat, two dogs and a bus", {("total", 4), ("count", "cat", 1), ("count", "dog", 2), ("count", "bus", 1)}),
    ],
)
def test_parse(caption, facts):
    assert parse(caption) == facts


@pytest.mark.parametrize("text", ["a cat right of a dog", "a cat to the right of a dog", "a dog to the left of a cat"])
def test_equal_statements_are_equal_facts(text):
    assert parse(text) == parse("a dog left of a cat")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cat",
        "a cats",
        "two cat",
        "a unheard thing",
        "a apple",
        "an small apple",
        "a cat, a dog",
        "a cat and a cat",
        "a cat left of a cat",
        "a cat left of a dog above a bus",
        "two small cats",
        "two cats in the top left",
        "a large cat in the top left",
        "a small cat and a dog",
        "a cat in the middle",
        "a cat in the top left left of a dog",
        "noto style: a cat, noto style",
        "a cat, oil style",
        "A cat",
        "a cat ",
    ],
)
def test_text_outside_the_grammar_is_refused(text):
    with pytest.raises(ValueError):
        parse(text)


def test_relations_need_a_shared_row_or_column():
    assert relation_between([(0, 0)], [(0, 1)]) == "left of"
    assert relation_between([(0, 0)], [(1, 0)]) == "above"
    assert relation_between([(0, 1)], [(0, 0)]) is None  # "right of" is the other group's "left of"
    assert relation_between([(0, 0)], [(1, 1)]) is None
    assert relation_between([(0, 0), (0, 1)], [(1, 1)]) == "above"
    assert relation_between([(0, 0), (1, 1)], [(0, 1)]) is None


def test_holds():
    assert holds(("count", "cat", 2), CATS_AND_PIZZA)
    assert not holds(("count", "cat", 1), CATS_AND_PIZZA)
    assert not holds(("relation", "pizza", "left of", "cat"), CATS_AND_PIZZA)


def test_facts_survive_json():
    facts = facts_of(CATS_AND_PIZZA)
    assert facts_from_json(facts_to_json(facts)) == facts


def test_scene_survives_json_and_ignores_the_order_of_objects():
    assert Scene.from_json(CATS_AND_PIZZA.to_json()) == CATS_AND_PIZZA
    assert Scene("noto", CATS_AND_PIZZA.objects[::-1]) == CATS_AND_PIZZA


@pytest.mark.parametrize(
    ("hand", "objects"),
    [
        ("oil", [Placed("cat", 0, 0)]),
        ("noto", [Placed("cat", 0, 2)]),
        ("noto", [Placed("cat", 0, 0), Placed("dog", 0, 0)]),
        ("noto", [Placed("cat", 0, 0, True), Placed("dog", 0, 1)]),
        ("noto", [Placed("cat", 1, 0, True)]),
    ],
)
def test_impossible_scenes_are_refused(hand, objects):
    with pytest.raises(ValueError):
        Scene(hand, tuple(objects))


def test_unknown_concept_is_named():
    with pytest.raises(ValueError, match="unheard"):
        facts_of(Scene("noto", (Placed("unheard", 0, 0),)))


def test_nouns_are_unambiguous():
    concepts = vocabulary().values()
    singular, plural = {c.name for c in concepts}, {c.plural for c in concepts}
    assert len(singular) == len(plural) == len(concepts)
    assert len({c.hexcode for c in concepts}) == len(concepts)
    assert singular & plural <= {"fish"}
    # "a" or "an" goes by the first letter.
    assert not any(name.startswith(("uni", "eu", "ho", "one")) for name in singular - {"horse", "hot", "house"})
