"""Codebooks of patches of photographs (UVU), row by row of the paper's ablation."""

from dataclasses import replace

from train.recipes.kinds import CodebookRecipe


def patch_plain() -> CodebookRecipe:
    """Patches of photographs by plain k-means, the first row of the paper's ablation. Pass --images."""
    return CodebookRecipe(
        "photo/patch-plain", reductions=(1, 2, 4), num_codewords=4096, patches_per_round=250_000, rounds=15
    )


def patch_position() -> CodebookRecipe:
    """With positional encoding, the second row."""
    return replace(patch_plain(), name="photo/patch-position", position_strength=0.1)


def patch() -> CodebookRecipe:
    """With iterative hierarchical clustering too, the third row and the paper's method.

    alpha is small: where a sample is all patches, the cache meets no new ones and would never reach a large one.
    """
    return replace(patch_position(), name="photo/patch", drop_repeats=True, delta=4, alpha=256, samples_per_bin=16)


RECIPES = (patch_plain, patch_position, patch)
