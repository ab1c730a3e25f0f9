"""The table of features in tests/README.md is complete and names existing tests."""

import ast
import re
from collections.abc import Iterator

import click

from tests.support.paths import REPOSITORY
from towline.cli import main

TABLE = (REPOSITORY / "tests" / "README.md").read_text()
ROWS = re.findall(r"^\| (?!feature \|)([^|]+) \| `([^`|]+)` \|$", TABLE, re.MULTILINE)
PAGES_WITHOUT_FEATURES = {"index.md", "glossary.md", "performance.md"}


def test_every_named_test_exists() -> None:
    """A renamed or deleted test must be changed in the table."""
    assert len(ROWS) == TABLE.count("::") > 100
    defined = {
        f"{path.relative_to(REPOSITORY / 'tests').as_posix()}::{node.name}"
        for path in {REPOSITORY / "tests" / test.partition("::")[0] for _, test in ROWS}
        if path.is_file()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert [test for _, test in ROWS if test not in defined] == []


def test_every_page_has_a_feature() -> None:
    """Each page of the docs has a section with features."""
    sections = re.split(r"^## ", TABLE, flags=re.MULTILINE)[1:]
    listed = {re.findall(r"\]\(\.\./docs/([^)]+)\)", section.splitlines()[0])[0] for section in sections[1:]}
    assert listed == {path.name for path in (REPOSITORY / "docs").glob("*.md")} - PAGES_WITHOUT_FEATURES
    assert [section.splitlines()[0] for section in sections if "::" not in section] == []


def test_every_command_has_a_feature() -> None:
    """Each command is named in the table."""
    commands = list(list_commands(main, "towline"))
    assert len(commands) > 25
    features = "\n".join(feature for feature, _ in ROWS)
    assert [command for command in commands if not re.search(rf"`{command}\b", features)] == []


def list_commands(group: click.Group, name: str) -> Iterator[str]:
    for command in group.list_commands(click.Context(group)):
        entry = group.get_command(click.Context(group), command)
        if isinstance(entry, click.Group):
            yield from list_commands(entry, f"{name} {command}")
        else:
            yield f"{name} {command}"
