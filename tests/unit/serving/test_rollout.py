"""A rollout in the service: which version answers, the responses of clients, and a challenger that fails."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.metrics import parse_samples, sample_value
from tests.support.serving import (
    COLUMNS,
    ROW,
    FakeModel,
    RunningService,
    make_contract,
    make_rollout,
    run_service,
)
from towline.config import RolloutConfig
from towline.inference.scorer import RowPredictions
from towline.prediction_log.parquet_store import read_predictions
from towline.rollout.service_counts import ServiceCounts, read_counts, stop_reason, write_counts
from towline.serving import shadow_answers
from towline.serving.rollout_arms import ActiveRollout, RolloutArms
from towline.serving.shadow_answers import ShadowQueue, ShadowRows

CHAMPION, CHALLENGER = 3, 4
StartRollout = Callable[..., ActiveRollout]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    """A service whose champion predicts 2 × size; no rollout yet."""
    with run_service(model(tmp_path / "champion", CHAMPION)) as running:
        yield running


@pytest.fixture
def start_rollout(service: RunningService, tmp_path: Path) -> StartRollout:
    """Starts a rollout of a challenger that predicts 1,000 more."""

    def start_rollout(weight: float = 0.0, challenger: FakeModel | None = None, **config: Any) -> ActiveRollout:
        challenger = challenger or model(tmp_path / "challenger", CHALLENGER, offset=1000.0)
        steps = tuple(dict.fromkeys((weight, 100.0)))
        service.reloader.rollout = make_rollout(tmp_path, challenger, steps=steps, **config)
        rollout: ActiveRollout = service.reloader.rollout
        return rollout

    return start_rollout


def model(folder: Path, version: int, offset: float = 0.0, kind: type[FakeModel] = FakeModel) -> FakeModel:
    folder.mkdir(exist_ok=True)
    return kind(make_contract(), folder, version=version, offset=offset)


def predict_sizes(service: RunningService, *sizes: float, **headers: str) -> dict[str, Any]:
    rows = [{**ROW, "size": size} for size in sizes]
    response = service.client.post("/predict", {"rows": rows}, **headers)
    assert response.status_code == 200, response.text
    return dict(response.json())


def wait_for(service: RunningService, condition: Callable[[], bool]) -> None:
    """Runs the service's background work until a condition holds."""

    async def wait() -> None:
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("the condition never held")

    service.client.run(wait())


class FailingModel(FakeModel):
    """Raises on each prediction."""

    def predict_canonical(self, canonical: Any) -> RowPredictions:
        raise ValueError("broken")


class NanModel(FakeModel):
    """Predicts NaN."""

    def predict_canonical(self, canonical: Any) -> RowPredictions:
        return RowPredictions([float("nan")] * len(canonical), None)


class HangingModel(FakeModel):
    """Is not compiled and takes longer than the time limit."""

    def predict_canonical(self, canonical: Any) -> RowPredictions:
        import time

        time.sleep(3)
        return super().predict_canonical(canonical)


def test_the_versions_of_the_model_are_those_of_the_rollout(
    service: RunningService, start_rollout: StartRollout
) -> None:
    """``versions`` of the v2 protocol lists every version that a request may name."""
    path = "/v2/models/house-price"
    assert service.client.get(path).json()["versions"] == [str(CHAMPION)]
    start_rollout(0.0)
    assert service.client.get(path).json()["versions"] == [str(CHAMPION), str(CHALLENGER)]


def test_in_shadow_clients_get_the_champion(service: RunningService, start_rollout: StartRollout) -> None:
    start_rollout(0.0)
    document = predict_sizes(service, 10.0)
    assert document["predictions"] == [20.0]
    assert document["model"]["version"] == CHAMPION


