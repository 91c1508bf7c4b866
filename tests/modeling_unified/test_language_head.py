"""The language head: its logits, and the losses of its tokens against plain autograd in float64.

N positions, H hidden size, V vocabulary.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from modeling_unified import language_head_unified
from modeling_unified.heads_unified import CategoricalHead
from modeling_unified.language_head_unified import (
    FusedLosses,
    LanguageHead,
    Targets,
    is_bare,
    logits_of,
    losses_together,
    token_losses,
)

POSITIONS, HIDDEN = 9, 32
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
BF16 = {"atol": 0.05, "rtol": 0.05}


class Wrapped(nn.Module):
    """Stands for a language head, as the layer of an adapter does."""

    def __init__(self, lm_head: LanguageHead):
        super().__init__()
        self.inner, self.more = lm_head, nn.Linear(HIDDEN, lm_head.out_features, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.inner.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden) + self.more(hidden)


@pytest.fixture
def config(tiny_config):
    return tiny_config


@pytest.fixture
def lm_head(config):
    return LanguageHead(config.text_config)


@pytest.fixture
def hidden_NH():
    return (torch.randn(POSITIONS, HIDDEN) * 3).requires_grad_()


@pytest.fixture
def ids_N(lm_head):
    return torch.randint(lm_head.weight.shape[0], (POSITIONS,))


@pytest.fixture
def chunks_of(monkeypatch, lm_head):
    """Callable: so many positions are computed at once."""

    def set_chunk(positions: int) -> None:
        monkeypatch.setattr(language_head_unified, "MAX_LOGITS", positions * lm_head.weight.shape[0])

    return set_chunk


@pytest.fixture
def products(monkeypatch):
    """Products of hidden states and rows, as they come."""
    seen, plain = [], language_head_unified.losses_and_slopes

    def watched(products_nR, *rest):
        seen.append(products_nR)
        return plain(products_nR, *rest)

    monkeypatch.setattr(language_head_unified, "losses_and_slopes", watched)
    return seen


def counting() -> FlopCounterMode:
    """Counts products that are added in place as well, which torch's counter leaves out."""

    def added(total, left, right, **rest):
        return 2 * left[0] * left[1] * right[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added})


def expected(hidden_NH, weight_VH, ids_N, upstream_N, cap=None, closed_V=None, rows=slice(None), z_loss_weight=0.0):
    """Losses and both gradients of the plain computation, float64."""
    hidden_NH, weight_VH = (x.detach().double().requires_grad_() for x in (hidden_NH, weight_VH))
    logits_NV = F.linear(hidden_NH, weight_VH)
    if cap:
        logits_NV = cap * (logits_NV / cap).tanh()
    left_V = torch.ones(len(weight_VH), dtype=torch.bool)
    left_V[rows] = False
    if closed_V is not None:
        left_V |= closed_V
    logits_NV = logits_NV.masked_fill(left_V, -torch.inf)
    losses_N = F.cross_entropy(logits_NV, ids_N, reduction="none")
    losses_N = losses_N + z_loss_weight * logits_NV.exp().sum(-1).log() ** 2
    return losses_N.detach(), *torch.autograd.grad((losses_N * upstream_N).sum(), [hidden_NH, weight_VH])


def check(losses_N, hidden_NH, weight_VH, ids_N, upstream_N, tolerance=TOLERANCE, retain_graph=False, **softmax):
    """Our losses and gradients are the plain ones, and have the dtypes of what they belong to."""
    grads = torch.autograd.grad((losses_N * upstream_N).sum(), [hidden_NH, weight_VH], retain_graph=retain_graph)
    plain = expected(hidden_NH, weight_VH, ids_N, upstream_N, **softmax)
    assert losses_N.dtype == torch.float32
    assert [grad.dtype for grad in grads] == [hidden_NH.dtype, weight_VH.dtype]
    for found, wanted in zip((losses_N.detach(), *grads), plain, strict=True):
        torch.testing.assert_close(found.double(), wanted, **tolerance)
    return grads


