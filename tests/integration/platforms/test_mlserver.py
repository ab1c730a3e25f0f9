"""The real MLServer serves exported releases: its REST and gRPC answers are those of the model, to the last bit."""

import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.support.checks import at_least_one
from tests.support.mlserver_process import PROGRAM, MlserverProcess, mlserver_environment
from tests.support.releases import make_house_table, train_run
from towline.inference.predictor import Model, open_release
from towline.manifest import ReleaseLocation
from towline.platforms.mlserver_export import SETTINGS_FILE, export_release

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM.exists(), reason="MLServer is not installed: make .venv/.mlserver"),
]
KINDS = {"numeric": "FP64", "boolean": "BOOL", "category": "BYTES", "text": "BYTES", "datetime": "BYTES"}
# folder → target, estimator: a regression of boosted trees, classes as text, and classes as numbers
MODELS = {"value": ("value", "boosting"), "sold": ("sold", "linear"), "doors": ("doors", "forest")}
Row = dict[str, Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """The exported models by name; ``directory`` is the exported release."""
    root, exported = tmp_path_factory.mktemp("models"), {}
    for target, (column, estimator) in MODELS.items():
        table = make_house_table()
        others = [name for name in ("value", "sold") if name != column]
        run = train_run(
            tmp_path_factory.mktemp(target), table.drop(columns=others), estimator, target=column, time="at"
        )
        release = run.settings.store / run.package().path
        folder = export_release(ReleaseLocation(release), root / target)
        settings = folder.folder / SETTINGS_FILE  # a server has one model for each name
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"name": target}))
        exported[target] = open_release(folder.folder / folder.release)
    return exported


@pytest.fixture(scope="module")
def server(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlserverProcess]:
    folder = models["value"].directory.parents[1]
    with MlserverProcess(folder, tmp_path_factory.mktemp("log") / "mlserver.log") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: MlserverProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as connected:
        yield connected


def sample_rows(model: Model, count: int) -> list[Row]:
    """Rows of the table as JSON has them, the first with nulls, the second with a category unknown in training."""
    table = make_house_table()
    table["at"] = table["at"].dt.strftime("%Y-%m-%dT%H:%M:%S")
    names = [column.name for column in model.contract.input_columns]
    rows: list[Row] = json.loads(table[names].iloc[-count:].to_json(orient="records"))
    rows[0] |= {name: None for name in names if name != "at"}
    if count > 1:
        rows[1]["a `kind`, of sorts"] = "castle"
    return rows


def rest_request(model: Model, rows: list[Row]) -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": column.name,
                "datatype": KINDS[column.kind],
                "shape": [len(rows), 1],
                "data": [row[column.name] for row in rows],
            }
            for column in model.contract.input_columns
        ]
    }


def send_rest(server: MlserverProcess, name: str, document: dict[str, Any]) -> requests.Response:
    return requests.post(f"{server.rest}/v2/models/{name}/infer", json=document, timeout=60)


def send_grpc(client: triton.InferenceServerClient, name: str, model: Model, rows: list[Row]) -> dict[str, list[Any]]:
    """A null number is NaN; any other null is written by the content type ``pd_json``."""
    inputs = []
    for column in model.contract.input_columns:
        values = [row[column.name] for row in rows]
        kind, parameters = KINDS[column.kind], {}
        if kind == "FP64":
            array = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        elif None in values:
            kind, parameters = "BYTES", {"content_type": "pd_json"}
            array = np.array([json.dumps(value).encode() for value in values], dtype=object)
        elif kind == "BOOL":
            array = np.array(values, dtype=bool)
        else:
            array = np.array([value.encode() for value in values], dtype=object)
        tensor = triton.InferInput(column.name, [len(rows), 1], kind)
        tensor.set_data_from_numpy(array.reshape(-1, 1))
        inputs.append(tensor)
        for key, value in parameters.items():
            tensor._get_tensor().parameters[key].string_param = value  # the client has no function for this
    answer = client.infer(name, inputs)
    names = [output.name for output in answer.get_response().outputs]
    return {output: answer.as_numpy(output).tolist() for output in names}


