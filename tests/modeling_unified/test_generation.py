"""Decoding beyond the invariants: structure, interleaving, seeds, guidance, settings, streaming, bad input.

An untrained model writes anything; where a test needs text and images in a given order, a `Script` asks for them.
B batch, T sequence, L image tokens, H hidden size.
"""

from threading import Thread

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TextStreamer

from modeling_unified import UnifiedForConditionalGeneration, UnifiedGenerateOutput, UnifiedStreamer

L = 16


class Script(LogitsProcessor):
    """Asks for [SOI] when the sequence has one of the lengths `begins`; never lets it end."""

    def __init__(self, config, *begins: int):
        self.config, self.begins = config, begins

    def __call__(self, input_ids, scores):
        scores[:, [self.config.boi_token_id, self.config.eos_token_id]] = -torch.inf
        if input_ids.shape[1] in self.begins:
            scores[:, self.config.boi_token_id] = 1e4
        return scores


def scripted(model, *begins: int) -> LogitsProcessorList:
    return LogitsProcessorList([Script(model.config, *begins)])


def new_ids(sequences_BT, prompt) -> torch.Tensor:
    return sequences_BT[:, prompt["input_ids"].shape[1] :]


def check_structure(config, ids_T: torch.Tensor, length: int = L, whole: bool = True) -> int:
    """Counts the images of a row: exactly `length` codes in each, [SOI] before, [EOI] after, no code elsewhere."""
    ids, images, at = ids_T.tolist(), 0, 0
    while at < len(ids):
        if ids[at] == config.boi_token_id:
            assert all(i >= config.code_offset for i in ids[at + 1 : at + 1 + length])
            assert not whole or ids[at + 1 + length : at + 2 + length] == [config.eoi_token_id]
            images, at = images + 1, at + length + 2
        else:
            assert ids[at] < config.code_offset
            assert ids[at] not in (config.eoi_token_id, config.mask_token_id, config.image_token_id)
            assert ids[at] not in (config.image_feature_token_id, config.bos_token_id)
            at += 1
    return images


# Structure


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_an_image_is_exactly_its_grid(model, prompts, guidance_scale):
    prompt = prompts(*["a cat"] * 6)
    sequences = model.generate(**prompt, generation_mode="image", seed=0, guidance_scale=guidance_scale)
    for ids_T in new_ids(sequences, prompt):
        assert len(ids_T) == L + 2 and check_structure(model.config, ids_T) == 1


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_interleaved_rows_are_well_formed_whatever_the_model_predicts(model, prompts, guidance_scale):
    """Many seeds, [SOI] made likely; what is asked for ends at any place, also where an image would not fit."""
    config = model.config
    prompt, found = prompts("a cat", "two cats left of a pizza"), []
    settings = {"do_sample": True, "top_k": 0, "sequence_bias": [[[config.boi_token_id], 4.0]]}
    for seed, budget in enumerate((17, 18, 19, 40, 75)):
        sequences = model.generate(
            **prompt,
            **settings,
            generation_mode="interleaved",
            max_new_tokens=budget,
            seed=10 * seed,
            guidance_scale=guidance_scale,
        )
        for ids_T in new_ids(sequences, prompt):
            assert len(ids_T) <= budget
            text = ids_T[ids_T != config.pad_token_id]
            found.append((budget, check_structure(config, text)))
    assert max(found)[1] >= 2
    assert all(images == 0 for budget, images in found if budget < L + 2)


def test_text_image_text_in_one_call(model, prompts, tiny_processor):
    prompt = prompts("a cat")
    start = prompt["input_ids"].shape[1]
    output = model.generate(
        **prompt,
        generation_mode="interleaved",
        max_new_tokens=3 + L + 2 + 4,
        logits_processor=scripted(model, start + 3),
        seed=1,
        return_dict_in_generate=True,
    )
    assert isinstance(output, UnifiedGenerateOutput)
    (ids_T,) = new_ids(output.sequences, prompt)
    assert len(ids_T) == 3 + L + 2 + 4 and check_structure(model.config, ids_T) == 1
    assert ids_T[3] == model.config.boi_token_id and ids_T[3 + L + 1] == model.config.eoi_token_id
    ((pixels,),) = output.images
    assert torch.equal(pixels, model.decode_image_tokens(output.sequences)[0][0])
    (parts,) = tiny_processor.post_process_multimodal_output(
        output.sequences, images=output.images, generation_mode="interleaved"
    )
    assert [type(part) for part in parts] == [str, Image.Image, str]


