"""UniToken at the paper's size (arXiv 2504.04423): Lumina-mGPT's Chameleon-7B with 8,192 codes, SigLIP at 384 pixels.

From the paper's Table 2: what each stage trains, its data, its rate and that of the tower, batches of 128, one epoch,
AdamW (0.9, 0.95), a cosine to 0. From its code: weight decay, a hundredth of an epoch to warm up, clipping, dropout,
z-loss, frozen patch and position embeddings of the tower. Numbers of devices are not known: one sequence at a time on
each of 32 is our choice.

The data are public sets by their names and must be brought into one of our forms (`--data NAME=PATH`), but for the
drawings of Midjourney, which are the paper's own. Prompts of drawings begin with "Generate an image according to the
following prompt:" and a newline there.
"""

from dataclasses import replace

from train.recipes.kinds import LanguageModelRecipe, Source

THOUSAND = 1000


def stage_1() -> LanguageModelRecipe:
    """Stage I: tower and projector learn to be read by the frozen language model, from 2.5M captions.

    Captions come in the paper's shares, in thousandths. Chameleon's VQ-GAN, of which transformers has the encoder only,
    is a pickle (`vqgan.ckpt`) that Meta published beside it: make a safetensors file of its weights, for
    `train.chameleon`.
    """
    return LanguageModelRecipe(
        "unitoken/1",
        paradigm="unitoken",
        text_model="Alpha-VLLM/Lumina-mGPT-7B-512",
        codec="runs/unitoken-7b/vqgan.safetensors",
        tower="google/siglip-so400m-patch14-384",
        text_config=None,
        image_size=512,
        parts={"z_loss_weight": 1e-5},
        features_of_written=True,
        attention="sdpa",
        trained_parts=("tower", "projector"),
        frozen_parameters=("tower.*patch_embedding", "tower.*position_embedding"),
        sources=(Source("sharegpt4v", 495, "llava"), Source("llava", 222, "llava"), Source("allava", 282, "llava")),
        batch_size=128,
        micro_batches=4,
        learning_rate=1e-3,
        learning_rates={"tower": 1e-5},
        weight_decay=0.1,
        max_grad_norm=4.0,
        dropout=0.05,
        drop_prompt_share=0.0,  # as in the paper's code
        **one_epoch(2500),
        save_every=2000,
        sample_every=2000,
    )


def stage_2() -> LanguageModelRecipe:
    """Stage II: everything is trained, on about as much reading as drawing; sets in thousands of samples.

    Of PDFA the paper's table has three million, its code a third of them: these are the table's.
    """
    sources = (
        Source("sharegpt4v", 200, "llava"), Source("sa1b-densecap", 100, "image_to_caption"),  # captions
        Source("llava-1.6", 1500, "llava"), Source("m3it", 920), Source("allava", 1350, "llava"),  # questions
        Source("chartqa", 390), Source("ureader", 1100), Source("scigraphqa", 296), Source("geo170k", 118),  # charts
        Source("textocr", 25), Source("pdfa", 3000), Source("synthdog", 800), Source("websrc", 100),  # text in images
        Source("drawings", 10_000, "caption_to_image"),
    )  # fmt: skip
    return replace(
        stage_1(),
        name="unitoken/2",
        model="runs/unitoken-7b/1",
        trained_parts=None,
        sources=sources,
        learning_rate=1e-5,
        **one_epoch(sum(source.parts for source in sources)),
    )


def stage_3() -> LanguageModelRecipe:
    """Stage III: 423K dialogues and 100K drawings of better quality; the names of the sets were not found."""
    return replace(
        stage_2(),
        name="unitoken/3",
        model="runs/unitoken-7b/2",
        sources=(Source("dialogues", 423), Source("drawings", 100, "caption_to_image")),
        **one_epoch(423 + 100),
    )


def one_epoch(thousands: int) -> dict[str, int]:
    """Steps over so many thousand samples in the paper's batches, a hundredth of them to warm up."""
    steps = thousands * THOUSAND // 128
    return {"steps": steps, "warmup_steps": steps // 100}


RECIPES = (stage_1, stage_2, stage_3)
