"""Fetch 375 real photographs that Debian and npm packages hold, for a codebook of photographic patches.

    python -m train.photographs --output runs/photographs

Contract: the output folder receives

    train/       the photos a codebook is built from, as they stand in the packages, byte for byte
    held_out/    those it is measured on: about one photo in eight, by the photo's hash
    manifest.json, LICENSES.md    what was written and what is missing; who took each photo and under which licence

`train/data/photographs.json` lists the photos, which were chosen by eye, with their hashes and credits. It holds camera
pictures only, of at least 128 pixels a side (32 at a quarter of the size), and one of each stereo pair and of each set
of copies: no held-out photo has a near copy in `train/`, though another view of its subject may be there. The photos
themselves stay out of the repository, many licences being share-alike.

Packages come through the machine's own `apt-get` and `npm` in the versions listed, one after the other. Nothing in them
is run or unpacked to disk: listed files are read from the archive, compared with their hash, and written under names of
ours. A photo that stands in the output folder already is not fetched again, so an interrupted run goes on when it is
started again.
"""

import argparse
import json
import tarfile
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from tqdm import tqdm

from train.packages import MissingPackage, fetch_deb, fetch_npm, run
from train.rcc import read_rcc

LIST = Path(__file__).parent / "data" / "photographs.json"
SPLITS = ("train", "held_out")
HELD_OUT_ONE_IN = 8


class MissingPhoto(RuntimeError):
    """A package, or a photo in it, cannot be had as it is listed."""


@dataclass(frozen=True)
class Package:
    """A package as `client` ("apt" or "npm") knows it; `credits` says where its photos' credits were read."""

    name: str
    client: str
    version: str
    credits: str


@dataclass(frozen=True)
class Photo:
    """`path` is the photo's place in the archive, or that of the .rcc file which holds it as `resource`; `name` is the
    file name we give it, `width` and `height` are in pixels. `author` and `source` are empty where nobody says them."""

    name: str
    package: str
    path: str
    sha256: str
    width: int
    height: int
    licence: str
    resource: str = ""
    author: str = ""
    source: str = ""

    @property
    def split(self) -> str:
        return "held_out" if int(self.sha256, 16) % HELD_OUT_ONE_IN == 0 else "train"


def load_list(path: Path = LIST) -> tuple[list[Package], list[Photo]]:
    listed = json.loads(path.read_text(encoding="utf-8"))
    packages = [Package(name, **fields) for name, fields in listed["packages"].items()]
    return packages, [Photo(**fields) for fields in listed["photos"]]


def fetch(package: Package, folder: Path) -> Path:
    """Download one package into `folder`, which must be empty, and return it as a .tar or .tgz file.

    Raises MissingPhoto for a missing tool, and for a version that the archive does not have (any more).
    """
    try:
        if package.client == "npm":
            return fetch_npm(f"{package.name}@{package.version}", folder)
        deb, tar = fetch_deb(f"{package.name}={package.version}", folder), folder / "files.tar"
        with tar.open("wb") as stream:
            run(["dpkg-deb", "--fsys-tarfile", str(deb)], folder, stdout=stream)
        return tar
    except MissingPackage as error:
        raise MissingPhoto(str(error)) from None


def read_members(archive: Path, paths: set[str]) -> dict[str, bytes]:
    """Those of the regular files `paths` that a .tar or .tgz file holds; links are not followed."""
    try:
        with tarfile.open(archive) as tar:
            members = ((member.name.removeprefix("./"), member) for member in tar if member.isreg())
            return {path: tar.extractfile(member).read() for path, member in members if path in paths}
    except (tarfile.TarError, EOFError, OSError) as error:
        raise MissingPhoto(f"{archive.name} cannot be read: {error}") from error


def read_photos(archive: Path, photos: list[Photo]) -> dict[Photo, bytes | MissingPhoto]:
    """Each of `photos`, all of one package, with its bytes, or with the reason why these cannot be had."""
    members = read_members(archive, {photo.path for photo in photos})
    files = {(path, ""): data for path, data in members.items()}
    for path in {photo.path for photo in photos if photo.resource} & members.keys():
        try:
            files |= {(path, resource): data for resource, data in read_rcc(members[path])}
        except ValueError as error:
            raise MissingPhoto(f"{path} of {photos[0].package} cannot be read: {error}") from error
    return {photo: _checked(photo, files.get((photo.path, photo.resource))) for photo in photos}


