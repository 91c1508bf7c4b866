"""What a run shows of itself while it trains, and how it is stopped: pictures, curves, Ctrl-C."""

import random
import signal
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from accelerate.utils import reduce
from matplotlib.figure import Figure
from PIL import Image
from transformers import TrainerCallback

from train.codes import to_pixels
from train.conversations import text, user
from train.curves import draw_curves
from train.scenes import Drawings, HeldOut, Scene, describe, render, sample_scene


class StopOnSignal(TrainerCallback):
    """Ctrl-C, or a polite kill, ends the run after the current step with a checkpoint; a second one ends it at once.
    Where several processes train, one that is told to stop stops all. The last step of a session is always logged."""

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.stopped = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.previous = [signal.signal(number, self._note) for number in self.signals]

    def on_step_end(self, args, state, control, **kwargs):
        told = self.stopped
        if args.world_size > 1:
            told = bool(reduce(torch.tensor(float(told), device=args.device), "sum"))
        if told:
            control.should_save = control.should_training_stop = True
        if told or state.global_step >= state.max_steps:
            control.should_log = True

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in zip(self.signals, self.previous, strict=True):
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        print("\nstopping after this step with a checkpoint; once more stops at once", flush=True)


class Curves(TrainerCallback):
    """Every `every` steps and at the end: `curves.png`."""

    def __init__(self, folder: Path, every: int):
        self.folder, self.every = folder, every

    def on_step_end(self, args, state, control, model=None, **kwargs):
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if due and state.is_world_process_zero:
            self.draw(state, model)

    def draw(self, state: Any, model: Any) -> None:
        draw_curves(state.log_history, self.folder / "curves.png")


class Pictures(Curves):
    """The curves, and beside them a grid of drawings as `samples/step-N.png`.

    The grid shows held-out scenes, the same at every step: above each the real scene through the codec (the best a
    drawing can look), below it what the model draws for its caption, and the caption it writes for the real one.
    """

    def __init__(self, processor: Any, folder: Path, every: int, count: int = 12):
        super().__init__(folder, every)
        self.processor = processor
        held_out, drawings = HeldOut.load(), Drawings.load()
        self.scenes = [sample_scene(random.Random(f"picture/{n}"), held_out, "held_out") for n in range(count)]
        self.images = [render(scene, drawings) for scene in self.scenes]

    def draw(self, state: Any, model: Any) -> None:
        super().draw(state, model)
        if bool(getattr(model.model.image_head, "active_codes", torch.ones(1)).any()):
            path = self.folder / "samples" / f"step-{state.global_step:06d}.png"
            path.parent.mkdir(exist_ok=True)
            draw_samples(model, self.processor, self.scenes, self.images, path)


@torch.no_grad()
def draw_samples(model: Any, processor: Any, scenes: list[Scene], images: list[Image.Image], path: Path) -> None:
    """Writes the grid described at `Pictures`. Sampling is seeded by column; the model's mode is left as it was."""
    training = model.training
    model.eval()
    try:
        captions = [describe(scene) for scene in scenes]
        drawn = draw(model, processor, captions)
        written = caption(model, processor, images)
        rebuilt = processor.post_process_multimodal_output(
            list(model.reconstruct(to_pixels(images).to(model.device))), generation_mode="image"
        )
    finally:
        model.train(training)
    figure = Figure(figsize=(2 * len(scenes), 5), layout="constrained")
    for column, axes in enumerate(figure.subplots(2, len(scenes), squeeze=False).T):
        for row, (image, title) in enumerate(
            ((rebuilt[column], f"real, read as:\n{written[column]}"), (drawn[column], captions[column]))
        ):
            axes[row].imshow(image)
            axes[row].set_axis_off()
            axes[row].set_title(fill(printable(title), 28), fontsize=7, parse_math=False)
    figure.savefig(path, dpi=80)


def printable(text: str) -> str:
    """With a question mark for whatever the figure's font may lack: a young model writes anything."""
    return "".join(character if character.isascii() and character.isprintable() else "?" for character in text)


def draw(model: Any, processor: Any, prompts: list[str]) -> list[Image.Image]:
    """One image for each prompt, with the model's own image sampling and guidance."""
    inputs = processor.apply_chat_template(
        [[user(text(prompt))] for prompt in prompts],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        generation_mode="image",
    ).to(model.device)  # fmt: skip
    seeds = list(range(len(prompts)))
    drawn = model.generate(**inputs, generation_mode="image", seed=seeds, return_dict_in_generate=True)
    pixels = [images[0] for images in drawn.images]
    return processor.post_process_multimodal_output(pixels, generation_mode="image")


def caption(model: Any, processor: Any, images: list[Image.Image]) -> list[str]:
    """What the model says about each image, word by word the likeliest."""
    inputs = processor.apply_chat_template(
        [[user({"type": "image", "image": image})] for image in images],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    ).to(model.device)  # fmt: skip
    sequences = model.generate(**inputs, generation_mode="text", do_sample=False, max_new_tokens=40)
    return processor.post_process_image_text_to_text(sequences[:, inputs["input_ids"].shape[1] :])
