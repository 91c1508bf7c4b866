"""Size and newline tokens between the tokens of an image (order "lines"), and codes in the middle of a vocabulary.

L image tokens, S positions of an image between [SOI] and [EOI], T sequence, V vocabulary.
"""

import pytest
import torch

from modeling_unified import UnifiedForConditionalGeneration
from processing_unified.layout_unified import Lines, image_script

GREEDY = {"do_sample": False}


@pytest.fixture
def config(make_tiny_config):
    return make_tiny_config("unitoken")


@pytest.fixture
def model(config):
    config.text_config.initializer_range = 0.2  # wide enough that predictions differ from place to place
    torch.manual_seed(0)
    return UnifiedForConditionalGeneration(config).eval()


@pytest.fixture
def processor(make_tiny_processor, config):
    return make_tiny_processor(config)


def said(role: str, *content: dict) -> dict:
    return {"role": role, "content": list(content)}


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (2, 3), (5, 1)])
def test_the_script_is_sizes_rows_and_newlines_for_the_model_as_for_the_processor(model, config, grid):
    rows, columns = grid
    slot, first = config.image_token_id, config.size_token_offset
    line = [slot] * columns + [config.newline_token_id]
    expected = [first + rows, first + columns, *line * rows]  # a unit of 2 pixels, as the codec's stride
    assert model.model.image_order.script(grid).tolist() == expected
    lines = Lines(**config.image_lines)
    assert image_script(grid, config.codec_config.stride, slot, lines) == expected


def test_a_size_without_a_token_is_refused_everywhere(model, config, processor, make_tiny_config, make_image):
    longest = config.max_image_side
    message = f"no token names a side of {longest + 4} pixels: choose multiples of 2 up to {longest}"
    with pytest.raises(ValueError, match=message):
        model.generate(**processor(text="a cat"), generation_mode="image", image_size=(8, longest + 4))
    with pytest.raises(ValueError, match=message):
        processor(text="<|image_slot|>", images=make_image(), size={"height": 8, "width": longest + 4})
    with pytest.raises(ValueError, match=message):
        make_tiny_config("unitoken", image_size=[8, longest + 4])
    with pytest.raises(ValueError, match="size tokens .* must be rows of the vocabulary"):
        make_tiny_config("unitoken", max_image_side=10_000)
    with pytest.raises(ValueError, match="'lines' needs newline_token_id and size_token_offset, not None"):
        make_tiny_config("unitoken", newline_token_id=None)


def test_what_is_read_and_what_is_written_stand_as_published(config, processor, make_image):
    image = {"type": "image", "image": make_image()}
    conversation = [said("user", image), said("assistant", image)]
    slot, feature, sep = config.image_token_id, config.image_feature_token_id, config.sep_token_id
    script = processor._image_ids(["image_token"], (4, 4), 0)
    read = [config.boi_token_id, *script, sep, *[feature] * 4, config.eoi_token_id]
    for with_features, written in ((False, [config.boi_token_id, *script, config.eoi_token_id]), (True, read)):
        batch = processor.encode_conversations([conversation], features_of_written=with_features)
        ids = [config.bos_token_id, *read, *written, config.eos_token_id]
        assert batch["input_ids"][0].tolist() == ids
        labels = [-100] * (1 + len(read)) + [-100 if i == feature else i for i in written] + [config.eos_token_id]
        assert batch["labels"][0].tolist() == labels and slot in labels
        assert len(batch["feature_pixel_values"]) == 1 + with_features and len(batch["pixel_values"]) == 2


def test_features_behind_a_written_image_tell_its_codes_nothing(model, config, processor, make_image):
    """They stand after the codes in a causal model: other features change no loss of a code."""
    words = {"type": "text", "text": "a cat"}
    conversation = [said("user", words), said("assistant", {"type": "image", "image": make_image()})]
    batch = processor.encode_conversations([conversation], features_of_written=True)
    with torch.no_grad():
        own = model(**batch)
        others = model(**batch | {"feature_pixel_values": -batch["feature_pixel_values"]})
    assert torch.equal(own.image_loss, others.image_loss) and len(own.image_loss) == 16
    assert not torch.equal(own.text_loss, others.text_loss)  # [EOI] stands behind them


