"""There and back through a Hub: every row of the table, its adapter, sharded weights, what a Trainer pushes, revisions;
pulled without our packages, again offline, again with them, pushed from remote code and pulled once more. Outputs stay
the same to the last digit.

The Hub is `hub_server`'s, the client huggingface_hub's own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

from modeling_unified.configuration_unified import PARADIGMS
from tests.hub_server import TOKEN, File, Repository, serve

TESTS = Path(__file__).parent
PROBE = TESTS / "round_trip_probe.py"


@pytest.fixture(scope="module")
def hub():
    with serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_tiny_row, make_tiny_processor) -> dict[str, str]:
    from modeling_unified import UnifiedForConditionalGeneration

    place = tmp_path_factory.mktemp("rows")
    for row in PARADIGMS:
        torch.manual_seed(0)
        config = make_tiny_row(row)
        UnifiedForConditionalGeneration(config).save_pretrained(place / row)
        make_tiny_processor(config).save_pretrained(place / row)
    return {row: str(place / row) for row in PARADIGMS}


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    """callable(task, cache, packages, offline, **arguments) -> what the probe has found."""
    place = tmp_path_factory.mktemp("processes")

    def run(task: str, cache: str, packages: bool = True, offline: bool = False, **arguments) -> dict:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_"))}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(place / cache), "HF_TOKEN": TOKEN}
        environment |= {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
        environment |= {"PYTHONPATH": str(TESTS.parent)} if packages else {}
        (place / "arguments.json").write_text(json.dumps({**arguments, "packages": packages}))
        command = [sys.executable, *([] if packages else ["-I"]), PROBE, task, place / "arguments.json"]
        done = subprocess.run(
            [*command, place / "result.json"], cwd=place, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return json.loads((place / "result.json").read_text())

    return run


@pytest.fixture(scope="module")
def pushed(run, folders, tmp_path_factory) -> dict:
    """What the adapters and the trained model answered before they were pushed."""
    return run("push", "pusher", folders=folders, scratch=str(tmp_path_factory.mktemp("trained")))


@pytest.fixture(scope="module")
def pulled(run, pushed, folders) -> dict:
    return run("pull", "stranger", packages=False, rows=list(folders), again=True, trust_remote_code=True)


@pytest.fixture(scope="module")
def offline(run, pulled, folders, hub) -> dict:
    before = len(hub.requests)
    found = run(
        "pull", "stranger", packages=False, offline=True, rows=list(folders), again=False, trust_remote_code=True
    )
    assert len(hub.requests) == before
    return found


@pytest.fixture(scope="module")
def with_package(run, pushed, folders) -> dict:
    return run("pull", "owner", rows=list(folders), again=False)


def test_all_rows_answer_without_the_packages_as_with_them(pulled, with_package, pushed):
    for name, answers in with_package.items():
        assert pulled[name] == answers, name
    for name, logits in pushed.items():
        assert pulled[name] == logits, name


def test_offline_answers_come_from_the_cache(offline, pulled):
    assert offline and all(pulled[name] == answers for name, answers in offline.items())


def test_pushed_again_from_remote_code_answers_the_same(pulled, hub):
    assert pulled["again"] == pulled["ugen"]
    first, again = (hub.repositories[f"tester/{name}"].commits[-1] for name in ("ugen", "again"))
    assert {name for name in first if "safetensors" not in name} <= set(again)


def test_adapters_and_revisions_differ_from_their_model(pulled):
    assert pulled["ugen-lora"] != pulled["revision first"] != pulled["revision second"]


def test_repositories_hold_shards_code_and_no_pickle(hub, pushed):
    files = hub.repositories["tester/ugen"].commits[-1]
    assert sum(name.endswith(".safetensors") for name in files) > 1 and "model.safetensors.index.json" in files
    for id in ("tester/ugen", "tester/trained"):
        names = set(hub.repositories[id].commits[-1])
        assert {"modeling_unified.py", "processing_unified.py", "pipeline_unified.py", "config.json"} <= names
    adapter = hub.repositories["tester/unifluid-lora"].commits[-1]
    config = json.loads(adapter["adapter_config.json"].content)
    assert config["base_model_name_or_path"] == "tester/unifluid"
    largest = max(len(file.content) for file in adapter.values())
    assert largest < sum(len(file.content) for file in files.values()) / 4
    every = [name for repository in hub.repositories.values() for name in repository.commits[-1]]
    assert not [name for name in every if name.endswith((".bin", ".pt", ".pkl", ".pth"))]
    assert not hub.unknown


def test_a_private_repository_is_not_there_for_others(hub, pushed, tmp_path):
    hub.private.add("tester/uvu")
    try:
        with pytest.raises(RepositoryNotFoundError, match="make sure you are authenticated"):
            online(snapshot_download, hub, "tester/uvu", cache_dir=tmp_path, token=False)
        online(snapshot_download, hub, "tester/uvu", cache_dir=tmp_path, token=TOKEN, allow_patterns=["config.json"])
    finally:
        hub.private.remove("tester/uvu")


def online(call, hub, *arguments, **options):
    """Calls the client where this process, as all tests, is offline."""
    import huggingface_hub.constants as constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        if call is snapshot_download:
            options["endpoint"] = hub.url
        return call(*arguments, **options)


def test_an_upload_that_breaks_leaves_no_commit_and_goes_on(hub, tmp_path):
    api = HfApi(hub.url, token=TOKEN)
    online(api.create_repo, hub, "tester/broken")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(os.urandom(2**20))
    upload = {"path_or_fileobj": weights, "path_in_repo": weights.name, "repo_id": "tester/broken"}
    hub.broken_uploads = 100
    with pytest.raises(Exception, match="(?i)connection|disconnected|upload|broken|reset|Error"):
        online(api.upload_file, hub, **upload)
    hub.broken_uploads = 0
    assert len(hub.repositories["tester/broken"].commits) == 1  # the empty one
    online(api.upload_file, hub, **upload)
    assert hub.repositories["tester/broken"].commits[-1][weights.name].content == weights.read_bytes()


def test_a_pull_that_breaks_is_never_taken_for_whole(hub, pushed, tmp_path):
    """The client asks again where it was cut off, and gives up without a file of the weights' name."""
    whole = hub.repositories["tester/unifluid"].commits[-1]
    hub.broken_downloads = 2
    folder = Path(online(snapshot_download, hub, "tester/unifluid", cache_dir=tmp_path / "a", token=TOKEN))
    assert hub.broken_downloads == 0
    for name, file in whole.items():
        assert (folder / name).read_bytes() == file.content, name
    hub.broken_downloads = 10_000
    try:
        with pytest.raises(Exception, match="(?i)peer closed|incomplete|connection|consistency|error"):
            online(snapshot_download, hub, "tester/unifluid", cache_dir=tmp_path / "b", token=TOKEN, max_workers=1)
    finally:
        hub.broken_downloads = 0
    left = {path.name: path.stat().st_size for path in (tmp_path / "b").glob("*/snapshots/*/*.safetensors")}
    assert all(size == len(whole[name].content) for name, size in left.items())
    folder = Path(online(snapshot_download, hub, "tester/unifluid", cache_dir=tmp_path / "b", token=TOKEN))
    assert all((folder / name).read_bytes() == file.content for name, file in whole.items())


def test_file_names_do_not_lead_out_of_the_cache(hub, tmp_path):
    hub.repositories["tester/escape"] = Repository([{"../../../../escaped": File(b"out", large=False)}])
    with pytest.raises(ValueError, match="(?i)invalid|path"):
        online(snapshot_download, hub, "tester/escape", cache_dir=tmp_path / "a" / "cache", token=TOKEN)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.slow
def test_a_strangers_script_draws_and_answers(hub, run, tmp_path):
    """The first block of README.md, with the id of the shipped model on a Hub, in a process without our packages."""
    card = TESTS.parent / "model_cards" / "ugen-spark"
    api = HfApi(hub.url, token=TOKEN)
    online(api.create_repo, hub, "tester/ugen-spark")
    online(api.upload_folder, hub, repo_id="tester/ugen-spark", folder_path=card)
    block = (TESTS.parent / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert block.count("\n") <= 10 and '"model_cards/ugen-spark"' in block
    script = "import sys\nsys.modules['modeling_unified'] = sys.modules['processing_unified'] = None\n"
    script += block.replace('"model_cards/ugen-spark"', '"tester/ugen-spark"')
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].strip() == "two"
    assert (tmp_path / "drawing.png").stat().st_size > 1000
