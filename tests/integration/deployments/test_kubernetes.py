import json
import re
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.checks import at_least_one
from tests.support.kubernetes import (
    KUBERNETES,
    RELEASES,
    Document,
    find_changes,
    iterate_leaves,
    of_kind,
    pod_spec,
    render_kustomization,
    run_kubectl,
    selector_matches,
    validate_document,
)
from tests.support.paths import REPOSITORY
from tests.support.serving import ServiceClient
from towline.api_keys import create_key
from towline.cli import main
from towline.config import Settings
from towline.errors import ConfigError
from towline.serving import auth
from towline.serving.model_reloader import ModelReloader
from towline.serving.options import ServeOptions

OVERLAYS = ("overlays/staging", "overlays/production", "overlays/blue-green")
SERVICES = ("base", *OVERLAYS, "overlays/blue-green/blue", "overlays/blue-green/green")
ALL = (*SERVICES, "worker")
SOME_DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the manifests, which a test changes as a user would."""
    return Path(shutil.copytree(KUBERNETES, tmp_path / "kubernetes"))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("folder", ALL)
def test_each_manifest_is_valid(folder: str, release: str) -> None:
    """The schemas of the oldest and the newest supported release accept every manifest, without an unknown key."""
    documents = render_kustomization(folder)
    assert documents
    for document in documents:
        validate_document(document, release)


@pytest.mark.parametrize(
    ("kind", "path", "typo"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "readinessProbe"), "readynessProbe"),
        ("Deployment", ("spec", "strategy", "rollingUpdate", "maxUnavailable"), "maxUnavailible"),
        ("Service", ("spec", "ports", 0, "targetPort"), "target"),
        ("NetworkPolicy", ("spec", "policyTypes"), "policies"),
        ("HorizontalPodAutoscaler", ("spec", "minReplicas"), "minimum"),
        ("PodDisruptionBudget", ("spec", "maxUnavailable"), "maxUnavailble"),
    ],
)
@pytest.mark.parametrize("release", RELEASES)
def test_the_schema_refuses_misspelt_keys(kind: str, path: tuple[Any, ...], typo: str, release: str) -> None:
    """A misspelt key is refused at any depth, so the test above can fail."""
    document = deepcopy(of_kind(render_kustomization("base"), kind)[0])
    node: Any = document
    for key in path[:-1]:
        node = node[key]
    node[typo] = node.pop(path[-1])
    with pytest.raises(kubernetes_validate.ValidationError, match=typo):
        validate_document(document, release)


@pytest.mark.parametrize("folder", ALL)
def test_each_selector_selects_its_pods(folder: str) -> None:
    """Those of deployments, services, budgets, spreads and policies; autoscalers name their deployment."""
    documents = render_kustomization(folder)
    deployments = of_kind(documents, "Deployment")
    for deployment in at_least_one(deployments):
        assert selector_matches(deployment["spec"]["selector"]["matchLabels"], deployment)
        for spread in pod_spec(deployment).get("topologySpreadConstraints", ()):
            assert selector_matches(spread["labelSelector"]["matchLabels"], deployment)
        others = [other for other in deployments if other is not deployment]
        assert not any(selector_matches(deployment["spec"]["selector"]["matchLabels"], other) for other in others)
        account = pod_spec(deployment)["serviceAccountName"]
        assert account in [
            service_account["metadata"]["name"] for service_account in of_kind(documents, "ServiceAccount")
        ]
    for service in of_kind(documents, "Service"):
        assert sum(selector_matches(service["spec"]["selector"], workload) for workload in deployments) == 1
    for budget in of_kind(documents, "PodDisruptionBudget"):
        selector = budget["spec"]["selector"]["matchLabels"]
        assert sum(selector_matches(selector, workload) for workload in deployments) == 1
    for policy in of_kind(documents, "NetworkPolicy"):
        assert any(selector_matches(policy["spec"]["podSelector"]["matchLabels"], workload) for workload in deployments)
    targets = [
        autoscaler["spec"]["scaleTargetRef"]["name"] for autoscaler in of_kind(documents, "HorizontalPodAutoscaler")
    ]
    if folder != "worker":
        assert sorted(targets) == sorted(workload["metadata"]["name"] for workload in deployments)


@pytest.mark.parametrize("folder", SERVICES)
def test_each_service_leads_to_the_port_of_its_container(folder: str) -> None:
    """Port 80 of each service leads to the container's port of that name, 8080."""
    documents = render_kustomization(folder)
    for service in at_least_one(of_kind(documents, "Service")):
        (deployment,) = (
            workload
            for workload in of_kind(documents, "Deployment")
            if selector_matches(service["spec"]["selector"], workload)
        )
        ports = {port["name"]: port["containerPort"] for port in pod_spec(deployment)["containers"][0]["ports"]}
        assert [(port["port"], ports[port["targetPort"]]) for port in service["spec"]["ports"]] == [(80, 8080)]


