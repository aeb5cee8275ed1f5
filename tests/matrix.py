"""The core tests under several versions of transformers, each in a fresh environment: `make test-matrix`."""

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".venv-matrix"
VERSIONS = "5.17.0 5.18.0 5.19.0 5.20.2 5.21.1 5.22.2 5.23.0"
CORE = [  # what touches transformers and torch; the page has tests of its own
    f"tests/test_{name}.py"
    for name in ("parity", "families", "generate", "turns", "stage2", "clip", "reducers", "leaders", "inside", "tower")
]
ABOUT = (
    "import platform, torch, transformers; print(f'under transformers {transformers.__version__}, torch "
    "{torch.__version__}, Python {platform.python_version()}')"
)


def main() -> int:
    """A line a version: passed of expected. Status 1 where one fails, or ran another number of tests than expected."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--versions", default=VERSIONS, help="of transformers, space between (%(default)s)")
    asked.add_argument("--torch", default="", help="version of torch; else the newest that is allowed")
    asked.add_argument("--python", default=sys.executable, help="interpreter of the environments")
    asked.add_argument("--keep", action="store_true", help="keep the environments; else only those that failed stay")
    asked = asked.parse_args()
    expected = collected()
    results = [run(version, asked, expected) for version in asked.versions.split()]
    print("\n".join(["", *(line for _, line in results)]))
    return 0 if all(fine for fine, _ in results) else 1


def collected() -> int:
    """Tests that this very environment finds in CORE: what every other one has to run."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:warnings", *CORE]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"(\d+) tests? collected", out)[1])


def run(version: str, asked: argparse.Namespace, expected: int) -> tuple[bool, str]:
    """Whether all passed under one version, and the line that says so. The log stays beside the environments."""
    name = f"transformers-{version}" + (f"-torch-{asked.torch}" if asked.torch else "")
    venv, log, start = PLACE / name, PLACE / f"{name}.log", time.monotonic()
    PLACE.mkdir(exist_ok=True)
    print(f"{name}: {log}", flush=True)
    shutil.rmtree(venv, ignore_errors=True)
    python = venv / "bin" / "python"
    pins = [f"transformers=={version}", *([f"torch=={asked.torch}"] if asked.torch else [])]
    steps = (
        [asked.python, "-m", "venv", venv],
        [python, "-m", "pip", "install", "--quiet", "-r", "tests/requirements.txt", *pins],
        [python, "-c", ABOUT],
        [python, "-m", "pytest", "-p", "no:warnings", *CORE],
    )
    with log.open("w", encoding="utf-8") as out:
        codes = (subprocess.run(step, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT).returncode for step in steps)
        fine = not any(codes)  # stops at the first step that fails
    said = log.read_text(encoding="utf-8")
    about, passed = re.search(r"^under (.*)", said, re.M), re.search(r"^(\d+) passed in", said, re.M)
    fine = fine and passed is not None and int(passed[1]) == expected
    if fine and not asked.keep:
        shutil.rmtree(venv)
    counts = f"{passed[1] if passed else 'not all'} passed of {expected}"
    line = f"{about[1] if about else name}: {counts}, {(time.monotonic() - start) / 60:.1f} min"
    return fine, line if fine else f"{line}  FAILED, see {log}"


if __name__ == "__main__":
    sys.exit(main())
