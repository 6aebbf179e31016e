"""An environment a tool, made on demand from `requirements/`; one that cannot be made is left out and said so."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
REQUIREMENTS = HERE / "requirements"
COMMON = ("torch", "numpy", "scipy")  # as pinned in constraints.txt; the peers themselves may pull nothing


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)


def _made(name: str, requirements: Path) -> Path:
    """The Python of a peer's environment, which is made or made anew where the requirements have changed."""
    folder = ROOT / f".venv-peers-{name}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not (ready.exists() and ready.read_text() == requirements.read_text()):
        print(f"{name}: making its environment", flush=True)
        venv.create(folder, with_pip=True)
        _pip(python, *COMMON, "--constraint", "constraints.txt")
        _pip(python, "--no-deps", "--requirement", str(requirements))
        ready.write_text(requirements.read_text())
    return python


def interpreters() -> dict[str, Path]:
    """Make the environments.

    Returns:
        Tool -> its Python; ``ours`` is the one that runs this.
    """
    found = {"ours": Path(sys.executable)}
    for requirements in sorted(REQUIREMENTS.glob("*.txt")):
        try:
            found[requirements.stem] = _made(requirements.stem, requirements)
        except subprocess.CalledProcessError as error:
            reason = (error.stderr or "").strip().splitlines()[-1:] or ["pip failed"]
            print(f"{requirements.stem}: left out, cannot be installed here: {reason[0]}", flush=True)
    return found
