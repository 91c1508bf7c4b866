"""Builds what the models' folders say of their models: from records, never by hand.

    python -m model_cards.build                    # all folders
    python -m model_cards.build ugen-spark ugen    # these

Contract: `build(folder) -> {path in the folder: text}`. The same records give the same bytes; a test and
`model_cards.publish` compare them with what the folder holds. Two kinds of folders, by their names:

    ROW-spark   a small model with weights: README.md, .eval_results/spark.yaml, NOTICE.md, LICENSE
                from its config.json, generation_config.json and training.json, and eval/results/ROW-spark*.json
    ROW         a paper's size, without weights: README.md, config.json
                from the table of paradigms, the recipes, and the model on the meta device, which has shapes only

Words that no record holds stand in `prose.toml`, the frame of a card in `templates/`.
"""

import argparse
import json
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.compare import command_of, training_of
from eval.report import markdown, percent, where_measured
from modeling_unified.configuration_unified import PARADIGMS, UnifiedConfig
from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from train.estimate import count_parts
from train.recipes import CODEBOOKS, RECIPES

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = ROOT / "eval" / "results"
CARDS = tuple(row + size for size in ("-spark", "") for row in PARADIGMS)
# Of our own suite, whose items lie in eval/data. The Hub's format wants a data set's name; until there is one of this
# name, a model's page shows the numbers and no leaderboard does.
SUITE = "unified-autoregressive/spark"
# Names for the Hub's index, none of them a data set there: what NOTICE.md gives the sources of.
DATASETS = ["noto-emoji", "twemoji", "fluent-emoji-3d", "wordnet"]
MIXTURE = ("text_parts", "image_to_text_parts", "text_to_image_parts", "editing_parts")


def build(folder: Path) -> dict[str, str]:
    """What has to stand in the folder, by path.

    Raises:
        ValueError: a folder that no card is known for, or a record that is missing.
    """
    if folder.name not in CARDS:
        raise ValueError(f"no card is known for {folder.name}: {', '.join(CARDS)} have one")
    row, spark, _ = folder.name.partition("-spark")
    return dict(small_model(folder, row) if spark else paper_size(row))


def stale(folder: Path) -> list[str]:
    """The files that differ from what would be built now. Raises ValueError as `build` does."""
    return [path for path, text in build(folder).items() if stored(folder / path) != text.encode()]


