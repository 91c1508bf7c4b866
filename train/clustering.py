"""One round of clustering, step by step: assign, drop repeats, set the long tail aside, even out distances, take means.

A round is a step of Lloyd's algorithm on a sample of patches; each of the paper's additions (UVU, "codebook
construction") can be switched off by the recipe, and without all of them a round is plain k-means:

- position: a sinusoidal encoding of the patch's place in its image is added before anything is compared. The codeword
  is the mean of the members' own pixels, so nothing has to be subtracted from it. An encoding of the index of the
  feature, as the paper's formula reads, adds one constant to all patches and moves no distance (held by test).
- repeats: of members of a cluster whose distances agree in 5 decimals the first is kept. Distances, here and below, are
  of pixels: a repeat is one wherever it stands.
- long tail: clusters of fewer than `delta` members leave the index, their members wait in a cache; when it holds
  `alpha` patches, it is clustered by itself and the centres come back.
- distances: from each cluster, of each interval of distances, about as many members are taken.

Everything is compared where the codec compares: pixels in [-1, 1], squared differences. Sums of pixels are whole
numbers in float64, therefore exact in any order: processes can share a round without moving a centre.

N patches, K clusters, D numbers of a patch, B bins of distance.
"""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import faiss
import numpy as np
import torch

from train import ranks
from train.patches import Patches, chance, keys
from train.recipes.kinds import CodebookRecipe

CHUNK = 4096  # patches that stand in float32 at once: 50 MB at 3,072 numbers
DISTANCE_DECIMALS = 5  # UVU
REGROUP_ROUNDS = 10  # of Lloyd's algorithm on the cache
PROBES = 16  # lists of the inexact index that are searched: at 2 * sqrt(K) lists, 8 * sqrt(K) centres


@dataclass
class Clusters:
    """What a round leaves to the next one."""

    pixels_KD: np.ndarray  # float32 in [-1, 1]: means of the members' pixels
    positions_KD: np.ndarray | None  # float32: means of their encodings; None without
    counts_K: np.ndarray  # int64: members in the last round, repeats not counted
    aside_K: np.ndarray  # bool: centres of the long tail, out of play until the cache is clustered
    cache: Patches
    # What an earlier build knew: it weighs in every mean as that many patches at that centre. Zeros in a new build.
    prior_counts_K: np.ndarray
    prior_pixels_KD: np.ndarray | None = None
    prior_positions_KD: np.ndarray | None = None

    @classmethod
    def start(cls, first: Patches, strength: float) -> "Clusters":
        """Every cluster is one patch."""
        count, size = first.pixels_ND.shape
        zeros_K = np.zeros(count, np.int64)
        positions_KD = encode_places(first.places_N2, size, strength) if strength else None
        return cls(
            to_unit(first.pixels_ND), positions_KD, zeros_K, np.zeros(count, bool), Patches.join((), size), zeros_K
        )

    def continued(self) -> "Clusters":
        """The start of a build that goes on with other images."""
        self.prior_counts_K, self.counts_K = self.counts_K, np.zeros_like(self.counts_K)
        self.prior_pixels_KD = self.pixels_KD.copy()
        self.prior_positions_KD = None if self.positions_KD is None else self.positions_KD.copy()
        return self

    @property
    def centres_KD(self) -> np.ndarray:
        """Where patches are compared."""
        return self.pixels_KD if self.positions_KD is None else self.pixels_KD + self.positions_KD

    @property
    def codewords_KD(self) -> np.ndarray:
        """uint8 [K, D], as the codec stores them."""
        return np.rint((self.pixels_KD + 1) * 127.5).astype(np.uint8)


# --- where a patch stands -------------------------------------------------------------------------------------------


def to_unit(bytes_ND: np.ndarray) -> np.ndarray:
    """0..255 to float32 in [-1, 1], as the codec does it. Also for means, so that a mean of equals is one of them."""
    return bytes_ND.astype(np.float32) / np.float32(127.5) - np.float32(1)


