"""Every training run by its name: `RECIPES[name]()` returns the whole configuration of a run.

Later recipes derive from earlier ones by `dataclasses.replace`, so a recipe states only what is different about it.
Nothing about a run is decided elsewhere.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """What every run has: an optimiser, a schedule, and habits. All values are our choices."""

    name: str
    seed: int = 0

    steps: int = 1000
    batch_size: int = 32
    micro_batches: int = 1  # a batch is cut into that many, to save memory
    # Matrix products in bfloat16 where the hardware has them (GPUs, CPUs with AMX: half the time there; losses agree
    # with float32 to 3 digits), weights and losses in float32. Elsewhere all is float32.
    bf16: bool = True
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0

    # Habits, in steps.
    log_every: int = 20
    save_every: int = 500
    keep_checkpoints: int | None = 2  # the last ones; None: all, for `train.gradient_angle`
    sample_every: int = 500


@dataclass(frozen=True)
class CodecRecipe(Recipe):
    """Training of a codec: what every kind has."""

    codec_config: dict[str, Any] = field(default_factory=dict)
    drawing_share: float = 0.15  # of images: single drawings of any label; the rest are scenes


@dataclass(frozen=True)
class VQCodecRecipe(CodecRecipe):
    """Training of a VQ codec."""

    codec_config: dict[str, Any] = field(
        default_factory=lambda: {
            "block_out_channels": [16, 32, 64, 128], "layers_per_block": 1, "norm_num_groups": 8,
            "latent_channels": 64, "vq_embed_dim": 16, "num_vq_embeddings": 2048, "mid_block_add_attention": False,
            "encoder_tile_size": 32,  # a cell of a scene: an object has the same codes whatever stands beside it
        }
    )  # fmt: skip
    autoencoder_steps: int = 600  # before anything is quantised
    mend_every: int = 100  # unused codes are moved
    quantiser_weight: float = 0.25  # of the quantiser's loss beside the reconstruction's


@dataclass(frozen=True)
class KLCodecRecipe(CodecRecipe):
    """Training of a KL codec."""

    codec_config: dict[str, Any] = field(
        default_factory=lambda: {
            "block_out_channels": [32, 64, 128], "layers_per_block": 1, "norm_num_groups": 8,
            "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
            "latent_channels": 4, "group_size": 2, "mid_block_add_attention": False,
            "encoder_tile_size": 32,  # a cell of a scene: an object has the same tokens whatever stands beside it
        }
    )  # fmt: skip
    # Of the mean divergence per latent. LDM's weight, 1e-6 of sums over an image, is 8e-8 of means at this codec's
    # sizes; ours is larger, since noise in the latents teaches the decoder to bear what a small model draws wrongly.
    kl_weight: float = 1e-4


@dataclass(frozen=True)
class CodebookRecipe:
    """Building of a patch codebook (UVU) by `train.codebook`. Our choices unless the paper is named."""

    name: str
    seed: int = 0

    images: str | None = None  # what `train.patches.open_images` takes
    held_out: str | None = None  # the same; None: a share of the images
    held_out_share: float = 0.05
    held_out_patches: int = 20_000  # as many of them judge every round
    patch_size: int = 32  # UVU
    reductions: tuple[int, ...] = (1,)  # every image is looked at in its own size and reduced so many times
    num_codewords: int = 200_000  # UVU
    continue_from: str | None = None  # folder of a codebook that this build goes on from, with other images

    index: str = "flat"  # exact; "ivf": the square root of the comparisons, inexact
    patches_per_round: int = 20_000_000  # UVU; what a round holds in memory
    initial_rounds: int = 5  # on one sample: the paper's initial k-means
    rounds: int = 20  # with the initial ones
    tolerance: float = 1e-3  # rounds end when centres move less; an eighth of a step of 8 bits

    # The paper's additions to k-means. Their values are not known.
    position_strength: float = 0.0  # of the encoding of places, in units of pixels in [-1, 1]
    drop_repeats: bool = False
    delta: int = 0  # clusters of fewer members are set aside; 0: none are
    alpha: int = 0  # patches of such clusters that are clustered together
    samples_per_bin: int | None = None  # of each interval of distance of a cluster; None: all members
    distance_bins: int = 8


@dataclass(frozen=True)
class LanguageModelRecipe(Recipe):
    """Training of a unified model. Our choices unless a source is named."""

    # Model. The vocabulary is text_vocab_size text ids (fewer if the texts hold no more) and the codec's codes.
    paradigm: str = "ugen"
    text_config: dict[str, Any] = field(
        default_factory=lambda: {
            "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
            "num_key_value_heads": 4, "intermediate_size": 704, "max_position_embeddings": 512,
        }
    )  # fmt: skip
    text_vocab_size: int = 4096
    image_size: int = 64
    max_features: int | None = None  # of an image that is read at its own size; None: all are resized to image_size
    model: str | None = None  # folder of the whole model that is trained on; None: a new one, of the parts below
    steps_before: int = 0  # of the runs that led to it on the same data: their samples are not seen again
    text_model: str | None = None  # folder of the run this one starts from; None: a new tokenizer and random weights
    codec: str | None = None  # folder of the trained codec; None: text only
    parts: dict[str, Any] = field(default_factory=dict)  # fields of `UnifiedConfig` beyond the paradigm's own
    attention: str = "eager"  # torch's fused attention is slow backwards in bfloat16 on CPUs

    # What is trained, in the words of `train.parts`, and how fast: training in stages (UniToken, Table 2).
    trained_parts: tuple[str, ...] | None = None  # None: all
    frozen_parameters: tuple[str, ...] = ()  # single tensors, by a piece of their name or a pattern
    learning_rates: dict[str, float] = field(default_factory=dict)  # of parts that do not learn at `learning_rate`
    dropout: float = 0.0  # of what attention and MLP add to the stream

    # Progressive vocabulary learning (UGen, Algorithm 1). None: all codes active from step 0, the vanilla baseline.
    steps_per_code: float | None = None
    loss_on_mask: bool = True
    inactive_codes_in_softmax: bool = False

    # Visual supervision (UVU): images that are read are predicted too. Of their tokens the rarest count, that many for
    # every token of text; None: all of them.
    supervise_features: bool = False
    supervised_ratio: float | None = None
    features_of_written: bool = False  # an image that is written is followed by its own features (UniToken's code)

    # Data: samples of each block of text, image-to-text, text-to-image (UGen, pre-training mix 3:2:5).
    text_parts: int = 1
    image_to_text_parts: int = 0
    text_to_image_parts: int = 0
    editing_parts: int = 0
    text_characters: int = 250  # of a page of plain text: about as many tokens as an image with its caption
    scenes: int = 40_000
    edits: int = 20_000
    question_share: float = 0.5  # of image-to-text; the rest is captioning
    questions_per_scene: int = 3
    drop_prompt_share: float = 0.1  # of text-to-image, for guidance

    text_weight: float = 1.0
    image_weight: float = 1.0


def spark_vq() -> VQCodecRecipe:
    """64 codes for an image of 64x64 pixels."""
    return VQCodecRecipe("spark/vq", steps=4000, learning_rate=2e-3, sample_every=200)


def spark_kl() -> KLCodecRecipe:
    """64 vectors of 16 numbers for an image of 64x64 pixels."""
    return KLCodecRecipe("spark/kl", steps=2000, learning_rate=2e-3, sample_every=200)


def spark_text() -> LanguageModelRecipe:
    """Tokenizer and text-only phase: Algorithm 1 begins with text alone."""
    return LanguageModelRecipe("spark/text", steps=600, warmup_steps=200, weight_decay=0.05, save_every=250)


def spark_ugen() -> LanguageModelRecipe:
    """Text and images at 3:2:5 while one code after another joins, two a step, until all 2,048 are active."""
    return replace(
        spark_text(),
        name="spark/ugen",
        text_model="runs/text",
        codec="runs/vq",
        steps_per_code=0.5,
        text_characters=110,  # short pages, so that captions and answers are not drowned in plain text
        questions_per_scene=6,
        text_parts=3,
        image_to_text_parts=2,
        text_to_image_parts=5,
        learning_rate=1.5e-3,
        steps=5300,
    )


def spark_unifluid() -> LanguageModelRecipe:
    """The data, backbone and steps of `spark/ugen`, and editing; images as vectors, in random order.

    The head learns velocities, not MAR's noises (our choice, measured at these sizes: `spark/unifluid-epsilon`). The
    noise's error hardly depends on which token it hides where noise is all there is, so what the words ask for is
    learned late. The text loss is weighted by lambda = 0.5, inside the paper's sweep: its best for images is 0.005 and
    for understanding 1, both relative to its own, unknown normalisation of the image loss.
    """
    return replace(
        spark_ugen(),
        name="spark/unifluid",
        paradigm="unifluid",
        codec="runs/kl",
        steps_per_code=None,
        parts={
            "image_inputs": ["features", "latents"],
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 192, "intermediate_size": 512,
                "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64, "patch_size": 16,
                "vision_use_head": False,
            },
            "diffusion_objective": "flow",
            "diffusion_width": 384,
            "diffusion_depth": 3,
        },
        editing_parts=2,
        text_weight=0.5,
    )  # fmt: skip


def spark_unifluid_longer() -> LanguageModelRecipe:
    """Goes on from `spark/unifluid`: after as many steps as `spark/ugen` its loss still falls, and of what it draws
    the shapes are right and the things not yet (random order and vectors learn more slowly, measured)."""
    recipe = spark_unifluid()
    return replace(
        recipe, name="spark/unifluid-longer", model="runs/unifluid", steps_before=recipe.steps, learning_rate=1e-3,
        warmup_steps=50, steps=4000,
    )  # fmt: skip


def spark_unifluid_epsilon() -> LanguageModelRecipe:
    """The paper's objective, MAR's: the noise and its variance are predicted."""
    recipe = spark_unifluid()
    return replace(recipe, name="spark/unifluid-epsilon", parts={**recipe.parts, "diffusion_objective": "epsilon"})


def spark_unifluid_raster() -> LanguageModelRecipe:
    """The paper's comparison of orders: raster in training and sampling."""
    recipe = spark_unifluid()
    return replace(recipe, name="spark/unifluid-raster", parts={**recipe.parts, "image_order": "raster"})


