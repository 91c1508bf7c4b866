"""The patch codebook: what is looked at, each step of clustering, processes, memory, stopping, what is left behind."""

import json
import os
import signal
import sys
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train.clustering import (
    Clusters,
    Nearest,
    Round,
    assign,
    encode_places,
    features,
    first_of_equals,
    sinusoids,
    to_unit,
)
from train.codebook import Build, build_codebook, main, parser, run_rounds, survey
from train.codebook_report import comparisons, forecast, judge
from train.images import DatasetImages, open_images
from train.patches import PLACES, Lowest, Patches, PatchSource, PatchStream, chance, cut, keys
from train.recipes import CODEBOOKS
from train.recipes.kinds import CodebookRecipe

SIDE = 4
SIZE = 3 * SIDE**2


def picture(seed: int, width: int = 33, height: int = 26) -> Image.Image:
    """Smooth colours with a little noise, like a photograph out of focus, and a white corner: patches that repeat."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    pixels = pixels + rng.integers(-4, 5, pixels.shape)
    pixels[:9, :13] = 255
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for number in range(12):
        picture(number).save(folder / ("more" if number % 3 == 0 else ".") / f"{number:02d}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def recipe(folder):
    return CodebookRecipe(
        "tiny", images=str(folder), patch_size=SIDE, num_codewords=24, held_out_share=0.2, patches_per_round=10_000,
        initial_rounds=1, rounds=5, tolerance=0.0,
    )  # fmt: skip


@pytest.fixture
def full(recipe):
    """All steps, on samples of a third of the patches."""
    return replace(
        recipe, position_strength=0.1, drop_repeats=True, delta=3, alpha=8, samples_per_bin=2, distance_bins=4,
        patches_per_round=180,
    )  # fmt: skip


def build(recipe, output, stopped=()):
    """A build without its record and picture, gone on with if there is a checkpoint."""
    output.mkdir(exist_ok=True)
    source = PatchSource(recipe)
    found = list(output.glob("checkpoint-*"))
    started = Build.load(found[0]) if found else survey(recipe, source, output)
    source.mark_skipped(*started.skipped)
    run_rounds(recipe, started, source, output, stopped)
    return started


def some_patches(count, seed=0, values=256):
    rng = np.random.default_rng(seed)
    places = rng.integers(0, 9, (count, 2), dtype=np.int32)
    return Patches(rng.integers(0, values, (count, SIZE), dtype=np.uint8), places, np.arange(count, dtype=np.uint64))


# --- images and patches ---------------------------------------------------------------------------------------------


def test_patches_are_cut_in_raster_order_and_the_rest_is_counted():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    patches, places, left_out = cut(pixels, SIDE)
    assert patches.shape == (6, SIZE) and left_out == 14 * 9 - 6 * 16
    assert places.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    for number, (row, column) in enumerate(4 * places):
        square = pixels[row : row + 4, column : column + 4]
        assert np.array_equal(patches[number].reshape(3, SIDE, SIDE), square.transpose(2, 0, 1))


def test_scales_give_patches_of_reduced_images_until_none_fits():
    image = picture(1, width=32, height=8).crop((16, 0, 32, 8))  # beside the white corner
    stream = PatchStream([("one", image.copy)], SIDE, reductions=(1, 2, 4))
    (patches,) = stream.patches(lambda number: True)
    assert len(patches) == 8 + 2 and stream.pixels_left_out == 4 * 2
    assert patches.ids_N.tolist() == list(range(10))
    assert np.array_equal(patches.pixels_ND[8:], cut(np.asarray(image.reduce(2)), SIDE)[0])


def test_every_kind_of_source_gives_the_same_patches(folder, tmp_path):
    import datasets

    paths = [path for path, _ in open_images(str(folder))]
    assert [Path(path).name for path in paths[-4:]] == ["00.png", "03.png", "06.png", "09.png"] and len(paths) == 12
    columns = datasets.Features({"number": datasets.Value("int64"), "photo": datasets.Image()})
    rows = datasets.Dataset.from_dict({"number": list(range(12)), "photo": paths}, features=columns)
    rows.save_to_disk(str(tmp_path / "saved"))
    rows.to_parquet(str(tmp_path / "rows.parquet"))

    def ids_and_pixels(source):
        stream = PatchStream(open_images(str(source)), SIDE)
        whole = Patches.join(stream.patches(lambda number: number % 2 == 1), SIZE)
        return whole.ids_N, whole.pixels_ND

    expected = ids_and_pixels(folder)
    assert set(expected[0] // PLACES) == {1, 3, 5, 7, 9, 11}
    for source in (tmp_path / "saved", tmp_path / "rows.parquet"):
        assert all(map(np.array_equal, ids_and_pixels(source), expected))
    rows.select_columns("number").to_parquet(str(tmp_path / "numbers.parquet"))
    with pytest.raises(ValueError, match=r"no column of images among \['number'\]"):
        DatasetImages(str(tmp_path / "numbers.parquet"))
    with pytest.raises(ValueError, match="no file that is named like an image"):
        (tmp_path / "empty").mkdir()
        open_images(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda path: picture(0, width=3).save(path), "3x26 pixels are smaller than a patch of 4"),
        (lambda path: path.write_bytes(b"nothing"), "cannot identify"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "truncated|broken"),
        (lambda path: Image.fromarray(np.zeros((8, 8), np.uint16)).save(path), "mode I;16 has more than 8 bits"),
    ],
)
def test_a_bad_image_is_named_or_skipped_and_listed(recipe, tmp_path, spoil, reason):
    for number in range(12):
        picture(number).save(tmp_path / f"{number:02d}.png")
    spoil(tmp_path / "05.png")
    recipe = replace(recipe, images=str(tmp_path))
    with pytest.raises(ValueError, match=rf"05\.png cannot be used: .*({reason}).*pass --skip-bad-images"):
        PatchSource(recipe).survey()
    source = PatchSource(recipe, skip_bad_images=True)
    surveyed = source.survey()
    assert surveyed.images == 11 and list(surveyed.skipped) == [5] and "05.png" in surveyed.skipped[5]
    source.mark_skipped(surveyed.skipped, surveyed.held_out_skipped)
    assert len(source.sample(0, surveyed.patches)) == surveyed.patches
    later = next(number for number in range(6, 12) if not source.is_held_out(number))
    (tmp_path / f"{later:02d}.png").write_bytes(b"spoilt after the survey")
    with pytest.raises(ValueError, match=rf"{later:02d}\.png cannot be used"):
        source.sample(0, surveyed.patches)


def test_fewer_patches_than_codewords_and_nothing_held_out_are_refused(recipe):
    total = PatchSource(recipe).survey().patches
    with pytest.raises(ValueError, match=f"has {total} patches of 4x4 to train on, fewer than {total + 1} codewords"):
        PatchSource(replace(recipe, num_codewords=total + 1)).survey()
    with pytest.raises(ValueError, match=r"none of the 12 images is held out \(share 0.0\): pass --held-out"):
        PatchSource(replace(recipe, held_out_share=0.0)).survey()
    with pytest.raises(ValueError, match="pass --images"):
        PatchSource(replace(recipe, images=None))


def test_chance_is_uniform_and_a_pure_function():
    ids = np.arange(20_000, dtype=np.uint64) + np.uint64(7 * PLACES)
    u = chance(3, "bins/1", ids)
    assert np.array_equal(u, chance(3, "bins/1", ids)) and u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01 and np.abs(np.histogram(u, 10)[0] - 2000).max() < 200
    for other in (chance(4, "bins/1", ids), chance(3, "bins/2", ids), u[::-1]):
        assert abs(np.corrcoef(u, other)[0, 1]) < 0.03
    assert len(np.unique(keys(3, "bins/1", ids))) == len(ids)


def test_the_lowest_do_not_depend_on_how_they_pass_by():
    patches = some_patches(500)
    order = keys(0, "x", patches.ids_N)
    expected = np.argsort(order)[:40]
    for parts in (np.array_split(np.arange(500), 7), np.array_split(np.random.default_rng(1).permutation(500), 60)):
        lowest = Lowest(40, SIZE)
        for part in parts:
            lowest.offer(order[part], patches[part])
        found = lowest.of_all_ranks()
        assert np.array_equal(found.ids_N, expected)
        assert np.array_equal(found.pixels_ND, patches.pixels_ND[expected])
        assert np.array_equal(found.places_N2, patches.places_N2[expected])


def test_samples_differ_by_number_alone_and_never_hold_held_out_images(recipe):
    recipe = replace(recipe, patches_per_round=120)
    source, again = PatchSource(recipe), PatchSource(recipe)
    total = source.survey().patches
    samples = [source.sample(number, total) for number in range(12)]
    assert np.array_equal(samples[3].ids_N, again.sample(3, total).ids_N)
    assert len({sample.ids_N.tobytes() for sample in samples}) == 12
    assert sum(map(len, samples)) / 12 == pytest.approx(120, rel=0.15)
    held_out = [number for number in range(12) if source.is_held_out(number)]
    assert held_out and not set(np.concatenate([s.ids_N for s in samples]) // PLACES) & set(held_out)
    apart = PatchSource(replace(recipe, held_out=recipe.images))
    assert apart.survey().patches > total and not any(map(apart.is_held_out, range(12)))


# --- steps of a round -----------------------------------------------------------------------------------------------


def plain_round(clusters, recipe, sample, number=1, **flags):
    return Round(clusters, recipe, number, **{"refining": False, "last": False} | flags).run(sample)


def test_an_encoding_of_the_index_of_features_changes_nothing():
    """The paper's formula reads so: one vector for all patches. Then no assignment and no codeword changes."""
    patches = some_patches(400)
    pixels = to_unit(patches.pixels_ND)
    constant = sinusoids(SIZE, 8)[:, :2].sum(1)  # some encoding of the index j
    centres = pixels[:20].copy()
    shifted = centres + constant
    for _ in range(5):
        labels = Nearest(centres, "flat")(pixels)
        assert np.array_equal(labels, Nearest(shifted, "flat")(pixels + constant))
        for k in np.unique(labels):
            centres[k], shifted[k] = pixels[labels == k].mean(0), (pixels + constant)[labels == k].mean(0)
    assert np.abs(shifted - constant - centres).max() < 1e-5


