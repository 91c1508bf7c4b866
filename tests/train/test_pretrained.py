"""Language models and towers of others become parts of ours: with tiny random ones, both compute the same.

What stands in for the published ones is saved by transformers, each with a tokenizer of its own:

    llama     tied, every row a token, chat tokens as SmolLM2-Instruct has them
    qwen2     padded vocabulary, tokens for images, no token for the beginning; head tied or not
    gemma2    tied, scaled embeddings, logits and attention capped softly
"""

import json
import math
import os
from dataclasses import replace

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)

from modeling_unified.codecs_unified import PatchCodec, VQCodec
from modeling_unified.configuration_unified import VQCodecConfig
from modeling_unified.language_head_unified import token_losses
from processing_unified.layout_unified import CHAT_TEMPLATE
from train.initialise import build_model, build_tokenizer, main, write_checkpoint
from train.pretrained import load_text_model, load_tokenizer, put_no_space_first
from train.processors import build_processor
from train.recipes import spark
from train.scenes import DATA
from train.tokenizer import SPECIAL_TOKENS
from train.weights import revision_of, trained_folder

TEXTS = ["two cats left of a pizza", "how many cats? two", "a red heart above a blue circle", "what is a bus?"]
OWN_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTION = [{"role": "system", "content": "be short"}, {"role": "user", "content": "how many cats?"}]
SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip
IMAGE_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>"]
PADDING = 12
TINY_VQ = {
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16], "latent_channels": 4, "vq_embed_dim": 4, "num_vq_embeddings": 16,
    "norm_num_groups": 4,
}  # fmt: skip
TOWER = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4,
    "initializer_range": 0.3,
}  # fmt: skip