def test_at_full_weight_clients_get_the_challenger_and_the_log_names_it(
    service: RunningService, start_rollout: StartRollout
) -> None:
    start_rollout(100.0)
    document = predict_sizes(service, 10.0)
    assert document["predictions"] == [1020.0]
    assert document["model"]["version"] == CHALLENGER
    assert service.log.records[-1][2].version == CHALLENGER


def test_each_answer_names_its_version_in_a_header(service: RunningService, start_rollout: StartRollout) -> None:
    assert "x-towline-version" not in service.client.post("/predict", {"rows": [ROW]}).headers
    start_rollout(100.0)
    assert service.client.post("/predict", {"rows": [ROW]}).headers["x-towline-version"] == str(CHALLENGER)
    assert service.client.post("/invocations", {"inputs": [ROW]}).headers["x-towline-version"] == str(CHALLENGER)


def test_a_key_stays_with_its_version_while_the_weight_grows(tmp_path: Path) -> None:
    """A key with the challenger has it at each higher weight, in any worker and after a restart."""
    rows = [{"size": float(customer)} for customer in range(2000)]
    previous: set[int] = set()
    for weight in (1.0, 5.0, 25.0, 50.0, 99.0):
        rollout = make_rollout(tmp_path, None, steps=(weight, 100.0), key="size")
        chosen = set(arms(rollout)._assign(rows, "any", 0))
        assert previous <= chosen
        assert abs(len(chosen) / len(rows) - weight / 100) < 0.04
        assert set(arms(rollout)._assign(rows, "another request", 0)) == chosen
        previous = chosen
    assert previous


def test_requests_are_counted_by_the_weight_at_which_they_were_assigned(tmp_path: Path) -> None:
    """The counts of all workers are added by weight; workers may read a new weight at different times."""
    rollout = make_rollout(tmp_path, None, steps=(25.0, 50.0, 100.0))
    worker = arms(rollout)
    for number in range(200):
        worker._assign([ROW], f"r{number}", 0)
    grown = rollout.rollout.model_copy(update={"step": 1})
    worker.follow(rollout._replace(rollout=grown))
    for number in range(100):
        worker._assign([ROW], f"r{number}", 0)
    for name in ("a", "b"):
        write_counts(rollout.folder, name, worker.counts)
    counts = read_counts(rollout.folder)
    assert {weight: sum(pair) for weight, pair in counts.assignments.items()} == {"0.25": 400, "0.5": 200}
    assert counts.assignments["0.25"][1] < 150
    assert counts.totals()["champion_requests"] + counts.totals()["challenger_requests"] == 600


def test_requests_with_one_id_are_one_assignment(tmp_path: Path) -> None:
    """A client that sends one id with each request has one arm, which says nothing about the shares of the arms."""
    rollout = make_rollout(tmp_path, None, steps=(50.0, 100.0))
    worker = arms(rollout)
    for number in range(300):
        worker._assign([ROW], "session", 0)
        worker._assign([ROW], f"r{number}", 0)
    assert sum(worker.counts.assignments["0.5"]) == 301


def arms(rollout: ActiveRollout) -> RolloutArms:
    async def score(model: Any, rows: Any) -> RowPredictions:
        return RowPredictions(model.predict_canonical(rows).predictions, None)

    return RolloutArms(rollout, score, score, "worker")


def test_rows_of_one_request_may_go_to_both_versions(service: RunningService, start_rollout: StartRollout) -> None:
    """Predictions have the order of the rows; response, header and log have the version of each row."""
    start_rollout(50.0, key="size")
    sizes = [float(size) for size in range(1, 41)]
    document = predict_sizes(service, *sizes)
    versions = document["versions"]
    assert set(versions) == {CHAMPION, CHALLENGER}
    expected = [
        2 * size + (1000 if version == CHALLENGER else 0) for size, version in zip(sizes, versions, strict=True)
    ]
    assert document["predictions"] == expected
    logged = {}
    for _, _, model, rows, answer, first in service.log.records:
        for place, (row, prediction) in enumerate(zip(rows, answer.predictions, strict=True)):
            logged[first + place] = (model.version, row["size"], prediction)
    assert logged == {
        place: (version, size, prediction)
        for place, (version, size, prediction) in enumerate(zip(versions, sizes, document["predictions"], strict=True))
    }


