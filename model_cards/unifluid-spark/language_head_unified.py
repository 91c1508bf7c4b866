"""The language head: logits over the one vocabulary of text and codes, and their losses where it has 350,000 rows.

Contract: `logits_of(hidden, lm_head, rows)`; `token_losses(hidden, ids, lm_head, closed, rows, z_loss_weight) ->
unreduced`, and `losses_together` of several groups of targets, which share one gradient of the matrix. `lm_head` is a
`LanguageHead`, or a module that stands for one and has its `weight`, such as a LoRA layer around it.

N positions, n positions of a chunk, H hidden size, V vocabulary, R rows of it that take part in a softmax.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig

# Elements of logits that are computed at once, and of their softmax beside them. Each chunk passes over the whole
# matrix and its gradient: chunks of 190 positions of 350,000 rows make that small beside the products (our choice).
MAX_LOGITS = 2**26
ALL_ROWS = slice(None)


class LanguageHead(nn.Linear):
    """`lm_head` of the backbone's family: Gemma-2 caps its logits softly at +-`final_logit_softcapping`."""

    def __init__(self, text_config: PreTrainedConfig):
        super().__init__(text_config.hidden_size, text_config.vocab_size, bias=False)
        self.cap = getattr(text_config, "final_logit_softcapping", None)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return capped(super().forward(hidden), self.cap)


def capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return cap * torch.tanh(logits / cap) if cap else logits


def is_bare(lm_head: nn.Module) -> bool:
    """Whether its logits come from its own matrix and nothing else, so that the matrix may be used directly.

    Not so with a layer around it (LoRA), with hooks (which gather, load or move the matrix when it is called), or with
    a matrix that is sharded or quantised: such a module must be called.
    """
    hooks = lm_head._forward_pre_hooks, lm_head._forward_hooks, lm_head._backward_pre_hooks, lm_head._backward_hooks
    hooked = any(hooks) or "forward" in vars(lm_head)
    return type(lm_head) is LanguageHead and type(lm_head.weight) is nn.Parameter and not hooked


def logits_of(hidden: torch.Tensor, lm_head: nn.Module, rows: slice = ALL_ROWS) -> torch.Tensor:
    """Logits [..., R] of some rows of the vocabulary. The others are not multiplied, unless the module must be called
    (`is_bare`)."""
    if is_bare(lm_head):
        return capped(F.linear(hidden, lm_head.weight[rows]), lm_head.cap)
    return lm_head(hidden)[..., rows]


class Targets(NamedTuple):
    """Ids, and the hidden states that predict them by a softmax over `rows` of the vocabulary."""

    hidden_NH: torch.Tensor
    ids_N: torch.Tensor
    rows: slice = ALL_ROWS


