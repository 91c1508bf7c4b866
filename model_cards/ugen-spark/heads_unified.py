"""How an image token is fed back to the language model and predicted by it.

Contract: `embed(tokens, embed_tokens)`, `loss(hidden, tokens, lm_head) -> unreduced`,
`sample(hidden, lm_head, sampling, ...) -> tokens`. The vocabulary's two matrices belong to the backbone; a head that
needs them is handed them.

B batch, L image tokens, N positions, H hidden size, V vocabulary, K codes.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .configuration_unified import UnifiedConfig

MAX_LOGITS = 2**24  # elements of logits that stand in memory at once; a vocabulary may have 350,000 rows


def token_losses(
    hidden_NH: torch.Tensor, ids_N: torch.Tensor, lm_head: nn.Linear, closed_V: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of each id in the joint vocabulary, float32 [N].

    Rows marked in `closed_V` (bool) leave the softmax. Computed chunk by chunk, and recomputed in the backward pass,
    so that the logits of a whole batch never stand in memory.
    """

    def losses(hidden_NH: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
        logits_NV = lm_head(hidden_NH).float()
        if closed_V is not None:
            logits_NV = logits_NV.masked_fill(closed_V, -torch.inf)
        return F.cross_entropy(logits_NV, ids_N, reduction="none")

    chunk = max(1, MAX_LOGITS // lm_head.weight.shape[0])
    if len(ids_N) <= chunk:
        return losses(hidden_NH, ids_N)
    chunks = zip(hidden_NH.split(chunk), ids_N.split(chunk), strict=True)
    return torch.cat([checkpoint(losses, hidden, ids, use_reentrant=False) for hidden, ids in chunks])


def draw(scores_NV: torch.Tensor, do_sample: bool, generators: list[torch.Generator] | None = None) -> torch.Tensor:
    """One id for each row of scores, int64 [N]: the greatest, or a sample by each row's own generator.

    A row's draw depends on its own generator alone, hence not on the batch. Dividing probabilities by exponential
    noise and taking the greatest samples exactly; a score of -inf is never taken.
    """
    if not do_sample:
        return scores_NV.argmax(-1)
    probs_NV = scores_NV.float().softmax(-1)
    if generators is None:
        return torch.multinomial(probs_NV, 1).squeeze(1)
    noise_NV = torch.empty_like(probs_NV, device="cpu")  # generators live on the CPU: one seed, one image, any device
    for noise_V, generator in zip(noise_NV, generators, strict=True):
        noise_V.exponential_(generator=generator)
    return (probs_NV / noise_NV.to(probs_NV.device)).argmax(-1)


def warpers(sampling: dict) -> LogitsProcessorList:
    """transformers' temperature, top-k and top-p for the keys of the same names."""
    found = LogitsProcessorList()
    if sampling["temperature"] != 1.0:
        found.append(TemperatureLogitsWarper(float(sampling["temperature"])))
    if sampling["top_k"]:
        found.append(TopKLogitsWarper(sampling["top_k"]))
    if sampling["top_p"] < 1.0:
        found.append(TopPLogitsWarper(sampling["top_p"]))
    return found


class CategoricalHead(nn.Module):
    """Image tokens are codes, rows of the same vocabulary as text, predicted by the same softmax (UGen, section 3).

    `active_codes` (bool [K], saved with the weights) are the codes in use. The others become [MASK] wherever they
    occur, in inputs and in targets (progressive vocabulary learning), and can never be sampled.
    """

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.num_codes, self.code_offset = config.num_codes, config.code_offset
        self.mask_token_id = config.mask_token_id
        self.loss_on_mask, self.closes_rows = config.loss_on_mask, not config.inactive_codes_in_softmax
        self.register_buffer("active_codes", torch.ones(config.num_codes, dtype=torch.bool))

    def ids(self, codes: torch.Tensor) -> torch.Tensor:
        """Vocabulary ids of codes of any shape; [MASK] for inactive ones."""
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_codes:
            raise ValueError(f"codes {int(codes.min())}..{int(codes.max())} exceed the codec's 0..{self.num_codes - 1}")
        codes = codes.long()
        return torch.where(self.active_codes[codes], codes + self.code_offset, self.mask_token_id)

    def closed_rows(self, vocab_size: int) -> torch.Tensor | None:
        """Rows of the vocabulary outside the softmax, bool [V]; None if there are none."""
        if not self.closes_rows or bool(self.active_codes.all()):
            return None
        closed_V = torch.zeros(vocab_size, dtype=torch.bool, device=self.active_codes.device)
        closed_V[self.code_offset :] = ~self.active_codes
        return closed_V

    def embed(self, codes: torch.Tensor, embed_tokens: nn.Embedding) -> torch.Tensor:
        return embed_tokens(self.ids(codes))

    def loss(self, hidden_NH: torch.Tensor, codes_N: torch.Tensor, lm_head: nn.Linear) -> torch.Tensor:
        """Cross-entropy of each code, float32 [N]; zero where a [MASK] target is not trained on."""
        ids_N = self.ids(codes_N)
        losses_N = token_losses(hidden_NH, ids_N, lm_head, self.closed_rows(lm_head.weight.shape[0]))
        return losses_N if self.loss_on_mask else losses_N.masked_fill(ids_N == self.mask_token_id, 0.0)

    def sample(
        self,
        hidden_NH: torch.Tensor,
        lm_head: nn.Linear,
        sampling: dict,
        null_hidden_NH: torch.Tensor | None = None,
        generators: list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Next code of each row, int64 [N]. Only the rows of the codes are multiplied.

        Args:
            sampling: `do_sample`, `temperature`, `top_k`, `top_p`, `guidance_scale`.
            null_hidden_NH: hidden states without the condition; guidance is l_u + s (l_c - l_u) (UGen, section 3).
        """
        if not bool(self.active_codes.any()):
            raise ValueError("no image code is active yet: the model has only been trained on text")
        rows_KH = lm_head.weight[self.code_offset :]
        logits_NK = F.linear(hidden_NH, rows_KH).float()
        if null_hidden_NH is not None:
            null_NK = F.linear(null_hidden_NH, rows_KH).float()
            logits_NK = null_NK + sampling["guidance_scale"] * (logits_NK - null_NK)
        logits_NK = logits_NK.masked_fill(~self.active_codes, -torch.inf)
        return draw(warpers(sampling)(None, logits_NK), sampling["do_sample"], generators)

    def sequence_ids(self, codes: torch.Tensor) -> torch.Tensor:
        """What stands for a generated token in the returned sequence."""
        return codes + self.code_offset


HEADS = {"categorical": CategoricalHead}