def test_rows_of_one_request_are_counted_for_the_version_that_answered_them(
    service: RunningService, start_rollout: StartRollout
) -> None:
    """Nulls of a request are counted once."""
    start_rollout(50.0, key="size")
    rows = [{**ROW, "size": float(size), "kind": None} for size in range(40)]
    versions = service.client.post("/predict", {"rows": rows}).json()["versions"]
    scrape = parse_samples(service.client.get("/metrics").text)
    for version in (CHAMPION, CHALLENGER):
        assert sample_value(scrape, "input_rows_total", version=str(version)) == versions.count(version) > 0
        assert sample_value(scrape, "predictions_count", version=str(version)) == versions.count(version)
    nulls = [value for (name, _), value in scrape.items() if name == "towline_input_anomalies_total"]
    assert sum(nulls) == 40


def test_numbers_and_texts_of_one_key_are_one_key(service: RunningService, start_rollout: StartRollout) -> None:
    start_rollout(50.0, key="customer")
    for customer in range(30):
        answers = {
            tuple(ask_customer(service, spelling)["predictions"])
            for spelling in (customer, str(customer), float(customer))
        }
        assert len(answers) == 1


def ask_customer(service: RunningService, customer: Any) -> dict[str, Any]:
    return dict(service.client.post("/predict", {"rows": [{**ROW, "customer": customer}]}).json())


@pytest.mark.parametrize("kind", [FailingModel, NanModel])
def test_the_champion_answers_for_a_challenger_that_fails_and_it_is_stopped(
    kind: type[FakeModel], service: RunningService, start_rollout: StartRollout, tmp_path: Path
) -> None:
    rollout = start_rollout(100.0, model(tmp_path / "broken", CHALLENGER, kind=kind))
    answers = [predict_sizes(service, 10.0) for _ in range(20)]
    assert all((answer["predictions"], answer["model"]["version"]) == ([20.0], CHAMPION) for answer in answers)
    assert "failed or are not finite" in stop_reason(rollout.folder)


def test_rows_that_neither_version_can_answer_are_no_fault_of_the_challenger(
    service: RunningService, start_rollout: StartRollout, tmp_path: Path
) -> None:
    rollout = start_rollout(100.0, model(tmp_path / "broken", CHALLENGER, kind=NanModel))
    service.reloader.model = model(tmp_path / "broken champion", CHAMPION, kind=NanModel)
    for _ in range(5):
        assert service.client.post("/predict", {"rows": [ROW]}).status_code == 422
    assert stop_reason(rollout.folder) == ""


def test_answers_that_are_not_finite_are_counted_apart_from_errors(
    service: RunningService, start_rollout: StartRollout, tmp_path: Path
) -> None:
    rollout = start_rollout(0.0, model(tmp_path / "broken", CHALLENGER, kind=NanModel))
    with lifespan(service):
        predict_sizes(service, 10.0)
        wait_for(service, lambda: read_counts(rollout.folder).failures == 1)
    assert read_counts(rollout.folder).nonfinite == 1


def test_a_broken_challenger_is_stopped_in_shadow(
    service: RunningService, start_rollout: StartRollout, tmp_path: Path
) -> None:
    rollout = start_rollout(0.0, model(tmp_path / "broken", CHALLENGER, kind=FailingModel))
    with lifespan(service):
        for _ in range(5):
            predict_sizes(service, *range(10))
        wait_for(service, lambda: bool(stop_reason(rollout.folder)))
    assert predict_sizes(service, 10.0)["predictions"] == [20.0]


