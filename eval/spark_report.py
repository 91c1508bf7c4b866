"""The suite `spark` for the eye: numbers as lines of text, drawings and edits as sections of a picture."""

from __future__ import annotations

from typing import Any

from .pictures import RIGHT, WRONG, Card, Line, Section
from .spark import CATEGORIES, SPLITS

SPLIT_NAMES = {"held_out": "held-out", "seen": "seen"}


def table(results: dict[str, Any]) -> str:
    """The numbers that matter, as text, of the tasks that were measured."""
    parts = {
        "drawing": drawing_lines,
        "editing": editing_lines,
        "describing": describing_lines,
        "answering": answering_lines,
        "codec": codec_lines,
    }
    lines = [line for task, of in parts.items() if task in results for line in of(results[task])]
    if text := results.get("text"):
        lines.append(f"text: perplexity {text['perplexity']:.2f}, {text['bits_per_byte']:.3f} bits per byte")
    if frechet := results.get("frechet"):
        distances = f"drawn {frechet['model']['frechet']:.2f}, codec {frechet['codec']['frechet']:.2f}"
        scenes = f"real scenes ({frechet['features']}, n = {frechet['model']['n']})"
        lines.append(f"Frechet distance to {scenes}: {distances}")
    return "\n".join(lines)


def drawing_lines(drawing: dict[str, Any]) -> list[str]:
    lines = ["Drawing: share of images in which everything asked for holds (judge on real scenes = ceiling)", ""]
    lines.append(f"{'':16}" + "".join(f"{SPLIT_NAMES[s]:>10}{'via codec':>11}{'real':>7}" for s in SPLITS))
    for category in (*CATEGORIES, "overall"):
        shares = [
            drawing[source][split].get(category, float("nan"))
            for split in SPLITS
            for source in ("model", "codec", "real")
        ]
        lines.append(f"{category:16}" + "".join(f"{x:{w}.3f}" for x, w in zip(shares, (10, 11, 7) * 2, strict=True)))
    return [*lines, f"{'seconds an image':16}{drawing['seconds_per_image']:10.3f}", ""]


def editing_lines(editing: dict[str, Any]) -> list[str]:
    """All kinds over one split, then over the other: eight numbers do not fit beside each other."""
    lines = ["Editing: what had to change is as asked, the rest has stayed, both (targets via codec = ceiling)", ""]
    for split in SPLITS:
        lines.append(f"{SPLIT_NAMES[split]:16}{'changed':>10}{'stayed':>10}{'both':>10}{'via codec':>11}")
        own, ceiling = (editing[source][split] for source in ("model", "codec"))
        rows = {kind: (own["by_kind"][kind], ceiling["by_kind"][kind]) for kind in own["by_kind"]}
        for name, (scores, best) in (rows | {"overall": (own, ceiling)}).items():
            shares = [scores[key] for key in ("changed", "stayed", "exact")]
            lines.append(f"{name:16}" + "".join(f"{share:10.3f}" for share in shares) + f"{best['exact']:11.3f}")
    return [*lines, ""]


def describing_lines(describing: dict[str, Any]) -> list[str]:
    return by_split(
        {f"describing: {key}": [describing[s][key] for s in SPLITS] for key in ("exact_match", "f1", "in_grammar")}
    )


def answering_lines(answering: dict[str, Any]) -> list[str]:
    rows = {"answering: accuracy": [answering[split]["accuracy"] for split in SPLITS]}
    for kind in sorted({kind for split in SPLITS for kind in answering[split]["by_kind"]}):
        rows[f"answering: {kind}"] = [answering[split]["by_kind"].get(kind, float("nan")) for split in SPLITS]
    for key in ("f1", "yes_ratio"):
        rows[f"answering: yes/no {key}"] = [answering[s].get("yes_no", {}).get(key, float("nan")) for s in SPLITS]
    return by_split(rows)


def by_split(rows: dict[str, list[float]]) -> list[str]:
    lines = [f"{'':30}" + "".join(f"{SPLIT_NAMES[split]:>10}" for split in SPLITS)]
    return lines + [f"{name:30}" + "".join(f"{value:10.3f}" for value in values) for name, values in rows.items()]


def codec_lines(codec: dict[str, Any]) -> list[str]:
    lines = []
    for name, part in codec.items():
        lines.append(f"codec, {name}: PSNR {part['psnr']:.2f} dB, SSIM {part['ssim']:.3f}")
        if "num_codes" in part:
            used = f"{part['codes_in_use']} of {part['num_codes']} codes, {part['entropy']:.2f} bits"
            lines[-1] += f", {used}"
    return lines


def drawing_sections(drawn_items: list[dict[str, Any]], per_category: int = 7) -> list[Section]:
    """One row of held-out drawings per category, each with its prompt and the judge's verdict."""
    sections = []
    for category in CATEGORIES:
        chosen = [item for item in drawn_items if item["category"] == category and item["split"] == "held_out"]
        chosen = chosen[:per_category]
        cards = [
            Card(item["drawn"], [Line(item["prompt"]), Line(item["judged"], RIGHT if item["right"] else WRONG)])
            for item in chosen
        ]
        right = sum(item["right"] for item in chosen)
        sections.append(Section(category, f"{right} of these {len(chosen)} are judged right", cards, per_category))
    return sections


def editing_sections(edited_items: list[dict[str, Any]], per_kind: int = 2) -> list[Section]:
    """Held-out edits, the first ones of each kind: source, instruction with the judge's verdict, result."""
    held_out = [item for item in edited_items if item["split"] == "held_out"]
    kinds = dict.fromkeys(item["kind"] for item in held_out)
    chosen = [item for kind in kinds for item in [i for i in held_out if i["kind"] == kind][:per_kind]]
    cards = [
        Card(
            item["source"],
            [Line(item["instruction"]), Line(item["judged"], RIGHT if item["exact"] else WRONG)],
            item["drawn"],
        )
        for item in chosen
    ]
    exact = sum(item["exact"] for item in chosen)
    subtitle = f"source, instruction, result: {exact} of these {len(chosen)} are judged right"
    return [Section("editing", subtitle, cards, columns=2, beside=True)]


def sections(items: dict[str, list[dict[str, Any]]]) -> list[Section]:
    makers = {"drawing": drawing_sections, "editing": editing_sections}
    return [section for task, make in makers.items() if task in items for section in make(items[task])]
