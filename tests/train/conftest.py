"""Fixtures of the training tests: real scenes with made-up codes, and runs of the tiny model on them.

scenes        list of (Scene, codes [16]), as SceneSource takes them
make_trainer  callable(folder, **recipe fields) -> UnifiedTrainer over a 3:2:5 mixture, float32, no pictures
"""

import copy
import random
from dataclasses import replace

import pytest
import torch


@pytest.fixture(scope="session")
def scenes():
    from train.scenes import HeldOut, sample_scene

    held_out = HeldOut.load()
    generator = torch.Generator().manual_seed(0)
    return [
        (sample_scene(random.Random(n), held_out), torch.randint(0, 16, (16,), generator=generator)) for n in range(12)
    ]


@pytest.fixture
def make_trainer(tiny_model, tiny_processor, scenes):
    from train.conversations import image_to_text, text_to_image
    from train.language_model import build_trainer
    from train.mixture import Mixture, SceneSource, TextSource
    from train.recipes import spark

    def make(folder, **fields):
        defaults = {"steps": 6, "batch_size": 10, "steps_per_code": 0.25, "warmup_steps": 1, "log_every": 1}
        defaults |= {"save_every": 3, "bf16": False, "attention": "sdpa", "questions_per_scene": 1}
        recipe = replace(spark.ugen(), **defaults | fields)
        sources = (
            TextSource([f"word {n}: meaning" for n in range(50)], recipe.seed, characters=40),
            SceneSource(scenes, recipe.seed + 1, image_to_text(recipe)),
            SceneSource(scenes, recipe.seed + 2, text_to_image(recipe)),
        )
        parts = list(zip(sources, (3, 2, 5), strict=True))
        mixture = Mixture(parts, recipe.steps * recipe.batch_size, recipe.seed)
        model = copy.deepcopy(tiny_model).requires_grad_(True)  # as `from_pretrained` leaves it
        return build_trainer(recipe, folder, model, tiny_processor, mixture)

    return make
