"""Adapters of every row: they begin as nothing, learn what whole training would teach them, and draw the same wherever
they are loaded, merged or not.

R rank, I inputs of a layer
"""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForMultimodalLM

from modeling_unified.configuration_unified import PARADIGMS
from train.conversations import assistant, text, user
from train.lora import add_lora, new_rows
from train.parts import part_of
from train.recipes.kinds import Lora

BESIDE = {
    "ugen": (),
    "unifluid": ("tower", "projector", "image_head", "image_order"),
    "uvu": ("tower", "projector"),
    "unitoken": ("tower", "projector"),
}
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def save_model(make_tiny_row, tmp_path_factory):
    """Callable: the folder of a saved model of a row, whose predictions differ from place to place."""
    from modeling_unified import UnifiedForConditionalGeneration

    folders = {}

    def save(paradigm: str, **overrides):
        key = (paradigm, *overrides.items())
        if key not in folders:
            config = make_tiny_row(paradigm, **overrides)
            config.text_config.initializer_range = 0.2
            torch.manual_seed(0)
            folders[key] = tmp_path_factory.mktemp(paradigm)
            UnifiedForConditionalGeneration(config).save_pretrained(folders[key])
        return folders[key]

    return save


@pytest.fixture
def load_model(save_model):
    from modeling_unified import UnifiedForConditionalGeneration

    def load(paradigm: str, **overrides):
        return UnifiedForConditionalGeneration.from_pretrained(save_model(paradigm, **overrides))

    return load


@pytest.fixture
def make_batch(make_tiny_processor, picture):
    """Callable: text, an image that is read and one that is drawn, as inputs of a model."""

    def make(model):
        processor = make_tiny_processor(model.config)

        conversations = [
            [user(picture(model, processor, 1), text("how many?")), assistant(text("two cats"))],
            [user(text("a pizza")), assistant(picture(model, processor, 2))],
            [assistant(text("a red heart"))],
        ]
        supervised = model.config.image_inputs == ["features"]
        return dict(processor.encode_conversations(conversations, supervise_features=supervised))

    return make


def everything(paradigm: str) -> Lora:
    return Lora(rank=2, alpha=3, modules_to_save=BESIDE[paradigm], new_rows=True)


def losses(model, batch: dict) -> torch.Tensor:
    torch.manual_seed(1)  # of noise, times and orders
    outputs = model(**batch)
    return torch.cat([outputs.text_loss, outputs.image_loss])