def spark_unifluid_lambda(text_weight: float) -> LanguageModelRecipe:
    """The paper's sweep of lambda, the weight of the text loss."""
    return replace(spark_unifluid(), name=f"spark/unifluid-lambda-{text_weight:g}", text_weight=text_weight)


def spark_unifluid_draw_only() -> LanguageModelRecipe:
    """Text-to-image alone, the paper's single-task baseline for drawing."""
    return replace(
        spark_unifluid(), name="spark/unifluid-draw-only", text_parts=0, image_to_text_parts=0, editing_parts=0
    )


def spark_unifluid_read_only() -> LanguageModelRecipe:
    """Image-to-text alone, the paper's single-task baseline for understanding."""
    return replace(
        spark_unifluid(), name="spark/unifluid-read-only", text_parts=0, text_to_image_parts=0, editing_parts=0
    )


def spark_ugen_vanilla() -> LanguageModelRecipe:
    """The baseline of the paper: plain joint training, every code active from the first step."""
    return replace(spark_ugen(), name="spark/ugen-vanilla", steps_per_code=None)


def spark_ugen_never() -> LanguageModelRecipe:
    """k = infinity: no code is ever activated. Not the vanilla baseline, but its opposite; it cannot draw."""
    return replace(spark_ugen(), name="spark/ugen-never", steps_per_code=math.inf)