@pytest.mark.parametrize("missing, images", [(0, 1), (1, 0)])
def test_an_image_that_does_not_fit_is_not_begun(model, prompts, missing, images):
    prompt = prompts("a cat")
    begin = prompt["input_ids"].shape[1] + 2
    sequences = model.generate(
        **prompt,
        generation_mode="interleaved",
        max_new_tokens=2 + L + 2 - missing,
        sequence_bias=[[[model.config.boi_token_id], 1000.0]],
        suppress_tokens=[model.config.eos_token_id],
        logits_processor=LogitsProcessorList([OnlyFrom(model.config.boi_token_id, begin)]),
    )
    (ids_T,) = new_ids(sequences, prompt)
    assert len(ids_T) == 2 + L + 2 - missing and check_structure(model.config, ids_T) == images


class OnlyFrom(LogitsProcessor):
    """Keeps `token` out of sequences shorter than `length`."""

    def __init__(self, token: int, length: int):
        self.token, self.length = token, length

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] < self.length:
            scores[:, self.token] = -torch.inf
        return scores


def test_without_a_budget_interleaved_ends_with_the_context(model, prompts):
    prompt = prompts("a cat")
    script = scripted(model, prompt["input_ids"].shape[1])
    sequences = model.generate(**prompt, generation_mode="interleaved", logits_processor=script)
    assert sequences.shape[1] == model.config.text_config.max_position_embeddings
    assert check_structure(model.config, new_ids(sequences, prompt)[0]) == 1


@pytest.mark.parametrize("seed", [None, 3])
def test_text_mode_writes_text_alone(model, prompts, seed):
    config, prompt = model.config, prompts("a cat", "two")
    hot = {"do_sample": True, "temperature": 50.0, "top_k": 0, "max_new_tokens": 100}
    for _ in range(3):
        ids = new_ids(model.generate(**prompt, **hot, seed=seed), prompt)
        assert ids.max() < config.code_offset and not (ids == config.boi_token_id).any()
        for ids_T in ids:
            check_structure(config, ids_T[ids_T != config.pad_token_id])


def test_rows_end_apart_and_are_padded(model, prompts):
    prompt, end_often = prompts("a cat", "two", "a", "b"), [[[model.config.eos_token_id], 3.0]]
    sequences = model.generate(**prompt, do_sample=True, seed=0, max_new_tokens=60, sequence_bias=end_often)
    ids = new_ids(sequences, prompt)
    ends = [int((ids_T == model.config.eos_token_id).nonzero()[0]) for ids_T in ids]
    assert min(ends) < max(ends) == ids.shape[1] - 1
    for ids_T, end in zip(ids, ends, strict=True):
        assert (ids_T[end + 1 :] == model.config.pad_token_id).all()


# Seeds


def test_the_same_seed_gives_the_same_image_at_any_place_of_any_batch(model, prompts):
    def draw(texts, seed):
        return model.generate(**prompts(*texts), generation_mode="image", seed=seed)[:, -L - 2 :]

    alone = draw(["a cat"], 5)[0]
    assert torch.equal(draw(["two cats left of it", "a cat", "b"], [1, 5, 1])[1], alone)
    assert torch.equal(draw(["a cat", "a cat"], [5, 5]), alone.expand(2, -1))
    counted = draw(["a cat"] * 3, 4)  # an int counts up: 4, 5, 6
    assert torch.equal(counted[1], alone) and not torch.equal(counted[0], alone)
    assert torch.equal(counted, draw(["a cat"] * 3, [4, 5, 6]))


def test_without_a_seed_the_global_one_decides(model, prompts):
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model.generate(**prompts("a cat"), generation_mode="image"))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_seed_makes_text_repeatable(model, prompts):
    prompt = prompts("a cat", "two cats")
    settings = {"do_sample": True, "max_new_tokens": 20}
    first, again, other = (model.generate(**prompt, **settings, seed=seed) for seed in (3, 3, 30))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(model.generate(**prompt, seed=3, max_new_tokens=9), model.generate(**prompt, max_new_tokens=9))


@pytest.mark.parametrize("seed, rows", [([1], 1), ([1, 2, 3], 3)])
def test_there_is_one_seed_for_each_row(model, prompts, seed, rows):
    with pytest.raises(ValueError, match=f"{rows} seeds for 2 rows: pass one seed for each image"):
        model.generate(**prompts("a", "b"), generation_mode="image", seed=seed)


