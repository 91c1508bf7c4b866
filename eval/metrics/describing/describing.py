"""How exactly a written caption tells the facts of a scene: exact match, and precision, recall and F1 per fact.

Captions are compared as sets of facts, so other words for the same facts count as right. A caption from which no fact
can be read has an empty set: it is not an exact match, it lowers recall, and it leaves precision alone.
Precision, recall and F1 are taken over all facts of all captions (micro average), and over each kind of fact: the kind
is the first field of a fact, e.g. "count" of `["count", "cat", 2]`.
"""

import collections
import json

import datasets
import evaluate

_DESCRIPTION = "Exact match and per-fact precision, recall and F1 of captions given as sets of facts."

_KWARGS_DESCRIPTION = """
Args:
    predictions: per image, the facts that the caption states, each a JSON list whose first entry is its kind
    references: per image, the facts that a right caption states, written the same way
    true_facts (optional): per image, everything that is true in it. A stated fact counts as precise when it is among
        these (default: among the references)
Returns:
    exact_match, precision, recall, f1, by_kind {kind: {precision, recall, f1}}, n
"""


def _scores(hits: int, stated: int, recalled: int, wanted: int) -> dict[str, float]:
    precision = hits / stated if stated else 0.0
    recall = recalled / wanted if wanted else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


class Describing(evaluate.Metric):
    """`compute(predictions, references) -> {"exact_match", "precision", "recall", "f1", "by_kind", "n"}`."""

    def _info(self) -> evaluate.MetricInfo:
        facts = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": facts, "references": facts}),
        )

    def _compute(self, predictions: list[list[str]], references: list[list[str]], true_facts=None) -> dict:
        if true_facts is None:
            true_facts = references
        if len(true_facts) != len(references):
            raise ValueError(f"true_facts has {len(true_facts)} rows, references {len(references)}: give one per image")
        counts_by_kind = collections.defaultdict(lambda: [0, 0, 0, 0])  # hits, stated, recalled, wanted
        exact = 0
        for stated, wanted, true in zip(predictions, references, true_facts, strict=True):
            exact += set(stated) == set(wanted)
            for fact in set(stated):
                counts_by_kind[json.loads(fact)[0]][0] += fact in set(true)
                counts_by_kind[json.loads(fact)[0]][1] += 1
            for fact in set(wanted):
                counts_by_kind[json.loads(fact)[0]][2] += fact in set(stated)
                counts_by_kind[json.loads(fact)[0]][3] += 1
        totals = [sum(column) for column in zip(*counts_by_kind.values(), strict=True)] or [0, 0, 0, 0]
        return {
            "exact_match": exact / len(references),
            **_scores(*totals),
            "by_kind": {kind: _scores(*counts) for kind, counts in sorted(counts_by_kind.items())},
            "n": len(references),
        }
