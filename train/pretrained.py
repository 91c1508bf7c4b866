"""Models that others trained, as parts of a first checkpoint: a causal language model, its tokenizer, a vision tower.

Contract: `load_text_model(name)`, `load_tokenizer(name)`, `load_tower(name)`; a name is a folder or a Hub id
(`train.weights.trained_folder`), of a text model also a GGUF file. `copy_text_model(source, target)` fills a unified
model with a text model.

    rows   0 ........... S' ........... S ........ T ......... code_offset ........ end
           the source's  |  its padding |  more    |           |  codes
           tokens        |  new tokens take first  |           |

A vocabulary of S rows may hold fewer tokens, S' (Qwen2.5: 151,936 and 151,665). Tokens that are new get the next ids:
first rows of that padding, as they are in the source, then new rows. Codes begin behind all of them. So every row of
the source, of embedding and head, is bit-equal in the unified model, and logits of text are what they were.

What that does to text: the softmax of a text token has the source's rows, those of new tokens outside its padding, and
with `joint_softmax` those of active codes. A new row at the mean of the source's has the mean of its logits, so by
Jensen's inequality at most the mean of its probabilities: n of them add log(1 + n / S) to a loss at most. New rows are
drawn around the mean, so near that this hardly changes. Measured on SmolLM2-135M, S = 49,152 (nats a token, 936 tokens
of definitions):

    new rows                     5 tokens, no code active    1,024 codes active    16,384 codes active
    mean, SPREAD 0.001 to 0.01   8e-7                        2e-4                  0.003
    mean, SPREAD 0.1 (ours)      1e-6                        2e-4                  0.003
    mean, SPREAD 0.3             3e-6                        6e-4                  0.009
    mean, SPREAD 1               0.014                       1.1                   4.7
    zero, standard deviation     3e-5 to 6e-5                0.003 to 0.006        0.012 to 0.020
    0.02 to 0.04

Hence the rule: text perplexity stays what it was, within 1e-4 of it, where text and codes do not compete in the first
step: no code is active (UGen begins so), `joint_softmax` is off, or image tokens are vectors.

V rows of the vocabulary, H hidden size, T ids of a sequence
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from processing_unified.layout_unified import CHAT_TEMPLATE
from processing_unified.processing_unified import UnifiedProcessor
from train.tokenizer import SPECIAL_TOKENS, STANDARD_ATTRIBUTES
from train.weights import read_weights, tower_weights, trained_folder, weight_files

UNIFIED = "unified"  # our own model_type
TOWERS = ("siglip_vision_model", "siglip2_vision_model")
# Tokens that a tokenizer may have for what ours are for: those of Qwen's vision models, which Qwen2.5 has, too.
KNOWN = {
    "boi_token": "<|vision_start|>",
    "eoi_token": "<|vision_end|>",
    "image_token": "<|vision_pad|>",
    "image_feature_token": "<|image_pad|>",
}
# In what order new ones get their ids: the table's (`PARADIGMS`), where the source has no padding.
ORDER = ("bos_token", "eos_token", "boi_token", "eoi_token", "mask_token", "image_token", "image_feature_token",
         "pad_token")  # fmt: skip
SPREAD = 0.1  # of new rows around the mean, in standard deviations of the source's (our choice, see above)
PROBE = 32  # ids that are read by both models
AGREEMENT = 1e-4  # of their logits, relative to the largest


def source_of(name: str) -> tuple[str, dict[str, str]]:
    """Folder of a text model, and how `from_pretrained` is told of a GGUF file in it."""
    if not name.endswith(".gguf"):
        return trained_folder(name, "text model"), {}
    if not Path(name).is_file():
        raise ValueError(f"there is no file {name}: download the GGUF first")
    return str(Path(name).parent), {"gguf_file": Path(name).name}


def config_of(name: str) -> PreTrainedConfig:
    """The config of a text model."""
    folder, gguf = source_of(name)
    return AutoConfig.from_pretrained(folder, **gguf)


def load_text_model(name: str) -> PreTrainedModel:
    """A causal language model of transformers in float32, or a unified model of ours.

    Raises:
        ValueError: nothing is there, pickled weights, weights that the checkpoint lacks.
    """
    folder, gguf = source_of(name)
    if not gguf:
        weight_files(Path(folder))  # refuses pickles
        if config_of(name).model_type == UNIFIED:
            return UnifiedForConditionalGeneration.from_pretrained(folder)
    how = {"quantization_config": GgufConfig(dequantize=True)} if gguf else {"use_safetensors": True}
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **gguf, **how
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{name} lacks {len(missing)} weights of its model, {missing[0]} for one: it is not whole")
    return model


def backbone_of(text_model: PreTrainedModel) -> PreTrainedModel:
    """The language model without its head."""
    return text_model.model.language_model if is_unified(text_model) else text_model.get_decoder()


def backbone_config(text_model: PreTrainedModel) -> PreTrainedConfig:
    """A copy of the config of its backbone, without how its weights were stored."""
    config = deepcopy(backbone_of(text_model).config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def is_unified(text_model: PreTrainedModel) -> bool:
    return text_model.config.model_type == UNIFIED


def text_rows(text_model: PreTrainedModel) -> int:
    """Rows of its vocabulary that are not codes: ids of tokens and padding."""
    return text_model.config.code_offset if is_unified(text_model) else len(text_model.get_input_embeddings().weight)


def is_tied(text_model: PreTrainedModel) -> bool:
    return text_model.get_output_embeddings().weight is text_model.get_input_embeddings().weight


def end_ids(text_model: PreTrainedModel) -> list[int]:
    """Ids at which it stops: a chat model may have several."""
    ends = text_model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


@torch.no_grad()
def copy_text_model(source: Any, target: Any) -> None:
    """Copies the backbone and the rows of text ids; the two may have different codecs, hence numbers of codes, and the
    target may know more text ids, which follow those of the source.

    Rows that a model of others does not have are drawn around the mean of its rows, those of codes too (our choice, see
    the top of this file; a source of ours leaves them as they are).

    Raises:
        ValueError: the source has more text ids, or a backbone of another shape, or a head that ours cannot be.
    """
    rows, own = text_rows(source), target.config.code_offset
    if rows > own:
        raise ValueError(f"the text model has {rows} text ids, this one has {own}: use the tokenizer of that run")
    tied = is_tied(target)
    if is_tied(source) != tied:
        raise ValueError(f"tie_word_embeddings is {tied} here and {not tied} in the text model: make them equal")
    embedding_VH = source.get_input_embeddings().weight
    mine = target.model.language_model.state_dict()
    for name, weights in backbone_of(source).state_dict().items():
        if weights.data_ptr() == embedding_VH.data_ptr():
            continue  # only its text rows are copied, below
        if name not in mine or mine[name].shape != weights.shape:
            found = tuple(mine[name].shape) if name in mine else "missing"
            raise ValueError(f"{name} is {tuple(weights.shape)} in the text model, {found} here: use its text_config")
        mine[name].copy_(weights)
    matrices = [(embedding_VH, target.get_input_embeddings().weight)]
    if not tied:
        matrices.append((source.get_output_embeddings().weight, target.lm_head.weight))
    for theirs_VH, ours_VH in matrices:
        if not is_unified(source):
            draw_rows(theirs_VH, ours_VH)
        ours_VH[:rows].copy_(theirs_VH[:rows])
    if not is_unified(source):
        check_logits(source, target)


def draw_rows(known_VH: torch.Tensor, rows_VH: torch.Tensor) -> None:
    """Rows [V, H] around the mean of the known ones: normal, `SPREAD` of their standard deviation in each number."""
    spread_H = SPREAD * known_VH.std(0)
    rows_VH.copy_(known_VH.mean(0) + spread_H * torch.randn(rows_VH.shape, device=rows_VH.device))


def check_logits(source: PreTrainedModel, target: Any) -> None:
    """Refuses a family whose logits are more than products of hidden states and head, as far as ours know of: a bias, a
    scale."""
    rows, special = text_rows(source), target.config.special_token_ids
    ids_1T = torch.tensor(
        [[each for each in torch.linspace(0, rows - 1, PROBE).long().tolist() if each not in special]]
    )
    was_training = target.training
    theirs_1TV, ours_1TV = source.eval()(ids_1T).logits, target.eval()(ids_1T).logits[..., :rows]
    target.train(was_training)
    apart, largest = float((theirs_1TV - ours_1TV).abs().max()), float(theirs_1TV.abs().max())
    if not apart <= AGREEMENT * largest:
        raise ValueError(
            f"logits of this {source.config.model_type!r} differ by {apart:.3g}, of up to {largest:.3g}, from what our "
            "head makes of its weights: this family computes them in a way that ours does not know"
        )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a text model, with our special tokens, at most as long as the model's context.

    Of a model of others every id stays what it is. Of our tokens those that it has are taken (pad, begin, end; [MASK]
    and the like by their names, and Qwen's for images), the others get the next ids. A text is encoded as before, but
    for one thing: no space is put before the first word of a text, so that a text encodes the same alone, as a piece of
    a conversation, and behind a special token. (Llama-2's tokenizer puts one there at the beginning of a string only,
    where our strings have a special token.)

    Its own chat template stays beside ours under the name "text": `apply_chat_template(..., chat_template="text")`.
    Ours, the default, knows neither its roles nor its system prompt.

    Raises:
        ValueError: a tokenizer without the `tokenizers` library's file, or one that encodes a text differently behind
            a special token.
    """
    folder, gguf = source_of(name)
    config = config_of(name)
    if config.model_type == UNIFIED:
        return UnifiedProcessor.from_pretrained(folder).tokenizer
    base = AutoTokenizer.from_pretrained(folder, **gguf)
    if not base.is_fast:
        raise ValueError(f"{name} has no tokenizer.json: save its tokenizer with a fast class of transformers first")
    named = special_tokens(base, config.get_text_config())
    backend = base.backend_tokenizer
    known = backend.get_vocab(with_added_tokens=True)
    backend.add_special_tokens([named[token] for token in ORDER if named[token] not in known])
    put_no_space_first(backend)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{token: named[token] for token in STANDARD_ATTRIBUTES},
        **{token: text for token, text in base.special_tokens_map.items() if token not in named},
        extra_special_tokens={token: named[token] for token in named if token not in STANDARD_ATTRIBUTES},
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=min(base.model_max_length, config.get_text_config().max_position_embeddings),
        clean_up_tokenization_spaces=False,
    )
    others = [token for token in base.extra_special_tokens if str(token) not in named.values()]
    tokenizer.add_special_tokens({"extra_special_tokens": others})
    tokenizer.chat_template = beside_ours(base.chat_template)
    check_pieces(tokenizer, name)
    return tokenizer


