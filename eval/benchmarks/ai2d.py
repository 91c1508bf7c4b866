"""AI2D: questions on diagrams of textbooks, four choices each (arXiv 1603.07396; `lmms-lab/ai2d`).

Columns, from memory and not checked against the Hub: `image`, `question`, `options` (list), `answer` (the right one's
number, from 0). Rows have no id: their number is one.
"""

from collections.abc import Iterable

from eval.benchmark import Benchmark, Item, Row, image_of
from eval.benchmarks.mmbench import LETTERS, prompt


def read(rows: Iterable[Row]) -> Iterable[Item]:
    for number, row in enumerate(rows):
        reference = {"answer": LETTERS[int(row["answer"])], "choices": row["options"], "question": ""}
        yield Item(str(number), (image_of(row["image"]), prompt(row["question"], row["options"])), reference)


BENCHMARK = Benchmark(
    name="ai2d",
    verb="answer",
    data="lmms-lab/ai2d",
    split="test",
    metric="multiple_choice",
    headline="accuracy",
    read=read,
    source="arXiv 1603.07396; prompt of LLaVA-1.5 (arXiv 2310.03744)",
)
