"""What must not be published is refused, for all reasons at once; a dry run tells changes and sends nothing."""

import hashlib
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from model_cards.build import CARDS
from model_cards.publish import change, faults, look, main, plan, publish, text_faults

HERE = Path(__file__).parents[2] / "model_cards"
# Put together here, so that no text of ours looks like one.
SECRETS = {
    "a Hugging Face token": "hf_" + "aB3" * 12,
    "a key of AWS": "AKIA" + "ABCDEFGH12345678",
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a token of GitHub": "ghp_" + "a1B2" * 9,
    "a token of another service": "sk-" + "a1B2" * 10,
    "a password or token": "api_key" + ' = "' + "0123456789abcdefghij" + '"',
}
PATHS = ["/" + "home/somebody/data", "/" + "tmp/run", "C:\\" + "Users\\somebody"]


@pytest.fixture
def folder(tmp_path):
    """A folder without a fault; a test adds one."""
    return Path(shutil.copytree(HERE / "ugen-spark", tmp_path / "ugen-spark"))


@pytest.mark.parametrize("name", CARDS)
def test_our_folders_have_no_fault(name):
    assert list(faults(HERE / name)) == []


def test_a_stale_card_is_refused(folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("78 %", "98 %", 1))
    assert list(faults(folder)) == ["README.md: differs from its records: run python -m model_cards.build"]


def test_code_that_differs_is_refused(folder):
    path = folder / "orders_unified.py"
    path.write_text(path.read_text() + "\n")
    (folder / "heads_unified.py").unlink()
    (folder / "extra.py").write_text('"""Ours?"""\n')
    assert list(faults(folder)) == [
        "heads_unified.py: missing, though config.json names code",
        "extra.py: code that no package holds",
        "orders_unified.py: differs from modeling_unified/orders_unified.py: copy it again",
    ]


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_are_refused_and_not_repeated(folder, kind):
    (folder / "notes.txt").write_text(f"first\nlogin with {SECRETS[kind]} now\n")
    found = list(faults(folder))
    assert found == [f"notes.txt: line 2 holds {kind}"]


@pytest.mark.parametrize("path", PATHS)
def test_paths_of_a_machine_are_refused(folder, path):
    (folder / "notes.txt").write_text(f'{{"model": "{path}"}}\n')
    (fault,) = faults(folder)
    assert fault.startswith("notes.txt: line 1 holds a path of a machine") and path[:8] in fault.replace("\\\\", "\\")


def test_relative_paths_and_addresses_are_not_those_of_a_machine(tmp_path):
    harmless = tmp_path / "notes.txt"
    harmless.write_text("runs/vq ../tmp/x https://example.org/home/page `train/data/NOTICE.md` hf_hub_download\n")
    assert list(text_faults(harmless)) == []


def test_pickles_are_refused_by_name_and_by_content(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))
    (folder / "notes.json").write_bytes(pickle.dumps({"weight": 1}))
    picture = (folder / "samples.png").read_bytes()
    (folder / "samples.png").write_bytes(picture[:1000] + pickle.dumps({"weight": 1}) + picture[1100:])
    with zipfile.ZipFile(folder / "model.safetensors", "w") as archive:  # what torch.save writes
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": 1}))
    found = dict(fault.split(": ", 1) for fault in faults(folder))
    assert found.keys() == {"pytorch_model.bin", "notes.json", "samples.png", "model.safetensors"}
    assert "pickles run code when they are loaded" in found["pytorch_model.bin"]
    assert found["notes.json"] == "not the text that its name says"
    assert all("not what its name says" in found[name] for name in ("samples.png", "model.safetensors"))


def test_links_are_refused(folder, tmp_path):
    (tmp_path / "secret.txt").write_text("mine")
    (folder / "notes.txt").symlink_to(tmp_path / "secret.txt")
    (fault,) = faults(folder)
    assert fault.startswith("notes.txt: a link")


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no README.md: name the folder of a model"):
        publish(tmp_path, "somebody/x")
    (tmp_path / "README.md").write_text("# mine\n")
    found = list(faults(tmp_path))
    assert found[0].startswith(f"no card is known for {tmp_path.name}") and found[1].startswith("config.json: missing")


def test_all_reasons_come_at_once_and_nothing_is_sent(folder):
    (folder / "notes.txt").write_text(SECRETS["a key of AWS"] + "\n" + PATHS[0] + "\n")
    (folder / "README.md").write_text("# other\n")
    with pytest.raises(ValueError) as error:  # offline, so sending would be another error
        publish(folder, "somebody/ugen-spark")
    lines = str(error.value).splitlines()
    assert len(lines) == 4 and "must not be published" in lines[0]
    with pytest.raises(OfflineModeIsEnabled):
        publish(HERE / "ugen", "somebody/ugen")


def test_a_dry_run_lists_the_files_where_the_hub_is_out_of_reach(capsys):
    main([str(HERE / "ugen"), "--repo", "somebody/ugen", "--dry-run"])
    first, *files, total = capsys.readouterr().out.splitlines()
    assert "somebody/ugen, main: not reachable" in first
    assert [line.split() for line in files] == [
        ["unknown", f"{(HERE / 'ugen' / name).stat().st_size:,}", name] for name in ("README.md", "config.json")
    ]
    assert total.startswith("  2 files")


def repository_of(contents: dict[str, bytes], large: tuple[str, ...] = ()) -> dict[str, RepoFile]:
    """What the Hub says of files: git's hash, and of large ones that of their content."""
    files = {}
    for name, content in contents.items():
        facts = {
            "path": name,
            "size": len(content),
            "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
        }
        if name in large:
            lfs = {"size": len(content), "oid": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
            facts |= {"oid": "0" * 40, "lfs": lfs}
        files[name] = RepoFile(**facts)
    return files


def test_changes_are_told_by_the_hashes_of_the_hub(tmp_path):
    for name in ("same.txt", "changed.txt", "large.safetensors", "new.txt"):
        (tmp_path / name).write_text(name)
    there = repository_of(
        {"same.txt": b"same.txt", "changed.txt": b"before", "large.safetensors": b"large.safetensors"},
        large=("large.safetensors",),
    )
    assert {path.name: change(path, there, path.name) for path in tmp_path.iterdir()} == {
        "same.txt": "same", "changed.txt": "changed", "large.safetensors": "same", "new.txt": "new"
    }  # fmt: skip


def test_a_plan_says_what_is_new_and_what_is_deleted(monkeypatch):
    there = repository_of({"old.bin": b"1", "config.json": b"{}", ".gitattributes": b"*"})
    api = HfApi()
    monkeypatch.setattr(api, "list_repo_tree", lambda repo, recursive, revision: iter(there.values()))
    first, *files, total, deleted = plan(api, HERE / "ugen", "somebody/ugen", False, None)
    assert first.endswith("somebody/ugen, main: exists")
    assert [line.split()[0] for line in files] == ["new", "changed"]  # README.md, config.json
    assert deleted.split() == ["deleted", "1", "old.bin"]


def test_a_repository_that_is_not_there_would_be_made(monkeypatch):
    def missing(*args, **kwargs):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    api = HfApi()
    monkeypatch.setattr(api, "list_repo_tree", missing)
    assert look(api, "somebody/ugen", True, None) == ({}, "to be made, private")
