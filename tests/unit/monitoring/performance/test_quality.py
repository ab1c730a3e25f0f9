"""Measured quality: the state if there are enough labels, else the reason."""

import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.support.logged_predictions import HOUR, START, log_predictions, package_release, shuffle_values
from tests.support.releases import TrainedRun, make_house_table
from towline.config import PipelineConfig, build_config
from towline.data.schema.contract import Contract
from towline.inference.predictor import open_release
from towline.monitoring.performance.quality import log_resampling_units, measure_quality, performance_bound
from towline.monitoring.results import QualityResult
from towline.prediction_log import labels
from towline.prediction_log.labels import LoggedModel
from towline.prediction_log.parquet_store import INPUT_PREFIX
from towline.prediction_log.writer import PredictionLog
from towline.training.evaluation.metrics import compute_metrics
from towline.training.evaluation.predictions import Predictions

NOW = START + dt.timedelta(days=90)
Case = tuple[TrainedRun, Path]


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return package_release(
        tmp_path_factory.mktemp("regression"), make_house_table(900).drop(columns="sold"), target="value", time="at"
    )


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Case:
    frame = make_house_table(900).drop(columns=["value", "at"])
    return package_release(tmp_path_factory.mktemp("binary"), frame, "linear", target="sold")


@pytest.fixture(scope="module")
def multiclass(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return package_release(
        tmp_path_factory.mktemp("multi"), classes(make_house_table(900)), "linear", target="size class"
    )


def classes(frame: pd.DataFrame) -> pd.DataFrame:
    """Three classes that depend on the value, with noise."""
    value = frame["value"] + np.random.default_rng(1).normal(0, 10, len(frame))
    names = np.select([value < 140, value < 165], ["small", "middle"], "large")
    return frame.drop(columns=["value", "sold", "at"]).assign(**{"size class": names})


def fresh(rows: int = 400, seed: int = 9) -> pd.DataFrame:
    """Rows like those of the training table."""
    return make_house_table(4000).iloc[900:].sample(rows, random_state=seed).reset_index(drop=True)


def measure(case: Case, log: pa.Table, now: dt.datetime = NOW, days: int = 60, **watch: Any) -> QualityResult:
    return measure_quality(
        log, case[1], changed(case, **watch), start=START, end=START + dt.timedelta(days=days), now=now
    )


def changed(case: Case, **watch: Any) -> PipelineConfig:
    return build_config({**case[0].config.model_dump(mode="json"), **watch}, "test")


def replaced(log: pa.Table, name: str, values: Any) -> pa.Table:
    at = log.column_names.index(name)
    return log.set_column(at, name, pa.array(values, log.schema.field(name).type))


def test_quality_like_the_holdout_is_ok(regression: Case) -> None:
    """The metric is that of the logged predictions; the bound is the holdout's value plus the tolerance."""
    rows = fresh()
    log = log_predictions(regression[1], rows, rows["value"])
    quality = measure(regression, log)
    predicted = np.array(log["prediction"].to_pylist())
    assert quality.value.value == pytest.approx(np.abs(rows["value"] - predicted).mean())
    assert quality.value.low is not None
    assert quality.value.high is not None
    assert quality.value.low < quality.value.value < quality.value.high
    assert quality.holdout is not None
    assert quality.bound == pytest.approx(
        max(1.25 * quality.holdout, regression[0].evaluation.metrics["mae"].high or 0)
    )
    assert (quality.rows, quality.due, quality.labelled) == (400, 400, 400)
    assert quality.state == "ok", quality.reason
    assert QualityResult.model_validate_json(quality.model_dump_json()) == quality


def test_a_metric_beyond_its_bound_is_degraded(regression: Case) -> None:
    """The whole interval lies beyond the bound; the reason names both."""
    rows = fresh()
    quality = measure(regression, log_predictions(regression[1], rows, rows["value"] + 20))
    assert quality.state == "degraded"
    assert f"bound: at most {quality.bound:.4g}" in quality.reason


def test_an_interval_that_contains_the_bound_is_unknown(regression: Case) -> None:
    """The state is neither ok nor degraded."""
    rows = fresh(60)
    log = log_predictions(regression[1], rows, rows["value"])
    value = measure(regression, log).value.value
    quality = measure(regression, log, slo={"metric": value})
    assert (quality.state, quality.bound) == ("unknown", value)
    assert "the interval contains the bound" in quality.reason


@pytest.mark.parametrize(
    "metric", ["roc_auc", "average_precision", "f1", "precision", "recall", "accuracy", "log_loss", "brier"]
)
def test_every_metric_of_a_binary_task(binary: Case, metric: str) -> None:
    """Each equals scikit-learn's value; with random labels it is degraded."""
    rows = fresh(800)
    log = log_predictions(binary[1], rows, rows["sold"])
    evaluation = {"metric": metric, "resamples": 100}
    quality = measure(binary, log, evaluation=evaluation)
    contract = Contract.model_validate_json((binary[1] / "contract.json").read_bytes())
    answers = Predictions(
        np.array(log["prediction"].to_pylist(), dtype=object), np.array(log["probabilities"].to_pylist())
    )
    assert quality.value.value == pytest.approx(compute_metrics(rows["sold"].to_numpy(), answers, contract)[metric])
    assert quality.state in ("ok", "unknown"), quality.reason
    worse = log_predictions(binary[1], rows, shuffle_values(rows["sold"], 1.0))
    assert measure(binary, worse, evaluation=evaluation).state == "degraded"


def test_slices(regression: Case) -> None:
    """Slices are those of the evaluation, for columns that are logged unmodified."""
    rows = fresh()
    log = log_predictions(regression[1], rows, rows["value"] + 30 * (rows["a `kind`, of sorts"] == "d"))
    slices = {(each.column, each.value): each for each in measure(regression, log).slices}
    assert {value for column, value in slices if column == "a `kind`, of sorts"} == {"a|b", "<b>c</b>", "d"}
    spoilt, sound = (slices["a `kind`, of sorts", value] for value in ("d", "a|b"))
    assert spoilt.rows == (rows["a `kind`, of sorts"] == "d").sum()
    assert spoilt.metric.value is not None
    assert sound.metric.value is not None
    assert spoilt.metric.value > 20 + sound.metric.value
    without = log.drop_columns(["input.a `kind`, of sorts"])
    assert "a `kind`, of sorts" not in {each.column for each in measure(regression, without).slices}


@pytest.mark.parametrize(
    ("rows", "labelled", "now", "reason"),
    [
        (0, 0, NOW, "there are no predictions in this window"),
        (1, 1, NOW, "1 of 1 predictions that are due have a label, 50 are needed"),
        (100, 20, NOW, "20 of 100 predictions that are due have a label, 50 are needed"),
        (400, 60, NOW, "only 60 of 400 predictions that are due have a label, 50% are needed"),
        (100, 100, START + 12 * HOUR, "none of 100 predictions is old enough to have a label"),
    ],
)
def test_too_few_labels_are_unknown(regression: Case, rows: int, labelled: int, now: dt.datetime, reason: str) -> None:
    """The reason is one of these: no predictions, few labels, only early labels, no label due."""
    requested = fresh(max(rows, 1)).iloc[:rows]
    truth = [value if place < labelled else None for place, value in enumerate(requested["value"])]
    quality = measure(regression, log_predictions(regression[1], fresh(1), [1.0]).slice(0, 0) if not rows else
                    log_predictions(regression[1], requested, truth), now)  # fmt: skip
    assert quality.state == "unknown"
    assert reason in quality.reason


def test_a_sample_of_labels_can_be_enough(regression: Case) -> None:
    """If the config expects labels for few predictions."""
    rows = fresh()
    truth = [value if place % 5 == 0 else None for place, value in enumerate(rows["value"])]
    log = log_predictions(regression[1], rows, truth)
    assert measure(regression, log).state == "unknown"
    assert measure(regression, log, quality={"min_coverage": 0.1}).state == "ok"


def test_only_labels_known_at_the_time_count(regression: Case) -> None:
    """A repeated run for an earlier time ignores later labels and younger predictions."""
    rows = fresh(300)
    log = log_predictions(regression[1], rows, rows["value"])
    now = START + dt.timedelta(days=8)
    quality = measure(regression, log, now)
    assert (quality.rows, quality.due, quality.labelled) == (300, 7 * 24 + 1, 7 * 24 + 1)
    late = replaced(log, "labelled_at", [now + HOUR] * 300)
    assert measure(regression, late, now).labelled == 0
    assert measure(regression, log, days=2).rows == 48


def test_other_versions_and_duplicates_are_left_out(regression: Case) -> None:
    """Rows of another version do not count; a row logged twice counts once and is noted."""
    rows = fresh(200)
    log = log_predictions(regression[1], rows, rows["value"])
    alone = measure(regression, log)
    other = replaced(replaced(log, "version", [1] * 200), "label", rows["value"] + 100)
    both = measure(regression, pa.concat_tables([log, other, log.slice(0, 30)]))
    assert both.value == alone.value
    assert (both.rows, both.state) == (200, alone.state)
    assert "30 rows of requests are logged twice" in both.reason


def test_null_predictions_are_left_out(regression: Case) -> None:
    """The reason has their number; without other predictions the state is unknown."""
    rows = fresh(100)
    log = log_predictions(regression[1], rows, rows["value"])
    arguments = log["prediction"].to_pylist()
    some = measure(regression, replaced(log, "prediction", [None, float("nan"), float("inf"), *arguments[3:]]))
    assert "3 rows have no readable prediction" in some.reason
    assert some.value.value is not None
    none = measure(regression, replaced(log, "prediction", [None] * 100))
    assert none.state == "unknown"
    assert "0 of 100 labelled predictions can be measured" in none.reason


def test_missing_probabilities_are_left_out(binary: Case) -> None:
    """Rows without probabilities are left out only if the metric needs probabilities."""
    rows = fresh(100)
    log = log_predictions(binary[1], rows, rows["sold"])
    arguments = log["probabilities"].to_pylist()
    odd = replaced(log, "probabilities", [None, [float("nan"), 0.5], [0.5], *arguments[3:]])
    assert "3 rows have no probabilities" in measure(binary, odd).reason
    none = replaced(log, "probabilities", [None] * 100)
    assert measure(binary, none).state == "unknown"
    quality = measure(binary, none, evaluation={"metric": "accuracy"})
    assert quality.value.value == np.mean(rows["sold"] == np.array(log["prediction"].to_pylist()))


def test_one_class_only(binary: Case) -> None:
    """A metric that needs two classes is undefined, with the reason; another metric is measured."""
    rows = fresh(800)
    rows = rows[rows["sold"] == "no"].reset_index(drop=True)
    log = log_predictions(binary[1], rows, rows["sold"])
    quality = measure(binary, log)
    assert (quality.state, quality.value.value) == ("unknown", None)
    assert "roc_auc is undefined: every label is 'no'" in quality.reason
    assert measure(binary, log, evaluation={"metric": "accuracy"}).value.value is not None


def test_labels_of_an_unknown_class(binary: Case, multiclass: Case) -> None:
    """A few are noted; many degrade the quality. In a multiclass task each counts as an error."""
    rows = fresh(400)
    log = log_predictions(binary[1], rows, ["perhaps", "perhaps", *rows["sold"][2:]])
    assert "2 labels are of a class that the model does not know ('perhaps')" in measure(binary, log).reason
    quality = measure(binary, log_predictions(binary[1], rows, ["perhaps"] * 40 + [*rows["sold"][40:]]))
    assert quality.state == "degraded"
    assert "10% of 400 labels are of a class that the model does not know" in quality.reason

    truth = classes(rows)["size class"].to_numpy()
    for metric in ("f1", "accuracy", "log_loss", "roc_auc"):
        evaluation = {"metric": metric}
        before = measure(multiclass, log_predictions(multiclass[1], rows, truth), evaluation=evaluation)
        after = measure(
            multiclass, log_predictions(multiclass[1], rows, [*["huge"] * 10, *truth[10:]]), evaluation=evaluation
        )
        assert before.value.value is not None
        assert after.value.value is not None
        sign = -1 if metric == "log_loss" else 1
        assert sign * after.value.value < sign * before.value.value, metric
        assert "10 labels are of a class that the model does not know ('huge')" in after.reason


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_the_log_gives_the_same_result_as_a_table(task: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Logged predictions and added labels are measured like the same rows of a table."""
    case: Case = request.getfixturevalue(task)
    model, rows = open_release(case[1]), fresh(120)
    if task == "multiclass":
        rows = classes(rows)
    sent = (
        rows.astype(object).where(rows.notna(), None).assign(**{"at": rows["at"].astype(str)} if "at" in rows else {})
    )
    log = LoggedModel(tmp_path / "predictions", tmp_path / "labels", ())
    writer = PredictionLog(log.predictions, "w0", convert=False)
    for number, row in enumerate(sent.to_dict("records")):
        at = START.timestamp() + number * 3600
        writer.write(f"r{number}", at, model, [row], model.predict_rows([row]))
    writer.close()
    late = pd.DataFrame({"request_id": [f"r{number}" for number in range(120)], "y": rows[model.contract.target]})
    late.to_csv(tmp_path / "late.csv", index=False)
    labels.add_labels(log, model.contract, labels.LabelFile(tmp_path / "late.csv", column="y"), NOW - HOUR)
    quality = measure(case, labels.read(log, START, NOW))
    by_hand = log_predictions(case[1], rows, rows[model.contract.target])
    assert quality.labelled == 120
    assert quality == measure(case, replaced(by_hand, "labelled_at", [NOW - HOUR] * 120))


def test_labels_of_versions_that_differ_in_type(tmp_path: Path) -> None:
    """If versions have predictions of different types, the log has texts with the same meaning."""
    rows = fresh(100)
    frame = make_house_table(600).drop(columns=["value", "at"])
    numbers = {"yes": 1, "no": 0}
    case = package_release(tmp_path, frame.assign(sold=frame["sold"].map(numbers)), "linear", target="sold")
    log = log_predictions(case[1], rows, rows["sold"].map(numbers))
    texts = log
    for name in ("prediction", "label"):
        assert pa.types.is_integer(log.schema.field(name).type)
        texts = texts.set_column(texts.column_names.index(name), name, log[name].cast(pa.string()))
    assert measure(case, texts) == measure(case, log)


@pytest.mark.parametrize(
    ("metric", "holdout", "rows", "bound"),
    [
        ("roc_auc", 0.95, 10_000, 0.9375), ("roc_auc", 0.6, 10_000, 0.575), ("roc_auc", 1.0, 300, 0.99),
        ("accuracy", 0.9, 10_000, 0.875), ("f1", 0.2, 10_000, 0.15), ("log_loss", 0.4, 10_000, 0.5),
        ("log_loss", 0.0, 300, 0.006), ("brier", 0.1, 10_000, 0.125),
    ],
)  # fmt: skip
def test_bounds(binary: Case, tmp_path: Path, metric: str, holdout: float, rows: int, bound: float) -> None:
    """The acceptable loss near 0, near 1, and within the resolution of the holdout."""
    release = Path(shutil.copytree(binary[1], tmp_path / "release"))
    facts = json.loads((release / "metrics.json").read_text())
    facts["evaluation"]["metrics"][metric] = {"value": holdout, "low": holdout, "high": holdout}
    facts["evaluation"]["baseline"][metric] = 0.6
    facts["evaluation"]["rows"] = rows
    (release / "metrics.json").write_text(json.dumps(facts))
    contract = Contract.model_validate_json((release / "contract.json").read_bytes())
    config = changed(binary, evaluation={"metric": metric})
    assert performance_bound(release, config, contract).bound == pytest.approx(bound)
    facts["evaluation"]["metrics"][metric] = {"value": 0.5, "low": 0.1, "high": 0.9}
    (release / "metrics.json").write_text(json.dumps(facts))
    assert performance_bound(release, config, contract).bound == (0.9 if metric in ("log_loss", "brier") else 0.1)
    configured = changed(binary, evaluation={"metric": metric}, slo={"metric": 0.123})
    assert performance_bound(release, configured, contract).bound == 0.123


def test_the_order_of_the_log_does_not_matter(regression: Case) -> None:
    """Parts have no order; the blocks of time are the same."""
    rows = fresh(200)
    log = log_predictions(regression[1], rows, rows["value"])
    assert measure(regression, log.take(np.random.default_rng(0).permutation(200))) == measure(regression, log)


def test_correlated_errors_widen_the_interval(regression: Case) -> None:
    """The same errors in consecutive rows give a wider interval than scattered ones."""
    rows = fresh(400)
    log = log_predictions(regression[1], rows, rows["value"])
    predicted = np.array(log["prediction"].to_pylist())
    together = np.repeat(np.random.default_rng(3).exponential(4.0, 20), 20)
    scattered = np.random.default_rng(4).permutation(together)
    widths = []
    for errors in (together, scattered):
        value = measure(regression, replaced(log, "label", predicted + errors)).value
        assert value.low is not None
        assert value.high is not None
        widths.append(value.high - value.low)
    assert widths[0] > 2 * widths[1]


def test_logged_rows_without_a_group_are_resampled_one_by_one() -> None:
    config = build_config({"name": "t", "data": {"source": "x", "target": "y", "group": "customer"}}, "t")
    rows = pa.table({INPUT_PREFIX + "customer": ["a", None, "a", None, "b"]})
    assert log_resampling_units(rows, config).tolist() == [0, 2, 0, 3, 1]
