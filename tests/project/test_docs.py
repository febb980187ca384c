"""The documentation: its examples run, its names exist, its links lead somewhere.

A page's Python blocks run in order and share their names. A page with `<!-- continues: other.md -->` can import the
modules of that page. A block is one of these:

* `python` after `<!-- file: mysite/module.py -->`: that module, whose names the later blocks share;
* `python`, indented: more of the class in the block before it;
* `python` that only sets upper-case names: settings, which hold to the end of the page;
* any other `python`: code, whose test cases run too;
* `pycon`: a doctest.
"""

import argparse
import ast
import doctest
import importlib
import inspect
import re
import sys
import time
import unittest
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.core.management import load_command_class
from django.test import override_settings
from markdown_it.token import Token

import gsession_django
from gsession_django import checks
from gsession_django.backends.database import DatabaseStorage
from gsession_django.backends.file import FileStorage
from gsession_django.backends.memory import MemoryStorage
from gsession_django.backends.redis import RedisStorage
from gsession_django.backends.redis_hash import RedisHashStorage
from gsession_django.core import conf
from gsession_django.core.storage import Storage
from tests.support.databases import connected
from tests.support.pages import DOCS, ROOT, STORAGE_PAGE, Block, blocks_of, page_before, tokens_of

pytestmark = pytest.mark.once

README = ROOT / "README.md"
CHECKS_PAGE = DOCS / "checks.md"
ENGINES_PAGE = DOCS / "engines.md"
METHODS_PAGE = DOCS / "storage-methods.md"
SETTINGS_PAGE = DOCS / "settings.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
TESTED = {
    "writing-a-storage.md": ["SQLiteStorageTests"],
    "extending-a-storage.md": ["CompleteStorageTests", "ListingStorageTests"],
    "per-key-storages.md": ["PairStorageTests"],
    "async-storages.md": ["HTTPStorageTests"],
}
LINKING = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
APPS_WITH_COMMANDS = ("gsession_django", "django.contrib.sessions", "testproject.demo", "django.core")
LANGUAGES = {"python", "pycon", "sh", "text"}
DIRECTIVES = {"{eval-rst}", "{include}", "{svgbob}", "{toctree}"}  # of Sphinx
CHECK_ID = re.compile(r"gsession_django\.[EW]\d{3}")
MANAGE = re.compile(r"manage\.py ([a-z_]+)((?: +(?!\d?>|&&|\|)\S+)*)")
MAKE = re.compile(r"(?:^|\s)make ([a-z-]+)")


def by_name(page: Path) -> str:
    return page.name


each_page = pytest.mark.parametrize("page", PAGES, ids=by_name)
each_linking_page = pytest.mark.parametrize("page", LINKING, ids=by_name)


# Reading a page.


def inline_of(page: Path) -> Iterator[Token]:
    for token in tokens_of(page):
        yield from token.children or ()


def commands_in(page: Path) -> Iterator[str]:
    """Yield inline code, and the lines of blocks that are not Python: each may be a command."""
    yield from (token.content for token in inline_of(page) if token.type == "code_inline")
    yield from (line for block in blocks_of(page) if not block.language.startswith("py") for line in lines_of(block))


def lines_of(block: Block) -> list[str]:
    return block.text.splitlines()


