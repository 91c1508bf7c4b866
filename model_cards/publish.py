"""Pushes a model's folder to the Hub as it stands: the only file here that writes there.

    python -m model_cards.publish model_cards/ugen-spark --repo NAME/ugen-spark --dry-run   # look first
    python -m model_cards.publish model_cards/ugen-spark --repo NAME/ugen-spark --private

Contract: `publish(folder, repo, ...)` first collects every reason not to (`faults`) and pushes nothing if there is one.
Then one commit makes the repository equal to the folder: files that only the repository has are deleted (its history
keeps them). `HF_ENDPOINT` and the token are huggingface_hub's own.

A folder is refused for

    a card, or another file that `model_cards.build` writes, that differs from what the records say now
    code beside the weights that differs from the packages
    a secret, or an absolute path of a machine, in a text
    a file that is neither text nor safetensors nor PNG: unpickling one runs whatever code it holds
"""

import argparse
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects
from PIL import Image
from safetensors import SafetensorError, safe_open

from model_cards.build import ROOT, read_json, stale

PACKAGES = ("modeling_unified", "processing_unified")
TEXTS = (".json", ".jinja", ".md", ".py", ".txt", ".yaml")
TEXT_NAMES = ("LICENSE", ".gitattributes")
# What each service writes before its keys, or says beside them. Of the last group only values that look random count.
SECRETS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "a key of AWS": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|aws_secret_access_key\s*[=:]", re.IGNORECASE),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY"),
    "a token of GitHub": re.compile(r"\bgh[opsru]_[A-Za-z0-9]{36}|\bgithub_pat_[A-Za-z0-9_]{22,}"),
    "a token of another service": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}|\bsk-[A-Za-z0-9_-]{32,}|\bAIza[\w-]{35}"),
    "a password or token": re.compile(
        r"(?:api[_-]?key|secret|passw(?:or)?d|access[_-]?token)[\"']?\s*[=:]\s*[\"'](?=\S*\d)[\w+/=-]{16,}[\"']",
        re.IGNORECASE,
    ),
}
MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(?:work|tmp|root|home|opt|mnt|srv|usr|var|data|scratch|Users|Volumes)/[\w.]|\b[A-Z]:\\+Users\\"
)


def publish(
    folder: Path, repo: str, private: bool = False, revision: str | None = None, dry_run: bool = False
) -> CommitInfo | None:
    """Makes the repository and pushes the folder in one commit; with `dry_run` only prints what that would do.

    Args:
        private: of a repository that is made now; one that exists stays as it is.
        revision: a branch, made if it is not there; None is `main`.

    Returns:
        The commit; None after a dry run.

    Raises:
        ValueError: all reasons why the folder must not be published, before anything is sent.
        HfHubHTTPError: what the Hub says, e.g. of a missing token.
    """
    if reasons := list(faults(folder)):
        raise ValueError("\n  ".join([f"{folder} must not be published:", *reasons]))
    api = HfApi()
    if dry_run:
        print("\n".join(plan(api, folder, repo, private, revision)))
        return None
    api.create_repo(repo, private=private, exist_ok=True)
    if revision:
        api.create_branch(repo, branch=revision, exist_ok=True)
    return api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        revision=revision,
        delete_patterns="*",
        commit_message=f"Publish {folder.name}",
    )


def faults(folder: Path) -> Iterator[str]:
    """Every reason not to publish, each with the file it is about."""
    if not (folder / "README.md").exists():
        yield f"{folder} holds no README.md: name the folder of a model"
        return
    try:
        yield from (f"{path}: differs from its records: run python -m model_cards.build" for path in stale(folder))
    except ValueError as missing:
        yield str(missing)
    yield from code_faults(folder)
    for path in files_of(folder):
        yield from (f"{path.relative_to(folder)}: {fault}" for fault in file_faults(path))


