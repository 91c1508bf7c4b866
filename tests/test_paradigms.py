"""The invariants of the design, over every row of `PARADIGMS` whose parts exist, with tiny real parts.

What a row cannot do yet is refused by name. The fixture `model` is a random model of each row in turn, with weights
wide enough that its predictions differ from place to place.

B batch, T sequence, H hidden size, L image tokens, S positions of an image, N images.
"""

import copy

import pytest
import torch
from transformers import AutoModelForMultimodalLM

from modeling_unified import PARADIGMS, UnifiedConfig, UnifiedForConditionalGeneration
from modeling_unified.configuration_unified import PARTS

L = 16
MODES = [("text", 1.0), ("image", 1.0), ("image", 3.0), ("interleaved", 1.0), ("interleaved", 3.0)]
TEXTS = ["two cats", "a red heart above a blue circle", "a"]
# Rows of the table, and more combinations of their parts: what is read twice, codes in random order.
OVERRIDES = {
    "unifluid-editing": {"image_inputs": ["features", "latents"]},
    "ugen-features": {"image_inputs": ["codes", "features"]},
    "ugen-random": {"image_order": "random"},
    "unitoken-tiles": {  # of 4 pixels, 2x2 of which are an image
        "tile_grids": [[2, 1], [1, 2], [2, 2]],
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 4, "patch_size": 2, "vision_use_head": False,
        },
    },
}  # fmt: skip


def parts(row: dict, axis: str) -> list[str]:
    return [row[axis]] if isinstance(row[axis], str) else row[axis]


def missing_parts(name: str) -> list[str]:
    return [part for axis in PARTS for part in parts(PARADIGMS[name], axis) if part not in PARTS[axis]]


READY = [name for name in PARADIGMS if not missing_parts(name)]
PLANNED = [name for name in PARADIGMS if missing_parts(name)]
ROWS = [*READY, *OVERRIDES]


def tiny_row(make_tiny_config, name: str) -> UnifiedConfig:
    paradigm, overrides = name.split("-")[0], OVERRIDES.get(name, {})
    if "features" in overrides.get("image_inputs", []):
        overrides = overrides | {"vision_config": make_tiny_config("unifluid").vision_config.to_dict()}
    return make_tiny_config(paradigm, **overrides)


def wide_model(config: UnifiedConfig) -> UnifiedForConditionalGeneration:
    """Backbone ten times wider than by default, and a head that is not zero where it starts at zero."""
    config.text_config.initializer_range = 0.2
    torch.manual_seed(0)
    model = UnifiedForConditionalGeneration(config).eval()
    for parameter in model.model.image_head.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture(params=ROWS)
def row(request):
    return request.param


@pytest.fixture
def model(row, make_tiny_config):
    return wide_model(tiny_row(make_tiny_config, row))


@pytest.fixture
def processor(model, make_tiny_processor):
    return make_tiny_processor(model.config)


def tokens(config: UnifiedConfig, seed: int) -> torch.Tensor:
    """Tokens of an image, [L] codes or [L, D] vectors."""
    generator = torch.Generator().manual_seed(seed)
    if config.num_codes:
        return torch.randint(config.num_codes, (L,), generator=generator)
    return torch.randn(L, config.codec_config.token_size, generator=generator)


def script(model) -> torch.Tensor:
    """Ids [S] between [SOI] and [EOI] of an image: its L slots, and what its order puts between them."""
    return model.model.image_order.script((4, 4))


def said(role: str, *content: dict) -> dict:
    return {"role": role, "content": list(content)}


