"""`pipeline("text-to-image")`: prompts in, PIL images out; or text and images in turn.

    pipe = pipeline("text-to-image", model="model_cards/ugen-spark")
    pipe("a cat left of a pizza, noto style", seed=1)[0]["generated_image"].save("cat.png")
    pipe(["a cat", "two dogs"], batch_size=2, seed=1, negative_prompt="noto style")  # a list for each prompt
    pipe("three apples", generation_mode="interleaved", seed=1)[0]["generated_interleaved"]  # [str | Image, ...]

A prompt is a string or a conversation whose last turn is the user's; images in it are read, so that a model that has
learned to edit edits them. Batches are made here and not by transformers, which knows of no seed or negative prompt
that belongs to one prompt of a list, and pads one tensor of images for each prompt.
"""

from collections.abc import Iterable, Iterator, Sized
from itertools import count, islice, repeat
from typing import Any, NamedTuple

import torch
from transformers import Pipeline
from transformers.utils import logging

MODES = ("image", "interleaved")
JOB_ARGUMENTS = ("generator", "negative_prompt", "num_images_per_prompt", "seed")
GENERATE_ARGUMENTS = (
    "do_sample", "generation_mode", "guidance_scale", "guidance_schedule", "height", "image_order", "image_sampling",
    "image_size", "max_new_tokens", "num_inference_steps", "temperature", "top_k", "top_p", "use_cache", "width",
)  # fmt: skip


class Job(NamedTuple):
    """A prompt and what belongs to it alone."""

    conversation: list[dict[str, Any]]
    negative: str
    seeds: list[int | None]  # one for each of its images


