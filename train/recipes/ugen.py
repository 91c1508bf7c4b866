"""UGen at the paper's size (arXiv 2503.21193): TinyLlama-1.1B, MoVQGAN of 16,384 codes, images of 256x256 pixels.

From the paper: the parts, text alone first, mixtures of 3:2:5 and 2:6:2 of text, image-to-text and text-to-image, one
code every k steps for k of 3, 6 or 9. It names neither optimiser nor rates, batch or number of steps: these are our
choices. AdamW's numbers are TinyLlama's own, so that its pretraining goes on as it ended; the peak is half of its 4e-4,
since the weights are trained. Batches are meant for 64 devices.

The paper's data are its own and not public: name yours with `--data NAME=PATH`.
"""

from dataclasses import replace

from train.recipes.kinds import LanguageModelRecipe, Source


def text() -> LanguageModelRecipe:
    """Text alone, with which the paper's Algorithm 1 begins; its length is not known.

    5,000 steps, 2.5 billion tokens, are our choice: TinyLlama can write and has to learn the new frame of a text only.
    No code is ever active, so that the vocabulary is that of text.

    The published MoVQGAN (67M) is a pickle: make safetensors of it first, in the layout of diffusers' `VQModel`.
    """
    return LanguageModelRecipe(
        "ugen/text",
        text_model="TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        codec="ai-forever/MoVQGAN",
        text_config=None,
        image_size=256,
        attention="sdpa",
        steps_per_code=float("inf"),
        sources=(Source("text", 1, "text"),),
        packed_length=4608,  # four samples with an image; longer rows cost attention that is not fused too much
        batch_size=512,  # half a million tokens: a quarter of TinyLlama's, for a run of a thirtieth of its tokens
        learning_rate=2e-4,
        warmup_steps=500,
        weight_decay=0.1,
        steps=5000,
        save_every=1000,
        sample_every=5000,
    )


def pretraining() -> LanguageModelRecipe:
    """Text, image-to-text and text-to-image at 3:2:5 while one code joins every 6 steps.

    k = 6 is our choice, the middle of the paper's 3, 6 and 9: too fast and too slow both lose there, and the best is
    not named. After 98,304 steps all codes are active; a last third of the run goes on with all of them (our choice).
    """
    return replace(
        text(),
        name="ugen/pretraining",
        model="runs/ugen-1b/text",
        steps_per_code=6,
        sources=(
            Source("text", 3, "text"),
            Source("image-to-text", 2, "image_to_caption"),
            Source("text-to-image", 5, "caption_to_image"),
        ),
        warmup_steps=2000,
        steps=150_000,
    )


def sft() -> LanguageModelRecipe:
    """Fine-tuning at 2:6:2 with the whole vocabulary. A tenth of the peak rate, and as many samples as the public
    mixtures for instruction tuning have (about 2.5 million), are our choices."""
    return replace(
        pretraining(),
        name="ugen/sft",
        instruction_tuning=True,
        model="runs/ugen-1b/pretraining",
        steps_per_code=None,
        sources=(
            Source("text", 2, "conversations"),
            Source("image-to-text", 6, "conversations"),
            Source("text-to-image", 2, "caption_to_image"),
        ),
        batch_size=256,
        learning_rate=2e-5,
        warmup_steps=300,
        steps=10_000,
    )


RECIPES = (text, pretraining, sft)
