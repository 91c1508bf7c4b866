"""transformers' own pipelines over our models: image-text-to-text in batches, text-generation, any-to-any.

any-to-any asks for torchvision whatever the model's processor is made of. Ours is made of Pillow and numpy: where
torchvision is missing, the question is taken out and the rest of that pipeline runs as it is.
"""

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline
from transformers.pipelines import any_to_any
from transformers.utils import is_torchvision_available

from modeling_unified.configuration_unified import PARADIGMS

BRIEF = {"max_new_tokens": 6, "do_sample": False}
READ = {"generate_kwargs": BRIEF, "return_full_text": False}


def user(*parts) -> list[dict]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return [{"role": "user", "content": content}]


@pytest.fixture
def pipe_of_row(sharp, make_tiny_row, make_tiny_processor):
    def build(task: str, row: str):
        config = make_tiny_row(row)
        return pipeline(task, model=sharp(config), processor=make_tiny_processor(config))

    return build


@pytest.fixture
def chats(make_image) -> dict[str, list[list[dict]]]:
    """Pairs of conversations by what differs in them."""
    one, two, tall = make_image(1), make_image(2), make_image(3, 16, 8)
    return {
        "length": [user(one, "two cats"), user(two, "how many cats?")],
        "number": [user(one, "two cats"), user(two, tall, "how many cats?")],
        "size": [user(one, "two cats"), user(tall, "how many cats?")],
        "one without": [user(one, "two cats"), user("how many cats?")],
    }


def texts_of(outputs: list) -> list[str]:
    return [(entry if isinstance(entry, dict) else entry[0])["generated_text"] for entry in outputs]


@pytest.mark.parametrize("row", PARADIGMS)
@pytest.mark.parametrize("difference", ["length", "number", "size", "one without"])
def test_lists_of_images_and_texts_are_read_as_alone(pipe_of_row, chats, row, difference):
    """One batch, padded by our processor: images of any number and size."""
    pipe = pipe_of_row("image-text-to-text", row)
    alone = texts_of([pipe(text=chat, **READ) for chat in chats[difference]])
    parts = [chat[0]["content"] for chat in chats[difference]]
    images = [[part["image"] for part in each if part["type"] == "image"] for each in parts]
    texts = ["<|image_slot|>" * len(those) + each[-1]["text"] + "\n" for those, each in zip(images, parts, strict=True)]
    assert texts_of(pipe(images=images, text=texts, **READ)) == alone


@pytest.mark.parametrize("row, difference", [("ugen", "number"), ("ugen", "size"), *((r, "length") for r in PARADIGMS)])
def test_conversations_in_a_batch_are_read_as_alone(pipe_of_row, chats, row, difference):
    """Where transformers' padding can join them: it concatenates `pixel_values`, and cuts any other view to the first
    image of each conversation (`_pad` in pipelines/base.py)."""
    pipe = pipe_of_row("image-text-to-text", row)
    alone = texts_of([pipe(text=chat, **READ) for chat in chats[difference]])
    assert texts_of(pipe(text=chats[difference], batch_size=2, **READ)) == alone
    assert texts_of(pipe(text=chats[difference], **READ)) == alone


@pytest.mark.parametrize("row", ["unifluid", "uvu", "unitoken"])
def test_a_view_that_transformers_cut_is_refused(pipe_of_row, make_image, row):
    pipe = pipe_of_row("image-text-to-text", row)
    chat = user(make_image(1), make_image(2), "how many cats?")
    with pytest.raises(ValueError, match=r"sees 4 images, the vision tower 2|\[\[8, 8\], .* do not fit"):
        pipe(text=[chat, chat], batch_size=2, **READ)


def test_text_generation_in_a_batch(model, tiny_processor):
    pipe = pipeline("text-generation", model=model, tokenizer=tiny_processor.tokenizer)
    prompts = ["two cats", "a red heart above"]
    alone = [pipe(prompt, **BRIEF) for prompt in prompts]
    assert pipe(prompts, batch_size=2, **BRIEF) == alone


@pytest.fixture
def any_to_any_of_row(pipe_of_row, monkeypatch):
    if not is_torchvision_available():
        monkeypatch.setattr(any_to_any, "requires_backends", lambda *args: None)
    return lambda row: pipe_of_row("any-to-any", row)


@pytest.mark.parametrize("row", PARADIGMS)
def test_any_to_any_writes(any_to_any_of_row, pipe_of_row, make_image, row):
    chat = user(make_image(1), "how many cats?")
    (entry,) = any_to_any_of_row(row)(text=chat, **READ)
    assert [entry["generated_text"]] == texts_of(pipe_of_row("image-text-to-text", row)(text=chat, **READ))


@pytest.mark.parametrize("row", ["ugen", "uvu", "unitoken"])
def test_any_to_any_draws(any_to_any_of_row, pipe_of_row, make_image, row):
    """Greedily, what text-to-image draws."""
    chat, greedy = user(make_image(1), "a cat"), {"do_sample": False}
    template = {"generation_mode": "image"}  # this pipeline does not tell the chat template what it is asked for
    pipe = any_to_any_of_row(row)
    tokens = pipe.processor.apply_chat_template(chat, add_generation_prompt=True, **template)
    images = [chat[0]["content"][0]["image"]]
    (entry,) = pipe(images=images, text=tokens, generation_mode="image", generate_kwargs=greedy)
    (expected,) = pipe_of_row("text-to-image", row)(chat, **greedy)
    assert np.array_equal(entry["generated_image"], expected["generated_image"])
    (answer,) = pipe(text=chat, generation_mode="image", generate_kwargs=greedy)
    assert isinstance(answer["generated_image"], Image.Image)


def test_any_to_any_draws_no_vectors(any_to_any_of_row):
    """It hands on sequences alone, which do not hold them."""
    with pytest.raises(ValueError, match="image tokens are vectors"):
        any_to_any_of_row("unifluid")(text=user("a cat"), generation_mode="image")