def spark_uvu() -> LanguageModelRecipe:
    """The data, backbone and steps of `spark/ugen`; images are read as features and written as patches of 8x8 pixels,
    and what is read is predicted too.

    Losses are weighted 0.5 and 1.0 as in the paper. Its balancing of long tails is off: a scene's codes are few, and
    most of them are white (our choice; `spark/uvu-balanced` has it).
    """
    return replace(
        spark_ugen(),
        name="spark/uvu",
        paradigm="uvu",
        codec="runs/patch",
        steps_per_code=None,
        max_features=64,
        parts={
            "vision_config": {
                "model_type": "siglip2_vision_model", "hidden_size": 192, "intermediate_size": 512,
                "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 4, "num_patches": 256,
                "vision_use_head": False,
            },
        },
        supervise_features=True,
        image_weight=0.5,
    )  # fmt: skip


def spark_uvu_balanced() -> LanguageModelRecipe:
    """With the paper's balancing: of the codes that are read, as many as there are tokens of text, the rarest first."""
    return replace(spark_uvu(), name="spark/uvu-balanced", supervised_ratio=1.0)


def spark_uvu_unsupervised() -> LanguageModelRecipe:
    """The paper's baseline (UVU*): images that are read are not predicted."""
    return replace(spark_uvu(), name="spark/uvu-unsupervised", supervise_features=False)


def spark_uvu_vq() -> LanguageModelRecipe:
    """The paper's other baseline (AR+VQ): the targets are codes of a VQ codec, one for the same 8x8 pixels."""
    recipe = spark_uvu()
    return replace(recipe, name="spark/uvu-vq", codec="runs/vq", parts={**recipe.parts, "image_codec": "vq"})


def spark_uvu_angle(name: str) -> LanguageModelRecipe:
    """A short run of one of the three that the paper compares, whose checkpoints are all kept: do the gradients of the
    two losses agree (`train.gradient_angle`)?"""
    recipe = RECIPES[name]()
    return replace(recipe, name=f"{name}-angle", steps=300, save_every=60, keep_checkpoints=None)


