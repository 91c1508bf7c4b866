"""`pipeline("text-to-image")`: prompts in, PIL images out, the same as `generate` draws."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_unified.configuration_unified import PARADIGMS

# A process without our packages: it loads a folder as remote code, saves the pipeline, and draws from both.
PROBE = """
import sys
sys.modules["modeling_unified"] = sys.modules["processing_unified"] = None
from transformers import pipeline
pipe = pipeline("text-to-image", model=sys.argv[1], trust_remote_code=True)
pipe.save_pretrained(sys.argv[2])
again = pipeline("text-to-image", model=sys.argv[2], trust_remote_code=True)
for number, drawing in enumerate((pipe, again)):
    drawing("a cat", seed=1)[0]["generated_image"].save(f"{sys.argv[2]}/{number}.png")
"""


@pytest.fixture
def pipe(model, tiny_processor):
    return pipeline("text-to-image", model=model, processor=tiny_processor)


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


@pytest.fixture
def pipe_of_row(sharp, make_tiny_row, make_tiny_processor):
    def build(row: str):
        config = make_tiny_row(row)
        return pipeline("text-to-image", model=sharp(config), processor=make_tiny_processor(config))

    return build


def user(*parts) -> list[dict]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return [{"role": "user", "content": content}]


def images_of(outputs: list) -> list[Image.Image]:
    """Those of a list of prompts, in order."""
    return [entry["generated_image"] for output in outputs for entry in output]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_list_of_prompts(pipe, model, tiny_processor, batch_size):
    """A seed counts over the list, however it is cut into batches."""
    texts = ["two cats", "a", "a red heart"]
    outputs = pipe(texts, batch_size=batch_size, seed=7)
    assert len(outputs) == 3
    for row, (image, text) in enumerate(zip(images_of(outputs), texts, strict=True)):
        assert same(image, drawn(model, tiny_processor, text, seed=7 + row))
    backwards = images_of(pipe(texts[::-1], batch_size=batch_size, seed=[9, 8, 7]))
    assert all(map(same, backwards[::-1], images_of(outputs)))
    assert pipe([]) == []


@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_images_of_several_prompts(pipe, batch_size):
    """The k-th image of the i-th prompt alone, by its own seed."""
    texts = ["a cat", "two", "a"]
    outputs = pipe(texts, num_images_per_prompt=2, batch_size=batch_size, seed=4)
    assert [len(output) for output in outputs] == [2, 2, 2]
    for row, text in enumerate(texts):
        for k in range(2):
            alone = pipe(text, seed=4 + 2 * row + k)[0]["generated_image"]
            assert same(outputs[row][k]["generated_image"], alone)
    assert len(pipe("a cat", num_images_per_prompt=3)) == 3


def test_generators(pipe):
    """One is asked for a seed for each image, in order; a list gives each image its own."""

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    texts = ["a cat", "two"]
    (one,) = generators(5)
    seeds = [int(torch.randint(2**63 - 1, (), generator=one)) for _ in range(4)]
    expected = images_of(pipe(texts, num_images_per_prompt=2, seed=seeds))
    for batch_size in (1, 2):
        again = pipe(texts, num_images_per_prompt=2, batch_size=batch_size, generator=generators(5)[0])
        assert all(map(same, images_of(again), expected))
    of_each = images_of(pipe(texts, generator=generators(5, 6)))
    assert same(of_each[0], expected[0])
    assert same(of_each[1], pipe("two", generator=generators(6)[0])[0]["generated_image"])


def test_a_negative_prompt_and_guidance(pipe, model, tiny_processor):
    settings = {"seed": 1, "guidance_scale": 4.0}
    image = pipe("a cat", negative_prompt="the pizza", **settings)[0]["generated_image"]
    assert same(image, drawn(model, tiny_processor, "a cat", negative="the pizza", **settings))
    assert not same(image, pipe("a cat", **settings)[0]["generated_image"])
    in_batch = pipe(["a cat", "two cats"], negative_prompt="the pizza", batch_size=2, **settings)
    assert same(in_batch[0][0]["generated_image"], image)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_negative_prompt_for_each(pipe, batch_size):
    texts, against = ["a cat", "two", "a red heart"], ["the pizza", "", "it"]
    settings = {"guidance_scale": 4.0, "num_images_per_prompt": 2}
    outputs = images_of(pipe(texts, negative_prompt=against, batch_size=batch_size, seed=3, **settings))
    for row, (text, negative) in enumerate(zip(texts, against, strict=True)):
        alone = pipe(text, negative_prompt=negative, seed=3 + 2 * row, **settings)
        assert all(map(same, outputs[2 * row :], images_of([alone])))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_another_size(pipe, batch_size):
    outputs = pipe(["a cat", "two"], height=4, width=12, batch_size=batch_size, seed=1)
    assert [image.size for image in images_of(outputs)] == [(12, 4)] * 2
    by_pair = pipe(["a cat", "two"], image_size=(4, 12), seed=1)
    assert all(map(same, images_of(by_pair), images_of(outputs)))
    assert pipe("a cat", width=12)[0]["generated_image"].size == (12, 8)


@pytest.mark.parametrize("row", PARADIGMS)
def test_conversations_with_images_share_a_batch(pipe_of_row, make_image, row):
    """As many images as each has, of any size; every row draws after what it has read."""
    pipe = pipe_of_row(row)
    chats = [
        user(make_image(1), "two cats"),
        user("a red heart"),
        user(make_image(2, 12, 8), "a", make_image(3, 8, 16), "is left of the pizza"),
    ]
    together = images_of(pipe(chats, batch_size=3, seed=1))
    for index, chat in enumerate(chats):
        assert same(together[index], pipe(chat, seed=1 + index)[0]["generated_image"])


def test_text_and_images_in_turn(pipe, model, tiny_processor):
    boi, word = model.config.boi_token_id, 70
    with torch.no_grad():  # far from all others, these two win where they are above zero
        model.lm_head.weight[[boi, word]] *= 100
    settings = {"generation_mode": "interleaved", "max_new_tokens": 80, "do_sample": True}
    outputs = pipe(["a cat", "two"], batch_size=2, seed=1, num_images_per_prompt=2, **settings)
    found = [entry["generated_interleaved"] for output in outputs for entry in output]
    assert len(found) == 4 and {type(part) for parts in found for part in parts} == {str, Image.Image}
    inputs = tiny_processor(text="two")
    by_hand = model.generate(**inputs, seed=4, return_dict_in_generate=True, **settings)
    answer = by_hand.sequences[:, inputs["input_ids"].shape[1] :]
    (expected,) = tiny_processor.post_process_multimodal_output(
        answer, images=by_hand.images, generation_mode="interleaved"
    )
    assert len(found[3]) == len(expected)
    for part, other in zip(found[3], expected, strict=True):
        assert part == other if isinstance(part, str) else same(part, other)


def test_settings_of_the_call_and_of_the_pipeline(pipe, model, tiny_processor):
    greedy = drawn(model, tiny_processor, "a cat", do_sample=False)
    assert same(pipe("a cat", image_sampling={"do_sample": False})[0]["generated_image"], greedy)
    assert same(pipe("a cat", generate_kwargs={"do_sample": False})[0]["generated_image"], greedy)
    fixed = pipeline(
        "text-to-image", model=model, processor=tiny_processor, top_k=1, seed=3, num_images_per_prompt=2, batch_size=2
    )
    assert all(same(image, greedy) for image in images_of([fixed("a cat")]))
    assert [len(output) for output in fixed(["a cat", "two"], num_images_per_prompt=1)] == [1, 1]


def test_progress_of_batches(pipe, capfd):
    pipe(["a cat"] * 2, batch_size=2)
    assert "drawing" not in capfd.readouterr().err
    pipe(["a cat"] * 3, batch_size=2)
    assert "drawing: 100%" in capfd.readouterr().err


def test_a_stream_of_prompts_is_drawn_as_it_is_asked_for(pipe):
    asked = []

    def prompts():
        for text in ("a cat", "two", "a"):
            asked.append(text)
            yield text

    outputs = pipe(prompts(), batch_size=2, seed=1)
    first = next(outputs)
    assert asked == ["a cat", "two"]
    expected = images_of(pipe(["a cat", "two", "a"], seed=1))
    assert all(map(same, images_of([first, *outputs]), expected))


def test_a_saved_pipeline_loads_again(pipe, tmp_path):
    """With the package, and in a process without it, which saves it once more."""
    pipe.save_pretrained(tmp_path / "saved", max_shard_size="50GB")  # as `push_to_hub` calls it
    image = pipe("a cat", seed=1)[0]["generated_image"]
    back = pipeline("text-to-image", model=str(tmp_path / "saved"))
    assert same(back("a cat", seed=1)[0]["generated_image"], image)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-I", "-c", PROBE, "saved", "again"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(same(Image.open(tmp_path / "again" / f"{number}.png"), image) for number in range(2))


@pytest.mark.parametrize(
    "prompt, arguments, message",
    [
        ("a cat", {"num_images": 2}, r"text-to-image takes no \['num_images'\]; it takes .*'seed'"),
        ("a cat", {"generate_kwargs": {"num_return_sequences": 2}}, "takes no .*num_return_sequences"),
        ("a cat", {"num_images_per_prompt": 0}, "num_images_per_prompt 0: pass at least 1"),
        ("a cat", {"batch_size": 0}, "batch_size is 0"),
        (["a", "two"], {"seed": [1]}, "1 seeds for 2 images: pass one for each"),
        (["a", "two"], {"seed": [1, 2], "num_images_per_prompt": 2}, "2 seeds for 4 images"),
        (["a", "two"], {"generator": [torch.Generator()]}, "1 generators for 2 images"),
        ("a cat", {"generator": torch.Generator(), "seed": 1}, "seed 1 and a generator: .* pass either"),
        (["a", "two"], {"negative_prompt": ["it"]}, "1 negative prompts for 2 prompts"),
        (iter("ab"), {"seed": [1, 2]}, "2 seeds for an unknown number of images"),
        ("a cat", {"negative_prompt": "it", "guidance_scale": 1.0}, "negative prompt .* guidance_scale 1.0"),
        ("a cat", {"height": 5}, "image size 5x8 is not a multiple of the codec's stride 2"),
        ("a cat", {"width": 0}, "image size 8x0 is not a multiple"),
        ("a cat", {"height": 4, "image_size": (4, 4)}, "height 4 and width None beside image_size"),
        ("a cat", {"max_new_tokens": 9}, "max_new_tokens 9: the size of an image decides"),
        ("a cat", {"generation_mode": "text"}, "generation_mode 'text': .* image, interleaved"),
        (["a", 3], {}, "prompt 1 is int: pass a str or a conversation"),
        ({"prompt": "a"}, {}, "prompt 0 is dict"),
        ([{"role": "assistant", "content": "a"}], {}, "prompt 0 ends with the role 'assistant'"),
    ],
)
def test_what_cannot_be_asked_for(pipe, prompt, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(prompt, **arguments)