def test_an_encoding_of_the_place_changes_clusters_and_leaves_pixels_clean(recipe):
    patches = some_patches(400)
    ends = {}
    for strength in (0.0, 0.5):
        strong = replace(recipe, position_strength=strength)
        clusters = Clusters.start(patches[:24], strength)
        for number in range(1, 4):
            centres = clusters.centres_KD.copy()
            plain_round(clusters, strong, patches, number)
            labels = assign(Nearest(centres, "flat"), patches, strength)
            means = np.stack([patches.pixels_ND[labels == k].mean(0) for k in range(24)])
            assert np.abs(clusters.pixels_KD - (means / 127.5 - 1)).max() < 1e-6  # of pixels, nothing else
        ends[strength] = labels
    assert (ends[0.0] != ends[0.5]).mean() > 0.1


def test_places_are_encoded_by_row_and_by_column():
    places = np.array([[0, 0], [0, 5], [7, 0], [7, 5]], np.int32)
    encoded = encode_places(places, SIZE, 0.25)
    half = SIZE // 2
    assert np.array_equal(encoded[0, :half], encoded[1, :half]) and np.array_equal(encoded[2, half:], encoded[0, half:])
    assert not np.array_equal(encoded[0], encoded[3]) and np.abs(encoded).max() <= 0.25
    assert np.allclose(encoded[0, ::2], 0) and np.allclose(encoded[0, 1::2], 0.25)  # sin 0, cos 0
    assert np.allclose(encoded[2, :2], 0.25 * np.array([np.sin(7), np.cos(7)]))
    patches = some_patches(3)
    assert np.array_equal(features(patches, 0.0), to_unit(patches.pixels_ND))