@pytest.mark.parametrize("given", ["argument", "generation_config"])
def test_several_images_of_one_prompt(model, prompts, given):
    if given == "argument":
        arguments = {"num_return_sequences": 2}
    else:
        arguments = {"generation_config": GenerationConfig(num_return_sequences=2, do_sample=True)}
    sequences = model.generate(**prompts("a cat", "two cats"), generation_mode="image", seed=[4, 5, 6, 7], **arguments)
    for row, (text, seed) in enumerate([("a cat", 4), ("a cat", 5), ("two cats", 6), ("two cats", 7)]):
        alone = model.generate(**prompts(text), generation_mode="image", seed=seed)
        assert torch.equal(sequences[row, -L - 2 :], alone[0, -L - 2 :])


def test_several_answers_about_images(model, tiny_processor, make_codes):
    """Rows with two images and one: each is repeated with its own row."""
    slot = tiny_processor.tokenizer.image_token * L
    inputs = tiny_processor.tokenizer([f"{slot}and{slot}", f"{slot}a"], return_tensors="pt", padding=True)
    images = torch.stack([make_codes(seed) for seed in range(3)])
    arguments = {"image_tokens": images, "do_sample": True, "max_new_tokens": 8}
    inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    repeated = model.generate(**inputs, **arguments, seed=[1, 2, 3, 4], num_return_sequences=2)
    for offset in (0, 1):
        once = model.generate(**inputs, **arguments, seed=[1 + offset, 3 + offset])
        width = min(once.shape[1], repeated.shape[1])
        assert torch.equal(repeated[offset::2, :width], once[:, :width])


# Guidance


def test_guidance_moves_from_the_unconditional_to_the_conditional_image(model, prompts):
    def draw(text, scale):
        return model.generate(**prompts(text), generation_mode="image", seed=1, guidance_scale=scale)[:, -L - 2 :]

    plain = model.generate(**prompts("a cat"), generation_mode="image", seed=1)[:, -L - 2 :]
    assert torch.equal(draw("a cat", 1.0), plain)
    assert torch.equal(draw("a cat", 0.0), draw("", 1.0))  # the empty prompt is [SOS] alone
    assert not torch.equal(draw("a cat", 4.0), plain)


def test_negative_prompts(model, prompts):
    prompt, negative = prompts("a cat", "two"), prompts("the pizza", "it")
    settings = {"generation_mode": "image", "seed": 1, "guidance_scale": 3.0}

    def draw(negative_ids, mask=None, **overrides):
        arguments = {"negative_prompt_ids": negative_ids, "negative_prompt_attention_mask": mask}
        return model.generate(**prompt, **settings | arguments | overrides)[:, -L - 2 :]

    guided = draw(negative["input_ids"], negative["attention_mask"])
    for row, (text, against) in enumerate([("a cat", "the pizza"), ("two", "it")]):  # padding is no part of a prompt
        alone = model.generate(
            **prompts(text), **settings | {"seed": 1 + row}, negative_prompt_ids=prompts(against)["input_ids"]
        )
        assert torch.equal(guided[row], alone[0, -L - 2 :])
    none = draw(None)
    assert not torch.equal(guided, none)
    assert torch.equal(draw(torch.full((2, 1), model.config.bos_token_id)), none)
    one = prompts("it")["input_ids"]
    assert torch.equal(draw(one), draw(one.expand(2, -1)))  # one for all rows
    assert torch.equal(draw(prompt["input_ids"], prompt["attention_mask"]), draw(None, guidance_scale=1.0))
    repeated = draw(negative["input_ids"], negative["attention_mask"], seed=[8, 1, 2, 9], num_return_sequences=2)
    assert torch.equal(repeated[[1, 2]], guided)  # each prompt's images have its own negative prompt
    with pytest.raises(ValueError, match="3 negative prompts for 2 rows"):
        draw(one.expand(3, -1))


