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


def _yes_no(answers: list[tuple[str, str]]) -> dict[str, float]:
    """POPE's numbers from (prediction, reference) pairs whose reference is yes or no."""
    true_yes = sum(prediction == reference == "yes" for prediction, reference in answers)
    said_yes = sum(prediction == "yes" for prediction, _ in answers)
    is_yes = sum(reference == "yes" for _, reference in answers)
    precision = true_yes / said_yes if said_yes else 0.0
    recall = true_yes / is_yes if is_yes else 0.0
    return {
        "accuracy": sum(prediction == reference for prediction, reference in answers) / len(answers),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "yes_ratio": said_yes / len(answers),
        "neither_ratio": sum(prediction not in ("yes", "no") for prediction, _ in answers) / len(answers),
        "n": len(answers),
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

    def _compute(self, predictions: list[str], references: list[str], kinds: list[str]) -> dict:
        answers = [(_normalised(p), _normalised(r)) for p, r in zip(predictions, references, strict=True)]
        right_by_kind = collections.defaultdict(list)
        for (prediction, reference), kind in zip(answers, kinds, strict=True):
            right_by_kind[kind].append(prediction == reference)
        result = {
            "accuracy": sum(p == r for p, r in answers) / len(answers),
            "by_kind": {kind: sum(right) / len(right) for kind, right in sorted(right_by_kind.items())},
            "n": len(answers),
        }
        yes_no = [(p, r) for p, r in answers if r in ("yes", "no")]
        return {**result, "yes_no": _yes_no(yes_no)} if yes_no else result
