"""The stream of samples: exact ratios, a pure function of (seed, number), bad rows named or counted."""

from collections import Counter
from dataclasses import replace

import pytest

from train.conversations import falls_due, image_to_text, text_to_image
from train.mixture import Mixture, SceneSource, Shuffle, TextSource, pack_pages, readable_rows
from train.recipes import spark

TEXT, READ, DRAW = range(3)


@pytest.fixture
def make_mixture(scenes):
    def make(length: int = 1000, seed: int = 0, recipe=None, first: int = 0) -> Mixture:
        recipe = recipe or spark.ugen()
        sources = (
            TextSource([f"word {n}: meaning" for n in range(50)], seed, characters=40),
            SceneSource(scenes, seed + 1, image_to_text(recipe)),
            SceneSource(scenes, seed + 2, text_to_image(recipe)),
        )
        return Mixture(list(zip(sources, (3, 2, 5), strict=True)), length, seed, first)

    return make


def kind_of(conversation) -> int:
    """Told from the conversation alone, not from where it came."""
    roles = {turn["role"] for turn in conversation for part in turn["content"] if part["type"] == "image"}
    return DRAW if "assistant" in roles else READ if roles else TEXT


def test_every_block_of_ten_holds_three_two_five(make_mixture):
    mixture = make_mixture(20_000)
    places = Counter()
    for block in range(2000):
        kinds = [mixture.locate(block * 10 + place)[0] for place in range(10)]
        assert Counter(kinds) == {TEXT: 3, READ: 2, DRAW: 5}
        places.update(enumerate(kinds))
    # Shuffled: no place of a block is tied to a kind.
    assert all(places[place, TEXT] < 1000 for place in range(10))


def test_the_samples_themselves_are_of_the_kind(make_mixture):
    mixture = make_mixture()
    assert Counter(kind_of(mixture[i]["conversation"]) for i in range(500)) == {TEXT: 150, READ: 100, DRAW: 250}


def test_a_source_is_used_in_its_own_order_without_gaps(make_mixture):
    mixture = make_mixture(5000)
    numbers = {kind: [] for kind in (TEXT, READ, DRAW)}
    for i in range(5000):
        kind, number = mixture.locate(i)
        numbers[kind].append(number)
    assert numbers == {kind: list(range(len(seen))) for kind, seen in numbers.items()}


def test_a_run_that_goes_on_begins_behind_the_samples_of_the_one_before(make_mixture):
    long, rest = make_mixture(40), make_mixture(25, first=15)
    assert [rest[i]["conversation"] for i in range(25)] == [long[15 + i]["conversation"] for i in range(25)]
    assert [rest[i]["index"] for i in range(25)] == list(range(25)) and len(rest) == 25
    assert rest.describe_sample(0).split(" ", 2)[2] == long.describe_sample(15).split(" ", 2)[2]


@pytest.mark.parametrize("first", [0, 13])
def test_samples_are_told_and_counted_by_source(make_mixture, first):
    mixture = make_mixture(200, first=first)
    names = [mixture.name_of(i) for i in range(200)]
    assert [int(name) for name in names] == [kind_of(mixture[i]["conversation"]) for i in range(200)]
    for stop in (0, 1, 9, 10, 57, 200):
        assert mixture.count_samples(stop) == {name: names[:stop].count(name) for name in "012"}
    named = Mixture([(None, 3), (None, 1)], 8, 0, names=["text", "drawings"])
    assert named.count_samples(8) == {"text": 6, "drawings": 2}
    assert Counter(named.name_of(i) for i in range(8)) == named.count_samples(8)


def test_a_sample_depends_on_seed_and_number_alone(make_mixture):
    first, again, other = make_mixture(), make_mixture(), make_mixture(seed=1)
    forward = [repr(first[i]) for i in range(120)]
    # As a resumed run: it begins in the middle, and has not seen what came before.
    assert [repr(again[i]) for i in range(70, 120)] == forward[70:]
    assert [repr(other[i]) for i in range(120)] != forward


def test_ratios_hold_in_the_part_after_a_resume(make_mixture):
    kinds = Counter(kind_of(make_mixture()[i]["conversation"]) for i in range(330, 990))
    assert kinds == {TEXT: 198, READ: 132, DRAW: 330}