def make_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def save_llama(folder) -> None:
    tokenizer = make_tokenizer(
        ["<|im_start|>", "<|im_end|>"], bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = OWN_TEMPLATE
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(**SHAPE, **ids, vocab_size=len(tokenizer), tie_word_embeddings=True)
    save(LlamaForCausalLM(config), tokenizer, folder)


def save_qwen2(folder, tied: bool) -> None:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_TOKENS]
    tokenizer = make_tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = OWN_TEMPLATE
    begin, end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    config = Qwen2Config(
        **SHAPE,
        vocab_size=len(tokenizer) + PADDING,
        bos_token_id=begin,
        eos_token_id=end,
        tie_word_embeddings=tied,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = [end, begin]
    save(model, tokenizer, folder)


def save_gemma2(folder) -> None:
    tokenizer = make_tokenizer(["<pad>", "<eos>", "<bos>"], bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    caps = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
    config = Gemma2Config(**SHAPE, **ids, **caps, vocab_size=len(tokenizer), head_dim=8, tie_word_embeddings=True)
    save(Gemma2ForCausalLM(config), tokenizer, folder)


def save(model, tokenizer, folder) -> None:
    """With norms that differ from none at all, and rows around a mean, as trained ones are."""
    with torch.no_grad():
        for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
            module.weight.add_(0.1 * torch.randn(module.weight.shape[1]))
        for name, parameter in model.named_parameters():
            if "norm" in name or parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


SOURCES = {
    "llama": save_llama,
    "qwen2 tied": lambda folder: save_qwen2(folder, True),
    "qwen2 untied": lambda folder: save_qwen2(folder, False),
    "gemma2": save_gemma2,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every source's folder by its name, a codec, and the towers."""
    parent, saved = tmp_path_factory.mktemp("published"), {}
    for number, (name, save_source) in enumerate(SOURCES.items()):
        torch.manual_seed(number)
        saved[name] = parent / name.replace(" ", "-")
        save_source(saved[name])
    torch.manual_seed(0)
    VQCodec(VQCodecConfig(**TINY_VQ)).save_pretrained(parent / "vq")
    text = {**TOWER, "vocab_size": 50, "max_position_embeddings": 8, "projection_size": 16}
    text |= {"bos_token_id": 1, "eos_token_id": 2}
    text.pop("patch_size")
    siglip = SiglipModel(SiglipConfig(vision_config={**TOWER, "image_size": 8}, text_config=text))
    siglip.save_pretrained(parent / "siglip")
    Siglip2Model(
        Siglip2Config(vision_config={**TOWER, "patch_size": 1, "num_patches": 16}, text_config=text)
    ).save_pretrained(parent / "siglip2")
    return saved | {name: parent / name for name in ("vq", "siglip", "siglip2")}


@pytest.fixture(scope="module")
def make_recipe(folders):
    def make(source: str = "llama", **fields):
        parts = {"text_model": str(folders[source]), "codec": str(folders["vq"])}
        return replace(spark.ugen(), **({"text_config": None, "image_size": 8, **parts} | fields))

    return make


@pytest.fixture(scope="module", params=SOURCES)
def pair(request, folders, make_recipe, tmp_path_factory):
    """A source, and the unified model made of it: built, saved and loaded again."""
    source = AutoModelForCausalLM.from_pretrained(folders[request.param])
    output = tmp_path_factory.mktemp("unified")
    record = write_checkpoint(make_recipe(request.param), output)
    processor, model = AutoProcessor.from_pretrained(output), AutoModelForMultimodalLM.from_pretrained(output)
    return request.param, source, model, processor, record


def rows_of(model) -> int:
    return len(model.get_input_embeddings().weight)


def test_logits_of_text_are_those_of_the_source(pair):
    _, source, model, processor, _ = pair
    ids_BT = processor.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        theirs, ours = source(ids_BT).logits, model(ids_BT).logits
    torch.testing.assert_close(ours[..., : rows_of(source)], theirs, atol=1e-5, rtol=0)
    assert float(theirs.std()) > 0.5  # predictions that differ


def test_every_row_of_the_source_is_kept(pair):
    name, source, model, _, _ = pair
    rows = rows_of(source)
    assert torch.equal(model.get_input_embeddings().weight[:rows], source.get_input_embeddings().weight)
    assert torch.equal(model.lm_head.weight[:rows], source.lm_head.weight)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (name != "qwen2 untied")
    assert model.config.text_config.vocab_size == model.config.code_offset + 16


@torch.no_grad()
def test_new_rows_lie_around_the_mean(pair):
    _, source, model, _, _ = pair
    for theirs_VH, ours_VH in (
        (source.get_input_embeddings().weight, model.get_input_embeddings().weight),
        (source.lm_head.weight, model.lm_head.weight),
    ):
        new_VH = ours_VH[len(theirs_VH) :]
        apart_VH = (new_VH - theirs_VH.mean(0)) / theirs_VH.std(0)
        assert 0.07 < float(apart_VH.std()) < 0.13 and float(apart_VH.mean(0).abs().max()) < 0.12
        assert len(new_VH.unique(dim=0)) == len(new_VH) >= 16


def text_losses(model, hidden_NH, ids_N, active: bool) -> torch.Tensor:
    head = model.model.image_head
    head.active_codes.fill_(active)
    closed_V = head.closed_rows(rows_of(model))
    return token_losses(hidden_NH, ids_N, model.lm_head, closed_V, head.text_rows)


@torch.no_grad()
def test_the_loss_of_text_grows_by_no_more_than_new_rows_can_take(pair):
    """Jensen: n rows at the mean logit of S take at most n / S of the normaliser, and a little for their spread."""
    _, source, model, _, _ = pair
    ids_1T = torch.randint(0, 250, (1, 64), generator=torch.Generator().manual_seed(0))
    hidden_NH, ids_N = model.model(ids_1T).last_hidden_state[0, :-1], ids_1T[0, 1:]
    theirs_N = torch.nn.functional.cross_entropy(source(ids_1T).logits[0, :-1], ids_N, reduction="none")
    rows, new = rows_of(source), model.config.code_offset - rows_of(source)
    without_N = text_losses(model, hidden_NH, ids_N, active=False) - theirs_N
    with_codes_N = text_losses(model, hidden_NH, ids_N, active=True) - theirs_N
    for more_N, count in ((without_N, new), (with_codes_N, new + 16)):
        assert float(more_N.min()) > -1e-5
        assert float(more_N.max()) < math.log1p(1.1 * count / rows) + 1e-5
    if not new:  # all new tokens lie in the source's padding
        torch.testing.assert_close(without_N, torch.zeros_like(without_N), atol=1e-5, rtol=0)
    assert float(with_codes_N.mean()) > 1e-4  # active codes do take part


def test_new_tokens_take_the_next_ids(pair, folders):
    name, source, model, processor, record = pair
    tokenizer, theirs = processor.tokenizer, AutoTokenizer.from_pretrained(folders[name])
    config, first = model.config, len(theirs)
    taken = {attribute: getattr(tokenizer, attribute) for attribute in SPECIAL_TOKENS}
    if name.startswith("qwen2"):
        names = ("boi_token", "eoi_token", "image_token", "image_feature_token")
        assert [taken[attribute] for attribute in names] == IMAGE_TOKENS
        assert (taken["bos_token"], taken["pad_token"]) == ("<|endoftext|>", "<|endoftext|>")
        assert config.mask_token_id == first and len(tokenizer) == first + 1
        assert config.code_offset == rows_of(source) == first + PADDING
        assert config.eos_token_id == [tokenizer.eos_token_id, tokenizer.bos_token_id]
    else:
        fields = ("boi", "eoi", "mask", "image", "image_feature")
        assert [getattr(config, f"{field}_token_id") for field in fields] == list(range(first, first + 5))
        assert config.code_offset == len(tokenizer) == first + 5
        assert (taken["bos_token"], taken["eos_token"]) == (theirs.bos_token, theirs.eos_token)
    assert config.bos_token_id == tokenizer.bos_token_id and config.pad_token_id == tokenizer.pad_token_id
    for attribute, (token, token_id) in record["tokens"].items():
        assert tokenizer.convert_tokens_to_ids(token) == token_id == getattr(tokenizer, f"{attribute}_id")
    rows = {"text_model": rows_of(source), "new_tokens": max(0, len(tokenizer) - rows_of(source)), "codes": 16}
    assert record["rows"] == rows


def test_texts_are_encoded_as_before(pair, folders):
    theirs, tokenizer = AutoTokenizer.from_pretrained(folders[pair[0]]), pair[3].tokenizer
    for text in (*TEXTS, " a\n\nb  c", theirs.eos_token + "\nWörter"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_padding_that_is_a_token_too_gets_gradients(pair):
    """torch keeps the row of `padding_idx` as it is; [SOS] or [EOS] shall be trained."""
    _, _, model, processor, _ = pair
    shared = processor.tokenizer.pad_token_id in (processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id)
    assert (model.get_input_embeddings().padding_idx is None) == shared


def test_the_models_own_chat_goes_on(folders, pair):
    """The same prompt, the same ids, the same greedy answer, but that ours never writes tokens of images as text: what
    a random Qwen does and a trained one does not."""
    name, source, model, processor, _ = pair
    if name == "gemma2":
        assert processor.chat_template == CHAT_TEMPLATE  # it has none
        return
    theirs = AutoTokenizer.from_pretrained(folders[name])
    prompt = theirs.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert processor.apply_chat_template(QUESTION, chat_template="text", add_generation_prompt=True) == prompt
    ids_BT = theirs(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    inputs = processor(text=prompt, add_special_tokens=False)
    assert torch.equal(inputs["input_ids"], ids_BT)
    blocked = model.blocked_ids(images=False)[: rows_of(source)].nonzero().flatten().tolist()
    expected = source.generate(ids_BT, max_new_tokens=8, do_sample=False, suppress_tokens=blocked or None)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False), expected)


def test_our_chat_is_the_default(pair):
    _, _, _, processor, _ = pair
    tokenizer = processor.tokenizer
    said = [{"role": "user", "content": "how many cats?"}, {"role": "assistant", "content": "two"}]
    rendered = processor.apply_chat_template(said)
    assert rendered == f"{tokenizer.bos_token}how many cats?\ntwo{tokenizer.eos_token}"
    encoded = processor.encode_conversations([said])["input_ids"][0].tolist()
    assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == encoded


def test_images_are_drawn_and_read(pair, make_image):
    _, _, model, processor, _ = pair
    model.model.image_head.active_codes.fill_(True)
    said = [
        {"role": "user", "content": "a bus"},
        {"role": "assistant", "content": [{"type": "image", "image": make_image()}]},
    ]
    batch = processor.encode_conversations([said])
    loss = model(**batch).loss
    assert torch.isfinite(loss)
    inputs = processor.apply_chat_template(said[:1], tokenize=True, return_dict=True, generation_mode="image")
    drawn = model.generate(**inputs, generation_mode="image", seed=0, return_dict_in_generate=True)
    assert drawn.images[0][0].shape == (3, 8, 8)


@pytest.mark.parametrize(("paradigm", "tower"), [("unitoken", "siglip"), ("uvu", "siglip2")])
def test_the_tower_sees_as_the_published_one(folders, make_recipe, make_tiny_config, tmp_path, paradigm, tower):
    fields = {"paradigm": paradigm, "tower": str(folders[tower])}
    if paradigm == "uvu":
        PatchCodec(make_tiny_config("uvu").codec_config).save_pretrained(tmp_path / "patch")
        fields |= {"codec": str(tmp_path / "patch"), "parts": {"spatial_merge_size": 2}, "max_features": 64}
    else:
        fields["parts"] = {"tile_grids": None}
    recipe = make_recipe(**fields)
    model = build_model(recipe, build_tokenizer(recipe)).eval()
    source = (SiglipModel if tower == "siglip" else Siglip2Model).from_pretrained(folders[tower]).eval().vision_model
    for name, weights in model.model.encoders["features"].tower.state_dict().items():
        assert torch.equal(weights, source.state_dict()[name]), name
    pixels_CHW = torch.rand(3, 8, 8) * 2 - 1
    with torch.no_grad():
        ours = model.model.encoders["features"].features_of([pixels_CHW])[0]
        if tower == "siglip":
            expected = source(pixel_values=pixels_CHW[None]).last_hidden_state[0]
        else:
            patches = pixels_CHW.permute(1, 2, 0).reshape(1, 64, 3)
            shown = {"pixel_attention_mask": torch.ones(1, 64).long(), "spatial_shapes": torch.tensor([[8, 8]])}
            hidden = source(pixel_values=patches, **shown).last_hidden_state[0]
            squares = hidden.view(4, 2, 4, 2, -1).transpose(1, 2)
            expected = squares.reshape(16, -1)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert float(expected.std()) > 0.1


def test_a_tower_that_does_not_fit_is_named(folders, make_recipe, tmp_path):
    def refused(message, tower, paradigm="unitoken", **parts):
        recipe = make_recipe(paradigm=paradigm, tower=str(tower), parts=parts)
        with pytest.raises(ValueError, match=message):
            build_model(recipe, build_tokenizer(recipe))

    tiles = {"tile_grids": None}
    refused("names the tower .* images are read through .*codes", folders["siglip"], "ugen")
    refused("its parts hold another vision_config", folders["siglip"], **tiles, vision_config={"model_type": "x"})
    refused("holds a 'llama': a tower is one of siglip_vision_model", folders["llama"], **tiles)
    SiglipVisionModel.from_pretrained(folders["siglip"]).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    save_file({**whole, "vision_model.adapter": torch.zeros(3)}, file, {"format": "pt"})
    refused(r"adapter, \(3,\), is no weight of a 'siglip_vision_model'", tmp_path, **tiles)
    save_file(dict(list(whole.items())[1:]), file, {"format": "pt"})
    refused(r"1 of \d+ weights are in none of the checkpoints", tmp_path, **tiles)


def test_text_models_that_do_not_fit_are_named(folders, make_recipe, tmp_path):
    def refused(message, folder, **fields):
        recipe = make_recipe(text_model=str(folder), **fields)
        with pytest.raises(ValueError, match=message):
            build_model(recipe, load_tokenizer(str(folders["llama"])))

    refused("has a shape of its own, .* set text_config to None", folders["llama"], text_config={"hidden_size": 32})
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    config = CohereConfig(**{**SHAPE, "num_hidden_layers": 1}, vocab_size=len(tokenizer), logit_scale=0.5)
    save(CohereForCausalLM(config), tokenizer, tmp_path / "cohere")
    refused("logits of this 'cohere' differ by .* this family computes them", tmp_path / "cohere")
    save_llama(tmp_path / "torn")
    file = tmp_path / "torn" / "model.safetensors"
    weights = load_file(file)
    weights.pop("model.norm.weight")
    save_file(weights, file, {"format": "pt"})
    refused("lacks 1 weights of its model, model.norm.weight for one", tmp_path / "torn")
    torch.save(weights, tmp_path / "torn" / "pytorch_model.bin")
    file.unlink()
    refused("pickled weights are not opened, .* safetensors.torch.save_file", tmp_path / "torn")
    refused("there is no file /nowhere.gguf", "/nowhere.gguf")


def test_a_first_space_depends_on_nothing():
    """Llama-2's tokenizer: behind a special token as alone, and behind it as ever."""

    def encode(text):
        return backend.encode(text, add_special_tokens=False).ids

    backend = Tokenizer(models.BPE({"▁": 0, "a": 1, "b": 2, "▁a": 3}, [("▁", "a")]))
    backend.add_special_tokens(["<s>"])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    assert (encode("a b"), encode("<s>a b")) == ([3, 0, 2], [4, 1, 0, 2])
    put_no_space_first(backend)
    assert (encode("a b"), encode("<s>a b")) == ([1, 0, 2], [4, 1, 0, 2])


def test_a_tokenizer_that_minds_what_stands_before_is_refused(folders, tmp_path):
    save_llama(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["rstrip"] = True
    tokenizer["normalizer"] = {"type": "Strip", "strip_left": False, "strip_right": False}
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
            tokenizer["pre_tokenizer"],
        ],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="encodes 'Two cats.' as .*, and as .* behind <|im_start|>"):
        load_tokenizer(str(tmp_path))


def test_one_command_writes_it_all(folders, make_recipe, tmp_path, capsys):
    arguments = ["--recipe", "ugen/text", "--output", str(tmp_path / "first"), "--codec", str(folders["vq"])]
    main([*arguments, "--text-model", str(folders["qwen2 untied"])])
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "first" / "initialise.json").read_text())
    assert record["text_model"] == str(folders["qwen2 untied"]) and record["revisions"] == {}
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path / "first")
    assert not bool(model.model.image_head.active_codes.any())  # they join in training
    with pytest.raises(ValueError, match="holds a model already"):
        main([*arguments, "--text-model", str(folders["llama"])])
    with pytest.raises(ValueError, match="names no text_model"):
        write_checkpoint(make_recipe(text_model=None), tmp_path / "second")