def anchors_of(page: Path) -> set[str]:
    headings = [after.content for token, after in pairwise(tokens_of(page)) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows_under(page: Path, heading: str) -> list[list[str]]:
    """Return the rows of the tables under a heading, without the head and without code marks."""
    rows: list[list[str]] = []
    section, here = "", False
    for token, after in pairwise(tokens_of(page)):
        if token.type == "heading_open":
            section = after.content
        elif token.type in ("tbody_open", "tbody_close"):
            here = token.type == "tbody_open" and section == heading
        elif here and token.type == "tr_open":
            rows.append([])
        elif here and token.type == "td_open":
            rows[-1].append(after.content.replace("`", ""))
    assert rows, f"{page.name} has no table under {heading!r}"
    return rows


# Running a page.


class Page:
    """Runs the blocks of a page in an empty folder."""

    def __init__(self, path: Path, folder: Path, stack: ExitStack) -> None:
        self.path = path
        self.folder = folder
        self.stack = stack
        self.names: dict[str, Any] = {"__name__": "page"}
        self.before = ""
        self.tested: list[str] = []

    def run(self, block: Block) -> None:
        if block.language == "pycon":
            self.run_doctest(block)
        elif block.file is not None:
            self.run_file(block, block.file)
        elif block.text.startswith("    "):
            missing = block.line - self.before.count("\n")
            self.run_code(self.before + "\n" * missing + block.text)
        else:
            self.run_code(block.padded)

    def run_doctest(self, block: Block) -> None:
        test = doctest.DocTestParser().get_doctest(block.text, self.names, "", str(self.path), block.line)
        report: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append, clear_globs=False)
        assert not report, "".join(report)
        self.names.update(test.globs)

    def run_file(self, block: Block, name: str) -> None:
        self.write(block, name)
        module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
        self.take(vars(module))

    def write(self, block: Block, name: str) -> None:
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(block.text, "utf-8")
        importlib.invalidate_caches()

    def run_code(self, source: str) -> None:
        self.before = source
        code = compile(source, str(self.path), "exec")
        names = dict(self.names)
        exec(code, names)
        self.apply({name: names[name] for name in settings_in(source)})
        self.take(names)

    def take(self, names: dict[str, Any]) -> None:
        new = {name: value for name, value in names.items() if self.names.get(name) is not value}
        self.names.update({name: value for name, value in new.items() if not name.startswith("__")})
        for value in new.values():
            is_test_case = isinstance(value, type) and issubclass(value, unittest.TestCase)
            if is_test_case and value.__module__ == names["__name__"]:  # not one that is imported
                run_test_case(value)
                self.tested.append(value.__name__)

    def apply(self, settings: dict[str, Any]) -> None:
        if not settings:
            return
        for alias, entry in settings.pop("DATABASES", {}).items():  # which cannot be overridden
            if alias != "default":
                self.stack.enter_context(connected(entry, alias))
        if "SESSION_FILE_PATH" in settings:  # a folder of a server
            settings["SESSION_FILE_PATH"] = str(self.folder)
        self.stack.enter_context(override_settings(**settings))
        assert [message for message in checks.check_settings() if message.is_serious()] == []


def settings_in(source: str) -> list[str]:
    """Return the names that `source` sets, if it only sets upper-case names."""
    names: list[str] = []
    for statement in ast.parse(source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) if name.isupper():
                names.append(name)
            case _:
                return []
    return names


def run_test_case(case: type[unittest.TestCase]) -> None:
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    result = unittest.TestResult()
    with sleep_that_takes_no_time():
        suite.run(result)
    assert result.testsRun > 20
    assert not result.skipped
    for _, problem in [*result.errors, *result.failures]:
        pytest.fail(problem)


@contextmanager
def sleep_that_takes_no_time() -> Iterator[None]:
    offset, real = 0.0, time.time

    def sleep(seconds: float) -> None:
        nonlocal offset
        offset += seconds

    def now() -> float:
        return real() + offset

    with mock.patch("time.sleep", sleep), mock.patch("time.time", now):
        yield


@pytest.fixture
def runner(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    modules = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with ExitStack() as stack:
        stack.enter_context(override_settings(SESSION_FILE_PATH=str(tmp_path)))
        yield Page(page, tmp_path, stack)
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] == "mysite":
            del sys.modules[name]


@each_page
def test_examples_run(page: Path, runner: Page) -> None:
    before = page_before(page)
    for block in blocks_of(before) if before is not None else ():
        if block.file is not None:
            runner.write(block, block.file)
    for block in blocks_of(page):
        if block.language in ("python", "pycon"):
            runner.run(block)
    assert runner.tested == TESTED.get(page.name, [])


@each_page
def test_blocks_are_in_languages_that_are_known(page: Path) -> None:
    assert {block.language.partition(" ")[0] for block in blocks_of(page)} <= LANGUAGES | DIRECTIVES


# The storage that a page builds step by step.


def test_final_listing_is_the_demo_storage() -> None:
    listing = next(block.text for block in blocks_of(STORAGE_PAGE) if block.file == "mysite/sessions.py")
    assert listing == (ROOT / "testproject" / "sessions.py").read_text("utf-8")
    assert listing.count("\n") < 50


def test_steps_add_up_to_the_final_listing() -> None:
    steps: list[str] = []
    for block in blocks_of(STORAGE_PAGE):
        if block.file == "mysite/sessions.py":
            break
        if block.language == "python":
            steps += lines_of(block)
    assert [line for line in steps if line] == [line for line in lines_of(block) if line]


