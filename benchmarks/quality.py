"""Compares estimates of quality without labels with measured values, month by month, for models that are not retrained.

Usage: quality.py [bike] [bank] [shuffled]

`bike` and `bank` train the shipped configs on the first part of their sample, and then monitor the model by month;
labels arrive after the month. `shuffled` is `bank` with its rows in random order, so that nothing changes over time and
an estimate should be right. `estimated` is the estimate from the release and the month's rows without labels; `trusted`
whether the input drift of the month and the errors of earlier months allow to use it; `inside` whether the measured
value is within the interval of the estimate.
"""

import argparse
import datetime as dt
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from towline.config import PipelineConfig, Settings, build_config, read_config
from towline.data import splits
from towline.data.schema.inference import infer_contract
from towline.data.source import sources
from towline.data.validation.suite import Validation
from towline.data.workspace import open_workspace
from towline.inference.predictor import Model, open_release
from towline.monitoring.drift.detector import detect
from towline.monitoring.performance.estimate import estimate_performance
from towline.monitoring.performance.quality import measure_quality
from towline.monitoring.results import QualityResult
from towline.provenance import Provenance
from towline.release.packaging import package_release
from towline.training.evaluation.holdout import evaluate
from towline.training.final_fit import fit, refit
from towline.training.history import choose_history
from towline.training.model_selection.cross_validation import baseline_candidate, choose_candidate, cross_validate
from towline.training.result import TrainingResult

REPOSITORY = Path(__file__).parents[1]
TIME = pa.timestamp("us", "UTC")


class Scenario(NamedTuple):
    """The rows before a date, which a model is trained on, and the windows after it."""

    config: PipelineConfig
    past: pd.DataFrame
    windows: list[tuple[str, pd.DataFrame]]


def make_scenario(name: str, folder: Path, metric: str) -> Scenario:
    file, until = {"bike": ("bike_demand", "2011-07-01")}.get(name, ("bank_subscription", "2009-08-01"))
    config = read_config(REPOSITORY / "configs" / f"{file}.yaml")
    raw: dict[str, Any] = config.model_dump(mode="json")
    raw["evaluation"]["metric"] = metric
    rows = pd.read_parquet(REPOSITORY / config.data.source)
    time = config.data.time or ""
    if name == "shuffled":
        rows = rows.sample(frac=1, random_state=0).reset_index(drop=True).drop(columns=time)
        raw["data"]["time"] = None
        past = np.arange(len(rows)) < 20_000
        months = (np.arange(len(rows)) - 20_000) // 1_000 + 1
        labels = pd.Series([f"part {month:02}" for month in months])
    else:
        past = (rows[time] < until).to_numpy()
        labels = rows[time].dt.strftime("%Y-%m")
    path = folder / "past.parquet"
    rows[past].to_parquet(path, index=False)
    raw["data"]["source"] = str(path)
    windows = [(label, part.reset_index(drop=True)) for label, part in rows[~past].groupby(labels[~past])]
    return Scenario(build_config(raw, name), rows[past], windows)


def train_release(config: PipelineConfig, folder: Path) -> Path:
    """Trains as `towline run` does, without servers and gate; returns the folder of the release."""
    settings = Settings(project=folder, store=folder / "store", tracking_uri="", ledger_url="")
    dataset = sources.load_dataset(config.data, folder, settings.store, None)
    work = open_workspace(config, dataset, REPOSITORY, settings.store, None)
    contract = infer_contract(work.table(), config)
    work.save("contract.json", contract)
    work.save("split.json", splits.split_table(work, config))
    candidates = [
        cross_validate(work, config, candidate) for candidate in (baseline_candidate(config), *config.candidates)
    ]
    chosen = choose_candidate(candidates, config, contract.task)
    measured = fit(work, config, chosen, choose_history(work, config, chosen))
    evaluation = evaluate(work, config, measured)
    fitted = refit(work, config, chosen, measured)
    validation = Validation(rules=(), notes=(), failed=0, warned=0, docs="")
    result = TrainingResult(candidates=tuple(candidates), model=fitted, evaluation=evaluation, validation=validation)
    provenance = Provenance(run_key=work.run_key(config), created="-", actor="-", trigger="-")
    packed = package_release(work, config, 1, result, provenance)
    return settings.store / packed.path