def encode_places(places_N2: np.ndarray, size: int, strength: float) -> np.ndarray:
    """float32 [N, D]: of each patch's row in the first half of its numbers and of its column in the second.

    Each half is the sinusoidal encoding of Vaswani et al. 2017 (3.5), times `strength`, in units of pixels in [-1, 1].
    The paper names the encoding, not what is encoded; places are our choice, since the same pixels at another place
    are the one thing about a patch that its pixels do not say.
    """
    highest = int(places_N2.max(initial=0))
    halves = [sinusoids(highest + 1, width)[places] for places, width in zip(places_N2.T, halve(size), strict=True)]
    return np.concatenate(halves, axis=1) * np.float32(strength)


def halve(size: int) -> tuple[int, int]:
    return size // 2, size - size // 2


@lru_cache(4)
def sinusoids(count: int, width: int) -> np.ndarray:
    """float32 [count, width]: even columns sines, odd ones cosines, wavelengths from 2 pi to 10,000 * 2 pi."""
    columns = np.arange(width)
    angles = np.arange(count)[:, None] / 10_000 ** (columns // 2 * 2 / width)
    return np.where(columns % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)


def features(patches: Patches, strength: float) -> np.ndarray:
    """float32 [N, D], what is compared."""
    pixels_ND = to_unit(patches.pixels_ND)
    if strength:
        pixels_ND += encode_places(patches.places_N2, pixels_ND.shape[1], strength)
    return pixels_ND


# --- assignment -----------------------------------------------------------------------------------------------------


class Nearest:
    """The nearest of some centres [K, D], found with faiss: `flat` compares with all of them, `ivf` with the members of
    the nearest lists, about 10 * sqrt(K) comparisons, and misses the nearest now and then.

    Equal centres are entered once, under the lowest number: which of them wins would hang on the order of additions.
    `numbers` are what the centres are called in the answer.

    Raises:
        ValueError: an unknown index.
    """

    def __init__(self, centres_KD: np.ndarray, index: str, numbers: np.ndarray | None = None):
        distinct = distinct_rows(centres_KD)
        self.numbers = distinct if numbers is None else numbers[distinct]
        if index not in INDICES:
            raise ValueError(f"unknown index {index!r}: choose one of {sorted(INDICES)}")
        self.index = INDICES[index](np.ascontiguousarray(centres_KD[distinct], np.float32))

    def __call__(self, features_ND: np.ndarray) -> np.ndarray:
        """Number int64 [N] of each one's nearest."""
        return self.numbers[self.index.search(features_ND, 1)[1][:, 0]]


def flat_index(centres_KD: np.ndarray) -> faiss.Index:
    index = faiss.IndexFlatL2(centres_KD.shape[1])
    index.add(centres_KD)
    return index


def inverted_index(centres_KD: np.ndarray) -> faiss.Index:
    """2 * sqrt(K) lists, by k-means of the centres: searching lists and members then costs about the same."""
    count, size = centres_KD.shape
    index = faiss.index_factory(size, f"IVF{max(1, round(2 * count**0.5))},Flat")
    index.cp.min_points_per_centroid = 1  # half a square root of K is what a list has; faiss would warn
    index.train(centres_KD)
    index.add(centres_KD)
    index.nprobe = PROBES
    return index


INDICES = {"flat": flat_index, "ivf": inverted_index}


def distinct_rows(rows_KD: np.ndarray) -> np.ndarray:
    """The first of each set of equal rows, in order; hashed, so that nothing the size of the rows is copied."""
    first: dict[bytes, int] = {}
    for number, row in enumerate(np.ascontiguousarray(rows_KD)):
        first.setdefault(hashlib.blake2b(row, digest_size=16).digest(), number)
    return np.fromiter(first.values(), np.int64, len(first))


def assign(nearest: Nearest, patches: Patches, strength: float) -> np.ndarray:
    """Number int64 [N] of each patch's nearest centre, chunk by chunk."""
    chunks = (patches[start : start + CHUNK] for start in range(0, len(patches), CHUNK))
    return np.concatenate([np.empty(0, np.int64), *(nearest(features(chunk, strength)) for chunk in chunks)])


def distances(patches: Patches, labels_N: np.ndarray, pixels_KD: np.ndarray) -> np.ndarray:
    """float32 [N]: of each patch's pixels from those of its cluster [K, D], wherever it stands.

    From the differences: what faiss returns is a difference of large numbers, and not 0 for equals.
    """
    distances_N = np.empty(len(patches), np.float32)
    for start in range(0, len(patches), CHUNK):
        part = slice(start, start + CHUNK)
        differences_ND = to_unit(patches.pixels_ND[part]) - pixels_KD[labels_N[part]]
        distances_N[part] = np.sqrt(np.einsum("nd,nd->n", differences_ND, differences_ND))
    return distances_N


def sums(patches: Patches, labels_N: np.ndarray, count: int, strength: float) -> list[np.ndarray]:
    """float64 [K, D] sums of the members' pixels (0..255) and, if there is a strength, of their encodings."""
    size = patches.pixels_ND.shape[1]
    totals = [torch.zeros(count, size, dtype=torch.float64) for _ in range(2 if strength else 1)]
    for start in range(0, len(patches), CHUNK):
        part = patches[start : start + CHUNK]
        labels = torch.from_numpy(labels_N[start : start + CHUNK])
        totals[0].index_add_(0, labels, torch.from_numpy(part.pixels_ND).double())
        if strength:
            encoded = torch.from_numpy(encode_places(part.places_N2, size, strength))
            totals[1].index_add_(0, labels, encoded.double())
    return [total.numpy() for total in totals]


# --- the steps of a round -------------------------------------------------------------------------------------------


@dataclass
class Round:
    """One round on this process's share of a sample; `run` changes the clusters in place.

    `seed` with `number` decide all chance. `refining`: not among the first rounds, which are the paper's initial
    k-means. `last`: nothing is set aside any more, and what was comes back.
    """

    clusters: Clusters
    recipe: CodebookRecipe
    number: int
    refining: bool
    last: bool
    log: dict[str, float] = field(default_factory=dict)

    def run(self, sample: Patches) -> dict[str, float]:
        """What happened: patches looked at, repeats, members set aside, centres aside, patches learned from, and how
        far centres moved (root mean square of a pixel in [-1, 1], over centres with members)."""
        recipe, clusters = self.recipe, self.clusters
        if clusters.aside_K.any() and (self.last or len(clusters.cache) >= recipe.alpha):
            self.regroup()
        in_play = np.flatnonzero(~clusters.aside_K)
        nearest = Nearest(clusters.centres_KD[in_play], recipe.index, in_play)
        labels_N = assign(nearest, sample, recipe.position_strength)
        distances_N = distances(sample, labels_N, clusters.pixels_KD)
        kept_N = np.ones(len(sample), bool)
        if recipe.drop_repeats:
            kept_N = first_of_equals(labels_N, distances_N, sample.ids_N)
        clusters.counts_K = self.count(labels_N[kept_N])
        self.log |= {"patches": self.total(len(sample)), "repeats": self.total((~kept_N).sum())}
        if self.refining and not self.last and recipe.delta:
            kept_N &= ~self.set_aside(sample, labels_N, distances_N, kept_N)
        learned = np.flatnonzero(kept_N)
        if self.refining and recipe.samples_per_bin:
            learned = learned[self.even_out(labels_N[learned], distances_N[learned], sample.ids_N[learned])]
        self.log |= {"aside": int(clusters.aside_K.sum()), "cached": len(clusters.cache)}
        self.log["moved"] = self.move(sample[learned], labels_N[learned])
        return self.log

    def total(self, number: int) -> int:
        return int(ranks.add(np.array([number], np.int64))[0])

    def count(self, labels_N: np.ndarray) -> np.ndarray:
        return ranks.add(np.bincount(labels_N, minlength=len(self.clusters.counts_K)))

    def set_aside(
        self, sample: Patches, labels_N: np.ndarray, distances_N: np.ndarray, kept_N: np.ndarray
    ) -> np.ndarray:
        """Takes clusters of fewer than `delta` members out of play and caches the members, marked in what is returned.

        A cluster without members, such as one whose first centre was the same patch as another's, has nothing to
        cache; for it one patch of the large clusters is cached, drawn with a chance in proportion to its squared
        distance as k-means++ does. Our choice: otherwise its codeword would never be of use.
        """
        clusters = self.clusters
        members_K = clusters.counts_K + clusters.prior_counts_K
        tail_K = ~clusters.aside_K & (members_K < self.recipe.delta)
        tail_N = kept_N & tail_K[labels_N]
        empty = int((tail_K & (members_K == 0)).sum())
        drawn = self.draw_distant(sample, distances_N, kept_N & ~tail_N, empty)
        cached = [clusters.cache, *ranks.gather_objects(sample[tail_N]), drawn]
        cache = Patches.join(cached, sample.pixels_ND.shape[1])
        clusters.cache = cache[np.unique(cache.ids_N, return_index=True)[1]]
        clusters.aside_K |= tail_K
        clusters.prior_counts_K = np.where(tail_K, 0, clusters.prior_counts_K)  # it comes back as another cluster
        return tail_N

    def draw_distant(self, sample: Patches, distances_N: np.ndarray, from_N: np.ndarray, count: int) -> Patches:
        """`count` patches of all processes, without replacement: the winners of a race of exponential clocks."""
        candidates = np.flatnonzero(from_N & (distances_N > 10.0**-DISTANCE_DECIMALS))
        u = chance(self.recipe.seed, f"distant/{self.number}", sample.ids_N[candidates])
        times = -np.log1p(-u) / np.square(distances_N[candidates], dtype=np.float64)
        order = np.argsort(times)[:count]
        winners = np.argsort(ranks.gather(times[order]), kind="stable")[:count]
        drawn = ranks.gather_objects(sample[candidates[order]])
        return Patches.join(drawn, sample.pixels_ND.shape[1])[winners]

    def even_out(self, labels_N: np.ndarray, distances_N: np.ndarray, ids_N: np.ndarray) -> np.ndarray:
        """bool [N], which members are learned from: about `samples_per_bin` of each of a cluster's intervals of
        distance, or all if there are fewer.

        The paper samples clusters, then distances, for uniform training samples, from a global table of distances. Ours
        is a histogram [K, B] over all processes, B equal intervals up to the cluster's largest distance; each member
        is taken with the chance samples_per_bin / (members in its bin), so no process has to know another's members.
        """
        bins, count = self.recipe.distance_bins, len(self.clusters.counts_K)
        largest_K = np.zeros(count, np.float32)
        np.maximum.at(largest_K, labels_N, distances_N)
        scale_N = np.maximum(ranks.largest(largest_K), np.finfo(np.float32).tiny)[labels_N]
        cells_N = labels_N * bins + np.minimum((distances_N / scale_N * bins).astype(np.int64), bins - 1)
        histogram = ranks.add(np.bincount(cells_N, minlength=count * bins))
        return chance(self.recipe.seed, f"bins/{self.number}", ids_N) < self.recipe.samples_per_bin / histogram[cells_N]

    def move(self, patches: Patches, labels_N: np.ndarray) -> float:
        """Moves centres to the means of these members; a centre without any stays. Returns how far they moved."""
        clusters, before_KD = self.clusters, self.clusters.pixels_KD
        learned_K = self.count(labels_N)
        self.log["learned_from"] = int(learned_K.sum())
        totals = sums(patches, labels_N, len(learned_K), self.recipe.position_strength)
        moving = np.flatnonzero(learned_K)
        priors = (clusters.prior_pixels_KD, clusters.prior_positions_KD)
        means = []
        for total_KD, prior_KD in zip(totals, priors, strict=False):
            mean_KD = ranks.add(total_KD)[moving] / learned_K[moving, None]
            mean_KD = mean_KD if means else to_unit(mean_KD)  # pixels are the first
            if prior_KD is not None:
                old, new = clusters.prior_counts_K[moving, None], clusters.counts_K[moving, None]
                mean_KD = (old * prior_KD[moving] + new * mean_KD) / (old + new)
            means.append(mean_KD.astype(np.float32))
        moved = float(np.sqrt(np.square(means[0] - before_KD[moving]).mean())) if len(moving) else 0.0
        clusters.pixels_KD[moving] = means[0]
        if clusters.positions_KD is not None:
            clusters.positions_KD[moving] = means[1]
        return moved

    def regroup(self) -> None:
        """Clusters the cache by itself, into as many clusters as are aside, and empties it. If the cache has fewer
        different patches, some centres come back as they were."""
        clusters = self.clusters
        aside = np.flatnonzero(clusters.aside_K)
        # The first process decides for all: the others' processors may add in another order.
        found = ranks.from_first(self.group(clusters.cache, len(aside)) if ranks.rank() == 0 else None)
        for centres_KD, found_KD in zip((clusters.pixels_KD, clusters.positions_KD), found, strict=False):
            centres_KD[aside[: len(found_KD)]] = found_KD
        self.log["came_back"] = len(aside)
        clusters.aside_K = np.zeros_like(clusters.aside_K)
        clusters.cache = clusters.cache[:0]

    def group(self, patches: Patches, count: int) -> list[np.ndarray]:
        """Means of pixels and, if there is a strength, of encodings, of at most `count` clusters by Lloyd's algorithm
        from random patches."""
        strength = self.recipe.position_strength
        patches = patches[np.argsort(keys(self.recipe.seed, f"regroup/{self.number}", patches.ids_N))]
        first = patches[distinct_rows(patches.pixels_ND)[:count]]
        group = Clusters.start(first, strength)
        for _ in range(REGROUP_ROUNDS if len(patches) else 0):
            labels_N = assign(Nearest(group.centres_KD, "flat"), patches, strength)
            members_K = np.bincount(labels_N, minlength=len(first))
            some = members_K > 0
            means = [total[some] / members_K[some, None] for total in sums(patches, labels_N, len(first), strength)]
            group.pixels_KD[some] = to_unit(means[0])
            if strength:
                group.positions_KD[some] = means[1]
        return [group.pixels_KD] + ([group.positions_KD] if strength else [])


def first_of_equals(labels_N: np.ndarray, distances_N: np.ndarray, ids_N: np.ndarray) -> np.ndarray:
    """bool [N]: of the members of a cluster, over all processes, whose distances agree in 5 decimals (UVU) the one with
    the lowest identity. What is kept is kept again.

    Three numbers a patch are gathered from every process; that bounds a round's sample to what one process can sort.
    """
    rounded_N = np.rint(distances_N.astype(np.float64) * 10**DISTANCE_DECIMALS).astype(np.int64)
    own = np.stack([labels_N, rounded_N, ids_N.view(np.int64)], axis=1)
    parts = ranks.gather_objects(own)
    every_N3 = np.concatenate(parts)
    order = np.lexsort(every_N3.T[::-1])
    sorted_N2 = every_N3[order, :2]
    first_N = np.ones(len(order), bool)
    first_N[1:] = (sorted_N2[1:] != sorted_N2[:-1]).any(axis=1)
    kept_N = np.empty(len(order), bool)
    kept_N[order] = first_N
    before = sum(len(part) for part in parts[: ranks.rank()])
    return kept_N[before : before + len(own)]