def conversations(config: UnifiedConfig, make_image) -> dict[str, list[dict]]:
    """One conversation for each task; what is read comes as the model's encoders take it."""
    read = {"type": "image"}
    if "features" in config.image_inputs:
        read["image"] = make_image(1)
    if set(config.image_inputs) & {"codes", "latents"}:
        read["image_tokens"] = tokens(config, 1)
    drawn = {"type": "image", "image_tokens": tokens(config, 2)}

    def text(words: str) -> dict:
        return {"type": "text", "text": words}

    return {
        "text": [said("assistant", text("two cats left of a pizza"))],
        "caption": [said("user", read), said("assistant", text("a red heart"))],
        "image": [said("user", text("a blue circle")), said("assistant", drawn)],
        "edit": [said("user", read, text("make it blue")), said("assistant", drawn)],
    }


@pytest.fixture
def encode(model, processor, make_image):
    said_of = conversations(model.config, make_image)

    def encode(*tasks: str):
        return processor.encode_conversations([said_of[task] for task in tasks])

    return encode


def generate(model, **settings):
    return model.generate(**settings, return_dict_in_generate=True)


def same_images(first: list, second: list, tolerance: float = 0.0) -> bool:
    """Whether two rows hold the same images, in number and in pixels."""
    return len(first) == len(second) and all(
        torch.allclose(a, b, atol=tolerance, rtol=0) for a, b in zip(first, second, strict=True)
    )


def test_a_row_whose_parts_are_planned_is_refused_by_name():
    assert {"ugen", "unifluid", "uvu"} <= set(READY)
    for name in PLANNED:
        with pytest.raises(ValueError, match=f"there is no part '{missing_parts(name)[0]}'"):
            UnifiedConfig.for_paradigm(name)


def test_contract_shapes(model, processor, encode, make_image):
    batch = encode("text", "caption", "image")
    output = model(**batch)
    size, config = batch["input_ids"].shape, model.config
    assert output.loss.shape == () and output.logits.shape == (*size, config.text_config.vocab_size)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    assert model.model(**inputs).last_hidden_state.shape == (*size, 32)
    written = int((batch["labels"] == config.image_token_id).sum())
    assert output.image_loss.shape == (written,) == (L,) and output.image_loss.dtype == torch.float32
    assert output.text_loss.shape == (int((batch["labels"] != -100).sum()) - L,)

    pixels = processor.image_processor([make_image(1), make_image(2)], return_tensors="pt")["pixel_values"]
    codec = model.model.codec
    tokens_NL = codec.encode(pixels)
    assert tokens_NL.shape[:2] == (2, L) and tokens_NL.shape[2:] == tokens(config, 0).shape[1:]
    assert codec.grid(8, 8) == (4, 4) and codec.decode(tokens_NL, (4, 4)).shape == pixels.shape
    assert model.model.embed_image_tokens(tokens_NL).shape == (2, L, 32)
    assert model.model.image_order.draw(2, L, torch.device("cpu")).shape == (2, L)

    prompt = processor(text=TEXTS)
    drawn = generate(model, **prompt, generation_mode="image", seed=0)
    assert drawn.sequences.shape == (3, prompt["input_ids"].shape[1] + 1 + len(script(model)) + 1)
    assert [[image.shape for image in images] for images in drawn.images] == [[(3, 8, 8)]] * 3
    assert [[drawn.shape for drawn in row] for row in drawn.image_tokens] == [[tokens_NL[0].shape]] * 3


def test_an_encoder_gives_one_embedding_for_each_placeholder(model, processor, make_image):
    prompt = processor(images=[make_image(1)], text=processor.tokenizer.image_token)
    ids, config = prompt.pop("input_ids"), model.config
    placeholders = int(((ids == config.image_token_id) | (ids == config.image_feature_token_id)).sum())
    prompt.pop("attention_mask")
    (embeds_NH,) = model.get_image_features(**prompt).pooler_output
    assert len(embeds_NH) == placeholders == sum(e.num_tokens(8, 8) for e in model.model.encoders.values())
    for encoder in model.model.encoders.values():
        assert bool((ids == getattr(config, encoder.placeholder)).any())


def greedy(model) -> dict:
    """Image sampling without chance: the likeliest code, or no noise after the initial one."""
    return {"do_sample": False} if model.config.num_codes else {"temperature": 0.0, "num_inference_steps": 5}