class TextToImagePipeline(Pipeline):
    """Draws with any model that generates with `generation_mode="image"` and its processor."""

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False
    _pipeline_calls_generate = True
    _non_generation_params = ("num_return_sequences",)  # refused: `num_images_per_prompt` is what it is called here

    def __call__(
        self, prompt: str | list[dict] | Iterable[str | list[dict]], batch_size: int | None = None, **kwargs
    ) -> list[dict] | list[list[dict]] | Iterator[list[dict]]:
        """Draws each prompt. What is given here goes before what was given to `pipeline(...)`.

        Args:
            prompt: a str; a conversation `[{"role": "user", "content": [{"type": "text" | "image", ...}]}]`; or many of
                these, in a list, a dataset's column or a generator.
            batch_size: prompts drawn at a time, 1 by default; progress is shown from two batches on.
            negative_prompt: a str, or a list with one for each prompt: what guidance leads away from, read by its
                unconditional half instead of nothing. Needs a guidance_scale other than 1.
            num_images_per_prompt: 1 by default.
            seed: one for each image, those of a prompt side by side; an int s stands for s, s + 1, s + 2, ... over all
                of them. A seed gives its image alone, too, and in batches of any size.
            generator: instead, a `torch.Generator` that seeds are drawn from, or one for each image.
            height, width: in pixels (or `image_size`, both); the config's where they are not given.
            generation_mode: "image", or "interleaved": the model writes, and begins images where it wants to.
            max_new_tokens: with "interleaved", of text and images together; the rest of the context by default.
            guidance_scale, guidance_schedule, num_inference_steps, temperature, top_k, top_p, do_sample,
            image_sampling, image_order, use_cache: as of the model's `generate`, whose defaults are those of
                `generation_config.json`; `generate_kwargs` is a dict of them.

        Returns:
            For one prompt a list of `num_images_per_prompt` entries `{"generated_image": PIL.Image}`, with
            "interleaved" `{"generated_interleaved": [str | PIL.Image, ...]}`; for many prompts one such list each (from
            a generator: an iterator over them, which draws a batch when it is asked for it).

        Raises:
            ValueError: arguments that are unknown, disagree in number or fit no model; a malformed prompt, by its
                index.
        """
        for_jobs, for_generate, _ = self._sanitize_parameters(**kwargs)
        for_jobs = {"num_images_per_prompt": 1, **self._preprocess_params, **for_jobs}
        for_generate = {"generation_mode": "image", **self._forward_params, **for_generate}
        for_generate = self._with_image_size(**for_generate)
        batch_size = next(size for size in (batch_size, self._batch_size, 1) if size is not None)
        self._check(batch_size=batch_size, **for_jobs, **for_generate)

        many = isinstance(prompt, Iterable) and not isinstance(prompt, str | dict) and not _is_conversation(prompt)
        prompts = prompt if many else [prompt]
        jobs = _jobs(prompts, **for_jobs)
        if not isinstance(prompts, Sized):
            return (drawn for batch in self._batches(jobs, batch_size, for_generate) for drawn in batch)
        jobs = list(jobs)  # a mistake in the last prompt is found before the first is drawn
        batches, drawn = -(-len(jobs) // batch_size), []
        with logging.tqdm(total=batches, desc="drawing", unit="batch", disable=batches < 2) as bar:
            for batch in self._batches(iter(jobs), batch_size, for_generate):
                drawn += batch
                bar.update()
        return drawn if many else drawn[0]

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """Model, processor and their code: a folder that `pipeline("text-to-image", model=save_directory)` loads.
        `kwargs` go to both (transformers' own would leave the processor out)."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(
        self, generate_kwargs: dict[str, Any] | None = None, **kwargs
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What belongs to each prompt, and what to all of them."""
        given = {**(generate_kwargs or {}), **kwargs}
        if unknown := given.keys() - {*JOB_ARGUMENTS, *GENERATE_ARGUMENTS}:
            raise ValueError(
                f"text-to-image takes no {sorted(unknown)}; it takes {sorted((*JOB_ARGUMENTS, *GENERATE_ARGUMENTS))}"
            )
        given = {key: value for key, value in given.items() if value is not None}
        for_jobs = {key: given.pop(key) for key in JOB_ARGUMENTS if key in given}
        return for_jobs, given, {}

    def _with_image_size(self, height: int | None = None, width: int | None = None, **settings) -> dict[str, Any]:
        if height is None and width is None:
            return settings
        if "image_size" in settings:
            raise ValueError(
                f"height {height} and width {width} beside image_size {settings['image_size']}: pass either"
            )
        of_model = self.model.config.image_size
        size = (of_model[0] if height is None else height, of_model[1] if width is None else width)
        return {**settings, "image_size": size}

    def _check(self, batch_size: int, num_images_per_prompt: int, generation_mode: str, **settings) -> None:
        if batch_size < 1 or num_images_per_prompt < 1:
            raise ValueError(
                f"batch_size is {batch_size}, num_images_per_prompt {num_images_per_prompt}: pass at least 1"
            )
        if generation_mode not in MODES:
            raise ValueError(f"generation_mode {generation_mode!r}: this pipeline draws, choose of {', '.join(MODES)}")
        if generation_mode == "image" and "max_new_tokens" in settings:
            raise ValueError(
                f"max_new_tokens {settings['max_new_tokens']}: the size of an image decides how many tokens it has; "
                'leave it out, or pass generation_mode="interleaved"'
            )

    def _batches(self, jobs: Iterator[Job], size: int, settings: dict[str, Any]) -> Iterator[list[list[dict]]]:
        mode = {"generation_mode": settings["generation_mode"]}
        while batch := list(islice(jobs, size)):
            yield self.run_single(batch, mode, settings, mode)

    def preprocess(self, inputs: list[Job], generation_mode: str) -> dict[str, Any]:
        model_inputs = dict(self._tokens([job.conversation for job in inputs], generation_mode))
        if any(job.negative for job in inputs):
            negative = self._tokens([_user(job.negative) for job in inputs], generation_mode)
            model_inputs["negative_prompt_ids"] = negative["input_ids"]
            model_inputs["negative_prompt_attention_mask"] = negative["attention_mask"]
        seeds = [seed for job in inputs for seed in job.seeds]
        model_inputs["seed"] = None if None in seeds else seeds
        model_inputs["num_return_sequences"] = len(inputs[0].seeds)
        return model_inputs

    def _tokens(self, conversations: list[list[dict]], generation_mode: str) -> dict[str, torch.Tensor]:
        return self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            generation_mode=generation_mode,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def _forward(self, model_inputs: dict[str, Any], **settings) -> dict[str, Any]:
        arguments = self._prepare_generate_kwargs(settings, return_dict_in_generate=True)
        generated = self.model.generate(**model_inputs, **arguments)
        prompts, length = model_inputs["input_ids"].shape
        return {"prompts": prompts, "sequences": generated.sequences[:, length:], "images": generated.images}

    def postprocess(self, model_outputs: dict[str, Any], generation_mode: str) -> list[list[dict[str, Any]]]:
        """A list for each prompt of the batch."""
        sequences, images = model_outputs["sequences"], model_outputs["images"]
        if generation_mode == "image":
            sequences, images = images, None  # as the processor takes them
        made = self.processor.post_process_multimodal_output(sequences, images, generation_mode=generation_mode)
        entries = [{f"generated_{generation_mode}": each} for each in made]
        of_each = len(entries) // model_outputs["prompts"]
        return [entries[first : first + of_each] for first in range(0, len(entries), of_each)]


def _jobs(
    prompts: Iterable[Any],
    num_images_per_prompt: int,
    negative_prompt: str | list[str] | None = None,
    seed: int | list[int] | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Iterator[Job]:
    """A job for each prompt, in order; lists must be as long as the prompts, or as the images asked for."""
    known = len(prompts) if isinstance(prompts, Sized) else None
    negatives = repeat(negative_prompt or "")
    if isinstance(negative_prompt, list | tuple):
        negatives = _one_for_each("negative prompts", [text or "" for text in negative_prompt], "prompts", known)
    seeds = _seeds(seed, generator, known and known * num_images_per_prompt)
    return (
        Job(_conversation(prompt, index), next(negatives), list(islice(seeds, num_images_per_prompt)))
        for index, prompt in enumerate(prompts)
    )


def _seeds(
    seed: int | list[int] | None, generator: torch.Generator | list[torch.Generator] | None, images: int | None
) -> Iterator[int | None]:
    if seed is not None and generator is not None:
        raise ValueError(f"seed {seed} and a generator: seeds are drawn from the generator, pass either")
    if isinstance(seed, int):
        return count(seed)
    if isinstance(generator, torch.Generator):
        return map(_draw_seed, repeat(generator))
    if generator is not None:
        return map(_draw_seed, _one_for_each("generators", generator, "images", images))
    return repeat(None) if seed is None else _one_for_each("seeds", seed, "images", images)


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def _one_for_each(name: str, values: list, of: str, expected: int | None) -> Iterator[Any]:
    if len(values) != expected:
        number = "an unknown number of" if expected is None else expected
        raise ValueError(f"{len(values)} {name} for {number} {of}: pass one for each, in a list, or one for all")
    return iter(values)


def _is_conversation(prompt: Any) -> bool:
    messages = getattr(prompt, "messages", prompt)  # of a `Chat`, as pipelines call it
    return isinstance(messages, list | tuple) and bool(messages) and isinstance(messages[0], dict)


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def _conversation(prompt: Any, index: int) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return _user(prompt)
    if not _is_conversation(prompt):
        raise ValueError(f"prompt {index} is {type(prompt).__name__}: pass a str or a conversation, a list of messages")
    messages = list(getattr(prompt, "messages", prompt))
    if messages[-1].get("role") != "user":
        raise ValueError(f"prompt {index} ends with the role {messages[-1].get('role')!r}: end it with a user's turn")
    return messages
