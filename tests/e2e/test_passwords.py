"""A literal password in the URL of a source leaves no trace in the store."""

from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pytest
import yaml
from sqlalchemy import create_engine, make_url

from benchmarks.kill import Line, write_config
from tests.traces import traces
from towline.operations import servers


@pytest.fixture(params=["user:password@", "?password="])
def line(request: pytest.FixtureRequest, tmp_path: Path, postgres: str) -> Line:
    """A config whose source is a database, with the password written into its URL."""
    path = write_config(tmp_path)
    table = pd.read_csv(tmp_path / "bikes.csv", parse_dates=["datetime"])
    engine = create_engine(postgres)
    table.to_sql("bikes", engine, index=False)
    engine.dispose()
    url = make_url(postgres)
    literal = postgres
    if request.param == "?password=":
        shown = url.set(username=None, password=None).render_as_string()
        literal = f"{shown}?user={url.username}&password={quote(url.password or '', safe='')}"
    raw = yaml.safe_load(path.read_text())
    raw["data"]["source"] = {"url": literal, "query": "SELECT * FROM bikes ORDER BY datetime"}
    path.write_text(yaml.safe_dump(raw))
    return Line(tmp_path / "store", path)


def test_a_literal_password_is_nowhere_in_the_store(line: Line, postgres: str) -> None:
    """A run, a refused query and a server that is away: no byte of releases, MLflow, Prefect, logs or workspaces."""
    password = make_url(postgres).password or ""
    wanted = [password.partition(":")[0].encode()]  # what no encoding changes
    said = ""
    try:
        code, out, err = line.run()
        assert code == 0, err
        assert "${NAME}" in err
        said += out + err
        query = "data.source.query=SELECT nothing FROM bikes"
        for change, expected in ((query, 2), ("data.source.url=" + _away(postgres), 5)):
            code, out, err = line.run("--set", change)
            assert code == expected, err
            said += out + err
    finally:
        servers.stop(line.settings)
    assert (line.store / "prefect" / "prefect.db").exists()
    assert traces(line.store, wanted) == []
    assert wanted[0] not in said.encode()


def _away(url: str) -> str:
    return make_url(url).set(port=1).render_as_string(hide_password=False)


def test_a_scheduler_hands_on_what_it_needs_and_stores_no_password(
    line: Line, postgres: str, monkeypatch: pytest.MonkeyPatch, prefect: str
) -> None:
    """Parameters of a deployment, which Prefect stores, hold a reference that the scheduler's own process resolves."""
    from flows.deployments import deployments
    from towline.config import PipelineConfig, read_config
    from towline.data import sources

    made = deployments(read_config(line.config))
    text = str([one.parameters for one in made])
    assert (make_url(postgres).password or "").partition(":")[0] not in text
    again = PipelineConfig.model_validate(made[0].parameters["config"])
    assert sources.load_dataset(again.data, line.config.parent, line.store, None).rows == 600