def logged_predictions(model: Model, rows: pd.DataFrame, end: dt.datetime) -> pa.Table:
    """The predictions for rows as `labels.read` returns them, with all labels."""
    predictions, count = model.predict_frame(model.to_features(rows)), len(rows)
    given = predictions.probabilities
    names = [column.name for column in model.contract.feature_columns]
    return pa.table(
        {
            "request_id": [f"r{row}" for row in range(count)],
            "row": pa.array([0] * count, pa.int32()),
            "time": pa.array([end - (count - row) * dt.timedelta(minutes=1) for row in range(count)], TIME),
            "version": pa.array([1] * count, pa.int32()),
            **{f"input.{name}": pa.Array.from_pandas(rows[name]) for name in names},
            "prediction": predictions.labels.tolist(),
            "probabilities": pa.array([None] * count if given is None else given.tolist(), pa.list_(pa.float64())),
            "label": model.contract.labels(rows).tolist(),
            "labelled_at": pa.array([end] * count, TIME),
        }
    )


def evaluate_windows(scenario: Scenario, release: Path) -> Iterator[tuple[str, QualityResult, bool]]:
    """The quality of each window, and whether the measured value is within the interval of the estimate."""
    model, config = open_release(release), scenario.config
    past: list[QualityResult] = []
    start = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    for number, (label, rows) in enumerate(scenario.windows):
        end = start + (number + 1) * dt.timedelta(days=60)
        table = logged_predictions(model, rows, end)
        inputs = table.select([name for name in table.column_names if name.startswith("input.")])
        batch = inputs.rename_columns([name.removeprefix("input.") for name in inputs.column_names])
        drift = detect(release, [batch], config.drift)
        guess = estimate_performance(table, release, config, drift, past)
        quality = measure_quality(
            table, release, config, start=end - dt.timedelta(days=60), end=end, now=end + config.quality.delay
        )
        past.append(quality)
        value, low, high = quality.value.value, guess.low, guess.high
        inside = None not in (value, low, high) and low <= value <= high  # type: ignore[operator]
        yield f"{label} | {drift.state}", quality.model_copy(update={"estimate": guess}), inside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", default=["bike", "bank", "shuffled"])
    for name in parser.parse_args().scenarios:
        for metric in ["mae"] if name == "bike" else ["roc_auc", "log_loss"]:
            with tempfile.TemporaryDirectory() as folder:
                scenario = make_scenario(name, Path(folder), metric)
                release = train_release(scenario.config, Path(folder))
                print(f"\n**{name}, {metric}**, trained on {len(scenario.past):,} rows\n")
                print("| window | input | rows | measured | verdict | estimated | off by | inside | trusted |")
                print("|---|---|---|---|---|---|---|---|---|")
                counts: Counter[tuple[bool, bool]] = Counter()
                for label, quality, inside in evaluate_windows(scenario, release):
                    guess, value = quality.estimate, quality.value.value
                    assert guess
                    off = "" if guess.value is None or value is None else f"{guess.value / value - 1:+.0%}"
                    shown = "-" if guess.value is None else f"{guess.value:.3g} [{guess.low:.3g}, {guess.high:.3g}]"
                    words = "yes" if guess.trusted else "no"
                    print(
                        f"| {label} | {quality.rows:,} | {quality.value.text()} | {quality.state} | {shown} | {off} | "
                        f"{'yes' if inside else 'no'} | {words} |",
                        flush=True,
                    )
                    counts[guess.trusted, inside] += 1
                for trusted in (True, False):
                    of = counts[trusted, True] + counts[trusted, False]
                    print(f"\n{'trusted' if trusted else 'not trusted'}: {counts[trusted, True]} of {of} inside")


if __name__ == "__main__":
    main()
