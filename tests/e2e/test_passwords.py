"""A literal password in the URL of a source is not stored anywhere."""

from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pytest
import yaml
from sqlalchemy import create_engine, make_url

from tests.support.store_commands import StoreCommands, write_bike_config
from tests.support.traces import find_traces
from towline.operations import servers


@pytest.fixture
def commands(tmp_path: Path, postgres: str) -> StoreCommands:
    """A config whose source is a database, with a literal password in its URL."""
    path = write_bike_config(tmp_path)
    table = pd.read_csv(tmp_path / "bikes.csv", parse_dates=["datetime"])
    engine = create_engine(postgres)
    table.to_sql("bikes", engine, index=False)
    engine.dispose()
    raw = yaml.safe_load(path.read_text())
    raw["data"]["source"] = {"url": postgres, "query": "SELECT * FROM bikes ORDER BY datetime"}
    path.write_text(yaml.safe_dump(raw))
    return StoreCommands(tmp_path / "store", path)


def with_password_as_parameter(url: str) -> str:
    """The same URL with user and password as parameters of the query string."""
    parts = make_url(url)
    bare = parts.set(username=None, password=None).render_as_string()
    return f"{bare}?user={parts.username}&password={quote(parts.password or '', safe='')}"


def with_closed_port(url: str) -> str:
    return make_url(url).set(port=1).render_as_string(hide_password=False)


def test_literal_password_is_not_in_the_store(commands: StoreCommands, postgres: str) -> None:
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
    try:
        for change, expected in changes:
            code, out, err = commands.run("--set", change)
            assert code == expected, err
            assert "${NAME}" in err
            output += out + err
    finally:
        servers.stop(commands.settings)
    assert (commands.store / "prefect" / "prefect.db").exists()
    assert find_traces(commands.store, [password]) == []
    assert password not in output.encode()


@pytest.mark.parametrize("change_url", [str, with_password_as_parameter])
def test_scheduler_stores_a_reference_instead_of_the_password(
    commands: StoreCommands, postgres: str, prefect: str, change_url: type[str]
) -> None:
    """The deployment's parameters, which Prefect stores, hold a reference that the scheduler's process resolves."""
    from flows.deployments import deployments
    from towline.config import PipelineConfig, read_config
    from towline.data.source import sources

    deployed = deployments(read_config(commands.config, [f"data.source.url={change_url(postgres)}"]))
    text = str([deployment.parameters for deployment in deployed])
    assert (make_url(postgres).password or "").partition(":")[0] not in text
    again = PipelineConfig.model_validate(deployed[0].parameters["config"])
    assert sources.load_dataset(again.data, commands.config.parent, commands.store, None).rows == 600
