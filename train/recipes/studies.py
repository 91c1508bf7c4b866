"""The papers' comparisons with the small models: each recipe changes one thing about a model that ships."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from train.recipes import spark
from train.recipes.kinds import LanguageModelRecipe


def ugen_vanilla() -> LanguageModelRecipe:
    """The baseline of the paper: plain joint training, every code active from the first step."""
    return replace(spark.ugen(), name="spark/ugen-vanilla", steps_per_code=None)


def ugen_never() -> LanguageModelRecipe:
    """k = infinity: no code is ever activated. Not the vanilla baseline, but its opposite; it cannot draw."""
    return replace(spark.ugen(), name="spark/ugen-never", steps_per_code=math.inf)


def unifluid_raster() -> LanguageModelRecipe:
    """The paper's comparison of orders: raster in training and sampling."""
    recipe = spark.unifluid()
    return replace(recipe, name="spark/unifluid-raster", parts={**recipe.parts, "image_order": "raster"})


def unifluid_epsilon() -> LanguageModelRecipe:
    """The paper's objective, MAR's: the noise and its variance are predicted."""
    recipe = spark.unifluid()
    return replace(recipe, name="spark/unifluid-epsilon", parts={**recipe.parts, "diffusion_objective": "epsilon"})


def unifluid_lambda(text_weight: float) -> LanguageModelRecipe:
    """The paper's sweep of lambda, the weight of the text loss."""
    return replace(spark.unifluid(), name=f"spark/unifluid-lambda-{text_weight:g}", text_weight=text_weight)


def unifluid_draw_only() -> LanguageModelRecipe:
    """Text-to-image alone, the paper's single-task baseline for drawing."""
    return replace(
        spark.unifluid(), name="spark/unifluid-draw-only", text_parts=0, image_to_text_parts=0, editing_parts=0
    )


def unifluid_read_only() -> LanguageModelRecipe:
    """Image-to-text alone, the paper's single-task baseline for understanding."""
    return replace(
        spark.unifluid(), name="spark/unifluid-read-only", text_parts=0, text_to_image_parts=0, editing_parts=0
    )


def uvu_balanced() -> LanguageModelRecipe:
    """With the paper's balancing: of the codes that are read, as many as there are tokens of text, the rarest first."""
    return replace(spark.uvu(), name="spark/uvu-balanced", supervised_ratio=1.0)


def uvu_unsupervised() -> LanguageModelRecipe:
    """The paper's baseline (UVU*): images that are read are not predicted."""
    return replace(spark.uvu(), name="spark/uvu-unsupervised", supervise_features=False)


def uvu_vq() -> LanguageModelRecipe:
    """The paper's other baseline (AR+VQ): the targets are codes of a VQ codec, one for the same 8x8 pixels."""
    recipe = spark.uvu()
    return replace(recipe, name="spark/uvu-vq", codec="runs/vq", parts={**recipe.parts, "image_codec": "vq"})


def uvu_angle(base: Callable[[], LanguageModelRecipe]) -> LanguageModelRecipe:
    """A short run of one of the three that the paper compares, whose checkpoints are all kept: do the gradients of the
    two losses agree (`train.gradient_angle`)?"""
    recipe = base()
    return replace(recipe, name=f"{recipe.name}-angle", steps=300, save_every=60, keep_checkpoints=None)


def unitoken_collapse() -> LanguageModelRecipe:
    """Stage I with a tower that learns 50 times too fast, as from 1e-5 to 5e-4 in the paper, where it collapses: shows
    that the guard warns."""
    recipe = spark.unitoken_1()
    rates = {"tower": 50 * recipe.learning_rate}
    return replace(recipe, name="spark/unitoken-collapse", learning_rates=rates, steps=100, sample_every=100)


def unitoken_codes() -> LanguageModelRecipe:
    """The paper's comparison of encodings, its discrete half: stage II without features, in the steps of both stages,
    since without a tower stage I has nothing to train. The other half is `spark/unitoken-2`."""
    recipe = spark.unitoken_2()
    return replace(
        recipe,
        name="spark/unitoken-codes",
        model=None,
        steps_before=0,
        parts={**recipe.parts, "image_inputs": ["codes"], "vision_config": None},
        features_of_written=False,
        steps=recipe.steps_before + recipe.steps,
    )


def unitoken_study(
    name: str, base: Callable[[], LanguageModelRecipe], budget: int = 1, **parts: int
) -> LanguageModelRecipe:
    """A row of the paper's comparisons: `base` with other parts of some kind of data, or with one of `budget` equal
    shares of all data. Of kinds whose parts stay it has as many samples as `base` (our choice), so the steps change."""
    recipe = base()
    changed = replace(recipe, name=name, warmup_steps=recipe.warmup_steps // budget, **parts)
    blocks = recipe.steps // sum_of_parts(recipe) // budget
    return replace(changed, steps=blocks * sum_of_parts(changed))


def sum_of_parts(recipe: LanguageModelRecipe) -> int:
    return recipe.text_parts + recipe.image_to_text_parts + recipe.text_to_image_parts + recipe.editing_parts


ANGLES = (spark.uvu, uvu_unsupervised, uvu_vq)  # UVU, its figure of the angle over training
LAMBDAS = (0.005, 0.01, 0.05, 0.1, 0.2, 1.0, 2.0)  # UniFluid, Fig. 3

UNITOKEN_STUDIES: dict[str, tuple[Callable[[], LanguageModelRecipe], dict[str, int]]] = {
    # Reading alone and drawing alone, with both encodings and with codes alone; both tasks together are the base.
    "spark/unitoken-2-read-only": (spark.unitoken_2, {"text_to_image_parts": 0}),
    "spark/unitoken-2-draw-only": (spark.unitoken_2, {"image_to_text_parts": 0}),
    "spark/unitoken-codes-read-only": (unitoken_codes, {"text_to_image_parts": 0}),
    "spark/unitoken-codes-draw-only": (unitoken_codes, {"image_to_text_parts": 0}),
    # Reading to drawing 2:1 beside the base's 1:1, at the whole budget and at a fifth (the paper's 10M and 2M).
    "spark/unitoken-2-half-drawn": (spark.unitoken_2, {"text_to_image_parts": 1}),
    "spark/unitoken-2-fifth": (spark.unitoken_2, {"budget": 5}),
    "spark/unitoken-2-fifth-half-drawn": (spark.unitoken_2, {"budget": 5, "text_to_image_parts": 1}),
}

RECIPES = (
    ugen_vanilla, ugen_never,
    unifluid_raster, unifluid_epsilon, unifluid_draw_only, unifluid_read_only,
    *(partial(unifluid_lambda, weight) for weight in LAMBDAS),
    uvu_balanced, uvu_unsupervised, uvu_vq,
    *(partial(uvu_angle, base) for base in ANGLES),
    unitoken_collapse, unitoken_codes,
    *(partial(unitoken_study, name, base, **changes) for name, (base, changes) in UNITOKEN_STUDIES.items()),
)  # fmt: skip