@pytest.mark.parametrize("chunk", [100, 4, 1])
@pytest.mark.parametrize("upstream", ["one", "a count's share", "each its own", "some of them none"])
def test_losses_and_gradients_are_those_of_cross_entropy(lm_head, hidden_NH, ids_N, chunks_of, chunk, upstream):
    """In one piece, in chunks of four positions with a rest of one, and one by one."""
    chunks_of(chunk)
    upstream_N = {
        "one": torch.ones(POSITIONS),
        "a count's share": torch.full((POSITIONS,), 0.3 / 7),
        "each its own": torch.rand(POSITIONS),
        "some of them none": (torch.arange(POSITIONS) % 3 == 1).float(),
    }[upstream]
    check(token_losses(hidden_NH, ids_N, lm_head), hidden_NH, lm_head.weight, ids_N, upstream_N)


@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("rows", [slice(None), slice(12), slice(12, None)])
@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("even", [True, False])
def test_caps_rows_and_closed_rows(lm_head, hidden_NH, chunks_of, cap, rows, closes, even):
    """A cap far below the logits, so that it is seen. A row outside the softmax has a gradient of exactly zero."""
    chunks_of(4)
    lm_head.cap = cap
    vocab_size = lm_head.weight.shape[0]
    inside_V = torch.zeros(vocab_size, dtype=torch.bool)
    inside_V[rows] = True
    closed_V = torch.arange(vocab_size) % 5 == 2 if closes else None
    if closes:
        inside_V &= ~closed_V
    ids_N = inside_V.nonzero()[:, 0][torch.randint(int(inside_V.sum()), (POSITIONS,))]
    upstream_N = torch.full((POSITIONS,), 0.2) if even else torch.rand(POSITIONS)
    losses_N = token_losses(hidden_NH, ids_N, lm_head, closed_V, rows)
    softmax = {"cap": cap, "closed_V": closed_V, "rows": rows}
    _, grad_VH = check(losses_N, hidden_NH, lm_head.weight, ids_N, upstream_N, **softmax)
    assert torch.equal(grad_VH.any(-1), inside_V)


@pytest.mark.parametrize("chunk", [100, 4])
@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("rows", [slice(None), slice(12), slice(12, None)])
@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("wrap", [lambda lm_head: lm_head, Wrapped])
def test_z_loss(lm_head, hidden_NH, chunks_of, chunk, cap, rows, even, wrap):
    """With a joint softmax and separate ones, some rows closed, made with the losses or by autograd."""
    chunks_of(chunk)
    lm_head.cap, module = cap, wrap(lm_head)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter is lm_head.weight)
    if wrap is Wrapped:
        module.more.weight.data.zero_()
    closed_V = torch.arange(lm_head.weight.shape[0]) % 5 == 2
    inside_V = torch.zeros_like(closed_V)
    inside_V[rows] = True
    ids_N = (inside_V & ~closed_V).nonzero()[:, 0][torch.randint(9, (POSITIONS,))]
    upstream_N = torch.full((POSITIONS,), 0.2) if even else torch.rand(POSITIONS)
    losses_N = token_losses(hidden_NH, ids_N, module, closed_V, rows, z_loss_weight=0.1)
    softmax = {"cap": cap, "closed_V": closed_V, "rows": rows}
    check(losses_N, hidden_NH, lm_head.weight, ids_N, upstream_N, **softmax, z_loss_weight=0.1)
    plain_N = token_losses(hidden_NH, ids_N, module, closed_V, rows)
    assert bool((losses_N > plain_N + 0.01).all()), "it would prove nothing"