def spark_uvu_tuned() -> LanguageModelRecipe:
    """Fine-tuning on answers alone, without image loss, as the paper ends: no row of a code is moved."""
    return replace(
        spark_uvu(),
        name="spark/uvu-tuned",
        model="runs/uvu",
        supervise_features=False,
        text_parts=0,
        image_to_text_parts=1,
        text_to_image_parts=0,
        question_share=1.0,
        learning_rate=2e-4,
        steps=500,
    )


def spark_unitoken_1() -> LanguageModelRecipe:
    """Stage I: the tower and its projector learn to be read by the language model, which is frozen, from captions.

    UniToken's constants: weight decay, clipping, dropout, z-loss. Its data, backbone and number of steps over the three
    stages are those of `spark/ugen`, its tower that of `spark/unifluid`.

    The paper's tower is a trained SigLIP, which a rate of 1e-5 and frozen patch and position embeddings keep as it is.
    Ours is random: it learns with all of its parameters and at the model's rate until the end of stage II (our choice).
    The paper's language model knows its codes from before, ours does not yet: in this stage they are noise beside the
    features.
    """
    return replace(
        spark_ugen(),
        name="spark/unitoken-1",
        paradigm="unitoken",
        steps_per_code=None,
        parts={
            "image_inputs": ["codes", "features"],
            "vision_config": spark_unifluid().parts["vision_config"],
            "tile_grids": None,  # a scene is as large as the tower's view
            "z_loss_weight": 1e-5,
        },
        features_of_written=True,
        trained_parts=("tower", "projector"),
        text_parts=0,
        image_to_text_parts=1,
        text_to_image_parts=0,
        question_share=0.0,
        learning_rate=1e-3,
        warmup_steps=50,
        weight_decay=0.1,
        max_grad_norm=4.0,
        dropout=0.05,
        steps=300,
    )


def spark_unitoken_2() -> LanguageModelRecipe:
    """Stage II: everything is trained, on as much reading as drawing (the paper's 10M to 10M), and plain text beside
    them (ours). The rate is that of `spark/ugen`: the paper's falls to a hundredth, since its model is trained."""
    before = spark_unitoken_1()
    return replace(
        before,
        name="spark/unitoken-2",
        model="runs/unitoken-1",
        steps_before=before.steps,
        trained_parts=None,
        text_parts=1,
        image_to_text_parts=2,
        text_to_image_parts=2,
        question_share=0.5,
        learning_rate=1.5e-3,
        warmup_steps=200,
        steps=4400,
    )


def spark_unitoken() -> LanguageModelRecipe:
    """Stage III: questions and drawing at a lower rate.

    By now the tower is trained, as the paper's is from the start: it gets what that gets, frozen patch and position
    embeddings and a hundredth of the model's rate (1e-5 beside 1e-3 in the paper's stage I). The paper has four times
    as many dialogues as drawings, and nothing else; ours keeps the mix of stage II and a fifth of captions, so that 600
    steps do not make it forget what the suite asks for.
    """
    before = spark_unitoken_2()
    return replace(
        before,
        name="spark/unitoken",
        model="runs/unitoken-2",
        steps_before=before.steps_before + before.steps,
        frozen_parameters=("tower.*patch_embedding", "tower.*position_embedding"),
        question_share=0.8,
        learning_rate=3e-4,
        learning_rates={"tower": 3e-6},
        warmup_steps=50,
        steps=600,
    )


def spark_unitoken_collapse() -> LanguageModelRecipe:
    """Stage I with a tower that learns 50 times too fast, as from 1e-5 to 5e-4 in the paper, where it collapses: shows
    that the guard warns."""
    recipe = spark_unitoken_1()
    rates = {"tower": 50 * recipe.learning_rate}
    return replace(recipe, name="spark/unitoken-collapse", learning_rates=rates, steps=100, sample_every=100)


def spark_unitoken_codes() -> LanguageModelRecipe:
    """The paper's comparison of encodings, its discrete half: stage II without features, in the steps of both stages,
    since without a tower stage I has nothing to train. The other half is `spark/unitoken-2`."""
    recipe = spark_unitoken_2()
    return replace(
        recipe,
        name="spark/unitoken-codes",
        model=None,
        steps_before=0,
        parts={**recipe.parts, "image_inputs": ["codes"], "vision_config": None},
        features_of_written=False,
        steps=recipe.steps_before + recipe.steps,
    )


