"""Errors of commands before they start: a missing package, a missing file, a date, a folder without a project."""

import importlib.util
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import yaml

from tests.support.commands import CommandResult
from tests.support.paths import REPOSITORY
from towline.cli import extras, main
from towline.cli.arguments import TimeType
from towline.config import Settings
from towline.operations import services

Command = Callable[..., CommandResult]
CONFIG = {"name": "taxis", "data": {"source": "taxis.csv", "target": "fare"}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is no project, with a table and a config; commands run in it."""
    (tmp_path / "strange").mkdir()
    monkeypatch.chdir(tmp_path / "strange")
    Path("taxis.csv").write_text("miles,fare\n1,2\n")
    Path("taxis.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path / "strange"


def list_commands(group: click.Group = main, path: str = "towline") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from list_commands(command, f"{path} {name}")


@pytest.mark.parametrize(("name", "command"), [pytest.param(*each, id=each[0]) for each in list_commands()])
def test_each_command_has_an_example_and_json(name: str, command: click.Command) -> None:
    """Help has examples that can be copied; a command that prints a result has --json."""
    text = command.get_help(click.Context(command, info_name=name))
    assert re.search(rf"Examples?:\n +{name}", text)
    assert len(command.get_short_help_str(1000)) <= 62, "a list of commands with 80 columns cuts it"
    assert isinstance(command, click.Group) or "--json" in text


def test_each_extra_lists_its_packages() -> None:
    """The packages named in an error are those of the extra that its remedy installs."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, modules in extras.EXTRAS.items():
        names = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in declared[extra]} - {"pip"}
        assert names == {module.replace(".", "_") for module in modules}, extra


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["validate", "taxis.yaml"], "pipeline"),
        (["run", "taxis.yaml"], "pipeline"),
        (["drift", "taxis.yaml"], "pipeline"),
        (["quality", "taxis.yaml"], "pipeline"),
        (["ui"], "pipeline"),
        (["up", "taxis.yaml"], "pipeline,serve"),
        (["serve", "taxis"], "serve"),
        (["slo", "taxis.yaml"], "serve"),
        (["loadtest", "http://127.0.0.1:9"], "loadtest"),
    ],
)
def test_the_error_for_a_missing_package_has_the_install_command(
    words: list[str], extra: str, command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the base installation only, a command that needs more prints the install command and does nothing else."""
    monkeypatch.setattr(extras, "find_spec", lambda name: None if hidden(name) else importlib.util.find_spec(name))
    result = command(*words, "--json")
    assert (result.code, result.json["code"]) == (2, "T100"), result.err
    assert result.json["remedy"] == f"pip install 'towline[{extra}]'"
    assert result.json["where"] == f"towline {words[0]}"


def hidden(name: str) -> bool:
    return any(name in modules for modules in extras.EXTRAS.values())


def test_a_package_that_is_missing_during_a_command_is_named(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever module imports it: an incomplete installation is not a bug of towline."""

    def imports(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib.pyplot'", name="matplotlib.pyplot")

    monkeypatch.setattr(Settings, "from_environment", imports)
    result = command("models", "--json")
    assert (result.code, result.json["remedy"]) == (2, "pip install 'towline[pipeline]'")


@pytest.mark.parametrize("words", [["labels", "add", "taxis"], ["drift", "taxis.yaml", "--current"]])
def test_the_error_for_a_missing_table_names_the_given_path(words: list[str], command: Command, folder: Path) -> None:
    """The error names the given file and the most similar name, not data.source."""
    result = command(*words, "taxi.csv", "--json")
    assert (result.code, result.json["what"]) == (2, "no such file")
    assert result.json["remedy"] == "did you mean taxis.csv?"
    assert result.json["where"] == str(folder / "taxi.csv")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-06-30", "2026-06-30T00:00:00"),
        ("2026-06-30T13:00", "2026-06-30T13:00:00"),
        ("2026-06-30 13:00:05", "2026-06-30T13:00:05"),
        ("30.06.2026", "2026-06-30T00:00:00"),
        ("30.6.2026 13:00", "2026-06-30T13:00:00"),
    ],
)
def test_dates_as_people_write_them(text: str, moment: str) -> None:
    """The year first, or the day first with dots."""
    assert TimeType().convert(text, None, None).isoformat() == moment