def test_a_z_loss_of_no_weight_costs_and_changes_nothing(lm_head, hidden_NH, ids_N, monkeypatch):
    def losses_and_gradients(**weight):
        losses_N = token_losses(hidden_NH, ids_N, lm_head, **weight)
        return losses_N.detach(), *torch.autograd.grad(losses_N.sum(), [hidden_NH, lm_head.weight])

    plain, weighed = losses_and_gradients(), losses_and_gradients(z_loss_weight=1e-5)
    assert not any(torch.equal(one, other) for one, other in zip(plain, weighed, strict=True))

    def no_logsumexp(*args):
        raise AssertionError("it was computed")

    monkeypatch.setattr(torch.Tensor, "logsumexp", no_logsumexp, raising=False)
    for found, wanted in zip(losses_and_gradients(z_loss_weight=0.0), plain, strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(AssertionError, match="it was computed"):
        losses_and_gradients(z_loss_weight=1e-5)


def test_a_closed_target_has_an_infinite_loss_and_its_row_no_gradient(lm_head, hidden_NH, ids_N):
    closed_V = torch.zeros(lm_head.weight.shape[0], dtype=torch.bool)
    closed_V[ids_N[0]] = True
    lm_head.cap = 2.0
    losses_N = token_losses(hidden_NH, ids_N, lm_head, closed_V)
    losses_N.sum().backward()
    assert losses_N[0] == torch.inf and not lm_head.weight.grad[ids_N[0]].any()
    assert lm_head.weight.grad.isfinite().all() and hidden_NH.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["weights", "autocast"])
@pytest.mark.parametrize("even", [True, False])
def test_half_precision(lm_head, chunks_of, kind, even):
    """Products in bfloat16, softmax and the sum over chunks in float32: one position at a time costs no precision."""
    positions = 200
    hidden_NH, ids_N = torch.randn(positions, HIDDEN) * 3, torch.randint(lm_head.weight.shape[0], (positions,))
    if kind == "weights":
        lm_head, hidden_NH = lm_head.bfloat16(), hidden_NH.bfloat16()
    hidden_NH.requires_grad_()
    upstream_N = torch.full((positions,), 0.3) if even else torch.rand(positions)
    grads = []
    for chunk in (positions, 1):
        chunks_of(chunk)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            losses_N = token_losses(hidden_NH, ids_N, lm_head)
        grads += [check(losses_N, hidden_NH, lm_head.weight, ids_N, upstream_N, BF16)[1]]
    plain = expected(hidden_NH, lm_head.weight, ids_N, upstream_N)[2]
    errors = [float((grad.double() - plain).norm() / plain.norm()) for grad in grads]
    assert errors[1] < 1.2 * errors[0] < 0.01


def test_products_under_autocast_are_in_its_dtype(lm_head, hidden_NH, ids_N, products):
    """Also those of a backward pass that computes logits again, where autocast is off."""
    with torch.autocast("cpu", torch.bfloat16):
        losses_N = token_losses(hidden_NH, ids_N, lm_head)
    (losses_N * torch.rand(POSITIONS)).sum().backward()
    assert [product.dtype for product in products] == [torch.bfloat16] * 2
    in_bf16_NV = (hidden_NH.bfloat16() @ lm_head.weight.bfloat16().T).float()
    torch.testing.assert_close(losses_N, F.cross_entropy(in_bf16_NV, ids_N, reduction="none"))