def test_a_unified_model_is_a_text_model_too(pair, folders, make_recipe, tmp_path):
    """With the padding, the templates and the ends of the model it was made of."""
    name, source, model, processor, _ = pair
    model.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    recipe = make_recipe(text_model=str(tmp_path))
    tokenizer = build_tokenizer(recipe)
    again = build_model(recipe, tokenizer)
    rows = model.config.code_offset
    assert torch.equal(again.lm_head.weight[:rows], model.lm_head.weight[:rows])
    for field in ("code_offset", "eos_token_id", "mask_token_id", "pad_token_id"):
        assert getattr(again.config, field) == getattr(model.config, field), field
    assert build_processor(again.config, tokenizer).chat_template == processor.chat_template


def test_hub_names_are_resolved_without_the_network(tmp_path, monkeypatch):
    """In a cache as the Hub's client keeps it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--model"
    for folder in (repository / "snapshots" / commit / "vae", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for file in ("config.json", "vae/config.json"):
        (repository / "snapshots" / commit / file).write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = repository / "snapshots" / commit
    assert trained_folder("owner/model", "model") == str(found)
    assert trained_folder(f"owner/model/vae@{commit}", "model") == str(found / "vae")
    assert revision_of(str(found)) == revision_of(str(found / "vae")) == commit
    assert revision_of(str(tmp_path)) is None
    with pytest.raises(ValueError, match="runs/nowhere holds no trained codec .* none from the Hub"):
        trained_folder("runs/nowhere", "codec")
    with pytest.raises(ValueError, match=r"/nowhere holds no trained codec \(no config.json\)"):
        trained_folder("/nowhere", "codec")


SMOLLM2 = os.environ.get("SMOLLM2")  # the folder or the GGUF file of SmolLM2-135M-Instruct
QUESTIONS = ["What is the capital of France?", "How many days has a week?", "Name the three primary colours."]
LINES = 200


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The text model, and a unified one made of it that has 16,384 codes."""
    folder = tmp_path_factory.mktemp("smollm2")
    codec = VQCodecConfig(**{**TINY_VQ, "num_vq_embeddings": 16_384})
    VQCodec(codec).save_pretrained(folder / "vq")
    recipe = replace(spark.ugen(), text_config=None, text_model=SMOLLM2, codec=str(folder / "vq"), image_size=8)
    write_checkpoint(recipe, folder / "model")
    model = AutoModelForMultimodalLM.from_pretrained(folder / "model")
    return load_text_model(SMOLLM2).eval(), model, AutoProcessor.from_pretrained(folder / "model")


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2, reason="SMOLLM2 names no folder or GGUF file of SmolLM2-135M-Instruct")
def test_smollm2_answers_as_before(smollm2):
    source, model, processor = smollm2
    for question in QUESTIONS:
        said = [{"role": "user", "content": question}]
        prompt = processor.apply_chat_template(said, chat_template="text", add_generation_prompt=True)
        inputs = processor(text=prompt)
        expected = source.generate(**inputs, max_new_tokens=24, do_sample=False)
        assert torch.equal(model.generate(**inputs, max_new_tokens=24, do_sample=False), expected)
        print(processor.tokenizer.decode(expected[0, inputs["input_ids"].shape[1] :]))


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2, reason="SMOLLM2 names no folder or GGUF file of SmolLM2-135M-Instruct")
@torch.no_grad()
def test_smollm2s_perplexity_stays(smollm2):
    """On definitions that no run of ours is trained on; with all codes active it grows by a little."""
    source, model, processor = smollm2
    rows = datasets.Dataset.from_parquet(str(DATA / "glosses.parquet"))
    texts = rows.filter(lambda split: split == "test", input_columns="split")["text"][:LINES]
    losses = {"before": [], "after": [], "all codes active": []}
    for text in texts:
        batch = processor.encode_conversations([[{"role": "assistant", "content": text}]])
        hidden_NH = model.model(batch["input_ids"]).last_hidden_state[0, :-1]
        ids_N = batch["input_ids"][0, 1:]
        logits_NV = source(batch["input_ids"]).logits[0, :-1]
        losses["before"].append(torch.nn.functional.cross_entropy(logits_NV, ids_N, reduction="none"))
        losses["after"].append(text_losses(model, hidden_NH, ids_N, active=False))
        losses["all codes active"].append(text_losses(model, hidden_NH, ids_N, active=True))
    perplexity = {name: float(torch.cat(each).double().mean().exp()) for name, each in losses.items()}
    print(perplexity)
    assert perplexity["after"] == pytest.approx(perplexity["before"], rel=1e-4)
    assert perplexity["before"] * 1.0001 < perplexity["all codes active"] < perplexity["before"] * 1.01
