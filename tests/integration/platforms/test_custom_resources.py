"""The examples for KServe, Seldon Core 2 and Argo Rollouts: each key exists, and their names agree with towline's."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.support.checks import at_least_one
from tests.support.custom_resources import read_resource, validate_resource
from tests.support.kubernetes import RELEASES, of_kind, render_kustomization
from tests.support.paths import REPOSITORY
from tests.support.serving import ROW, FakeModel, make_contract, run_service
from towline.config.monitoring import LATENCY_BUCKETS_S

DEPLOYMENTS = REPOSITORY / "deployments"
FILES = [
    *sorted((DEPLOYMENTS / "kserve").glob("mlserver-*.yaml")),
    *sorted((DEPLOYMENTS / "seldon").glob("*.yaml")),
    *sorted((DEPLOYMENTS / "argo-rollouts").glob("*.yaml")),
]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}-{path.stem}" for path in FILES])
def test_each_key_exists(path: Path, release: str) -> None:
    """Each key is in the definition of the resource; a misspelt key at any place is refused."""
    document = read_resource(path)
    validate_resource(document, release)
    places = list(objects(document["spec"]))
    for place in at_least_one(places):
        wrong = deepcopy(document)
        find(wrong["spec"], place)["misspelt"] = 1
        if not is_free(place):
            with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
                validate_resource(wrong, release)


def objects(node: Any, path: tuple[Any, ...] = ()) -> Any:
    """The paths of all objects."""
    if isinstance(node, dict):
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield from objects(value, (*path, key))


def find(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def is_free(path: tuple[Any, ...]) -> bool:
    """Whether any key is allowed there: labels, and quantities of resources."""
    return bool({"matchLabels", "limits", "requests", "selector"} & set(path))


def test_the_names_of_the_runtime_agree() -> None:
    """Each InferenceService names the ServingRuntime, and the Model of Seldon names a Server with its capability."""
    runtime = read_resource(DEPLOYMENTS / "kserve" / "mlserver-runtime.yaml")
    formats = {(each["name"], each["version"]) for each in runtime["spec"]["supportedModelFormats"]}
    for name in ("mlserver-inference-service", "mlserver-canary"):
        model = read_resource(DEPLOYMENTS / "kserve" / f"{name}.yaml")["spec"]["predictor"]["model"]
        assert model["runtime"] == runtime["metadata"]["name"]
        assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
        assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    server = read_resource(DEPLOYMENTS / "seldon" / "server.yaml")["spec"]
    model = read_resource(DEPLOYMENTS / "seldon" / "model.yaml")["spec"]
    assert set(model["requirements"]) <= set(server["extraCapabilities"])
    assert server["podSpec"]["containers"][0]["image"] == runtime["spec"]["containers"][0]["image"]


def test_the_rollout_takes_over_the_deployment() -> None:
    """Argo's Rollout refers to the Deployment of base/, selects its pods, and names its AnalysisTemplate."""
    (deployment,) = of_kind(render_kustomization("base"), "Deployment")
    rollout = read_resource(DEPLOYMENTS / "argo-rollouts" / "rollout.yaml")
    assert rollout["spec"]["workloadRef"]["name"] == deployment["metadata"]["name"]
    assert rollout["spec"]["selector"] == deployment["spec"]["selector"]
    analysis = rollout["spec"]["strategy"]["canary"]["analysis"]
    template = read_resource(DEPLOYMENTS / "argo-rollouts" / "analysis.yaml")
    assert [each["templateName"] for each in analysis["templates"]] == [template["metadata"]["name"]]
    given = {each["name"] for each in analysis["args"]}
    assert {each["name"] for each in template["spec"]["args"] if "value" not in each} == given


def test_the_analysis_queries_metrics_of_the_service(tmp_path: Path) -> None:
    """The service exports each metric, label and bucket of the queries."""
    with run_service(FakeModel(make_contract(), tmp_path)) as service:
        service.client.post("/predict", {"row": ROW})
        page = service.client.get("/metrics").text
    template = read_resource(DEPLOYMENTS / "argo-rollouts" / "analysis.yaml")
    queries = [metric["provider"]["prometheus"]["query"] for metric in template["spec"]["metrics"]]
    for query in at_least_one(queries):
        for name in at_least_one(re.findall(r"towline_\w+", query)):
            assert re.search(rf"^{name}{{", page, re.MULTILINE)
        for bucket in re.findall(r'le="([\d.]+)"', query):
            assert float(bucket) in LATENCY_BUCKETS_S
        for argument in re.findall(r"args\.(\w+)", query):
            assert argument in {each["name"] for each in template["spec"]["args"]}
