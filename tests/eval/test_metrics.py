"""The metric modules: loaded by path and offline as users load them, against numbers worked out by hand or by scipy."""

import json
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import scipy.linalg
from PIL import Image

METRICS = Path(__file__).parents[2] / "eval" / "metrics"


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path)
    return lambda name: evaluate.load(str(METRICS / name), keep_in_memory=True)


def fact(*values):
    return json.dumps(values)


def test_every_module_loads_and_documents_itself(load):
    for folder in sorted(path for path in METRICS.iterdir() if path.is_dir() and not path.name.startswith("_")):
        module = load(folder.name)
        assert module.description and "Args:" in module.inputs_description, folder.name


def test_drawing_needs_every_required_fact_and_averages_over_categories(load):
    result = load("drawing").compute(
        predictions=[["a", "b", "c"], ["a"], ["c"], []],
        references=[["a", "b"], ["a", "b"], ["c"], ["c"]],
        categories=["two_object", "two_object", "colors", "counting"],
    )
    assert result["two_object"] == 0.5 and result["colors"] == 1 and result["counting"] == 0
    assert result["overall"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert result["images"] == 0.5 and result["n"] == 4


def test_drawing_refuses_an_item_that_could_not_fail(load):
    with pytest.raises(ValueError, match="requires no fact"):
        load("drawing").compute(predictions=[["a"]], references=[[]], categories=["colors"])


def test_describing_counts_facts(load):
    cats, dogs, noto = fact("count", "cat", 2), fact("count", "dog", 1), fact("hand", "noto")
    result = load("describing").compute(
        predictions=[[cats, noto], [dogs], []], references=[[noto, cats], [cats, noto], [noto]]
    )
    assert result["exact_match"] == pytest.approx(1 / 3)
    assert result["precision"] == pytest.approx(2 / 3)  # cats and noto of three stated
    assert result["recall"] == pytest.approx(2 / 5)
    assert result["f1"] == pytest.approx(2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))
    assert result["by_kind"]["hand"] == pytest.approx({"precision": 1, "recall": 1 / 3, "f1": 0.5})


def test_describing_takes_other_true_facts_as_precise(load):
    cat, small = fact("count", "cat", 1), fact("size", "cat", "small")
    result = load("describing").compute(
        predictions=[[cat, small]], references=[[cat]], true_facts=[[cat, small, fact("total", 1)]]
    )
    assert result["precision"] == 1 and result["recall"] == 1 and result["exact_match"] == 0


def test_answering_by_kind_and_pope(load):
    result = load("answering").compute(
        predictions=["Yes.", "yes", "no", " two ", "a bus", "maybe"],
        references=["yes", "no", "yes", "two", "bus", "no"],
        kinds=["presence", "presence", "presence", "count", "place", "presence"],
    )
    assert result["accuracy"] == pytest.approx(2 / 6)
    assert result["by_kind"] == {"count": 1, "place": 0, "presence": 0.25}
    expected = {"accuracy": 0.25, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.5, "neither_ratio": 0.25}
    assert result["yes_no"] == expected | {"n": 4}


def test_frechet_equals_the_textbook_formula(load):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))
    second = rng.normal(size=(80, 5)) + 0.5
    covariances = [np.cov(x, rowvar=False) for x in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    difference = first.mean(0) - second.mean(0)
    expected = difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root)
    module = load("frechet")
    compute = sys.modules[type(module).__module__].frechet_distance
    assert compute(first, second) == pytest.approx(expected, rel=1e-6)
    result = module.compute(predictions=first[:50], references=first[:50])
    assert result["frechet"] == pytest.approx(0, abs=1e-4) and result["n"] == 50 and result["dimensions"] == 5


def test_reconstruction(load):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (32, 24, 3), dtype=np.uint8)
    brighter = image + 10
    pictures = [Image.fromarray(x) for x in (image, brighter)]
    result = load("reconstruction").compute(
        predictions=[pictures[0], pictures[1]],
        references=[pictures[0], pictures[0]],
        codes=np.array([[0, 1], [2, 3]]),
        num_codes=16,
    )
    assert result["psnr"] == pytest.approx((100 + 10 * np.log10(255**2 / 100)) / 2)
    assert 0.9 < result["ssim"] < 1
    assert result["codes_in_use"] == 4 and result["entropy"] == 2 and result["perplexity"] == 4


def test_ssim_of_plain_images_has_its_closed_form(load):
    module = load("reconstruction")
    plain = [Image.new("RGB", (16, 16), (value,) * 3) for value in (100, 150)]
    constant = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + constant) / (100**2 + 150**2 + constant)
    assert module.compute(predictions=plain[:1], references=plain[1:])["ssim"] == pytest.approx(expected)


def test_ssim_of_one_window_worked_out_by_its_definition(load):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 256, (11, 11, 3), dtype=np.uint8) for _ in range(2))
    y = (0.7 * x + 0.3 * y).astype(np.uint8)
    offset = np.arange(-5, 6)
    weight = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))[..., None]
    weight /= weight.sum()

    def mean(values):
        return (weight * values).sum((0, 1))

    a, b = x.astype(float), y.astype(float)
    c1, c2 = 2.55**2, 7.65**2
    covariance = mean(a * b) - mean(a) * mean(b)
    variances = mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2
    per_channel = (2 * mean(a) * mean(b) + c1) * (2 * covariance + c2)
    per_channel /= (mean(a) ** 2 + mean(b) ** 2 + c1) * (variances + c2)
    result = load("reconstruction").compute(predictions=[Image.fromarray(x)], references=[Image.fromarray(y)])
    assert result["ssim"] == pytest.approx(per_channel.mean())


def test_reconstruction_names_what_disagrees(load):
    small, large = Image.new("RGB", (16, 16)), Image.new("RGB", (32, 16))
    with pytest.raises(ValueError, match=r"\(16, 16, 3\).*\(16, 32, 3\)"):
        load("reconstruction").compute(predictions=[small], references=[large])
    with pytest.raises(ValueError, match="from 0 to 7"):
        load("reconstruction").compute(predictions=[small], references=[small], codes=np.array([0, 7]), num_codes=4)
