"""What a model draws and says while it trains, beside what it should: grids as `samples/step-N.png`, of the same rows
at every step.

Images are drawn as the model's generation config says, with its guidance, and seeded by column; what is said is the
likeliest word by word, at most WORDS tokens of it. Chance elsewhere and the model's mode stay as they were.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from textwrap import fill, shorten
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image

from train.codes import to_pixels
from train.conversations import Conversation, text, user
from train.progress import Curves
from train.scenes import Drawings, HeldOut, describe, render, sample_scene
from train.sources import RowSource, convert, with_open_images

WORDS = 40  # tokens
COLUMNS = 12


class Cell(NamedTuple):
    """An image below its title, or words alone."""

    image: Image.Image | None
    title: str


class Pictures(Curves):
    """The curves, and beside them the grid of `columns`, each of what is real and what the model makes of it."""

    def __init__(self, processor: Any, folder: Path, every: int):
        super().__init__(folder, every)
        self.processor = processor

    def columns(self, model: Any) -> list[tuple[Cell, Cell]]:
        raise NotImplementedError

    def on_step_end(self, args, state, control, model=None, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if due and state.is_world_process_zero:
            self.draw(model, self.folder / "samples" / f"step-{state.global_step:06d}.png")

    @torch.no_grad()
    def draw(self, model: Any, path: Path) -> None:
        """Writes the grid, if there is anything to show."""
        training = model.training
        model.eval()
        try:
            columns = self.columns(model)
        finally:
            model.train(training)
        if columns:
            path.parent.mkdir(exist_ok=True)
            draw_grid(columns, path)


class ScenePictures(Pictures):
    """Of the drawings: held-out scenes. Above each the real scene through the codec (the best a drawing can look) and
    the caption that the model writes for the real one, below it what the model draws for its caption."""

    def __init__(self, processor: Any, folder: Path, every: int, count: int = COLUMNS):
        super().__init__(processor, folder, every)
        held_out, drawings = HeldOut.load(), Drawings.load()
        scenes = [sample_scene(random.Random(f"picture/{n}"), held_out, "held_out") for n in range(count)]
        self.captions = [describe(scene) for scene in scenes]
        self.images = [render(scene, drawings) for scene in scenes]

    def columns(self, model: Any) -> list[tuple[Cell, Cell]]:
        if not can_draw(model):
            return []
        drawn = draw(model, self.processor, [[user(text(caption))] for caption in self.captions])
        read = [[user({"type": "image", "image": image})] for image in self.images]
        written = answer(model, self.processor, read)
        pixels_NCHW = model.reconstruct(to_pixels(self.images).to(model.device))
        rebuilt = self.processor.post_process_multimodal_output(list(pixels_NCHW), generation_mode="image")
        above = [Cell(image, f"real, read as:\n{words}") for image, words in zip(rebuilt, written, strict=True)]
        return list(zip(above, map(Cell, drawn, self.captions), strict=True))


class Example(NamedTuple):
    """The first thing that a conversation answers: an image, or words."""

    prompt: Conversation  # what comes before, with at least one turn of the user
    expected: Image.Image | str


class RowPictures(Pictures):
    """Of data of one's own: the first rows of each source in turn that ask for something. They are training rows, since
    a source names no others: what they show is what was learned, and not how it carries over.

    Where an image is answered, the real one is above and the drawn one below; where words are, the image that was read
    last and the expected words are above, and those of the model below.
    """

    def __init__(self, processor: Any, folder: Path, every: int, sources: Sequence[RowSource], count: int = COLUMNS):
        super().__init__(processor, folder, every)
        self.examples = list(islice(examples_of(sources, count), count))

    def columns(self, model: Any) -> list[tuple[Cell, Cell]]:
        images = [each for each in self.examples if isinstance(each.expected, Image.Image)] if can_draw(model) else []
        words = [each for each in self.examples if isinstance(each.expected, str)]
        drawn = draw(model, self.processor, [each.prompt for each in images]) if images else []
        said = answer(model, self.processor, [each.prompt for each in words]) if words else []
        columns = [
            (Cell(each.expected, f"training row\n{asked_in(each.prompt)}"), Cell(made, "drawn"))
            for each, made in zip(images, drawn, strict=True)
        ]
        for each, made in zip(words, said, strict=True):
            above = f"training row\n{asked_in(each.prompt)}\nexpected: {begun(each.expected)}"
            columns.append((Cell(last_image(each.prompt), above), Cell(None, f"said: {made}")))
        return columns


def examples_of(sources: Sequence[RowSource], count: int) -> Iterator[Example]:
    """Of the first `count` rows of each source, in turn.

    Raises:
        ValueError: a bad row, where its source was opened without `skip_bad_rows`.
    """
    for number, source in product(range(count), sources):
        if example := example_at(source, number):
            yield example


def example_at(source: RowSource, number: int) -> Example | None:
    """Of a row, from its pixels, of which the model reads; None if nothing is asked in it, or it is bad."""
    row, values = source.rows.at(number)
    try:
        conversation = with_open_images(convert(source.form, values, random.Random(number)), source.folder)
    except ValueError as error:
        if source.skip_bad_rows:
            return None
        raise ValueError(f"row {row} of {source.name}: {error}. Mend it, or pass --skip-bad-rows") from error
    place = next((place for place, turn in enumerate(conversation) if turn["role"] == "assistant"), 0)
    if not place:
        return None
    part = conversation[place]["content"][0]
    return Example(conversation[:place], part[part["type"]])


# --- what the model makes -------------------------------------------------------------------------------------------


def can_draw(model: Any) -> bool:
    """Whether there is a code that may be drawn, or no codes at all but vectors."""
    return bool(getattr(model.model.image_head, "active_codes", torch.ones(1)).any())


def draw(model: Any, processor: Any, prompts: list[Conversation]) -> list[Image.Image]:
    """One image for each prompt, with the model's own image sampling and guidance."""
    inputs = processor.apply_chat_template(
        prompts, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        generation_mode="image",
    ).to(model.device)  # fmt: skip
    seeds = list(range(len(prompts)))
    drawn = model.generate(**inputs, generation_mode="image", seed=seeds, return_dict_in_generate=True)
    pixels = [images[0] for images in drawn.images]
    return processor.post_process_multimodal_output(pixels, generation_mode="image")


