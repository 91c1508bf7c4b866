"""Confidence intervals of scores by the bootstrap: how much would a score move, had other items been asked?

Items are drawn anew with replacement, as many as there are, and the score is computed of each such draw; the interval
holds 95 % of these scores (the percentile method; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
13). Items of one cluster are drawn together. It says nothing of other seeds of training or of sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DRAWS = 1000  # our choice
SHARE = 0.95

Row = dict[str, Any]


def intervals(
    rows: Sequence[Row],
    summarise: Callable[[Sequence[Row]], dict[str, float]],
    clusters: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Lower and upper bound of each score of `summarise(rows)`; the same for the same rows and seed.

    `clusters` names the cluster of each row; without it every row is one. A single cluster has no interval: its bounds
    are the score.
    """
    of_cluster: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        of_cluster.setdefault(clusters[number] if clusters else str(number), []).append(row)
    groups, generator = list(of_cluster.values()), np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        chosen = generator.integers(len(groups), size=len(groups))
        for name, score in summarise([row for index in chosen for row in groups[index]]).items():
            found.setdefault(name, []).append(score)
    edges = (50 * (1 - SHARE), 50 * (1 + SHARE))
    return {name: tuple(float(edge) for edge in np.nanpercentile(scores, edges)) for name, scores in found.items()}


def with_intervals(
    rows: Sequence[Row], summarise: Callable[[Sequence[Row]], dict[str, float]], clusters: Sequence[str] | None = None
) -> dict[str, Row]:
    """`{score: {"value", "low", "high", "n"}}`."""
    bounds = intervals(rows, summarise, clusters)
    return {
        name: {"value": value, "low": bounds[name][0], "high": bounds[name][1], "n": len(rows)}
        for name, value in summarise(rows).items()
    }
