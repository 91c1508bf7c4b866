"""UVU at the paper's size (CVPR 2026, arXiv 2609.27915): Qwen2.5-3B-Instruct, SigLIP2-so400m that sees images at their
own size, 200,000 codewords of 32x32 pixels.

From the paper: the sizes, rows of 32K tokens with one on each device, 1.04 trillion tokens in pretraining, AdamW at
2e-5 with a hundredth of the steps to warm up, weights of 0.5 and 1.0 for image and text, no image loss in fine-tuning.
Number of devices, decay, mixture and what is frozen were not found.

Public sets that the paper names: LLaVA-OneVision (lmms-lab/LLaVA-OneVision-Data), FineVision
(HuggingFaceM4/FineVision), The Cauldron (HuggingFaceM4/the_cauldron), Cambrian-7M (nyu-visionx/Cambrian-10M). The rest
of its data are its own. Name yours with `--data NAME=PATH`.
"""

from dataclasses import replace

from train.recipes.kinds import CodebookRecipe, LanguageModelRecipe, Source


def codebook() -> CodebookRecipe:
    """200,000 codewords, of samples of 20 million patches (of the two billion of a million images). Pass --images.

    Strength of the encoding, delta, alpha and the number of rounds are not known: ours are those of `photo/patch`, with
    alpha as large as the tail is expected to be (a twentieth of the clusters, two patches each). Every comparison of 20
    million patches with all centres is out of reach without GPUs: the inverted index is our choice.
    """
    return CodebookRecipe(
        "uvu/codebook",
        num_codewords=200_000,
        patches_per_round=20_000_000,
        patch_size=32,
        index="ivf",
        position_strength=0.1,
        drop_repeats=True,
        delta=4,
        alpha=20_000,
        samples_per_bin=16,
    )


def pretraining() -> LanguageModelRecipe:
    """Text, pairs and interleaved documents; what is read is predicted too, the rarest codes first.

    256 devices, a mixture of 1:2:2 and as many supervised codes as tokens of text are our choices. A batch is counted
    in samples: of about 593 tokens (`train.samples`) 54 fill a row, and so many steps make 1.04 trillion tokens. Count
    again for data of other lengths. Images have up to 1,024 features, a megapixel, since the paper measures small
    things in large images (our choice).
    """
    return LanguageModelRecipe(
        "uvu/pretraining",
        paradigm="uvu",
        text_model="Qwen/Qwen2.5-3B-Instruct",
        codec="runs/uvu-3b/codebook",
        tower="google/siglip2-so400m-patch16-naflex",
        text_config=None,
        image_size=512,
        max_features=1024,
        attention="flash_attention_2",  # in rows of 32K others compute what no sample sees, several times the rest
        activation_checkpointing=True,
        supervise_features=True,
        supervised_ratio=1.0,
        image_weight=0.5,
        text_weight=1.0,
        sources=(
            Source("text", 1, "text", streaming=True),
            Source("pairs", 2, "image_to_caption", streaming=True),
            Source("interleaved", 2, "conversations", streaming=True),
        ),
        packed_length=32_768,
        batch_size=256 * 54,
        learning_rate=2e-5,
        warmup_steps=1269,
        steps=126_900,
        save_every=1000,
        sample_every=10_000,
    )


def sft() -> LanguageModelRecipe:
    """Fine-tuning on answers, without image loss. Our choices: 32 devices, and as many samples as Cambrian-7M and half
    of LLaVA-OneVision have, 10 million."""
    return replace(
        pretraining(),
        name="uvu/sft",
        instruction_tuning=True,
        model="runs/uvu-3b/pretraining",
        supervise_features=False,
        supervised_ratio=None,
        sources=(Source("text", 1, "conversations"), Source("questions", 9, "conversations")),
        batch_size=32 * 48,
        warmup_steps=65,
        steps=6500,
    )


RECIPES = (codebook, pretraining, sft)
