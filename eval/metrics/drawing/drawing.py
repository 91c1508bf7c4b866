"""Share of drawn images in which everything that was asked for holds, by category.

The six categories and the mean over them are GenEval's (arXiv 2310.11513): single_object, two_object, counting, colors,
position, color_attr. An image is right when every required fact is among the facts that a judge found in it; there is
no partial credit. The judge is the caller's: this module sees facts only, so it runs alone.
"""

import collections

import datasets
import evaluate

_DESCRIPTION = "Share of images, by category, in which every required fact holds; overall is the mean over categories."

_KWARGS_DESCRIPTION = """
Args:
    predictions: per image, the facts found in it, as strings
    references: per image, the facts that the prompt requires, as strings (at least one)
    categories: per image, the name of its category
Returns:
    per category a share in [0, 1]; overall, their unweighted mean; images, the share over all images; n, their number
"""


class Drawing(evaluate.Metric):
    """`compute(predictions, references, categories) -> {category: share, ..., "overall", "images", "n"}`."""

    def _info(self) -> evaluate.MetricInfo:
        facts = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": facts, "references": facts, "categories": datasets.Value("string")}
            ),
        )

    def _compute(
        self, predictions: list[list[str]], references: list[list[str]], categories: list[str]
    ) -> dict[str, float]:
        right_by_category = collections.defaultdict(list)
        for found, required, category in zip(predictions, references, categories, strict=True):
            if not required:
                raise ValueError(f"an item of category {category!r} requires no fact: it would always be right")
            right_by_category[category].append(set(required) <= set(found))
        shares = {category: sum(right) / len(right) for category, right in sorted(right_by_category.items())}
        right_in_all = [right for group in right_by_category.values() for right in group]
        return {
            **shares,
            "overall": sum(shares.values()) / len(shares),
            "images": sum(right_in_all) / len(right_in_all),
            "n": len(right_in_all),
        }
