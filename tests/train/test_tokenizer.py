"""The tokenizer: ids of the special tokens, round trips, and that a text encodes the same in pieces."""

import pytest
from transformers import AutoTokenizer

from train.tokenizer import SPECIAL_TOKENS, train_tokenizer

TEXTS = ["two cats left of a pizza, noto style", "how many cats?\ntwo", "a red heart above a blue circle"] * 4


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=320)


def test_special_tokens_have_the_first_ids_also_after_a_reload(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert [getattr(one, f"{name}_id") for name in SPECIAL_TOKENS] == list(range(8))
        assert one.convert_ids_to_tokens(range(8)) == list(SPECIAL_TOKENS.values())
        assert one("a cat")["input_ids"][0] == one.bos_token_id
        assert set(one("a cat")) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    "text",
    ["a  cat", " lead", "trail \n", "\n\n x\t", "naïve café", "一只猫 🐱‍🚀", "don't ...  !", "x\r\ny", "\x00\x7f"],
)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_digits_and_newlines_stand_alone(tokenizer):
    trained_on_runs = train_tokenizer(["2024\n\n2024 \n"] * 50, vocab_size=320)
    for one in (tokenizer, trained_on_runs):
        pieces = one.tokenize("2024\n\n7", add_special_tokens=False)
        assert len(pieces) == 7


@pytest.mark.parametrize("prompt, answer", [("how many cats?", "two"), ("cats? ", " two"), ("a\n", "\nb"), ("", "")])
def test_an_answer_encodes_the_same_with_its_prompt_as_alone(tokenizer, prompt, answer):
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    assert ids(prompt + "\n" + answer) == ids(prompt + "\n") + ids(answer)


def test_training_is_repeatable(tokenizer):
    assert train_tokenizer(TEXTS, vocab_size=320).get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 263.*need 264"):
        train_tokenizer(TEXTS, vocab_size=263)
