"""Decoding of images whose tokens are vectors, in any order: seeds, orders, guidance, editing, interleaving, bad input.

B batch, T sequence, L image tokens, D numbers of a token.
"""

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from modeling_unified import UnifiedForConditionalGeneration

L, D = 16, 8
QUICK = {"num_inference_steps": 4}


@pytest.fixture
def config(make_tiny_config):
    return make_tiny_config("unifluid", image_inputs=["features", "latents"])


@pytest.fixture
def model(sharp, config):
    """With a head that does not begin at zero: what it draws hangs on the hidden state."""
    model = sharp(config)
    for parameter in model.model.image_head.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture
def processor(make_tiny_processor, config):
    return make_tiny_processor(config)


@pytest.fixture
def draw(model, processor):
    def draw(*prompts: str, **settings):
        arguments = {"generation_mode": "image", "seed": 0, "image_sampling": QUICK, "return_dict_in_generate": True}
        return model.generate(**processor(text=list(prompts)), **(arguments | settings))

    return draw


def tokens_of(drawn) -> torch.Tensor:
    return torch.stack([tokens_LD for row in drawn.image_tokens for tokens_LD in row])


def test_an_image_is_its_grid_of_vectors_decoded(model, draw):
    drawn = draw("a cat", "two pizzas and a dog")
    tokens_BLD = tokens_of(drawn)
    assert tokens_BLD.shape == (2, L, D) and tokens_BLD.dtype == torch.float32
    expected = model.model.codec.decode(tokens_BLD, (4, 4))
    torch.testing.assert_close(torch.stack([row[0] for row in drawn.images]), expected)
    between = drawn.sequences[:, -L - 1 : -1]
    assert (between == model.config.mask_token_id).all()  # a vector has no id
    assert (drawn.sequences[:, -L - 2] == model.config.boi_token_id).all()
    assert (drawn.sequences[:, -1] == model.config.eoi_token_id).all()


def test_the_same_seed_gives_the_same_image_at_any_place_of_any_batch(draw):
    """Order and noise are the row's own."""
    together = tokens_of(draw("a cat", "a dog", "two pizzas", seed=[5, 6, 7], guidance_scale=2.0))
    alone = tokens_of(draw("a dog", seed=6, guidance_scale=2.0))
    torch.testing.assert_close(together[1:2], alone, atol=2e-3, rtol=2e-3)  # sixteen tokens, each drawn after the last
    assert not torch.allclose(tokens_of(draw("a dog", seed=7, guidance_scale=2.0)), alone)


def test_an_order_can_be_asked_for(draw, model):
    reverse = torch.arange(L).flip(0)[None]
    raster, named = draw("a cat", image_order=torch.arange(L)[None]), draw("a cat", image_order="raster")
    assert torch.equal(tokens_of(raster), tokens_of(named))
    assert not torch.allclose(tokens_of(raster), tokens_of(draw("a cat", image_order=reverse)))
    own = tokens_of(draw("a cat"))
    assert torch.equal(own, tokens_of(draw("a cat", image_order="random")))
    assert not torch.allclose(own, tokens_of(raster))


def test_tokens_stand_at_the_places_their_order_names(draw, model):
    """Of the first step: its token alone hangs on the prompt alone, wherever the order puts it."""
    for table in model.model.image_order.next:
        table.weight.data.zero_()  # the same hidden state whatever the first place is
    first = tokens_of(draw("a cat", image_order=torch.arange(L)[None]))[0, 0]
    last_first = torch.tensor([[L - 1, *range(L - 1)]])
    torch.testing.assert_close(tokens_of(draw("a cat", image_order=last_first))[0, L - 1], first)


def test_guidance_of_one_is_the_plain_path(draw):
    plain = tokens_of(draw("a cat"))
    assert torch.equal(plain, tokens_of(draw("a cat", guidance_scale=1.0)))
    constant = {**QUICK, "guidance_schedule": "constant"}
    guided = [tokens_of(draw("a cat", guidance_scale=s, image_sampling=constant)) for s in (1.0, 1.0001, 3.0)]
    torch.testing.assert_close(guided[0], guided[1], atol=5e-2, rtol=5e-2)
    assert (guided[2] - guided[0]).abs().max() > (guided[1] - guided[0]).abs().max()


def test_linear_guidance_begins_as_the_plain_path(draw, model):
    """The first token is drawn at scale 1, later ones at more and more."""
    order = torch.arange(L)[None]
    plain, linear = (tokens_of(draw("a cat", image_order=order, guidance_scale=s)) for s in (1.0, 3.0))
    torch.testing.assert_close(linear[0, 0], plain[0, 0])
    assert not torch.allclose(linear[0, 1:], plain[0, 1:])


def test_an_edit_reads_its_source_and_its_instruction(model, processor, make_image):
    def edited(image, words):
        prompt = processor(images=[image], text=processor.tokenizer.image_token + words)
        assert {"pixel_values", "feature_pixel_values"} <= prompt.keys()
        settings = {"generation_mode": "image", "seed": 1, "image_sampling": QUICK, "guidance_scale": 2.0}
        return tokens_of(model.generate(**prompt, **settings, return_dict_in_generate=True))

    first = edited(make_image(1), "make it red")
    assert torch.equal(first, edited(make_image(1), "make it red"))
    assert not torch.allclose(first, edited(make_image(2), "make it red"))
    assert not torch.allclose(first, edited(make_image(1), "remove the cat"))