def stored(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def small_model(folder: Path, row: str) -> Iterator[tuple[str, str]]:
    """The files of a model with weights."""
    config, sampling, records = (
        read_json(folder / name) for name in ("config.json", "generation_config.json", "training.json")
    )
    result = read_json(RESULTS / f"{folder.name}.json")
    concepts = read_json(ROOT / "train" / "data" / "concepts.json")
    things = sum(concept["kind"] == "thing" for concept in concepts)
    edits = "editing" in result
    model = on_meta(UnifiedConfig.from_pretrained(folder))
    if count_all(model) != result["parameters"]:
        raise ValueError(
            f"{folder.name} has {count_all(model):,} parameters, its results are of {result['parameters']:,}: run "
            "eval.run again"
        )
    last = list(records.values())[-1]["recipe"]
    minutes = training_of(folder / "training.json")["training"]
    command = command_of(result, model.model.image_head.sampling_defaults | sampling["image_sampling"])
    facts = {
        "config": config,
        "result": result,
        "held_out": result["drawing"]["model"]["held_out"],
        "seen": result["drawing"]["model"]["seen"],
        "answering": result["answering"]["held_out"]["by_kind"],
        **{name: read_json(RESULTS / f"{folder.name}.{name}.json") for name in studies(folder.name)},
    }
    if edits:
        facts["editing"] = {k: v["exact"] for k, v in result["editing"]["model"]["held_out"]["by_kind"].items()}
    prose = read_prose()
    yield (
        "README.md",
        environment()
        .get_template("spark.md")
        .render(
            **facts,
            name=folder.name,
            row=row,
            words=filled(prose[row] | {"paper": None}, facts),
            metadata=metadata(edits, DATASETS, ["custom_code"]),
            edits=edits,
            sampling=sampling["image_sampling"],
            times=round_off(count_all(on_meta(UnifiedConfig.for_paradigm(row))) / result["parameters"]),
            things=things,
            shapes=len(concepts) - things,
            command=command,
            measured=where_measured(result["environment"]),
            tables=markdown([result]),
            minutes=minutes.values(),
            runs=[describe_run(name, records[name], minutes[name], prose["runs"]) for name in records],
            data=last,
            tile=config["codec_config"].get("encoder_tile_size"),
            sources=sources(),
        ),
    )
    yield ".eval_results/spark.yaml", yaml_dump(eval_result_entries_to_yaml(list(entries(result, command))))
    yield "NOTICE.md", (ROOT / "train" / "data" / "NOTICE.md").read_text()
    yield "LICENSE", (ROOT / "LICENSE").read_text()


def studies(name: str) -> list[str]:
    """What else was measured of a model: `steps` of `unifluid-spark.steps.json`."""
    return sorted(path.name.split(".")[1] for path in RESULTS.glob(f"{name}.*.json"))


def describe_run(name: str, record: dict[str, Any], minutes: float, what: dict[str, str]) -> dict[str, str]:
    """The cells of a run in the table of training. A codebook's record counts rounds, and learns no parameters."""
    if name not in what:
        raise ValueError(f"prose.toml says nothing of the run {name}: add it to [runs]")
    recipe = record["recipe"]
    parts = [recipe.get(part, 0) for part in MIXTURE]
    learned = "rounds" not in record
    return {
        "recipe": name,
        "what": what[name],
        "mixture": " : ".join(map(str, parts if parts[-1] else parts[:-1])) if any(parts) else "-",
        "steps": f"{record['steps']:,} x {recipe['batch_size']}" if learned else f"{record['rounds']} rounds",
        "parameters": f"{record['parameters']:,}" if learned else "-",
        "minutes": f"{minutes:.0f}",
    }


def entries(result: dict[str, Any], command: str) -> Iterator[EvalResultEntry]:
    """The main number of each task and split, in the Hub's `.eval_results` format: shares from 0 to 1.

    No date is given, as results hold none: the Hub takes that of the commit.
    """
    places = {
        "drawing": ("drawing", "model", "{split}", "overall"),
        "describing": ("describing", "{split}", "exact_match"),
        "answering": ("answering", "{split}", "accuracy"),
        "editing": ("editing", "model", "{split}", "exact"),
    }
    for task, place in places.items():
        if task not in result:
            continue
        for split in ("held_out", "seen"):
            value = result
            for key in place:
                value = value[key.format(split=split)]
            notes = f"{place[-1]}, {split} combinations; {command}; {where_measured(result['environment'])[0]}"
            yield EvalResultEntry(dataset_id=SUITE, task_id=f"{task}_{split}", value=value, notes=notes)


def sources() -> str:
    """The parts of NOTICE.md on drawings and glosses, one heading lower: what the small models learned from."""
    notice = (ROOT / "train" / "data" / "NOTICE.md").read_text()
    kept = [part for part in notice.split("\n## ")[1:] if part.startswith(("drawings.", "glosses."))]
    return "\n\n".join(f"### {part.strip()}" for part in kept)


def paper_size(row: str) -> Iterator[tuple[str, str]]:
    """The files of a configuration without weights."""
    config = UnifiedConfig.for_paradigm(row)
    model = on_meta(config)
    recipes = [recipe() for name, recipe in RECIPES.items() if name.startswith(f"{row}/")]
    starts = {name.replace("_", " "): getattr(recipes[0], name) for name in ("text_model", "codec", "tower")}
    yield (
        "README.md",
        environment()
        .get_template("paper.md")
        .render(
            name=row,
            row=row,
            words=read_prose()[row],
            metadata=metadata("latents" in config.image_inputs, None, []),
            total=count_all(model),
            parts=count_parts(model),
            recipes=recipes,
            codebooks=[name for name in CODEBOOKS if name.startswith(f"{row}/")],
            starts={name: source for name, source in starts.items() if source},
        ),
    )
    yield "config.json", config_json(config)


def on_meta(config: UnifiedConfig) -> UnifiedForConditionalGeneration:
    """The model without numbers."""
    with torch.device("meta"):
        return UnifiedForConditionalGeneration(config)


def count_all(model: UnifiedForConditionalGeneration) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def round_off(ratio: float) -> int:
    """To one digit that counts: 134.8 -> 100."""
    return int(float(f"{ratio:.1g}"))


def config_json(config: UnifiedConfig) -> str:
    """Without the names of code files (`auto_map`, `custom_pipelines`), since none lie beside it."""
    fields = json.loads(config.to_json_string())
    for name in ("auto_map", "custom_pipelines"):
        fields.pop(name, None)
    return json.dumps(fields, indent=2) + "\n"


def metadata(edits: bool, datasets: list[str] | None, tags: list[str]) -> str:
    """What the Hub indexes, as YAML. With `library_name` it also finds the pipeline for `pipeline(model=...)`."""
    tasks = ["text-to-image", "image-text-to-text", *["image-to-image"] * edits, "visual-question-answering"]
    data = ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="text-to-image",
        tags=["unified-autoregressive", *tasks, *tags],
        datasets=datasets,
    )
    return data.to_yaml()


def environment() -> Environment:
    """Jinja that refuses names it does not know, which `ModelCard.from_template` would leave blank."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["percent"] = percent
    made.filters["thousands"] = lambda number: f"{number:,}"
    made.filters["flow"] = flow
    return made


def flow(text: str, indent: str = "") -> str:
    """Paragraphs, each broken into lines of at most 120 characters, those after its first behind `indent`."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")]
    options = {"width": 120, "subsequent_indent": indent, "break_long_words": False, "break_on_hyphens": False}
    return "\n\n".join(textwrap.fill(paragraph, **options) for paragraph in paragraphs) + "\n" * text.endswith("\n")


def filled(words: Any, facts: dict[str, Any]) -> Any:
    """The words, with the numbers that they ask for; see `prose.toml`."""
    if isinstance(words, dict):
        return {key: filled(value, facts) for key, value in words.items()}
    if isinstance(words, list):
        return [filled(value, facts) for value in words]
    return environment().from_string(words).render(**facts) if isinstance(words, str) else words


def read_prose() -> dict[str, Any]:
    return tomllib.loads((HERE / "prose.toml").read_text(encoding="utf-8"))


def read_json(path: Path) -> Any:
    if not path.exists():
        raise ValueError(f"{path.parent.name}/{path.name} is missing: a card is built from it")
    return json.loads(path.read_text())


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(prog="python -m model_cards.build", description=__doc__.splitlines()[0])
    arguments.add_argument("names", nargs="*", metavar="NAME", help=f"folders here; default all: {', '.join(CARDS)}")
    for name in arguments.parse_args(argv).names or CARDS:
        for path, text in build(HERE / name).items():
            target = HERE / name / path
            changed = stored(target) != text.encode()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text.encode())
            print(f"{'written' if changed else 'as it was'}  {name}/{path}")


if __name__ == "__main__":
    main()