def test_a_challenger_that_does_not_answer_in_time_is_replaced_by_the_champion(
    service: RunningService, start_rollout: StartRollout, tmp_path: Path
) -> None:
    challenger = model(tmp_path / "slow", CHALLENGER, kind=HangingModel)
    challenger.compiled = False
    rollout = start_rollout(100.0, challenger)
    assert predict_sizes(service, 10.0)["model"]["version"] == CHAMPION
    assert read_after_exchange(service, rollout).failures == 1


def read_after_exchange(service: RunningService, rollout: ActiveRollout) -> ServiceCounts:
    with lifespan(service):
        wait_for(service, lambda: read_counts(rollout.folder) != ServiceCounts())
    return read_counts(rollout.folder)


class lifespan:
    """The background work of the service."""

    def __init__(self, service: RunningService) -> None:
        self.service = service
        self.context = service.app.router.lifespan_context(service.app)

    def __enter__(self) -> None:
        self.service.client.run(self.context.__aenter__())

    def __exit__(self, *_: object) -> None:
        self.service.client.run(self.context.__aexit__(None, None, None))


@pytest.mark.parametrize("weight", [0.0, 100.0])
def test_the_challenger_reads_many_rows_outside_the_event_loop(
    service: RunningService, start_rollout: StartRollout, tmp_path: Path, weight: float
) -> None:
    """Reading 1,000 rows takes tens of milliseconds, during which the event loop could answer no other request."""
    challenger, threads = model(tmp_path / "challenger", CHALLENGER), dict[int, threading.Thread]()
    read = challenger.reader.read

    def record(rows: Any, *anomalies: Any) -> Any:
        threads[len(rows)] = threading.current_thread()
        return read(rows, *anomalies)

    challenger.reader = SimpleNamespace(read=record, fields=challenger.reader.fields)
    rollout = start_rollout(weight, challenger)
    with lifespan(service):
        predict_sizes(service, *map(float, range(1000)))
        predict_sizes(service, 1.0)
        wait_for(service, lambda: read_counts(rollout.folder).asked_rows == 1001)
    assert threads[1000] is not threading.main_thread()
    assert threads[1] is threading.main_thread()


def test_shadow_answers_are_counted_and_logged_without_input(
    service: RunningService, start_rollout: StartRollout
) -> None:
    rollout = start_rollout(0.0)
    with lifespan(service):
        request_id = predict_sizes(service, 10.0, 20.0)["request_id"]
        wait_for(service, lambda: read_counts(rollout.folder).compared == 2)
    counts = read_counts(rollout.folder)
    assert (counts.disagreements, counts.challenger_rows, counts.asked_rows, counts.attempts) == (2, 0, 2, 1)
    logged = read_predictions(rollout.folder / "shadow").sort_by("row").to_pydict()
    assert logged["request_id"] == [request_id] * 2
    assert (logged["row"], logged["version"]) == ([0, 1], [CHALLENGER] * 2)
    assert logged["prediction"] == [1020.0, 1040.0]
    assert not [name for name in logged if name.startswith("input.")]


