"""The folders hold what is built from the records, the Hub can read it, and the snippets of the cards run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub import parse_eval_result_entries as parse_entries
from jinja2 import UndefinedError

import model_cards.build
from model_cards.build import CARDS, DATASETS, RESULTS, SUITE, build, describe_run, filled, main, round_off, stale
from modeling_unified.configuration_unified import PARADIGMS

ROOT = Path(__file__).parents[2]
HERE = ROOT / "model_cards"
SPARKS = [name for name in CARDS if name.endswith("-spark")]
PAPERS = [name for name in CARDS if name not in SPARKS]


@pytest.fixture(scope="module")
def built():
    return {name: build(HERE / name) for name in CARDS}


def test_there_is_a_card_for_each_row_in_both_sizes():
    assert set(CARDS) == {row + size for row in PARADIGMS for size in ("", "-spark")}
    assert {path.parent.name for path in HERE.glob("*/README.md")} == set(CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_the_folder_holds_what_is_built(built, name):
    for path, text in built[name].items():
        assert (HERE / name / path).read_bytes() == text.encode(), f"{name}/{path}: run python -m model_cards.build"
    assert stale(HERE / name) == []  # and building twice gives the same bytes


@pytest.mark.parametrize("name", CARDS)
def test_metadata_is_what_the_hub_reads(built, name):
    card = ModelCard(built[name]["README.md"])
    assert ModelCardData(**card.data.to_dict()).to_dict() == card.data.to_dict()
    data = card.data
    assert (data.library_name, data.license, data.language) == ("transformers", "apache-2.0", "en")
    assert data.pipeline_tag == "text-to-image" and "text-to-image" in data.tags
    assert ("custom_code" in data.tags) == (name in SPARKS) == (data.datasets == DATASETS)
    assert ("image-to-image" in data.tags) == (name == "unifluid-spark")


@pytest.mark.parametrize("name", SPARKS)
def test_eval_results_are_the_hubs_and_equal_the_json(built, name):
    written = yaml.safe_load(built[name][".eval_results/spark.yaml"])
    entries = parse_entries(written)
    assert all(isinstance(entry, EvalResultEntry) and entry.dataset_id == SUITE for entry in entries)
    assert eval_result_entries_to_yaml(entries) == written
    result = json.loads((RESULTS / f"{name}.json").read_text())
    measured = {
        f"{task}_{split}": value
        for split in ("held_out", "seen")
        for task, value in {
            "drawing": result["drawing"]["model"][split]["overall"],
            "describing": result["describing"][split]["exact_match"],
            "answering": result["answering"][split]["accuracy"],
            "editing": result.get("editing", {}).get("model", {}).get(split, {}).get("exact"),
        }.items()
        if value is not None
    }
    assert {entry.task_id: entry.value for entry in entries} == measured


@pytest.mark.parametrize("name", SPARKS)
def test_a_card_tells_what_its_training_cost(built, name):
    card, records = built[name]["README.md"], json.loads((HERE / name / "training.json").read_text())
    rows = {cells[1].strip("` "): cells for cells in (line.split("|") for line in card.splitlines()) if len(cells) == 8}
    for recipe, record in records.items():
        seconds = record["seconds"]
        seconds = sum(seconds.values()) if isinstance(seconds, dict) else seconds
        assert int(rows[recipe][6]) == round(seconds / 60)
        if "steps" in record:
            assert rows[recipe][4].replace(",", "").split() == [str(record["steps"]), "x", "32"]
            assert int(rows[recipe][5].replace(",", "")) == record["parameters"]


@pytest.mark.parametrize("name", SPARKS)
def test_every_source_and_licence_is_named(built, name):
    card, notice = built[name]["README.md"], built[name]["NOTICE.md"]
    for source in ("Noto Emoji", "Twemoji", "Fluent Emoji", "emojibase-data", "WordNet 3.0"):
        assert source in card and source in notice
    for licence in ("Apache-2.0", "CC-BY-4.0", "MIT", "Unicode License"):
        assert licence in card and licence in notice
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in notice
    assert "photographs" not in card  # no model here saw one
    assert "Apache License" in built[name]["LICENSE"]


@pytest.mark.parametrize("name", CARDS)
def test_a_card_names_its_paper_and_keeps_its_distance(built, name):
    card = built[name]["README.md"]
    assert "independent implementation" in card and "not the authors' model" in card
    assert re.search(r"https://arxiv\.org/abs/(\d+\.\d+)", card)[1] == re.search(r"eprint += {(.+)}", card)[1]
    assert not re.search(r"{{|}}|{%|None|Undefined", card)


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_size_has_no_weights_and_loads_without_code(built, name):
    from transformers import AutoConfig

    import modeling_unified  # noqa: F401

    assert {path.name for path in (HERE / name).iterdir()} == {"README.md", "config.json"}
    assert "There are no weights here" in built[name]["README.md"]
    config = AutoConfig.from_pretrained(HERE / name)
    written, table = (
        {k: v for k, v in c.to_dict().items() if k not in ("_name_or_path", "auto_map", "custom_pipelines")}
        for c in (config, type(config).for_paradigm(name))
    )
    assert written == table
    assert "auto_map" not in json.loads(built[name]["config.json"])


def test_the_parameters_of_the_papers(built):
    parts = dict(re.findall(r"^\| (\w+) \| ([\d,]+)", built["unitoken"]["README.md"], flags=re.M))
    assert parts["backbone"] == "6,476,795,904"  # Chameleon-7B without its vocabulary
    numbers = [int(count.replace(",", "")) for part, count in parts.items() if part != "sum"]
    assert sum(numbers) == int(parts["sum"].replace(",", ""))
    assert "614,400,000 bytes that are not learned" in built["uvu"]["README.md"]  # 200,000 x 32 x 32 x 3


@pytest.mark.parametrize(
    "names", [["unifluid-spark"], pytest.param([n for n in SPARKS if n != "unifluid-spark"], marks=pytest.mark.slow)]
)
def test_snippets_run_without_the_package(names, tmp_path):
    """The first snippets of cards, in one process in which ours cannot be imported."""
    (tmp_path / "model_cards").symlink_to(HERE)
    lines = ["import sys", "for package in ('modeling_unified', 'processing_unified'): sys.modules[package] = None"]
    for name in names:
        snippet = re.search(r"^```python\n(.*?)^```", (HERE / name / "README.md").read_text(), flags=re.M | re.S)[1]
        assert "trust_remote_code=True" in snippet
        lines += [snippet, f"print({name!r}, repr(description), repr(answer), drawing.size)"]
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, env=offline(tmp_path), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = [line for line in ran.stdout.splitlines() if line.startswith(tuple(names))]
    assert len(said) == len(names) and all(line.endswith("(64, 64)") for line in said)
    assert all(re.search(r"'[\w ,]+' '\w+' ", line) for line in said), said  # a description and a word
    assert (tmp_path / "drawing.png").exists()
    assert (tmp_path / "edited.png").exists() == ("unifluid-spark" in names)


def offline(folder: Path) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}


def test_a_folder_without_card_or_record_is_named(tmp_path):
    with pytest.raises(ValueError, match="no card is known for mine: ugen-spark, .*unitoken"):
        build(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"ugen-spark/config.json is missing"):
        build(tmp_path / "ugen-spark")


def test_results_of_another_model_are_refused(tmp_path, monkeypatch):
    result = json.loads((RESULTS / "ugen-spark.json").read_text())
    (tmp_path / "ugen-spark.json").write_text(json.dumps(result | {"parameters": 1_000}))
    monkeypatch.setattr(model_cards.build, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="ugen-spark has 9,154,595 parameters, its results are of 1,000"):
        build(HERE / "ugen-spark")


def test_a_changed_record_makes_a_card_stale(tmp_path):
    folder = tmp_path / "ugen-spark"
    shutil.copytree(HERE / "ugen-spark", folder, ignore=shutil.ignore_patterns("*.safetensors", "*.py", "*.png"))
    assert stale(folder) == []
    records = json.loads((folder / "training.json").read_text())
    records["spark/ugen"]["seconds"] += 60
    (folder / "training.json").write_text(json.dumps(records))
    assert stale(folder) == ["README.md"]
    (folder / "NOTICE.md").unlink()
    assert stale(folder) == ["README.md", "NOTICE.md"]


def test_prose_asks_for_numbers_and_a_wrong_name_is_an_error():
    words = {"limits": ["right in {{ held_out.position | percent }}"], "year": 2025}
    facts = {"held_out": {"position": 0.9}}
    assert filled(words, facts) == {"limits": ["right in 90 %"], "year": 2025}
    with pytest.raises(UndefinedError, match="positoin"):
        filled("{{ held_out.positoin }}", facts)


def test_a_run_that_prose_does_not_know_is_named():
    with pytest.raises(ValueError, match="prose.toml says nothing of the run spark/new"):
        describe_run("spark/new", {"recipe": {}}, 1.0, {})


@pytest.mark.parametrize(("ratio", "rounded"), [(134.8, 100), (239.6, 200), (697.0, 700), (9.7, 10)])
def test_ratios_are_rounded_to_one_digit(ratio, rounded):
    assert round_off(ratio) == rounded


def test_the_command_writes_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model_cards.build, "HERE", tmp_path)
    for name in ("templates", "prose.toml"):
        (tmp_path / name).symlink_to(HERE / name)
    main(["ugen"])
    assert (tmp_path / "ugen" / "README.md").read_bytes() == (HERE / "ugen" / "README.md").read_bytes()
    main(["ugen"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["written", "written", "as it was", "as it was"]
