"""docker-compose.yml from a new checkout: training, serving, failures of components, backup."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.checks import at_least_one
from tests.support.compose_stack import MARKER, NAME, TOWLINE, ComposeStack, bare_environment
from tests.support.load import BIKE_ROW, CountingLoad
from tests.support.waiting import wait_until as wait
from towline.inference.predictor import open_release

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.slow]
CONFIG = "configs/bike_demand.yaml"
MODEL = "bike-demand"
wait_until = partial(wait, seconds=300, pause=0.5)


def quick_candidate(iterations: int) -> tuple[str, ...]:
    """Options of a run with one candidate that passes the gate and is fitted in seconds."""
    params = f"{{loss: absolute_error, max_iter: {iterations}, early_stopping: false, max_leaf_nodes: 31}}"
    candidates = f"candidates=[{{estimator: boosting, params: {params}}}]"
    return ("--set", candidates, "--set", "cross_validation.folds=2")


@pytest.fixture(scope="module")
def stack(engine: "DockerClient", tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """The running stack."""
    stack = ComposeStack(tmp_path_factory.mktemp("checkout"))
    stack.write()
    stack.compose("down", "-v", check=False)
    try:
        stack.compose("up", "-d", "--build")
        yield stack
    finally:
        if log := os.environ.get("STACK_LOG"):
            Path(log).write_text(stack.compose("logs", "--no-color", check=False).stdout, "utf-8")
        stack.compose("down", "-v", check=False)


@pytest.fixture(scope="module")
def outcome(stack: ComposeStack) -> dict[str, Any]:
    """The outcome of the first run."""
    result = stack.towline("--profile", "compose", "run", CONFIG, *quick_candidate(100), "--json")
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.fixture(scope="module")
def key(stack: ComposeStack, outcome: dict[str, Any]) -> str:
    wait_until(lambda: stack.state("service-a") == stack.state("service-b") == "healthy", "services are ready")
    wait_until(lambda: stack.send_request("SERVICE", "/readyz")[0] == 200, "the proxy routes to the service")
    result = stack.compose("exec", "-T", "worker", "towline", "keys", "create", "shop", "--json")
    return str(json.loads(result.stdout)["key"])


def run_in_worker(stack: ComposeStack, *words: str) -> Any:
    """Runs a command in the worker; returns its JSON."""
    return json.loads(stack.compose("exec", "-T", "worker", "towline", *words, "--json").stdout)


def test_stack_without_secrets_does_not_start(engine: "DockerClient", tmp_path: Path) -> None:
    """With a copy of .env.example, Compose names a missing secret."""
    stack = ComposeStack(tmp_path)
    shutil.copy(tmp_path / ".env.example", tmp_path / ".env")
    result = stack.compose("config", check=False)
    assert result.returncode != 0
    missing = re.findall(r"set (\w+) in \.env", result.stderr)
    assert set(missing) & stack.secrets.keys(), result.stderr


def test_run_is_in_prefect_mlflow_api_and_prometheus(stack: ComposeStack, outcome: dict[str, Any], key: str) -> None:
    """Prefect has the run of the worker, MLflow the version, the API the model, Prometheus its requests."""
    assert outcome["event"] == "promoted"
    run = stack.prefect(f"/api/flow_runs/{outcome['page'].rpartition('/')[2]}")
    assert (run["state"]["name"], run["work_pool_name"]) == ("Completed", "towline")
    version = stack.mlflow(f"/api/2.0/mlflow/registered-models/alias?name={MODEL}&alias=champion")["model_version"]
    assert version["version"] == str(outcome["version"])
    files = stack.mlflow(f"/api/2.0/mlflow/artifacts/list?run_id={version['run_id']}&path=release")["files"]
    assert "release/manifest.json" in {file["path"] for file in files}
    status, response = stack.send_request("SERVICE", "/predict", {"rows": [BIKE_ROW]}, key=key)
    assert (status, response["model"]) == (200, {"name": MODEL, "version": outcome["version"]})
    wait_until(
        lambda: stack.query('sum(towline_requests_total{route="/predict"}) > 0'), "Prometheus has scraped the request"
    )
    wait_until(
        lambda: len(stack.query('up{job=~"service|status"} == 1')) == 3,
        "Prometheus scrapes the services and the status server",
    )


def test_service_predicts_as_the_release_does(
    stack: ComposeStack, outcome: dict[str, Any], key: str, tmp_path: Path
) -> None:
    """The release, opened in this process, gives exactly the same predictions."""
    source = f"{stack.container('worker')}:/store/{outcome['release']}"
    folder = tmp_path / Path(outcome["release"]).name
    subprocess.run(["docker", "cp", source, str(folder)], check=True, capture_output=True)
    rows = json.loads((folder / "probe.json").read_bytes())["rows"]
    status, response = stack.send_request("SERVICE", "/predict", {"rows": rows}, key=key)
    assert status == 200
    assert response["predictions"] == open_release(folder).predict_rows(rows).predictions


def test_every_container_is_healthy(stack: ComposeStack, key: str) -> None:
    """Containers with a health check pass it; one-time containers have ended successfully."""
    long_running = (
        "postgres",
        "mlflow",
        "prefect",
        "worker",
        "service-a",
        "service-b",
        "proxy",
        "status",
        "prometheus",
    )
    for service in (*long_running, "alertmanager"):
        wait_until(lambda service=service: stack.state(service) == "healthy", f"{service} is healthy")
    assert stack.state("prepare") == "exited"


def test_key_or_password_is_required(stack: ComposeStack, key: str) -> None:
    """The API, MLflow and Prefect refuse anonymous requests; metrics are not published."""
    assert stack.send_request("SERVICE", "/predict", {"rows": [BIKE_ROW]})[0] == 401
    for path in ("/metrics", "/%6detrics"):
        assert stack.send_request("SERVICE", path, key=key)[0] == 404
    assert stack.send_request("MLFLOW", "/api/2.0/mlflow/experiments/search?max_results=1")[0] == 401
    assert stack.send_request("PREFECT", "/api/flows/name/training")[0] == 401
    for line in at_least_one(subprocess.run(
        ["docker", "ps", "-f", f"name={NAME}", "--format", "{{.Names}} {{.Ports}}"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()):  # fmt: skip
        published = [port for port in line.split()[1:] if "->" in port]
        assert "proxy" in line or all(port.startswith("127.0.0.1:") for port in published), line


def test_rollout_in_both_services(stack: ComposeStack, outcome: dict[str, Any], key: str) -> None:
    """The worker's flow adds up the counts of both services; both services assign a key to the same version."""
    canary = {"strategy": "canary", "key": "hour", "steps": [0, 50, 100], "bake": "1s", "min_rows": 40}
    words = (*quick_candidate(150), "--set", f"rollout={json.dumps(canary)}", "--json")
    result = stack.towline("--profile", "compose", "run", CONFIG, *words)
    assert result.returncode == 0, result.stderr
    challenger = json.loads(result.stdout)["version"]

    def predict() -> list[int]:
        """The versions that answered the rows of 24 hours."""
        rows = [BIKE_ROW | {"hour": hour} for hour in range(24)]
        answers = [stack.send_request("SERVICE", "/predict", {"rows": [row]}, key=key)[1] for row in rows]
        return [answer["model"]["version"] for answer in answers]

    def evaluate() -> str:
        """The state of a run of the flow in the worker, which is the action of the rollout."""
        deployment = stack.prefect(f"/api/deployments/name/rollout/{MODEL}")
        run = stack.prefect(f"/api/deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
        ended = ("COMPLETED", "FAILED", "CRASHED")
        return str(wait_until(
            lambda: (state := stack.prefect(f"/api/flow_runs/{run['id']}")["state"])["type"] in ended and state,
            "the flow has ended",
        )["name"])  # fmt: skip

    def counts() -> list[dict[str, Any]]:
        """The counts of each service."""
        files = f"/store/rollouts/{MODEL}/*/counts/*.json"
        command = ("exec", "-T", "worker", "sh", "-c", f'for file in {files}; do cat "$file" && echo; done')
        return [json.loads(line) for line in stack.compose(*command, check=False).stdout.splitlines() if line]

    def is_compared() -> bool:
        assert set(predict()) == {outcome["version"]}
        rows = [each["compared"] for each in counts()]
        return len(rows) == 2 and min(rows) > 0 and sum(rows) >= 40

    wait_until(is_compared, "both services have made shadow answers")
    assert evaluate() == "Advance"
    wait_until(lambda: len(set(predict())) == 2, "the services have read the weight")
    time.sleep(5)  # both services have read it
    rounds = [predict() for _ in range(4)]
    assert set(rounds[0]) == {outcome["version"], challenger}
    assert rounds[1:] == rounds[:1] * 3
    assert run_in_worker(stack, "rollout", "abort", MODEL)["rollout"] is None
    wait_until(lambda: set(predict()) == {outcome["version"]}, "the champion answers alone")


def test_predictions_continue_while_the_stores_are_down(stack: ComposeStack, key: str) -> None:
    """PostgreSQL, MLflow and Prefect are stopped, one service is restarted, the other is killed: no request fails."""
    port, stores = int(stack.env["SERVICE_PORT"]), ("postgres", "mlflow", "prefect")
    with CountingLoad(port, key, [BIKE_ROW]) as load:
        time.sleep(1)
        stack.compose("stop", *stores)
        time.sleep(5)
        stack.compose("restart", "service-a")
        wait_until(lambda: stack.state("service-a") == "healthy", "service-a is ready without any store")
        time.sleep(2)
        subprocess.run(["docker", "kill", stack.container("service-b")], check=True, capture_output=True)
        time.sleep(5)
        stack.compose("start", *stores, "service-b")
        wait_until(lambda: stack.state("service-b") == "healthy", "service-b is ready again")
    counted = load.counts()
    assert counted.failed == 0, counted
    assert counted.statuses[200] > 1000
    wait_until(lambda: all(stack.state(part) == "healthy" for part in stores), "the stores are back")


def test_backup_service(stack: ComposeStack, key: str) -> None:
    """The service for backups writes one file with every database; its digests and predictions are verified."""
    stack.compose("run", "--rm", "backup")
    result = stack.compose("run", "--rm", "backup", "restore", "/backups/towline.tar.zst", "--verify-only", "--json")
    assert json.loads(result.stdout[result.stdout.index("{") :])["models"], result.stdout
    file = stack.folder / "backups" / "towline.tar.zst"
    listed = subprocess.run(["tar", "--zstd", "-tf", str(file)], capture_output=True, text=True, check=True).stdout
    for name in ("mlflow", "mlflow_auth", "prefect", "ledger"):
        assert any(Path(line).stem == name for line in listed.splitlines()), (name, listed[-2000:])


def test_data_survives_down_and_up(stack: ComposeStack, outcome: dict[str, Any], key: str) -> None:
    """Ledger, runs, versions, keys, schedules and the prediction log do not change."""

    def list_runs(*, planned: bool) -> list[dict[str, Any]]:
        """The runs that a schedule has planned, or all others."""
        runs = stack.prefect("/api/flow_runs/filter", {"limit": 200})
        return [run for run in runs if (run["auto_scheduled"] and run["state"]["type"] == "SCHEDULED") == planned]

    def scheduled_deployments() -> set[str]:
        return {run["deployment_id"] for run in list_runs(planned=True)}

    stack.send_request("SERVICE", "/predict", {"rows": [BIKE_ROW]}, key=key)
    ledger = run_in_worker(stack, "history", "--all")
    runs = {run["id"] for run in list_runs(planned=False)}
    assert runs
    scheduled = wait_until(scheduled_deployments, "the schedules have planned runs")
    stack.compose("stop", "service-a", "service-b")  # an ordered shutdown, so that all data is written
    rows = run_in_worker(stack, "log", "show", MODEL)["rows"]
    stack.compose("down")
    stack.compose("up", "-d")
    wait_until(
        lambda: stack.send_request("SERVICE", "/predict", {"rows": [BIKE_ROW]}, key=key)[0] == 200, "it answers again"
    )
    assert run_in_worker(stack, "history", "--all") == ledger
    assert runs <= {run["id"] for run in list_runs(planned=False)}
    # the worker deploys when it starts, and Prefect replaces the planned runs
    wait_until(lambda: scheduled_deployments() == scheduled, "the schedules have planned runs again")
    alias = stack.mlflow(f"/api/2.0/mlflow/registered-models/alias?name={MODEL}&alias=champion")
    assert alias["model_version"]["version"] == str(outcome["version"])
    assert run_in_worker(stack, "log", "show", MODEL)["rows"] >= rows > 1000


def test_run_of_a_killed_worker_is_completed(stack: ComposeStack, key: str) -> None:
    """The killed worker reports nothing; after its restart the run is set to Crashed and completed by a new run."""
    words = (
        "--profile",
        "compose",
        "run",
        CONFIG,
        "--set",
        "candidates=[linear]",
        "--set",
        "data.detrend=null",
        "--json",
    )
    client = subprocess.Popen(
        [TOWLINE, *words],
        cwd=stack.folder,
        env=bare_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    running = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}

    def under_way() -> list[Any]:
        runs = stack.prefect("/api/flow_runs/filter", running)
        tasks = {"flow_runs": {"id": {"any_": [run["id"] for run in runs]}}}
        result = [
            task for task in stack.prefect("/api/task_runs/filter", tasks) if task["state"]["type"] == "COMPLETED"
        ]
        return runs if len(result) >= 3 else []

    (run,) = wait_until(under_way, "a run is under way")
    subprocess.run(["docker", "kill", stack.container("worker")], check=True, capture_output=True)
    subprocess.run(["docker", "start", stack.container("worker")], check=True, capture_output=True)

    def ended(number: str) -> Any:
        state = stack.prefect(f"/api/flow_runs/{number}")["state"]
        return state if state["type"] not in ("PENDING", "RUNNING", "SCHEDULED", "CANCELLING") else None

    assert wait_until(lambda: ended(run["id"]), "the run is set to Crashed", seconds=240)["type"] == "CRASHED"

    def again() -> Any:
        runs = stack.prefect("/api/flow_runs/filter", {"flow_runs": {"tags": {"all_": ["retry"]}}})
        state = ended(runs[0]["id"]) if runs else None
        return state and (runs[0]["id"], state)

    second, state = wait_until(again, "it was run again")
    assert state["name"] in ("Completed", "Refused"), state  # both are end states of the flow
    tasks = stack.prefect("/api/task_runs/filter", {"flow_runs": {"id": {"any_": [second]}}})
    assert {"validate", "split"} <= {
        task["name"].rpartition("-")[0] for task in tasks if task["state"]["name"] == "Cached"
    }
    client.kill()
    client.wait()


def test_secrets_are_only_in_the_environment(stack: ComposeStack, engine: "DockerClient", key: str) -> None:
    """No image, log line or container description holds a secret, except the environment of its service."""
    planted = (MARKER.encode(), key.encode())
    for image in at_least_one(
        {container.image.id for container in engine.containers.list(all=True, filters={"name": NAME})}
    ):
        names = engine.images.get(image).tags
        if not any(name.startswith("towline/") for name in names):
            continue  # images of other projects: nothing was copied into them
        before, size = b"", 0
        for chunk in engine.images.get(image).save(chunk_size=2**24):
            text = before + chunk
            assert not any(secret in text for secret in planted), names
            before, size = chunk[-100:], size + len(chunk)
        assert size > 2**26
    for container in at_least_one(engine.containers.list(all=True, filters={"name": NAME})):
        logs = container.logs()
        assert not any(secret in logs for secret in planted), container.name
        described = dict(container.attrs)
        described["Config"] = {name: value for name, value in described["Config"].items() if name != "Env"}
        text = json.dumps(described).encode()
        assert not any(secret in text for secret in planted), container.name
    service = engine.containers.get(stack.container("service-a")).attrs["Config"]["Env"]
    exposed = {name for name, value in stack.secrets.items() if any(value in line for line in service)}
    assert exposed == {"LEDGER_DB_PASSWORD"}
