"""The composition: losses of each kind, images as pixels or tokens, input that disagrees, and any text backbone.

B batch, T sequence, H hidden size, V vocabulary, L image tokens.
"""

import pytest
import torch
import torch.nn.functional as F

from modeling_unified import UnifiedForConditionalGeneration
from modeling_unified.orders_unified import ORDERS

L = 16


def resolved_labels(config, batch) -> torch.Tensor:
    """Labels in which slots are replaced by the ids of their codes."""
    written_BT = batch["labels"] == config.image_token_id
    slots_BT = batch["input_ids"] == config.image_token_id
    ids_BT = batch["input_ids"].masked_scatter(slots_BT, batch["image_tokens"] + config.code_offset)
    return torch.where(written_BT, ids_BT, batch["labels"])


def test_losses_are_those_of_the_logits(model, every_task_batch):
    batch = every_task_batch
    output = model(**batch)
    targets_BT = resolved_labels(model.config, batch)[:, 1:]
    losses_BT = F.cross_entropy(output.logits[:, :-1].mT, targets_BT, reduction="none")
    written_BT = batch["labels"][:, 1:] == model.config.image_token_id
    torch.testing.assert_close(output.image_loss, losses_BT[written_BT])
    torch.testing.assert_close(output.text_loss, losses_BT[~written_BT & (targets_BT != -100)])
    assert output.image_loss.shape == (L,) and output.text_loss.shape == (int((targets_BT != -100).sum()) - L,)
    torch.testing.assert_close(output.loss, torch.cat([output.text_loss, output.image_loss]).mean())


def test_the_loss_is_divided_by_what_the_trainer_says(model, every_task_batch):
    output = model(**every_task_batch, num_items_in_batch=torch.tensor(7))
    torch.testing.assert_close(output.loss, (output.text_loss.sum() + output.image_loss.sum()) / 7)


def test_a_batch_without_targets_has_no_loss_and_is_no_error(model, every_task_batch):
    every_task_batch["labels"].fill_(-100)
    output = model(**every_task_batch)
    assert output.loss == 0 and output.text_loss.shape == output.image_loss.shape == (0,)


def test_logits_are_left_out_in_training_and_kept_elsewhere(model, every_task_batch):
    shape = (*every_task_batch["input_ids"].shape, model.config.text_config.vocab_size)
    assert model(**every_task_batch).logits.shape == shape
    assert model(**every_task_batch, skip_logits=True).logits is None
    model.train()
    assert model(**every_task_batch).logits is None
    assert model(**every_task_batch, skip_logits=False).logits.shape == shape
    del every_task_batch["labels"]
    assert model(**every_task_batch).logits.shape == shape


def test_logits_to_keep(model, every_task_batch):
    whole = model(**every_task_batch).logits
    assert torch.equal(model(**every_task_batch, logits_to_keep=2).logits, whole[:, -2:])
    kept = torch.tensor([0, 3])
    assert torch.equal(model(**every_task_batch, logits_to_keep=kept).logits, whole[:, kept])


def test_pixels_and_their_tokens_are_the_same(model, tiny_processor, make_image):
    inputs = tiny_processor(images=[make_image(1), make_image(2)], text=["<|image_slot|>a cat", "<|image_slot|>"])
    image_tokens = model.encode_images(inputs["pixel_values"])
    assert image_tokens.shape == (2, L)
    by_pixels = model(**inputs).logits
    del inputs["pixel_values"]
    assert torch.equal(by_pixels, model(**inputs, image_tokens=image_tokens).logits)
    swapped = model(**inputs, image_tokens=image_tokens.roll(1, 0)).logits
    assert torch.equal(image_tokens[0], image_tokens[1]) or not torch.allclose(by_pixels, swapped)


def test_images_are_dealt_out_in_reading_order(model, tiny_processor, make_codes):
    """Two images in the first row, one in the second: the same as each row by itself."""
    codes_NL = torch.stack([make_codes(seed) for seed in range(3)])
    slot = tiny_processor.tokenizer.image_token * L
    inputs = tiny_processor.tokenizer([f"{slot}and{slot}", f"{slot}a cat"], return_tensors="pt", padding=True)
    logits = model(**inputs, image_tokens=codes_NL).logits
    for row, codes in ((0, codes_NL[:2]), (1, codes_NL[2:])):
        ids_T = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        alone = model(input_ids=ids_T[None], image_tokens=codes).logits[0]
        torch.testing.assert_close(logits[row][inputs["attention_mask"][row].bool()], alone, atol=1e-5, rtol=1e-5)


def test_reconstruct_is_the_codec_there_and_back(model, tiny_processor, make_image):
    pixels = tiny_processor.image_processor([make_image(1)], return_tensors="pt")["pixel_values"]
    codec = model.model.codec
    assert torch.equal(model.reconstruct(pixels), codec.decode(codec.encode(pixels), (4, 4)))


def test_embeddings_instead_of_ids(model, every_task_batch):
    del every_task_batch["labels"]
    by_ids = model(**every_task_batch).logits
    embeds = model.get_input_embeddings()(every_task_batch.pop("input_ids"))
    assert torch.equal(model(inputs_embeds=embeds, **every_task_batch).logits, by_ids)


@pytest.mark.parametrize("given", [1, 3])
def test_slots_and_images_that_disagree_are_refused(model, every_task_batch, given):
    every_task_batch["image_tokens"] = torch.zeros(given, L, dtype=torch.long)
    with pytest.raises(ValueError, match=f"{2 * L} image slots .* but the images have {given * L} tokens"):
        model(**every_task_batch)