def test_reading_alternates_captions_and_questions(make_mixture):
    mixture = make_mixture(4000)
    read = [s["conversation"] for s in (mixture[i] for i in range(4000)) if kind_of(s["conversation"]) == READ]
    asked = [len(conversation) > 2 or len(conversation[0]["content"]) > 1 for conversation in read]
    assert len(read) == 800 and sum(asked) == 400
    assert asked[:6] == [False, True] * 3


def test_questions_per_scene_are_all_about_the_image_in_front(make_mixture):
    mixture = make_mixture(400, recipe=replace(spark.ugen(), question_share=1.0, questions_per_scene=2))
    for conversation in (mixture[i]["conversation"] for i in range(400)):
        if kind_of(conversation) == READ:
            assert [turn["role"] for turn in conversation] == ["user", "assistant"] * 2
            assert [part["type"] for turn in conversation for part in turn["content"]].count("image") == 1


def test_a_tenth_of_the_drawings_has_no_prompt(make_mixture):
    mixture = make_mixture(8000)
    drawn = [s["conversation"] for s in (mixture[i] for i in range(8000)) if kind_of(s["conversation"]) == DRAW]
    assert 0.08 < sum(len(conversation) == 1 for conversation in drawn) / len(drawn) < 0.12


def test_a_scene_met_again_gets_other_words(make_mixture, scenes):
    source = SceneSource(scenes, 3, text_to_image(replace(spark.ugen(), drop_prompt_share=0.0)))
    prompts = {row: set() for row in range(len(scenes))}
    for number in range(240):
        prompts[source.order[number]].add(source[number][0]["content"][0]["text"])
    assert sum(len(words) > 1 for words in prompts.values()) > len(scenes) / 2


def test_each_pass_over_the_rows_is_a_new_permutation():
    order = Shuffle(7, seed=0)
    passes = [[order[turn * 7 + place] for place in range(7)] for turn in range(20)]
    assert all(sorted(rows) == list(range(7)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) > 15
    assert [order[number] for number in (30, 3, 29)] == [passes[4][2], passes[0][3], passes[4][1]]


def test_a_share_without_chance_is_exact():
    for share in (0.0, 0.3, 0.5, 1.0):
        due = [falls_due(number, share) for number in range(1000)]
        assert all(sum(due[:n]) == int(n * share) for n in range(1001))


def test_pages_hold_every_text_once_and_are_not_overfull():
    texts = ["a" * length for length in range(1, 60)]
    pages = pack_pages(texts, seed=0, characters=40)
    assert sorted(text for page in pages for text in page) == sorted(texts)
    assert all(len(page) == 1 or sum(map(len, page)) <= 40 for page in pages)


def test_an_unreadable_row_is_named_or_counted():
    def read(row):
        if row < 0:
            raise ValueError(f"it is {row}")
        return row

    with pytest.raises(ValueError, match="numbers, row 1: it is -5.*--skip-bad-rows"):
        readable_rows([4, -5, 6], read, "numbers", skip_bad_rows=False)
    assert readable_rows([4, -5, 6], read, "numbers", skip_bad_rows=True) == ([4, 6], 1)


def test_bad_parts_are_named(make_mixture):
    with pytest.raises(ValueError, match=r"\[3, 0\]"):
        Mixture([(None, 3), (None, 0)], 10, 0)
    with pytest.raises(ValueError, match="no rows"):
        TextSource([], 0, 100)
    with pytest.raises(ValueError, match=r"2 sources are called \['a', 'a'\]"):
        Mixture([(None, 1), (None, 1)], 10, 0, names=["a", "a"])
    with pytest.raises(ValueError, match=r"2 sources are called \['a'\]"):
        Mixture([(None, 1), (None, 1)], 10, 0, names=["a"])


def test_samples_are_described_for_error_messages(make_mixture):
    mixture = make_mixture()
    described = [mixture.describe_sample(i) for i in range(10)]
    assert described[0].startswith("sample 0 (")
    assert sum("text page" in words for words in described) == 3
    assert sum("scene" in words for words in described) == 7
