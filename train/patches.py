"""Patches of images as a stream of constant memory, and samples of it that depend on nothing but a seed.

Images are counted in the order of their source, patches of an image over its scales in raster order; both numbers
together are the patch's identity. Whether a patch is seen is decided by a hash of (seed, purpose, identity): several
processes see the same patches as one, and a run that was stopped sees what it would have seen. Process r of R reads the
images whose number leaves the remainder r when divided by R.

N patches, K patches kept, D = C * S * S numbers of a patch (colour, row, column, as a codebook stores them), C colours,
S side of a patch in pixels, H height, W width, r, c rows and columns of an image's grid.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from train import ranks
from train.images import NamedImage, open_images
from train.recipes.kinds import CodebookRecipe

CHANNELS = 3
PLACES = 1 << 24  # patches that an image may have at all scales together: 131,072 pixels squared at a patch of 32
# An image that is opened for a round gives a quarter of its patches, if the round needs less than that of all: fewer
# would waste decoding, more would make the sample a sample of few images.
SHARE_OF_AN_IMAGE = 4
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow would clip them to 8 bits
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass
class Patches:
    """Some patches: bytes, row and column in the grid of their image, identity."""

    pixels_ND: np.ndarray  # uint8
    places_N2: np.ndarray  # int32
    ids_N: np.ndarray  # uint64

    @classmethod
    def join(cls, parts: Iterable["Patches"], size: int) -> "Patches":
        """All of them in the order given; `size` is D, for when there are none."""
        parts = [cls(np.empty((0, size), np.uint8), np.empty((0, 2), np.int32), np.empty(0, np.uint64)), *parts]
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("pixels_ND", "places_N2", "ids_N")))

    def __len__(self) -> int:
        return len(self.ids_N)

    def __getitem__(self, which: Any) -> "Patches":
        return Patches(self.pixels_ND[which], self.places_N2[which], self.ids_N[which])


# --- chance ---------------------------------------------------------------------------------------------------------


def keys(seed: int, purpose: str, ids_N: np.ndarray) -> np.ndarray:
    """uint64 [N]: for each purpose another random order of all identities, without ties.

    SplitMix64's output function (Steele, Lea, Flood 2014), a bijection of 64 bits, after xor with a hash of the rest.
    """
    salt = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8]
    z_N = np.asarray(ids_N, np.uint64) ^ np.frombuffer(salt, "<u8")
    z_N = z_N + np.array([0x9E3779B97F4A7C15], np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z_N = (z_N ^ (z_N >> np.uint64(shift))) * np.array([factor], np.uint64)
    return z_N ^ (z_N >> np.uint64(31))


def chance(seed: int, purpose: str, ids_N: np.ndarray) -> np.ndarray:
    """float64 [N] in [0, 1), a pure function of the arguments."""
    return (keys(seed, purpose, ids_N) >> np.uint64(11)) * 2.0**-53


# --- from images to patches -----------------------------------------------------------------------------------------


@dataclass
class PatchStream:
    """The patches of a source at all scales, of patches [C, S, S]: pixels at the right and lower edge that fill no
    patch are left out and counted.

    `skipped` maps the numbers of images that are left out to the reason. With `skip_bad_images` images that turn out
    bad are added to it; otherwise they raise a ValueError that names them.
    """

    images: Iterable[NamedImage]
    patch_size: int
    reductions: tuple[int, ...] = (1,)
    skip_bad_images: bool = False
    skipped: dict[int, str] = field(default_factory=dict)
    pixels_left_out: int = 0

    def read(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Image.Image]]:
        """Images in RGB with their numbers: this process's share of those `wanted(number)`."""
        for number, (name, load) in enumerate(self.images):
            if number % ranks.world() != ranks.rank() or number in self.skipped or not wanted(number):
                continue
            try:
                image = self._decode(load)
            except UNREADABLE as error:
                if not self.skip_bad_images:
                    raise ValueError(
                        f"image {name} cannot be used: {error}; mend or remove it, or pass --skip-bad-images"
                    ) from error
                self.skipped[number] = f"{name}: {error}"
                continue
            yield number, image

    def _decode(self, load: Callable[[], Image.Image]) -> Image.Image:
        with load() as image:
            if image.mode in DEEP_MODES:
                raise ValueError(f"its mode {image.mode} has more than 8 bits a colour")
            image = ImageOps.exif_transpose(image).convert("RGB")  # as transformers opens images
        if min(image.size) < self.patch_size:
            raise ValueError(f"its {image.width}x{image.height} pixels are smaller than a patch of {self.patch_size}")
        return image

    def patches(self, wanted: Callable[[int], bool]) -> Iterator[Patches]:
        """The patches of one image after the other. A scale at which the image is smaller than a patch gives none."""
        for number, image in self.read(wanted):
            parts, total = [], 0
            for reduction in self.reductions:
                # Pillow's `reduce` averages squares of pixels: no ringing, and the same on every machine.
                pixels_HWC = np.asarray(image if reduction == 1 else image.reduce(reduction))
                pixels_ND, places_N2, left_out = cut(pixels_HWC, self.patch_size)
                parts.append((pixels_ND, places_N2))
                total += len(pixels_ND)
                self.pixels_left_out += left_out
            if total > PLACES:
                raise ValueError(f"image {number} has {total} patches, more than {PLACES}: cut it into several images")
            pixels_ND, places_N2 = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            ids_N = np.arange(total, dtype=np.uint64) + np.uint64(number * PLACES)
            yield Patches(pixels_ND, places_N2, ids_N)


