"""The image of MLServer with towline's runtime, in the form in which KServe starts it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.paths import REPOSITORY
from tests.support.releases import make_house_table, train_run
from towline.inference.predictor import open_release
from towline.manifest import ReleaseLocation
from towline.platforms.mlserver_export import export_release

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.slow]
REQUEST = """
import json, sys, time, urllib.request
address = "http://127.0.0.1:8080/v2/"
for _ in range(240):
    try:
        urllib.request.urlopen(address + "health/ready", timeout=5)
        break
    except OSError:
        time.sleep(0.5)
request = urllib.request.Request(
    address + "models/house-value/infer", sys.argv[1].encode(), {"Content-Type": "application/json"}
)
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


@pytest.fixture(scope="module")
def mlserver_image(engine: "DockerClient") -> Iterator[str]:
    tag = f"towline-mlserver-test:{time.time_ns()}"
    engine.images.build(path=str(REPOSITORY), dockerfile="deployments/mlserver.Dockerfile", tag=tag, rm=True)
    yield tag
    engine.images.remove(tag, force=True)


def test_the_image_serves_an_exported_release(engine: "DockerClient", mlserver_image: str, tmp_path: Path) -> None:
    """Without privileges, with a read-only root: the predictions are those of the model, to the last bit."""
    run = train_run(tmp_path / "run", make_house_table().drop(columns=["sold", "at"]), target="value")
    release = run.settings.store / run.package().path
    export_release(ReleaseLocation(release), tmp_path / "models")
    model = open_release(release)
    row = {"size": 51.25, "a `kind`, of sorts": None, "doors": 3, "sunny": True}
    kinds = {"size": "FP64", "a `kind`, of sorts": "BYTES", "doors": "INT64", "sunny": "BOOL"}
    inputs = [{"name": name, "shape": [1], "datatype": kinds[name], "data": [value]} for name, value in row.items()]
    container = engine.containers.run(
        mlserver_image, detach=True, read_only=True, cap_drop=["ALL"], network_mode="none", tmpfs={"/tmp": ""},
        volumes={str(tmp_path / "models"): {"bind": "/mnt/models", "mode": "ro"}},
    )  # fmt: skip
    try:
        code, output = container.exec_run(["python", "-c", REQUEST, json.dumps({"inputs": inputs})])
        assert code == 0, (output, container.logs())
        assert container.exec_run(["id", "-u"]).output.strip() == b"10001"
    finally:
        container.remove(force=True, v=True)
    (labels,) = json.loads(output)["outputs"]
    assert labels["data"] == model.predict_rows([row]).predictions
