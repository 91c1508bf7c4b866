"""Accuracy of short answers by kind of question, and for yes/no questions what POPE reports.

An answer is right when it equals the reference after surrounding white space and a final full stop are removed and
letters are lower-cased. For items whose reference is "yes" or "no": precision, recall and F1 of "yes", and the share of
"yes" among the answers, which shows a bias (arXiv 2305.10355, section 5). An answer that is neither counts as not "yes"
and is wrong; its share is given, since it would otherwise look like "no".
"""

import collections

import datasets
import evaluate

_DESCRIPTION = "Accuracy by kind of question; precision, recall, F1 and share of yes over the yes/no questions."

_KWARGS_DESCRIPTION = """
Args:
    predictions: answers as strings
    references: right answers as strings
    kinds: the kind of each question
Returns:
    accuracy, by_kind {kind: accuracy}, yes_no {accuracy, precision, recall, f1, yes_ratio, neither_ratio, n} if there
    are yes/no questions, n
"""


def _normalised(answer: str) -> str:
    return answer.strip().removesuffix(".").strip().lower()


def _yes_no(rows: list[dict[str, float]]) -> dict[str, float]:
    """POPE's numbers of rows whose reference is yes or no."""
    true_yes = sum(row["says_yes"] and row["is_yes"] for row in rows)
    said_yes = sum(row["says_yes"] for row in rows)
    is_yes = sum(row["is_yes"] for row in rows)
    precision = true_yes / said_yes if said_yes else 0.0
    recall = true_yes / is_yes if is_yes else 0.0
    return {
        "accuracy": sum(row["right"] for row in rows) / len(rows),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "yes_ratio": said_yes / len(rows),
        "neither_ratio": sum(row["unparsed"] for row in rows) / len(rows),
        "n": len(rows),
    }


class Answering(evaluate.Metric):
    """`compute(predictions, references, kinds) -> {"accuracy", "by_kind", "yes_no", "n"}`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": text, "references": text, "kinds": text}),
        )

    def score_items(self, predictions: list[str], references: list[str]) -> list[dict[str, float]]:
        """For each answer `right`, and for yes/no questions `says_yes`, `is_yes` and `unparsed` (neither)."""
        rows = []
        for prediction, reference in zip(map(_normalised, predictions), map(_normalised, references), strict=True):
            row = {"right": int(prediction == reference)}
            if reference in ("yes", "no"):
                row |= {"says_yes": int(prediction == "yes"), "is_yes": int(reference == "yes")}
                row["unparsed"] = int(prediction not in ("yes", "no"))
            rows.append(row)
        return rows

    def summarise(self, rows: list[dict[str, float]]) -> dict[str, float]:
        """Accuracy; F1 of yes where there are yes/no questions."""
        yes_no = [row for row in rows if "is_yes" in row]
        accuracy = {"accuracy": sum(row["right"] for row in rows) / len(rows)}
        return accuracy | ({"f1": _yes_no(yes_no)["f1"]} if yes_no else {})

    def _compute(self, predictions: list[str], references: list[str], kinds: list[str]) -> dict:
        rows = self.score_items(predictions, references)
        right_by_kind = collections.defaultdict(list)
        for row, kind in zip(rows, kinds, strict=True):
            right_by_kind[kind].append(row["right"])
        result = {
            "accuracy": sum(row["right"] for row in rows) / len(rows),
            "by_kind": {kind: sum(right) / len(right) for kind, right in sorted(right_by_kind.items())},
            "n": len(rows),
        }
        yes_no = [row for row in rows if "is_yes" in row]
        return {**result, "yes_no": _yes_no(yes_no)} if yes_no else result