def test_tokens_without_pixels_must_fill_the_known_grid(processor):
    image = {"type": "image", "image_tokens": torch.zeros(15, dtype=torch.long)}
    with pytest.raises(ValueError, match="image_tokens of 15 are not the 4x4 of the image processor's size"):
        processor.encode_conversations([[said("user", {"type": "text", "text": "a"}), said("assistant", image)]])


def test_an_image_of_any_named_size_is_drawn_row_by_row(model, config, processor):
    prompt = processor(text=["a cat", "two"])
    drawn = model.generate(**prompt, generation_mode="image", image_size=(4, 12), seed=0, return_dict_in_generate=True)
    script_S = model.model.image_order.script((2, 6))
    image_BS = drawn.sequences[:, prompt["input_ids"].shape[1] + 1 : -1]
    forced_S = script_S != config.image_token_id
    assert torch.equal(image_BS[:, forced_S], script_S[forced_S].expand(2, -1))
    codes_BL = image_BS[:, ~forced_S] - config.code_offset
    assert torch.equal(codes_BL, torch.stack([row[0] for row in drawn.image_tokens]))
    assert [row[0].shape for row in drawn.images] == [(3, 4, 12)] * 2
    decoded = model.decode_image_tokens(drawn.sequences, image_size=(4, 12))
    assert torch.equal(decoded[1][0], drawn.images[1][0])


def test_text_never_holds_what_stands_between_image_tokens(model, config, processor):
    blocked_V = model.blocked_ids(images=True)
    between = {config.sep_token_id, config.newline_token_id, *config.size_token_ids}
    assert blocked_V[sorted(between)].all() and not blocked_V[config.boi_token_id]
    assert not blocked_V[config.eos_token_id] and not blocked_V[processor.tokenizer.encode("cat")[-1]]


def test_codes_may_stand_in_the_middle_of_the_vocabulary(make_tiny_config, config, processor):
    """As Chameleon's do: the same weights with rows moved predict and draw the same."""
    text, codes = config.code_offset, config.num_codes
    torch.manual_seed(0)
    last = UnifiedForConditionalGeneration(config).eval()
    first, rows = 4, text + codes
    # new row -> old row: codes at 4.., text ids from 4 on behind them
    old = [*range(first), *range(text, rows), *range(first, text)]

    def moved(token_id: int) -> int:
        return token_id if token_id < first else token_id + codes

    names = [name for name in config.to_dict() if name.endswith("_token_id") and getattr(config, name) is not None]
    ids = {name: moved(getattr(config, name)) for name in names}
    sizes = {"size_token_offset": moved(config.size_token_offset)}
    middle = UnifiedForConditionalGeneration(make_tiny_config("unitoken", code_offset=first, **ids, **sizes)).eval()
    weights = dict(last.state_dict())
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][old]
    middle.load_state_dict(weights)

    prompt_BT = processor(text=["a cat"])["input_ids"]
    settings = {"generation_mode": "image", "image_sampling": GREEDY, "return_dict_in_generate": True}
    drawn = last.generate(prompt_BT, **settings)
    moved_BT = torch.tensor([[moved(i) for i in prompt_BT[0].tolist()]])
    again = middle.generate(moved_BT, **settings)
    assert torch.equal(drawn.image_tokens[0][0], again.image_tokens[0][0])
    assert torch.equal(middle.decode_image_tokens(again.sequences)[0][0], drawn.images[0][0])
    torch.testing.assert_close(middle(moved_BT).logits, last(prompt_BT).logits[..., old])


def test_the_z_loss_is_added_to_text_and_codes_in_training_alone(make_tiny_config, processor, make_image):
    """The difference is the weight times the square of each softmax's log normaliser."""
    torch.manual_seed(0)
    model = UnifiedForConditionalGeneration(make_tiny_config("unitoken", z_loss_weight=0.5)).eval()
    words, image = {"type": "text", "text": "a cat"}, {"type": "image", "image": make_image()}
    batch = processor.encode_conversations([[said("user", words), said("assistant", image)]])
    plain = model(**batch, skip_logits=False)
    trained = model.train()(**batch)
    predicted = batch["labels"][:, 1:] != -100
    squares_N = plain.logits[:, :-1][predicted].logsumexp(-1).square()
    codes_N = batch["labels"][:, 1:][predicted] == model.config.image_token_id
    torch.testing.assert_close(trained.text_loss, plain.text_loss + 0.5 * squares_N[~codes_N])
    torch.testing.assert_close(trained.image_loss, plain.image_loss + 0.5 * squares_N[codes_N])