def test_of_equal_distances_in_a_cluster_the_first_is_kept_and_kept_again():
    labels = np.array([0, 0, 0, 1, 1, 0])
    distances = np.array([0.5, 0.500001, 0.7, 0.5, 0.5, 0.50002], np.float32)
    ids = np.array([9, 4, 1, 8, 6, 5], np.uint64)
    kept = first_of_equals(labels, distances, ids)
    assert kept.tolist() == [False, True, True, False, True, True]
    assert first_of_equals(labels[kept], distances[kept], ids[kept]).all()
    assert first_of_equals(np.arange(3), np.zeros(3, np.float32), np.arange(3, dtype=np.uint64)).all()


def test_repeats_no_longer_drag_a_centre(recipe):
    rare, common = np.full(SIZE, 250, np.uint8), np.full(SIZE, 200, np.uint8)
    pixels = np.stack([common] * 99 + [rare])
    patches = Patches(pixels, np.zeros((100, 2), np.int32), np.arange(100, dtype=np.uint64))
    for drop, expected in ((False, 200.5), (True, 225.0)):
        clusters = Clusters.start(patches[:1], 0.0)
        log = plain_round(clusters, replace(recipe, drop_repeats=drop), patches)
        assert log["repeats"] == (98 if drop else 0)
        assert (clusters.pixels_KD + 1) * 127.5 == pytest.approx(expected, abs=1e-3)