def _allowed_ports(documents: list[Document], deployment: Document, direction: str) -> set[tuple[str, Any]] | None:
    """Protocols and ports that the policies allow, None without a policy; fails if a rule has no peer or no port."""
    policies = [
        policy["spec"]
        for policy in of_kind(documents, "NetworkPolicy")
        if selector_matches(policy["spec"]["podSelector"]["matchLabels"], deployment)
    ]
    if not any(direction in policy["policyTypes"] for policy in policies):
        return None
    peers, field = ("from", "ingress") if direction == "Ingress" else ("to", "egress")
    allowed = set()
    for rule in (rule for policy in policies for rule in policy.get(field, ())):
        assert all(peer["namespaceSelector"]["matchLabels"] for peer in rule[peers])
        assert rule[peers]
        allowed |= {(port["protocol"], port["port"]) for port in rule["ports"]}
    return allowed


@pytest.mark.parametrize("folder", SERVICES)
def test_only_the_service_port_is_open(folder: str) -> None:
    """A prediction pod accepts connections on one port from named namespaces, and opens none."""
    documents = render_kustomization(folder)
    for deployment in at_least_one(of_kind(documents, "Deployment")):
        assert _allowed_ports(documents, deployment, "Ingress") == {("TCP", "http")}
        assert _allowed_ports(documents, deployment, "Egress") == set()


def test_the_worker_accepts_no_connections() -> None:
    """It connects to DNS, the ledger, MLflow and Prefect only."""
    documents = render_kustomization("worker")
    (worker,) = of_kind(documents, "Deployment")
    assert _allowed_ports(documents, worker, "Ingress") == set()
    needed_ports = {("UDP", 53), ("TCP", 53), ("TCP", 5432), ("TCP", 5000), ("TCP", 4200)}
    assert _allowed_ports(documents, worker, "Egress") == needed_ports


def _pod_specs() -> Iterator[Document]:
    for folder in ALL:
        yield from map(pod_spec, of_kind(render_kustomization(folder), "Deployment"))


def test_every_container_has_limits_and_minimal_privileges() -> None:
    """Requests and limits of CPU, memory and disk; no root user, no privileges, a read-only root, no cluster token."""
    count = 0
    for spec in at_least_one(_pod_specs()):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for container in at_least_one(spec["containers"]):
            count += 1
            for kind in ("requests", "limits"):
                assert container["resources"][kind].keys() == {"cpu", "memory", "ephemeral-storage"}
            security = container["securityContext"]
            assert (security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (False, True)
            assert security["capabilities"] == {"drop": ["ALL"]}
        for volume in at_least_one(spec["volumes"]):
            assert volume.keys() - {"name"} <= {"emptyDir", "secret", "persistentVolumeClaim"}
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""})
    assert count == 8


def test_every_mount_has_a_volume() -> None:
    """Each volume has a mount, and /tmp and /store are writable."""
    for spec in at_least_one(_pod_specs()):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert len(volumes) == len(spec["volumes"])
        for container in at_least_one(spec["containers"]):
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert {mount["name"] for mount in mounts.values()} == volumes.keys()
            for path in ("/tmp", "/store"):
                assert not mounts[path].get("readOnly")
                assert "secret" not in volumes[mounts[path]["name"]]