def trained(model) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def disturb(model) -> None:
    """As training would: the adapters are no longer nothing."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_an_adapter_begins_as_nothing(load_model, make_batch, paradigm):
    model = load_model(paradigm).eval()
    batch = make_batch(model)
    before = losses(model, batch)
    assert len(before) > 16
    adapted = add_lora(model, everything(paradigm)).eval()
    torch.testing.assert_close(losses(adapted, batch), before)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_gradients_are_those_of_whole_training(load_model, make_batch, paradigm, tied):
    """Rows and parts have the gradients of the whole tensors, and B that of its layer's matrix times A; the rest has
    none."""
    whole = load_model(paradigm, tie_word_embeddings=tied).train()
    batch = make_batch(whole)
    losses(whole, batch).sum().backward()
    of_whole = {name: parameter.grad for name, parameter in whole.named_parameters()}
    lora = everything(paradigm)
    adapted = add_lora(load_model(paradigm, tie_word_embeddings=tied), lora).train()
    losses(adapted, batch).sum().backward()
    layers = dict(adapted.get_base_model().named_modules())
    norms, rows = {}, new_rows(whole.config)
    largest = max(gradient.abs().max() for gradient in of_whole.values() if gradient is not None)
    for name, parameter in trained(adapted.get_base_model()).items():
        if ".lora_A." in name:
            continue  # behind a B of zeros it has no gradient yet
        if ".lora_B." in name:
            layer_name = name.split(".lora_B.")[0]
            a_RI = layers[layer_name].lora_A["default"].weight
            expected = lora.alpha / lora.rank * of_whole[f"{layer_name}.weight"] @ a_RI.T
            what = "adapters"
        elif "token_adapter" in name:
            what = name.split(".token_adapter")[0]
            expected = of_whole[f"{what}.weight"][rows]
        else:
            expected, what = of_whole[name.replace(".modules_to_save.default", "")], part_of(name)
        scale = expected.abs().max().clamp(min=1e-3 * largest)  # a key's bias has none but rounding
        torch.testing.assert_close(parameter.grad / scale, expected / scale, rtol=0, atol=1e-4, msg=name)
        norms[what] = norms.get(what, 0.0) + float(parameter.grad.norm())
    matrices = {"model.language_model.embed_tokens"} | (set() if tied else {"lm_head"})
    assert norms.keys() == {"adapters", *matrices, *BESIDE[paradigm]} and all(norms.values()), norms


def test_the_head_is_trained_in_the_rows_of_codes_alone(load_model, make_batch):
    """An untied head: what its rows learn changes logits of codes, and of no text."""
    model = load_model("ugen", tie_word_embeddings=False).eval()
    batch = make_batch(model)
    before = model(**batch, skip_logits=False).logits
    adapted = add_lora(model, Lora(new_rows=True)).eval()
    with torch.no_grad():
        model.lm_head.token_adapter.trainable_tokens_delta["default"] += 1
    after = adapted(**batch, skip_logits=False).logits
    changed = (after != before).any(0).any(0).nonzero().squeeze(1).tolist()
    assert changed == new_rows(model.config)


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_adapters_draw_alike_wherever_they_are_loaded(load_model, make_batch, prompt, paradigm, tmp_path):
    base = load_model(paradigm)
    batch, inputs = make_batch(base), prompt(base)
    before = answers(base.eval(), batch, inputs)
    adapted = add_lora(base, everything(paradigm)).eval()
    disturb(adapted)
    wanted = answers(adapted, batch, inputs)
    assert not torch.allclose(wanted["losses"], before["losses"])
    adapted.save_pretrained(tmp_path / "adapter")
    parameters = trained(adapted)
    numbers = sum(parameter.numel() for parameter in parameters.values())
    size = (tmp_path / "adapter" / ADAPTER).stat().st_size
    assert 4 * numbers <= size < 4 * numbers + 256 * len(parameters), "what is trained, and names"

    merged = adapted.merge_and_unload()
    assert not any("lora" in name or "adapter" in name for name, _ in merged.named_modules())
    merged.save_pretrained(tmp_path / "merged")
    assert (tmp_path / "merged" / "modeling_unified.py").exists(), "remote code goes with it"
    for model in (
        PeftModel.from_pretrained(load_model(paradigm), tmp_path / "adapter"),
        AutoModelForMultimodalLM.from_pretrained(tmp_path / "adapter"),
        merged,
        AutoModelForMultimodalLM.from_pretrained(tmp_path / "merged"),
    ):
        found = answers(model.eval(), batch, inputs)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=name)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == model.config.tie_word_embeddings


@pytest.fixture
def prompt(make_tiny_processor):
    def make(model):
        processor = make_tiny_processor(model.config)
        return dict(processor(text=["a red heart"], return_tensors="pt"))

    return make


def answers(model, batch: dict, inputs: dict) -> dict[str, torch.Tensor]:
    """Losses, and what the model writes and draws in all three modes, by seed."""
    found = {"losses": losses(model, batch).detach()}
    for mode, length in (("text", 6), ("image", None), ("interleaved", 30)):
        given = {"max_new_tokens": length} if length else {}
        out = model.generate(**inputs, **given, generation_mode=mode, seed=3, return_dict_in_generate=True)
        found[mode] = out.sequences
        if mode == "image":
            found["pixels"] = out.images[0][0]
    return found


def test_rows_are_stored_and_not_the_matrix(load_model, tmp_path):
    add_lora(load_model("ugen", tie_word_embeddings=False), Lora(rank=2)).save_pretrained(tmp_path / "adapters")
    model = load_model("ugen", tie_word_embeddings=False)
    add_lora(model, Lora(rank=2, new_rows=True)).save_pretrained(tmp_path / "rows")
    sizes = [(tmp_path / name / ADAPTER).stat().st_size for name in ("adapters", "rows")]
    rows = 2 * len(new_rows(model.config)) * model.config.text_config.hidden_size * 4
    assert rows <= sizes[1] - sizes[0] < rows + 512


def test_new_rows_are_codes_and_what_only_images_need(load_model):
    config = load_model("uvu").config
    rows = new_rows(config)
    assert set(range(config.code_offset, config.code_offset + config.num_codes)) < set(rows)
    special = set(rows) - set(range(config.code_offset, config.code_offset + config.num_codes))
    assert {config.boi_token_id, config.eoi_token_id, config.image_token_id} < special == special & set(range(300))
    assert not special & {config.bos_token_id, config.eos_token_id, config.pad_token_id}


def test_nothing_of_the_model_beneath_is_trained(load_model):
    model = load_model("unitoken")
    before = {id(parameter) for parameter in model.parameters()}
    adapted = add_lora(model, Lora())
    assert trained(adapted) and not before & {id(parameter) for parameter in trained(adapted).values()}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": "q_proj"}, r"'q_proj' matches none of the \d+ modules .* such as model.language_model"),
        (
            {"target_modules": r".*(q|v)_proj"},
            r"matches 2 modules of the codec or the vision tower, .*: model.encoders.features.tower\S*[qv]_proj",
        ),
        ({"target_modules": r".*codec.*conv1"}, r"matches \d+ modules of the codec .*: model.codec.*, \.\.\.\. Begin"),
        ({"modules_to_save": ("image_head",)}, r"names image_head, but the parts .* are: tower, projector$"),
        ({"modules_to_save": ("language_model",)}, "names language_model, but"),
        (
            {"modules_to_save": ("projector",), "target_modules": r".*projector.*0"},
            r"matches model.encoders.features.projector.0, inside parts that modules_to_save trains whole",
        ),
    ],
)
def test_targets_that_do_not_fit_are_refused(load_model, fields, message):
    with pytest.raises(ValueError, match=message):
        add_lora(load_model("unitoken"), replace(Lora(), **fields))


def test_a_model_of_no_folder_is_refused(tiny_model):
    with pytest.raises(ValueError, match="not loaded from a folder or the Hub.*save the model first"):
        add_lora(tiny_model, Lora())


def test_rows_of_a_head_that_caps_its_logits_are_refused(load_model):
    model = load_model("ugen")
    model.lm_head.cap = 30.0
    with pytest.raises(ValueError, match="caps its logits at 30.0 .final_logit_softcapping.*set new_rows=False"):
        add_lora(model, Lora(new_rows=True))
    add_lora(model, Lora())
