"""Runs mypy on the code of the pages about storages as somebody who copied it would: strict, without a plugin.

Each module gets the name that its page gives. The blocks before the first module are its parts. All other blocks make
up one more module, ``mysite/variants.py``.
"""

import os
import subprocess
import sys
import tempfile
from itertools import chain, dropwhile
from pathlib import Path

from tests.support.pages import ROOT, STORAGE_PAGES, blocks_of


def write_modules(folder: Path) -> list[str]:
    """Write the code of the pages to files, and return their names."""
    modules = {"mysite/__init__.py": ""}
    blocks = chain.from_iterable(map(blocks_of, STORAGE_PAGES))
    code = [block for block in blocks if block.language == "python"]
    for block in dropwhile(lambda block: block.file is None, code):
        name = block.file or "mysite/variants.py"
        modules[name] = f"{modules.get(name, '')}\n{block.text}"
    for name, text in modules.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, "utf-8")
    return list(modules)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        modules = write_modules(Path(folder))
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", *modules]
        environment = {**os.environ, "MYPYPATH": os.fspath(ROOT)}
        return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