def test_service_links_are_off() -> None:
    """For a service called towline, Kubernetes would set TOWLINE_PORT in pods, and towline would not start."""
    with pytest.raises(ConfigError):
        Settings.from_environment({"TOWLINE_PORT": "tcp://10.0.0.1:80"})
    assert {spec["enableServiceLinks"] for spec in _pod_specs()} == {False}


def test_variables_of_the_worker_are_settings() -> None:
    """Variables in the manifest and in the guide's secret are settings of towline; the manifest holds no secret."""
    (worker,) = of_kind(render_kustomization("worker"), "Deployment")
    (container,) = pod_spec(worker)["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    secret = dict(re.findall(r"--from-literal=([A-Z_]+)=(\S+)", page))
    settings = Settings.from_environment(
        {name: value for name, value in (variables | secret).items() if name.startswith("TOWLINE_")}
    )
    assert (settings.store, settings.project) == (Path("/store"), Path("/app"))
    assert settings.ledger_url.startswith("postgresql+psycopg://")
    assert {"MLFLOW_TRACKING_PASSWORD", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"} <= secret.keys()
    assert not secret.keys() & variables.keys()
    assert container["command"] == ["python", "-m", "flows.deployments"]
    option, pool, *configs = container["args"]
    assert (option, pool) == ("--pool", "towline")
    assert configs
    assert all((REPOSITORY / config).is_file() for config in configs)
    assert container["envFrom"] == [{"secretRef": {"name": "towline-worker"}}]


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_the_service_answers_the_probes(client: ServiceClient, reloader: ModelReloader, probe: str) -> None:
    """Each probe gets 200 without a key; a pod that drains is not ready, but alive."""
    (deployment,) = of_kind(render_kustomization("base"), "Deployment")
    (container,) = pod_spec(deployment)["containers"]
    probe_request = container[probe]["httpGet"]
    assert probe_request["port"] == container["ports"][0]["name"]
    assert client.get(probe_request["path"]).status_code == 200
    reloader.drain()
    assert client.get(probe_request["path"]).status_code == (200 if probe == "livenessProbe" else 503)


def test_the_grace_period_covers_the_shutdown() -> None:
    """The pause before the signal, the longest drain and the end of the log fit into the grace period."""
    drain = {field.name: field.default for field in fields(ServeOptions)}["drain"]
    for folder in SERVICES:
        for deployment in at_least_one(of_kind(render_kustomization(folder), "Deployment")):
            (container,) = pod_spec(deployment)["containers"]
            hook = container["lifecycle"]["preStop"]
            assert hook.keys() == {"sleep"}  # no command: the image has no shell
            assert pod_spec(deployment)["terminationGracePeriodSeconds"] > hook["sleep"]["seconds"] + drain + 10


def test_the_command_of_the_pod_is_valid() -> None:
    """It serves the image's release, for other machines, on the container's port."""
    (deployment,) = of_kind(render_kustomization("base"), "Deployment")
    (container,) = pod_spec(deployment)["containers"]
    name, *words = container["args"]
    parameters = main.commands[name].make_context(name, words).params
    assert (parameters["name"], parameters["host"]) == ("/release", "0.0.0.0")
    assert parameters["port"] == container["ports"][0]["containerPort"]
    assert not parameters["insecure"]


def test_an_update_keeps_all_replicas_available() -> None:
    """A new pod is ready before an old one ends; maintenance of a node ends at most one pod at a time."""
    for folder in SERVICES:
        documents = render_kustomization(folder)
        for deployment in at_least_one(of_kind(documents, "Deployment")):
            assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
            assert "replicas" not in deployment["spec"]  # else each apply would undo the autoscaler
        assert all(budget["spec"]["maxUnavailable"] == 1 for budget in of_kind(documents, "PodDisruptionBudget"))
    (autoscaler,) = of_kind(render_kustomization("overlays/production"), "HorizontalPodAutoscaler")
    assert autoscaler["spec"]["minReplicas"] >= 2
    assert autoscaler["spec"]["metrics"][0]["resource"]["name"] == "cpu"


def test_a_new_key_in_a_mounted_secret_works_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service reads the folder where the Secret is mounted; a key added to the Secret works without a restart."""
    (deployment,) = of_kind(render_kustomization("base"), "Deployment")
    mounts = {mount["name"]: mount for mount in pod_spec(deployment)["containers"][0]["volumeMounts"]}
    assert "subPath" not in mounts["keys"]
    assert mounts["keys"]["readOnly"] is True
    maker, store = tmp_path / "maker", tmp_path / "store"
    first, _ = create_key(maker, "first")
    (key_file,) = maker.rglob("*.json")
    mounted = store / Path(mounts["keys"]["mountPath"]).relative_to("/store")
    _mount(mounted, key_file, "..one")
    (mounted / key_file.name).symlink_to(f"..data/{key_file.name}")
    keys = auth.ApiKeys(store)
    assert keys.scopes(first) == {"predict"}
    second, _ = create_key(maker, "second")
    _mount(mounted, key_file, "..two")
    monkeypatch.setattr(auth.time, "monotonic", lambda: float("inf"))
    assert keys.scopes(second) == {"predict"}


def _mount(folder: Path, file: Path, name: str) -> None:
    """Like the kubelet: the content is in a separate folder, reached through a link that is replaced."""
    (folder / name).mkdir(parents=True)
    shutil.copy(file, folder / name)
    (folder / "..new").symlink_to(name)
    (folder / "..new").replace(folder / "..data")


@pytest.mark.parametrize(
    ("overlay", "deployment"),
    [
        ("overlays/staging", "predictions"),
        ("overlays/production", "predictions"),
        ("overlays/blue-green/green", "predictions-green"),
    ],
)
def test_setting_the_image_changes_only_the_image(copy: Path, overlay: str, deployment: str) -> None:
    """`kustomize edit set image towline-release=NAME@DIGEST` changes one field of one document."""
    before = render_kustomization(copy / overlay)
    path = copy / overlay / "kustomization.yaml"
    content = yaml.safe_load(path.read_text())
    assert [image["name"] for image in content["images"]] == ["towline-release"]
    content["images"] = [{"name": "towline-release", "newName": "registry.example.com/mine", "digest": SOME_DIGEST}]
    path.write_text(yaml.safe_dump(content))
    after = list(yaml.safe_load_all(run_kubectl("kustomize", copy / overlay)))
    differing = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    ((old, new),) = differing
    assert old["metadata"]["name"] == deployment
    ((field, (_, image)),) = find_changes(old, new).items()
    assert field == ("spec", "template", "spec", "containers", 0, "image")
    assert image == f"registry.example.com/mine@{SOME_DIGEST}"


def test_production_names_its_image_by_digest() -> None:
    """A tag can be moved, a digest cannot."""
    for folder in ("overlays/production", "overlays/blue-green"):
        for deployment in at_least_one(of_kind(render_kustomization(folder), "Deployment")):
            assert re.search(r"@sha256:[0-9a-f]{64}$", pod_spec(deployment)["containers"][0]["image"])


def test_switching_the_color_changes_one_field(tmp_path: Path) -> None:
    """The guide's command moves all traffic from the blue pods to the green ones, and its rollback moves it back."""
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    patches = re.findall(r"kubectl .*patch service (\S+) -p '(.*)'", page)
    assert [name for name, _ in patches] == ["predictions", "predictions"]
    documents = render_kustomization("overlays/blue-green")
    (live,) = (service for service in of_kind(documents, "Service") if service["metadata"]["name"] == "predictions")
    file, states = tmp_path / "live.yaml", [live]
    for _, patch in patches:
        file.write_text(json.dumps(states[-1]))
        states.append(json.loads(run_kubectl("patch", "--local", "-f", file, "-p", patch, "-o", "json")))
    blue, green, back = states
    assert find_changes(blue, green) == {("spec", "selector", "towline/color"): ("blue", "green")}
    assert back == blue
    for service, color in ((blue, "blue"), (green, "green")):
        selected = [
            deployment
            for deployment in of_kind(documents, "Deployment")
            if selector_matches(service["spec"]["selector"], deployment)
        ]
        assert [deployment["metadata"]["name"] for deployment in selected] == [f"predictions-{color}"]


def test_a_color_can_be_applied_alone() -> None:
    """The kustomization of a color holds all its documents, but not the service that callers use."""
    together = render_kustomization("overlays/blue-green")
    apart = render_kustomization("overlays/blue-green/blue") + render_kustomization("overlays/blue-green/green")
    assert [document["metadata"]["name"] for document in together if document not in apart] == ["predictions"]
    assert all(document in together for document in apart)


def _render_with_component(copy: Path, component: str) -> list[Document]:
    """Renders service and worker in one overlay with a component."""
    (copy / "mine").mkdir()
    mine = {"resources": ["../base", "../worker"], "components": [f"../components/{component}"], "namespace": "mine"}
    (copy / "mine" / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    documents = render_kustomization(copy / "mine")
    for document in documents:
        validate_document(document, RELEASES[0])
    return documents


def _shared_claims(documents: list[Document], deployment: Document) -> dict[str, str]:
    """The ReadWriteMany claims that a deployment mounts, by folder."""
    claims = {claim["metadata"]["name"]: claim for claim in of_kind(documents, "PersistentVolumeClaim")}
    volumes = {volume["name"]: volume.get("persistentVolumeClaim") for volume in pod_spec(deployment)["volumes"]}
    mounts = {
        mount["mountPath"]: volumes[mount["name"]] for mount in pod_spec(deployment)["containers"][0]["volumeMounts"]
    }
    return {
        path: claim["claimName"]
        for path, claim in mounts.items()
        if claim and claims[claim["claimName"]]["spec"]["accessModes"] == ["ReadWriteMany"]
    }


def test_services_and_worker_share_the_prediction_log(copy: Path) -> None:
    """Services write the prediction log where the worker's drift flow reads it, on one ReadWriteMany volume."""
    documents = _render_with_component(copy, "shared-log")
    service, worker = (_shared_claims(documents, deployment) for deployment in of_kind(documents, "Deployment"))
    assert service == worker
    assert service.keys() == {"/store/predictions"}


def test_services_of_the_ledger_share_their_rollouts_with_the_worker(copy: Path) -> None:
    """They serve a model of the ledger instead of the image's release, and write counts where the flow reads them."""
    documents = _render_with_component(copy, "ledger")
    deployments = {deployment["metadata"]["name"]: deployment for deployment in of_kind(documents, "Deployment")}
    shared = _shared_claims(documents, deployments["predictions"])
    assert shared == _shared_claims(documents, deployments["worker"])
    assert shared.keys() == {"/store/predictions", "/store/releases", "/store/rollouts"}
    assert len(set(shared.values())) == 3
    (container,) = pod_spec(deployments["predictions"])["containers"]
    name, *words = container["args"]
    parameters = main.commands[name].make_context(name, words).params
    assert (parameters["name"], parameters["wait"], container["image"]) == ("bike-demand", True, "towline-service")
    (variable,) = container["env"]
    assert (variable["name"], variable["valueFrom"]["secretKeyRef"]["name"]) == ("TOWLINE_LEDGER_URL", "towline-worker")
    needed_ports = {("UDP", 53), ("TCP", 53), ("TCP", 5432)}
    assert _allowed_ports(documents, deployments["predictions"], "Egress") == needed_ports
    assert _allowed_ports(documents, deployments["predictions"], "Ingress") == {("TCP", "http")}


def test_no_manifest_holds_a_secret() -> None:
    """The manifests refer to Secrets for keys and passwords."""
    for folder in ALL:
        documents = render_kustomization(folder)
        assert not of_kind(documents, "Secret")
        named = {str(path[-1]).lower() for document in documents for path, _ in iterate_leaves(document)}
        assert [name for name in named if "password" in name or name.endswith("token")] == [
            "automountserviceaccounttoken"
        ]
