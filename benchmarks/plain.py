"""The same job as `towline run`, as a plain script: scikit-learn, Great Expectations and MLflow by hand.

Usage: plain.py bike|bank SUITE.json STORE_FOLDER

The same candidates, fits, expectations, plots and MLflow records; no Prefect, no towline. What towline does in addition
(bootstrap intervals, leak search, release, smoke test, gate, ledger) is left out here.
"""

import json
import sys
from pathlib import Path

import great_expectations as gx
import matplotlib as mpl
import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
from great_expectations.data_context.types.base import ProgressBarsConfig
from matplotlib import pyplot as plt
from mlflow.models import infer_signature
from sklearn import metrics
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import TimeSeriesSplit, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from skops.io import dumps, get_untrusted_types

mpl.use("Agg")
REPOSITORY = Path(__file__).parents[1]
SEED = 42
REGRESSION = {"mae": "neg_mean_absolute_error", "rmse": "neg_root_mean_squared_error", "r2": "r2"}
REGRESSION["mape"] = "neg_mean_absolute_percentage_error"
BINARY = {name: name for name in ("roc_auc", "average_precision", "accuracy")}
BINARY |= {"log_loss": "neg_log_loss", "brier": "neg_brier_score"}


LEVEL, HOLDOUT, FOLDS = 7, 14, 3  # days, days, parts


