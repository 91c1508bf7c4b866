"""Long-tail balancing of visual supervision (UVU, CVPR 2026): of the image tokens that are read, the rare ones count.

Most patches of most images are background, and a loss over all of them would be spent on it. The paper draws the tokens
that are trained on from the codes with p_k > tau_b, where

    p_k = (1 / f_k) / sum_j (1 / f_j)        f_k: how often code k has been supervised so far

and tau_b is set anew for each batch, also to balance image tokens against text tokens. Neither values nor the rule
that moves tau_b are known. Ours: of an update's tokens the rarest are kept, until they are `ratio` for each predicted
token of text. So tau_b is the p_k at which that number is reached: tokens above it are kept, tokens below it dropped,
and of those exactly at it as many as there is room for, drawn uniformly. The sum is over codes that have been seen.

A dropped token loses its label only: it stays in the context of the others. Images that are written are never thinned,
since their background has to be drawn as well.

K codes; N supervised tokens of an update, on this rank; R ranks; B batch, T sequence, M features of all images read
"""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState


class LongTailBalance(TrainerCallback, ExportableState):
    """Counts codes over a run and chooses the tokens of each update that keep their labels.

    `counts` (int64 [K]) are over all ranks. They are written to each checkpoint with the Trainer's own state, hence
    never missing from one that is whole, and a resumed run goes on from them.

    Args:
        num_codes: K.
        ratio: image tokens kept per text token of the update, over all micro-batches and ranks.
        seed: with the step it fixes which tokens at the threshold are kept.

    Raises:
        ValueError: no codes, or a ratio that is not above 0.
    """

    def __init__(self, num_codes: int, ratio: float, seed: int = 0):
        if num_codes < 1:
            raise ValueError(f"num_codes is {num_codes}, it must be at least 1: tokens that are vectors have no counts")
        if not 0 < ratio < math.inf:
            raise ValueError(f"ratio is {ratio}, it must be above 0 and finite; without balancing all tokens are kept")
        self.ratio, self.seed = ratio, seed
        self.counts = torch.zeros(num_codes, dtype=torch.int64)
        self._logs: dict[str, float] = {}

    def thin(self, batches: list[dict[str, torch.Tensor]], model: Any, step: int) -> None:
        """Takes the labels of the tokens that are not kept out of the micro-batches of update `step`.

        Puts `feature_tokens` [M] into each batch with labels on features where they are not there yet: the model then
        need not make them again.
        """
        feature = model.config.image_feature_token_id
        asked = [batch["labels"] == feature for batch in batches]
        codes = [batches[0]["labels"].new_zeros(0)]
        for batch, asked_BT in zip(batches, asked, strict=True):
            if not bool(asked_BT.any()):
                continue
            if "feature_tokens" not in batch:
                pixels_RCHW, sizes_R2 = batch["feature_pixel_values"], batch.get("feature_sizes")
                batch["feature_tokens"] = model.model.encode_read_images(pixels_RCHW, sizes_R2)
            codes.append(batch["feature_tokens"][asked_BT[batch["input_ids"] == feature]])
        texts = sum(count_text_targets(batch["labels"], model.config) for batch in batches)
        keep_N = self.select(torch.cat(codes), texts, step)
        sizes = [int(asked_BT.sum()) for asked_BT in asked]
        for batch, asked_BT, keep_n in zip(batches, asked, keep_N.split(sizes), strict=True):
            kept_BT = torch.zeros_like(asked_BT).masked_scatter(asked_BT, keep_n)
            batch["labels"] = batch["labels"].masked_fill(asked_BT & ~kept_BT, -100)

    def select(self, codes_N: torch.Tensor, num_text_targets: int, step: int) -> torch.Tensor:
        """Which tokens keep their labels, bool [N]. Called once for each update, by all ranks together.

        Over all ranks `round(ratio * text targets)` are kept, or all where they are fewer. The same (seed, step),
        counts and tokens give the same choice.

        Args:
            codes_N: this rank's supervised tokens, int64.
            num_text_targets: this rank's predicted text tokens.

        Raises:
            ValueError: codes outside 0..K-1.
        """
        num_codes = len(self.counts)
        if len(codes_N) and not 0 <= int(codes_N.min()) <= int(codes_N.max()) < num_codes:
            raise ValueError(f"codes {int(codes_N.min())}..{int(codes_N.max())} exceed the counted 0..{num_codes - 1}")
        totals = torch.bincount(codes_N, minlength=num_codes + 1)  # the last is room for the text targets
        totals[-1] = num_text_targets
        totals = sum_over_ranks(totals).cpu()
        batch_K, budget = totals[:-1], round(self.ratio * int(totals[-1]))
        self.counts += batch_K
        level, room = self._threshold(batch_K, budget)
        counts_N = self.counts[codes_N.cpu()]
        keep_N, tied_N = counts_N < level, counts_N == level
        keep_N[tied_N] = self._draw(int(tied_N.sum()), room, step, codes_N.device)
        self._logs = self._describe(int(batch_K.sum()), budget, level)
        return keep_N.to(codes_N.device)

    def _threshold(self, batch_K: torch.Tensor, budget: int) -> tuple[float, int]:
        """The count of the codes at the threshold, and how many tokens of just that count are kept; (inf, 0) where the
        budget is enough for all."""
        counts_k, order_k = self.counts[batch_K > 0].sort()
        tokens_k = batch_K[batch_K > 0][order_k].cumsum(0)
        first = int(torch.searchsorted(tokens_k, budget, right=True))  # the first code whose tokens exceed the budget
        if first == len(tokens_k):
            return math.inf, 0
        level = int(counts_k[first])
        return level, budget - int(batch_K[self.counts < level].sum())

    def _draw(self, tied: int, room: int, step: int, device: torch.device) -> torch.Tensor:
        """Bool [tied]: `room` of the tokens at the threshold, uniformly among those of all ranks."""
        tied_R, rank = [tied], 0
        if dist.is_initialized():
            rank = dist.get_rank()
            own_R = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
            own_R[rank] = tied
            tied_R = sum_over_ranks(own_R).tolist()
        keep = torch.zeros(sum(tied_R), dtype=torch.bool)
        keep[np.random.default_rng([self.seed, step]).permutation(len(keep))[:room]] = True
        return keep.split(tied_R)[rank]

    def _describe(self, tokens: int, budget: int, level: float) -> dict[str, float]:
        """What the log shows of an update; nothing where no token is supervised."""
        if not tokens:
            return {}
        seen_k = self.counts[self.counts > 0].double()
        shares_k = seen_k / seen_k.sum()
        return {
            "balance_tau": 1 / level / float((1 / seen_k).sum()),
            "balance_kept": min(1.0, budget / tokens),
            "code_entropy": float(-(shares_k * shares_k.log()).sum()),
        }

    def logs(self) -> dict[str, float]:
        """Of the last update: `balance_tau`, tau_b (0 where all were kept); `balance_kept`, the share of supervised
        tokens that were; `code_entropy`, in nats, of the counts so far. Its exponential is a number of codes."""
        return dict(self._logs)

    def state(self) -> dict:
        """JSON for the checkpoint. Ratio and seed come from the recipe again."""
        return {"args": {}, "attributes": {"counts": self.counts.tolist()}}

    def restore(self, state: TrainerState) -> None:
        """Goes on from the counts of a checkpoint.

        Raises:
            ValueError: a checkpoint without counts, or with those of another number of codes.
        """
        stored = state.stateful_callbacks.get(type(self).__name__)
        counts = stored["attributes"]["counts"] if stored else []
        if len(counts) != len(self.counts):
            raise ValueError(
                f"the checkpoint of step {state.global_step} has counts of {len(counts)} codes, this run has "
                f"{len(self.counts)} codes: resume a run that was balanced from its start, with the same codec"
            )
        self.counts = torch.tensor(counts, dtype=torch.int64)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if model.config.num_codes != len(self.counts):
            raise ValueError(f"{len(self.counts)} codes are to be counted, the model has {model.config.num_codes}")
        if state.global_step:
            self.restore(state)


def count_text_targets(labels_BT: torch.Tensor, config: Any) -> int:
    """The model shifts labels by one: the first column is never predicted."""
    others = labels_BT.new_tensor([-100, config.image_token_id, config.image_feature_token_id])
    return int((~torch.isin(labels_BT[:, 1:], others)).sum())


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
