"""The processor: prompts, training batches, and outputs back to text and images. Fixtures are in conftest.py."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from processing_unified import UnifiedImageProcessor, UnifiedProcessor

SLOT, FEATURE = "<|image_slot|>", "<|image_feature|>"
L = 16  # slots of an 8x8 image at stride 2
M = 4  # features of an 8x8 image at stride 4
READ = {  # image inputs -> what a read image is between [SOI] and [EOI]
    ("codes",): "s" * L,
    ("latents",): "s" * L,
    ("features",): "f" * M,
    ("features", "latents"): "f" * M + "s" * L,
    ("codes", "features"): "s" * L + "f" * M,
}
WITH_FEATURES = [inputs for inputs in READ if "features" in inputs]


def user(*parts):
    return {"role": "user", "content": [part(p) for p in parts]}


def assistant(*parts):
    return {"role": "assistant", "content": [part(p) for p in parts]}


def part(value):
    if isinstance(value, str):
        return {"type": "text", "text": value}
    if isinstance(value, dict):
        return {"type": "image", **value}
    return {"type": "image", ("image" if isinstance(value, Image.Image) else "image_tokens"): value}


def decode(processor, ids):
    """Ids as text, runs of slots as one `*`."""
    return processor.tokenizer.decode(ids).replace(SLOT * L, "*")


def spell(processor, ids):
    """Ids as text, each slot an `s`, each feature an `f`."""
    return processor.tokenizer.decode(ids).replace(SLOT, "s").replace(FEATURE, "f")


@pytest.fixture
def make_processor(tiny_tokenizer):
    def make(image_inputs, **arguments):
        image_processor = UnifiedImageProcessor(size={"height": 8, "width": 8}, stride=2)
        return UnifiedProcessor(
            image_processor, tiny_tokenizer, image_inputs=image_inputs, **{"feature_stride": 4, **arguments}
        )

    return make


# --- prompts -------------------------------------------------------------------------------------------------------


def test_a_placeholder_becomes_the_slots_of_its_image(tiny_processor, make_image):
    inputs = tiny_processor(images=make_image(), text=SLOT + "how many cats?")
    assert decode(tiny_processor, inputs["input_ids"][0]) == "[SOS][SOI]*[EOI]how many cats?"
    assert inputs["pixel_values"].shape == (1, 3, 8, 8)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"} <= set(tiny_processor.model_input_names)


def test_slots_follow_the_size_of_the_call(tiny_processor, make_image):
    inputs = tiny_processor(images=make_image(), text=SLOT, size={"height": 4, "width": 12})
    assert (inputs["input_ids"] == tiny_processor.image_token_id).sum() == 2 * 6


def test_sos_stands_once(tiny_processor):
    texts = ["a cat", "[SOS]a cat"]
    together = tiny_processor(text=texts)["input_ids"]
    assert together[0].tolist() == together[1].tolist() == tiny_processor(text="a cat")["input_ids"][0].tolist()
    assert (together == tiny_processor.tokenizer.bos_token_id).sum(1).tolist() == [1, 1]
    assert (
        tiny_processor.tokenizer.bos_token_id not in tiny_processor(text="a cat", add_special_tokens=False)["input_ids"]
    )


def test_prompts_are_padded_on_the_left_and_images_keep_their_order(tiny_processor, make_image):
    images = [make_image(seed) for seed in range(3)]
    texts = ["a cat", f"{SLOT}{SLOT}two", SLOT]
    nested = tiny_processor(images=[[], images[:2], images[2:]], text=texts, generation_mode="text")
    flat = tiny_processor(images=images, text=texts)
    assert (nested["input_ids"] == flat["input_ids"]).all() and (nested["pixel_values"] == flat["pixel_values"]).all()
    for ids, mask, text in zip(
        flat["input_ids"], flat["attention_mask"], ("a cat", "[SOI]*[EOI]" * 2 + "two", "[SOI]*[EOI]"), strict=True
    ):
        padding = int((mask == 0).sum())
        assert not mask[:padding].any() and mask[padding:].all()
        assert decode(tiny_processor, ids) == "[PAD]" * padding + "[SOS]" + text
    assert (tiny_processor.image_processor(images[1:2])["pixel_values"][0] == flat["pixel_values"][1].numpy()).all()


@pytest.mark.parametrize(
    "texts, images, message",
    [
        (SLOT + SLOT, 1, "text 0 has 2 placeholders .* but 1 images"),
        (["a", SLOT], 0, "text 1 has 1 placeholders .* but 0 images"),
        (["a", "b"], 1, "text 1 has 0 placeholders .* but 1 images"),
        ([SLOT, "b"], [1, 1], "text 1 has 0 placeholders .* but 1 images"),
        ([SLOT, SLOT], [2, 0], "text 0 has 1 placeholders .* but 2 images"),
    ],
)
def test_images_must_match_placeholders(tiny_processor, make_image, texts, images, message):
    images = [[make_image()] * n for n in images] if isinstance(images, list) else [make_image()] * images or None
    with pytest.raises(ValueError, match=message):
        tiny_processor(images=images, text=texts)


@pytest.mark.parametrize("text", [[], [["a", "b"]], [1]])
def test_text_that_is_none_is_refused(tiny_processor, text):
    with pytest.raises(ValueError, match="pass a str"):
        tiny_processor(text=text)


def test_images_alone(tiny_processor, make_image):
    assert set(tiny_processor(images=[make_image()])) == {"pixel_values"}


def test_a_text_longer_than_the_context_is_refused(tiny_processor, make_image):
    tiny_processor.tokenizer.model_max_length = 19
    with pytest.raises(ValueError, match="text 1 has 20 tokens with its images, but the model takes 19"):
        tiny_processor(images=make_image(), text=["a", SLOT + "a"])


def test_a_size_that_the_grid_cannot_take_is_refused(tiny_processor, make_image):
    with pytest.raises(ValueError, match="8x7.*stride of 2"):
        tiny_processor(images=make_image(), text=SLOT, size={"height": 8, "width": 7})


# --- chats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages, arguments, prompt",
    [
        ([user("a cat")], {"generation_mode": "image"}, "[SOS]a cat"),
        ([user("a cat")], {"generation_mode": "interleaved"}, "[SOS]a cat"),
        ([user("a cat")], {"generation_mode": "text"}, "[SOS]a cat\n"),
        ([user("a cat")], {"generation_mode": None}, "[SOS]a cat\n"),
        ([user("a cat")], {}, "[SOS]a cat\n"),
        ([{"role": "user", "content": "a cat"}], {}, "[SOS]a cat\n"),
        ([user("a cat")], {"add_generation_prompt": False}, "[SOS]a cat"),
        ([user(Image.new("RGB", (8, 8)))], {}, f"[SOS]{SLOT}"),
        ([user(Image.new("RGB", (8, 8)), "how many?")], {}, f"[SOS]{SLOT}how many?\n"),
        ([user("a"), assistant("b"), user("c")], {}, "[SOS]a\nb[EOS]c\n"),
        ([user("a"), assistant("b")], {"add_generation_prompt": False, "continue_final_message": True}, "[SOS]a\nb"),
    ],
)
def test_chat_template(tiny_processor, messages, arguments, prompt):
    arguments = {"add_generation_prompt": True} | arguments
    assert tiny_processor.apply_chat_template(messages, tokenize=False, **arguments) == prompt
    assert tiny_processor.tokenizer.apply_chat_template(messages, tokenize=False, **arguments) == prompt


def test_chats_as_pipelines_pass_them(tiny_processor, make_image):
    chats = [[user(make_image(), "how many?")], [user("a cat")]]
    arguments = {
        "continue_final_message": False,
        "return_tensors": "pt",
        "tokenize": True,
        "return_dict": True,
        "add_generation_prompt": True,
        "processor_kwargs": {},
    }
    single = tiny_processor.apply_chat_template(chats[0], **arguments).to(dtype=torch.bfloat16)
    assert decode(tiny_processor, single["input_ids"][0]) == "[SOS][SOI]*[EOI]how many?\n"
    assert single["pixel_values"].dtype == torch.bfloat16
    batch = tiny_processor.apply_chat_template(chats, generation_mode="text", **arguments)
    assert batch["input_ids"][0].tolist() == single["input_ids"][0].tolist()
    assert decode(tiny_processor, batch["input_ids"][1]).endswith("[PAD][SOS]a cat\n")


@pytest.mark.parametrize(
    "messages", [[{"role": "system", "content": "x"}], [{"role": "user", "content": [{"type": "video"}]}]]
)
def test_an_unknown_role_or_part_is_refused(tiny_processor, messages):
    with pytest.raises(Exception, match="exist"):
        tiny_processor.apply_chat_template(messages)


def conversations(make_image):
    image = make_image()
    return [
        [assistant("two cats left of a pizza")],
        [user(image), assistant("a red heart")],
        [user("a red heart "), assistant(image)],
        [user(image, "how many cats? "), assistant(" two")],
        [user("draw", " it"), assistant("here\n", image, "there"), user(image, "again"), assistant("no")],
        [user("", image), user("both", image, "of it\n"), assistant("\n", "x", image, "\n")],
        [user(image, "what?"), user("why?")],
    ]


def test_training_and_chat_template_give_the_same_ids(tiny_processor, make_image):
    for conversation in conversations(make_image):
        chat = tiny_processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
        batch = tiny_processor.encode_conversations([conversation])
        assert batch["input_ids"].tolist() == chat["input_ids"].tolist()
        assert ("pixel_values" in batch) == ("pixel_values" in chat)
        if "pixel_values" in batch:
            assert (batch["pixel_values"] == chat["pixel_values"]).all()


@pytest.mark.parametrize("mode", ["text", "image"])
def test_a_prompt_is_the_beginning_of_its_training_sequence(tiny_processor, make_image, mode):
    prompt = [user(make_image(), "how many cats?")]
    answer = assistant("two" if mode == "text" else make_image(1))
    inputs = tiny_processor.apply_chat_template(
        prompt, tokenize=True, return_dict=True, add_generation_prompt=True, generation_mode=mode
    )
    batch = tiny_processor.encode_conversations([[*prompt, answer]])
    length = inputs["input_ids"].shape[1]
    assert batch["input_ids"][0, :length].tolist() == inputs["input_ids"][0].tolist()
    assert (batch["labels"][0, :length] == -100).all() and (batch["labels"][0, length:] != -100).all()


# --- what an image is read through ---------------------------------------------------------------------------------


@pytest.mark.parametrize("image_inputs", READ)
def test_placeholders_of_a_prompt(make_processor, make_image, image_inputs):
    processor = make_processor(image_inputs)
    images = [make_image(seed) for seed in range(3)]
    inputs = processor(images=images, text=[f"{SLOT}a{SLOT}", SLOT])
    read = f"[SOI]{READ[image_inputs]}[EOI]"
    rows = [spell(processor, ids[mask.bool()]) for ids, mask in zip(*list(inputs.values())[:2], strict=True)]
    assert rows == [f"[SOS]{read}a{read}", f"[SOS]{read}"]
    expected = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    views = set()
    views |= {"pixel_values"} if "s" in read else set()
    views |= {"feature_pixel_values"} if "f" in read else set()
    assert set(inputs) == {"input_ids", "attention_mask", *views} <= set(processor.model_input_names)
    assert ("feature_pixel_values" in processor.model_input_names) == ("f" in read)
    assert all(torch.equal(inputs[view], expected) for view in views)
    assert set(processor(images=images)) == views


@pytest.mark.parametrize("image_inputs", READ)
def test_placeholders_and_labels_of_training(make_processor, make_image, image_inputs):
    processor = make_processor(image_inputs)
    a, b, c = (make_image(seed) for seed in range(3))
    batch = processor.encode_conversations([[user(a, "a cat"), assistant(b)], [user(c), assistant("two")]])
    read, text = READ[image_inputs], len(processor.tokenizer("a cat", add_special_tokens=False)["input_ids"])
    assert spell(processor, batch["input_ids"][0]) == f"[SOS][SOI]{read}[EOI]a cat[SOI]{'s' * L}[EOI][EOS]"
    assert spell(processor, batch["input_ids"][1]).startswith(f"[SOS][SOI]{read}[EOI]two[EOS]")
    given = 1 + 1 + len(read) + 1 + text
    assert (batch["labels"][0, :given] == -100).all()
    assert batch["labels"][0, given:].tolist() == batch["input_ids"][0, given:].tolist()
    assert len(batch["labels"][0, given:]) == 1 + L + 1 + 1
    views = {"pixel_values": [a, b, c] if "s" in read else [b], "feature_pixel_values": [a, c] if "f" in read else []}
    for key, images in views.items():
        assert (key in batch) == bool(images)
        if images:
            assert torch.equal(batch[key], processor.image_processor(images, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("image_inputs", WITH_FEATURES)
def test_training_and_chat_template_give_the_same_reading(make_processor, make_image, image_inputs):
    processor = make_processor(image_inputs)
    for conversation in (
        [user(make_image(), "how many cats?"), assistant("two")],
        [user("both", make_image(1), make_image(2)), assistant("a"), user(make_image(3), "again"), assistant("b")],
    ):
        chat = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
        batch = processor.encode_conversations([conversation])
        assert set(batch) == {*chat, "labels"}
        assert all(torch.equal(batch[key], chat[key]) for key in chat)


@pytest.mark.parametrize("image_inputs", WITH_FEATURES)
def test_an_editing_prompt_is_the_beginning_of_its_training_sequence(make_processor, make_image, image_inputs):
    processor = make_processor(image_inputs)
    prompt = [user(make_image(), "add a cat")]
    inputs = processor.apply_chat_template(
        prompt, tokenize=True, return_dict=True, add_generation_prompt=True, generation_mode="image"
    )
    batch = processor.encode_conversations([[*prompt, assistant(make_image(1))]])
    length = inputs["input_ids"].shape[1]
    assert batch["input_ids"][0, :length].tolist() == inputs["input_ids"][0].tolist()
    assert spell(processor, batch["input_ids"][0, length:]) == f"[SOI]{'s' * L}[EOI][EOS]"
    assert torch.equal(batch["feature_pixel_values"], inputs["feature_pixel_values"])


def test_both_views_go_through_a_pipeline(make_processor, make_image):
    inputs = make_processor(["features", "latents"]).apply_chat_template(
        [user(make_image(), "how many?")], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    inputs = inputs.to(dtype=torch.bfloat16)
    assert inputs["pixel_values"].dtype == inputs["feature_pixel_values"].dtype == torch.bfloat16


def test_the_view_for_features_has_its_own_size(make_processor, make_image):
    size = {"height": 12, "width": 8}
    processor = make_processor(["features", "latents"], feature_size=size)
    view = processor.image_processor(make_image(), size=size, stride=4, return_tensors="pt")["pixel_values"]
    for arguments, num_slots in (({}, L), ({"size": {"height": 4, "width": 4}}, 4), ({"do_resize": False}, L)):
        inputs = processor(images=make_image(), text=SLOT, **arguments)
        assert spell(processor, inputs["input_ids"][0]) == f"[SOS][SOI]{'f' * 6}{'s' * num_slots}[EOI]"
        assert torch.equal(inputs["feature_pixel_values"], view)
    batch = processor.encode_conversations([[user(make_image()), assistant("a")]])
    assert torch.equal(batch["feature_pixel_values"], view) and batch["pixel_values"].shape == (1, 3, 8, 8)


def test_features_alone_need_no_size_that_the_codec_can_take(make_processor, make_image):
    processor = make_processor(["features"], feature_stride=3)
    inputs = processor(images=make_image(), text=SLOT, size={"height": 9, "width": 9})
    assert spell(processor, inputs["input_ids"][0]) == f"[SOS][SOI]{'f' * 9}[EOI]"


@pytest.mark.parametrize("image_inputs", READ)
def test_tokens_fill_the_slots_and_pixels_the_features(make_processor, make_image, image_inputs):
    processor = make_processor(image_inputs)
    vectors = [torch.randn(L, 3, dtype=torch.bfloat16), np.random.default_rng(0).normal(size=(L, 3))]
    source, target = ({"image": make_image(i), "image_tokens": vectors[i]} for i in range(2))
    batch = processor.encode_conversations([[user(source, "a"), assistant(target)]])
    by_pixels = processor.encode_conversations([[user(make_image(), "a"), assistant(make_image(1))]])
    assert torch.equal(batch["input_ids"], by_pixels["input_ids"]) and "pixel_values" not in batch
    expected = torch.stack([torch.as_tensor(tokens).float() for tokens in vectors])
    assert torch.equal(batch["image_tokens"], expected if "s" in READ[image_inputs] else expected[1:])
    assert ("feature_pixel_values" in batch) == ("features" in image_inputs)
    if "features" in image_inputs:
        assert torch.equal(batch["feature_pixel_values"], by_pixels["feature_pixel_values"])


def test_an_image_that_is_only_read_through_features_has_no_say_over_the_slots(make_processor, make_image):
    batch = make_processor(["features"]).encode_conversations(
        [[user(make_image(), "a"), assistant(np.arange(L))], [user(make_image(1)), assistant("b")]]
    )
    assert batch["image_tokens"].tolist() == [list(range(L))] and batch["feature_pixel_values"].shape[0] == 2


@pytest.mark.parametrize(
    "image_inputs, arguments, message",
    [
        (["features"], {"feature_stride": None}, r"image_inputs is \['features'\], but feature_stride is None"),
        (["pixels"], {}, r"image_inputs holds \['pixels'\]: choose of codes, latents, features"),
        ([], {}, r"image_inputs is \[\]"),
        (["codes", "latents"], {}, r"image_inputs is \['codes', 'latents'\]: an image has slots once"),
        (["features"], {"feature_size": {"height": 8, "width": 10}}, "'width': 10}, feature_stride is 4"),
        (["features"], {"feature_size": {"height": 8}}, "'height': 8}, feature_stride is 4"),
        (["features"], {"feature_size": 8}, "feature_size is 8, feature_stride is 4"),
    ],
)
def test_image_inputs_that_make_no_sense_are_refused(make_processor, image_inputs, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_processor(image_inputs, **arguments)


@pytest.mark.parametrize(
    "image_inputs, row, message",
    [
        (["features"], [user(np.arange(4)), assistant("a")], "image 0 .* by image_tokens: pass `image` as well"),
        (["features", "latents"], [user(np.ones((4, 2))), assistant("a")], "image 0 .* pass `image` as well"),
        (["features"], [user({}), assistant("a")], "image 0 of the batch is given by nothing"),
        (
            ["features"],
            [user(Image.new("RGB", (8, 8))), assistant(np.arange(4), Image.new("RGB", (8, 8)))],
            "image 2 of the batch is given by image, image 1 by image_tokens",
        ),
        (["latents"], [assistant(np.ones((4, 2)), np.ones((4, 3)))], r"image 1 .*\[4, 3\].* image 0 have \[4, 2\]"),
        (["latents"], [assistant(np.ones((4, 2)), np.arange(4))], r"image 1 .*\[4\].* image 0 have \[4, 2\]"),
        (["features"], [user("a"), assistant({}), user(FEATURE)], "image 0 of the batch is given by nothing"),
        (["features"], [user(FEATURE)], "conversation 0 writes .*image_feature.* out"),
        (["features"], [user(Image.new("RGB", (8, 8)), {"image": "no.png"})], r"image 1 \(no.png\) cannot be read"),
    ],
)
def test_bad_images_of_a_features_model_are_named(make_processor, image_inputs, row, message):
    with pytest.raises(ValueError, match=message):
        make_processor(image_inputs).encode_conversations([row])


def test_a_view_that_the_feature_stride_does_not_divide_is_refused(make_processor, make_image):
    processor = make_processor(["features", "latents"])
    with pytest.raises(ValueError, match="view for features: image 0 would be 8x6 .* stride of 4"):
        processor(images=make_image(), text=SLOT, size={"height": 8, "width": 6})


def test_features_count_for_the_context(make_processor, make_image):
    processor = make_processor(["features"])
    with pytest.raises(ValueError, match="image_feature"):
        processor(images=make_image(), text=SLOT + "a", truncation=True, max_length=5)
    processor.tokenizer.model_max_length = 7
    with pytest.raises(ValueError, match="text 0 has 8 tokens with its images, but the model takes 7"):
        processor(images=make_image(), text=SLOT + "a")


# --- training batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_equals_its_rows(tiny_processor, make_image, side):
    rows = conversations(make_image)
    batch = tiny_processor.encode_conversations(rows, padding_side=side)
    for i, row in enumerate(rows):
        alone = tiny_processor.encode_conversations([row])
        real = batch["attention_mask"][i].bool()
        assert real[0 if side == "right" else -1]
        assert batch["input_ids"][i][real].tolist() == alone["input_ids"][0].tolist()
        assert batch["labels"][i][real].tolist() == alone["labels"][0].tolist()
        assert (batch["labels"][i][~real] == -100).all()
        assert (batch["input_ids"][i][~real] == tiny_processor.tokenizer.pad_token_id).all()
    assert all(batch[key].dtype == torch.int64 for key in ("input_ids", "attention_mask", "labels"))


def test_codes_instead_of_pixels(tiny_processor, make_image):
    codes = [np.arange(L, dtype=np.uint16), torch.arange(L) + 1]
    with_codes = tiny_processor.encode_conversations(
        [[user(codes[0]), assistant("a")], [user("b"), assistant(codes[1])]]
    )
    with_pixels = tiny_processor.encode_conversations(
        [[user(make_image()), assistant("a")], [user("b"), assistant(make_image())]]
    )
    assert with_codes["image_tokens"].tolist() == [list(range(L)), list(range(1, L + 1))]
    assert with_codes["image_tokens"].dtype == torch.int64 and "pixel_values" not in with_codes
    assert (with_codes["input_ids"] == with_pixels["input_ids"]).all()


def test_a_batch_without_images(tiny_processor):
    assert set(tiny_processor.encode_conversations([[assistant("a")]])) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize(
    "rows, arguments, message",
    [
        (
            [[assistant("a")], [assistant("a a a a")]],
            {"max_length": 5},
            r"conversation 1 has \d+ tokens, but max_length is 5",
        ),
        (
            [[user(np.arange(4)), assistant("a")], [user(np.arange(5)), assistant("a")]],
            {},
            r"image 1 .*\[5\].* have \[4\]",
        ),
        ([[user(np.arange(4.0)), assistant("a")]], {}, "image 0 of the batch are float64"),
        ([[user(np.zeros((2, 2), int)), assistant("a")]], {}, r"shape \[2, 2\]"),
        ([[user(np.arange(4), Image.new("RGB", (8, 8)))]], {}, "image 1 .* given by image, image 0 by image_tokens"),
        (
            [[user("a")], [{"role": "user", "content": [{"type": "image"}]}]],
            {},
            "image 0 of the batch is given by nothing",
        ),
        ([[user("a")], [{"role": "robot", "content": "a"}]], {}, "conversation 1: message 0 has the role 'robot'"),
        ([[user("a")], [assistant("b [EOS] c")]], {}, r"conversation 1 writes \[EOS\] out"),
        ([[user("a")]], {"padding_side": "middle"}, "'middle'"),
    ],
)
def test_bad_rows_are_named(tiny_processor, rows, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor.encode_conversations(rows, **arguments)


# --- outputs -------------------------------------------------------------------------------------------------------


def test_text_output_leaves_image_codes_out(tiny_processor):
    tokenizer = tiny_processor.tokenizer
    ids = tokenizer("a cat")["input_ids"] + [tokenizer.boi_token_id, len(tokenizer), len(tokenizer) + 15]
    for sequences in (torch.tensor([ids]), torch.tensor(ids), [ids], ids):
        assert tiny_processor.post_process_multimodal_output(sequences) == ["a cat"]
        assert tiny_processor.post_process_image_text_to_text(sequences) == ["a cat"]
    assert tiny_processor.post_process_image_text_to_text([ids], skip_special_tokens=False) == ["[SOS]a cat[SOI]"]


def test_image_output(tiny_processor, make_image):
    images = [make_image(seed) for seed in range(2)]
    pixels = tiny_processor.image_processor(images, return_tensors="pt")["pixel_values"]
    for given in (pixels, list(pixels), [[pixels[0]], [pixels[1]]]):
        back = tiny_processor.post_process_multimodal_output(given, generation_mode="image")
        assert [np.array_equal(a, b) for a, b in zip(back, images, strict=True)] == [True, True]


def interleaved(processor, *parts):
    """Ids of one row: a str is text, True a generated image, False an image of the prompt."""
    tokenizer = processor.tokenizer
    ids = [tokenizer.bos_token_id]
    for value in parts:
        if isinstance(value, str):
            ids += tokenizer(value, add_special_tokens=False)["input_ids"]
        else:
            ids += [tokenizer.boi_token_id, *([len(tokenizer) if value else tokenizer.image_token_id] * 16)]
            ids += [tokenizer.eoi_token_id]
    return [*ids, tokenizer.eos_token_id]


def test_interleaved_output(tiny_processor, make_image):
    a, b = make_image(0), make_image(1)
    pixels = list(tiny_processor.image_processor([a, b], return_tensors="pt")["pixel_values"])
    rows = [interleaved(tiny_processor, False, "one", True, True, "two"), interleaved(tiny_processor, "three")]
    rows[1] += [tiny_processor.tokenizer.pad_token_id] * (len(rows[0]) - len(rows[1]))
    outputs = tiny_processor.post_process_multimodal_output(
        torch.tensor(rows), images=[pixels, []], generation_mode="interleaved"
    )
    assert [[type(p) for p in row] for row in outputs] == [[str, Image.Image, Image.Image, str], [str]]
    assert (outputs[0][0], outputs[0][3], outputs[1][0]) == ("one", "two", "three")
    assert np.array_equal(outputs[0][1], a) and np.array_equal(outputs[0][2], b)


def test_output_that_disagrees_with_its_images_is_refused(tiny_processor):
    row = interleaved(tiny_processor, True)

    def process(ids, images):
        return tiny_processor.post_process_multimodal_output([ids], images=images, generation_mode="interleaved")

    with pytest.raises(ValueError, match="sequence 0: the ids hold 1 generated images, but 2 images are given"):
        process(row, [[torch.zeros(3, 8, 8)] * 2])
    with pytest.raises(ValueError, match="1 sequences but images of 2 rows"):
        process(row, [[], []])
    with pytest.raises(ValueError, match="sequence 0: the sequence of 10 ids ends inside the image that begins at 1"):
        process(row[:10], [[]])
    with pytest.raises(ValueError, match="generation_mode is 'video'"):
        tiny_processor.post_process_multimodal_output([row], generation_mode="video")


def test_generated_vectors_have_no_text(make_processor, make_image):
    processor = make_processor(["features"])
    tokenizer = processor.tokenizer
    frame = [tokenizer.boi_token_id], [tokenizer.eoi_token_id]
    given = [*frame[0], *[tokenizer.image_feature_token_id] * M, *frame[1]]
    drawn = [*frame[0], *[tokenizer.mask_token_id] * L, *frame[1]]
    words = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("one", "two")]
    row = [tokenizer.bos_token_id, *given, *words[0], *drawn, *words[1], tokenizer.eos_token_id]
    assert processor.post_process_image_text_to_text([row]) == ["onetwo"]
    (pixels,) = processor.image_processor(make_image(), return_tensors="pt")["pixel_values"]
    (parts,) = processor.post_process_multimodal_output([row], images=[[pixels]], generation_mode="interleaved")
    assert (parts[0], parts[2]) == ("one", "two") and np.array_equal(parts[1], make_image())


# --- construction, saving ------------------------------------------------------------------------------------------


def test_the_stride_is_one_number(tiny_tokenizer):
    assert UnifiedProcessor(UnifiedImageProcessor(), tiny_tokenizer).image_stride == 8
    assert UnifiedProcessor(UnifiedImageProcessor(stride=16), tiny_tokenizer).image_stride == 16
    assert UnifiedProcessor(UnifiedImageProcessor(), tiny_tokenizer, image_stride=4).image_processor.stride == 4


def test_a_tokenizer_without_the_special_tokens_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="[PAD]")
    with pytest.raises(ValueError, match="no bos_token, eos_token, mask_token, boi_token"):
        UnifiedProcessor(UnifiedImageProcessor(), plain)


def test_how_images_are_read_is_saved(make_processor, make_image, tmp_path):
    import modeling_unified  # noqa: F401  # registers the image processor's class

    size = {"height": 12, "width": 8}
    processor = make_processor(["features", "latents"], feature_size=size)
    processor.save_pretrained(tmp_path)
    again = UnifiedProcessor.from_pretrained(tmp_path)
    assert (again.image_inputs, again.feature_stride, again.feature_size) == (["features", "latents"], 4, size)
    inputs, reloaded = (p(images=make_image(), text=SLOT) for p in (processor, again))
    assert set(inputs) == set(reloaded) and all(torch.equal(inputs[key], reloaded[key]) for key in inputs)


def test_a_processor_saved_before_there_were_features_loads(tiny_tokenizer, make_image, tmp_path):
    import modeling_unified  # noqa: F401

    card = Path(__file__).parents[2] / "model_cards" / "ugen-spark"
    config = json.loads((card / "processor_config.json").read_text())
    for name in ("image_inputs", "feature_stride", "feature_size"):
        config.pop(name, None)
    tiny_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    shutil.copy(card / "chat_template.jinja", tmp_path)
    processor = UnifiedProcessor.from_pretrained(tmp_path)
    assert (processor.image_inputs, processor.image_stride) == (["codes"], 8)
    conversation = [user(make_image(0, 50, 70), "how many?"), assistant("two", make_image(1))]
    chat = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    batch = processor.encode_conversations([conversation])
    image = f"[SOI]{'s' * 64}[EOI]"
    assert spell(processor, chat["input_ids"][0]) == f"[SOS]{image}how many?\ntwo{image}[EOS]"
    assert set(chat) == {"input_ids", "attention_mask", "pixel_values"} == set(batch) - {"labels"}
    assert all(torch.equal(batch[key], chat[key]) for key in chat)
    assert processor.model_input_names == ["pixel_values", "input_ids", "attention_mask"]


def test_saved_and_loaded_without_the_package(tiny_processor, make_image, tmp_path):
    folder = tmp_path / "saved"
    tiny_processor.save_pretrained(folder)
    assert {path.name for path in folder.glob("*.py")} == {
        "layout_unified.py",
        "image_processing_unified.py",
        "processing_unified.py",
    }
    make_image().save(tmp_path / "image.png")
    script = """
import json, sys
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
folder, image = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules"), type(processor)
processor.save_pretrained(folder + "-again")
processor = AutoProcessor.from_pretrained(folder + "-again", trust_remote_code=True)
chat = [{"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": "how many?"}]}]
inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
print(json.dumps({
    "input_ids": inputs["input_ids"].tolist(),
    "pixels": inputs["pixel_values"].tolist(),
    "stride": [processor.image_stride, AutoImageProcessor.from_pretrained(folder, trust_remote_code=True).stride],
    "chat": tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
    ),
}))
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(tmp_path / "image.png")],
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    output = json.loads(result.stdout.splitlines()[-1])
    chat = [user(make_image(), "how many?")]
    inputs = tiny_processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert output["input_ids"] == inputs["input_ids"].tolist()
    assert torch.equal(torch.tensor(output["pixels"]), inputs["pixel_values"])
    assert output["stride"] == [2, 2]
    assert output["chat"] == "[SOS]a\n"
