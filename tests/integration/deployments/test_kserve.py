import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.kubernetes import RELEASES, Document, of_kind, pod_spec, render_kustomization, validate_document
from tests.support.paths import REPOSITORY
from tests.support.serving import COLUMNS, ServiceClient

# Keys of a predictor that are not keys of a pod, from KServe's API reference: its schema is not available here.
KSERVE_KEYS = {
    "annotations", "autoScaling", "batcher", "canaryTrafficPercent", "containerConcurrency", "deploymentStrategy",
    "labels", "logger", "maxReplicas", "minReplicas", "scaleMetric", "scaleMetricType", "scaleTarget", "timeout",
}  # fmt: skip


def predictor() -> Document:
    document = yaml.safe_load((REPOSITORY / "deployments" / "kserve" / "inference-service.yaml").read_text())
    assert document.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert (document["apiVersion"], document["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert document["spec"].keys() == {"predictor"}
    return dict(document["spec"]["predictor"])


def as_pod(spec: Document) -> Document:
    """A pod with those keys of a predictor that are keys of a pod."""
    inner = {key: value for key, value in spec.items() if key not in KSERVE_KEYS}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": inner}


@pytest.mark.parametrize("release", RELEASES)
def test_each_key_belongs_to_kubernetes_or_kserve(release: str) -> None:
    """A misspelt key is refused."""
    spec = predictor()
    validate_document(as_pod(spec), release)
    assert all(isinstance(spec[key], int) for key in ("minReplicas", "maxReplicas", "timeout"))
    for unknown in ("maxReplica", "volume"):
        with pytest.raises(kubernetes_validate.ValidationError, match=unknown):
            validate_document(as_pod({**spec, unknown: 3}), release)
    typo = deepcopy(spec)
    typo["containers"][0]["readyProbe"] = typo["containers"][0].pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError, match="readyProbe"):
        validate_document(as_pod(typo), release)


def test_kserve_finds_the_container_its_port_and_its_protocol() -> None:
    """KServe finds them by name: the container, the port of HTTP/1.1, and the variable of the protocol."""
    (container,) = predictor()["containers"]
    assert container["name"] == "kserve-container"
    assert container["ports"] == [{"name": "http1", "containerPort": 8080, "protocol": "TCP"}]
    assert container["env"] == [{"name": "PROTOCOL", "value": "v2"}]
    assert re.search(r"@sha256:[0-9a-f]{64}$", container["image"])


def test_the_service_answers_the_probes_and_v2_requests(client: ServiceClient) -> None:
    """Probes get 200 without a key; a v2 request with one tensor for each column gets a prediction."""
    (container,) = predictor()["containers"]
    for probe in ("readinessProbe", "livenessProbe"):
        probe_request = container[probe]["httpGet"]
        assert probe_request["port"] == container["ports"][0]["containerPort"]
        assert probe_request["path"].startswith("/v2/health/")
        assert client.get(probe_request["path"]).status_code == 200
    row: dict[str, tuple[str, Any]] = {
        "size": ("FP64", 20.5), "kind": ("BYTES", "house"), "sunny": ("BOOL", True), "at": ("BYTES", "2026-03-01")
    }  # fmt: skip
    assert row.keys() == {name for name, _, _ in COLUMNS}
    inputs = [{"name": name, "datatype": kind, "shape": [1], "data": [value]} for name, (kind, value) in row.items()]
    response = client.send(
        json.dumps({"inputs": inputs}).encode(), "/v2/models/house-price/infer", authorization="Bearer key"
    )
    assert response.status_code == 200, response.text
    assert response.json()["outputs"][0]["data"] == [41.0]


def test_the_predictor_is_as_restricted_as_the_deployment() -> None:
    """Mounts, volumes and security context are those of the deployment in base/, and there are resource limits."""
    (deployment,) = of_kind(render_kustomization("base"), "Deployment")
    plain, spec = pod_spec(deployment), predictor()
    for key in ("volumes", "automountServiceAccountToken", "enableServiceLinks", "terminationGracePeriodSeconds"):
        assert spec[key] == plain[key]
    (ours,), (theirs,) = plain["containers"], spec["containers"]
    assert theirs["volumeMounts"] == ours["volumeMounts"]
    assert theirs["args"] == ours["args"]
    assert theirs["securityContext"].items() >= ours["securityContext"].items()
    for key in ("runAsNonRoot", "runAsUser", "fsGroup", "seccompProfile"):
        assert spec["securityContext"][key] == plain["securityContext"][key]
    for kind in ("requests", "limits"):
        assert {"cpu", "memory"} <= theirs["resources"][kind].keys()


def test_the_guide_applies_an_existing_file() -> None:
    """docs/kubernetes.md applies the example by its path."""
    (named,) = re.findall(r"kubectl .*apply -f (\w\S+)", (REPOSITORY / "docs" / "kubernetes.md").read_text())
    assert (REPOSITORY / Path(named)).is_file()
