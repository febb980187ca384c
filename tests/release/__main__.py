"""Builds the release in dist/, checks it, and tries the wheel in clean environments.

``make release-check`` runs ``python -m tests.release`` in the checkout. It tries the wheel with the lowest version that
its metadata allows of each dependency, and with the newest; without its extras, and with them.
"""

import shutil
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.redis_servers import RedisServer

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
SMOKE = Path(__file__).with_name("smoke.py")
# Some of these change meanwhile, when tests run.
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".hypothesis", ".tox", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist"
)


def run(*command: object) -> None:
    """Run a program. If it fails, exit with its status."""
    print("$", *command, flush=True)
    status = subprocess.run(list(map(str, command)), check=False).returncode
    if status:
        sys.exit(status)


def build(folder: Path) -> Path:
    """Build the release from a copy without ignored files, and return the path of the wheel."""
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=NOT_COPIED)
    git = ("git", "-C", source)
    run(*git, "init", "--quiet", "--initial-branch=main")
    run(*git, "add", ".")
    run(*git, "clean", "--quiet", "-dffX")
    run("check-manifest", "--quiet", source)
    shutil.rmtree(DIST, ignore_errors=True)
    run("pyproject-build", "--outdir", DIST, source)
    (wheel,) = DIST.glob("*.whl")
    return wheel


def lowest(requirement: str) -> str:
    """Return the pin of the lowest version that a requirement allows.

    Raises:
        ValueError: the requirement has no ``>=``.
    """
    parsed = Requirement(requirement)
    for each in parsed.specifier:
        if each.operator == ">=":
            return f"{parsed.name}=={each.version}"
    raise ValueError(f"setup.cfg requires {requirement!r} without a lowest version. Add one that passed, with >=.")


def attempt(python: Path, wheel: Path, extras: list[str], constraints: Path, url: str) -> None:
    """Install the wheel in a new environment, and run ``smoke.py`` there."""
    venv.create(python.parents[1], clear=True, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    package = f"{wheel}[{','.join(extras)}]" if extras else wheel
    run(*pip, "install", "--quiet", "--no-compile", "--constraint", constraints, package)
    run(python, "-I", "-X", "dev", "-W", "error", SMOKE, url, *extras)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="gsession-release-") as name, RedisServer() as redis:
        folder = Path(name)
        wheel = build(folder)
        run("twine", "check", "--strict", *DIST.iterdir())
        run("check-wheel-contents", wheel)
        (package,) = distributions(path=[str(wheel)])
        pins = {"lowest": map(lowest, package.requires or []), "newest": []}
        for version in pins:
            constraints = folder / f"{version}.txt"
            constraints.write_text("\n".join(pins[version]))
            for extras in ([], package.metadata.get_all("Provides-Extra", [])):
                attempt(folder / version / "bin/python", wheel, extras, constraints, redis.url())
    print("The release is in dist/:", *sorted(path.name for path in DIST.iterdir()))


if __name__ == "__main__":
    main()