def test_shadow_answers_of_a_slow_model_are_computed_in_short_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They use their share of time in many short turns, between which the worker exchanges counts with others."""
    now = [1000.0]
    clock = dict.fromkeys(("monotonic", "time", "perf_counter"), lambda: now[0])
    monkeypatch.setattr(shadow_answers, "time", SimpleNamespace(**clock))

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(shadow_answers.asyncio, "sleep", sleep)

    class Slow(FakeModel):
        def predict_canonical(self, canonical: Any) -> RowPredictions:
            now[0] += 0.125
            return super().predict_canonical(canonical)

    queue, challenger, answered = ShadowQueue(), model(tmp_path / "slow", CHALLENGER, kind=Slow), list[int]()
    for number in range(4):
        assert queue.has_room(64, 0.0)
        queue.add(ShadowRows(challenger, f"r{number}", 0.0, 0, [ROW] * 64, [1.0] * 64))
    turns = 0
    while queue:
        before = now[0]
        asyncio.run(queue.answer(lambda part, _: answered.append(len(part.rows))))
        assert now[0] - before <= 0.25 + 0.125
        turns += 1
    assert answered == [64] * 4
    assert turns > 20
    assert now[0] - 1000.0 == pytest.approx(0.125 * (3 / shadow_answers.SHADOW_SHARE + 1))


def test_a_stopped_challenger_stays_out_after_a_restart(
    service: RunningService, start_rollout: StartRollout, tmp_path: Path
) -> None:
    start_rollout(100.0, model(tmp_path / "broken", CHALLENGER, kind=FailingModel))
    for _ in range(5):
        predict_sizes(service, 10.0)
    with run_service(model(tmp_path / "again", CHAMPION)) as restarted:
        sound = model(tmp_path / "sound", CHALLENGER, offset=1000.0)
        restarted.reloader.rollout = make_rollout(tmp_path, sound, steps=(100.0,))
        assert predict_sizes(restarted, 10.0)["model"]["version"] == CHAMPION


@pytest.mark.parametrize("weight", [0.0, 100.0])
def test_one_failed_request_of_many_rows_is_one_failure(
    service: RunningService, start_rollout: StartRollout, tmp_path: Path, weight: float
) -> None:
    """Its rows fail together, which says no more than one row that fails; also in shadow."""
    failures = [ValueError("once")]

    class FailingOnce(FakeModel):
        def predict_canonical(self, canonical: Any) -> RowPredictions:
            if failures:
                raise failures.pop()
            return super().predict_canonical(canonical)

    rollout = start_rollout(weight, model(tmp_path / "once", CHALLENGER, kind=FailingOnce))
    with lifespan(service):
        for number in (1, 2):
            predict_sizes(service, *map(float, range(200)))
            wait_for(service, lambda number=number: read_counts(rollout.folder).asked_rows == 200 * number)
    counts = read_counts(rollout.folder)
    assert (counts.failed_rows, counts.failures, counts.attempts) == (200, 1, 2)
    assert stop_reason(rollout.folder) == ""


def test_the_failures_of_all_workers_count_together(tmp_path: Path) -> None:
    config = RolloutConfig()
    counts = ServiceCounts(attempts=60, failures=3)
    assert not counts.fault(config)
    for worker in range(4):
        write_counts(tmp_path, f"worker{worker}", counts)
    total = read_counts(tmp_path)
    assert (total.attempts, total.failures) == (240, 12)
    assert total.fault(config)


def test_a_challenger_without_failures_is_never_stopped() -> None:
    assert not ServiceCounts(
        attempts=10_000_000, timed=1_000_000, slow=100_000, champion_timed=1_000_000, champion_slow=90_000
    ).fault(RolloutConfig())


def test_a_challenger_twice_as_slow_is_stopped() -> None:
    counts = ServiceCounts(attempts=30, timed=30, slow=25, champion_timed=100, champion_slow=10)
    assert "slow" in counts.fault(RolloutConfig())


def test_a_noisy_machine_does_not_stop_a_challenger() -> None:
    """If half of the champion's predictions are slow, too, the machine is the cause."""
    noisy = ServiceCounts(attempts=300, timed=300, slow=165, champion_timed=1000, champion_slow=500)
    assert not noisy.fault(RolloutConfig())


def test_failures_in_answers_to_clients_are_not_hidden_by_shadow_answers() -> None:
    counts = ServiceCounts(attempts=10_200, failures=12, shadow_attempts=10_000)
    assert "12 of 200" in counts.fault(RolloutConfig())


@pytest.mark.slow
def test_an_analysis_after_each_prediction_rarely_stops_a_challenger_at_the_limit() -> None:
    """With exactly the accepted rate of failures, at most 1 of 100 is ever stopped."""
    rng = np.random.default_rng(4)
    stopped = 0
    for _ in range(400):
        failures = np.cumsum(rng.random(1500) < 0.01)
        places = np.flatnonzero(np.diff(failures, prepend=0)) + 1  # the evidence increases with failures only
        stopped += any(ServiceCounts(attempts=n, failures=failures[n - 1]).fault(RolloutConfig()) != "" for n in places)
    assert stopped <= 8


