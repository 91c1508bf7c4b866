"""The stream of training samples: sample i of a run is a pure function of (seed, i).

Nothing here has a position to save: a resumed run asks for the samples it has not seen yet, by number, and gets what it
would have got without the stop. Ratios are exact: with parts 3:2:5 every block of ten samples holds exactly three, two
and five, in an order shuffled by the seed.

    sample i -> block i // 10, place i % 10 -> (source, number within the source) -> source[number] -> conversation

A source is endless: `source[number]` works for any number >= 0 and goes over its rows again and again, in a new order
each time. A conversation is the package's one data format (see processing_unified).
"""

import random
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from train.conversations import Conversation, Writer, assistant, editing, image, text


class Source(Protocol):
    """`source[number]` for any number >= 0; `describe_row(number)` names the row behind it, for error messages. Data of
    any place becomes one by `train.sources.open_source`."""

    def __getitem__(self, number: int) -> Conversation: ...

    def describe_row(self, number: int) -> str: ...


class Mixture(Dataset):
    """Map-style data set of `length` samples, each `{"index": i, "conversation": ...}`, mixed in exact parts.

    Args:
        parts: (source, number of its samples in every block); the paper's pre-training mix is 3 text : 2 image-to-text
            : 5 text-to-image (UGen, training data).
        length: number of samples of the whole run.
        first: number of its first one: a run that goes on from another's model begins behind what that one has seen.
        names: what the sources are called where something is told of each; by default their places, from 0.

    Raises:
        ValueError: a part below 1, names that are not one for each source, each another.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Source, int]],
        length: int,
        seed: int,
        first: int = 0,
        names: Sequence[str] | None = None,
    ):
        if any(count < 1 for _, count in parts):
            counts = [count for _, count in parts]
            raise ValueError(f"parts are {counts}, each must be at least 1: leave the source out")
        self.names = list(map(str, range(len(parts)))) if names is None else list(names)
        if len(set(self.names)) != len(parts) or len(self.names) != len(parts):
            raise ValueError(f"{len(parts)} sources are called {self.names}: name each, and each differently")
        self.sources = [source for source, _ in parts]
        self.counts = [count for _, count in parts]
        self.length, self.first = length, first
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def locate(self, index: int) -> tuple[int, int]:
        """Sample number -> (which source, which number within it)."""
        block, place = divmod(self.first + index, sum(self.counts))
        kinds = _shuffled_block(tuple(self.counts), self.seed, block)
        kind = kinds[place]
        return kind, block * self.counts[kind] + kinds[:place].count(kind)

    def name_of(self, index: int) -> str:
        """The source of a sample, without reading it."""
        return self.names[self.locate(index)[0]]

    def count_samples(self, stop: int) -> dict[str, int]:
        """How many of the samples 0 to `stop` - 1 are of each source."""
        ends = [self._counts_before(self.first + index) for index in (0, stop)]
        return {name: int(after - before) for name, before, after in zip(self.names, *ends, strict=True)}

    def _counts_before(self, number: int) -> np.ndarray:
        block, place = divmod(number, sum(self.counts))
        begun = _shuffled_block(tuple(self.counts), self.seed, block)[:place]
        return block * np.array(self.counts) + np.bincount(begun, minlength=len(self.counts))

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, number = self.locate(index)
        return {"index": index, "conversation": self.sources[source][number]}

    def describe_sample(self, index: int) -> str:
        source, number = self.locate(index)
        return f"sample {index} ({self.sources[source].describe_row(number)})"


class Shuffle:
    """Endless order over `count` rows: `shuffle[number]` is a row; each pass over the rows is a new permutation."""

    def __init__(self, count: int, seed: int):
        if count < 1:
            raise ValueError("a source has no rows left: nothing to train on")
        self.count = count
        self.seed = seed
        self.turn, self.rows = -1, np.empty(0, np.int64)  # the pass that was last asked for

    def __getitem__(self, number: int) -> int:
        turn, place = divmod(number, self.count)
        if turn != self.turn:
            self.turn, self.rows = turn, np.random.default_rng([self.seed, self.count, turn]).permutation(self.count)
        return int(self.rows[place])


class TextSource:
    """Plain text. One sample is a page: several documents, each an assistant turn of its own, `[SOS] a [EOS] b [EOS]`.

    Short texts would leave most of a row to padding beside images of a fixed length, at the same cost; pages of about
    `characters` characters fill the rows (our choice). Which texts share a page is fixed by the seed.
    """

    def __init__(self, texts: Sequence[str], seed: int, characters: int):
        self.pages = pack_pages(texts, seed, characters)
        self.order = Shuffle(len(self.pages), seed)

    def __getitem__(self, number: int) -> Conversation:
        return [assistant(text(words)) for words in self.pages[self.order[number]]]

    def describe_row(self, number: int) -> str:
        return f"text page {self.order[number]}, beginning {self.pages[self.order[number]][0][:40]!r}"


class SceneSource:
    """Scenes with precomputed codes; `write(scene, codes, number, rng) -> conversation` puts words beside the image.

    The rng of a sample is seeded by (seed, number): a scene met again gets other words.
    """

    def __init__(self, scenes: Any, seed: int, write: Writer):
        self.scenes = scenes
        self.seed = seed
        self.write = write
        self.order = Shuffle(len(scenes), seed)

    def __getitem__(self, number: int) -> Conversation:
        scene, codes_L = self.scenes[self.order[number]]
        return self.write(scene, codes_L, number, random.Random(f"{self.seed}/{number}"))

    def describe_row(self, number: int) -> str:
        return f"scene {self.order[number]}"


class EditSource:
    """Pairs of scenes, one made of the other: `scenes[2 * row]` is the source of `edits[row]`, the next its target.

    `show` makes the part of the image that is read.
    """

    def __init__(self, edits: Sequence[Any], scenes: Any, seed: int, show: Callable[[Any, Any], dict]):
        self.edits, self.scenes, self.show = edits, scenes, show
        self.order = Shuffle(len(edits), seed)

    def __getitem__(self, number: int) -> Conversation:
        row = self.order[number]
        (source, source_tokens), (_, target_tokens) = self.scenes[2 * row], self.scenes[2 * row + 1]
        return editing(self.show(source, source_tokens), self.edits[row].instruction, image(target_tokens))

    def describe_row(self, number: int) -> str:
        return f"edit {self.order[number]}"


def pack_pages(texts: Sequence[str], seed: int, characters: int) -> list[list[str]]:
    """Fills pages greedily with texts in a seeded order, at most `characters` each; a longer text has its own page."""
    pages: list[list[str]] = []
    room = 0
    for row in np.random.default_rng([seed, len(texts)]).permutation(len(texts)):
        if not pages or len(texts[row]) > room:
            pages.append([])
            room = characters
        pages[-1].append(texts[row])
        room -= len(texts[row])
    return pages


def readable_rows(rows: Iterable[Any], read: Callable[[Any], Any], name: str, skip_bad_rows: bool) -> tuple[list, int]:
    """Reads every row once, before training: (the values, the number of rows left out).

    `read` raises ValueError for a row it cannot use. Without `skip_bad_rows` that is an error naming the row. With it
    the row is left out of the run from its start, so that the order of the others does not depend on when it is met.
    """
    values, bad = [], 0
    for number, row in enumerate(rows):
        try:
            values.append(read(row))
        except ValueError as error:
            if not skip_bad_rows:
                raise ValueError(f"{name}, row {number}: {error}. Repair it, or pass --skip-bad-rows") from error
            bad += 1
    return values, bad


@lru_cache(maxsize=256)
def _shuffled_block(counts: tuple[int, ...], seed: int, block: int) -> list[int]:
    kinds = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng([seed, block]).permutation(kinds).tolist()
