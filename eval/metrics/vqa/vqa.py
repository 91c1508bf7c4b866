"""VQAv2's accuracy over ten answers of people (arXiv 1612.00837; the rules of its scorer, from memory, not checked
against the file).

An answer is as right as `min(1, n / 3)`, where n people gave it; averaged over the ten choices of nine people. Before
they are compared, answers of people and of the model are normalised: lower case, number words to digits, articles and
punctuation removed, apostrophes put back into contractions. As in the official scorer, punctuation and number words are
touched only where the people do not all agree.
"""

import re
import string

import datasets
import evaluate

_DESCRIPTION = "Accuracy over several answers of people, after VQAv2's normalisation."

_KWARGS_DESCRIPTION = """
Args:
    predictions: answers as strings
    references: the answers of people to each question, ten in VQAv2
Returns:
    accuracy
"""

_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_ARTICLES = {"a", "an", "the"}
_CONTRACTED = (
    "aren't can't couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how's i'd i'm i've isn't it'd "
    "it'll let's mightn't mustn't she'd she's shouldn't somebody's someone's that's there's they'd they're they've "
    "wasn't we'd we've weren't what's when's where's who'd who's who've why's won't wouldn't you'd you'll you're you've"
).split()
_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED if word.replace("'", "") not in ("hed", "id")}
_MARKS = set(string.punctuation) - {"'", ":", "."}


def without_punctuation(text: str) -> str:
    """Marks vanish where a space stands beside them or a comma within a number, and become spaces elsewhere; a full
    stop vanishes unless it stands before a digit."""
    within_number = re.search(r"\d,\d", text) is not None
    kept = text
    for mark in _MARKS:
        vanishes = f"{mark} " in text or f" {mark}" in text or within_number
        kept = kept.replace(mark, "" if vanishes else " ")
    return re.sub(r"\.(?!\d)", "", kept)


def without_articles(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


class Vqa(evaluate.Metric):
    """`compute(predictions, references) -> {"accuracy"}`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def score_items(self, predictions: list[str], references: list[list[str]]) -> list[dict[str, float]]:
        """For each question its `accuracy`, and `unparsed` for an empty answer."""
        rows = []
        for prediction, answers in zip(predictions, references, strict=True):
            if len(answers) < 2:
                raise ValueError(f"a question has {len(answers)} answers of people: the accuracy is over at least two")
            said, answers = plain(prediction), [plain(answer) for answer in answers]
            if len(set(answers)) > 1:
                said = without_articles(without_punctuation(said))
                answers = [without_articles(without_punctuation(answer)) for answer in answers]
            others = [answers[:index] + answers[index + 1 :] for index in range(len(answers))]
            accuracy = sum(min(1.0, nine.count(said) / 3) for nine in others) / len(answers)
            rows.append({"accuracy": accuracy, "right": accuracy, "unparsed": int(not said)})
        return rows

    def summarise(self, rows: list[dict[str, float]]) -> dict[str, float]:
        return {"accuracy": sum(row["accuracy"] for row in rows) / len(rows)}

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return self.summarise(self.score_items(predictions, references))
