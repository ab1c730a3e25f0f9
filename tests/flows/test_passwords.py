"""A literal password in the URL of a source is not stored anywhere."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pytest
import yaml
from sqlalchemy import create_engine, make_url

from tests.support.commands import CommandResult
from tests.support.store_commands import write_bike_config
from tests.support.traces import find_traces


@pytest.fixture
def database_config(tmp_path: Path, postgres: str) -> Path:
    """A config whose source is a database, with a literal password in its URL."""
    path = write_bike_config(tmp_path)
    table = pd.read_csv(tmp_path / "bikes.csv", parse_dates=["datetime"])
    engine = create_engine(postgres)
    table.to_sql("bikes", engine, index=False)
    engine.dispose()
    raw = yaml.safe_load(path.read_text())
    raw["data"]["source"] = {"url": postgres, "query": "SELECT * FROM bikes ORDER BY datetime"}
    path.write_text(yaml.safe_dump(raw))
    return path


def with_password_as_parameter(url: str) -> str:
    """The same URL with user and password as parameters of the query string."""
    parts = make_url(url)
    bare = parts.set(username=None, password=None).render_as_string()
    return f"{bare}?user={parts.username}&password={quote(parts.password or '', safe='')}"


def with_closed_port(url: str) -> str:
    return make_url(url).set(port=1).render_as_string(hide_password=False)


def test_literal_password_is_not_in_the_store(
    towline: Callable[..., CommandResult],
    database_config: Path,
    store: Path,
    postgres: str,
    prefect_store: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The password is in no file of releases, MLflow, Prefect, logs or workspaces, and in no output.

    Runs with both forms of the URL, a rejected query and a database that does not answer.
    """
    # the part that is the same in every encoding
    password = (make_url(postgres).password or "").partition(":")[0].encode()
    parameter = with_password_as_parameter(postgres)
    changes = [
        ("data.source.url=" + postgres, 0),
        ("data.source.url=" + parameter, 0),
        ("data.source.query=SELECT nothing FROM bikes", 2),
        ("data.source.url=" + with_closed_port(postgres), 5),
        ("data.source.url=" + with_closed_port(parameter), 5),
    ]
    output = ""
    for change, expected in changes:
        caplog.clear()
        result = towline("run", database_config, "--set", change)
        assert result.code == expected, result.err
        assert "${NAME}" in caplog.text
        output += result.out + result.err + caplog.text
    assert (prefect_store / "prefect" / "prefect.db").exists()
    assert find_traces(prefect_store, [b"SELECT nothing FROM bikes"])
    for folder in (store, prefect_store):
        assert find_traces(folder, [password]) == []
    assert password not in output.encode()


@pytest.mark.parametrize("change_url", [str, with_password_as_parameter])
def test_scheduler_stores_a_reference_instead_of_the_password(
    database_config: Path, store: Path, postgres: str, prefect: str, change_url: type[str]
) -> None:
    """The deployment's parameters, which Prefect stores, hold a reference that the scheduler's process resolves."""
    from flows.deployments import deployments
    from towline.config import PipelineConfig, read_config
    from towline.data.source import sources

    deployed = deployments(read_config(database_config, [f"data.source.url={change_url(postgres)}"]))
    text = str([deployment.parameters for deployment in deployed])
    assert (make_url(postgres).password or "").partition(":")[0] not in text
    again = PipelineConfig.model_validate(deployed[0].parameters["config"])
    assert sources.load_dataset(again.data, database_config.parent, store, None).rows == 600
