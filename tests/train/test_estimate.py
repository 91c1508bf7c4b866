"""What is estimated of a run equals what real models take: bytes, tokens, operations. Of `train.samples` too."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModel

from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from train.dry_run import describe
from train.estimate import arithmetic, count_parts, kept_bytes, passes, stored, stored_sharded, vocabulary_bytes
from train.formats import FORMATS
from train.parts import choose_trained
from train.recipes import RECIPES
from train.recipes.kinds import LanguageModelRecipe, Lora, Source
from train.samples import FORMS, Form, Sample, average, rows_of, samples_of
from train.tower_guard import tower_encoder

ROWS = ("ugen", "unifluid", "uvu", "unitoken")


def tiny_recipe(paradigm: str, **fields) -> LanguageModelRecipe:
    return LanguageModelRecipe("tiny", paradigm=paradigm, bf16=False, **fields)


@pytest.mark.parametrize("paradigm", ROWS)
def test_bytes_equal_those_of_a_real_optimiser(make_tiny_config, paradigm):
    model = UnifiedForConditionalGeneration(make_tiny_config(paradigm))
    choose_trained(model, None, ("q_proj",))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimiser = torch.optim.AdamW(trained)
    optimiser.step()
    moments = sum(state[key].nbytes for state in optimiser.state.values() for key in ("exp_avg", "exp_avg_sq"))
    tensors = [*model.parameters(), *model.buffers()]
    parts = count_parts(model)
    assert stored(parts, bf16=False) == {
        "weights": sum(tensor.nbytes for tensor in tensors),
        "gradients": sum(parameter.grad.nbytes for parameter in trained),
        "AdamW": moments,
        "copies in use": 0,
    }
    sharded = stored_sharded(parts, model, 4, bf16=False)
    assert sharded["AdamW"] == moments // 4 and 0 < sharded["copies in use"] < sharded["weights"] * 4


CONVERSATIONS = {
    Form(0, 0, 1, 0): lambda image: [("assistant", "two cats")],
    Form(0, 1, 1, 0): lambda image: [("user", image), ("assistant", "two cats")],
    Form(1, 1, 1, 0): lambda image: [("user", image, "two cats"), ("assistant", "two cats")],
    Form(1, 0, 0, 1): lambda image: [("user", "two cats"), ("assistant", image)],
    Form(1, 1, 0, 1): lambda image: [("user", image, "two cats"), ("assistant", image)],
}  # 1 stands for the tokens of "two cats"


def encode(config, processor, form: Form, recipe: LanguageModelRecipe, image) -> dict[str, torch.Tensor]:
    conversation = [
        {
            "role": role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
                for part in parts
            ],
        }
        for role, *parts in CONVERSATIONS[form](image)
    ]
    features = {"supervise_features": recipe.supervise_features, "features_of_written": recipe.features_of_written}
    return processor.encode_conversations([conversation], **features)


@pytest.fixture
def as_encoded(make_tiny_config, make_tiny_processor, make_image, monkeypatch):
    """callable(recipe, form, **overrides) -> (config, batch of one conversation, the `Sample` that describes it)."""

    def make(recipe, form, **overrides):
        config = make_tiny_config(recipe.paradigm, **overrides)
        processor = make_tiny_processor(config)
        processor.max_features = processor.max_features and recipe.max_features
        length = len(processor.tokenizer("two cats", add_special_tokens=False)["input_ids"])
        batch = encode(config, processor, form, recipe, make_image())
        monkeypatch.setitem(FORMS, "text", form._replace(prompt=length * form.prompt, answer=length * form.answer))
        recipe = replace(recipe, sources=(Source("tiny", 1, "text"),))
        (sample,) = samples_of(recipe, config)
        return config, batch, sample

    return make


@pytest.mark.parametrize("form", CONVERSATIONS)
@pytest.mark.parametrize(
    ("paradigm", "fields", "overrides"),
    [
        ("ugen", {}, {}),
        ("unifluid", {}, {}),
        ("unifluid", {}, {"image_inputs": ["features", "latents"]}),
        ("uvu", {"max_features": 64, "supervise_features": True}, {}),
        ("unitoken", {"features_of_written": True}, {}),
        ("unitoken", {}, {"tile_grids": [[1, 2], [2, 2]]}),
    ],
)  # fmt: skip
def test_samples_are_as_long_as_the_processor_makes_them(as_encoded, paradigm, fields, overrides, form):
    config, batch, sample = as_encoded(tiny_recipe(paradigm, **fields), form, **overrides)
    ids, labels = batch["input_ids"], batch["labels"]
    predicted = {int(label): int((labels == label).sum()) for label in labels.unique() if label != -100}
    written, read = (predicted.pop(token, 0) for token in (config.image_token_id, config.image_feature_token_id))
    assert (sample.tokens, sample.squares) == (ids.numel(), ids.numel() ** 2)
    assert (sample.written_targets, sample.read_targets) == (written, read)
    assert sample.text_targets == sum(predicted.values())
    assert sample.features == int((ids == config.image_feature_token_id).sum())
    assert sample.shown == len(batch.get("feature_pixel_values", []))


def test_the_largest_image_is_one_that_fills_all_tiles():
    recipe = RECIPES["unitoken/1"]()
    largest = samples_of(recipe, describe(recipe), largest=True)[0]
    assert largest.features == 729 + 54 * 54
    # UniToken's code: 1,060 ids of an image, [SEP], at most 3,699 for its features with the ends of rows.
    assert largest.tokens == 1 + 1060 + 1 + 3699 + FORMS["llava"].prompt + 1 + FORMS["llava"].answer + 1


def test_supervision_is_thinned_over_all_samples():
    recipe, config = RECIPES["uvu/pretraining"](), describe(RECIPES["uvu/pretraining"]())
    whole, thin = (average(samples_of(replace(recipe, supervised_ratio=r), config)) for r in (None, 0.1))
    assert whole.read_targets == 256 * 4 / 5
    assert thin.read_targets == pytest.approx(0.1 * thin.text_targets) and thin.tokens == whole.tokens


def test_every_form_of_data_has_a_typical_length():
    assert FORMS.keys() == FORMATS.keys()


def test_rows_are_those_of_packing():
    recipe = replace(tiny_recipe("ugen"), packed_length=100)
    kinds = [Sample(name, parts, tokens, *[0] * 6) for name, parts, tokens in (("a", 1, 60), ("b", 3, 30))]
    assert rows_of(recipe, kinds, 4) == (2, 90)  # 60 + 30 and 30 + 30, since 150 tokens do not fit in one
    assert rows_of(replace(recipe, attention="flash_attention_2"), kinds, 4) == (1, 150)
    assert rows_of(replace(recipe, packed_length=None), kinds, 4) == (4, 60)


def operations_of_a_step(model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """Of matrix products and convolutions. torch counts neither fused attention on a CPU nor what is added in place."""

    def added(total: torch.Size, left: torch.Size, right: torch.Size, *args, **kwargs) -> int:
        return 2 * left[0] * left[1] * right[1]

    encoder = tower_encoder(model)
    for part in (model.model.language_model, *([encoder.tower] if encoder else [])):
        part.set_attn_implementation("eager")
    if "pixel_values" in batch:  # the codec is left out
        batch["image_tokens"] = model.encode_images(batch.pop("pixel_values"))
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
        model.train()(**batch, use_cache=False).loss.backward()
    return counter.get_total_flops()


# Of what a real step counts to the estimate. The estimate has norms, biases and positions as if they were multiplied,
# gradients of the first layers' inputs, and in the diffusion head of what embeds times; attention is here all of it and
# not its causal half, as eager attention computes it.
PROPORTION = {"ugen": (0.96, 1.01), "unifluid": (0.85, 1.01), "uvu": (0.94, 1.01), "unitoken": (0.95, 1.01)}
TRAINED = [None, ("tower", "projector"), ("language_model",)]


@pytest.mark.parametrize(
    ("paradigm", "trained"),
    [(paradigm, parts) for paradigm in ROWS for parts in (TRAINED if paradigm != "ugen" else TRAINED[:1])],
)
def test_operations_equal_those_of_a_real_step(as_encoded, paradigm, trained):
    """But for what is left out, which is more of a tiny model than of a large one: see `PROPORTION`."""
    recipe = tiny_recipe(paradigm, trained_parts=trained, max_features=64 if paradigm == "uvu" else None)
    config, batch, sample = as_encoded(recipe, Form(1, 1, 0, 1))
    model = UnifiedForConditionalGeneration(config)
    choose_trained(model, trained)
    found = arithmetic(recipe, model, count_parts(model), sample)
    least, most = PROPORTION[paradigm]
    assert least < operations_of_a_step(model, batch) / (sum(found.values()) + found["attention"]) < most


def test_computing_activations_twice_costs_up_to_one_more_forward_pass(as_encoded):
    """torch ends the second pass before the last product of a layer, whose result nobody needs."""
    recipe = tiny_recipe("ugen")
    config, batch, sample = as_encoded(recipe, Form(1, 0, 0, 1))
    model = UnifiedForConditionalGeneration(config)
    once, twice = (
        arithmetic(replace(recipe, activation_checkpointing=again), model, count_parts(model), sample)
        for again in (False, True)
    )
    measured = [operations_of_a_step(model, dict(batch))]
    model.activation_checkpointing_enable()
    measured.append(operations_of_a_step(model, dict(batch)))
    estimated = sum(twice.values()) + twice["attention"] - sum(once.values()) - once["attention"]
    assert 0.6 * estimated < measured[1] - measured[0] < estimated


def test_what_a_frozen_part_is_gone_through_depends_on_what_stands_before_it(make_tiny_config):
    with torch.device("meta"):
        model = UnifiedForConditionalGeneration(make_tiny_config("unitoken"))

    def of(name, *trained):
        choose_trained(model, trained)
        return passes(name, count_parts(model), again=True)

    assert of("backbone", "tower") == (2, 1, 0) and of("tower", "tower") == (2, 1, 1)
    assert of("backbone", "language_model") == (2, 1, 1)
    assert of("tower", "language_model") == (1, 0, 0) and of("projector", "tower") == (2, 1, 0)


BACKBONES = {
    "llama": {}, "qwen2": {}, "gemma2": {"head_dim": 16}, "chameleon": {"num_key_value_heads": 8, "vocabulary_map": {}}
}  # fmt: skip
SIZES = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 8, "num_key_value_heads": 2,
    "num_hidden_layers": 1, "max_position_embeddings": 256,
}  # fmt: skip
TOWER = {
    "hidden_size": 128, "intermediate_size": 480, "num_attention_heads": 4, "num_hidden_layers": 1, "image_size": 48,
    "patch_size": 8, "vision_use_head": False,
}  # fmt: skip


def kept_for_backward(layer: nn.Module, *args, **kwargs) -> int:
    """Bytes that autograd keeps when the layer is called under bfloat16 autocast, without those of its weights."""
    weights = {parameter.shape for parameter in layer.parameters()}
    weights |= {shape[::-1] for shape in weights}  # casts of them, and their transposes
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        layer(*args, **kwargs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("name", [*BACKBONES, "siglip_vision_model"])
def test_activations_are_about_those_that_autograd_keeps(name):
    tokens, tower = 96, name == "siglip_vision_model"
    config = CONFIG_MAPPING[name](**(TOWER if tower else {**SIZES, **BACKBONES[name]}))
    model = AutoModel.from_config(config, attn_implementation="eager" if name == "gemma2" else "sdpa").train()
    layer = model.encoder.layers[0] if tower else model.layers[0]
    hidden = torch.randn(2, tokens, 128, requires_grad=True)
    positions = torch.arange(tokens)[None]
    angles = () if tower else model.rotary_emb(hidden, positions)
    arguments = {"attention_mask": None} if tower else {"position_embeddings": angles, "position_ids": positions}
    scores = 6 * config.num_attention_heads * tokens if name == "gemma2" else 0
    kept = kept_for_backward(layer, hidden, **arguments) / (2 * tokens)
    assert 0.9 < kept / (kept_bytes(layer, bf16=True) + scores) < 1.2


def test_logits_are_counted_a_chunk_at_a_time(make_tiny_config):
    with torch.device("meta"):
        model = UnifiedForConditionalGeneration(make_tiny_config("ugen"))
    rows, width = model.lm_head.weight.shape
    assert vocabulary_bytes(model, 5, 7, sharded=True) == 10 * rows * 7
    assert vocabulary_bytes(model, 5, 7, sharded=False) == 10 * rows * 7 + 2 * 4 * rows * width
    assert vocabulary_bytes(model, 1e9, 0, sharded=True) == 10 * rows * (2**26 // rows)


def test_adapters_are_those_of_peft(make_tiny_config):
    pytest.importorskip("peft")
    from train.lora import add_lora

    lora = Lora(rank=4, modules_to_save=("projector",), new_rows=True)
    model = UnifiedForConditionalGeneration(make_tiny_config("uvu"))
    parts = count_parts(model, lora)
    model.name_or_path = "somewhere"
    trained = sum(each.numel() for each in add_lora(model, lora).parameters() if each.requires_grad)
    assert sum(part.trained for part in parts) == trained