def special_tokens(base: PreTrainedTokenizerBase, config: PreTrainedConfig) -> dict[str, str]:
    """Our special tokens by attribute: the tokenizer's own, what the model's config says, those of the same purpose,
    or new ones by our names."""
    known, named = base.get_vocab(), {}
    for attribute, ours in SPECIAL_TOKENS.items():
        own = getattr(base, attribute, None)
        number = getattr(config, f"{attribute}_id", None)
        if own is None and isinstance(number, int):  # Qwen's tokenizer names no beginning, its config does
            own = base.convert_ids_to_tokens(number)
        if own is None and KNOWN.get(attribute) in known:
            own = KNOWN[attribute]
        named[attribute] = ours if own is None else str(own)
    return named


def put_no_space_first(backend: Any) -> None:
    """Metaspace of a string's first word only would depend on whether a special token stands before it."""
    metaspace = backend.pre_tokenizer
    if isinstance(metaspace, pre_tokenizers.Metaspace) and metaspace.prepend_scheme == "first":
        metaspace.prepend_scheme = "never"
        backend.pre_tokenizer = metaspace


def check_pieces(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuses a tokenizer that encodes a text differently alone and behind a special token, by ValueError."""
    text = "Two cats."
    alone = tokenizer.encode(text, add_special_tokens=False)
    for token in (tokenizer.bos_token, tokenizer.eoi_token):
        behind = tokenizer.encode(token + text, add_special_tokens=False)[1:]
        if behind != alone:
            raise ValueError(
                f"the tokenizer of {name} encodes {text!r} as {alone}, and as {behind} behind {token}: texts could not "
                "be put together with images as in training; save it with a pre-tokenizer that does not do so"
            )


def beside_ours(template: str | dict[str, str] | None) -> dict[str, str] | None:
    """Chat templates of the processor: ours, and those of the text model, its default one as "text"."""
    if template is None:
        return None
    named = {"default": template} if isinstance(template, str) else template
    return {"default": CHAT_TEMPLATE} | {"text" if name == "default" else name: named[name] for name in named}


def load_tower(name: str) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """The vision model of a SigLIP or SigLIP-2, whole or saved alone: its config, and its weights by the names of
    transformers' vision model. Text model, scale and the head that pools features are left out.

    Raises:
        ValueError: nothing is there, pickled weights, another tower.
    """
    folder = trained_folder(name, "vision tower")
    config = AutoConfig.from_pretrained(folder)
    vision = getattr(config, "vision_config", config)
    if vision.model_type not in TOWERS:
        raise ValueError(f"{name} holds a {vision.model_type!r}: a tower is one of {', '.join(TOWERS)}")
    vision.vision_use_head = False
    return vision, tower_weights(read_weights(Path(folder)))