def test_a_test_request_may_pin_the_challenger(service: RunningService, start_rollout: StartRollout) -> None:
    start_rollout(0.0)
    assert predict_sizes(service, 10.0, x_towline_version=str(CHALLENGER))["predictions"] == [1020.0]
    assert predict_sizes(service, 10.0, x_towline_version=str(CHAMPION))["predictions"] == [20.0]
    assert service.client.post("/predict", {"rows": [ROW]}, x_towline_version="9").status_code == 404


def test_pinning_needs_the_scope_admin(tmp_path: Path) -> None:
    scopes = {"user": frozenset({"predict"}), "operator": frozenset({"predict", "admin"})}
    with run_service(model(tmp_path / "champion", CHAMPION), scopes) as service:
        service.reloader.rollout = make_rollout(
            tmp_path, model(tmp_path / "challenger", CHALLENGER), steps=(0.0, 100.0)
        )
        pin = {"x_towline_version": str(CHALLENGER)}
        assert service.client.post("/predict", {"rows": [ROW]}, x_api_key="user", **pin).status_code == 403
        assert service.client.post("/predict", {"rows": [ROW]}, x_api_key="operator", **pin).status_code == 200


def test_the_readiness_of_the_challenger_needs_no_key(tmp_path: Path) -> None:
    """Like that of the champion; other paths of the challenger need the scope ``admin``."""
    with run_service(model(tmp_path / "champion", CHAMPION), {"user": frozenset({"predict"})}) as service:
        service.reloader.rollout = make_rollout(
            tmp_path, model(tmp_path / "challenger", CHALLENGER), steps=(0.0, 100.0)
        )
        path = f"/v2/models/house-price/versions/{CHALLENGER}"
        assert service.client.get(f"{path}/ready").json() == {"name": "house-price", "ready": True}
        assert service.client.get(path, x_api_key="user").status_code == 403
        assert service.client.get("/v2/models/house-price/versions/9/ready").status_code == 404


def test_without_a_rollout_no_other_version_answers(service: RunningService) -> None:
    """A request for a version that is not served is refused, also if a header names it."""
    assert predict_sizes(service, 10.0, x_towline_version=str(CHAMPION))["predictions"] == [20.0]
    refused = service.client.post("/predict", {"rows": [ROW]}, x_towline_version=str(CHALLENGER))
    assert refused.status_code == 404
    assert refused.json()["detail"] == f"this service has no such version: it serves {CHAMPION}"


def test_the_open_inference_protocol_routes_alike(service: RunningService, start_rollout: StartRollout) -> None:
    start_rollout(100.0)
    inputs = [
        {"name": "size", "shape": [1], "datatype": "FP64", "data": [10.0]},
        {"name": "kind", "shape": [1], "datatype": "BYTES", "data": ["house"]},
        {"name": "sunny", "shape": [1], "datatype": "BOOL", "data": [True]},
        {"name": "at", "shape": [1], "datatype": "BYTES", "data": ["2026-03-01T12:00:00"]},
    ]
    response = service.client.post("/v2/models/house-price/infer", {"inputs": inputs})
    assert response.status_code == 200, response.text
    assert response.json()["outputs"][0]["data"] == [1020.0]
    assert response.json()["model_version"] == str(CHALLENGER)
    for version, prediction in ((CHAMPION, 20.0), (CHALLENGER, 1020.0)):
        pinned = service.client.post(f"/v2/models/house-price/versions/{version}/infer", {"inputs": inputs}).json()
        assert (pinned["model_version"], pinned["outputs"][0]["data"]) == (str(version), [prediction])


