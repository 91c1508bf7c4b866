"""What the documentation says is true: snippets run, commands and links exist, the changelog knows the version."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "model_cards" / "ugen-spark"
CARDS = sorted((ROOT / "model_cards").glob("*/README.md"))
PAGES = [ROOT / "README.md", *CARDS]
HAS_WEIGHTS = any(MODEL.glob("*.safetensors"))


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.skipif(not HAS_WEIGHTS, reason="model_cards/ugen-spark holds no weights")
@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_snippets_run(page, tmp_path, monkeypatch):
    """All snippets of a page, in order, in one namespace; files they write land in a temporary folder."""
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for number, snippet in enumerate(code_blocks(page, "python"), 1):
        exec(compile(snippet, f"{page_name(page)}, snippet {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_name_what_exists(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    shell = "\n".join(code_blocks(page, "bash"))
    unknown = set(re.findall(r"^make (\w+)", shell, flags=re.M)) | set(re.findall(r"`make (\w+)", text))
    assert unknown <= targets, f"no such make target: {unknown - targets}"
    for module in set(re.findall(r"python -m ([\w.]+)", text)):
        assert importlib.util.find_spec(module), f"python -m {module}: no such module"
    recipes = set(re.findall(r"--recipe ([a-z]+/[\w-]+)", text))
    if recipes:
        from train.recipes import CODEBOOKS, RECIPES

        known = RECIPES.keys() | CODEBOOKS.keys()
        assert recipes <= known, f"no such recipe: {recipes - known}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_and_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not re.match(r"\w+://|mailto:", target):
            assert (page.parent / target).exists(), f"{page_name(page)} links to {target}, which is not there"
    for path in re.findall(r"`([\w.-]+/[\w./-]*\w\.(?:py|md|json|png|parquet))`", text):
        assert (ROOT / path).exists() or (page.parent / path).exists(), f"{page_name(page)} names {path}"


def test_the_readme_states_the_two_commands():
    first = code_blocks(ROOT / "README.md", "bash")[0]
    assert re.findall(r"^make (\w+)\b", first, flags=re.M) == ["demo", "test"]


def test_the_table_of_paradigms_is_the_one_of_the_code():
    from modeling_unified.configuration_unified import PARADIGMS, PARTS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {cells[0].strip("` "): cells for cells in (line.strip("| ").split(" | ") for line in text.splitlines())}
    for name, row in PARADIGMS.items():
        works = all(
            part in PARTS[axis]
            for axis in PARTS
            for part in (row[axis] if isinstance(row[axis], list) else [row[axis]])
        )
        cells = [cell.strip() for cell in rows[name]]
        assert cells[1:5] == [
            " + ".join(row["image_inputs"]), row["image_codec"], row["image_head"], row["image_order"]
        ]  # fmt: skip
        assert (cells[5] == "works") == works, f"README says {cells[5]!r} of {name}, its parts say {works}"


def test_the_changelog_begins_with_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert first and first[1] == version


@pytest.mark.parametrize("card", CARDS, ids=page_name)
def test_card_opens_with_metadata_of_the_hub(card):
    from huggingface_hub import ModelCard

    data = ModelCard.load(card).data.to_dict()
    for key in ("license", "library_name", "pipeline_tag", "tags"):
        assert data.get(key), f"{page_name(card)}: metadata lacks {key}"


@pytest.mark.skipif(not HAS_WEIGHTS, reason="model_cards/ugen-spark holds no weights")
def test_a_card_ships_the_code_of_the_packages():
    """The copies beside the weights are what remote users run: a change of the code must be saved there again."""
    ours = {path.name: path for package in ("modeling", "processing") for path in ROOT.glob(f"{package}_unified/*.py")}
    shipped = sorted(MODEL.glob("*.py"))
    assert shipped
    for copy in shipped:
        assert copy.read_text() == ours[copy.name].read_text(), f"{copy.name} differs: run train.release again"
