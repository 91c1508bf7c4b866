"""transformers' own tests on our classes: ModelTesterMixin and ConfigTester in conformance_suite.py,
ProcessorTesterMixin and ImageProcessingTestMixin in conformance_processing_suite.py.

They are not in the wheel. The source distribution of the pinned version holds most of them; what it leaves out is
replaced: `tests/generation`, `tests/exporters`, `tests/utils` by empty stand-ins, so nothing here tests generation, and
what fetches images by one image of ours.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers
from PIL import Image

ROOT = Path(__file__).parents[1]
STAND_INS = {
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": (
        'config_common_kwargs = {"output_hidden_states": True, "dtype": "float16"}\n'
    ),
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return 'image.png'\n",
}


@pytest.fixture(scope="module")
def transformers_tests(request) -> Path:
    """A folder that holds `tests/` of the installed version of transformers; fetched once, then kept."""
    cache = Path(request.config.cache.mkdir("transformers-tests"))
    name = f"transformers-{transformers.__version__}"
    archive = cache / f"{name}.tar.gz"
    if not archive.exists():
        options = ["--no-deps", "--no-binary=:all:", "--no-build-isolation", "--dest", cache]
        command = [sys.executable, "-m", "pip", "download", *options, name.replace("-", "==")]
        fetched = subprocess.run(command, capture_output=True, text=True)
        if fetched.returncode:
            pytest.skip(f"cannot fetch the source distribution of {name}: {fetched.stderr.strip().splitlines()[-1]}")
    folder = cache / name
    if not folder.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(cache, [m for m in tar if m.name.startswith(f"{name}/tests/")], filter="data")
    (folder / "tests" / "__init__.py").touch()
    for file, text in STAND_INS.items():
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    Image.new("RGB", (40, 30), "red").save(folder / "image.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conformance_suite.py", "conformance_processing_suite.py"])
def test_our_classes_pass_the_tests_of_transformers(transformers_tests, name):
    suite = shutil.copy(ROOT / "tests" / name, transformers_tests / f"test_{name}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(transformers_tests), str(ROOT)])}
    settings = transformers_tests / "pytest.ini"  # else pytest would find ours, in a folder above
    settings.write_text("[pytest]\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--disable-warnings",
        "-p",
        "no:cacheprovider",
        "-c",
        settings,
        suite,
    ]
    done = subprocess.run(command, cwd=transformers_tests, env=environment, capture_output=True, text=True)
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