GARDEN = (("garden", "numeric", {"min": 0.0, "max": 900.0}), ("size", "category", {}), *COLUMNS[1:])


@pytest.fixture
def rollout_of_other_fields(start_rollout: StartRollout, tmp_path: Path) -> ActiveRollout:
    """The challenger predicts twice the garden's size, which the champion does not need; each gets half of the keys."""
    folder = tmp_path / "garden"
    folder.mkdir()
    challenger = FakeModel(make_contract(columns=GARDEN), folder, version=CHALLENGER)
    return start_rollout(50.0, challenger, fields="both", key="kind")


def test_requests_must_have_the_fields_of_both_versions(
    service: RunningService, rollout_of_other_fields: ActiveRollout
) -> None:
    """A row without a field is refused whichever version would answer it; the errors of both versions are listed."""
    for kind in ("house", "flat", "villa", "hut"):
        response = service.client.post("/predict", {"rows": [{**ROW, "kind": kind, "sunny": "perhaps"}]})
        assert response.status_code == 422
        assert [fault["field"] for fault in response.json()["errors"]] == ["sunny", "garden"]


def test_each_version_reads_its_own_fields(service: RunningService, rollout_of_other_fields: ActiveRollout) -> None:
    rows = [{**ROW, "kind": f"kind {number}", "garden": 300.0} for number in range(40)]
    document = service.client.post("/predict", {"rows": rows}).json()
    by_version = dict(zip(document["versions"], document["predictions"], strict=True))
    assert by_version == {CHAMPION: 2 * ROW["size"], CHALLENGER: 600.0}
    assert read_after_exchange(service, rollout_of_other_fields).failures == 0


def test_the_documents_of_the_service_show_the_fields_of_both(
    service: RunningService, rollout_of_other_fields: ActiveRollout
) -> None:
    names = [*ROW, "garden"]
    row = service.client.get("/openapi.json").json()["components"]["schemas"]["Row"]
    assert row["required"] == names
    assert row["properties"]["size"]["type"] == ["number", "null"]  # the challenger also accepts texts
    assert [field["name"] for field in service.client.get("/metadata").json()["fields"]] == names
    assert [tensor["name"] for tensor in service.client.get("/v2/models/house-price").json()["inputs"]] == names
    assert "garden" in service.client.get("/docs").text
    example = service.client.get("/openapi.json").json()["paths"]["/invocations"]["post"]["requestBody"]["content"]
    positional = {"dataframe_split": {"data": example["application/json"]["example"]["dataframe_split"]["data"]}}
    assert service.client.post("/invocations", positional).status_code == 200


def test_without_the_challenger_its_fields_are_not_needed(
    service: RunningService, rollout_of_other_fields: ActiveRollout
) -> None:
    assert service.client.post("/predict", {"rows": [ROW]}).status_code == 422
    service.reloader.rollout = None
    assert service.client.post("/predict", {"rows": [ROW]}).status_code == 200
    assert "garden" not in service.client.get("/openapi.json").json()["components"]["schemas"]["Row"]["properties"]


def test_a_rollout_from_an_earlier_champion_is_ignored(
    service: RunningService, start_rollout: StartRollout, tmp_path: Path
) -> None:
    """After a promotion the new champion serves, also before the next poll."""
    start_rollout(100.0)
    service.reloader.model = model(tmp_path / "newest", 5, offset=7.0)
    assert predict_sizes(service, 10.0)["predictions"] == [27.0]


def test_prometheus_counts_rows_by_arm(service: RunningService, start_rollout: StartRollout) -> None:
    start_rollout(100.0)
    predict_sizes(service, 1.0, 2.0, 3.0)
    text = service.client.get("/metrics").text
    assert 'towline_rollout_rows_total{arm="challenger",outcome="answered"} 3.0' in text
    assert 'towline_rollout_rows_total{arm="champion",outcome="answered"} 0.0' in text