class Begin(LogitsProcessor):
    """Asks for [SOI] at one length of the sequence; never lets it end."""

    def __init__(self, config, at: int):
        self.config, self.at = config, at

    def __call__(self, input_ids, scores):
        scores[:, [self.config.boi_token_id, self.config.eos_token_id]] = -torch.inf
        if input_ids.shape[1] == self.at:
            scores[:, self.config.boi_token_id] = 1e4
        return scores


def test_text_image_text_in_one_call(model, processor):
    prompt = processor(text="a cat")
    start = prompt["input_ids"].shape[1]
    drawn = model.generate(
        **prompt,
        generation_mode="interleaved",
        seed=0,
        image_sampling=QUICK,
        max_new_tokens=L + 8,
        logits_processor=LogitsProcessorList([Begin(model.config, start + 3)]),
        return_dict_in_generate=True,
    )
    assert [len(row) for row in drawn.images] == [1]
    new = drawn.sequences[:, start:]
    parts = processor.post_process_multimodal_output(new, images=drawn.images, generation_mode="interleaved")[0]
    kinds = [type(part).__name__ for part in parts]
    assert kinds.count("Image") == 1 and kinds.index("Image") == 1 and kinds[0] == kinds[-1] == "str"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"image_sampling": {"top_k": 5}}, "image_sampling has no \\['top_k'\\]"),
        ({"image_sampling": {"num_inference_steps": 0}}, "num_inference_steps"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"image_order": "spiral"}, "image_order 'spiral': this model draws in 'random' or 'raster'"),
        ({"image_order": torch.zeros(1, L, dtype=torch.long)}, "is no permutation of the 16 places"),
        ({"image_order": torch.arange(L).expand(2, L)}, "2 orders for 1 rows"),
    ],
)
def test_what_cannot_be_asked_for(draw, settings, message):
    with pytest.raises(ValueError, match=message):
        draw("a cat", **settings)


def test_sequences_do_not_hold_vectors(model, draw):
    with pytest.raises(ValueError, match="image tokens are vectors, which sequences of ids do not hold"):
        model.decode_image_tokens(draw("a cat").sequences)


def test_a_model_of_raster_order_draws_in_no_other(sharp, make_tiny_config, make_tiny_processor):
    config = make_tiny_config("unifluid", image_order="raster")
    model, processor = sharp(config), make_tiny_processor(config)
    arguments = {"generation_mode": "image", "image_sampling": QUICK}
    model.generate(**processor(text="a cat"), **arguments, image_order=torch.arange(L)[None])
    with pytest.raises(ValueError, match="has learned raster order only"):
        model.generate(**processor(text="a cat"), **arguments, image_order=torch.arange(L).flip(0)[None])


@pytest.mark.parametrize("name", ["pixel_values", "feature_pixel_values"])
def test_a_view_that_is_missing_is_asked_for_by_name(model, processor, make_image, name):
    prompt = processor(images=[make_image(1)], text=processor.tokenizer.image_token)
    del prompt[name]
    with pytest.raises(ValueError, match=name):
        model.generate(**prompt)


def test_parts_that_do_not_fit_each_other_are_refused(make_tiny_config):
    with pytest.raises(ValueError, match="the codec 'kl' makes vectors, which 'categorical' cannot handle"):
        make_tiny_config("unifluid", image_head="categorical")
    with pytest.raises(ValueError, match="the codec 'kl' makes vectors, which 'codes' cannot handle"):
        make_tiny_config("unifluid", image_inputs=["codes"], vision_config=None)
    with pytest.raises(ValueError, match="the codec 'vq' makes codes, which 'diffusion' cannot handle"):
        make_tiny_config("ugen", image_head="diffusion")
    with pytest.raises(ValueError, match="are two codecs"):
        make_tiny_config("unifluid", image_codec="vq")
    with pytest.raises(ValueError, match="'features' and a vision_config go together"):
        make_tiny_config("unifluid", vision_config=None)
    with pytest.raises(ValueError, match="diffusion_objective 'score'"):
        make_tiny_config("unifluid", diffusion_objective="score")


def test_the_head_starts_as_it_should_inside_a_model_too(make_tiny_config):
    """transformers initialises every layer its own way; the head's gates and outputs must still begin at zero."""
    config = make_tiny_config("unifluid")
    config.text_config.initializer_range = 0.5
    model = UnifiedForConditionalGeneration(config)
    head = model.model.image_head
    for layer in (head.net.modulation, head.net.output):
        assert not layer.weight.any() and not layer.bias.any()
    assert (head.token_embedding[1].weight == 0.5).all() and (head.net.blocks[0].norm.weight == 1).all()
    bound = (6 / sum(head.net.hidden_projection.weight.shape)) ** 0.5  # Xavier's, uniform
    assert 0.8 * bound < head.net.hidden_projection.weight.abs().max() <= bound
    assert head.net.time_mlp[0].weight.std() < 0.03
    assert model.lm_head.weight.std() > 0.4
