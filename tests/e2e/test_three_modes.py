"""One release gives identical predictions in a program, over HTTP and in batch, on rows of both samples."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from tests.support.checks import at_least_one
from tests.support.paths import REPOSITORY
from tests.support.serve_process import read_startup
from towline import load
from towline.config import read_config
from towline.inference.predictor import Model

TOWLINE = Path(sys.executable).with_name("towline")
ROWS = 10_000


@dataclass(frozen=True)
class ServedSample:
    """A trained sample, its rows, and a service of its model."""

    model: Model
    table: pd.DataFrame
    port: int
    environ: dict[str, str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows as a client of the service sends them: JSON, with null for unknown values."""
        frame = self.table.astype(object).where(self.table.notna(), None)
        for name in frame.columns:
            if self.table[name].dtype.kind == "M":
                frame[name] = [None if value is None else value.isoformat() for value in frame[name]]
        return json.loads(json.dumps(frame.to_dict("records")))  # type: ignore[no-any-return]

    def predict(self, connection: http.client.HTTPConnection, body: dict[str, Any]) -> dict[str, Any]:
        connection.request("POST", "/predict", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = json.loads(response.read())
        assert response.status == 200, content
        assert content["model"] == {"name": self.model.name, "version": 1}
        return content  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=["bike_demand", "bank_subscription"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, prefect: str
) -> Iterator[ServedSample]:
    store = tmp_path_factory.mktemp(request.param) / "store"
    environ = os.environ | {"TOWLINE_STORE": str(store), "TOWLINE_PROJECT": str(REPOSITORY)}
    config = read_config(REPOSITORY / "configs" / f"{request.param}.yaml")
    # unit tests of the plan compare other estimators
    command = [TOWLINE, "run", REPOSITORY / "configs" / f"{request.param}.yaml"]
    quick = [
        "--set",
        "candidates=[{estimator: boosting, params: {max_iter: 40}}]",
        "--set",
        "cross_validation.folds=2",
        "--set",
        "gate={}",
        "--set",
        "data.detrend=null",
    ]
    service = None
    try:
        result = subprocess.run([*command, *quick], env=environ, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr + result.stdout
        command = [TOWLINE, "serve", config.name, "--port", "0", "--json"]
        service = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
        port = int(read_startup(service)["address"].rpartition(":")[2])
        release = next((store / "releases" / config.name).glob("v1-*"))
        source = REPOSITORY / str(config.data.source)
        table = pd.read_parquet(source).drop(columns=[*config.data.drop, config.data.target])
        yield ServedSample(load(release), table.sample(ROWS, random_state=3).reset_index(drop=True), port, environ)
    finally:
        if service is not None:
            service.send_signal(signal.SIGTERM)
            assert service.wait(30) == 0


def test_three_modes_predict_identical_values(served: ServedSample, tmp_path: Path) -> None:
    """10,000 rows: lists and single dicts, frames, Arrow; requests of 500 rows and of 1 row; Parquet and CSV."""
    model, rows = served.model, served.rows
    expected = model.predict(rows).tolist()
    assert [model.predict(row)[0] for row in rows] == expected
    assert model.predict(served.table).tolist() == expected
    assert model.predict(pa.Table.from_pandas(served.table)).tolist() == expected
    expected_probabilities = model.predict_proba(rows).tolist() if model.contract.classes else None

    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=120)
    for start in range(0, ROWS, 500):
        answer = served.predict(connection, {"rows": rows[start : start + 500]})
        assert answer["predictions"] == expected[start : start + 500]
        if expected_probabilities:
            assert answer["probabilities"] == expected_probabilities[start : start + 500]
    for row, value in at_least_one(zip(rows[:1000], expected, strict=False)):
        assert served.predict(connection, {"row": row})["predictions"] == [value]

    served.table.to_parquet(tmp_path / "in.parquet", index=False)
    served.table.to_csv(tmp_path / "in.csv", index=False)
    for source, output in (("in.parquet", "out.parquet"), ("in.csv", "out.csv"), ("in.csv", "out.csv.gz")):
        command = [TOWLINE, "score", tmp_path / source, tmp_path / output, "--json"]
        result = subprocess.run(command, env=served.environ, capture_output=True, text=True, check=True)
        assert json.loads(result.stdout)["rows"] == ROWS
        read = pd.read_parquet if output.endswith("parquet") else pd.read_csv
        scored = read(tmp_path / output, **({} if output.endswith("parquet") else {"float_precision": "round_trip"}))
        assert scored["prediction"].tolist() == expected
        assert set(scored["version"]) == {1}
        if expected_probabilities:
            probabilities = scored[[f"probability_{label}" for label in model.contract.classes]]
            assert probabilities.to_numpy().tolist() == expected_probabilities


def test_clients_of_mlflow_and_triton(served: ServedSample) -> None:
    """MLflow's scoring client, and Triton's client with JSON and binary tensors, get the model's predictions."""
    import tritonclient.http as triton
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    model, table = served.model, served.table.head(50)
    expected = model.predict(table).tolist()
    client = ScoringServerClient("127.0.0.1", served.port)
    client.wait_server_ready(timeout=60)
    assert client.invoke(table).get_predictions()[0].tolist() == expected

    rows = pd.DataFrame(served.rows[:50])
    with triton.InferenceServerClient(f"127.0.0.1:{served.port}") as v2:
        assert v2.is_server_live()
        assert v2.is_model_ready(model.name)
        assert v2.get_model_metadata(model.name)["versions"] == ["1"]
        for as_bytes in (False, True):
            inputs = []
            for column in model.contract.feature_columns:
                numeric = column.kind in ("numeric", "boolean")
                values = rows[column.name].to_numpy(float if numeric else object).reshape(-1, 1)
                tensor = triton.InferInput(column.name, list(values.shape), "FP64" if numeric else "BYTES")
                holes = numeric and bool(pd.isna(values).any())  # JSON has no NaN, but Triton's client writes it
                inputs.append(tensor.set_data_from_numpy(values, binary_data=as_bytes or holes))
            answer = v2.infer(model.name, inputs, outputs=[triton.InferRequestedOutput("predict", binary_data=False)])
            predicted = answer.as_numpy("predict").ravel().tolist()
            assert [tensor.decode() if isinstance(tensor, bytes) else tensor for tensor in predicted] == expected