def test_float16_waits_for_the_loss_scale(lm_head, hidden_NH, ids_N, monkeypatch):
    """In float16 a scale of 2^16 must reach the softmax's gradient before it is rounded."""
    monkeypatch.delattr(FusedLosses, "forward")
    with torch.no_grad():
        lm_head.weight.mul_(1e-3)
    scale = 2.0**16
    with torch.autocast("cpu", torch.float16):
        losses_N = token_losses(hidden_NH * 1e-3, ids_N, lm_head)
    (losses_N.sum() * scale / 1000).backward()
    plain = expected(hidden_NH * 1e-3, lm_head.weight, ids_N, torch.full((POSITIONS,), scale / 1000))[2]
    torch.testing.assert_close(lm_head.weight.grad.double(), plain, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_what_is_frozen_costs_no_product(lm_head, hidden_NH, ids_N, chunks_of, frozen):
    chunks_of(4)
    (lm_head.weight if frozen == "weight" else hidden_NH).requires_grad_(False)
    with counting() as counter:
        losses_N = token_losses(hidden_NH, ids_N, lm_head)
        losses_N.sum().backward()
    one_product = 2 * POSITIONS * HIDDEN * lm_head.weight.shape[0]
    assert counter.get_total_flops() == 2 * one_product
    assert (lm_head.weight.grad is None) is (frozen == "weight")
    assert (hidden_NH.grad is None) is (frozen == "hidden")
    _, grad_NH, grad_VH = expected(hidden_NH, lm_head.weight, ids_N, torch.ones(POSITIONS))
    found, wanted = (hidden_NH.grad, grad_NH) if frozen == "weight" else (lm_head.weight.grad, grad_VH)
    torch.testing.assert_close(found.double(), wanted, **TOLERANCE)


@pytest.mark.parametrize("rows", [slice(None), slice(12)])
def test_three_products_over_the_rows_of_the_softmax(lm_head, hidden_NH, chunks_of, rows):
    """No fourth one, which computing logits again would cost; other rows are not multiplied."""
    chunks_of(2)
    count = len(range(*rows.indices(lm_head.weight.shape[0])))
    with counting() as counter:
        token_losses(hidden_NH, torch.arange(POSITIONS), lm_head, rows=rows).mean().backward()
    assert counter.get_total_flops() == 3 * 2 * POSITIONS * HIDDEN * count


def test_losses_that_are_dropped_after_all_cost_their_forward_pass_only(lm_head, hidden_NH, ids_N):
    keep_N = (torch.arange(POSITIONS) < 2).float()
    losses_N = token_losses(hidden_NH, ids_N, lm_head)
    with counting() as counter:
        (losses_N * keep_N).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 2 * HIDDEN * lm_head.weight.shape[0]  # logits and matrix, 2 positions


def test_logits_of_a_chunk_and_no_more(lm_head, hidden_NH, ids_N, chunks_of, products):
    chunks_of(2)
    token_losses(hidden_NH, ids_N, lm_head).sum().backward()
    assert [len(product) for product in products] == [2, 2, 2, 2, 1]


def test_without_gradients_there_are_losses_only(lm_head, hidden_NH, ids_N, chunks_of):
    chunks_of(4)
    with torch.no_grad(), counting() as counter:
        losses_N = token_losses(hidden_NH, ids_N, lm_head)
    assert counter.get_total_flops() == 2 * POSITIONS * HIDDEN * lm_head.weight.shape[0]
    assert not losses_N.requires_grad
    wanted_N = expected(hidden_NH, lm_head.weight, ids_N, torch.ones(POSITIONS))[0]
    torch.testing.assert_close(losses_N.double(), wanted_N, **TOLERANCE)


@pytest.mark.parametrize("even", [True, False])
def test_a_graph_is_used_twice(lm_head, hidden_NH, ids_N, even):
    losses_N = token_losses(hidden_NH, ids_N, lm_head)
    first_N = torch.full((POSITIONS,), 0.3) if even else torch.rand(POSITIONS)
    for upstream_N, more in ((first_N, True), (torch.full((POSITIONS,), 0.7), True), (first_N, False)):
        check(losses_N, hidden_NH, lm_head.weight, ids_N, upstream_N, retain_graph=more)


def test_gradients_accumulate_and_become_grad_without_a_copy(lm_head, hidden_NH, ids_N):
    """Four micro-batches with one count are one batch; the matrix made in the forward pass is `.grad` itself."""
    places = []
    lm_head.weight.register_hook(lambda grad: places.append(grad.data_ptr()))
    told = []
    lm_head.weight.register_post_accumulate_grad_hook(lambda parameter: told.append(parameter is lm_head.weight))
    for part in (slice(0, 3), slice(3, 4), slice(4, 4), slice(4, 9)):
        (token_losses(hidden_NH[part], ids_N[part], lm_head).sum() / POSITIONS).backward()
        assert lm_head.weight.grad.data_ptr() == places[0]
    assert told == [True] * 4  # what data-parallel training waits for, also from a rank without targets
    _, grad_NH, grad_VH = expected(hidden_NH, lm_head.weight, ids_N, torch.full((POSITIONS,), 1 / POSITIONS))
    torch.testing.assert_close(hidden_NH.grad.double(), grad_NH, **TOLERANCE)
    torch.testing.assert_close(lm_head.weight.grad.double(), grad_VH, **TOLERANCE)


def test_tied_embeddings_learn_from_both_sides(lm_head, ids_N):
    embedding = nn.Embedding(*lm_head.weight.shape, _weight=lm_head.weight)
    embedding.weight = lm_head.weight
    token_losses(embedding(ids_N.flip(0)), ids_N, lm_head).sum().backward()
    weight_VH = lm_head.weight.detach().double().requires_grad_()
    F.cross_entropy(weight_VH[ids_N.flip(0)] @ weight_VH.T, ids_N, reduction="sum").backward()
    torch.testing.assert_close(lm_head.weight.grad.double(), weight_VH.grad, **TOLERANCE)


def test_no_positions_give_no_losses(lm_head, hidden_NH):
    losses_N = token_losses(hidden_NH[:0], torch.zeros(0, dtype=torch.long), lm_head)
    assert losses_N.shape == (0,) and losses_N.requires_grad
    losses_N.sum().backward()
    assert not lm_head.weight.grad.any() and not hidden_NH.grad.any()


@pytest.mark.parametrize(("rows", "target"), [(slice(None), -100), (slice(12), 12), (slice(12, None), 11)])
def test_targets_outside_the_softmax_are_refused(lm_head, hidden_NH, ids_N, rows, target):
    first, end, _ = rows.indices(lm_head.weight.shape[0])
    ids_N = torch.full_like(ids_N, first)
    ids_N[3] = target
    with pytest.raises(ValueError, match=rf"target ids .*{target}.* exceed the rows {first}\.\.{end - 1} of"):
        token_losses(hidden_NH, ids_N, lm_head, rows=rows)


TEXT = 12  # rows of text
SOFTMAXES = {
    "own rows": (slice(TEXT), slice(TEXT, None)),
    "one softmax": (slice(None), slice(None)),
    "some rows in common": (slice(TEXT), slice(5, None)),
}
WEIGHTS = {  # upstream gradients of five texts and four images
    "one count": ([0.3] * 5, [0.3] * 4),
    "weighted": ([0.3] * 5, [0.07] * 4),
    "text only": ([0.3] * 5, [0.0] * 4),
    "images only": ([0.0] * 5, [0.3] * 4),
    "some images": ([0.3] * 5, [0.0, 0.1, 0.3, 0.1]),
    "each its own": ([0.5, 0.1, -0.2, 0.9, 0.3], [0.7, 0.0, 0.4, 0.8]),
    "none": ([0.0] * 5, [0.0] * 4),
}


def groups_of(hidden_NH, rows, vocab_size: int) -> list[Targets]:
    """Five targets and four, of even ids, within rows of their own or not."""
    texts, images = (torch.arange(*each.indices(vocab_size)) for each in rows)
    drawn = [(each[each % 2 == 0])[torch.randint(4, (count,))] for each, count in ((texts, 5), (images, 4))]
    return [Targets(hidden_NH[:5], drawn[0], rows[0]), Targets(hidden_NH[5:], drawn[1], rows[1])]


def check_together(losses, groups, hidden_NH, weight_VH, upstream, tolerance=TOLERANCE, retain_graph=False, **softmax):
    """Losses and gradients are the sums of the plain ones of each group."""
    upstream_N = torch.tensor([*upstream[0], *upstream[1]])
    total = (torch.cat(losses) * upstream_N).sum()
    grad_NH, grad_VH = torch.autograd.grad(total, [hidden_NH, weight_VH], retain_graph=retain_graph)
    plain = [
        expected(group.hidden_NH, weight_VH, group.ids_N, torch.tensor(weights), rows=group.rows, **softmax)
        for group, weights in zip(groups, upstream, strict=True)
    ]
    for found, (wanted, _, _) in zip(losses, plain, strict=True):
        torch.testing.assert_close(found.detach().double(), wanted, **tolerance)
    assert [grad_NH.dtype, grad_VH.dtype] == [hidden_NH.dtype, weight_VH.dtype]
    torch.testing.assert_close(grad_NH.double(), torch.cat([grad for _, grad, _ in plain]), **tolerance)
    torch.testing.assert_close(grad_VH.double(), sum(grad for _, _, grad in plain), **tolerance)
    return grad_VH


@pytest.mark.parametrize("rows", SOFTMAXES.values(), ids=SOFTMAXES)
@pytest.mark.parametrize("upstream", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("chunk", [100, 2])
def test_losses_of_text_and_images_together(lm_head, hidden_NH, chunks_of, rows, upstream, chunk):
    """In one backward pass, and again over the same graph; a cap, closed rows and a z-loss take part."""
    chunks_of(chunk)
    lm_head.cap, vocab_size = 2.0, len(lm_head.weight)
    closed_V = torch.arange(vocab_size) % 5 == 2
    closed_V[::2] = False  # targets are even
    groups = groups_of(hidden_NH, rows, vocab_size)
    losses = losses_together(groups, lm_head, closed_V, z_loss_weight=0.1)
    softmax = {"cap": 2.0, "closed_V": closed_V, "z_loss_weight": 0.1}
    for weights, more in ((upstream, True), (WEIGHTS["weighted"], True), (upstream, False)):
        grad_VH = check_together(losses, groups, hidden_NH, lm_head.weight, weights, retain_graph=more, **softmax)
        assert not grad_VH[closed_V].any()
        if rows is SOFTMAXES["own rows"]:  # what nothing reaches is exactly zero
            assert [bool(grad_VH[part].any()) for part in rows] == [any(each) for each in weights]


def test_groups_without_targets_and_rows_outside_all_softmaxes(lm_head, hidden_NH):
    upstream, vocab_size = WEIGHTS["weighted"], len(lm_head.weight)
    groups = groups_of(hidden_NH, (slice(3, TEXT), slice(20, None)), vocab_size)
    empty = Targets(hidden_NH[:0], torch.zeros(0, dtype=torch.long), slice(14, 18))
    first, none, last = losses_together([groups[0], empty, groups[1]], lm_head)
    assert none.shape == (0,)
    grad_VH = check_together([first, last], groups, hidden_NH, lm_head.weight, upstream)
    reached_V = torch.ones(vocab_size, dtype=torch.bool)
    reached_V[[0, 1, 2, *range(TEXT, 20)]] = False
    assert torch.equal(grad_VH.any(-1), reached_V)


@pytest.mark.parametrize(
    ("rows", "upstream", "again"),
    [
        ("own rows", "weighted", 0),
        ("one softmax", "one count", 0),
        ("one softmax", "none", 0),
        ("one softmax", "weighted", 4),
        ("one softmax", "images only", 4),
        ("own rows", "some images", 2),
    ],
)
def test_only_losses_with_an_upstream_gradient_of_their_own_are_computed_again(
    lm_head, hidden_NH, rows, upstream, again
):
    """Where softmaxes share rows: those of the smaller group. Logits and the product of the matrix's gradient."""
    groups = groups_of(hidden_NH, SOFTMAXES[rows], len(lm_head.weight))
    losses = losses_together(groups, lm_head)
    with counting() as counter:
        (torch.cat(losses) * torch.tensor([*WEIGHTS[upstream][0], *WEIGHTS[upstream][1]])).sum().backward()
    count = len(range(*groups[1].rows.indices(len(lm_head.weight))))
    assert counter.get_total_flops() == again * 2 * 2 * HIDDEN * count


class Matrices(TorchDispatchMode):
    """Holds all memory of a matrix's size that operations return, so that no two of them get the same place."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.held = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.untyped_storage().nbytes() >= self.size:
            self.held.append(output.untyped_storage())
        return output


@pytest.mark.parametrize("rows", SOFTMAXES.values(), ids=SOFTMAXES)
@pytest.mark.parametrize("upstream", WEIGHTS.values(), ids=WEIGHTS)
def test_one_gradient_of_the_matrix_for_all_losses(config, lm_head, hidden_NH, rows, upstream):
    """It is `.grad` in the end. Two calls make two."""
    groups = groups_of(hidden_NH, rows, len(lm_head.weight))
    upstream_N = torch.tensor([*upstream[0], *upstream[1]])

    def matrices(losses_of_groups) -> int:
        lm_head.weight.grad = None
        own = lm_head.weight.untyped_storage()
        with Matrices(own.nbytes()) as watched:
            (torch.cat(losses_of_groups()) * upstream_N).sum().backward()
        held = {storage.data_ptr() for storage in watched.held} - {own.data_ptr()}
        assert lm_head.weight.grad.data_ptr() in held
        return len(held)

    assert matrices(lambda: losses_together(groups, lm_head)) == 1
    assert matrices(lambda: [losses_together([group], lm_head)[0] for group in groups]) > 1


def test_groups_without_targets_make_no_copy_of_the_matrix(lm_head, hidden_NH):
    """Which products in another precision need."""
    own, none = lm_head.weight.untyped_storage(), Targets(hidden_NH[:0], torch.zeros(0, dtype=torch.long))
    with torch.autocast("cpu", torch.bfloat16), Matrices(own.nbytes() // 2) as watched:
        losses_together([none, none], lm_head)
    assert len({storage.data_ptr() for storage in watched.held} - {own.data_ptr()}) == 1  # the gradient


@pytest.mark.parametrize("rows", ["own rows", "one softmax"])
@pytest.mark.parametrize("upstream", ["one count", "weighted", "each its own"])
def test_losses_together_in_half_precision(lm_head, hidden_NH, rows, upstream):
    lm_head, hidden_NH = lm_head.bfloat16(), hidden_NH.detach().bfloat16().requires_grad_()
    groups = groups_of(hidden_NH, SOFTMAXES[rows], len(lm_head.weight))
    losses = losses_together(groups, lm_head)
    check_together(losses, groups, hidden_NH, lm_head.weight, WEIGHTS[upstream], BF16)


@pytest.mark.parametrize("upstream", ["one count", "weighted", "each its own"])
@pytest.mark.parametrize("rows", ["own rows", "one softmax"])
def test_tied_embeddings_learn_from_losses_together(lm_head, ids_N, rows, upstream):
    embedding = nn.Embedding(*lm_head.weight.shape, _weight=lm_head.weight)
    embedding.weight = lm_head.weight
    upstream_N = torch.tensor([*WEIGHTS[upstream][0], *WEIGHTS[upstream][1]])
    groups = groups_of(embedding(ids_N), SOFTMAXES[rows], len(lm_head.weight))
    (torch.cat(losses_together(groups, lm_head)) * upstream_N).sum().backward()
    weight_VH = lm_head.weight.detach().double().requires_grad_()
    logits_NV, plain = weight_VH[ids_N] @ weight_VH.T, []
    for part, (_, targets_n, own) in zip((slice(5), slice(5, None)), groups, strict=True):
        plain.append(F.cross_entropy(logits_NV[part, own], targets_n - (own.start or 0), reduction="none"))
    (torch.cat(plain) * upstream_N).sum().backward()
    torch.testing.assert_close(lm_head.weight.grad.double(), weight_VH.grad, **TOLERANCE)


def lora(lm_head: LanguageHead) -> nn.Module:
    peft = pytest.importorskip("peft")
    layer = peft.inject_adapter_in_model(
        peft.LoraConfig(target_modules=["lm_head"], r=4), nn.ModuleDict({"lm_head": lm_head})
    ).lm_head
    nn.init.normal_(layer.lora_B["default"].weight)  # zero at the start: an adapter without effect would prove nothing
    return layer


def hooked(lm_head: LanguageHead) -> nn.Module:
    lm_head.register_forward_hook(lambda module, args, logits: 2 * logits)
    return lm_head


def replaced(lm_head: LanguageHead) -> nn.Module:
    """As accelerate attaches what loads a weight when its module is called."""
    forward = lm_head.forward
    lm_head.forward = lambda hidden: 2 * forward(hidden)
    return lm_head


@pytest.mark.parametrize("wrap", [lora, Wrapped, hooked, replaced])
@pytest.mark.parametrize("rows", [slice(None), slice(12, None)])
def test_a_module_that_is_more_than_its_matrix_is_called(config, lm_head, hidden_NH, chunks_of, wrap, rows):
    assert is_bare(lm_head)
    module = wrap(lm_head)
    assert not is_bare(module)
    chunks_of(4)
    ids_N, closed_V = torch.randint(12, 36, (POSITIONS,)), torch.arange(lm_head.out_features) % 50 == 3
    learned = [hidden_NH, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
    losses_N = token_losses(hidden_NH, ids_N, module, closed_V, rows)
    logits_NR = module(hidden_NH).masked_fill(closed_V, -torch.inf)[:, rows]
    plain_N = F.cross_entropy(logits_NR, ids_N - (rows.start or 0), reduction="none")
    torch.testing.assert_close(losses_N, plain_N)
    upstream_N = torch.rand(POSITIONS)
    found, wanted = (torch.autograd.grad((x * upstream_N).sum(), learned) for x in (losses_N, plain_N))
    for grad, plain in zip(found, wanted, strict=True):
        torch.testing.assert_close(grad, plain, **TOLERANCE)
    head = CategoricalHead(config)
    greedy = head.sampling_defaults | {"do_sample": False}
    drawn_N = head.sample(hidden_NH, module, greedy)
    assert torch.equal(drawn_N, module(hidden_NH)[:, head.code_offset :].argmax(-1))


@pytest.mark.parametrize("joint", [True, False])
def test_text_and_codes_compete_or_not(make_tiny_config, sharp, joint):
    """Without a joint softmax the text loss leaves rows of codes exactly alone, and the image loss those of text."""
    config = make_tiny_config(joint_softmax=joint)
    model, head = sharp(config), CategoricalHead(config)
    slot, offset = config.image_token_id, config.code_offset
    ids_BT = torch.tensor([[50, 51, 52, config.boi_token_id, *[slot] * 16, config.eoi_token_id]])
    tokens_NL = torch.randint(16, (1, 16))
    output = model(input_ids=ids_BT, labels=ids_BT, image_tokens=tokens_NL, output_hidden_states=True)
    weight_VH = model.lm_head.weight
    losses = output.text_loss, output.image_loss
    text_VH, image_VH = (torch.autograd.grad(loss.sum(), weight_VH, retain_graph=True)[0] for loss in losses)
    assert bool(text_VH[offset:].any()) is joint and bool(image_VH[:offset].any()) is joint
    logits_TV = output.hidden_states[-1][0, :-1] @ weight_VH.T
    targets_T = ids_BT[0, 1:]
    is_image_T = targets_T == slot
    codes_N = tokens_NL[0] + offset
    text_rows, code_rows = (slice(None),) * 2 if joint else (slice(offset), slice(offset, None))
    text_N = F.cross_entropy(logits_TV[~is_image_T][:, text_rows], targets_T[~is_image_T], reduction="none")
    image_N = F.cross_entropy(logits_TV[is_image_T][:, code_rows], codes_N - (code_rows.start or 0), reduction="none")
    torch.testing.assert_close(output.text_loss, text_N)
    torch.testing.assert_close(output.image_loss, image_N)
    assert (head.text_rows, head.code_rows) == (text_rows, code_rows)


def test_logits_are_capped_as_those_of_the_backbone_family(make_tiny_config):
    """Gemma-2: our `lm_head` on its hidden states gives its own logits, all rows or some."""
    text_config = make_tiny_config().text_config.to_dict() | {"model_type": "gemma2", "head_dim": 8}
    config = make_tiny_config(text_config=text_config).text_config
    config.final_logit_softcapping = 0.5  # far below the logits, so that it is seen
    theirs = AutoModelForCausalLM.from_config(config).eval()
    ours = LanguageHead(config)
    ours.weight = theirs.lm_head.weight
    output = theirs(torch.arange(5)[None], output_hidden_states=True)
    hidden_NH = output.hidden_states[-1][0]
    torch.testing.assert_close(ours(hidden_NH), output.logits[0])
    torch.testing.assert_close(logits_of(hidden_NH, ours, slice(7, None)), output.logits[0, :, 7:])
    assert output.logits.abs().max() < 0.5 and LanguageHead(make_tiny_config().text_config).cap is None
