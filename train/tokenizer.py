"""Trains the text tokenizer: byte-level BPE whose first ids are the special tokens of a unified model.

Contract: `train_tokenizer(texts, vocab_size)` returns a fast tokenizer of transformers. Its first ids are
`SPECIAL_TOKENS` in their order, then come the 256 bytes, then the merges. Image codes are never entries of it: they
follow at `code_offset >= len(tokenizer)` in the model's embedding.

Our choices: byte level, so that any UTF-8 text comes back unchanged; no space is put before a text, so that a text can
be encoded in pieces; every newline and every digit is a token of its own: the newline, because a prompt ends with one
and the answer after it must encode the same with the prompt as alone; the digits, because counts and sizes are read
digit by digit.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "bos_token": "[SOS]",
    "eos_token": "[EOS]",
    "boi_token": "[SOI]",
    "eoi_token": "[EOI]",
    "mask_token": "[MASK]",
    "image_token": "<|image_slot|>",
    "image_feature_token": "<|image_feature|>",
}
"""Attribute of the tokenizer -> its text. The first six are named in the UGen paper (padding excepted)."""

STANDARD_ATTRIBUTES = ("pad_token", "bos_token", "eos_token", "mask_token")
NUM_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a tokenizer on `texts` (read once).

    Args:
        texts: any iterable of strings; more is better, nothing of it is kept but the merges.
        vocab_size: most ids the tokenizer may have, special tokens included. It has fewer when the texts hold no more
            pairs to merge, so sizes are to be taken from `len(tokenizer)`.

    Returns:
        a tokenizer that puts `[SOS]` before a text and nothing after it, with `boi_token_id`, `eoi_token_id`,
        `image_token_id` and `image_feature_token_id` beside the usual ids. The same texts in the same order give the
        same tokenizer.

    Raises:
        ValueError: if `vocab_size` cannot hold the special tokens and the bytes.
    """
    smallest = len(SPECIAL_TOKENS) + NUM_BYTES
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}, but {len(SPECIAL_TOKENS)} special tokens and {NUM_BYTES} bytes need "
            f"{smallest}: pass at least that"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n|\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    sos = SPECIAL_TOKENS["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{sos} $A", special_tokens=[(sos, backend.token_to_id(sos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{name: SPECIAL_TOKENS[name] for name in STANDARD_ATTRIBUTES},
        extra_special_tokens={k: v for k, v in SPECIAL_TOKENS.items() if k not in STANDARD_ATTRIBUTES},
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
