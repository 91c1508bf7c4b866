"""Tables and pages of any results hold their numbers, stand alone, and say what was not measured."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from eval.page import page
from eval.scores import markdown, scores_of, side_by_side


def score(value, n=10):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}


def benchmark_record(model, value, **changes):
    record = {
        "suite": "pope",
        "model": f"folder/{model}",
        "model_revision": "sha256 0",
        "benchmark": {"name": "pope", "version": 1},
        "data": {"source": "pope.jsonl", "revision": "sha256 1"},
        "settings": {"limit": None},
        "environment": {"commit": "x"},
        "n": 10,
        "unparsed": 3,
        "scores": {"accuracy": score(value)},
        "groups": {"kind": {"random": {"accuracy": score(0.25, 4)}}},
    }
    return record | changes


def spark_record(model):
    shares = {"drawing": {"held_out": {"overall": score(0.7), "counting": score(0.4)}, "seen": {"overall": score(0.8)}}}
    return {"suite": "spark", "model": model, "settings": {"limit": None}, "environment": {}, "shares": shares}


def test_every_model_has_a_column_and_what_was_not_measured_is_no_zero():
    table = markdown([benchmark_record("a", 0.5), benchmark_record("b", 0.625), spark_record("a")]).splitlines()
    assert table[0] == "| score | a | b |"
    assert table[2] == "| pope accuracy | 0.500 (0.400 to 0.600) | 0.625 (0.525 to 0.725) |"
    assert table[3] == "| spark drawing, held-out | 0.700 (0.600 to 0.800) | - |"


def test_results_that_do_not_stand_beside_each_other_are_refused():
    other = benchmark_record("b", 0.5, data={"source": "pope.jsonl", "revision": "sha256 2"})
    with pytest.raises(ValueError, match="results of pope are not of the same items"):
        side_by_side([benchmark_record("a", 0.5), other])
    with pytest.raises(ValueError, match="two results of a have pope accuracy"):
        side_by_side([benchmark_record("a", 0.5), benchmark_record("a", 0.6)])


class Reader(HTMLParser):
    """Collects sources of pictures and text, and sees that tags are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        pass  # closed at once, as <line/>

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_a_page_needs_nothing_beside_it(tmp_path):
    path = tmp_path / "a.pope.json"
    drawn = tmp_path / "a.pope.images" / "00000"
    (drawn / "samples").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(drawn / "samples" / "0000.png")
    (drawn / "metadata.jsonl").write_text(json.dumps({"prompt": "a <red> square"}))
    items = [
        {"id": f"{n}/0", "asked": "<image> is it <b>?", "answer": "no & yes", "row": {"right": n % 2}}
        for n in range(20)
    ]
    path.with_suffix(".items.jsonl").write_text("\n".join(map(json.dumps, items)))
    text = page({path: benchmark_record("a", 0.5), Path("a.json"): spark_record("a")})
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    assert reader.sources and all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert not re.search("https?:", text)
    words = " ".join(reader.words)
    assert "a <red> square" in words and "<image> is it <b>?" in words and "no & yes" in words  # escaped
    assert words.count("wrong ") >= 4 and "3 of 10 answers say nothing" in words
    for number in ("0.500", "0.250", "0.700", "0.400", "0.800"):
        assert number in words
    assert "not measured" in words  # counting of seen combinations


def test_scores_of_spark_are_its_shares():
    assert scores_of(spark_record("a"))["spark drawing, seen"]["value"] == 0.8