def spark_unitoken_study(
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


def photo_patch_plain() -> CodebookRecipe:
    """Patches of photographs by plain k-means, the first row of the paper's ablation. Pass --images."""
    return CodebookRecipe(
        "photo/patch-plain", reductions=(1, 2, 4), num_codewords=4096, patches_per_round=250_000, rounds=15
    )


def photo_patch_position() -> CodebookRecipe:
    """With positional encoding, the second row."""
    return replace(photo_patch_plain(), name="photo/patch-position", position_strength=0.1)


def photo_patch() -> CodebookRecipe:
    """With iterative hierarchical clustering too, the third row and the paper's method.

    alpha is small: where a sample is all patches, the cache meets no new ones and would never reach a large one.
    """
    return replace(
        photo_patch_position(), name="photo/patch", drop_repeats=True, delta=4, alpha=256, samples_per_bin=16
    )


def spark_patch() -> CodebookRecipe:
    """8,192 codewords of 8x8 pixels for an image of 64x64: as many places as `spark/vq` has codes.

    Scenes repeat a finite set of drawings on white, so most patches are repeats. Places are not encoded: a drawing
    stands anywhere, and a patch of it should be the same codeword everywhere.
    """
    return replace(
        photo_patch(),
        name="spark/patch",
        images="spark",
        held_out="spark/held-out",
        patch_size=8,
        num_codewords=8192,
        reductions=(1,),
        position_strength=0.0,
        patches_per_round=700_000,  # all of them: rendering them anew takes longer than clustering
        initial_rounds=4,
        rounds=12,
    )


CODEBOOKS: dict[str, Callable[[], CodebookRecipe]] = {
    "photo/patch-plain": photo_patch_plain,
    "photo/patch-position": photo_patch_position,
    "photo/patch": photo_patch,
    "spark/patch": spark_patch,
}

ANGLES = ("spark/uvu", "spark/uvu-unsupervised", "spark/uvu-vq")  # UVU, its figure of the angle over training
LAMBDAS = (0.005, 0.01, 0.05, 0.1, 0.2, 1.0, 2.0)  # UniFluid, Fig. 3

UNITOKEN_STUDIES: dict[str, tuple[Callable[[], LanguageModelRecipe], dict[str, int]]] = {
    # Reading alone and drawing alone, with both encodings and with codes alone; both tasks together are the base.
    "spark/unitoken-2-read-only": (spark_unitoken_2, {"text_to_image_parts": 0}),
    "spark/unitoken-2-draw-only": (spark_unitoken_2, {"image_to_text_parts": 0}),
    "spark/unitoken-codes-read-only": (spark_unitoken_codes, {"text_to_image_parts": 0}),
    "spark/unitoken-codes-draw-only": (spark_unitoken_codes, {"image_to_text_parts": 0}),
    # Reading to drawing 2:1 beside the base's 1:1, at the whole budget and at a fifth (the paper's 10M and 2M).
    "spark/unitoken-2-half-drawn": (spark_unitoken_2, {"text_to_image_parts": 1}),
    "spark/unitoken-2-fifth": (spark_unitoken_2, {"budget": 5}),
    "spark/unitoken-2-fifth-half-drawn": (spark_unitoken_2, {"budget": 5, "text_to_image_parts": 1}),
}

RECIPES: dict[str, Callable[[], Any]] = {
    "spark/vq": spark_vq,
    "spark/kl": spark_kl,
    "spark/text": spark_text,
    "spark/ugen": spark_ugen,
    "spark/ugen-vanilla": spark_ugen_vanilla,
    "spark/ugen-never": spark_ugen_never,
    "spark/unifluid": spark_unifluid,
    "spark/unifluid-longer": spark_unifluid_longer,
    "spark/unifluid-raster": spark_unifluid_raster,
    "spark/unifluid-epsilon": spark_unifluid_epsilon,
    "spark/unifluid-draw-only": spark_unifluid_draw_only,
    "spark/unifluid-read-only": spark_unifluid_read_only,
    "spark/uvu": spark_uvu,
    "spark/uvu-balanced": spark_uvu_balanced,
    "spark/uvu-unsupervised": spark_uvu_unsupervised,
    "spark/uvu-vq": spark_uvu_vq,
    "spark/uvu-tuned": spark_uvu_tuned,
    **{f"spark/unifluid-lambda-{w:g}": partial(spark_unifluid_lambda, w) for w in LAMBDAS},
    **{f"{name}-angle": partial(spark_uvu_angle, name) for name in ANGLES},
    "spark/unitoken-1": spark_unitoken_1,
    "spark/unitoken-2": spark_unitoken_2,
    "spark/unitoken": spark_unitoken,
    "spark/unitoken-collapse": spark_unitoken_collapse,
    "spark/unitoken-codes": spark_unitoken_codes,
    **{n: partial(spark_unitoken_study, n, base, **changes) for n, (base, changes) in UNITOKEN_STUDIES.items()},
}
