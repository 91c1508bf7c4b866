"""Files out of Debian and npm packages, through the machine's own `apt-get` and `npm`.

Contract: `fetch_deb` and `fetch_npm` download one package into a folder and return the archive; nothing in it is run.
What cannot be had, a tool or a package, is a MissingPackage that says so in the tool's own words.
"""

import shutil
import subprocess
from pathlib import Path


class MissingPackage(RuntimeError):
    """A tool is missing, or it does not give what it was asked for."""


def run(command: list[str], folder: Path, **options) -> subprocess.CompletedProcess:
    """Runs a tool in `folder`; options as of `subprocess.run`."""
    if shutil.which(command[0]) is None:
        raise MissingPackage(f"{command[0]} was not found; it is part of Debian and Ubuntu, or of Node.js if it is npm")
    done = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, **options)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise MissingPackage(f"`{' '.join(command)}` failed with status {done.returncode}: {said}")
    return done


def fetch_npm(package: str, folder: Path) -> Path:
    """The .tgz of `name@version`, in a folder that holds it alone."""
    folder = folder / package.replace("/", "-")
    folder.mkdir()
    run(["npm", "pack", "--ignore-scripts", "--silent", package], folder, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.tgz"))


def fetch_deb(package: str, folder: Path) -> Path:
    """The .deb of `name` or `name=version`, in a folder that holds no other."""
    try:
        run(["apt-get", "download", package], folder, stdout=subprocess.DEVNULL)
    except MissingPackage as error:
        message = f"{error}\nis `apt-get update` due, or the version not in this release of Debian?"
        raise MissingPackage(message) from None
    return next(folder.glob("*.deb"))
