"""A pod of deployments/kubernetes, simulated with a Docker engine."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.kubernetes import of_kind, pod_spec, render_kustomization
from tests.support.sample_store import SampleStore
from towline.api_keys import create_key
from towline.release.image import build_release_image

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

pytestmark = [pytest.mark.docker, pytest.mark.slow]
_UNITS = {"Mi": 2**20, "Gi": 2**30}
_SEND_REQUEST = """
import http.client, json, sys
path, key, body = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=10)
headers = {"Content-Type": "application/json"} | ({"Authorization": "Bearer " + key} if key else {})
connection.request("POST" if body else "GET", path, body or None, headers)
answer = connection.getresponse()
print(json.dumps([answer.status, answer.read().decode()]))
"""
_FIND_REQUEST = """
import pathlib, sys
files = pathlib.Path("/store/predictions").rglob("*.jsonl")
sys.exit(not any(sys.argv[1] in file.read_text() for file in files))
"""


@pytest.fixture
def image(engine: "DockerClient", sample_store: SampleStore) -> Iterator[str]:
    built = build_release_image(sample_store.release(1), "towline-test/pod").tag
    yield built
    engine.images.remove(built)


def mount(folder: Path, file: Path, name: str) -> None:
    """Like the kubelet: the content is in a separate folder, reached through a link that is replaced."""
    (folder / name).mkdir(parents=True)
    shutil.copy(file, folder / name)
    (folder / name / file.name).chmod(0o444)
    (folder / "..new").symlink_to(name)
    (folder / "..new").replace(folder / "..data")


def start(engine: "DockerClient", image: str, folders: dict[str, Path]) -> "Container":
    """Starts the container of the base deployment with its user, privileges, limits and mounts."""
    (deployment,) = of_kind(render_kustomization("base"), "Deployment")
    spec = pod_spec(deployment)
    (container,) = spec["containers"]
    memory = container["resources"]["limits"]["memory"]
    volumes = {
        str(folders[mount_entry["name"]]): {
            "bind": mount_entry["mountPath"],
            "mode": "ro" if mount_entry.get("readOnly") else "rw",
        }
        for mount_entry in container["volumeMounts"]
    }
    return engine.containers.run(
        image,
        container["args"],
        detach=True,
        network_mode="none",
        user=f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}",
        read_only=container["securityContext"]["readOnlyRootFilesystem"],
        cap_drop=container["securityContext"]["capabilities"]["drop"],
        security_opt=["no-new-privileges"],
        mem_limit=int(memory[:-2]) * _UNITS[memory[-2:]],
        nano_cpus=int(container["resources"]["limits"]["cpu"]) * 10**9,
        volumes=volumes,
    )


def send_request(container: "Container", path: str, key: str = "", body: str = "") -> tuple[int, str]:
    code, output = container.exec_run(["python", "-c", _SEND_REQUEST, path, key, body])
    assert code == 0, output
    status, text = json.loads(output)
    return status, text


def test_pod_predicts_logs_and_accepts_new_keys(
    engine: "DockerClient", image: str, sample_store: SampleStore, tmp_path: Path
) -> None:
    """With the manifest's privileges and mounts: probes, a prediction, its log, a new key in the Secret, a shutdown."""
    folders = {name: tmp_path / "pod" / name for name in ("tmp", "store", "keys")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for name in ("tmp", "store"):
        folders[name].chmod(0o2777)  # the mode of an emptyDir
    maker = tmp_path / "maker"
    caller, _ = create_key(maker, "shop")
    file = maker / "serving" / "keys.json"
    mount(folders["keys"], file, "..one")
    (folders["keys"] / file.name).symlink_to(f"..data/{file.name}")
    previous = sorted(folders["keys"].iterdir())
    rows = json.loads((sample_store.release(1) / "probe.json").read_bytes())["rows"][:2]

    container = start(engine, image, folders)
    try:
        code, output = container.exec_run(["python", "-m", "towline.serving.process.health", "--wait", "60"])
        assert code == 0, (output, container.logs())
        assert [send_request(container, path)[0] for path in ("/readyz", "/livez", "/v2/health/ready")] == [200] * 3
        assert send_request(container, "/predict", body=json.dumps({"rows": rows}))[0] == 401
        status, text = send_request(container, "/predict", caller, json.dumps({"rows": rows}))
        assert status == 200, text
        assert len(json.loads(text)["predictions"]) == 2

        operator, _ = create_key(maker, "operator", ["admin"])
        assert send_request(container, "/metrics", operator)[0] == 401
        mount(folders["keys"], file, "..two")
        end = time.monotonic() + 120
        while (status := send_request(container, "/metrics", operator)[0]) != 200:
            assert time.monotonic() < end, status

        number, end = json.loads(text)["request_id"], time.monotonic() + 120
        while container.exec_run(["python", "-c", _FIND_REQUEST, number])[0] != 0:
            assert time.monotonic() < end, container.logs()

        (deployment,) = of_kind(render_kustomization("base"), "Deployment")
        container.stop(timeout=pod_spec(deployment)["terminationGracePeriodSeconds"])
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0, container.logs()
        assert sorted(folders["keys"].iterdir()) == sorted([*previous, folders["keys"] / "..two"])
    finally:
        container.remove(force=True, v=True)