def test_every_method_of_the_interface_is_in_the_tables() -> None:
    methods = {name for name, _ in inspect.getmembers(Storage, inspect.isfunction) if not name.startswith("_")}
    rows = rows_under(METHODS_PAGE, "The eleven methods") + rows_under(METHODS_PAGE, "The extensions")
    rows += rows_under(METHODS_PAGE, "Whose sessions, and one at a time")
    signatures = [row[0] for row in rows]
    for signature in signatures:
        name, _, parameters = signature.rstrip(")").partition("(")
        expected = list(inspect.signature(getattr(Storage, name)).parameters.values())[1:]
        assert parameters == ", ".join(shown(parameter) for parameter in expected), signature
    assert {signature.partition("(")[0] for signature in signatures} == methods - {"encode", "decode"}


def shown(parameter: inspect.Parameter) -> str:
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"


# Names.


def test_settings_are_those_of_the_code() -> None:
    rows = rows_under(SETTINGS_PAGE, "The `GSESSION` setting")
    assert [row[0] for row in rows] == list(conf.KEYS)
    defaults = {row[0]: ast.literal_eval(row[1]) for row in rows}
    assert defaults == {key: getattr(conf.Conf(), name) for key, name in conf.KEYS.items()}


def test_engine_options_are_those_of_the_code() -> None:
    options = {
        (engine, name): parameter.default
        for engine, storage in (("memory", MemoryStorage), ("file", FileStorage), ("database", DatabaseStorage))
        for name, parameter in inspect.signature(storage).parameters.items()
    }
    options |= {("every engine", name): getattr(Storage, name) for name in checks.OPTIONS_OF_EVERY_ENGINE}
    rows = rows_under(SETTINGS_PAGE, "Options of the engines")
    assert {(row[1], row[0]): ast.literal_eval(row[2]) for row in rows} == options


def test_check_ids_are_those_of_the_code() -> None:
    sources = "".join(file.read_text("utf-8") for file in ROOT.glob("gsession_django/**/*.py"))
    in_code = set(CHECK_ID.findall(sources))
    assert {f"gsession_django.{row[0]}" for row in rows_under(CHECKS_PAGE, "The checks")} == in_code
    for page in PAGES:
        assert set(CHECK_ID.findall(page.read_text("utf-8"))) <= in_code


def test_public_names_are_in_the_api_reference() -> None:
    documented = re.findall(r"^\.\. auto\w+:: (\S+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE)
    public = {f"gsession_django.{name}" for name in gsession_django.__all__}
    storages = (MemoryStorage, FileStorage, DatabaseStorage, RedisStorage, RedisHashStorage)
    assert public | {f"{storage.__module__}.{storage.__name__}" for storage in storages} <= set(documented)


@each_linking_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {name for text in commands_in(page) for name in MAKE.findall(text)} <= targets


@each_page
def test_management_commands_and_their_options_exist(page: Path) -> None:
    for text in commands_in(page):
        for name, arguments in MANAGE.findall(text):
            command = load_command_class(app_with_command(name), name)
            usage = usage_of(command.create_parser("manage.py", name))
            for option in re.findall(r"--[a-z-]+", arguments):
                assert re.search(rf"{option}\b", usage), f"{text}: {name} has no {option}"


def usage_of(parser: argparse.ArgumentParser) -> str:
    """Return the help of a command, and of the commands below it."""
    below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return parser.format_help() + "".join(usage_of(each) for choices in below for each in choices.values())


def app_with_command(name: str) -> str:
    for app in APPS_WITH_COMMANDS:
        try:
            importlib.import_module(f"{app}.management.commands.{name}")
        except ModuleNotFoundError:
            continue
        return app
    pytest.fail(f"there is no command {name!r}")


# Links.


@each_linking_page
def test_relative_links_resolve(page: Path) -> None:
    for token in inline_of(page):
        target = token.attrGet("href") if token.type == "link_open" else None
        if target is None or "://" in str(target):
            continue
        path, _, anchor = str(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors_of(file), f"{page.name} links to {target}"


def test_pages_that_messages_name_exist() -> None:
    sources = "".join(file.read_text("utf-8") for file in ROOT.glob("gsession_django/**/*.py"))
    for page in set(re.findall(r"\bdocs/[\w-]+\.md\b", sources)):
        assert (ROOT / page).exists(), f"a message of the package names {page}"


def test_the_page_of_engines_has_a_place_for_the_figures() -> None:
    assert "figures" in anchors_of(ENGINES_PAGE)
    assert re.search(r"^<!-- figures -->$", ENGINES_PAGE.read_text("utf-8"), re.MULTILINE)


@each_linking_page
def test_lines_are_short_enough_to_read(page: Path) -> None:
    tables = ("|", "[")
    long = [line for line in page.read_text("utf-8").splitlines() if len(line) > 120 and not line.startswith(tables)]
    assert long == []
