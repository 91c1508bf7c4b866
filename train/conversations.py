"""Training samples as conversations, the package's one data format: what is read is the user's, what is written the
assistant's (see processing_unified/layout_unified.py for the sequences they become).

Tokens of an image are codes [L] or vectors [L, D].
"""

import random
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from train.recipes.kinds import LanguageModelRecipe
from train.scenes import Scene, describe, questions

Conversation = list[dict[str, Any]]
Writer = Callable[[Scene, torch.Tensor, int, random.Random], Conversation]


def user(*content: dict[str, Any]) -> dict[str, Any]:
    """A turn that is read: no part of it is predicted."""
    return {"role": "user", "content": list(content)}


def assistant(*content: dict[str, Any]) -> dict[str, Any]:
    """A turn that is written: all of it is predicted."""
    return {"role": "assistant", "content": list(content)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(tokens: torch.Tensor, pixels: Image.Image | None = None) -> dict[str, Any]:
    """An image by its tokens; a model that reads features also needs the pixels of what it reads."""
    part = {"type": "image", "image_tokens": tokens}
    return part if pixels is None else {**part, "image": pixels}


def by_tokens(scene: Scene, tokens: torch.Tensor) -> dict[str, Any]:
    """How a scene is shown to a model that reads images by their tokens alone."""
    return image(tokens)


def image_to_text(recipe: LanguageModelRecipe, show: Callable[[Scene, torch.Tensor], dict] = by_tokens) -> Writer:
    """Captioning and question answering in the recipe's exact shares, evenly alternating by sample number.

    A caption is the canonical one: exact match is how it is judged. One sample asks several questions about its scene,
    in random order: the image is read once for all of them. `show` makes the part of the image that is read.
    """

    def write(scene: Scene, tokens: torch.Tensor, number: int, rng: random.Random) -> Conversation:
        if not falls_due(number, recipe.question_share):
            return [user(show(scene, tokens)), assistant(text(describe(scene)))]
        asked = questions(scene, rng)
        rng.shuffle(asked)
        turns: Conversation = []
        for _, question, answer in asked[: recipe.questions_per_scene]:
            turns += [user(text(question)), assistant(text(answer))]
        turns[0]["content"].insert(0, show(scene, tokens))
        return turns

    return write


def text_to_image(recipe: LanguageModelRecipe, show: Callable[[Scene, torch.Tensor], dict] = by_tokens) -> Writer:
    """A caption in varied words, then the image. In a share of samples no prompt comes before the image, which is what
    guidance compares with (`unprompted`; our choice of share, the paper names none). `show` makes the part of the image
    that is written.
    """

    def write(scene: Scene, tokens: torch.Tensor, number: int, rng: random.Random) -> Conversation:
        if rng.random() < recipe.drop_prompt_share:
            return unprompted(show(scene, tokens), describe(scene))
        return [user(text(describe(scene, rng))), assistant(show(scene, tokens))]

    return write


def unprompted(part: dict[str, Any], caption: str) -> Conversation:
    """An image that no prompt comes before: `[SOS][SOI]` begins the sequence.

    The caption is written after the image: an [EOS] in its place would teach the model that an image which begins a
    sequence ends it too, and an image to be described begins a sequence in the same way.
    """
    return [assistant(part, text(caption))]


def editing(source: dict[str, Any], instruction: str, target: dict[str, Any]) -> Conversation:
    """The source (a part, as of `image`) and the instruction are read, the target is written. The source comes first:
    UniFluid's own layout of editing was not found, this is how we infer it."""
    return [user(source, text(instruction)), assistant(target)]


def falls_due(number: int, share: float) -> bool:
    """True for exactly floor(n * share) of the first n numbers, evenly spread: a share without chance."""
    return int((number + 1) * share) > int(number * share)