def fitted(sample: str, chosen: str, features: pd.DataFrame, target: pd.Series, times: pd.Series | None):
    """The chosen candidate; of the bikes with all rows at the newest level of demand."""
    if times is None:
        return candidates(sample, features)[chosen].fit(features, target)
    days = (times - times.min()).dt.total_seconds().to_numpy() / 86_400
    fold, day = (days // (LEVEL / 4)).astype(int) % FOLDS, days.astype(int)
    expected = np.empty(len(target))
    for number in range(FOLDS):
        model = candidates(sample, features)[chosen].fit(features[fold != number], target[fold != number])
        expected[fold == number] = model.predict(features[fold == number])
    near = 0.5 ** (np.abs(np.subtract.outer(np.arange(day.max() + 1), np.arange(day.max() + 1))) / LEVEL)
    level = (near @ np.bincount(day, target)) / (near @ np.bincount(day, expected))
    return candidates(sample, features)[chosen].fit(features, target * level[-1] / level[day])


def load(sample: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    if sample == "bike":
        table = pd.read_parquet(REPOSITORY / "data" / "bike_hourly.parquet").drop(columns=["casual", "registered"])
        return table, table.drop(columns=["rentals", "datetime"]), table["rentals"].astype(float)
    table = pd.read_parquet(REPOSITORY / "data" / "bank_marketing.parquet").drop(columns=["id", "duration"])
    times = table["date"].dt
    features = table.drop(columns=["subscribed", "date"]).assign(
        month=times.month, weekday=times.weekday, day=times.day
    )
    return table, features, table["subscribed"].map({"no": 0, "yes": 1})


def validate(table: pd.DataFrame, suite: Path) -> dict:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    expectations = [
        {k: v for k, v in e.items() if k in ("type", "kwargs", "meta")}
        for e in json.loads(suite.read_text())["expectations"]
    ]
    made = gx.ExpectationSuite(name="suite", expectations=expectations)
    asset = context.data_sources.add_pandas("pandas").add_dataframe_asset("table")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    result = batch.validate(made, result_format="BASIC")
    if not result.success:
        sys.exit("the table breaks its contract")
    return result.to_json_dict()


def candidates(sample: str, features: pd.DataFrame) -> dict:
    numeric = list(features.select_dtypes("number"))
    category = [name for name in features if name not in numeric]
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)

    def prepared(*scale):
        impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        return ColumnTransformer([("number", make_pipeline(impute, *scale), numeric), ("category", one_hot, category)])

    if sample == "bike":
        forest = RandomForestRegressor(
            min_samples_leaf=3, max_features=1 / 3, max_leaf_nodes=4000, random_state=SEED, n_jobs=-1
        )
        return {
            "baseline": DummyRegressor(strategy="median"),
            "linear": make_pipeline(prepared(StandardScaler()), Ridge()),
            "forest": make_pipeline(prepared(), forest),
            "boosting": make_pipeline(
                prepared(),
                HistGradientBoostingRegressor(
                    loss="absolute_error", max_iter=200, early_stopping=False, random_state=SEED
                ),
            ),
        }
    forest = RandomForestClassifier(
        min_samples_leaf=5, max_leaf_nodes=4000, class_weight="balanced", random_state=SEED, n_jobs=-1
    )
    return {
        "baseline": DummyClassifier(strategy="prior"),
        "linear": make_pipeline(prepared(StandardScaler()), LogisticRegression(max_iter=1000, random_state=SEED)),
        "forest": make_pipeline(prepared(), forest),
        "boosting": make_pipeline(
            prepared(), HistGradientBoostingClassifier(max_iter=200, early_stopping=False, random_state=SEED)
        ),
    }


def evaluate(sample: str, model, features: pd.DataFrame, truth: pd.Series) -> dict[str, float]:
    if sample == "bike":
        predicted = model.predict(features)
        return {
            "mae": metrics.mean_absolute_error(truth, predicted),
            "rmse": metrics.root_mean_squared_error(truth, predicted),
            "r2": metrics.r2_score(truth, predicted),
            "mape": metrics.mean_absolute_percentage_error(truth, predicted),
        }
    predicted, share = model.predict(features), model.predict_proba(features)[:, 1]
    return {
        "roc_auc": metrics.roc_auc_score(truth, share),
        "average_precision": metrics.average_precision_score(truth, share),
        "f1": metrics.f1_score(truth, predicted),
        "precision": metrics.precision_score(truth, predicted),
        "recall": metrics.recall_score(truth, predicted),
        "accuracy": metrics.accuracy_score(truth, predicted),
        "log_loss": metrics.log_loss(truth, share),
        "brier": metrics.brier_score_loss(truth, share),
    }


def draw(sample: str, model, features: pd.DataFrame, truth: pd.Series, scores: dict, folder: Path) -> None:
    folder.mkdir()

    def save(name: str) -> None:
        plt.tight_layout()
        plt.savefig(folder / f"{name}.png", dpi=150)
        plt.close()

    metric = "test_mae" if sample == "bike" else "test_roc_auc"
    plt.boxplot([np.abs(score[metric]) for score in scores.values()], tick_labels=list(scores))
    save("fold_scores")
    some = np.random.default_rng(SEED).choice(len(features), min(2000, len(features)), replace=False)
    scoring = "neg_mean_absolute_error" if sample == "bike" else "roc_auc"
    importances = permutation_importance(
        model, features.iloc[some], truth.iloc[some], scoring=scoring, n_repeats=3, random_state=SEED
    )
    plt.barh(features.columns, importances.importances_mean)
    save("importance")
    by = "season" if sample == "bike" else "job"
    predicted = model.predict(features)
    slices = (predicted != truth).groupby(features[by]).mean() if sample == "bank" else (predicted - truth).abs()
    plt.barh(*zip(*(slices if sample == "bank" else slices.groupby(features[by]).mean()).items(), strict=True))
    save("slices")
    if sample == "bike":
        metrics.PredictionErrorDisplay.from_predictions(truth, predicted, kind="residual_vs_predicted", subsample=None)
        save("residuals")
        metrics.PredictionErrorDisplay.from_predictions(truth, predicted, kind="actual_vs_predicted", subsample=None)
        save("predicted_vs_actual")
        plt.plot(np.arange(len(truth)), truth)
        plt.plot(np.arange(len(truth)), predicted)
        save("over_time")
        return
    from sklearn.calibration import CalibrationDisplay

    share = model.predict_proba(features)[:, 1]
    metrics.ConfusionMatrixDisplay.from_predictions(truth, predicted)
    save("confusion_matrix")
    metrics.RocCurveDisplay.from_predictions(truth, share)
    save("roc")
    metrics.PrecisionRecallDisplay.from_predictions(truth, share)
    save("precision_recall")
    CalibrationDisplay.from_predictions(truth, share, n_bins=10)
    save("calibration")


def main() -> None:
    sample, suite, store = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    name = "bike-demand" if sample == "bike" else "bank-subscription"
    table, features, target = load(sample)
    checked = validate(table, suite)
    times = table["datetime"] if sample == "bike" else None
    # both tables are in the order of time
    held = (times > times.max() - pd.Timedelta(days=HOLDOUT)).sum() if times is not None else len(table) // 5
    cut = len(table) - int(held)
    train, test = features.iloc[:cut], features.iloc[cut:]
    y_train, y_test = target.iloc[:cut], target.iloc[cut:]
    folds = TimeSeriesSplit(5)
    scoring, best, sign = (REGRESSION, "test_mae", 1) if sample == "bike" else (BINARY, "test_roc_auc", -1)
    scores = {
        label: cross_validate(model, train, y_train, cv=folds, scoring=scoring)
        for label, model in candidates(sample, features).items()
    }
    chosen = min(scores, key=lambda label: sign * np.abs(scores[label][best]).mean())
    model = fitted(sample, chosen, train, y_train, None if times is None else times.iloc[:cut])
    test_metrics = evaluate(sample, model, test, y_test)
    plots = store / "plots"
    draw(sample, model, test, y_test, scores, plots)
    model = fitted(sample, chosen, features, target, times)  # the released model is fitted on all rows

    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None:
        mlflow.create_experiment(name, artifact_location=str(store / "artifacts"))
    mlflow.set_experiment(name)
    with mlflow.start_run():
        mlflow.log_params({"candidate": chosen, "rows": len(table), "seed": SEED, **model[-1].get_params()})
        mlflow.log_metrics(test_metrics)
        mlflow.log_metrics({f"cv_{key}_mean": float(np.mean(value)) for key, value in scores[chosen].items()})
        mlflow.log_input(mlflow.data.from_pandas(table, name=name), context="training")
        mlflow.log_dict(checked, "validation.json")
        mlflow.log_artifacts(str(plots), "plots")
        for label, score in scores.items():
            with mlflow.start_run(run_name=label, nested=True):
                mlflow.log_param("candidate", label)
                for key, values in score.items():
                    for step, value in enumerate(values):
                        mlflow.log_metric(key, float(value), step=step)
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            serialization_format="skops",
            skops_trusted_types=get_untrusted_types(data=dumps(model)),
            signature=infer_signature(
                test.head().astype(dict.fromkeys(test.select_dtypes("number"), float)), y_test.head()
            ),
            input_example=test.head(),
            pip_requirements=["scikit-learn", "pandas", "skops"],
            registered_model_name=name,
        )
        mlflow.MlflowClient().set_registered_model_alias(name, "champion", str(info.registered_model_version))
    print(json.dumps({"chosen": chosen, **{key: round(float(value), 4) for key, value in test_metrics.items()}}))


if __name__ == "__main__":
    main()
