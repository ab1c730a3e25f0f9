"""What estimates without labels are worth: each month's against what came true, of models that are never trained again.

Usage: quality.py [bike] [bank] [dealt]

`bike` and `bank` train the shipped configs on the first part of their sample and then ask that model month by month;
labels come after the month. `dealt` is `bank` with its rows dealt out at random, so that nothing changes over time and
an estimate should be right. The estimate is what the release says without labels; `trusted` what the watch makes of it
from the month's input drift and the months before; `inside` whether the interval held what came true.
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
from towline.data import sources, splits
from towline.data.schema.inference import infer_contract
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


class Story(NamedTuple):
    """A table that is learnt from up to a row, and the windows that follow."""

    config: PipelineConfig
    past: pd.DataFrame
    windows: list[tuple[str, pd.DataFrame]]


def story(name: str, folder: Path, metric: str) -> Story:
    file, until = {"bike": ("bike_demand", "2011-07-01")}.get(name, ("bank_subscription", "2009-08-01"))
    config = read_config(REPOSITORY / "configs" / f"{file}.yaml")
    raw: dict[str, Any] = config.model_dump(mode="json")
    raw["evaluation"]["metric"] = metric
    rows = pd.read_parquet(REPOSITORY / config.data.source)
    time = config.data.time or ""
    if name == "dealt":
        rows = rows.sample(frac=1, random_state=0).reset_index(drop=True).drop(columns=time)
        raw["data"]["time"] = None
        past = np.arange(len(rows)) < 20_000
        months = (np.arange(len(rows)) - 20_000) // 1_000 + 1
        labels = pd.Series([f"deal {month:02}" for month in months])
    else:
        past = (rows[time] < until).to_numpy()
        labels = rows[time].dt.strftime("%Y-%m")
    path = folder / "past.parquet"
    rows[past].to_parquet(path, index=False)
    raw["data"]["source"] = str(path)
    windows = [(label, part.reset_index(drop=True)) for label, part in rows[~past].groupby(labels[~past])]
    return Story(build_config(raw, name), rows[past], windows)


def released(config: PipelineConfig, folder: Path) -> Path:
    """What `towline run` would release, without servers and gate."""
    settings = Settings(project=folder, store=folder / "store", tracking_uri="", ledger_url="")
    dataset = sources.load_dataset(config.data, folder, settings.store, None)
    work = open_workspace(config, dataset, REPOSITORY, settings.store, None)
    contract = infer_contract(work.table(), config)
    work.save("contract.json", contract)
    work.save("split.json", splits.split_table(work, config))
    tried = [cross_validate(work, config, candidate) for candidate in (baseline_candidate(config), *config.candidates)]
    chosen = choose_candidate(tried, config, contract.task)
    measured = fit(work, config, chosen, choose_history(work, config, chosen))
    evaluation = evaluate(work, config, measured)
    fitted = refit(work, config, chosen, measured)
    validation = Validation(rules=(), notes=(), failed=0, warned=0, docs="")
    result = TrainingResult(candidates=tuple(tried), model=fitted, evaluation=evaluation, validation=validation)
    provenance = Provenance(run_key=work.run_key(config), created="-", actor="-", trigger="-")
    packed = package_release(work, config, 1, result, provenance)
    return settings.store / packed.path


def log(model: Model, rows: pd.DataFrame, end: dt.datetime) -> pa.Table:
    """As `labels.read` gives it, all labels known."""
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


def lived(scenario: Story, release: Path) -> Iterator[tuple[str, QualityResult, bool]]:
    """Each window as it turned out, and whether its estimate lies within its interval."""
    model, config = open_release(release), scenario.config
    past: list[QualityResult] = []
    start = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    for number, (label, rows) in enumerate(scenario.windows):
        end = start + (number + 1) * dt.timedelta(days=60)
        table = log(model, rows, end)
        asked = table.select([name for name in table.column_names if name.startswith("input.")])
        batch = asked.rename_columns([name.removeprefix("input.") for name in asked.column_names])
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
    parser.add_argument("stories", nargs="*", default=["bike", "bank", "dealt"])
    for name in parser.parse_args().stories:
        for metric in ["mae"] if name == "bike" else ["roc_auc", "log_loss"]:
            with tempfile.TemporaryDirectory() as folder:
                scenario = story(name, Path(folder), metric)
                release = released(scenario.config, Path(folder))
                print(f"\n**{name}, {metric}**, learnt from {len(scenario.past):,} rows\n")
                print("| window | input | rows | came true | verdict | estimated | off by | inside | trusted |")
                print("|---|---|---|---|---|---|---|---|---|")
                counts: Counter[tuple[bool, bool]] = Counter()
                for label, quality, inside in lived(scenario, release):
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
