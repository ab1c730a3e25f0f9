"""Fits the classifier of columns on labelled columns, and writes it into the package.

    python benchmarks/kind_model.py labelled_columns.csv.gz

The file is the training split of the SortingHat benchmark: a row for each column of some CSV file, with its name,
counts, moments, five values, the file (Record_id) and the kind (y_act). It is not part of this repository.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import lightgbm
import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold

from towline.data.schema.detection.kind_model import (
    BUCKETS,
    FILE,
    LABELLED_KINDS,
    ColumnStatistics,
    KindModel,
    compute_features,
    hash_letters,
    naive_bayes,
)  # fmt: skip

PARAMETERS = {
    "n_estimators": 120, "learning_rate": 0.08, "num_leaves": 16, "max_bin": 63, "min_child_samples": 10,
    "subsample": 0.8, "subsample_freq": 1, "colsample_bytree": 0.5, "reg_lambda": 1.0, "n_jobs": 1, "verbose": -1,
    "random_state": 0, "deterministic": True, "force_row_wise": True,
}  # fmt: skip
SMOOTHING = 0.3
FOLDS = 5  # of the first stage: its outputs are those for columns of files it has not been fitted on


class LabelledColumns(NamedTuple):
    """Columns with their kind, as positions in ``LABELLED_KINDS``, and their file."""

    columns: list[ColumnStatistics]
    kinds: np.ndarray
    files: np.ndarray

    def select(self, rows: np.ndarray) -> "LabelledColumns":
        return LabelledColumns([self.columns[row] for row in rows], self.kinds[rows], self.files[rows])


def read_labelled_columns(path: Path) -> LabelledColumns:
    texts = [f"sample_{place}" for place in range(1, 6)]
    rows = pd.read_csv(path, dtype=dict.fromkeys([*texts, "Attribute_name"], str), keep_default_na=False)
    for name in ("mean", "std_dev", "min_val", "max_val"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce").fillna(0.0)
    columns = [
        ColumnStatistics(
            row.Attribute_name, row.total_vals, row.num_nans, row.num_of_dist_val,
            row.mean, row.std_dev, row.min_val, row.max_val, tuple(getattr(row, text) for text in texts),
        )
        for row in rows.itertuples(index=False)
    ]  # fmt: skip
    kinds = rows["y_act"].map(LABELLED_KINDS.index).to_numpy()
    return LabelledColumns(columns, kinds, rows["Record_id"].to_numpy())


class _Inputs(NamedTuple):
    features: np.ndarray
    letters: tuple[list[np.ndarray], list[np.ndarray]]


def compute_inputs(labelled: LabelledColumns) -> _Inputs:
    names, values = zip(*[hash_letters(column) for column in labelled.columns], strict=True)
    return _Inputs(np.stack([compute_features(column) for column in labelled.columns]), (list(names), list(values)))


def _fit_letters(buckets: list[np.ndarray], kinds: np.ndarray, rows: np.ndarray) -> np.ndarray:
    counts = np.full((len(LABELLED_KINDS), BUCKETS), SMOOTHING)
    for row in rows:
        counts[kinds[row], buckets[row]] += 1
    return np.log(counts / counts.sum(axis=1, keepdims=True)).astype(np.float16)


def _first_stage(inputs: _Inputs, tables: list[np.ndarray], priors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            np.concatenate(
                [naive_bayes(t.astype(float), priors, b[row]) for t, b in zip(tables, inputs.letters, strict=True)]
            )
            for row in rows
        ]
    )


def fit(inputs: _Inputs, kinds: np.ndarray, files: np.ndarray, rows: np.ndarray) -> KindModel:
    """The classifier, fitted on some of the columns."""
    return KindModel(fit_arrays(inputs, kinds, files, rows))


def fit_arrays(inputs: _Inputs, kinds: np.ndarray, files: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    priors = np.log(np.bincount(kinds[rows], minlength=len(LABELLED_KINDS)) / len(rows) + 1e-9)
    first = np.empty((len(rows), 2 * len(LABELLED_KINDS)))
    for inner, outer in GroupKFold(FOLDS, shuffle=True, random_state=1).split(rows, groups=files[rows]):
        tables = [_fit_letters(buckets, kinds, rows[inner]) for buckets in inputs.letters]
        first[outer] = _first_stage(inputs, tables, priors, rows[outer])
    tables = [_fit_letters(buckets, kinds, rows) for buckets in inputs.letters]
    model = lightgbm.LGBMClassifier(**PARAMETERS)
    model.fit(np.hstack([inputs.features[rows], first]), kinds[rows])
    return {"letters": np.stack(tables), "priors": priors, **_dump_trees(model.booster_)}


def _dump_trees(booster: lightgbm.Booster) -> dict[str, np.ndarray]:
    nodes: list[tuple[int, float, int, int, float]] = []

    def add(tree: dict) -> int:
        place = len(nodes)
        nodes.append((-1, 0.0, place, place, tree.get("leaf_value", 0.0)))
        if "split_feature" in tree:
            left, right = add(tree["left_child"]), add(tree["right_child"])
            nodes[place] = (tree["split_feature"], tree["threshold"], left, right, 0.0)
        return place

    roots = [add(tree["tree_structure"]) for tree in booster.dump_model()["tree_info"]]
    feature, threshold, left, right, value = zip(*nodes, strict=True)
    return {
        "roots": np.array(roots, np.int32), "feature": np.array(feature, np.int16),
        "threshold": np.array(threshold, np.float64), "left": np.array(left, np.int32),
        "right": np.array(right, np.int32), "value": np.array(value, np.float32),
    }  # fmt: skip


if __name__ == "__main__":
    labelled = read_labelled_columns(Path(sys.argv[1]))
    everything = np.arange(len(labelled.columns))
    np.savez_compressed(FILE, **fit_arrays(compute_inputs(labelled), labelled.kinds, labelled.files, everything))
    print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} kB, fitted on {len(everything):,} columns")