def test_distances_are_learned_from_evenly(recipe):
    count = 4000
    radii = np.random.default_rng(0).exponential(1.0, count).astype(np.float32)  # mostly close to the centre
    ids, labels = np.arange(count, dtype=np.uint64), np.arange(count) % 2
    recipe = replace(recipe, num_codewords=2, samples_per_bin=50, distance_bins=8)
    one = Round(Clusters.start(some_patches(2), 0.0), recipe, number=1, refining=True, last=False)
    taken = one.even_out(labels, radii, ids)
    for cluster in (0, 1):
        own = labels == cluster
        edges = np.linspace(0, radii[own].max(), 9)
        before, after = (np.histogram(radii[own & which], edges)[0] for which in (ids >= 0, taken))
        large = before > 50
        assert large.sum() >= 3 and before[large].max() > 5 * before[large].min()
        assert np.abs(after[large] - 50).max() < 25  # three standard deviations
        assert np.array_equal(after[~large], before[~large])


def test_the_long_tail_leaves_is_grouped_and_comes_back(recipe):
    """Two heaps, and five patches far from both: two of the four centres stand on single ones."""
    rng = np.random.default_rng(0)
    heaps = [np.full((60, SIZE), value) + rng.integers(-5, 6, (60, SIZE)) for value in (40, 200)]
    singles = rng.integers(0, 256, (5, SIZE))
    pixels = np.concatenate([*heaps, singles]).astype(np.uint8)
    sample = Patches(pixels, np.zeros((125, 2), np.int32), np.arange(125, dtype=np.uint64))
    recipe = replace(recipe, num_codewords=4, delta=4, alpha=5)
    clusters = Clusters.start(sample[np.array([0, 60, 120, 121])], 0.0)
    before = clusters.pixels_KD.copy()
    log = plain_round(clusters, recipe, sample, refining=True)
    assert clusters.aside_K.tolist() == [False, False, True, True] and log["cached"] == len(clusters.cache)
    assert set(clusters.cache.ids_N) <= set(range(120, 125)) and np.array_equal(clusters.pixels_KD[2:], before[2:])
    cached = len(clusters.cache)

    labels = assign(Nearest(clusters.centres_KD[:2], "flat"), sample, 0.0)
    assert set(labels) == {0, 1}
    log = plain_round(clusters, replace(recipe, alpha=cached + 1), sample, number=2, refining=True)
    assert "came_back" not in log and clusters.aside_K.sum() == 2  # alpha is not reached
    log = plain_round(clusters, recipe, sample, number=3, last=True, refining=True)
    assert log["came_back"] == 2 and not clusters.aside_K.any() and not len(clusters.cache)
    again = assign(Nearest(clusters.pixels_KD, "flat"), sample, 0.0)
    assert set(again[:120]) == {0, 1} and set(again[120:]) >= {2, 3}