def _checked(photo: Photo, data: bytes | None) -> bytes | MissingPhoto:
    where = f"{photo.resource or photo.path} of {photo.package}"
    if data is None:
        return MissingPhoto(f"{where} is not in the package")
    if sha256(data).hexdigest() != photo.sha256:
        return MissingPhoto(f"{where} has sha256 {sha256(data).hexdigest()}, listed is {photo.sha256}")
    return data


def fetch_photos(package: Package, photos: list[Photo]) -> dict[Photo, bytes | MissingPhoto]:
    """As `read_photos`, with the package fetched for it: none of them can be had where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return read_photos(fetch(package, Path(folder)), photos)
        except MissingPhoto as error:
            return dict.fromkeys(photos, error)


def place(output: Path, photo: Photo) -> Path:
    return output / photo.split / photo.name


def stands(output: Path, photo: Photo) -> bool:
    path = place(output, photo)
    return path.is_file() and sha256(path.read_bytes()).hexdigest() == photo.sha256


def write(path: Path, data: bytes, output: Path) -> None:
    """Write a file whole or not at all."""
    partial = output / ".partial"
    partial.write_bytes(data)
    partial.replace(path)


def gather(
    output: Path, packages: list[Package], photos: list[Photo], *, skip_missing: bool = False
) -> dict[Photo, str]:
    """Fetch what does not stand in `output` yet; returns the photos that are missing, each with the reason.

    Raises ValueError where train/ or held_out/ holds other files, since a codebook would be built from them, and
    MissingPhoto at the first photo that cannot be had, unless `skip_missing`.
    """
    for split in SPLITS:
        (output / split).mkdir(parents=True, exist_ok=True)
    listed = {place(output, photo) for photo in photos}
    strange = sorted(path for split in SPLITS for path in (output / split).iterdir() if path not in listed)
    if strange:
        raise ValueError(f"{output} holds {len(strange)} files that are not listed, e.g. {strange[0]}: move them away")

    missing = {}
    wanted = [photo for photo in photos if not stands(output, photo)]
    with tqdm(total=len(photos), initial=len(photos) - len(wanted), unit="photo") as progress:
        for package in packages:
            mine = [photo for photo in wanted if photo.package == package.name]
            if not mine:
                continue
            progress.set_description(package.name)
            for photo, data in fetch_photos(package, mine).items():
                if isinstance(data, bytes):
                    write(place(output, photo), data, output)
                elif skip_missing:
                    missing[photo] = str(data)
                    place(output, photo).unlink(missing_ok=True)  # or a damaged one would be taken for the photo
                else:
                    raise data
                progress.update()
    return missing


def write_records(output: Path, packages: list[Package], photos: list[Photo], missing: dict[Photo, str]) -> None:
    """Write manifest.json and LICENSES.md about `photos`, of which `missing` are not there."""
    there = [photo for photo in photos if photo not in missing]
    manifest = {
        "packages": [asdict(package) for package in packages],
        "photos": [{"file": f"{photo.split}/{photo.name}", "split": photo.split, **asdict(photo)} for photo in there],
        "missing": [{"name": photo.name, "reason": reason} for photo, reason in missing.items()],
    }
    write(output / "manifest.json", json.dumps(manifest, ensure_ascii=False, indent=1).encode(), output)
    lines = ["# Who took these photographs", "", "None of them is ours; each keeps its own licence.", ""]
    for package in packages:
        lines.append(f"## {package.client} package {package.name} {package.version}\n\nCredits: {package.credits}.\n")
        lines += ["| photo | by | licence | source |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {photo.split}/{photo.name} | {photo.author or 'not said'} | {photo.licence} | {photo.source} |"
            for photo in there
            if photo.package == package.name
        ] + [""]
    write(output / "LICENSES.md", "\n".join(lines).encode(), output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder that receives the photos")
    parser.add_argument("--skip-missing", action="store_true", help="leave out, count and name what cannot be had")
    arguments = parser.parse_args()
    packages, photos = load_list()
    missing = gather(arguments.output, packages, photos, skip_missing=arguments.skip_missing)
    write_records(arguments.output, packages, photos, missing)
    there = [photo for photo in photos if photo not in missing]
    for reason in dict.fromkeys(missing.values()):
        names = [photo.name for photo in missing if missing[photo] == reason]
        print(f"{len(names)} missing: {', '.join(names)}: {reason}")
    splits = Counter(photo.split for photo in there)
    print(
        f"{len(there)} of {len(photos)} photos ({splits['train']} to train on, {splits['held_out']} held out), "
        f"{sum(photo.width * photo.height for photo in there) / 1e6:.1f} megapixels, {len(missing)} missing"
    )


if __name__ == "__main__":
    main()