def token_losses(
    hidden_NH: torch.Tensor,
    ids_N: torch.Tensor,
    lm_head: nn.Module,
    closed_V: torch.Tensor | None = None,
    rows: slice = ALL_ROWS,
    z_loss_weight: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy of each id, float32 [N]: `losses_together` of one group."""
    return losses_together([Targets(hidden_NH, ids_N, rows)], lm_head, closed_V, z_loss_weight)[0]


def losses_together(
    groups: Sequence[Targets], lm_head: nn.Module, closed_V: torch.Tensor | None = None, z_loss_weight: float = 0.0
) -> list[torch.Tensor]:
    """Cross-entropy of each id, float32 [N] for each group; its softmax is over the group's `rows` without those marked
    in `closed_V` (bool).

    With `z_loss_weight` w, each loss has w * z^2 added, where z is the logarithm of its softmax's normaliser: logits
    shall not drift (PaLM, arXiv 2204.02311, section 5; UniToken's code has w = 1e-5).

    Logits never stand in memory for more than a chunk of positions. Gradients are exact, and exactly zero for rows
    outside all softmaxes. They are made together with the losses (see `FusedLosses`), so the gradient of the whole
    matrix is in memory from here to the backward pass, once for each call: losses of one batch belong in one. A module
    that must be called (`is_bare`) computes its logits again in the backward pass instead; so do products in float16,
    where gradients that no loss scale has multiplied yet would vanish.

    Raises:
        ValueError: an id outside the rows of its group.
    """
    weight_VH, dtype = lm_head.weight, product_dtype(lm_head.weight)
    groups = [within_rows(group, len(weight_VH)) for group in groups]
    learning = weight_VH, *(group.hidden_NH for group in groups)
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learning)
    if not learns or not is_bare(lm_head) or dtype == torch.float16:
        return [losses_by_autograd(group, lm_head, closed_V, z_loss_weight) for group in groups]
    softmaxes, start = [], 0
    for _, ids_N, rows in groups:
        positions = slice(start, start := start + len(ids_N))
        closed_R = None if closed_V is None else closed_V[rows]
        softmaxes.append(Softmax(positions, rows, closed_R, lm_head.cap, dtype, z_loss_weight))
    hidden_NH, ids_N = (torch.cat([group[i] for group in groups]) for i in (0, 1))
    losses_N = FusedLosses.apply(hidden_NH, weight_VH, ids_N, softmaxes)
    return [losses_N[softmax.positions] for softmax in softmaxes]


def within_rows(group: Targets, vocab_size: int) -> Targets:
    """The group with ids that count from the first of its rows, which have both ends now."""
    hidden_NH, ids_N, rows = group
    first, end, _ = rows.indices(vocab_size)
    if len(ids_N) and not first <= int(ids_N.min()) <= int(ids_N.max()) < end:
        raise ValueError(
            f"target ids {int(ids_N.min())}..{int(ids_N.max())} exceed the rows {first}..{end - 1} of their softmax"
        )
    return Targets(hidden_NH, ids_N - first, slice(first, end))


def losses_by_autograd(
    group: Targets, lm_head: nn.Module, closed_V: torch.Tensor | None, z_loss_weight: float
) -> torch.Tensor:
    """Losses float32 [N] of ids that count from the first row, by the module's own logits, chunk by chunk."""

    def losses(hidden_NH: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
        logits_NR = logits_of(hidden_NH, lm_head, group.rows).float()
        if closed_V is not None:
            logits_NR = logits_NR.masked_fill(closed_V[group.rows], -torch.inf)
        losses_N = F.cross_entropy(logits_NR, ids_N, reduction="none")
        return losses_N + z_loss_weight * logits_NR.logsumexp(-1).square() if z_loss_weight else losses_N

    chunk = positions_at_once(len(lm_head.weight))
    if len(group.ids_N) <= chunk:
        return losses(group.hidden_NH, group.ids_N)
    chunks = zip(group.hidden_NH.split(chunk), group.ids_N.split(chunk), strict=True)
    return torch.cat([checkpoint(losses, hidden, ids, use_reentrant=False) for hidden, ids in chunks])


def positions_at_once(rows: int) -> int:
    return max(1, MAX_LOGITS // rows)


def product_dtype(weight: torch.Tensor) -> torch.dtype:
    """What autocast, where it is on, makes of a matrix product."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class Softmax(NamedTuple):
    """What the softmax of some positions is over: `rows` of the matrix, without those marked in `closed_R`; logits
    capped at `cap`. And how much the square of its log normaliser weighs in a loss."""

    positions: slice
    rows: slice
    closed_R: torch.Tensor | None
    cap: float | None
    dtype: torch.dtype  # of the matrix products
    z_loss_weight: float


class FusedLosses(torch.autograd.Function):
    """The loss of each id, float32 [N], whose forward pass makes the gradients too, chunk by chunk.

    So logits are computed once, and nothing of a chunk is kept: three matrix products, as plain autograd has, where
    computing logits again takes four. (The way of Liger Kernel, arXiv 2410.10989, whose losses are reduced; ours must
    not be.) The gradient of a hidden state belongs to one loss, hence any upstream gradient scales it. That of the
    matrix is a sum over all losses of all softmaxes. Of losses that are summed and divided by a count, all have one
    upstream gradient c, which scales the sum. Where some have another one, u, as those of text and of images that are
    weighted, what they lack is computed anew and added: u - c times their gradients. Softmaxes over rows of their own
    have a c of their own, so weights of text and images cost nothing there. In a second backward pass over one graph
    all is computed anew.

    The sum over chunks is float32, and the matrix it lies in becomes `.grad` where the parameter is float32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: torch.Tensor, weight_VH: torch.Tensor, ids_N: torch.Tensor, softmaxes: list[Softmax]
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden_NH, weight_VH, ids_N)
        ctx.softmaxes = softmaxes
        ctx.grad_hidden_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        ctx.grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        losses_N = torch.empty(len(ids_N), dtype=torch.float32, device=hidden_NH.device)
        for softmax in softmaxes:
            part = softmax.positions
            grad_hidden_NH = None if ctx.grad_hidden_NH is None else ctx.grad_hidden_NH[part]
            losses_N[part] = fused_losses(
                hidden_NH[part], weight_VH, ids_N[part], softmax, grad_hidden_NH, ctx.grad_weight_VH
            )
        return losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_NH, weight_VH, ids_N = ctx.saved_tensors
        grad_hidden_NH = grad_weight_VH = None
        if ctx.needs_input_grad[0]:
            grad_hidden_NH = (ctx.grad_hidden_NH * upstream_N[:, None]).to(hidden_NH.dtype)
        if ctx.needs_input_grad[1]:
            # Given away and not kept: autograd copies a gradient that somebody else holds.
            total_VH, ctx.grad_weight_VH = ctx.grad_weight_VH, None
            if total_VH is None:
                total_VH, lacking_N = torch.zeros_like(weight_VH, dtype=torch.float32), upstream_N
            else:
                lacking_N = scale_by_most(total_VH, upstream_N, ctx.softmaxes)
            for softmax in ctx.softmaxes:
                hidden_nH, ids_n, lacking_n = (x[softmax.positions] for x in (hidden_NH, ids_N, lacking_N))
                lacks_n = lacking_n != 0
                fused_losses(hidden_nH[lacks_n], weight_VH, ids_n[lacks_n], softmax, None, total_VH, lacking_n[lacks_n])
            grad_weight_VH = total_VH.to(weight_VH.dtype)
        return grad_hidden_NH, grad_weight_VH, None, None


def scale_by_most(total_VH: torch.Tensor, upstream_N: torch.Tensor, softmaxes: list[Softmax]) -> torch.Tensor:
    """Scales the rows of softmaxes that overlap, in place, by the upstream gradient that most of their losses have.
    Returns what each upstream gradient is more than that, [N]."""
    lacking_N = torch.zeros_like(upstream_N)
    for overlapping in by_rows(softmaxes):
        most = torch.cat([upstream_N[softmax.positions] for softmax in overlapping])
        if len(most):
            most = most.mode().values
            total_VH[overlapping[0].rows.start : max(softmax.rows.stop for softmax in overlapping)].mul_(most)
            for softmax in overlapping:
                lacking_N[softmax.positions] = upstream_N[softmax.positions] - most
    return lacking_N


def by_rows(softmaxes: list[Softmax]) -> list[list[Softmax]]:
    """Softmaxes by their first rows; those that overlap, directly or by way of others, together."""
    found, end = [], 0
    for softmax in sorted(softmaxes, key=lambda softmax: softmax.rows.start):
        if not found or softmax.rows.start >= end:
            found.append([])
        found[-1].append(softmax)
        end = max(end, softmax.rows.stop)
    return found


def fused_losses(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    ids_N: torch.Tensor,
    softmax: Softmax,
    grad_hidden_NH: torch.Tensor | None,
    grad_weight_VH: torch.Tensor | None,
    scale_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Losses float32 [N]. Writes the gradient of each into `grad_hidden_NH`, and adds that of their sum, each times its
    scale, to `grad_weight_VH`, where these are given."""
    if not len(ids_N):  # spares the matrix in another precision
        return torch.empty(0, dtype=torch.float32, device=hidden_NH.device)
    hidden_NH, weight_RH = hidden_NH.to(softmax.dtype), weight_VH[softmax.rows].to(softmax.dtype)
    losses_N = torch.empty(len(ids_N), dtype=torch.float32, device=hidden_NH.device)
    chunk = positions_at_once(len(weight_RH))
    for start in range(0, len(ids_N), chunk):
        part = slice(start, start + chunk)
        losses_N[part], slopes_nR = losses_and_slopes(F.linear(hidden_NH[part], weight_RH), ids_N[part], softmax)
        if scale_N is not None:
            slopes_nR.mul_(scale_N[part, None])
        slopes_nR = slopes_nR.to(softmax.dtype)
        if grad_hidden_NH is not None:
            grad_hidden_NH[part] = slopes_nR @ weight_RH
        if grad_weight_VH is not None:
            add_product(grad_weight_VH[softmax.rows], slopes_nR, hidden_NH[part])
        del slopes_nR  # before the next chunk's logits are made
    return losses_N


def losses_and_slopes(
    products_nR: torch.Tensor, ids_n: torch.Tensor, softmax: Softmax
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [n] of logits that are not capped yet, and the derivative by each of these [n, R]; float32."""
    logits_nR = capped(products_nR, softmax.cap).float()
    del products_nR
    open_nR = logits_nR if softmax.closed_R is None else logits_nR.masked_fill(softmax.closed_R, -torch.inf)
    slopes_nR = open_nR.log_softmax(-1)
    ids_n1 = ids_n[:, None]
    losses_n = -slopes_nR.gather(1, ids_n1)[:, 0]
    slopes_nR.exp_()
    if softmax.z_loss_weight:
        z_n = open_nR.logsumexp(-1)
        losses_n += softmax.z_loss_weight * z_n.square()
        slopes_nR.mul_(1 + 2 * softmax.z_loss_weight * z_n[:, None])  # the derivative of z is the softmax
    slopes_nR.scatter_add_(1, ids_n1, -torch.ones_like(ids_n1, dtype=torch.float32))
    if softmax.cap:
        slopes_nR.mul_(1 - (logits_nR / softmax.cap).square_())  # of cap * tanh(x / cap)
    if softmax.closed_R is not None:
        slopes_nR.masked_fill_(softmax.closed_R, 0.0)
    return losses_n, slopes_nR


def add_product(total_RH: torch.Tensor, left_NR: torch.Tensor, right_NH: torch.Tensor) -> None:
    """Adds left^T right in place; where the sum has another precision, by blocks of rows, so that no second matrix of
    its size stands in memory."""
    if total_RH.dtype == left_NR.dtype:
        total_RH.addmm_(left_NR.T, right_NH)
        return
    block = positions_at_once(total_RH.shape[1])
    for total_rH, left_Nr in zip(total_RH.split(block), left_NR.split(block, 1), strict=True):
        total_rH.add_(left_Nr.T @ right_NH)
