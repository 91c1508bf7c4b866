"""The invariants of the design, over every row of `PARADIGMS` whose parts exist, with tiny real parts.

What a row cannot do yet is refused by name. The fixture `model` is a random model of each row in turn, with weights
wide enough that its predictions differ from place to place.

B batch, T sequence, H hidden size, L image tokens, N images.
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


def parts(row: dict, axis: str) -> list[str]:
    return [row[axis]] if isinstance(row[axis], str) else row[axis]


def missing_parts(name: str) -> list[str]:
    return [part for axis in PARTS for part in parts(PARADIGMS[name], axis) if part not in PARTS[axis]]


READY = [name for name in PARADIGMS if not missing_parts(name)]
PLANNED = [name for name in PARADIGMS if missing_parts(name)]


def wide_model(config: UnifiedConfig) -> UnifiedForConditionalGeneration:
    config.text_config.initializer_range = 0.2
    torch.manual_seed(0)
    return UnifiedForConditionalGeneration(config).eval()


@pytest.fixture(params=READY)
def paradigm(request):
    return request.param


@pytest.fixture
def model(paradigm, make_tiny_config):
    return wide_model(make_tiny_config(paradigm))


def codes(seed: int) -> torch.Tensor:
    return torch.randint(16, (L,), generator=torch.Generator().manual_seed(seed))


def said(role: str, **part) -> dict:
    return {"role": role, "content": [part]}


CONVERSATIONS = {
    "text": [said("assistant", type="text", text="two cats left of a pizza")],
    "caption": [
        said("user", type="image", image_tokens=codes(1)),
        said("assistant", type="text", text="a red heart"),
    ],
    "image": [
        said("user", type="text", text="a blue circle"),
        said("assistant", type="image", image_tokens=codes(2)),
    ],
}


@pytest.fixture
def encode(tiny_processor):
    def encode(*tasks: str):
        return tiny_processor.encode_conversations([CONVERSATIONS[task] for task in tasks])

    return encode


def test_a_row_whose_parts_are_planned_is_refused_by_name():
    assert "ugen" in READY
    for name in PLANNED:
        with pytest.raises(ValueError, match=f"there is no part '{missing_parts(name)[0]}'"):
            UnifiedConfig.for_paradigm(name)


def test_contract_shapes(model, tiny_processor, encode, make_image):
    batch = encode("text", "caption", "image")
    output = model(**batch)
    size = batch["input_ids"].shape
    assert output.loss.shape == () and output.logits.shape == (*size, model.config.text_config.vocab_size)
    assert model.model(batch["input_ids"], image_tokens=batch["image_tokens"]).last_hidden_state.shape == (*size, 32)
    written = int((batch["labels"] == model.config.image_token_id).sum())
    assert output.image_loss.shape == (written,) == (L,) and output.image_loss.dtype == torch.float32
    assert output.text_loss.shape == (int((batch["labels"] != -100).sum()) - L,)

    pixels = tiny_processor.image_processor([make_image(1), make_image(2)], return_tensors="pt")["pixel_values"]
    codec = model.model.codec
    tokens_NL = codec.encode(pixels)
    assert tokens_NL.shape == (2, L) and codec.grid(8, 8) == (4, 4)
    assert codec.decode(tokens_NL, (4, 4)).shape == pixels.shape
    assert sum(encoder.num_tokens(8, 8) for encoder in model.model.encoders.values()) == L
    assert model.model.embed_image_tokens(tokens_NL).shape == (2, L, 32)
    assert model.model.image_order(2, L, torch.device("cpu")).shape == (2, L)

    prompt = tiny_processor(text=TEXTS)
    sequences = model.generate(**prompt, generation_mode="image", seed=0)
    assert sequences.shape == (3, prompt["input_ids"].shape[1] + 1 + L + 1)
    rows = model.decode_image_tokens(sequences)
    assert [[image.shape for image in row] for row in rows] == [[(3, 8, 8)]] * 3


@pytest.mark.parametrize("do_sample", [False, True])
def test_the_sampling_path_equals_teacher_forcing(model, tiny_processor, do_sample):
    """The same tokens give the same hidden states, whether drawn one by one or read at once as slots."""
    prompt = tiny_processor(text=TEXTS[:2])
    steps = []
    handle = model.model.register_forward_hook(lambda module, args, out: steps.append(out.last_hidden_state[:, -1]))
    sequences = model.generate(**prompt, generation_mode="image", do_sample=do_sample, seed=3)
    handle.remove()
    drawn_BLH = torch.stack(steps, 1)[:, :L]  # the last step only writes [EOI]

    codes_BL = sequences[:, -L - 1 : -1] - model.config.code_offset
    for row, mask_T in enumerate(prompt["attention_mask"]):
        ids_T = sequences[row, int((mask_T == 0).sum()) :]
        ids_T = torch.where(ids_T < model.config.code_offset, ids_T, model.config.image_token_id)
        read = model(input_ids=ids_T[None], image_tokens=codes_BL[row : row + 1], output_hidden_states=True)
        torch.testing.assert_close(drawn_BLH[row], read.hidden_states[-1][0, -L - 2 : -2], atol=1e-5, rtol=1e-5)
        if not do_sample:
            logits_LV = read.logits[0, -L - 2 : -2]
            assert torch.equal(logits_LV[:, model.config.code_offset :].argmax(-1), codes_BL[row])
    assert len(codes_BL.unique()) > 4  # or else a shifted or permuted image would pass too


@pytest.mark.parametrize("mode, guidance_scale", MODES)
def test_with_cache_equals_without(model, tiny_processor, mode, guidance_scale):
    prompt = tiny_processor(text=TEXTS[:2])
    settings = draw_often(model, mode, guidance_scale)
    cached, recomputed = (model.generate(**prompt, **settings, use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(cached, recomputed)
    assert has_images(model, cached) is (mode != "text")


@pytest.mark.parametrize("mode, guidance_scale", MODES)
def test_batched_equals_single(model, tiny_processor, mode, guidance_scale):
    """Prompts of three lengths, sampled: each row is what it is alone with the same seed."""
    prompt = tiny_processor(text=TEXTS)
    settings = draw_often(model, mode, guidance_scale)
    together = model.generate(**prompt, **settings | {"seed": [7, 8, 9]})
    width = prompt["input_ids"].shape[1]
    for row, text in enumerate(TEXTS):
        single = tiny_processor(text=text)
        alone_T = model.generate(**single, **settings | {"seed": 7 + row})[0, single["input_ids"].shape[1] :]
        assert torch.equal(together[row, width : width + len(alone_T)], alone_T)
        assert (together[row, width + len(alone_T) :] == model.config.pad_token_id).all()
    assert has_images(model, together) is (mode != "text")


def draw_often(model, mode: str, guidance_scale: float) -> dict:
    """Arguments of `generate` under which an untrained model begins images now and then, and ends rarely."""
    settings = {"generation_mode": mode, "seed": 7, "do_sample": True}
    if mode != "text":
        settings["guidance_scale"] = guidance_scale
    if mode != "image":
        bias = [[[model.config.boi_token_id], 3.0], [[model.config.eos_token_id], 1.0]]
        settings |= {"max_new_tokens": 60, "sequence_bias": bias, "top_k": 0}
    return settings


def has_images(model, sequences_BT: torch.Tensor) -> bool:
    return bool((sequences_BT >= model.config.code_offset).any())


def test_greedy_batches_equal_single_rows_when_images_are_read(model, tiny_processor):
    """Rows with two images, one and none, in one left-padded batch."""
    slot = tiny_processor.tokenizer.image_token * L
    texts = [f"{slot}and{slot}", f"{slot}what is it", "no image"]
    inputs = tiny_processor.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    inputs.pop("token_type_ids", None)
    images = torch.stack([codes(1), codes(2), codes(3)])
    settings = {"max_new_tokens": 12, "do_sample": False}
    together = model.generate(**inputs, image_tokens=images, **settings)
    width = inputs["input_ids"].shape[1]
    for row, own in enumerate((images[:2], images[2:], None)):
        kept = inputs["attention_mask"][row].bool()
        alone = model.generate(input_ids=inputs["input_ids"][row][kept][None], image_tokens=own, **settings)
        alone_T = alone[0, int(kept.sum()) :]
        assert torch.equal(together[row, width : width + len(alone_T)], alone_T)


def test_a_change_at_a_later_slot_leaves_earlier_hidden_states_alone(model, encode):
    batch = encode("image")
    arguments = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    before = model.model(**arguments, image_tokens=batch["image_tokens"]).last_hidden_state
    changed = batch["image_tokens"].clone()
    changed[0, 5] = (changed[0, 5] + 1) % 16
    after = model.model(**arguments, image_tokens=changed).last_hidden_state
    slot = int((batch["input_ids"][0] == model.config.image_token_id).nonzero()[5])
    assert torch.equal(before[:, :slot], after[:, :slot])
    assert not torch.isclose(before[:, slot], after[:, slot]).all()


def gradients(model, batch) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    model.train()
    model(**batch).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("task", ["text", "caption", "image"])
def test_every_trainable_parameter_learns_from_every_task_and_the_codec_from_none(model, encode, task):
    for name, grad in gradients(model, encode(task)).items():
        if name.startswith("model.codec."):
            assert grad is None and not model.get_parameter(name).requires_grad
        else:
            assert grad is not None and grad.any(), name


def test_rows_of_the_codes_learn_from_images_and_through_the_joint_softmax(model, encode):
    """Untied: a read image trains the embedding of its own codes; any target trains all rows of the softmax."""
    offset, read = model.config.code_offset, CONVERSATIONS["caption"][0]["content"][0]["image_tokens"].unique()
    grads = {task: gradients(model, encode(task)) for task in ("text", "caption")}
    embedding = {task: g["model.language_model.embed_tokens.weight"][offset:].any(-1) for task, g in grads.items()}
    assert not embedding["text"].any()
    assert torch.equal(embedding["caption"].nonzero()[:, 0], read)
    assert grads["text"]["lm_head.weight"].any(-1).all()


def test_rows_of_inactive_codes_learn_nothing(paradigm, make_tiny_config, encode):
    """Tied, so that input and softmax share the rows: what is not in the vocabulary yet stays as it is."""
    model = wide_model(make_tiny_config(paradigm, tie_word_embeddings=True))
    active = model.model.image_head.active_codes
    active[::2] = False
    grads = gradients(model, encode("text", "caption", "image"))
    rows = grads["model.language_model.embed_tokens.weight"][model.config.code_offset :]
    assert torch.equal(rows.any(-1), active)


@pytest.fixture(scope="module", params=READY)
def overfitted(request, make_tiny_config, make_tiny_processor):
    """A model that has learned one batch by heart, its processor, and its codec's weights before the training."""
    torch.manual_seed(0)
    model = UnifiedForConditionalGeneration(make_tiny_config(request.param))
    codec = copy.deepcopy(model.model.codec.state_dict())
    batch = make_tiny_processor().encode_conversations(list(CONVERSATIONS.values()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    model.train()
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    return model.eval(), make_tiny_processor(), codec, loss.item()


def test_one_batch_overfits(overfitted):
    assert overfitted[-1] < 0.05


def test_a_frozen_codec_stays_bit_equal(overfitted):
    model, _, codec, _ = overfitted
    assert all(torch.equal(value, codec[key]) for key, value in model.model.codec.state_dict().items())


def test_a_learned_image_is_drawn_back(overfitted):
    model, processor, _, _ = overfitted
    prompt = processor.apply_chat_template(
        CONVERSATIONS["image"][:1],
        add_generation_prompt=True,
        generation_mode="image",
        tokenize=True,
        return_dict=True,
    )
    sequences = model.generate(**prompt, generation_mode="image", do_sample=False)
    assert torch.equal(sequences[0, -L - 1 : -1] - model.config.code_offset, codes(2))
    assert sequences[0, -1] == model.config.eoi_token_id


def test_learned_texts_are_written_back(overfitted):
    model, processor, _, _ = overfitted
    asked = processor.encode_conversations([CONVERSATIONS["caption"][:1]])
    arguments = {"max_new_tokens": 40, "do_sample": False}
    caption = model.generate(asked["input_ids"], image_tokens=asked["image_tokens"], **arguments)
    assert processor.post_process_multimodal_output(caption) == ["a red heart"]
    assert caption[0, -1] == model.config.eos_token_id
    text = model.generate(asked["input_ids"][:, :1], **arguments)
    assert processor.post_process_multimodal_output(text) == ["two cats left of a pizza"]


def test_saved_and_loaded_it_is_the_same_model(overfitted, tmp_path):
    model, processor, _, _ = overfitted
    model = copy.deepcopy(model)
    model.model.image_head.active_codes[3] = False
    model.save_pretrained(tmp_path)
    back = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    assert type(back) is type(model) and not back.training
    assert torch.equal(back.model.image_head.active_codes, model.model.image_head.active_codes)
    assert {name for name, p in back.named_parameters() if not p.requires_grad} == {
        name for name, p in model.named_parameters() if not p.requires_grad
    }
    batch = processor.encode_conversations(list(CONVERSATIONS.values()))
    assert torch.equal(back(**batch).logits, model(**batch).logits)
    prompt = processor(text=TEXTS)
    settings = {"generation_mode": "image", "seed": 1, "guidance_scale": 2.0}
    drawn = [m.generate(**prompt, **settings) for m in (back, model)]
    assert torch.equal(*drawn)
    pixels = [m.decode_image_tokens(drawn[0])[0][0] for m in (back, model)]
    assert torch.equal(*pixels)
