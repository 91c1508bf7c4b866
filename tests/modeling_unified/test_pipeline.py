"""`pipeline("text-to-image")`: prompts in, PIL images out, the same as `generate` draws."""

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline


@pytest.fixture
def pipe(model, tiny_processor):
    return pipeline("text-to-image", model=model, processor=tiny_processor, tokenizer=tiny_processor.tokenizer)


def same(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def drawn(model, processor, text: str, negative: str | None = None, **settings) -> Image.Image:
    """By hand, what the pipeline should draw."""
    against = {} if negative is None else {"negative_prompt_ids": processor(text=negative)["input_ids"]}
    sequences = model.generate(**processor(text=text), **against, generation_mode="image", **settings)
    (pixels,) = model.decode_image_tokens(sequences, image_size=settings.get("image_size"))
    return processor.post_process_multimodal_output(pixels, generation_mode="image")[0]


def test_one_prompt(pipe, model, tiny_processor):
    output = pipe("a cat", seed=1)
    assert isinstance(output, list) and len(output) == 1 and output[0].keys() == {"generated_image"}
    image = output[0]["generated_image"]
    assert isinstance(image, Image.Image) and image.size == (8, 8) and image.mode == "RGB"
    assert same(image, drawn(model, tiny_processor, "a cat", seed=1))
    assert not same(image, pipe("a cat", seed=2)[0]["generated_image"])


def test_a_conversation_is_a_prompt(pipe):
    conversation = [{"role": "user", "content": [{"type": "text", "text": "a cat"}]}]
    assert same(pipe(conversation, seed=1)[0]["generated_image"], pipe("a cat", seed=1)[0]["generated_image"])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_list_of_prompts(pipe, model, tiny_processor, batch_size):
    """Greedy, so that what is drawn does not depend on how the list is cut into batches."""
    texts = ["two cats", "a", "a red heart"]
    outputs = pipe(texts, batch_size=batch_size, do_sample=False)
    assert len(outputs) == 3
    for (output,), text in zip(outputs, texts, strict=True):
        assert same(output["generated_image"], drawn(model, tiny_processor, text, do_sample=False))


def test_several_images_of_a_prompt(pipe, model, tiny_processor):
    output = pipe("a cat", num_images_per_prompt=3, seed=[4, 5, 6])
    assert len(output) == 3
    for image, seed in zip(output, (4, 5, 6), strict=True):
        assert same(image["generated_image"], drawn(model, tiny_processor, "a cat", seed=seed))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_images_of_several_prompts(pipe, batch_size):
    outputs = pipe(["a cat", "two", "a"], num_images_per_prompt=2, batch_size=batch_size)
    assert [len(output) for output in outputs] == [2, 2, 2]


def test_a_negative_prompt_and_guidance(pipe, model, tiny_processor):
    settings = {"seed": 1, "guidance_scale": 4.0}
    image = pipe("a cat", negative_prompt="the pizza", **settings)[0]["generated_image"]
    assert same(image, drawn(model, tiny_processor, "a cat", negative="the pizza", **settings))
    assert not same(image, pipe("a cat", **settings)[0]["generated_image"])
    in_batch = pipe(["a cat", "two cats"], negative_prompt="the pizza", batch_size=2, **settings)
    assert same(in_batch[0][0]["generated_image"], image)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_another_size(pipe, batch_size):
    outputs = pipe(["a cat", "two"], image_size=(4, 12), batch_size=batch_size)
    assert [output[0]["generated_image"].size for output in outputs] == [(12, 4)] * 2


def test_settings_of_the_call_and_of_the_pipeline(pipe, model, tiny_processor):
    greedy = drawn(model, tiny_processor, "a cat", do_sample=False)
    assert same(pipe("a cat", image_sampling={"do_sample": False})[0]["generated_image"], greedy)
    assert same(pipe("a cat", generate_kwargs={"do_sample": False})[0]["generated_image"], greedy)
    fixed = pipeline(
        "text-to-image", model=model, processor=tiny_processor, tokenizer=tiny_processor.tokenizer, top_k=1, seed=3
    )
    assert same(fixed("a cat")[0]["generated_image"], greedy)


def test_an_unknown_argument_is_refused(pipe):
    with pytest.raises(ValueError, match=r"text-to-image takes no \['num_images'\]; it takes .*'seed'"):
        pipe("a cat", num_images=2)