def test_slots_without_any_image_are_refused(model, every_task_batch):
    for key in ("labels", "image_tokens"):
        del every_task_batch[key]
    with pytest.raises(ValueError, match=f"{2 * L} image slots in the sequence, but the images have 0 tokens"):
        model(**every_task_batch)
    with pytest.raises(ValueError, match=f"{2 * L} image slots"):
        model.generate(**every_task_batch, max_new_tokens=1)


def test_images_without_any_slot_are_refused(model, prompts, make_codes):
    with pytest.raises(ValueError, match=f"0 image slots in the sequence, but the images have {L} tokens"):
        model(**prompts("a cat"), image_tokens=make_codes(1)[None])


def test_ids_and_embeddings_exclude_each_other(model, prompts):
    inputs = prompts("a cat")
    with pytest.raises(ValueError, match="input_ids or inputs_embeds, and not both"):
        model(**inputs, inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]))
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model(attention_mask=inputs["attention_mask"])


def test_pixels_off_the_grid_are_refused(model, prompts):
    with pytest.raises(ValueError, match="image size 7x8 is not a multiple of the codec's stride 2"):
        model(**prompts("a cat"), pixel_values=torch.zeros(1, 3, 7, 8))


def test_a_checkpoint_of_another_shape_is_refused(tiny_model, make_tiny_config, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    text_config = tiny_model.config.text_config.to_dict() | {"hidden_size": 40}
    with pytest.raises(RuntimeError, match="size mismatch|mismatched"):
        UnifiedForConditionalGeneration.from_pretrained(tmp_path, config=make_tiny_config(text_config=text_config))


def test_tied_embeddings_are_one_matrix_also_after_loading(make_tiny_config, sharp, every_task_batch, tmp_path):
    model = sharp(make_tiny_config(tie_word_embeddings=True))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    back = UnifiedForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert back.lm_head.weight is back.get_input_embeddings().weight
    assert torch.equal(back(**every_task_batch).logits, model(**every_task_batch).logits)


def test_a_missing_active_set_means_that_all_codes_are_active(tiny_model, tmp_path):
    state = tiny_model.state_dict()
    del state["model.image_head.active_codes"]
    tiny_model.save_pretrained(tmp_path, state_dict=state)
    back = UnifiedForConditionalGeneration.from_pretrained(tmp_path)
    assert back.model.image_head.active_codes.dtype == torch.bool and back.model.image_head.active_codes.all()


def test_recomputed_activations_give_the_same_gradients(model, every_task_batch):
    model.train()
    model(**every_task_batch).loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(**every_task_batch).loss.backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4)


def test_half_precision(model, tiny_processor, every_task_batch, make_image):
    model.bfloat16()
    assert model(**every_task_batch).loss.isfinite()
    inputs = tiny_processor(images=make_image(1), text="<|image_slot|>draw it")
    sequences = model.generate(**inputs, generation_mode="image", guidance_scale=2.0, seed=0)
    ((pixels,),) = model.decode_image_tokens(sequences)
    assert pixels.dtype == torch.float32 and pixels.shape == (3, 8, 8)


BACKBONES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6},
    "olmo2": {},
    "mistral": {"head_dim": 8, "sliding_window": 6},
    "phi3": {"pad_token_id": 0},
}


@pytest.mark.parametrize("model_type", BACKBONES)
def test_any_text_backbone(make_tiny_config, tiny_config, sharp, prompts, every_task_batch, model_type):
    """Forward, backward, an image; the embedding path and the cache of each agree with its plain forward pass."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    shape = {name: getattr(tiny_config.text_config, name) for name in sizes}
    shape |= {"model_type": model_type, "num_hidden_layers": 2, "max_position_embeddings": 256}
    model = sharp(make_tiny_config(text_config=shape | BACKBONES[model_type]))
    assert model.model.language_model.config.model_type == model_type
    output = model(**every_task_batch)
    output.loss.backward()
    ungraded = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert output.loss.isfinite() and not ungraded

    prompt = prompts("two cats")
    sequences = model.generate(**prompt, generation_mode="image", do_sample=False, guidance_scale=3.0)
    uncached = model.generate(**prompt, generation_mode="image", do_sample=False, guidance_scale=3.0, use_cache=False)
    assert torch.equal(sequences, uncached)
    codes_1L = sequences[:, -L - 1 : -1] - model.config.code_offset
    ids_1T = torch.where(sequences < model.config.code_offset, sequences, model.config.image_token_id)
    embeds = model.get_input_embeddings()(ids_1T)
    by_ids = model(input_ids=ids_1T, image_tokens=codes_1L).logits
    torch.testing.assert_close(model(inputs_embeds=embeds, image_tokens=codes_1L).logits, by_ids)


def test_the_order_is_looked_up_once(model):
    assert type(model.model.image_order) is ORDERS[model.config.image_order]


def test_labels_that_were_shifted_already_are_refused(tiny_model):
    ids = torch.tensor([[1, 20, 21, 2]])
    with pytest.raises(ValueError, match="pass labels"):
        tiny_model(input_ids=ids, shift_labels=ids)


@pytest.mark.parametrize("paradigm", ["ugen", "unifluid"])
def test_tokens_are_the_same_in_half_precision(paradigm, make_tiny_config, tmp_path):
    torch.manual_seed(0)
    model = UnifiedForConditionalGeneration(make_tiny_config(paradigm)).eval()
    model.save_pretrained(tmp_path)
    pixels_NCHW = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens_NL = model.encode_images(pixels_NCHW)
    half = UnifiedForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.encode_images(pixels_NCHW), tokens_NL)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode_images(pixels_NCHW), tokens_NL)