def test_an_unconditional_row_forgets_whole_images(model, prompts):
    """The second image of a row: its unconditional hidden states are those of [SOS] [SOI] and its own tokens."""
    prompt, steps = prompts("a cat"), []
    start = prompt["input_ids"].shape[1]
    handle = model.model.register_forward_hook(lambda module, args, out: steps.append(out.last_hidden_state[1, -1]))
    begins = (start + 2, start + 2 + L + 2 + 3)
    sequences = model.generate(
        **prompt,
        generation_mode="interleaved",
        guidance_scale=3.0,
        max_new_tokens=2 * (L + 2) + 7,
        logits_processor=scripted(model, *begins),
        seed=1,
    )
    handle.remove()
    assert check_structure(model.config, new_ids(sequences, prompt)[0]) == 2
    config = model.config
    codes_NL = torch.stack([sequences[0, begin + 1 : begin + 1 + L] for begin in begins]) - config.code_offset
    assert not torch.equal(*codes_NL)
    fresh_ids = [config.bos_token_id, config.boi_token_id] + [config.image_token_id] * L
    for begin, codes_L in zip(begins, codes_NL, strict=True):
        fresh = model.model(torch.tensor([fresh_ids]), image_tokens=codes_L[None]).last_hidden_state[0, 1:]
        # Step s reads position start - 1 + s: the step that reads [SOI] is begin + 1 - start.
        drawn = torch.stack(steps[begin + 1 - start :][: L + 1])
        torch.testing.assert_close(drawn, fresh, atol=1e-5, rtol=1e-5)


# Settings


def test_sampling_of_images_by_argument_and_by_dictionary(model, prompts):
    prompt = prompts("a cat")

    def draw(**arguments):
        return model.generate(**prompt, generation_mode="image", seed=1, **arguments)

    greedy = draw(do_sample=False)
    assert not torch.equal(greedy, draw())
    for same in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}, {"image_sampling": {"do_sample": False}}):
        assert torch.equal(draw(**same), greedy)
    assert torch.equal(draw(image_sampling={"guidance_scale": 3.0}), draw(guidance_scale=3.0))
    # The more specific wins: an argument of the call over the dictionary.
    assert torch.equal(draw(top_k=1, image_sampling={"top_k": 5}), greedy)
    assert torch.equal(draw(guidance_scale=1.0, image_sampling={"guidance_scale": 3.0}), draw())


def test_text_settings_do_not_touch_images(model, prompts):
    prompt = prompts("a cat")
    start = prompt["input_ids"].shape[1]
    arguments = {"generation_mode": "interleaved", "max_new_tokens": L + 2, "seed": 1, "do_sample": True}
    arguments["logits_processor"] = scripted(model, start)
    sampled = model.generate(**prompt, **arguments)
    assert torch.equal(sampled, model.generate(**prompt, **arguments, temperature=1e-4, top_k=1))
    greedy = model.generate(**prompt, **arguments, image_sampling={"do_sample": False})
    assert not torch.equal(sampled, greedy)
    assert torch.equal(greedy, model.generate(**prompt, generation_mode="image", do_sample=False))


def test_image_defaults_live_in_the_generation_config(model, prompts, tmp_path):
    prompt = prompts("a cat")
    greedy = model.generate(**prompt, generation_mode="image", do_sample=False, guidance_scale=3.0)
    model.generation_config.image_sampling = {"do_sample": False, "guidance_scale": 3.0}
    model.save_pretrained(tmp_path)
    back = UnifiedForConditionalGeneration.from_pretrained(tmp_path)
    assert back.generation_config.image_sampling == {"do_sample": False, "guidance_scale": 3.0}
    assert torch.equal(back.generate(**prompt, generation_mode="image"), greedy)
    assert not torch.equal(back.generate(**prompt, generation_mode="image", guidance_scale=1.0), greedy)
    own = GenerationConfig(image_sampling={"do_sample": False})
    plain = back.generate(**prompt, generation_mode="image", do_sample=False, guidance_scale=1.0)
    assert torch.equal(back.generate(**prompt, generation_mode="image", generation_config=own), plain)


@pytest.mark.parametrize("height, width", [(8, 12), (4, 4), (12, 2)])
def test_another_size(model, prompts, tiny_processor, height, width):
    prompt, length = prompts("a cat", "two"), height * width // 4
    sequences = model.generate(**prompt, generation_mode="image", image_size=(height, width), seed=0)
    for ids_T in new_ids(sequences, prompt):
        assert len(ids_T) == length + 2 and check_structure(model.config, ids_T, length) == 1
    for images in model.decode_image_tokens(sequences, image_size=(height, width)):
        assert [image.shape for image in images] == [(3, height, width)]
    if length % L:
        with pytest.raises(ValueError, match=f"{length} image codes are not whole images of {L}: pass their"):
            model.decode_image_tokens(sequences)


