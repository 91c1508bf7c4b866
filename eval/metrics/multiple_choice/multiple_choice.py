"""Accuracy of questions with lettered choices; with rotations of the choices, MMBench's circular accuracy.

What an answer chooses: a letter that it consists of or begins with (`B`, `(B)`, `B.`, `B: a cat`), a letter after
`answer is` or `option`, or else the one choice whose words it contains. Where that is no letter, or several, it is
counted as unparsed and is wrong. (Official scorers of MMMU and MMBench choose by chance or by a language model there;
ours does not: our choice, so that a score is the same twice.)

Circular (MMBench, arXiv 2307.06281, section 4.2): a question is asked once for each rotation of its choices, and is
right where all of these are; `circular` is the share of such questions.
"""

import re

import datasets
import evaluate

_DESCRIPTION = "Accuracy of lettered choices, and circular accuracy over rotations of the choices."

_KWARGS_DESCRIPTION = """
Args:
    predictions: answers as strings
    references: {"answer": letter, "choices": the choices in the order of their letters, "question": the same for all
        rotations of one question, or ""}
Returns:
    accuracy, and circular where questions are named
"""

_LETTERS = "ABCDEFGHIJ"


def read_choice(answer: str, choices: list[str]) -> str | None:
    """The letter that an answer means; None where it means none, or several."""
    letters, answer = _LETTERS[: len(choices)], answer.strip()
    if begins := re.match(rf"\(?([{letters}])\)?(?:[\s.:,)]|$)", answer):
        # "A cat" is an article before a word; a choice in words decides then.
        article = begins[1] == "A" and re.match(r"A [a-z]", answer)
        if not article:
            return begins[1]
    said = re.findall(rf"(?:answer is|answer:|option)\s*:?\s*\(?([{letters}])\b", answer, re.IGNORECASE)
    if said:
        found = {letter.upper() for letter in said}
        return found.pop() if len(found) == 1 else None
    held = [
        letter
        for letter, choice in zip(letters, choices, strict=True)
        if choice.strip() and re.search(rf"(?<!\w){re.escape(choice.strip().lower())}(?!\w)", answer.lower())
    ]
    return held[0] if len(held) == 1 else None


class MultipleChoice(evaluate.Metric):
    """`compute(predictions, references) -> {"accuracy"}`, and `circular`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        reference = {"answer": text, "choices": datasets.Sequence(text), "question": text}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": text, "references": reference}),
        )

    def score_items(self, predictions: list[str], references: list[dict]) -> list[dict]:
        rows = []
        for prediction, reference in zip(predictions, references, strict=True):
            letters = _LETTERS[: len(reference["choices"])]
            if reference["answer"] not in letters or not reference["answer"]:
                raise ValueError(
                    f"the right answer is {reference['answer']!r} of {len(reference['choices'])} choices: pass a "
                    f"letter of {letters}"
                )
            said = read_choice(prediction, reference["choices"])
            rows.append(
                {
                    "right": int(said == reference["answer"]),
                    "unparsed": int(said is None),
                    "question": reference["question"],
                    "rotations": len(reference["choices"]),
                }
            )
        return rows

    def summarise(self, rows: list[dict]) -> dict[str, float]:
        scores = {"accuracy": sum(row["right"] for row in rows) / len(rows)}
        if not rows[0]["question"]:
            return scores
        of_question: dict[str, list[dict]] = {}
        for row in rows:
            of_question.setdefault(row["question"], []).append(row)
        # A question that the bootstrap has drawn several times counts as often.
        times = {name: len(of) / of[0]["rotations"] for name, of in of_question.items()}
        right = sum(times[name] for name, of in of_question.items() if all(row["right"] for row in of))
        return {**scores, "circular": right / sum(times.values())}

    def _compute(self, predictions: list[str], references: list[dict]) -> dict[str, float]:
        return self.summarise(self.score_items(predictions, references))