@pytest.mark.parametrize("text", ["06/30/2026", "30.13.2026", "June 2026", "", "0001-01-01T00:00+14:00", "9999-12-31"])
def test_an_ambiguous_date_has_a_remedy(text: str) -> None:
    """The error shows the format; a date that may not exist in UTC is refused, too."""
    with pytest.raises(click.BadParameter, match="2026-06-30"):
        TimeType().convert(text, None, None)


@pytest.mark.parametrize("text", ["nan", "inf"])
def test_options_are_finite_numbers(text: str) -> None:
    """A limit of nan requests per second would limit nothing."""
    options = [each for _, command in list_commands() for each in command.params if isinstance(each, click.Option)]
    numbers = [each for each in options if isinstance(each.type, (click.FloatRange, click.types.FloatParamType))]
    assert numbers
    for option in numbers:
        with pytest.raises(click.BadParameter, match=r"finite number|not in the range"):
            option.type.convert(text, option, None)


def test_a_reason_is_not_blank() -> None:
    """The ledger records it for audits."""
    options = [each for _, command in list_commands() for each in command.params if each.name == "reason"]
    assert len(options) > 4
    for option in options:
        with pytest.raises(click.BadParameter, match="the text is empty"):
            option.type.convert(" ", option, None)


def test_the_only_config_of_a_project_need_not_be_named(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a config, or with several, the error has a remedy."""
    monkeypatch.setenv("TOWLINE_PROJECT", str(folder))
    none = command("validate")
    assert (none.code, "make one: towline init" in none.err) == (2, True)
    (folder / "configs").mkdir()
    (folder / "configs/shop.yaml").write_text("name: shop\ndata: {source: shop.csv, target: sales}\n")
    (folder / "shop.csv").write_text("visits,sales\n" + "".join(f"{n % 7},{n}\n" for n in range(60)))
    validated = command("validate")
    assert validated.code == 0, validated.err
    assert "visits" in validated.out
    (folder / "configs/other.yml").write_text("name: other\n")
    several = command("validate")
    assert "name one of: configs/other.yml, configs/shop.yaml" in several.err


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_a_history_has_at_least_one_row(limit: str, command: Command, folder: Path) -> None:
    """Another limit is an error, so that an empty list always means an empty ledger."""
    result = command("history", "--limit", limit)
    assert (result.code, "--limit" in result.err) == (2, True)


def test_the_help_lists_each_command_under_its_purpose(command: Command) -> None:
    """Each command once, in the order of a model's life cycle."""
    text = command("--help").out
    heads = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert heads == ["Options", "Train", "Decide", "Audit", "Serve", "Monitor", "Operate"]
    assert sorted(name for names in main.purposes.values() for name in names) == sorted(main.commands)
    listed = re.findall(r"^  ([a-z-]+)  +[A-Z]", text[text.index("Train:") :], re.MULTILINE)
    assert listed == [name for names in main.purposes.values() for name in names]


def test_slo_queries_the_service_that_towline_started(
    command: Command, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its port; a killed service counts as unreachable, a service that ended in order is no longer queried."""
    from towline.serving.process.worker import ServiceInfo

    settings = Settings.from_environment()
    store.mkdir()
    none = command("slo", "taxis.yaml", "--json")
    assert (none.code, "towline serve taxis" in none.json["remedy"]) == (2, True)
    started = ServiceInfo(
        address="http://0.0.0.0:9", docs="", model="taxis", version=1, compiled=True, workers=1, pid=1
    )
    with services.record_service(settings) as record:
        record(started)
        assert services.find_service_addresses(settings, "taxis") == ["http://127.0.0.1:9"]
        assert services.find_service_addresses(settings, "other") == []
        result = command("slo", "taxis.yaml", "--quiet", "--json")
        assert [service["service"] for service in result.json["services"]] == ["http://127.0.0.1:9"]
        [path] = (store / "servers").glob("service-*.json")
        path.write_text(path.read_text().replace(f'"pid":{os.getpid()}', '"pid":4194304'))
        assert services.find_service_addresses(settings, "taxis") == ["http://127.0.0.1:9"], "it is missed"
    assert services.find_service_addresses(settings, "taxis") == []
