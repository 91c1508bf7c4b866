"""How long the samples of a run are, and the rows they are laid in, before there are data.

Contract: `samples_of(recipe, config)` gives a `Sample` for each kind of data. What images take is exact, by the layout
that the processor writes (`layout_unified`); texts are as long as `FORMS` says, since nothing is read.

T tokens of a sample, n tokens of text
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from modeling_unified.configuration_unified import UnifiedConfig
from processing_unified.image_processing_unified import best_grid, features_along, native_size, tiled_size
from processing_unified.layout_unified import (
    IGNORE_INDEX,
    Lines,
    Span,
    SpecialIds,
    feature_script,
    image_script,
    lay_out,
)
from train.packing import arrange
from train.recipes.kinds import LanguageModelRecipe

TEXT = -1  # stands for the id of any text
CHARACTERS = 4  # of a token of English
PAGE, DRAWN_CAPTION, DRAWN_QUESTION = 1024, 16, 12  # tokens


class Form(NamedTuple):
    """A typical sample: tokens of text and images that the user gives, and those that the assistant answers."""

    prompt: int
    read: int
    answer: int
    written: int


# By the names of `train.formats`. Texts are as long as we guess them: a page of a document, a detailed caption, turns
# about one image, a short question. Real data are longer or shorter, and tokens and time with them.
FORMS = {
    "text": Form(0, 0, PAGE, 0),
    "conversations": Form(128, 1, 256, 0),
    "llava": Form(128, 1, 256, 0),
    "image_to_caption": Form(0, 1, 64, 0),
    "caption_to_image": Form(64, 0, 0, 1),
    "coco_captions": Form(0, 1, 16, 0),
    "coco_captions_to_image": Form(16, 0, 0, 1),
    "vqav2": Form(12, 1, 4, 0),
}


class Sample(NamedTuple):
    """A typical sample of one kind of data, or the mean of several."""

    name: str
    parts: int  # of each block of the mixture
    tokens: float
    squares: float  # of tokens: what attention costs
    text_targets: float
    written_targets: float  # image tokens that are drawn
    read_targets: float  # and those that are predicted where an image is read
    features: float  # that the projector makes
    shown: float  # images that the tower is shown

    @property
    def image_targets(self) -> float:
        return self.written_targets + self.read_targets


def samples_of(recipe: LanguageModelRecipe, config: UnifiedConfig, largest: bool = False) -> list[Sample]:
    """One for each kind of data that the recipe has, in its order.

    Args:
        largest: with images that take as many tokens as any does; else of `config.image_size` pixels.

    Raises:
        ValueError: a form of data without typical lengths; no data.
    """
    samples = [measure(recipe, config, *kind, largest) for kind in kinds_of(recipe) if kind[1]]
    if not samples:
        raise ValueError(f"{recipe.name} has no data: name sources, or parts of the drawings")
    mean = average(samples)
    if recipe.supervised_ratio is None or not mean.read_targets:
        return samples
    kept = min(1.0, recipe.supervised_ratio * mean.text_targets / mean.read_targets)  # of an update, as `train.balance`
    return [sample._replace(read_targets=kept * sample.read_targets) for sample in samples]


def kinds_of(recipe: LanguageModelRecipe) -> Iterator[tuple[str, int, Form]]:
    """Name, parts and form of each kind of data."""
    for source in recipe.sources:
        if source.form not in FORMS:
            raise ValueError(f"source {source.name} has the form {source.form!r}: known are {', '.join(FORMS)}")
        yield source.name, source.parts, FORMS[source.form]
    if recipe.sources:
        return
    asked = round(recipe.question_share * recipe.questions_per_scene * DRAWN_QUESTION)
    told = round((1 - recipe.question_share) * DRAWN_CAPTION)
    yield "text", recipe.text_parts, Form(0, 0, recipe.text_characters // CHARACTERS, 0)
    yield "image-to-text", recipe.image_to_text_parts, Form(asked, 1, told + asked // 4, 0)
    yield "text-to-image", recipe.text_to_image_parts, Form(DRAWN_CAPTION, 0, 0, 1)
    yield "editing", recipe.editing_parts, Form(DRAWN_CAPTION, 1, 0, 1)


def measure(
    recipe: LanguageModelRecipe, config: UnifiedConfig, name: str, parts: int, form: Form, largest: bool
) -> Sample:
    """Lays a sample out and counts."""
    spans = [
        *[Span("image", False, image_ids(recipe, config, False, largest))] * form.read,
        *[Span("text", False, [TEXT] * (form.prompt + (form.answer > 0)))] * (form.prompt > 0),  # its end is a newline
        *[Span("text", True, [TEXT] * form.answer)] * (form.answer > 0),
        *[Span("image", True, image_ids(recipe, config, True, largest))] * form.written,
        Span("end", True),
    ]
    ids = SpecialIds(
        config.bos_token_id, config.eos_token_id, config.boi_token_id, config.eoi_token_id, config.image_token_id,
        config.image_feature_token_id,
    )  # fmt: skip
    ids_T, labels_T = lay_out(spans, ids, recipe.supervise_features)
    targets = sum(label != IGNORE_INDEX for label in labels_T)
    drawn, read = labels_T.count(ids.slot), labels_T.count(ids.feature)
    shown = form.read + form.written * recipe.features_of_written if config.vision_config else 0
    return Sample(
        name, parts, len(ids_T), len(ids_T) ** 2, targets - drawn - read, drawn, read, ids_T.count(ids.feature), shown
    )


def image_ids(recipe: LanguageModelRecipe, config: UnifiedConfig, written: bool, largest: bool) -> list[int]:
    """Ids between [SOI] and [EOI] of an image, as `UnifiedProcessor` writes them."""
    stride = config.codec_config.stride
    grid = tuple(side // stride for side in config.image_size)
    slots = image_script(grid, stride, config.image_token_id, config.image_lines and Lines(**config.image_lines))
    readers = config.image_inputs
    if written:
        readers = ["slots", "features"] if recipe.features_of_written else ["slots"]
    ids: list[int] = []
    for number, reader in enumerate(readers):
        ids += [config.sep_token_id] * (number > 0 and config.sep_token_id is not None)
        ids += feature_ids(recipe, config, largest) if reader == "features" else slots
    return ids


def feature_ids(recipe: LanguageModelRecipe, config: UnifiedConfig, largest: bool) -> list[int]:
    """Ids of an image's features."""
    tower, stride, feature = config.vision_config, config.feature_stride, config.image_feature_token_id
    if config.tile_grids:
        side = tower.image_size
        sizes = [tuple(count * side for count in grid) for grid in config.tile_grids]
        if not largest:
            sizes = [tiled_size(*config.image_size, side, config.tile_grids)]
        grids = [tuple(features_along(pixels, side, stride) for pixels in size) for size in sizes]
        whole = features_along(side, side, stride) ** 2
        return max((feature_script(whole, grid, feature, config.newline_token_id) for grid in grids), key=len)
    if recipe.max_features and largest:
        return [feature] * recipe.max_features
    height, width = pixels_of_view(recipe, config)
    return [feature] * ((height // stride) * (width // stride))


def pixels_of_view(recipe: LanguageModelRecipe, config: UnifiedConfig) -> tuple[int, int]:
    """Height and width at which the tower sees an image of `config.image_size`: a tower of one size its own."""
    tower = config.vision_config
    if recipe.max_features:
        return native_size(*config.image_size, config.feature_stride, recipe.max_features)
    if tower.model_type == "siglip_vision_model":
        return tower.image_size, tower.image_size
    return tuple(config.image_size)


def pixels_shown(recipe: LanguageModelRecipe, config: UnifiedConfig) -> tuple[int, int]:
    """Views that the tower is shown of an image of `config.image_size`, and patches of each."""
    tower = config.vision_config
    if config.tile_grids:
        rows, columns = best_grid(*config.image_size, tower.image_size, config.tile_grids)
        return 1 + rows * columns, (tower.image_size // tower.patch_size) ** 2
    height, width = pixels_of_view(recipe, config)
    return 1, (height // tower.patch_size) * (width // tower.patch_size)


def average(samples: Sequence[Sample]) -> Sample:
    """The mean sample of the mixture."""
    parts = sum(sample.parts for sample in samples)
    means = [sum(sample.parts * sample[field] for sample in samples) / parts for field in range(2, len(Sample._fields))]
    return Sample("mean", parts, *means)


def rows_of(recipe: LanguageModelRecipe, samples: Sequence[Sample], share: int) -> tuple[int, int]:
    """Rows that a micro-batch of `share` samples makes on a device, and tokens of the longest."""
    if recipe.packed_length is None:
        return share, math.ceil(max(sample.tokens for sample in samples))
    # Samples of each kind as it has parts, as far as whole ones go.
    ends = list(accumulate(sample.parts for sample in samples))
    kinds = [bisect_right(ends, (number + 0.5) / share * ends[-1]) for number in range(share)]
    lengths = [math.ceil(samples[kind].tokens) for kind in kinds]
    rows = [range(share)] if "flash" in recipe.attention else arrange(lengths, recipe.packed_length)
    return len(rows), max(sum(lengths[number] for number in row) for row in rows)


def check_lengths(recipe: LanguageModelRecipe, config: UnifiedConfig) -> None:
    """A sample with the largest images and a text of typical length must fit the model, and a packed row."""
    positions = config.text_config.max_position_embeddings
    longest = max(samples_of(recipe, config, largest=True), key=lambda sample: sample.tokens)
    for limit, what in ((positions, "positions of the model"), (recipe.packed_length, "tokens of packed_length")):
        if limit is not None and longest.tokens > limit:
            raise ValueError(
                f"a sample of {longest.name} may have {longest.tokens:,.0f} tokens, more than the {limit:,} {what}: "
                "make images smaller, or raise it"
            )
