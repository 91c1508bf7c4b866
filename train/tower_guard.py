"""Does the vision tower still tell images apart? Statistics of its features over training, and a warning.

Trained too fast a tower collapses: it says nearly the same of whatever it is shown (UniToken: SigLIP, at a rate of
5e-4). The losses hardly show that where images are read through codes as well.

B images, N places, F numbers in a feature
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from transformers.utils import logging

from modeling_unified.encoders_unified import ImageBatch
from modeling_unified.modeling_unified import images_of_sizes

logger = logging.get_logger(__name__)

IMAGES = 16
# Measured on spark's towers with 16 images: ranks of 69 to 72 of random ones, 21 to 43 while they learn, 10 after 5,300
# steps (8 with 4 images), cosines of 0.71 to 0.93. At 50 times a good rate: ranks of 2.6 to 3, cosines down to 0.4.
LEAST_RANK = 4.0
MOST_COSINE = 0.99


class TowerGuard:
    """Watches what the tower says of the first images that the run reads, the same at every step: so a change is the
    tower's and not the batch's. It warns when the features degenerate, and again when they do after a recovery.

    Args:
        batch: inputs of the model; of its images the first few are looked at that have the first one's size, so that
            their places can be compared. With fewer than two of them nothing is watched.
    """

    def __init__(self, batch: dict[str, torch.Tensor]):
        images = images_of_sizes(batch.get("feature_pixel_values"), batch.get("feature_sizes")) or []
        self.images = [image for image in images if image.shape == images[0].shape][:IMAGES]
        self.degenerate = False
        if len(self.images) < 2:
            logger.warning(
                f"the vision tower is not watched: {len(self.images)} of the run's first {len(batch['input_ids'])} "
                "samples show it an image of one size, and two are needed"
            )

    def logs(self, model: Any, step: int) -> dict[str, float]:
        """`statistics` of the model's features now; nothing where nothing is watched."""
        if len(self.images) < 2:
            return {}
        found = statistics(self.features(model))
        healthy = found["tower_rank"] >= LEAST_RANK and found["tower_cosine"] <= MOST_COSINE  # neither of NaN
        if not healthy and not self.degenerate:
            logger.warning(
                f"step {step}: the features of the vision tower degenerate, it hardly tells images apart. Their "
                f"effective rank is {found['tower_rank']:.1f} (healthy: {LEAST_RANK} and more), the cosine between "
                f"images {found['tower_cosine']:.3f} (healthy: up to {MOST_COSINE}), their standard deviation "
                f"{found['tower_std']:.3g}. Lower the tower's learning rate, and start from before step {step}"
            )
        self.degenerate = not healthy
        return found

    @torch.no_grad()
    def features(self, model: Any) -> torch.Tensor:
        """The tower's own, before the projector: [B, N, F]."""
        encoder = tower_encoder(model)
        seen: list[torch.Tensor] = []
        hook = encoder.tower.register_forward_hook(lambda tower, args, output: seen.append(output.last_hidden_state))
        was_training = encoder.training
        encoder.eval()
        try:
            images = [image.to(model.device) for image in self.images]
            encoder(ImageBatch(None, model.model.embed_image_tokens, images))
        finally:
            hook.remove()
            encoder.train(was_training)
        return torch.cat(seen)


def tower_encoder(model: Any) -> torch.nn.Module | None:
    """The encoder that has a vision tower, if there is one."""
    return next((encoder for encoder in model.model.encoders.values() if hasattr(encoder, "tower")), None)


def statistics(features_BNF: torch.Tensor) -> dict[str, float]:
    """How different the features of different images are; all NaN where a feature is not finite.

    Images are compared place by place: a tower that has learned to say where it looks and not what it sees has
    collapsed too, though its features differ.

    Returns:
        `tower_std`: standard deviation over the images, at each place about its own mean.
        `tower_cosine`: mean cosine between the features of two images at one place.
        `tower_rank`: effective rank of those deviations (Roy and Vetterli, 2007): the exponential of the entropy of
            their singular values as shares of 1. Between 1 and F; 1 too where there are no deviations.
    """
    features_BNF = features_BNF.double().cpu()  # not every device has float64
    if not features_BNF.isfinite().all():
        return dict.fromkeys(("tower_std", "tower_cosine", "tower_rank"), math.nan)
    count = len(features_BNF)
    away_BNF = features_BNF - features_BNF.mean(0)
    units_BNF = F.normalize(features_BNF, dim=-1)
    pairs_N = units_BNF.sum(0).square().sum(-1) - units_BNF.square().sum((0, 2))
    away_MF = away_BNF.flatten(0, 1)
    # Rounding may leave squares of singular values a trifle below 0.
    values_F = torch.linalg.eigvalsh(away_MF.T @ away_MF).clamp(min=0).sqrt()
    shares_F = values_F / values_F.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return {
        "tower_std": float(away_BNF.square().mean().sqrt()),
        "tower_cosine": float(pairs_N.mean() / (count * (count - 1))),
        "tower_rank": float(torch.special.entr(shares_F).sum().exp()),
    }