def test_clusters_that_begin_as_one_patch_are_put_to_use(recipe):
    """Half of the first centres are white, as in scenes; plain k-means never gets rid of them."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 256, (20, SIZE), dtype=np.uint8)
    kinds[0] = 255
    pixels = kinds[np.concatenate([np.zeros(200, int), rng.integers(0, 20, 200)])]
    sample = Patches(pixels, np.zeros((400, 2), np.int32), np.arange(400, dtype=np.uint64))
    first = np.concatenate([np.arange(10), 200 + np.unique(pixels[200:], axis=0, return_index=True)[1][:10]])
    ends = {}
    for name, fields in {"plain": {}, "full": {"drop_repeats": True, "delta": 1, "alpha": 1}}.items():
        steps = replace(recipe, num_codewords=20, **fields)
        clusters = Clusters.start(sample[first], 0.0)
        for number in range(1, 7):
            plain_round(clusters, steps, sample, number, refining=number > 1, last=number == 6)
        ends[name] = judge(clusters.codewords_KD, sample)
    assert ends["plain"]["in_use"] <= 11 and ends["plain"]["prp"] < 0.9
    assert ends["full"]["in_use"] == 20 and ends["full"]["prp"] == 1.0


def test_equal_centres_are_one_and_the_inexact_index_is_nearly_right():
    pixels = to_unit(some_patches(600, values=3).pixels_ND) * 60
    twice = np.concatenate([pixels[:300], pixels[:300]])
    once = Nearest(twice, "flat")
    assert once.index.ntotal == 300 and np.array_equal(once(pixels[:300]), np.arange(300))
    exact, inexact = (Nearest(pixels[:300], index)(pixels[300:]) for index in ("flat", "ivf"))
    gaps = [np.linalg.norm(pixels[300:] - pixels[found], axis=1) for found in (exact, inexact)]
    assert (exact == inexact).mean() > 0.6 and gaps[0].mean() <= gaps[1].mean() < 1.05 * gaps[0].mean()
    with pytest.raises(ValueError, match="unknown index 'hnsw'"):
        Nearest(pixels, "hnsw")
    assert comparisons("ivf", 200_000) == pytest.approx(10 * 200_000**0.5) and comparisons("flat", 200_000) == 200_000


# --- whole builds ---------------------------------------------------------------------------------------------------


def test_a_build_without_additions_is_lloyds_algorithm(recipe, tmp_path):
    source = PatchSource(recipe)
    surveyed = source.survey()
    pixels = to_unit(source.sample(0, surveyed.patches).pixels_ND).astype(np.float64)
    centres = to_unit(surveyed.first.pixels_ND).astype(np.float64)
    for _ in range(recipe.rounds):
        labels = np.square(pixels[:, None] - centres).sum(-1).argmin(1)
        centres = np.stack([pixels[labels == k].mean(0) if (labels == k).any() else centres[k] for k in range(24)])
    clusters = build(recipe, tmp_path).clusters
    assert np.abs(clusters.pixels_KD - centres).max() < 1e-5
    assert np.array_equal(clusters.counts_K, np.bincount(labels, minlength=24))


def test_rounds_end_when_centres_rest(recipe, tmp_path):
    done = build(replace(recipe, rounds=100, tolerance=1e-4), tmp_path)
    assert 5 < len(done.history) < 100 and done.history[-2]["moved"] < 1e-4 <= done.history[-3]["moved"]
    assert [row["last"] for row in done.history] == [False] * (len(done.history) - 1) + [True]
    assert done.history[-1]["prp"] > done.history[0]["prp"] > 0.5


WORKER = """
import dataclasses, json, pathlib, sys
from train import ranks
from train.codebook import run_rounds, survey
from train.patches import PatchSource
from train.recipes.kinds import CodebookRecipe

