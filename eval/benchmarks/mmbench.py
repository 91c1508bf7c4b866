"""MMBench, English, by circular evaluation (arXiv 2307.06281; `lmms-lab/MMBench`, or the official TSV by `--data`).

Columns, from memory and not checked against the Hub: `index`, `question`, `hint`, `answer` (a letter), `A` to `D`
(empty where a question has fewer choices), `category`, `image`; in the TSV images are base64. Each question is asked
once for each rotation of its choices.
"""

from collections.abc import Iterable, Sequence

from eval.benchmark import Benchmark, Item, Row, image_of

LETTERS = "ABCDEFGHIJ"
REQUEST = "Answer with the option's letter from the given choices directly."  # of LLaVA-1.5, arXiv 2310.03744


def prompt(question: str, choices: Sequence[str]) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *lines, REQUEST])


def read(rows: Iterable[Row]) -> Iterable[Item]:
    for row in rows:
        choices = [str(row[letter]) for letter in "ABCD" if row.get(letter) not in (None, "", "nan")]
        right = LETTERS.index(row["answer"])
        question = f"{row['hint']}\n{row['question']}" if row.get("hint") not in (None, "", "nan") else row["question"]
        for turn in range(len(choices)):
            turned = choices[turn:] + choices[:turn]
            answer = LETTERS[(right - turn) % len(choices)]
            reference = {"answer": answer, "choices": turned, "question": str(row["index"])}
            content = (image_of(row["image"]), prompt(question, turned))
            groups = {"category": row["category"]}
            yield Item(f"{row['index']}/{turn}", content, reference, groups, cluster=str(row["index"]))


BENCHMARK = Benchmark(
    name="mmbench",
    verb="answer",
    data="lmms-lab/MMBench",
    config="en",
    split="dev",
    metric="multiple_choice",
    headline="circular",
    read=read,
    source="arXiv 2307.06281, section 4.2; an answer that names no choice is wrong, where the official scorer asks GPT",
)
