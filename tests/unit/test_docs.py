"""The guides agree with the product."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from pydantic import BaseModel

from tests.support.checks import at_least_one
from tests.support.paths import REPOSITORY
from towline import errors as tree
from towline.cli import EXIT_CODES, main
from towline.config import METRICS, PipelineConfig, build_config
from towline.errors import TowlineError

FOLDERS = (".", "docs", "docs/decisions", "data", "examples", "tests")
PAGES = sorted(page for folder in FOLDERS for page in (REPOSITORY / folder).glob("*.md"))
YAML = [(page, text) for page in PAGES for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)]


def commands_shown(page: Path) -> list[str]:
    """The towline commands on a page, in running text and in blocks, without the program's name."""
    text = page.read_text()
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL))
    shown = re.findall(r"`towline ((?:--profile|[a-z])[^`\n]*)`", text)
    return [*shown, *re.findall(r"^towline ((?:[^#\n]|(?<=\S)#)*)", blocks, re.MULTILINE)]


COMMANDS = [(page, line) for page in PAGES for line in commands_shown(page)]


def keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from keys(part)


def errors(kind: type[TowlineError] = TowlineError) -> Iterator[type[TowlineError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from errors(below)


def test_every_key_and_metric_is_in_the_guide() -> None:
    """docs/config.md has every key of a config."""
    page = (REPOSITORY / "docs" / "config.md").read_text()
    assert [key for key in keys(PipelineConfig) if not re.search(rf"\b{key}\b", page)] == []
    assert [name for names in METRICS.values() for name in names if f"`{name}`" not in page] == []


def test_the_guides_config_is_valid_and_its_defaults_are_true() -> None:
    """The annotated example is a valid config, and each default that it names is the default."""
    page = (REPOSITORY / "docs" / "config.md").read_text()
    example = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    config = build_config(example, "docs/config.md")
    plain = build_config({"name": config.name, "data": {"source": "x", "target": "y"}}, "")
    for part in (
        "seed",
        "task",
        "split",
        "cross_validation",
        "evaluation",
        "gate",
        "privacy",
        "drift",
        "quality",
        "retrain",
        "slo",
        "alerts",
        "schedule",
    ):
        assert getattr(config, part) == getattr(plain, part), part


@pytest.mark.parametrize(("page", "example"), YAML, ids=[page.name for page, _ in YAML])
def test_yaml_on_a_page_is_a_config(page: Path, example: str) -> None:
    """Each YAML block of a page can be copied into a file and run."""
    assert build_config(yaml.safe_load(example), page.name)


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page.name}: {line}" for page, line in COMMANDS])
def test_commands_on_a_page_exist(page: Path, line: str) -> None:
    """Each towline command that a page names exists, with each option it is shown with."""
    name, *words = shlex.split(line)
    if name == "--profile":  # options of the group, before the command
        _, name, *words = words
    assert name in main.commands
    command, options = main.commands[name], {"--help"}
    if isinstance(command, click.Group) and words:
        command = command.commands["start" if name == "rollout" and "@" in words[0] else words[0]]
    for parameter in command.params:
        options |= set(parameter.opts)
    assert {word for word in words if word.startswith("--")} <= options


def test_linked_files_exist() -> None:
    """The file of each relative link and picture exists."""
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())]
    assert links
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


def test_every_error_is_explained() -> None:
    """Each error type has its code and exit code in the guide, in the tree in errors.py and in --help."""
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    for kind in at_least_one(errors()):
        if "code" in vars(kind):
            assert f"| {kind.code} | {kind.exit_code} | {kind.__name__} |" in page
            assert re.search(rf"^  {kind.exit_code}  ", EXIT_CODES, re.MULTILINE)
        if "exit_code" in vars(kind) and kind is not TowlineError:
            assert re.search(rf"{kind.__name__}\s+{kind.code}\s+exit {kind.exit_code}\b", str(tree.__doc__))


def test_every_command_is_in_the_readme_or_the_docs() -> None:
    """Each command is named in the README or on a page of the docs."""
    shown = "\n".join(page.read_text() for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
    assert [name for name in main.commands if f"towline {name}" not in shown] == []


def glossary() -> list[str]:
    page = (REPOSITORY / "docs" / "glossary.md").read_text()
    return re.findall(r"^\| \*\*(.+?)\*\* \|", page, re.MULTILINE)


def test_glossary_defines_each_term_once() -> None:
    """One definition for each term; terms that pages use are defined."""
    terms = glossary()
    assert len(terms) == len(set(terms))
    needed = (
        "dataset contract expectation holdout fold candidate estimator run version champion challenger release "
        "gate verdict promotion rollback ledger slice profile window policy decision SLO rollout backtest"
    )
    assert {*needed.split(), "run key", "drift check", "performance estimate", "error budget"} <= set(terms)


def test_every_extra_is_explained() -> None:
    """Each extra of pyproject.toml has a row."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (REPOSITORY / "docs" / "extras.md").read_text()
    assert [extra for extra in extras if f"| `{extra}` |" not in page] == []


def test_every_page_is_in_the_navigation() -> None:
    """The menu has each page of docs/; docs/hooks.py adds the decisions."""
    navigation = (REPOSITORY / "mkdocs.yml").read_text()
    assert [page.name for page in (REPOSITORY / "docs").glob("*.md") if f": {page.name}" not in navigation] == []


def test_decisions_are_listed_and_complete() -> None:
    """Each decision has its four sections, and a row in the index."""
    folder = REPOSITORY / "docs" / "decisions"
    pages, index = sorted(folder.glob("[0-9]*.md")), (folder / "index.md").read_text()
    assert len(pages) > 10
    for number, page in enumerate(pages, 1):
        assert page.name.startswith(f"{number:04d}-")
        assert page.name in index
        headings = re.findall(r"^(?:Status:|## (?:Context|Decision|Consequences))", page.read_text(), re.MULTILINE)
        assert headings == ["Status:", "## Context", "## Decision", "## Consequences"], page.name