ranks.join()
fields = json.loads(sys.argv[1])
recipe = CodebookRecipe(**{**fields, "reductions": tuple(fields["reductions"])})
source, output = PatchSource(recipe), pathlib.Path(sys.argv[2])
started = survey(recipe, source, output)
source.mark_skipped(*started.skipped)
run_rounds(recipe, started, source, output, [])
ranks.leave()
"""


def test_two_processes_build_the_codebook_of_one(full, tmp_path, start):
    (tmp_path / "two").mkdir()
    workers = start([sys.executable, "-c", WORKER, json.dumps(vars(full)), str(tmp_path / "two")])
    one = build(full, tmp_path / "one")
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    two = Build.load(tmp_path / "two" / "checkpoint-5")
    assert max(row["aside"] for row in one.history) > 0 and max(row["repeats"] for row in one.history) > 0
    for name in ("pixels_KD", "positions_KD", "counts_K"):
        assert np.abs(getattr(two.clusters, name) - getattr(one.clusters, name)).max() < 1e-4, name
    assert two.counts == one.counts and np.array_equal(two.held_out.ids_N, one.held_out.ids_N)
    numbers = ("patches", "repeats", "aside", "cached", "learned_from", "in_use")
    assert [[row[n] for n in numbers] for row in two.history] == [[row[n] for n in numbers] for row in one.history]


def test_ten_times_the_patches_take_no_more_memory(full, tmp_path):
    for number in range(50):
        picture(number, 64, 64).save(tmp_path / f"{number:03d}.bmp")
    images = list(open_images(str(tmp_path)))
    recipe = replace(
        full, images=str(tmp_path), patch_size=8, patches_per_round=2000, num_codewords=1000, held_out_patches=200,
        rounds=3,
    )  # fmt: skip

    def peak(times):
        """Bytes at once, of a build on the same images again and again: each time under other numbers."""
        source, output = PatchSource(recipe), tmp_path / f"{times}-{time.monotonic_ns()}"
        source.train.images = [image for _ in range(times) for image in images]
        output.mkdir()
        tracemalloc.start()
        try:
            started = survey(recipe, source, output)
            run_rounds(recipe, started, source, output, [])
            assert started.counts["patches"] == pytest.approx(times * 2560, rel=0.1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # what is loaded once is not counted
    assert peak(10) < 1.1 * peak(1)


def test_a_stopped_build_repeats_one_that_never_stopped(full, tmp_path):
    whole = build(full, tmp_path / "whole")
    output = tmp_path / "stopped"
    build(replace(full, rounds=5), output, stopped=[True])  # the survey alone
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-0"]
    for rounds_done in (2, 3):
        stop = StopAfter(output, rounds_done)
        build(full, output, stop)
        assert [path.name for path in output.glob("checkpoint-*")] == [f"checkpoint-{rounds_done}"]
    (output / "incomplete").mkdir()  # killed while it wrote
    (output / "incomplete" / "state.safetensors").write_bytes(b"half")
    resumed = build(full, output)
    for name, value in vars(whole.clusters).items():
        other = getattr(resumed.clusters, name)
        if isinstance(value, np.ndarray):
            assert np.array_equal(value, other), name
    assert resumed.history == whole.history
    assert [row["sample"] for row in whole.history] == [0, 2, 3, 4, 5]  # the initial round, then always another


class StopAfter:
    """As the list that a signal fills: true once a checkpoint stands."""

    def __init__(self, output, rounds):
        self.checkpoint = output / f"checkpoint-{rounds}"

    def __bool__(self):
        return self.checkpoint.exists()


def test_more_images_continue_a_codebook(recipe, folder, tmp_path):
    def finished(name, recipe):
        assert build(recipe, tmp_path / name).finished
        (tmp_path / name / "training.json").write_text(json.dumps({"recipe": vars(recipe)}))

    finished("old", recipe)
    old = Build.load(tmp_path / "old" / "checkpoint-5").clusters
    other = tmp_path / "other"
    other.mkdir()
    for number in (50, 51):
        picture(number).save(other / f"{number}.png")
    more = replace(recipe, images=str(other), held_out=str(folder), continue_from=str(tmp_path / "old"), rounds=2)
    new = build(more, tmp_path / "new")
    assert new.counts["patches"] == 96
    # After one round each centre is the mean of its old patches, all at the old centre, and its new ones.
    sample = PatchSource(more).sample(0, 96)
    first = Build.start(more, PatchSource(more).survey()).clusters
    plain_round(first, more, sample)
    labels = assign(Nearest(old.pixels_KD, "flat"), sample, 0.0)
    for k in np.unique(labels):
        own = to_unit(sample.pixels_ND[labels == k]).sum(0)
        mean = (old.counts_K[k] * old.pixels_KD[k] + own) / (old.counts_K[k] + (labels == k).sum())
        assert np.abs(first.pixels_KD[k] - mean).max() < 1e-5
    untouched = np.setdiff1d(np.arange(24), labels)
    assert np.array_equal(first.pixels_KD[untouched], old.pixels_KD[untouched])
    with pytest.raises(ValueError, match="num_codewords of .* is 24, of the recipe 25"):
        build(replace(more, num_codewords=25), tmp_path / "wrong")
    with pytest.raises(ValueError, match="no finished codebook"):
        build(replace(more, continue_from=str(other)), tmp_path / "wrong")


def test_the_command_builds_stops_resumes_and_leaves_a_codec(folder, tmp_path, capsys):
    from modeling_unified.codecs_unified import PatchCodec

    output = tmp_path / "run"
    command = [
        "--recipe", "spark/patch", "--images", str(folder), "--held-out", str(folder), "--num-codewords", "64",
        "--patches-per-round", "200", "--rounds", "400", "--output", str(output),
    ]  # fmt: skip
    watcher = threading.Thread(target=interrupt_after, args=(output / "checkpoint-2",))
    watcher.start()
    assert main(command) == 130
    watcher.join()
    assert "go on with: python -m train.codebook --recipe spark/patch" in capsys.readouterr().out
    with pytest.raises(ValueError, match="already: pass --resume"):
        main(command)
    with pytest.raises(ValueError, match="rounds 400 -> 8"):
        main([*command, "--resume", "--rounds", "8"])
    record = json.loads((output / "recipe.json").read_text())  # a shorter build, for the test's sake
    (output / "recipe.json").write_text(json.dumps(record | {"rounds": 12}))
    assert main([*command, "--resume", "--rounds", "12"]) == 0

    codec = PatchCodec.from_pretrained(output)
    record = json.loads((output / "training.json").read_text())
    assert record["rounds"] == len(record["history"]) <= 12 and record["skipped_images"] == []
    assert 0 < record["metrics"]["prp"] <= 1 and record["metrics"]["in_use"] <= 64
    assert record["recipe"]["num_codewords"] == 64 and record["packages"]["faiss-cpu"]
    assert record["forecast"]["hours"]["all"] > 0 and "not measured" in record["forecast"]["how"]
    assert (output / "codewords.png").stat().st_size > 10_000
    # The codec's own search agrees with the metric.
    patches = Build.load(next(output.glob("checkpoint-*"))).held_out.pixels_ND
    pixels = torch.from_numpy(to_unit(patches)).view(-1, 3, 8, 8)
    error = (codec.decode(codec.encode(pixels), (1, 1)) - pixels).square().sum((1, 2, 3)).mean()
    assert 1 - float(error / pixels.var(0, correction=0).sum()) == pytest.approx(record["metrics"]["prp"], abs=1e-5)


def interrupt_after(checkpoint):
    """Ctrl-C once that checkpoint, or a later one, stands."""
    while not any(int(path.name.split("-")[1]) >= 2 for path in checkpoint.parent.glob("checkpoint-*")):
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGINT)


# --- metrics and recipes --------------------------------------------------------------------------------------------


def test_metrics_by_hand():
    levels = np.array([0, 0, 0, 10, 100, 100, 104, 200], np.uint8)
    held_out = Patches(np.repeat(levels[:, None], SIZE, 1), np.zeros((8, 2), np.int32), np.arange(8, dtype=np.uint64))
    codewords = np.repeat(np.array([[0], [100], [180], [255]], np.uint8), SIZE, 1)
    found = judge(codewords, held_out)
    squares, variance = (10**2 + 4**2 + 20**2) / 8, levels.astype(float).var()
    assert found["prp"] == pytest.approx(1 - squares / variance)
    assert found["in_use"] == 3
    assert found["entropy"] == pytest.approx(-sum(share * np.log2(share) for share in (4 / 8, 3 / 8, 1 / 8)))
    assert found["psc"] == pytest.approx(3 / 4 * (4 + 0.2 * 6) / 10)  # largest distances 4, 10, 20 by grey level
    mean = judge(np.rint(held_out.pixels_ND.mean(0, keepdims=True)).astype(np.uint8), held_out)
    assert mean["prp"] == pytest.approx(0, abs=1e-4) and mean["entropy"] == 0
    brighter = replace(held_out, pixels_ND=held_out.pixels_ND + np.uint8(50))
    moved = judge(np.clip(codewords.astype(int) + 50, 0, 255).astype(np.uint8)[:3], brighter)
    assert moved["prp"] == pytest.approx(found["prp"])


def test_the_forecast_grows_in_proportion():
    recipe = replace(CODEBOOKS["photo/patch"](), num_codewords=2000, initial_rounds=5)
    seconds = {"survey": 10.0, "read": 5.0, "cluster": 20.0, "judge": 1.0}
    found = forecast(recipe, surveyed=10**5, read=10**5, compared=10**6, rounds=10, seconds=seconds)
    assert found["hours"]["survey"] == pytest.approx(10 * 2e9 / 1e5 / 3600, rel=1e-3)
    assert found["hours"]["read"] == pytest.approx(5 * 6 * 2e7 / 1e5 / 3600, rel=0.02)
    assert found["hours"]["cluster"] == pytest.approx(20 * 100 * 10 * 2e7 / 1e6 / 3600, rel=1e-3)
    small = replace(recipe, patch_size=16)
    assert forecast(small, 10**5, 10**5, 10**6, 10, seconds)["hours"]["survey"] == pytest.approx(
        4 * found["hours"]["survey"], rel=1e-3
    )


def test_recipes_are_the_papers_ablation():
    plain, position, full, spark = (
        CODEBOOKS[name]() for name in ("photo/patch-plain", "photo/patch-position", "photo/patch", "spark/patch")
    )
    assert {name: recipe().name for name, recipe in CODEBOOKS.items()} == {name: name for name in CODEBOOKS}
    assert position == replace(plain, name=position.name, position_strength=position.position_strength)
    assert not (plain.position_strength or plain.drop_repeats or plain.delta or plain.samples_per_bin)
    assert full.position_strength == position.position_strength > 0
    assert full.drop_repeats and full.delta and full.alpha and full.samples_per_bin
    assert (spark.patch_size, spark.num_codewords, spark.images) == (8, 8192, "spark")


def test_spark_images_are_those_of_the_codecs_and_held_out_drawings_are_others(monkeypatch):
    from train.codec import load_drawings

    drawings = load_drawings(held_out=True)[:5]
    monkeypatch.setattr("train.codec.load_drawings", lambda held_out: drawings)
    name, load = next(iter(open_images("spark", seed=3)))
    assert name == "scene 0" and load().size == (64, 64)
    assert np.array_equal(np.asarray(load()), np.asarray(next(iter(open_images("spark", seed=3)))[1]()))
    assert not np.array_equal(np.asarray(load()), np.asarray(next(iter(open_images("spark", seed=4)))[1]()))
    assert len(list(open_images("spark/held-out"))) == 5


def test_the_flags_of_the_command_are_these():
    flags = {flag for action in parser()._actions for flag in action.option_strings if flag.startswith("--")}
    assert flags == {
        "--help", "--recipe", "--output", "--resume", "--skip-bad-images", "--images", "--held-out",
        "--continue-from", "--num-codewords", "--rounds", "--patches-per-round", "--index",
    }  # fmt: skip


def test_rounds_must_go_beyond_the_initial_ones(recipe, tmp_path):
    with pytest.raises(ValueError, match="initial_rounds 5 must be at least 1 and below rounds 5"):
        build_codebook(replace(recipe, initial_rounds=5), tmp_path)