def quick(model) -> dict:
    return {} if model.config.num_codes else {"num_inference_steps": 5}


def an_order(model, rows: int) -> torch.Tensor:
    """Permutations that the model can draw in."""
    generators = [torch.Generator().manual_seed(row) for row in range(rows)]
    return model.model.image_order.draw(rows, L, None, generators)


@pytest.mark.parametrize("chance", [False, True])
def test_the_sampling_path_equals_teacher_forcing(model, processor, chance):
    """The same tokens in the same order give the same hidden states, drawn one by one or read at once as slots."""
    prompt = processor(text=TEXTS[:2])
    order_BL = an_order(model, 2)
    steps = []
    handle = model.model.register_forward_hook(lambda module, args, out: steps.append(out.last_hidden_state[:, -1]))
    sampling = quick(model) if chance else greedy(model)
    drawn = generate(model, **prompt, generation_mode="image", seed=3, image_order=order_BL, image_sampling=sampling)
    handle.remove()
    script_S = script(model)
    drawn_BSH = torch.stack(steps, 1)[:, : len(script_S)]  # the last step only writes [EOI]
    image, before = slice(-len(script_S) - 1, -1), slice(-len(script_S) - 2, -2)

    for row, mask_T in enumerate(prompt["attention_mask"]):
        ids_T = drawn.sequences[row, int((mask_T == 0).sum()) :].clone()
        forced_S = script_S != model.config.image_token_id
        assert torch.equal(ids_T[image][forced_S], script_S[forced_S])
        ids_T[image] = script_S
        tokens_1L = drawn.image_tokens[row][0][None]
        inputs = {"input_ids": ids_T[None], "image_tokens": tokens_1L, "image_orders": order_BL[row : row + 1]}
        read = model(**inputs, output_hidden_states=True)
        torch.testing.assert_close(drawn_BSH[row], read.hidden_states[-1][0, before], atol=1e-5, rtol=1e-5)
        if model.config.num_codes and not chance:
            logits_LV = read.logits[0, before][~forced_S]
            assert torch.equal(logits_LV[:, model.config.code_offset :].argmax(-1), tokens_1L[0][order_BL[row]])
    all_tokens = torch.cat([row[0] for row in drawn.image_tokens])
    assert len(all_tokens.unique(dim=0)) > 4  # or else a shifted or permuted image would pass too


