"""Packed samples are what they are alone: same hidden states, same losses, and hardly any padding."""

import pytest
import torch
from transformers import AutoProcessor

from modeling_unified.configuration_unified import PARADIGMS
from train.codes import training_scene
from train.conversations import assistant, image_to_text, text, text_to_image, user
from train.language_model import read_texts
from train.mixture import Mixture, SceneSource, TextSource
from train.packing import arrange, one_sample_a_row, pack, parts_of_like_length, samples_of_entries, samples_of_losses
from train.recipes import spark
from train.scenes import DATA, HeldOut
from train.trainer import Collator

LONGEST = 128


@pytest.fixture(params=PARADIGMS)
def batch(request, make_tiny_row, make_tiny_processor, picture):
    """A model with predictions that differ from place to place, and samples of every task as one batch of it."""
    from modeling_unified import UnifiedForConditionalGeneration

    config = make_tiny_row(request.param)
    config.text_config.initializer_range = 0.2
    torch.manual_seed(0)
    model, processor = UnifiedForConditionalGeneration(config).eval(), make_tiny_processor(config)

    def show(*seed_and_size: int) -> dict:
        return picture(model, processor, *seed_and_size)

    conversations = [
        [assistant(text("two cats"))],
        [user(show(1, 8, 6)), assistant(text("a red heart"))],
        [user(text("a pizza")), assistant(show(2))],
        [user(show(3), show(4, 4, 8), text("how many?")), assistant(text("one"))],
        [user(show(5), text("a blue cat")), assistant(show(6))],
        [assistant(text("three apples")), assistant(text("a cat"))],
    ]
    inputs = dict(processor.encode_conversations(conversations, supervise_features=request.param == "uvu"))
    if config.image_order == "random":
        count, length = inputs["image_tokens"].shape[:2]
        inputs["image_orders"] = torch.stack([torch.randperm(length) for _ in range(count)])
    return model, inputs


def hidden_of_samples(model, inputs: dict) -> torch.Tensor:
    named = {key: value for key, value in inputs.items() if key not in ("labels", "feature_tokens")}
    return model.model(**named).last_hidden_state


@torch.no_grad()
def test_hidden_states_are_those_of_the_samples_alone(batch):
    model, inputs = batch
    lengths = inputs["attention_mask"].sum(1).tolist()
    alone_BTH = hidden_of_samples(model, inputs)
    packed = pack(inputs, model, LONGEST)
    packed.pop("samples")
    packed_PTH = hidden_of_samples(model, packed)
    rows = arrange(lengths, LONGEST)
    assert 1 < len(rows) < len(lengths)
    for row, samples in enumerate(rows):
        start = 0
        for sample in samples:
            stop = start + lengths[sample]
            assert torch.equal(packed["input_ids"][row, start:stop], inputs["input_ids"][sample, : lengths[sample]])
            expected_TH = alone_BTH[sample, : lengths[sample]]
            torch.testing.assert_close(packed_PTH[row, start:stop], expected_TH, rtol=1e-4, atol=1e-4)
            start = stop


def test_losses_and_gradients_are_those_of_the_samples_alone(batch):
    model, inputs = batch
    codes = model.config.num_codes > 0  # the loss of vectors is of noise drawn anew in each call
    results = []
    for given in (inputs, pack(inputs, model, LONGEST)):
        model.zero_grad()
        given.pop("samples", None)
        outputs = model(**given)
        (outputs.text_loss.sum() + (outputs.image_loss.sum() if codes else 0)).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((outputs.text_loss, outputs.image_loss, gradients))
    (text_N, image_N, alone), (packed_text_N, packed_image_N, packed) = results
    torch.testing.assert_close(packed_text_N.sort()[0], text_N.sort()[0], rtol=1e-4, atol=1e-4)
    assert len(packed_image_N) == len(image_N) > 0
    if codes:
        torch.testing.assert_close(packed_image_N.sort()[0], image_N.sort()[0], rtol=1e-4, atol=1e-4)
    assert alone.keys() == packed.keys()
    largest = max(gradient.abs().max() for gradient in alone.values())
    for name, gradient in alone.items():
        scale = gradient.abs().max().clamp(min=1e-3 * largest)  # a key's bias has none but rounding
        torch.testing.assert_close(packed[name] / scale, gradient / scale, rtol=0, atol=1e-4, msg=name)