def cut(pixels_HWC: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Patches uint8 [N, D] in raster order, their (row, column) int32 [N, 2], and how many pixels fill no patch."""
    height, width, channels = pixels_HWC.shape
    rows, columns = height // side, width // side
    inside = pixels_HWC[: rows * side, : columns * side]
    patches_rcCSS = inside.reshape(rows, side, columns, side, channels).transpose(0, 2, 4, 1, 3)
    places_N2 = np.stack(np.divmod(np.arange(rows * columns, dtype=np.int32), max(columns, 1)), axis=1)
    left_out = height * width - rows * columns * side * side
    return patches_rcCSS.reshape(rows * columns, channels * side * side), places_N2, left_out


# --- samples --------------------------------------------------------------------------------------------------------


class Lowest:
    """Of all patches that pass by, those with the lowest keys: a uniform sample whose size is known beforehand."""

    def __init__(self, count: int, size: int):
        self.count, self.filled = count, 0
        self.keys_K = np.empty(count, np.uint64)
        self.patches = Patches(
            np.empty((count, size), np.uint8), np.empty((count, 2), np.int32), np.empty(count, np.uint64)
        )

    def offer(self, keys_N: np.ndarray, patches: Patches) -> None:
        """Takes from `patches` what is lower than what is held; nothing else is copied."""
        both = np.concatenate([self.keys_K[: self.filled], keys_N])
        lowest = np.argpartition(both, self.count - 1)[: self.count] if len(both) > self.count else np.arange(len(both))
        come = lowest[lowest >= self.filled] - self.filled
        gone = np.setdiff1d(np.arange(self.filled), lowest, assume_unique=True)
        free = np.concatenate([gone, np.arange(self.filled, min(self.count, len(both)))])
        self.filled = min(self.count, len(both))
        self.keys_K[free] = keys_N[come]
        for kept, new in zip(vars(self.patches).values(), vars(patches).values(), strict=True):
            kept[free] = new[come]

    def of_all_ranks(self) -> Patches:
        """The lowest of all processes together, in the order of their keys; no more is held than twice the count."""
        own_keys, own = self.keys_K[: self.filled], self.patches[: self.filled]
        everybody = np.sort(ranks.gather(own_keys))[: self.count]
        mine = np.isin(own_keys, everybody)
        slots = np.searchsorted(everybody, own_keys[mine])
        chosen = [np.zeros((len(everybody), *a.shape[1:]), a.dtype) for a in vars(own).values()]
        for array, part in zip(chosen, vars(own).values(), strict=True):
            array[slots] = part[mine]
            ranks.add(array.view(np.int64) if array.dtype == np.uint64 else array)  # one process fills each slot
        return Patches(*chosen)


@dataclass
class Survey:
    """What one look at every image tells: counts, the first centres, and the patches that judge every round."""

    first: Patches  # as many as codewords
    held_out: Patches
    images: int
    patches: int  # to train on, at all scales
    pixels_left_out: int
    skipped: dict[int, str]  # of the training source
    held_out_skipped: dict[int, str]


class PatchSource:
    """Training and held-out patches of a recipe. Held out is a source of its own, or a share of the images.

    Raises:
        ValueError: a recipe without images.
    """

    def __init__(self, recipe: CodebookRecipe, skip_bad_images: bool = False):
        if not recipe.images:
            raise ValueError(f"the recipe {recipe.name} names no images: pass --images")
        self.recipe = recipe
        self.size = CHANNELS * recipe.patch_size**2

        def stream(images: Iterable[NamedImage]) -> PatchStream:
            return PatchStream(images, recipe.patch_size, recipe.reductions, skip_bad_images)

        self.train = stream(open_images(recipe.images, recipe.seed))
        self.other = stream(open_images(recipe.held_out, recipe.seed)) if recipe.held_out else None

    def is_held_out(self, number: int) -> bool:
        """Whether image `number` of the training source is kept from training."""
        if self.other:
            return False
        return bool(chance(self.recipe.seed, "held out", np.array([number]))[0] < self.recipe.held_out_share)

    def survey(self) -> Survey:
        """Decodes every image once.

        Raises:
            ValueError: a bad image, fewer patches than codewords, nothing to hold out.
        """
        recipe = self.recipe
        first, held_out = Lowest(recipe.num_codewords, self.size), Lowest(recipe.held_out_patches, self.size)
        counts = np.zeros(4, np.int64)  # images, patches to train on, held-out patches, pixels left out
        bar = partial(tqdm, unit="image", disable=ranks.rank() > 0, smoothing=0)
        for patches in bar(self.train.patches(lambda _: True), desc="surveying images"):
            held = self.is_held_out(int(patches.ids_N[0]) // PLACES)
            purpose, sample = ("held-out patches", held_out) if held else ("centres", first)
            sample.offer(keys(recipe.seed, purpose, patches.ids_N), patches)
            counts[:3] += (1, 0, len(patches)) if held else (1, len(patches), 0)
        counts[3] = self.train.pixels_left_out
        if self.other:
            for patches in bar(self.other.patches(lambda _: True), desc="surveying held-out images"):
                held_out.offer(keys(recipe.seed, "held-out patches", patches.ids_N), patches)
                counts[2] += len(patches)
        images, total, total_held_out, left_out = (int(count) for count in ranks.add(counts))
        if total < recipe.num_codewords and not recipe.continue_from:
            raise ValueError(
                f"{recipe.images} has {total} patches of {recipe.patch_size}x{recipe.patch_size} to train on, fewer "
                f"than {recipe.num_codewords} codewords: add images or pass a lower --num-codewords"
            )
        if not total_held_out:
            raise ValueError(
                f"none of the {images} images is held out (share {recipe.held_out_share}): pass --held-out"
            )
        return Survey(
            first.of_all_ranks(),
            held_out.of_all_ranks(),
            images,
            total,
            left_out,
            everyones(self.train.skipped),
            everyones(self.other.skipped) if self.other else {},
        )

    def mark_skipped(self, train: dict[int, str], held_out: dict[int, str]) -> None:
        """From here on these images are left out, and any other bad one is an error: it was good when surveyed."""
        self.train.skipped, self.train.skip_bad_images = train, False
        if self.other:
            self.other.skipped, self.other.skip_bad_images = held_out, False

    def sample(self, number: int, total: int) -> Patches:
        """This process's share of sample `number`: about `patches_per_round` of `total` training patches, or all.

        Twice the sample's bytes are held for a moment.
        """
        recipe = self.recipe
        rate = min(1.0, recipe.patches_per_round / total)
        share = min(1.0, SHARE_OF_AN_IMAGE * rate)

        def wanted(image: int) -> bool:
            chosen = chance(recipe.seed, f"images/{number}", np.array([image]))[0] < share
            return bool(chosen) and not self.is_held_out(image)

        parts = []
        reading = tqdm(
            total=round(rate * total / ranks.world()), desc=f"reading sample {number}", unit="patch", leave=False,
            disable=ranks.rank() > 0, smoothing=0,
        )  # fmt: skip
        with reading:
            for patches in self.train.patches(wanted):
                part = patches[chance(recipe.seed, f"patches/{number}", patches.ids_N) < rate / share]
                reading.update(len(part))
                parts.append(part)
        return Patches.join(parts, self.size)

    def held_out_images(self) -> Iterator[Image.Image]:
        """Held-out images whole, for pictures. Only this process's share."""
        stream = self.other or self.train
        return (image for _, image in stream.read(lambda number: bool(self.other) or self.is_held_out(number)))


def everyones(skipped: dict[int, str]) -> dict[int, str]:
    return dict(sorted(item for part in ranks.gather_objects(skipped) for item in part.items()))
