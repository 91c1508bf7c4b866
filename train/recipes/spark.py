"""The small models that ship: drawings of things on canvases of 64x64 pixels, trained with two CPU cores."""

from dataclasses import replace

from train.recipes import photo
from train.recipes.kinds import CodebookRecipe, KLCodecRecipe, LanguageModelRecipe, VQCodecRecipe


def vq() -> VQCodecRecipe:
    """64 codes for an image of 64x64 pixels."""
    return VQCodecRecipe("spark/vq", steps=4000, learning_rate=2e-3, sample_every=200)


def kl() -> KLCodecRecipe:
    """64 vectors of 16 numbers for an image of 64x64 pixels."""
    return KLCodecRecipe("spark/kl", steps=2000, learning_rate=2e-3, sample_every=200)


def text() -> LanguageModelRecipe:
    """Tokenizer and text-only phase: Algorithm 1 begins with text alone."""
    return LanguageModelRecipe("spark/text", steps=600, warmup_steps=200, weight_decay=0.05, save_every=250)


def ugen() -> LanguageModelRecipe:
    """Text and images at 3:2:5 while one code after another joins, two a step, until all 2,048 are active."""
    return replace(
        text(),
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


def unifluid() -> LanguageModelRecipe:
    """The data, backbone and steps of `spark/ugen`, and editing; images as vectors, in random order.

    The head learns velocities, not MAR's noises (our choice, measured at these sizes: `spark/unifluid-epsilon`). The
    noise's error hardly depends on which token it hides where noise is all there is, so what the words ask for is
    learned late. The text loss is weighted by lambda = 0.5, inside the paper's sweep: its best for images is 0.005 and
    for understanding 1, both relative to its own, unknown normalisation of the image loss.
    """
    return replace(
        ugen(),
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


def unifluid_longer() -> LanguageModelRecipe:
    """Goes on from `spark/unifluid`: after as many steps as `spark/ugen` its loss still falls, and of what it draws
    the shapes are right and the things not yet (random order and vectors learn more slowly, measured)."""
    recipe = unifluid()
    return replace(
        recipe, name="spark/unifluid-longer", model="runs/unifluid", steps_before=recipe.steps, learning_rate=1e-3,
        warmup_steps=50, steps=4000,
    )  # fmt: skip


def patch() -> CodebookRecipe:
    """8,192 codewords of 8x8 pixels for an image of 64x64: as many places as `spark/vq` has codes.

    Scenes repeat a finite set of drawings on white, so most patches are repeats. Places are not encoded: a drawing
    stands anywhere, and a patch of it should be the same codeword everywhere.
    """
    return replace(
        photo.patch(),
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


def uvu() -> LanguageModelRecipe:
    """The data, backbone and steps of `spark/ugen`; images are read as features and written as patches of 8x8 pixels,
    and what is read is predicted too.

    Losses are weighted 0.5 and 1.0 as in the paper. Its balancing of long tails is off: a scene's codes are few, and
    most of them are white (our choice; `spark/uvu-balanced` has it).
    """
    return replace(
        ugen(),
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


def uvu_tuned() -> LanguageModelRecipe:
    """Fine-tuning on answers alone, without image loss, as the paper ends: no row of a code is moved."""
    return replace(
        uvu(),
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


def unitoken_1() -> LanguageModelRecipe:
    """Stage I: the tower and its projector learn to be read by the language model, which is frozen, from captions.

    UniToken's constants: weight decay, clipping, dropout, z-loss. Its data, backbone and number of steps over the three
    stages are those of `spark/ugen`, its tower that of `spark/unifluid`.

    The paper's tower is a trained SigLIP, which a rate of 1e-5 and frozen patch and position embeddings keep as it is.
    Ours is random: it learns with all of its parameters and at the model's rate until the end of stage II (our choice).
    The paper's language model knows its codes from before, ours does not yet: in this stage they are noise beside the
    features.
    """
    return replace(
        ugen(),
        name="spark/unitoken-1",
        paradigm="unitoken",
        steps_per_code=None,
        parts={
            "image_inputs": ["codes", "features"],
            "vision_config": unifluid().parts["vision_config"],
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


def unitoken_2() -> LanguageModelRecipe:
    """Stage II: everything is trained, on as much reading as drawing (the paper's 10M to 10M), and plain text beside
    them (ours). The rate is that of `spark/ugen`: the paper's falls to a hundredth, since its model is trained."""
    before = unitoken_1()
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


def unitoken() -> LanguageModelRecipe:
    """Stage III: questions and drawing at a lower rate.

    By now the tower is trained, as the paper's is from the start: it gets what that gets, frozen patch and position
    embeddings and a hundredth of the model's rate (1e-5 beside 1e-3 in the paper's stage I). The paper has four times
    as many dialogues as drawings, and nothing else; ours keeps the mix of stage II and a fifth of captions, so that 600
    steps do not make it forget what the suite asks for.
    """
    before = unitoken_2()
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


RECIPES = (
    vq, kl, patch, text, ugen, unifluid, unifluid_longer, uvu, uvu_tuned, unitoken_1, unitoken_2, unitoken
)  # fmt: skip
