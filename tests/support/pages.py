"""Reads the blocks on the pages of the documentation."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
STORAGE_PAGE = DOCS / "writing-a-storage.md"
STORAGE_PAGES = [
    STORAGE_PAGE,
    DOCS / "extending-a-storage.md",
    DOCS / "per-key-storages.md",
    DOCS / "async-storages.md",
]
_CONTINUES = re.compile(r"^<!-- continues: (\S+) -->$", re.MULTILINE)
_MODULE = re.compile(r"<!-- file: (\S+) -->")


@dataclass
class Block:
    """A fenced block, and the line on which its text begins, counted from 0.

    Attributes:
        file: the module whose whole text it is, if any.
    """

    language: str
    text: str
    line: int
    file: str | None = None

    @property
    def padded(self) -> str:
        """The text with as many lines before it as on the page: tracebacks then name the page's lines."""
        return "\n" * self.line + self.text


@cache
def tokens_of(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8"))


def page_before(page: Path) -> Path | None:
    """Return the page whose modules this one imports, if any."""
    found = _CONTINUES.search(page.read_text("utf-8"))
    return DOCS / found[1] if found else None


def blocks_of(page: Path) -> Iterator[Block]:
    file = None
    for token in tokens_of(page):
        if token.type == "fence" and token.map:
            yield Block(token.info, token.content, token.map[0] + 1, file)
        comment = _MODULE.search(token.content) if token.type == "html_block" else None
        file = comment and comment[1]
