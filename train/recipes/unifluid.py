"""UniFluid at the paper's size (arXiv 2503.13436): Gemma-2 2B, SigLIP, the autoencoder of Stable Diffusion.

From the paper: batches of 2,048, AdamW at a rate of 1e-4 for a million steps, one run on reading and drawing together,
random order, the text loss weighted by lambda. Sizes of the tower and of the images (256x256 pixels) are inferred. The
rest was not found: what MAR has (arXiv 2406.11838), whose diffusion head this is, is our choice there.

The paper's data are not known: name yours with `--data NAME=PATH`.
"""

from train.recipes.kinds import LanguageModelRecipe, Source


def pretraining() -> LanguageModelRecipe:
    """The one joint run. Editing, captioning and questions are what the paper turns this model to afterwards.

    lambda = 0.005 is the best of the paper's sweep for drawing, and better than drawing alone; for understanding it is
    1.0. Both belong to the paper's own, unknown normalisation of the image loss: ours are means over the tokens of each
    kind. Reading and drawing come equally often (our choice). The rate falls along a cosine (ours: MAR's is constant,
    with averaged weights in place of the fall). Soft caps on attention, Gemma-2's, leave torch's fused attention out.
    """
    return LanguageModelRecipe(
        "unifluid/pretraining",
        paradigm="unifluid",
        text_model="google/gemma-2-2b",
        codec="stabilityai/sd-vae-ft-mse",
        tower="google/siglip-so400m-patch14-224",
        text_config=None,
        image_size=256,
        attention="eager",
        sources=(Source("image-to-text", 1, "image_to_caption"), Source("text-to-image", 1, "caption_to_image")),
        text_weight=0.005,
        drop_prompt_share=0.1,  # MAR
        batch_size=2048,
        learning_rate=1e-4,
        warmup_steps=10_000,  # a hundredth of the run (our choice)
        weight_decay=0.02,  # MAR, and the next two
        betas=(0.9, 0.95),
        max_grad_norm=3.0,
        steps=1_000_000,
        save_every=5000,
        sample_every=10_000,
    )


RECIPES = (pretraining,)