def test_entries_follow_their_samples(batch):
    model, inputs = batch
    before, packed = samples_of_entries(inputs, model), pack(inputs, model, LONGEST)
    order = [sample for row in arrange(inputs["attention_mask"].sum(1).tolist(), LONGEST) for sample in row]
    assert order != sorted(order), "samples that stay in order prove nothing"
    for name, sample_N in before.items():
        chosen = [entry for sample in order for entry in range(len(sample_N)) if sample_N[entry] == sample]
        assert torch.equal(packed[name], inputs[name][chosen]), name


@torch.no_grad()
def test_losses_are_told_whose_they_are(batch):
    """Of each sample alone, packed, or beside those of its length: the same losses."""
    model, inputs = batch
    kinds = ("text_loss", "image_loss") if model.config.num_codes else ("text_loss",)  # else of noise drawn anew
    found = []
    every_row_B = torch.ones(len(inputs["labels"]), dtype=torch.bool)
    whole = {**inputs, "samples": one_sample_a_row(every_row_B, inputs["labels"].shape[1])}
    for parts in ([whole], [pack(inputs, model, LONGEST)], list(parts_of_like_length(inputs, model))):
        sums = torch.zeros(len(inputs["labels"]), len(kinds))
        counts = torch.zeros(len(inputs["labels"]), 2)
        for part in parts:
            samples_BT = part.pop("samples")
            outputs = model(**part)
            for kind, sample_N in enumerate(samples_of_losses(samples_BT, part["labels"], model.config)):
                counts[:, kind] += torch.bincount(sample_N, minlength=len(counts))
                if kind < len(kinds):
                    assert len(sample_N) == len(outputs[kinds[kind]])
                    sums[:, kind].index_add_(0, sample_N, outputs[kinds[kind]])
        found.append((sums, counts))
    for sums, counts in found[1:]:
        torch.testing.assert_close(sums, found[0][0], rtol=1e-4, atol=1e-3)
        assert torch.equal(counts, found[0][1])
    assert found[0][1].sum(0).min() > 0


def test_flash_attention_gets_one_row(batch):
    model, inputs = batch
    model.config.text_config._attn_implementation = "flash_attention_2"
    packed = pack(inputs, model, longest=1)
    assert packed["input_ids"].shape == (1, int(inputs["attention_mask"].sum()))


def test_rows_are_few_and_about_equally_long():
    lengths = [90, 17, 60, 33, 48, 75, 20, 90, 12, 66, 41, 28] * 4
    rows = arrange(lengths, 512)
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    filled = [sum(lengths[sample] for sample in row) for row in rows]
    assert len(rows) == -(-sum(lengths) // 512) and max(filled) <= 512
    assert sum(filled) / (len(rows) * max(filled)) > 0.98


def test_a_row_more_is_taken_where_samples_do_not_fit():
    assert sorted(map(sorted, arrange([60, 60, 60], 100))) == [[0], [1], [2]]


def test_a_sample_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="a sample has 101 tokens, more than the 100 of a row"):
        arrange([3, 101], 100)


@pytest.mark.parametrize("longest", [256, 512])
def test_little_of_our_mixture_is_padding(longest):
    """Batches of `spark/ugen` as they come: text, scenes described and asked about, scenes drawn."""
    recipe, held_out = spark.ugen(), HeldOut.load()
    scenes = [(training_scene(0, n, held_out), torch.zeros(64, dtype=torch.long)) for n in range(200)]
    texts = TextSource(read_texts(DATA / "glosses.parquet", skip_bad_rows=False)[0], 0, recipe.text_characters)
    read, drawn = SceneSource(scenes, 1, image_to_text(recipe)), SceneSource(scenes, 2, text_to_image(recipe))
    parts = [(texts, recipe.text_parts), (read, recipe.image_to_text_parts), (drawn, recipe.text_to_image_parts)]
    mixture = Mixture(parts, 20 * recipe.batch_size, recipe.seed)
    collate = Collator(AutoProcessor.from_pretrained("model_cards/ugen-spark"), longest)
    tokens = places = 0
    for first in range(0, len(mixture), recipe.batch_size):
        batch = collate([mixture[first + n] for n in range(recipe.batch_size)])
        lengths = batch["attention_mask"].sum(1).tolist()
        filled = [sum(lengths[sample] for sample in row) for row in arrange(lengths, longest)]
        tokens, places = tokens + sum(filled), places + len(filled) * max(filled)
    assert 1 - tokens / places < 0.05