def files_of(folder: Path) -> list[Path]:
    """What would be pushed: `upload_folder` leaves out what git and its own cache keep. Links count as files."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return [folder / name for name in sorted(filter_repo_objects(names, ignore_patterns=DEFAULT_IGNORE_PATTERNS))]


def code_faults(folder: Path) -> Iterator[str]:
    """The code beside the weights must be the packages', whole; a folder whose config names none needs none."""
    if not (folder / "config.json").exists():
        yield "config.json: missing, nothing could load the folder"
        return
    ours = {path.name: path for package in PACKAGES for path in (ROOT / package).glob("*_unified.py")}
    shipped = {path.name: path for path in folder.rglob("*.py")}
    if "auto_map" in read_json(folder / "config.json"):
        yield from (f"{name}: missing, though config.json names code" for name in sorted(ours.keys() - shipped.keys()))
    for name, path in sorted(shipped.items()):
        if name not in ours:
            yield f"{name}: code that no package holds"
        elif path.read_bytes() != ours[name].read_bytes():
            yield f"{name}: differs from {ours[name].parent.name}/{name}: copy it again"


def file_faults(path: Path) -> Iterator[str]:
    """What is wrong with the inside of a file."""
    if path.is_symlink():
        yield "a link, of which what it points to would be pushed: put the file itself here"
    elif path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            yield f"not what its name says ({error})"
    elif path.suffix == ".png":
        try:
            with Image.open(path, formats=["PNG"]) as image:
                image.verify()
        except (OSError, SyntaxError) as error:  # Pillow's word for a broken PNG is SyntaxError
            yield f"not what its name says ({error})"
    elif path.suffix in TEXTS or path.name in TEXT_NAMES:
        yield from text_faults(path)
    else:
        yield "neither text nor safetensors nor PNG; pickles run code when they are loaded, so weights are safetensors"


def text_faults(path: Path) -> Iterator[str]:
    """Secrets and paths, by line. A secret is not repeated."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        yield "not the text that its name says"
        return
    for number, line in enumerate(text.splitlines(), 1):
        yield from (f"line {number} holds {name}" for name, pattern in SECRETS.items() if pattern.search(line))
        if found := MACHINE_PATH.search(line):
            yield f"line {number} holds a path of a machine, {line[found.start() :][:40]!r}"


def plan(api: HfApi, folder: Path, repo: str, private: bool, revision: str | None) -> Iterator[str]:
    """What a push would do, file by file, and what it would delete."""
    files = {path.relative_to(folder).as_posix(): path for path in files_of(folder)}
    there, state = look(api, repo, private, revision)
    yield f"{folder} -> {repo}, {revision or 'main'}: {state}"
    for name, path in files.items():
        yield f"  {change(path, there, name):9} {path.stat().st_size:>12,}  {name}"
    size = sum(path.stat().st_size for path in files.values())
    yield f"  {len(files)} files, {size / 1e6:.1f} MB"
    yield from (f"  deleted   {file.size:>12,}  {name}" for name, file in (there or {}).items() if name not in files)


def look(api: HfApi, repo: str, private: bool, revision: str | None) -> tuple[dict[str, RepoFile] | None, str]:
    """The repository's files by name, and what there is to say of it; None for one that cannot be seen."""
    new = f"to be made, {'private' if private else 'public'}"
    try:
        entries = list(api.list_repo_tree(repo, recursive=True, revision=revision))
    except RevisionNotFoundError:
        return {}, "a branch to be made"
    except RepositoryNotFoundError:  # the Hub's answer for one that this token may not see, too
        return {}, new
    except (HfHubHTTPError, OSError) as error:
        return None, f"not reachable ({str(error).splitlines()[0]}), so changes are not known"
    # The Hub adds .gitattributes by itself, and a push never deletes it.
    return {e.path: e for e in entries if isinstance(e, RepoFile) and e.path != ".gitattributes"}, "exists"


def change(path: Path, there: dict[str, RepoFile] | None, name: str) -> str:
    """Whether a file is new, changed or the same, by the hashes that git and its large files have."""
    if there is None:
        return "unknown"
    if name not in there:
        return "new"
    content, file = path.read_bytes(), there[name]
    if file.lfs:
        same = hashlib.sha256(content).hexdigest() == file.lfs.sha256
    else:
        same = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == file.blob_id
    return "same" if same else "changed"


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(prog="python -m model_cards.publish", description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--repo", required=True, help="USER/NAME on the Hub")
    arguments.add_argument("--private", action="store_true", help="if the repository is made now")
    arguments.add_argument("--revision", help="branch; default main")
    arguments.add_argument("--dry-run", action="store_true", help="say what would be pushed, and push nothing")
    commit = publish(**vars(arguments.parse_args(argv)))
    if commit:
        print(commit.commit_url)


if __name__ == "__main__":
    main()
