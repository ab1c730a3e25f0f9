"""The profiles of places where runs execute, and errors of unknown or invalid profiles."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.commands import CommandResult
from towline.config import Settings
from towline.errors import ConfigError
from towline.orchestration import profiles


@pytest.fixture
def project(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "training.py").touch()
    (tmp_path / "profiles").mkdir()
    raw = {"name": "bikes", "data": {"source": "bikes.csv", "target": "rentals"}}
    (tmp_path / "bikes.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.setenv("TOWLINE_PROJECT", str(tmp_path))
    return tmp_path


def read(name: str) -> profiles.Profile:
    return profiles.read(name, Settings.from_environment())


def test_compose_reads_the_env_file_of_the_stack(project: Path) -> None:
    """Port and password come from the .env file of docker-compose.yml; its other variables are ignored."""
    (project / ".env").write_text(
        "# the stack\nPOSTGRES_PASSWORD='a b#c'\nPREFECT_AUTH_STRING=\"me:s=c#t\"\n"
        "PREFECT_PORT=4300 # ours\nTOWLINE_MODEL=\n"
    )
    assert read("compose") == profiles.Profile(name="compose", url="http://127.0.0.1:4300/api", auth="me:s=c#t")


def test_another_place_has_its_own_file(project: Path) -> None:
    """The file has its address, its password and its pool."""
    (project / "profiles" / "team.env").write_text(
        "PREFECT_API_URL=https://prefect.example/api\nPREFECT_API_AUTH_STRING=me:secret\nTOWLINE_POOL=big\n"
    )
    profile = read("team")
    assert (profile.url, profile.auth, profile.pool) == ("https://prefect.example/api", "me:secret", "big")


@pytest.mark.parametrize(
    ("file", "text", "what", "remedy"),
    [
        (".env", "PREFECT_PORT=4200\n", "PREFECT_AUTH_STRING is not set", "PREFECT_AUTH_STRING=user:password"),
        (".env", "PREFECT_AUTH_STRING=\n", "PREFECT_AUTH_STRING is not set", "PREFECT_AUTH_STRING=user:password"),
        (".env", "PREFECT_AUTH_STRING=a:b\nPREFECT_PORT=http\n", "PREFECT_PORT is not a port: 'http'", "a number"),
        (".env", "PREFECT_AUTH_STRING=a:b\nPREFECT_AUTH_STRING=a:c\n", "PREFECT_AUTH_STRING is repeated", "remove"),
        (".env", 'PREFECT_AUTH_STRING="a:b\n', "not a line of a dotenv file", "NAME=value"),
        ("profiles/compose.env", "PREFECT_API_AUTH_STRING=a:b\n", "PREFECT_API_URL is not set", "PREFECT_API_URL="),
        ("profiles/compose.env", "PREFECT_API_ULR=x\n", "unknown variable PREFECT_API_ULR", "PREFECT_API_URL"),
        ("profiles/compose.env", "PREFECT_API_URL=host:4200\n", "not an address of Prefect's API", "http://HOST"),
    ],
)
def test_an_invalid_file_is_named_with_its_remedy(project: Path, file: str, text: str, what: str, remedy: str) -> None:
    """The error has the problem, the file and the corrected line."""
    (project / file).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read("compose")
    assert what in caught.value.what
    assert file in caught.value.where
    assert remedy in caught.value.remedy


def test_a_secret_is_not_repeated_in_an_error(project: Path) -> None:
    """A line that cannot be read may be a password."""
    (project / ".env").write_text("PREFECT_AUTH_STRING me:hidden-word\n")
    with pytest.raises(ConfigError) as caught:
        read("compose")
    assert "hidden-word" not in str(caught.value)
    assert caught.value.where.endswith(".env:1")


def test_a_misspelt_profile_gets_a_suggestion(command: Callable[..., CommandResult], project: Path) -> None:
    """A misspelt name gets a suggestion; without the stack's .env the error says how to create it."""
    (project / "profiles" / "team.env").touch()
    result = command("--profile", "taem", "run", project / "bikes.yaml")
    assert (result.code, "did you mean team?" in result.err) == (2, True)
    result = command("--profile", "compose", "run", project / "bikes.yaml")
    assert (result.code, "cp .env.example .env" in result.err) == (2, True)


def test_commands_that_need_the_store_are_refused_with_a_profile(
    command: Callable[..., CommandResult], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would show this machine's store instead of the workers'; commands without a store run."""
    result = command("--profile", "compose", "models")
    assert (result.code, "docker compose exec worker towline models" in result.err) == (2, True)
    monkeypatch.setenv("TOWLINE_PROFILE", "compose")
    assert command("rollback", "bikes").code == 2
    assert command("config", "schema").code == 0