def test_a_prompt_that_ends_in_begin_of_image_is_taken_as_it_is(model, prompts, tiny_processor):
    boi = tiny_processor.tokenizer.boi_token
    with_it = model.generate(**prompts(f"a cat{boi}", f"two{boi}"), generation_mode="image", seed=1)
    assert torch.equal(with_it, model.generate(**prompts("a cat", "two"), generation_mode="image", seed=1))
    with pytest.raises(ValueError, match="1 of 2 prompts end in .*boi_token_id"):
        model.generate(**prompts(f"a cat{boi}", "two"), generation_mode="image")


def test_inactive_codes_are_never_drawn(model, prompts):
    active = model.model.image_head.active_codes
    active[1::2] = False
    settings = {"generation_mode": "image", "seed": 0, "temperature": 100.0}
    for scale in (1.0, 3.0):
        sequences = model.generate(**prompts(*["a cat"] * 8), **settings, guidance_scale=scale)
        codes = sequences[:, -L - 1 : -1] - model.config.code_offset
        assert codes.unique().tolist() == list(range(0, 16, 2))


def test_image_mode_multiplies_the_rows_of_the_codes_alone(model, prompts):
    prompt = prompts("a cat")
    settings = {"generation_mode": "image", "seed": 1, "guidance_scale": 2.0}
    before = model.generate(**prompt, **settings)
    with torch.no_grad():
        model.lm_head.weight[: model.config.code_offset] = torch.nan
    assert torch.equal(model.generate(**prompt, **settings), before)


def test_images_in_the_prompt_as_pixels_or_tokens(model, tiny_processor, make_image):
    """In every mode; with guidance the unconditional rows have no image."""
    inputs = tiny_processor(images=make_image(1), text="<|image_slot|>draw it again")
    tokens = model.encode_images(inputs["pixel_values"])
    ids = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    for mode in ("text", "image", "interleaved"):
        settings = {"generation_mode": mode, "seed": 1, "guidance_scale": 1.0 if mode == "text" else 2.0}
        settings |= {} if mode == "image" else {"max_new_tokens": 8}
        by_pixels = model.generate(**inputs, **settings)
        assert torch.equal(by_pixels, model.generate(**ids, image_tokens=tokens, **settings))
        other = model.generate(**ids, image_tokens=(tokens + 3) % 16, **settings)
        assert not torch.equal(by_pixels, other)


def test_beams_in_text_mode(model, prompts):
    prompt = prompts("a cat", "two")
    sequences = model.generate(**prompt, num_beams=3, num_return_sequences=2, max_new_tokens=10, do_sample=False)
    assert len(sequences) == 4 and new_ids(sequences, prompt).max() < model.config.code_offset


def test_guidance_in_text_mode_is_that_of_transformers(model, prompts):
    prompt, negative = prompts("a cat"), prompts("the pizza")["input_ids"]
    settings = {"max_new_tokens": 10, "do_sample": False}
    plain = model.generate(**prompt, **settings)
    guided = model.generate(**prompt, **settings, guidance_scale=4.0)
    against = model.generate(**prompt, **settings, guidance_scale=4.0, negative_prompt_ids=negative)
    assert not torch.equal(guided, plain) and not torch.equal(against, guided)
    with pytest.raises(ValueError, match="guidance_scale 4.0 .*seed"):
        model.generate(**prompt, **settings, guidance_scale=4.0, seed=1)


# Bad input


