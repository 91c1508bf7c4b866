"""The categorical head: inactive codes, its softmax beside that of text, guidance, and drawing from a distribution.

N positions, H hidden size, V vocabulary, K codes.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modeling_unified.configuration_unified import PARTS
from modeling_unified.heads_unified import HEADS, CategoricalHead, draw, warpers
from modeling_unified.language_head_unified import LanguageHead, token_losses

SAMPLING = CategoricalHead.sampling_defaults
GREEDY = SAMPLING | {"do_sample": False}
HIDDEN = 32


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


@pytest.fixture
def head(tiny_config):
    return CategoricalHead(tiny_config)


@pytest.fixture
def lm_head(tiny_config):
    return LanguageHead(tiny_config.text_config)


@pytest.fixture
def hidden_NH():
    return torch.randn(9, HIDDEN) * 3


def activate(head: CategoricalHead, *codes: int) -> None:
    head.active_codes.zero_()
    head.active_codes[list(codes)] = True


def image_losses(head, hidden_NH, codes_N, lm_head):
    """Without any text."""
    text = hidden_NH[:0], torch.zeros(0, dtype=torch.long)
    return head.losses(text, (hidden_NH, codes_N), lm_head)[1]


def code_logits(head, lm_head, hidden_NH):
    return lm_head(hidden_NH)[:, head.code_offset :]


def test_every_head_that_is_offered_exists():
    assert HEADS.keys() == set(PARTS["image_head"])


def test_inactive_codes_become_mask_in_inputs_and_targets(head, lm_head, hidden_NH):
    activate(head, 3, 5)
    codes = torch.tensor([[3, 4], [5, 15]])
    expected = torch.tensor([[3 + head.code_offset, head.mask_token_id], [5 + head.code_offset, head.mask_token_id]])
    assert torch.equal(head.ids(codes), expected)
    embedding = nn.Embedding(*lm_head.weight.shape)
    assert torch.equal(head.embed(codes, embedding), embedding(expected))
    closed_V = head.closed_rows(lm_head.weight.shape[0])
    losses_N = image_losses(head, hidden_NH[:4], codes.flatten(), lm_head)
    assert torch.equal(losses_N, token_losses(hidden_NH[:4], expected.flatten(), lm_head, closed_V))


@pytest.mark.parametrize("codes", [[16], [-1], [0, 99]])
def test_codes_out_of_range_are_refused(head, codes):
    with pytest.raises(ValueError, match=r"codes -?\d+..\d+ exceed the codec's 0..15|codes -1..-1 exceed"):
        head.ids(torch.tensor(codes))


@pytest.mark.parametrize("loss_on_mask", [True, False])
def test_a_mask_target_is_trained_on_or_not(make_tiny_config, lm_head, hidden_NH, loss_on_mask):
    head = CategoricalHead(make_tiny_config(loss_on_mask=loss_on_mask))
    activate(head, 3)
    hidden_NH.requires_grad_()
    losses_N = image_losses(head, hidden_NH[:2], torch.tensor([3, 4]), lm_head)
    losses_N.sum().backward()
    assert losses_N[0] > 0 and hidden_NH.grad[0].any()
    assert bool(losses_N[1] > 0) is loss_on_mask and bool(hidden_NH.grad[1].any()) is loss_on_mask


def test_a_softmax_of_codes_alone_has_no_mask_to_predict(make_tiny_config, lm_head, hidden_NH):
    head = CategoricalHead(make_tiny_config(joint_softmax=False))
    activate(head, 3, 5)
    with pytest.raises(ValueError, match="1 of 3 targets are inactive codes.*loss_on_mask=False"):
        image_losses(head, hidden_NH[:3], torch.tensor([3, 4, 5]), lm_head)
    head.loss_on_mask = False
    losses_N = image_losses(head, hidden_NH[:3], torch.tensor([3, 4, 5]), lm_head)
    logits_N2 = code_logits(head, lm_head, hidden_NH)[[0, 2]][:, [3, 5]]
    expected_N = F.cross_entropy(logits_N2, torch.tensor([0, 1]), reduction="none")
    torch.testing.assert_close(losses_N[[0, 2]], expected_N)
    assert losses_N[1] == 0


@pytest.mark.parametrize("in_softmax", [True, False])
def test_rows_of_inactive_codes_are_in_the_softmax_or_not(make_tiny_config, lm_head, hidden_NH, in_softmax):
    head = CategoricalHead(make_tiny_config(inactive_codes_in_softmax=in_softmax))
    assert head.closed_rows(lm_head.weight.shape[0]) is None  # while all codes are active
    activate(head, 3)
    losses_N = image_losses(head, hidden_NH[:2], torch.tensor([3, 4]), lm_head)
    text_N = token_losses(hidden_NH[2:], torch.arange(7), lm_head, head.closed_rows(lm_head.weight.shape[0]))
    (losses_N.sum() + text_N.sum()).backward()
    inactive_KH = lm_head.weight.grad[head.code_offset :][~head.active_codes]
    others_VH = lm_head.weight.grad[: head.code_offset + 4]
    assert bool(inactive_KH.any(-1).all()) is in_softmax and bool(inactive_KH.any()) is in_softmax
    assert others_VH[: head.code_offset].any(-1).all() and others_VH[head.code_offset + 3].any()
    logits_V = lm_head(hidden_NH[0])
    kept = torch.ones_like(logits_V, dtype=torch.bool)
    if not in_softmax:
        kept[head.code_offset :] = head.active_codes
    expected = logits_V[kept].logsumexp(-1) - logits_V[head.code_offset + 3]
    torch.testing.assert_close(losses_N[0], expected)


def test_inactive_codes_and_mask_are_never_drawn(head, lm_head, hidden_NH):
    activate(head, 1, 8)
    hot = SAMPLING | {"temperature": 100.0}
    drawn = torch.cat(
        [head.sample(hidden_NH, lm_head, hot, generators=generators(9, first=9 * i)) for i in range(40)]
        + [head.sample(hidden_NH, lm_head, hot, null_hidden_NH=-hidden_NH) for _ in range(10)]
    )
    assert set(drawn.tolist()) == {1, 8}  # codes, hence never an id of text such as [MASK]
    assert set(head.sample(hidden_NH, lm_head, GREEDY).tolist()) <= {1, 8}


def test_a_model_without_any_active_code_does_not_draw(head, lm_head, hidden_NH):
    activate(head)
    with pytest.raises(ValueError, match="no image code is active yet"):
        head.sample(hidden_NH, lm_head, GREEDY)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0, 7.5])
def test_guidance_is_the_formula(head, lm_head, hidden_NH, scale):
    null_NH = torch.randn_like(hidden_NH)
    sampling = SAMPLING | {"guidance_scale": scale}
    cond, null = (code_logits(head, lm_head, x).double() for x in (hidden_NH, null_NH))
    guided = (null + scale * (cond - null)).float()
    drawn = head.sample(hidden_NH, lm_head, sampling, null_NH, generators(9))
    assert torch.equal(drawn, draw(guided, True, generators(9)))
    greedy = head.sample(hidden_NH, lm_head, sampling | {"do_sample": False}, null_NH)
    assert torch.equal(greedy, guided.argmax(-1))


def test_guidance_of_one_is_the_condition_and_of_zero_its_absence(head, lm_head, hidden_NH):
    null_NH = torch.randn_like(hidden_NH)
    alone = {name: head.sample(x, lm_head, GREEDY) for name, x in (("cond", hidden_NH), ("null", null_NH))}
    assert not torch.equal(alone["cond"], alone["null"])
    for scale, name in ((1.0, "cond"), (0.0, "null")):
        sampling = GREEDY | {"guidance_scale": scale}
        assert torch.equal(head.sample(hidden_NH, lm_head, sampling, null_NH), alone[name])


def test_only_the_rows_of_the_codes_are_multiplied(head, lm_head, hidden_NH):
    with FlopCounterMode(display=False) as counter:
        before = head.sample(hidden_NH, lm_head, SAMPLING, generators=generators(9))
    assert counter.get_total_flops() == 2 * 9 * HIDDEN * head.num_codes
    with torch.no_grad():
        lm_head.weight[: head.code_offset] = torch.nan
    assert torch.equal(head.sample(hidden_NH, lm_head, SAMPLING, generators=generators(9)), before)


def test_top_k_and_top_p_and_temperature(head, lm_head, hidden_NH):
    logits_NK = code_logits(head, lm_head, hidden_NH)
    ranked_NK = logits_NK.argsort(-1, descending=True)
    hot = SAMPLING | {"temperature": 50.0}
    for sampling, allowed in (
        (hot | {"top_k": 3}, 3),
        (hot | {"top_k": 1}, 1),
        (SAMPLING | {"top_p": 1e-6}, 1),
        (SAMPLING | {"temperature": 1e-4}, 1),
    ):
        for i in range(30):
            drawn_N = head.sample(hidden_NH, lm_head, sampling, generators=generators(9, first=100 * i))
            assert (ranked_NK[:, :allowed] == drawn_N[:, None]).any(-1).all()
    assert not list(warpers(SAMPLING))  # the defaults change nothing


def test_greedy_is_the_greatest(head, lm_head, hidden_NH):
    expected_N = code_logits(head, lm_head, hidden_NH).argmax(-1)
    assert torch.equal(head.sample(hidden_NH, lm_head, GREEDY), expected_N)
    assert torch.equal(head.sequence_ids(expected_N), expected_N + head.code_offset)


@pytest.mark.parametrize("source", ["one generator a row", "one generator, many draws", "torch's own"])
def test_draws_follow_the_probabilities(source):
    probs_V = torch.tensor([0.02, 0.5, 0.0, 0.08, 0.3, 0.1])
    scores_V = probs_V.log()
    count = 4000
    if source == "one generator a row":
        drawn_N = draw(scores_V.expand(count, -1), True, generators(count))
    elif source == "torch's own":
        drawn_N = draw(scores_V.expand(count, -1), True)
    else:
        one = generators(1)
        drawn_N = torch.cat([draw(scores_V[None], True, one) for _ in range(count)])
    found_V = drawn_N.bincount(minlength=6)
    assert found_V[2] == 0
    kept = probs_V > 0
    assert chisquare(found_V[kept].numpy(), (probs_V[kept].double() * count).numpy()).pvalue > 1e-3


def test_a_row_depends_on_its_own_generator_alone():
    scores_NV = torch.randn(4, 50)
    together = draw(scores_NV, True, generators(4))
    alone = [int(draw(scores_NV[i : i + 1], True, generators(1, first=i))) for i in range(4)]
    assert together.tolist() == alone
    backwards = draw(scores_NV.flip(0), True, generators(4)[::-1])
    assert backwards.flip(0).tolist() == alone
    same = draw(scores_NV[:1].expand(50, -1), True, generators(50))
    assert len(same.unique()) > 10


def test_half_precision_weights(head, lm_head, hidden_NH):
    codes_N = torch.arange(9)
    lm_head, hidden_NH = lm_head.bfloat16(), hidden_NH.bfloat16()
    losses_N = image_losses(head, hidden_NH, codes_N, lm_head)
    assert losses_N.dtype == torch.float32
    expected_N = F.cross_entropy(lm_head(hidden_NH).float(), codes_N + head.code_offset, reduction="none")
    torch.testing.assert_close(losses_N, expected_N)
    drawn_N = head.sample(hidden_NH, lm_head, SAMPLING | {"guidance_scale": 2.0}, -hidden_NH, generators(9))
    assert drawn_N.dtype == torch.int64 and 0 <= drawn_N.min() and drawn_N.max() < head.num_codes


def test_a_uniform_prediction_costs_the_logarithm_of_the_open_vocabulary(head, lm_head, hidden_NH):
    activate(head, 0, 1)
    losses_N = image_losses(head, torch.zeros_like(hidden_NH), torch.zeros(9, dtype=torch.long), lm_head)
    torch.testing.assert_close(losses_N, torch.full((9,), math.log(head.code_offset + 2)))


@pytest.mark.parametrize(
    ("name", "value"), [("guidance_scale", -0.5), ("temperature", 0.0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5)]
)
def test_bad_settings_are_refused(head, name, value):
    head.check_sampling(SAMPLING)
    with pytest.raises(ValueError, match=f"{name} {value} must"):
        head.check_sampling(SAMPLING | {name: value})


def test_reset_parameters_activates_all_codes_unless_they_were_loaded(head):
    activate(head, 3)
    head.active_codes._is_hf_initialized = True
    head.reset_parameters()
    assert int(head.active_codes.sum()) == 1
    del head.active_codes._is_hf_initialized
    head.reset_parameters()
    assert bool(head.active_codes.all())
