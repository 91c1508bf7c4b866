"""transformers' own ModelTesterMixin and ConfigTester on our classes (conformance_suite.py).

They are not in the wheel. The source distribution of the pinned version holds most of them; what it leaves out
(`tests/generation`, `tests/exporters`, `tests/utils`) is replaced by empty stand-ins, so nothing here tests generation.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).parents[1]
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": 'config_common_kwargs = {"output_hidden_states": True, "dtype": "float16"}\n',
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
        path = folder / "tests" / file
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return folder


@pytest.mark.slow
def test_our_classes_pass_the_model_tests_of_transformers(transformers_tests):
    suite = shutil.copy(ROOT / "tests" / "conformance_suite.py", transformers_tests / "test_unified.py")
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