def test_what_cannot_be_asked_for(model, prompts):
    prompt = prompts("a cat")
    for arguments, message in (
        ({"generation_mode": "video"}, "generation_mode 'video': choose one of text, image, interleaved"),
        ({"generation_mode": "image", "guidance_scale": -1.0}, "guidance_scale -1.0 must not be negative"),
        ({"generation_mode": "image", "image_sampling": {"tok_p": 1}}, r"image_sampling has no \['tok_p'\]"),
        ({"generation_mode": "image", "image_size": (7, 8)}, "image size 7x8 is not a multiple"),
        ({"generation_mode": "image", "num_beams": 2}, "num_beams 2: beams exist only in 'text' mode"),
        ({"generation_mode": "image", "temperature": 0.0}, "temperature"),
        ({"generation_mode": "image", "colour": "red"}, "colour"),
        ({"generation_mode": "image", "image_size": (64, 64)}, "1025 to generate exceed the context of 256"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**prompt, **arguments)
    with pytest.raises(ValueError, match="generation_mode 'image' needs input_ids"):
        model.generate(generation_mode="image")


@pytest.mark.parametrize("mode, length", [("text", 256), ("interleaved", 256), ("image", 256 - L - 1)])
def test_a_prompt_longer_than_the_context_is_refused(model, mode, length):
    prompt = torch.full((1, length), 50)
    with pytest.raises(ValueError, match=f"a prompt of {length + (mode == 'image')} tokens and .* context of 256"):
        model.generate(prompt, generation_mode=mode)
    if mode == "image":
        assert model.generate(prompt[:, 1:], generation_mode=mode).shape == (1, 256)


def test_slots_and_images_that_disagree_are_refused(model, tiny_processor, make_codes):
    ids = tiny_processor.tokenizer(tiny_processor.tokenizer.image_token * L, return_tensors="pt")["input_ids"]
    for mode in ("text", "image", "interleaved"):
        for images, tokens in ((None, 0), (torch.stack([make_codes(1)] * 2), 2 * L)):
            with pytest.raises(ValueError, match=f"{L} image slots .* but the images have {tokens} tokens"):
                model.generate(ids, generation_mode=mode, image_tokens=images, max_new_tokens=L)


def test_a_sequence_that_ends_inside_an_image_is_no_image(model, prompts):
    sequences = model.generate(**prompts("a cat"), generation_mode="image", seed=0)
    with pytest.raises(ValueError, match="14 image codes are not whole images of 16"):
        model.decode_image_tokens(sequences[:, :-3])


# Streaming


def stream(model, streamer, **arguments) -> list:
    thread = Thread(target=model.generate, kwargs=arguments | {"streamer": streamer})
    thread.start()
    parts = list(streamer)
    thread.join()
    return parts


def test_streamed_text_and_images_come_in_order(model, prompts, tiny_processor):
    prompt = prompts("a cat")
    start = prompt["input_ids"].shape[1]
    arguments = {**prompt, "generation_mode": "interleaved", "max_new_tokens": 3 + 2 * (L + 2) + 6, "seed": 1}
    arguments["logits_processor"] = scripted(model, start + 3, start + 3 + L + 2)  # text, two images, text
    parts = stream(model, UnifiedStreamer(tiny_processor, timeout=60), **arguments)
    output = model.generate(**arguments, return_dict_in_generate=True)
    (expected,) = tiny_processor.post_process_multimodal_output(
        output.sequences[:, start:], images=output.images, generation_mode="interleaved"
    )
    assert [type(part) for part in expected] == [str, Image.Image, Image.Image, str]
    joined = [""]
    for part in parts:
        if isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    assert joined == expected


@pytest.mark.parametrize("seed", [None, 1])
def test_streamed_text(model, prompts, tiny_processor, seed):
    prompt = prompts("a cat")
    arguments = {**prompt, "max_new_tokens": 12, "seed": seed, "do_sample": seed is not None}
    parts = stream(model, UnifiedStreamer(tiny_processor, timeout=60), **arguments)
    written = new_ids(model.generate(**arguments), prompt)
    assert "".join(parts) == tiny_processor.tokenizer.decode(written[0], skip_special_tokens=True)


def test_a_streamer_of_text_alone_sees_the_text_of_an_interleaved_row(model, prompts, tiny_processor, capsys):
    prompt = prompts("a cat")
    start = prompt["input_ids"].shape[1]
    arguments = {**prompt, "generation_mode": "interleaved", "max_new_tokens": 3 + L + 2 + 3, "seed": 1}
    arguments["logits_processor"] = scripted(model, start + 3)
    streamer = TextStreamer(tiny_processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    sequences = model.generate(**arguments, streamer=streamer)
    text = tiny_processor.post_process_multimodal_output(sequences[:, start:])[0]
    assert capsys.readouterr().out == text + "\n"


def test_a_streamer_follows_one_row(model, prompts, tiny_processor):
    streamer = UnifiedStreamer(tiny_processor)
    ours, theirs = "a streamer follows one row, not 2", "batch size 1"
    asked = ((ours, {"generation_mode": "image"}), (ours, {"generation_mode": "interleaved"}), (ours, {"seed": 1}))
    for message, arguments in (*asked, (theirs, {})):
        with pytest.raises(ValueError, match=message):
            model.generate(**prompts("a", "b"), **arguments, streamer=streamer, max_new_tokens=2)