def test_the_order_of_the_drawn_tokens_matters_only_where_it_is_told(model, encode):
    """In a model of random order, another order changes what is predicted; its identity is raster, the default."""
    batch = encode("image")
    raster_NL = torch.arange(L)[None]
    states = {
        name: model(**batch, image_orders=order_NL, output_hidden_states=True).hidden_states[-1]
        for name, order_NL in (("raster", raster_NL), ("reversed", raster_NL.flip(1)))
    }
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    torch.testing.assert_close(model.model(**inputs).last_hidden_state, states["raster"])  # the default without labels
    first = int((batch["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    told = not torch.allclose(states["raster"][:, first - 1], states["reversed"][:, first - 1])
    assert told == (model.config.image_order == "random")
    assert torch.equal(states["raster"][:, : first - 1], states["reversed"][:, : first - 1])


def test_predicted_images_are_shuffled_and_read_ones_are_not(row, model, encode):
    """Labels decide: the targets of an image are a permutation of its tokens, a source keeps raster order."""
    batch = encode("edit", "image")
    slotted = batch["image_tokens"]
    orders_NL = model.orders_of(batch["input_ids"], batch["labels"], slotted)
    assert torch.equal(orders_NL.sort(-1).values, torch.arange(L).expand(len(slotted), L))
    read = [set(model.config.image_inputs) & {"codes", "latents"} != set() and n == 0 for n in range(len(slotted))]
    for source, order_L in zip(read, orders_NL, strict=True):
        in_raster = torch.equal(order_L, torch.arange(L))
        assert in_raster == (source or model.config.image_order != "random")


@pytest.mark.parametrize("mode, guidance_scale", MODES)
def test_with_cache_equals_without(model, processor, mode, guidance_scale):
    prompt = processor(text=TEXTS[:2])
    settings = draw_often(model, mode, guidance_scale)
    cached, recomputed = (generate(model, **prompt, **settings, use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(cached.sequences, recomputed.sequences)
    if mode != "text":
        assert all(map(same_images, cached.images, recomputed.images, [1e-3, 1e-3]))
        assert sum(map(len, cached.images))


@pytest.mark.parametrize("mode, guidance_scale", MODES)
def test_batched_equals_single(model, processor, mode, guidance_scale):
    """Prompts of three lengths, sampled: each row is what it is alone with the same seed."""
    prompt = processor(text=TEXTS)
    settings = draw_often(model, mode, guidance_scale)
    together = generate(model, **prompt, **settings | {"seed": [7, 8, 9]})
    width = prompt["input_ids"].shape[1]
    for row, text in enumerate(TEXTS):
        single = processor(text=text)
        alone = generate(model, **single, **settings | {"seed": 7 + row})
        alone_T = alone.sequences[0, single["input_ids"].shape[1] :]
        assert torch.equal(together.sequences[row, width : width + len(alone_T)], alone_T)
        assert (together.sequences[row, width + len(alone_T) :] == model.config.pad_token_id).all()
        if mode != "text":
            assert same_images(together.images[row], alone.images[0], 1e-3)
    assert mode == "text" or sum(map(len, together.images))


def draw_often(model, mode: str, guidance_scale: float) -> dict:
    """Arguments of `generate` under which an untrained model begins images now and then, and ends rarely."""
    settings = {"generation_mode": mode, "seed": 7, "do_sample": True}
    if mode != "text":
        settings |= {"guidance_scale": guidance_scale, "image_sampling": quick(model)}
    if mode != "image":
        bias = [[[model.config.boi_token_id], 6.0], [[model.config.eos_token_id], -2.0]]
        settings |= {"max_new_tokens": 60, "sequence_bias": bias, "top_k": 0}
    return settings


def test_greedy_batches_equal_single_rows_when_images_are_read(model, processor, make_image):
    """Rows with two images, one and none, in one left-padded batch; and each row twice."""
    image = processor.tokenizer.image_token
    texts = [f"{image}and{image}", f"{image}what is it", "no image"]
    images = [[make_image(1), make_image(2)], [make_image(3)], []]
    settings = {"max_new_tokens": 12, "do_sample": False, "num_return_sequences": 1}
    inputs = processor(images=images, text=texts)
    together = model.generate(**inputs, **settings)
    twice = model.generate(**inputs, **settings | {"num_return_sequences": 2, "do_sample": True, "top_k": 1})
    width = inputs["input_ids"].shape[1]
    for row, (text, own) in enumerate(zip(texts, images, strict=True)):
        single = processor(images=own or None, text=text)
        alone_T = model.generate(**single, **settings)[0, single["input_ids"].shape[1] :]
        for sequence_T in (together[row], twice[2 * row], twice[2 * row + 1]):
            assert torch.equal(sequence_T[width : width + len(alone_T)], alone_T)


def test_what_is_read_changes_what_is_written(model, processor, make_image):
    image = processor.tokenizer.image_token
    states = [model(**processor(images=[make_image(seed)], text=image + "what is it")).logits[0, -1] for seed in (1, 2)]
    assert not torch.allclose(*states)


def test_a_change_at_a_later_slot_leaves_earlier_hidden_states_alone(model, encode):
    batch = encode("image")
    batch.pop("labels")
    before = model.model(**batch).last_hidden_state
    changed = batch["image_tokens"].clone()
    changed[0, 5] = (changed[0, 5] + 1) % 16
    after = model.model(**batch | {"image_tokens": changed}).last_hidden_state
    slot = int((batch["input_ids"][0] == model.config.image_token_id).nonzero()[5])
    assert torch.equal(before[:, :slot], after[:, :slot])
    assert not torch.isclose(before[:, slot], after[:, slot]).all()


def gradients(model, batch) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    model.train()
    model(**batch).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# Parameters by what they serve: (prefix, the tasks that must send them gradient). Everything else must get it always.
SERVES = {
    "model.image_head.": {"image", "edit"},
    "model.image_order.": {"image", "edit"},
    "model.encoders.features.": {"caption", "edit"},
}


@pytest.mark.parametrize("task", ["text", "caption", "image", "edit"])
def test_every_trainable_parameter_learns_from_its_tasks_and_from_no_other(model, encode, task):
    reads_tokens = bool({"codes", "latents"} & set(model.config.image_inputs))
    for name, grad in gradients(model, encode(task)).items():
        if name.startswith("model.codec."):
            assert grad is None and not model.get_parameter(name).requires_grad
            continue
        tasks = next((served for prefix, served in SERVES.items() if name.startswith(prefix)), None)
        if reads_tokens and name.startswith(("model.image_head.token_embedding", "model.image_order.")):
            tasks = {"caption", "image", "edit"}  # a token that is read is embedded as one that is written
        if tasks is None or task in tasks:
            assert grad is not None and grad.any(), name
        else:
            assert grad is None or not grad.any(), name


def test_the_text_loss_leaves_the_image_head_alone_and_the_image_loss_the_lm_head(model, encode):
    """Of vectors: two heads, two losses. (Codes share one softmax with the text.)"""
    if model.config.num_codes:
        pytest.skip("one vocabulary, one softmax")
    batch = encode("image")
    for loss, silent in (("image_loss", "lm_head."), ("text_loss", "model.image_head.net.")):
        model.zero_grad()
        model(**batch)[loss].sum().backward()
        for name, parameter in model.named_parameters():
            if name.startswith(silent):
                assert parameter.grad is None or not parameter.grad.any(), name
        spoken = "model.image_head.net." if loss == "image_loss" else "lm_head."
        assert all(p.grad.any() for name, p in model.named_parameters() if name.startswith(spoken))


@pytest.fixture
def code_model(make_tiny_config):
    return wide_model(make_tiny_config("ugen"))


def test_rows_of_the_codes_learn_from_images_and_through_the_joint_softmax(code_model, make_image, make_tiny_processor):
    """Untied: a read image trains the embedding of its own codes; any target trains all rows of the softmax."""
    said_of = conversations(code_model.config, make_image)
    offset, read = code_model.config.code_offset, tokens(code_model.config, 1).unique()
    encode = make_tiny_processor().encode_conversations
    grads = {task: gradients(code_model, encode([said_of[task]])) for task in ("text", "caption")}
    embedding = {task: g["model.language_model.embed_tokens.weight"][offset:].any(-1) for task, g in grads.items()}
    assert not embedding["text"].any()
    assert torch.equal(embedding["caption"].nonzero()[:, 0], read)
    assert grads["text"]["lm_head.weight"].any(-1).all()


def test_rows_of_inactive_codes_learn_nothing(make_tiny_config, make_image, make_tiny_processor):
    """Tied, so that input and softmax share the rows: what is not in the vocabulary yet stays as it is."""
    model = wide_model(make_tiny_config("ugen", tie_word_embeddings=True))
    active = model.model.image_head.active_codes
    active[::2] = False
    said_of = conversations(model.config, make_image)
    grads = gradients(model, make_tiny_processor().encode_conversations([said_of[t] for t in said_of]))
    rows = grads["model.language_model.embed_tokens.weight"][model.config.code_offset :]
    assert torch.equal(rows.any(-1), active)


def steps_to_overfit(config: UnifiedConfig) -> int:
    """A code is learned by heart in few steps, in any order in more; a vector also at every noise level.

    Rows that input and softmax share take a little longer.
    """
    if not config.num_codes:
        return 500
    if config.image_order == "random":
        return 200
    return 120 if config.tie_word_embeddings else 80


@pytest.fixture(scope="module", params=ROWS)
def overfitted(request, make_tiny_config, make_tiny_processor, make_image):
    """A model that has learned one batch by heart, its processor, its conversations, its codec before the training."""
    torch.manual_seed(0)
    config = tiny_row(make_tiny_config, request.param)
    model = UnifiedForConditionalGeneration(config)
    codec = copy.deepcopy(model.model.codec.state_dict())
    said_of = conversations(config, make_image)
    processor = make_tiny_processor(config)
    batch = processor.encode_conversations([said_of[task] for task in ("text", "caption", "image")])
    steps = steps_to_overfit(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2 if config.num_codes else 4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval(), processor, said_of, codec, output


def test_one_batch_overfits(overfitted):
    model, _, _, _, output = overfitted
    assert output.text_loss.mean() < 0.05
    assert output.image_loss.mean() < (0.05 if model.config.num_codes else 0.2)  # noise is never wholly predicted


def test_a_frozen_codec_stays_bit_equal(overfitted):
    model, _, _, codec, _ = overfitted
    assert all(torch.equal(value, codec[key]) for key, value in model.model.codec.state_dict().items())


def test_a_learned_image_is_drawn_back(overfitted):
    model, processor, said_of, _, _ = overfitted
    prompt = processor.apply_chat_template(
        said_of["image"][:1], add_generation_prompt=True, generation_mode="image", tokenize=True, return_dict=True
    )
    still = {"do_sample": False} if model.config.num_codes else {"num_inference_steps": 100}
    drawn = generate(model, **prompt, generation_mode="image", seed=0, image_sampling=still)
    expected, found = tokens(model.config, 2), drawn.image_tokens[0][0]
    if model.config.num_codes:
        assert torch.equal(found, expected)
    else:
        assert (found - expected).square().mean().sqrt() < 0.15 * expected.std()
    assert drawn.sequences[0, -1] == model.config.eoi_token_id


def test_learned_texts_are_written_back(overfitted):
    model, processor, said_of, _, _ = overfitted
    asked = processor.encode_conversations([said_of["caption"][:1]])
    asked.pop("labels")
    arguments = {"max_new_tokens": 40, "do_sample": False}
    caption = model.generate(**asked, **arguments)
    assert processor.post_process_multimodal_output(caption) == ["a red heart"]
    assert caption[0, -1] == model.config.eos_token_id
    text = model.generate(asked["input_ids"][:, :1], **arguments)
    assert processor.post_process_multimodal_output(text) == ["two cats left of a pizza"]


def test_saved_and_loaded_it_is_the_same_model(overfitted, tmp_path):
    model, processor, said_of, _, _ = overfitted
    model = copy.deepcopy(model)
    if model.config.num_codes:
        model.model.image_head.active_codes[3] = False
    model.save_pretrained(tmp_path)
    back = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    assert type(back) is type(model) and not back.training
    first, second = back.state_dict(), model.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert {name for name, p in back.named_parameters() if not p.requires_grad} == {
        name for name, p in model.named_parameters() if not p.requires_grad
    }
    batch = processor.encode_conversations(list(said_of.values()))
    batch.pop("labels")
    assert torch.equal(back(**batch).logits, model(**batch).logits)
    prompt = processor(text=TEXTS)
    settings = {"generation_mode": "image", "seed": 1, "guidance_scale": 2.0, "image_sampling": quick(model)}
    drawn = [generate(m, **prompt, **settings) for m in (back, model)]
    assert torch.equal(drawn[0].sequences, drawn[1].sequences)
    assert all(map(same_images, drawn[0].images, drawn[1].images))
