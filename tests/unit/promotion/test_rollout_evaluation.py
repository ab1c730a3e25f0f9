"""The evaluation of a rollout by logged predictions of both versions and late labels."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from tests.support.monitored_store import make_rows
from tests.support.sample_store import MODEL, SampleStore
from tests.support.serving import make_contract
from towline.config import PipelineConfig, RolloutConfig, build_config
from towline.data.schema.contract import Contract
from towline.inference.predictor import open_release
from towline.inference.scorer import RowPredictions
from towline.monitoring import rollout_evaluation
from towline.monitoring.rollout_evaluation import act, evaluate_rollout, find_rollout
from towline.monitoring.rollout_history import RolloutEvaluation, read_evaluations, record_evaluation
from towline.monitoring.status.page import render_status
from towline.monitoring.status.summary import read_status
from towline.prediction_log import labels
from towline.prediction_log.privacy import HASH_KEYS, HashKeys, read_privacy_filter
from towline.prediction_log.shadow_log import ShadowLog
from towline.prediction_log.writer import PredictionLog
from towline.registry.rollouts import Rollout, start_rollout
from towline.rollout.service_counts import ServiceCounts, stop_challenger, write_counts
from towline.training.evaluation.definitions import Metric

MINUTE = dt.timedelta(minutes=1)


class RolloutStore:
    """A store with a rollout of version 2, whose predictions are 1,000 above those of version 1."""

    def __init__(self, sample_store: SampleStore, folder: Path) -> None:
        self.sample_store, self.settings, self.folder = sample_store, sample_store.settings, folder
        self.models = {version: open_release(sample_store.release(version)) for version in (1, 2)}
        self.count, self.requests = 0, {1: 0, 2: 0}
        self.assignments: dict[str, list[int]] = {}

    def start(self, **config: Any) -> Rollout:
        config = {"bake": dt.timedelta(seconds=1), "min_rows": 10, **config}
        start_rollout(self.sample_store.ledger, MODEL, 2, RolloutConfig(**config), "ann", "passed")
        return self.rollout

    @property
    def rollout(self) -> Rollout:
        rollout = find_rollout(self.settings, MODEL)
        assert rollout is not None
        return rollout

    @property
    def config(self) -> PipelineConfig:
        raw = yaml.safe_load((self.sample_store.release(1) / "config.yaml").read_text())
        return build_config(raw, "test")

    def serve(self, rows: int, truth: int | None, *, arm: int = 1, noise: float = 1.0, missing: bool = False) -> None:
        """Logs requests; labels are near the predictions of the version ``truth``; None: no labels."""
        layout, at = self.settings.layout, self.rollout.started + MINUTE
        log = PredictionLog(layout.predictions(MODEL), f"w{self.count}", convert=False)
        shadow = ShadowLog(layout.rollout(MODEL, self.rollout.id) / "shadow", f"w{self.count}")
        rng, truths = np.random.default_rng(self.count), []
        for row in make_rows(rows).to_dict("records"):
            request = {key: None if value != value else value for key, value in row.items()}
            identifier = f"r{self.count}"
            self.count += 1
            log.write(identifier, at.timestamp(), self.models[arm], [request], self.models[arm].predict_rows([request]))
            other = self.models[3 - arm]
            answer = RowPredictions([float("nan")], None) if missing else other.predict_rows([request])
            shadow.add(identifier, at.timestamp(), other, 0, answer)
            if truth is not None:
                truths.append(
                    (identifier, self.models[truth].predict_rows([request]).predictions[0] + noise * rng.normal())
                )
        log.close()
        shadow.close()
        self.requests[arm] += rows
        self.count_requests(**{"champion" if arm == 1 else "challenger": rows})
        if truths:
            self.add_labels(truths, at + MINUTE)

    def count_requests(self, champion: int = 0, challenger: int = 0) -> None:
        """Counts requests at the current weight, as a service does."""
        pair = self.assignments.setdefault(str(self.rollout.weight), [0, 0])
        self.assignments[str(self.rollout.weight)] = [pair[0] + champion, pair[1] + challenger]
        counts = ServiceCounts(
            assignments=self.assignments, champion_rows=self.requests[1], champion_attempts=self.requests[1],
            challenger_rows=self.requests[2],
            attempts=self.count, asked_rows=self.count,
        )  # fmt: skip
        write_counts(self.settings.layout.rollout(MODEL, self.rollout.id), "w", counts)

    def add_labels(self, truths: list[tuple[str, float]], at: dt.datetime) -> None:
        file = self.folder / f"labels{self.count}.csv"
        pd.DataFrame(truths, columns=["request_id", "value"]).to_csv(file, index=False)
        predictions = self.settings.layout.predictions(MODEL)
        contract = Contract.read(self.sample_store.release(1))
        policy = read_privacy_filter(self.sample_store.release(1), contract, HashKeys(predictions / HASH_KEYS))
        log = labels.LoggedModel(predictions, self.settings.layout.labels(MODEL), policy.fields)
        labels.add_labels(log, contract, labels.LabelFile(file), at)

    def evaluate(self) -> RolloutEvaluation:
        return evaluate_rollout(self.settings, self.config, self.rollout, self.rollout.started + 10 * MINUTE)


@pytest.fixture
def store(sample_store: SampleStore, tmp_path: Path) -> RolloutStore:
    return RolloutStore(sample_store, tmp_path)


def test_without_traffic_a_rollout_waits(store: RolloutStore) -> None:
    store.start()
    evaluation = store.evaluate()
    assert (evaluation.verdict, evaluation.action) == ("waiting", "wait")


def test_without_labels_the_weight_grows_but_not_to_100_percent(store: RolloutStore) -> None:
    store.start(steps=(0.0, 50.0, 100.0))
    store.serve(20, None)
    evaluation = store.evaluate()
    assert (evaluation.verdict, evaluation.action, evaluation.labels) == ("waiting", "advance", 0)
    assert act(store.sample_store.ledger, store.rollout, evaluation, "ann") == "weight 50 %"
    store.serve(20, None)
    assert store.evaluate().action == "wait"


def test_a_better_challenger_is_promoted_and_a_worse_one_aborted(store: RolloutStore) -> None:
    store.start(strategy="shadow")
    store.serve(200, truth=2)
    evaluation = store.evaluate()
    assert (evaluation.verdict, evaluation.action, evaluation.labels) == ("promote", "promote", 200)
    act(store.sample_store.ledger, store.rollout, evaluation, "ann")
    champion = store.sample_store.ledger.champion(MODEL)
    assert champion is not None
    assert champion.version == 2


def test_a_worse_challenger_is_aborted_and_the_champion_stays(store: RolloutStore) -> None:
    store.start(strategy="shadow")
    store.serve(200, truth=1)
    evaluation = store.evaluate()
    assert (evaluation.verdict, evaluation.action) == ("abort", "abort")
    act(store.sample_store.ledger, store.rollout, evaluation, "ann")
    assert find_rollout(store.settings, MODEL) is None
    assert store.sample_store.ledger.aliases(MODEL)["champion"] == 1
    ended = store.sample_store.ledger.rows(MODEL)[-1]
    assert (ended.event, ended.version, ended.evidence["end"]) == ("rollout_ended", 2, "aborted")


def test_labels_of_rows_that_the_challenger_answered_count_for_it(store: RolloutStore) -> None:
    """In a canary, either version may have answered; the loss belongs to the version of the prediction."""
    store.start(steps=(50.0, 100.0))
    store.serve(100, truth=2, arm=1)
    store.serve(100, truth=2, arm=2)
    evaluation = store.evaluate()
    assert (evaluation.verdict, evaluation.labels) == ("promote", 200)


@pytest.mark.parametrize(("nonfinite", "check"), [(0, "error_rate"), (60, "non_finite_predictions")])
def test_failures_of_the_challenger_abort_it(nonfinite: int, check: str, store: RolloutStore) -> None:
    rollout = store.start()
    counts = ServiceCounts(champion_attempts=1000, attempts=1000, failures=60, nonfinite=nonfinite)
    write_counts(store.settings.layout.rollout(MODEL, rollout.id), "w", counts)
    evaluation = store.evaluate()
    assert evaluation.action == "abort"
    assert [each["name"] for each in evaluation.checks if each["verdict"] == "abort"] == [check]


def test_errors_of_both_versions_are_counted_by_request(store: RolloutStore) -> None:
    """Both versions fail on 3 % of the requests, which have 100 rows: the challenger is not worse."""
    rollout = store.start()
    counts = ServiceCounts(
        champion_rows=970_000, champion_attempts=10_000, champion_errors=300, attempts=10_000, failures=300
    )
    write_counts(store.settings.layout.rollout(MODEL, rollout.id), "w", counts)
    assert store.evaluate().action != "abort"


def test_slices_are_those_of_the_evaluation_from_the_first_labels_on(store: RolloutStore) -> None:
    """The first labels are few, so no slice can be chosen from them, and the quartiles of later rows are others."""
    metrics = store.sample_store.release(2) / "metrics.json"
    document = json.loads(metrics.read_bytes())
    slices = [("sunny", "True"), ("size", "(40.0, 50.0]"), ("at", "2025-01"), ("a `kind`, of sorts", "missing")]
    part = {"rows": 30, "metric": {"value": 1.0}, "baseline": None}
    document["evaluation"]["slices"] = [{"column": column, "value": value, **part} for column, value in slices]
    metrics.write_text(json.dumps(document))
    rollout = store.start(strategy="shadow")
    folder, expected = store.settings.layout.rollout(MODEL, rollout.id), []
    for labels_before, rows in ((0, 5), (5, 150)):
        store.serve(rows, truth=2)
        evaluation = store.evaluate()
        record_evaluation(folder, evaluation)
        expected.append({check["name"] for check in evaluation.checks if check["name"].startswith("loss in ")})
        assert evaluation.labels == labels_before + rows
    assert expected[0] == expected[1]
    assert expected[0] == {
        "loss in sunny = True",
        "loss in size = (40.0, 50.0]",
        "loss in a `kind`, of sorts = missing",
    }
    observed = {check["name"]: check["observations"] for check in evaluation.checks}
    assert observed["loss in sunny = True"] > 10
    assert observed["loss in size = (40.0, 50.0]"] > 10
    assert observed["loss in a `kind`, of sorts = missing"] == 0


def test_nan_in_shadow_is_no_loss_of_zero(store: RolloutStore) -> None:
    store.start(strategy="shadow")
    store.serve(200, truth=1, missing=True)
    evaluation = store.evaluate()
    assert (evaluation.verdict, evaluation.action) == ("waiting", "wait")


def test_an_ab_test_compares_the_labels_of_each_arm(store: RolloutStore) -> None:
    store.start(strategy="ab")
    store.serve(150, truth=2, arm=1)
    store.serve(150, truth=2, arm=2)
    evaluation = store.evaluate()
    assert (evaluation.verdict, evaluation.action) == ("promote", "promote")


def test_a_challenger_that_the_service_stopped_is_aborted_with_its_reason(store: RolloutStore) -> None:
    rollout = store.start()
    stop_challenger(store.settings.layout.rollout(MODEL, rollout.id), "3 of 3 answers failed")
    evaluation = store.evaluate()
    assert (evaluation.action, evaluation.reason) == ("abort", "3 of 3 answers failed")


def test_a_split_that_is_not_the_intended_one_is_no_evidence(store: RolloutStore) -> None:
    """A sample ratio mismatch: the arms are not assigned by the weight alone."""
    store.start(strategy="ab")
    store.serve(150, truth=2, arm=1)
    store.serve(150, truth=2, arm=1)
    evaluation = store.evaluate()
    assert evaluation.action != "promote"
    ratio = next(check for check in evaluation.checks if check["name"] == "sample ratio")
    assert ratio["verdict"] == "abort"


def test_requests_while_the_weight_grows_count_at_their_weight(store: RolloutStore) -> None:
    """A service uses the old weight until it reads the new one; requests are counted by the weight that was used."""
    store.start(steps=(5.0, 50.0, 100.0))
    store.count = 20
    store.count_requests(champion=950, challenger=50)
    evaluation = store.evaluate()
    assert (evaluation.action, evaluation.champion_requests, evaluation.challenger_requests) == ("advance", 950, 50)
    store.count_requests(champion=1900, challenger=100)
    record_evaluation(store.settings.layout.rollout(MODEL, store.rollout.id), evaluation)
    act(store.sample_store.ledger, store.rollout, evaluation, "ann")
    store.count_requests(champion=1000, challenger=1000)
    evaluation = store.evaluate()
    assert evaluation.action == "wait"
    ratio = next(check for check in evaluation.checks if check["name"] == "sample ratio")
    assert (ratio["verdict"], ratio["observations"]) == ("promote", 5000)


def test_an_ab_test_by_key_uses_all_rows_of_the_larger_arm(store: RolloutStore) -> None:
    """A label of the arm with a tenth of the rows is compared with nine labels of the other arm."""
    store.start(strategy="ab", split=10.0, key="doors")
    store.serve(180, truth=2, arm=1)
    store.serve(20, truth=2, arm=2)
    loss = next(check for check in store.evaluate().checks if check["name"] == "loss")
    assert loss["observations"] == (180 - 100) // 9  # the first 100 determine the bound of losses


def test_the_status_page_shows_weights_and_the_confidence_sequence(store: RolloutStore) -> None:
    rollout = store.start(steps=(0.0, 50.0, 100.0))
    folder = store.settings.layout.rollout(MODEL, rollout.id)
    for _ in range(3):
        store.serve(150, truth=2)
        record_evaluation(folder, store.evaluate())
    (folder / "evaluations.jsonl").open("a").write('{"interrupted')
    assert len(read_evaluations(folder)) == 3
    page = render_status(read_status(store.settings, MODEL, dt.datetime.now(dt.UTC)))
    assert "Version 2 instead of 1" in page
    assert "weight and confidence sequence of the loss by evaluation" in page
    assert page.count('class="ok"') > 1


def test_a_rollout_without_an_evaluation_has_a_page(store: RolloutStore) -> None:
    store.start()
    page = render_status(read_status(store.settings, MODEL, dt.datetime.now(dt.UTC)))
    assert "version 2 instead of 1: canary, shadow only" in page


def test_a_label_of_an_unknown_class_costs_both_versions_the_same() -> None:
    """A class that appears late has no probability: its loss is the largest one, not that of another class."""
    contract = make_contract(("a", "b", "c")).model_copy(update={"classes": ("a", "b", "c")})
    rows = pa.table(
        {
            "prediction": ["a", "b"],
            "probabilities": [[0.1, 0.0, 0.9], [0.0, 1.0, 0.0]],
            "label": ["d", "b"],
            "labelled_at": pa.array([None, None], pa.timestamp("us", "UTC")),
        }
    )
    loss, (losses,) = rollout_evaluation._losses((rows,), contract, Metric.built_in("log_loss"))
    assert loss == "log loss"
    assert losses[0] > 30
    assert losses[1] == pytest.approx(0.0)


def test_versions_without_probabilities_are_compared_by_their_errors() -> None:
    """Also if only one of them has none."""
    contract = make_contract(("a", "b")).model_copy(update={"classes": ("a", "b")})
    labels = {"label": ["a", "b"], "labelled_at": pa.array([None, None], pa.timestamp("us", "UTC"))}
    kind = pa.list_(pa.float64())
    with_probabilities = pa.table({"prediction": ["a", "b"], "probabilities": [[0.9, 0.1], [0.2, 0.8]], **labels})
    without = pa.table({"prediction": ["b", "b"], "probabilities": pa.array([None, None], kind), **labels})
    loss, losses = rollout_evaluation._losses((with_probabilities, without), contract, Metric.built_in("f1"))
    assert (loss, [each.tolist() for each in losses]) == ("error rate", [[0.0, 0.0], [1.0, 0.0]])


def test_labels_of_zero_have_no_relative_error() -> None:
    """They are left out: a missing loss counts against a promotion."""
    contract = make_contract(()).model_copy(update={"task": "regression", "classes": ()})
    rows = pa.table({"label": ["0", "2", None, "0.0", "-1"]})
    selected = rollout_evaluation._select_comparable(rows, contract, Metric.built_in("mape"))
    assert selected["label"].to_pylist() == ["2", "-1"]
    assert len(rollout_evaluation._select_comparable(rows, contract, Metric.built_in("mae"))) == 4


def test_a_repeated_request_counts_once() -> None:
    """Its last prediction; rows without the id of a request are all different."""
    rows = pa.table({"request_id": ["a", "a", "b", None, None], "row": [0, 0, 0, 0, 0], "place": [0, 1, 2, 3, 4]})
    assert rollout_evaluation._remove_repetitions(rows)["place"].to_pylist() == [1, 2, 3, 4]