def expected_outputs(model: Model, rows: list[Row]) -> dict[str, list[Any]]:
    """The model's own predictions, as flat lists; floats as hexadecimal text, so that each bit counts."""
    answer = model.predict_rows(rows)
    outputs = {"predict": exact(answer.predictions)}
    if answer.probabilities is not None:
        outputs["predict_proba"] = exact([share for row in answer.probabilities for share in row])
    return outputs


def exact(values: list[Any]) -> list[Any]:
    flat = [inner for value in values for inner in (value if isinstance(value, list) else [value])]
    texts = [value.decode() if isinstance(value, bytes) else value for value in flat]
    return [value.hex() if isinstance(value, float) else value for value in texts]


@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize("name", MODELS)
def test_rest_answers_are_those_of_the_model(
    name: str, count: int, models: dict[str, Model], server: MlserverProcess
) -> None:
    """One row and many, with nulls, an unknown category and times: each float is equal to the last bit."""
    rows = sample_rows(models[name], count)
    response = send_rest(server, name, rest_request(models[name], rows))
    assert response.status_code == 200, response.text
    document = response.json()
    assert (document["model_name"], document["model_version"]) == (name, "3")
    outputs = {output["name"]: exact(output["data"]) for output in document["outputs"]}
    assert outputs == expected_outputs(models[name], rows)


@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize("name", MODELS)
def test_grpc_answers_are_those_of_the_model(
    name: str, count: int, models: dict[str, Model], client: triton.InferenceServerClient
) -> None:
    """The same rows through Triton's gRPC client, which sends tensors as raw bytes."""
    rows = sample_rows(models[name], count)
    outputs = {key: exact(values) for key, values in send_grpc(client, name, models[name], rows).items()}
    assert outputs == expected_outputs(models[name], rows)


def test_an_invalid_row_is_named(
    models: dict[str, Model], server: MlserverProcess, client: triton.InferenceServerClient
) -> None:
    """A missing field, text for a number and an unknown output are client errors that name the field."""
    request = rest_request(models["value"], sample_rows(models["value"], 2))
    missing = {"inputs": [tensor for tensor in request["inputs"] if tensor["name"] != "size"]}
    response = send_rest(server, "value", missing)
    assert response.status_code == 422
    assert "'size'" in response.json()["error"]
    wrong = {"inputs": [tensor | {"datatype": "BYTES", "data": ["x", "y"]} for tensor in request["inputs"]]}
    response = send_rest(server, "value", wrong)
    assert response.status_code == 422
    assert "row 0: 'size' is not a number" in response.json()["error"]
    response = send_rest(server, "value", request | {"outputs": [{"name": "predict_proba"}]})
    assert response.status_code == 422
    assert "outputs" in response.json()["error"]
    tensor = triton.InferInput("size", [1, 1], "FP64")
    tensor.set_data_from_numpy(np.array([[1.0]]))
    with pytest.raises(InferenceServerException, match="doors"):
        client.infer("value", [tensor])


def test_the_metadata_names_the_fields(models: dict[str, Model], server: MlserverProcess) -> None:
    """Clients and gateways read from MLServer which tensors a model takes and returns."""
    document = requests.get(f"{server.rest}/v2/models/sold", timeout=60).json()
    assert document["versions"] == ["3"]
    names = [tensor["name"] for tensor in document["inputs"]]
    assert names == [column.name for column in at_least_one(models["sold"].contract.input_columns)]
    assert [output["name"] for output in document["outputs"]] == ["predict", "predict_proba"]


def test_a_changed_release_is_not_loaded(models: dict[str, Model], tmp_path: Path) -> None:
    """The runtime verifies the release and the digest of its manifest before it opens a file of it."""
    release = models["value"].directory
    export_release(ReleaseLocation(release), tmp_path / "folder")
    changed = tmp_path / "folder" / release.name / "plan.npz"
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    script = (
        "import asyncio, sys; from mlserver.settings import ModelSettings\n"
        "settings = ModelSettings.parse_file(sys.argv[1])\n"
        "asyncio.run(settings.implementation(settings).load())\n"
    )
    result = subprocess.run(
        [PROGRAM.with_name("python"), "-c", script, tmp_path / "folder" / SETTINGS_FILE],
        env=mlserver_environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "the release differs from its manifest: plan.npz" in result.stderr