def answer(model: Any, processor: Any, prompts: list[Conversation]) -> list[str]:
    """What the model says to each prompt."""
    inputs = processor.apply_chat_template(
        prompts, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    ).to(model.device)
    sequences = model.generate(**inputs, generation_mode="text", do_sample=False, max_new_tokens=WORDS)
    return processor.post_process_image_text_to_text(sequences[:, inputs["input_ids"].shape[1] :])


# --- the grid -------------------------------------------------------------------------------------------------------


def draw_grid(columns: Sequence[tuple[Cell, Cell]], path: Path) -> None:
    """Writes one PNG."""
    figure = Figure(figsize=(2 * len(columns), 5), layout="constrained")
    for cells, of_column in zip(columns, figure.subplots(2, len(columns), squeeze=False).T, strict=True):
        for cell, axes in zip(cells, of_column, strict=True):
            words = "\n".join(fill(printable(line), 28) for line in cell.title.splitlines() if line)
            axes.set_axis_off()
            if cell.image is None:
                axes.text(0.5, 0.5, words, fontsize=7, ha="center", va="center", parse_math=False)
            else:
                axes.imshow(cell.image)
                axes.set_title(words, fontsize=7, parse_math=False)
    figure.savefig(path, dpi=80)


def printable(words: str) -> str:
    """With a question mark for whatever the figure's font may lack: a young model writes anything."""
    return "".join(character if character.isascii() and character.isprintable() else "?" for character in words)


def asked_in(prompt: Conversation) -> str:
    """What a prompt says last."""
    return begun(" ".join(part["text"] for part in prompt[-1]["content"] if part["type"] == "text"))


def begun(words: str) -> str:
    """As much of them as a title holds."""
    return shorten(words, 80, placeholder=" ...")


def last_image(prompt: Conversation) -> Image.Image | None:
    images = [part["image"] for turn in prompt for part in turn["content"] if part["type"] == "image"]
    return images[-1] if images else None
