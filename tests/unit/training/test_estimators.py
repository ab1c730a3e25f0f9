"""Candidates become pipelines that accept any column that the contract allows."""

import datetime as dt

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.pipeline import Pipeline

from tests.support.checks import at_least_one
from towline.config import Candidate, PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.errors import ConfigError, FitError
from towline.inference.compiled.parity import certify
from towline.training.estimators import build_model, default_search_space, pipeline_of
from towline.training.pipeline_components import TextEncoder

WORDS = np.array([f"word{number}" for number in range(2_000)])
NAMES = ("baseline", "linear", "forest", "boosting")
PARAMS = {
    "boosting": {"max_iter": 60, "early_stopping": False},
    "forest": {"n_estimators": 30},
}  # parameters that the columns need


def _contract(frame: pd.DataFrame, target: str = "y", **config: object) -> Contract:
    return infer_contract(
        frame, PipelineConfig.model_validate({"name": "t", "data": {"source": "x", "target": target}, **config})
    )


def _fitted(candidate: Candidate | str, frame: pd.DataFrame, **config: object) -> tuple[Pipeline, Contract]:
    contract = _contract(frame, **config)
    chosen = _candidate(candidate) if isinstance(candidate, str) else candidate
    model = build_model(chosen, contract, 7)
    return model.fit(contract.features(frame), contract.labels(frame)), contract


def _candidate(name: str) -> Candidate:
    return Candidate(estimator=name, params=PARAMS.get(name, {}))


@pytest.fixture(scope="module")
def mixed() -> pd.DataFrame:
    """Every kind of column, with an unusual name and nulls."""
    rng = np.random.default_rng(0)
    n = 300
    return pd.DataFrame(
        {
            "a number ": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
            'quoted "flag"': rng.random(n) < 0.5,
            "größe, 大小": rng.choice(["s", "m", "l", None], n),
            "many__levels": [f"v{i}" for i in rng.integers(0, 98, n)],
            "when?": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 9000, n), "h"),
            "number__a number ": rng.normal(size=n),
            "y": rng.normal(size=n) * 10,
        }
    )


@pytest.mark.parametrize("name", [*NAMES, "sklearn.svm.SVR"])
def test_every_kind_of_column(mixed: pd.DataFrame, name: str) -> None:
    """All column kinds, nulls and unusual names are accepted; unseen levels and nulls give finite predictions."""
    model, contract = _fitted(name, mixed)
    strange = mixed.head(3).assign(**{"größe, 大小": "xxl", "many__levels": "new", "a number ": None, "when?": pd.NaT})
    assert np.isfinite(model.predict(contract.features(strange))).all()


@pytest.mark.parametrize("name", ["linear", "forest"])
def test_feature_names_are_unique(mixed: pd.DataFrame, name: str) -> None:
    """Columns with similar derived names remain different, and each prepared column has one name."""
    model, contract = _fitted(name, mixed)
    prepared = model["prepare"].transform(contract.features(mixed))
    names = model["prepare"].get_feature_names_out()
    assert prepared.dtype == np.float64
    assert len(set(names)) == len(names) == prepared.shape[1]


@pytest.mark.parametrize("labels", [["a", "b", "c"], [1, 2, 30], [True, False], [0.0, 1.0]])
@pytest.mark.parametrize("name", NAMES)
def test_label_types(name: str, labels: list[object]) -> None:
    """Strings, integers, booleans and whole floats can be classes, also with a category of many levels."""
    rng = np.random.default_rng(1)
    n = 120 if len(labels) == 3 else 80
    frame = pd.DataFrame({"x": rng.normal(size=n), "c": [f"v{i}" for i in rng.integers(0, 30, n)]})
    frame["y"] = (labels * n)[:n]
    model, contract = _fitted(name, frame)
    assert list(model.classes_) == list(contract.classes)
    assert set(model.predict(contract.features(frame)).tolist()) <= set(contract.classes)


@pytest.mark.parametrize("name", NAMES)
def test_column_without_values_in_a_fold(name: str) -> None:
    """A number, a category and a time that are null in all training rows can be fitted, and predicted later."""
    rng = np.random.default_rng(2)
    n = 90
    frame = pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "late": np.r_[np.full(60, np.nan), rng.normal(size=30)],
            "tag": pd.Series([None] * 60 + ["p", "q", "r"] * 10, dtype=object),
            "many": pd.Series([None] * 60 + [f"v{i}" for i in range(30)], dtype=object),
            "seen": [pd.NaT] * 60 + list(pd.date_range("2024-01-01", periods=30, freq="20D")),
            "y": rng.normal(size=n),
        }
    )
    kinds = {"data": {"source": "x", "target": "y", "columns": {"many": "category"}}}
    contract = _contract(frame, **kinds)
    features, labels = contract.features(frame), contract.labels(frame)
    model = build_model(_candidate(name), contract, 7).fit(features[:60], labels[:60])
    assert np.isfinite(model.predict(features)).all()


@pytest.mark.slow
def test_wide_table() -> None:
    """750 columns of mixed kinds and 100 rows, for each estimator."""
    rng = np.random.default_rng(3)
    columns = {f"n {i}": rng.normal(size=100) for i in range(500)}
    columns |= {f"c'{i}": rng.choice(["a", "b", "c"], 100) for i in range(250)}
    frame = pd.DataFrame(columns).assign(y=rng.normal(size=100))
    contract = _contract(frame)
    features, labels = contract.features(frame), contract.labels(frame)
    assert len(contract.feature_columns) == 750
    quick = Candidate(estimator="boosting", params={"max_iter": 5, "early_stopping": False})
    for candidate in (*map(_candidate, NAMES[:3]), quick):
        model = build_model(candidate, contract, 7).fit(features, labels)
        assert model.n_features_in_ == 750
        assert np.isfinite(model.predict(features)).all()


def test_same_seed_gives_the_same_model(mixed: pd.DataFrame) -> None:
    """Two fits with the same seed, and the stored model, give equal predictions."""
    first, contract = _fitted("forest", mixed)
    second, _ = _fitted("forest", mixed)
    stored = skops.io.dumps(second)
    loaded = skops.io.loads(stored, trusted=skops.io.get_untrusted_types(data=stored))
    features = contract.features(mixed)
    np.testing.assert_array_equal(first.predict(features), loaded.predict(features))


def test_calendar_parts(mixed: pd.DataFrame) -> None:
    """Parts are those of the calendar (Monday is 0), and NaN for a null time."""
    contract = _contract(mixed)
    blocks = {name: block for name, block, _ in build_model(Candidate(estimator="forest"), contract, 7)[0].transformers}
    calendar = blocks["calendar"][0]
    times = pd.DataFrame({"when?": pd.to_datetime(["2024-02-29 13:30", None]).astype("datetime64[us]")})
    out = dict(zip(calendar.get_feature_names_out(["when?"]), calendar.fit_transform(times).T, strict=True))
    assert out["when?_hour"][0] == 13
    assert out["when?_weekday"][0] == 3
    assert all(np.isnan(values[1]) for values in out.values())


@pytest.mark.parametrize(
    ("candidate", "what", "remedy"),
    [
        ({"estimator": "forrest"}, "unknown estimator 'forrest'", "did you mean forest?"),
        ({"estimator": "linear", "params": {"alhpa": 1}}, "linear has no parameter 'alhpa'", "did you mean alpha?"),
        ({"estimator": "sklearn.svm.SVRR"}, "sklearn.svm has no class 'SVRR'", "did you mean SVR?"),
        ({"estimator": "nowhere.at.All"}, "cannot import 'nowhere'", "pip install nowhere, or check"),
        ({"estimator": "sklearn.nowhere.All"}, "cannot import 'sklearn.nowhere'", "installed"),
        ({"estimator": ".SVR"}, "cannot import ''", "installed"),
        ({"estimator": "sklearn.svm.SVC"}, "sklearn.svm.SVC is not a scikit-learn regressor", "give a regressor"),
        ({"estimator": "sklearn.cluster.KMeans"}, "is not a scikit-learn regressor", "give a regressor"),
        ({"estimator": "sklearn.decomposition.PCA"}, "it has no fit and predict", "name a class of scikit-learn"),
        ({"estimator": "sklearn.ensemble.VotingRegressor"}, "cannot be created: TypeError", "constructor"),
        ({"estimator": "linear", "weights": "balanced"}, "class weights cannot be used", "remove weights"),
    ],
)
def test_invalid_candidates_are_rejected(candidate: dict[str, object], what: str, remedy: str) -> None:
    """The error has the problem, the key and the remedy."""
    frame = pd.DataFrame({"x": np.arange(100.0) % 7, "y": np.arange(100.0)})
    with pytest.raises(ConfigError) as caught:
        build_model(Candidate.model_validate(candidate), _contract(frame, task="regression"), 7)
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    assert caught.value.where.startswith("candidates.")


def test_class_weights() -> None:
    """Balanced weights are set for an estimator that has them and rejected for others."""
    frame = pd.DataFrame({"x": np.arange(100.0) % 7, "y": ["a", "b"] * 50})
    contract = _contract(frame)
    assert (
        build_model(Candidate(estimator="boosting", weights="balanced"), contract, 7).pipeline["estimate"].class_weight
        == "balanced"
    )
    with pytest.raises(ConfigError, match="has no class_weight"):
        build_model(Candidate(estimator="sklearn.neighbors.KNeighborsClassifier", weights="balanced"), contract, 7)


@pytest.mark.parametrize("name", ["linear", "forest", "boosting"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_words_of_a_text_are_learned(name: str, task: str) -> None:
    """Three words among 2,000 determine the target; a model with only the text predicts it on other rows."""
    rng = np.random.default_rng(5)
    subject = rng.integers(0, 3, 1_500)
    signal = np.array(["excellent", "broken", "average"])[subject]
    texts = [" ".join(rng.permutation([*rng.choice(WORDS, 12), word.upper()])) for word in signal]
    labels = {"binary": subject == 0, "multiclass": signal, "regression": subject * 10.0}[task]
    frame = pd.DataFrame({"review": texts, "y": labels})
    model, contract = _fitted(name, frame.head(1_000))
    rest = frame.tail(500)
    truth, predictions = contract.labels(rest), model.predict(contract.features(rest))
    errors = np.abs(truth - predictions) > 5 if task == "regression" else truth != predictions
    assert errors.mean() < 0.15


@pytest.mark.parametrize("time", ["at", None])
@pytest.mark.parametrize("name", ["linear", "boosting"])
def test_ages_of_dates_are_learned(name: str, time: str | None) -> None:
    """The target is the age of a date at the row's time; without a time column, the date itself."""
    rng = np.random.default_rng(8)
    at = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 700, 600)), unit="D")
    age = rng.integers(0, 3_000, 600)
    frame = pd.DataFrame({"at": at, "signed up": at - pd.to_timedelta(age, unit="D"), "y": age / 100})
    if time is None:
        frame = frame.drop(columns="at").assign(y=(frame["signed up"] - pd.Timestamp("2000-01-01")).dt.days / 100)
    frame.loc[::50, "signed up"] = pd.NaT
    model, contract = _fitted(name, frame, data={"source": "x", "target": "y", "time": time})
    rest = frame["signed up"].notna().to_numpy()
    errors = np.abs(model.predict(contract.features(frame)) - frame["y"])[rest]
    assert errors.mean() < 0.1 * np.abs(frame["y"] - frame["y"].mean()).mean()


@pytest.mark.parametrize("name", ["linear", "boosting"])
def test_a_level_that_changes_with_time_is_learned(name: str) -> None:
    """The time of the row is a feature, so new rows are predicted at the newest level; ``ignore`` excludes it."""
    rng = np.random.default_rng(8)
    frame = pd.DataFrame({"at": pd.date_range("2024-01-01", periods=600), "x": rng.normal(size=600)})
    frame["y"] = frame["x"] + np.arange(600) / 50
    errors = {}
    for columns in ({}, {"at": "ignore"}):
        data = {"source": "x", "target": "y", "time": "at", "columns": columns}
        model, contract = _fitted(name, frame.head(550), data=data)
        assert {column.name for column in contract.input_columns} == ({"x"} if columns else {"at", "x"})
        new = frame.tail(50)
        errors[bool(columns)] = np.abs(model.predict(contract.features(new)) - new["y"]).mean()
    assert errors[False] < 0.3 * errors[True]


@pytest.mark.parametrize("name", ["linear", "boosting"])
def test_dates_that_stand_for_an_open_end_have_no_age(name: str) -> None:
    """9999-12-31 and 0001-01-01 are no ages of thousands of years; the compiled model agrees for rows and columns."""
    rng = np.random.default_rng(8)
    at = pd.Series(pd.date_range("2024-01-01", periods=600)).astype("datetime64[us]")
    age = rng.integers(0, 1_000, 600)
    end = at - pd.to_timedelta(age, unit="D")
    end[::4], end[1::40] = dt.datetime(9999, 12, 31), dt.datetime(1, 1, 1)  # noqa: DTZ001 - naive UTC
    known = (end < at) & (end > pd.Timestamp("1900-01-01"))
    frame = pd.DataFrame({"at": at, "until": end, "y": np.where(known, age / 100, 20.0)})
    model, contract = _fitted(name, frame, data={"source": "x", "target": "y", "time": "at"})
    features = contract.features(frame)
    errors = np.abs(model.predict(features) - frame["y"])
    assert errors[known].mean() < 0.5
    certificate, _ = certify(model, contract, {"train": features}, seed=1)
    assert certificate.compiled, certificate.reason


@pytest.mark.parametrize(("param", "is_good"), [(True, False), ("extrapolate", True)])
def test_a_linear_model_may_extrapolate_the_trend(param: bool | str, is_good: bool) -> None:
    """By default later times count as the newest time of the training."""
    frame = pd.DataFrame({"at": pd.date_range("2024-01-01", periods=600)})
    frame["x"] = np.random.default_rng(8).normal(size=600)
    frame["y"] = frame["x"] + np.arange(600) / 10
    data = {"source": "x", "target": "y", "time": "at"}
    candidate = Candidate(estimator="linear", params={"time_trend": param})
    model, contract = _fitted(candidate, frame.head(500), data=data)
    new = frame.tail(20)
    assert (np.abs(model.predict(contract.features(new)) - new["y"]).mean() < 0.5) == is_good
    late = frame.tail(1).assign(at=[pd.Timestamp("2034-01-01")])
    assert model.predict(contract.features(late))[0] < 50 * 1.3 + late["x"].iloc[0], "it does not grow for ever"


def test_a_fold_with_two_of_three_classes_and_many_levels() -> None:
    """The target encoder is fitted on the classes that occur."""
    rng = np.random.default_rng(9)
    frame = pd.DataFrame({"town": rng.choice([f"t{number}" for number in range(60)], 900), "x": rng.normal(size=900)})
    frame["y"] = np.where(frame["x"] > 0, "a", "b")
    frame.loc[850:, "y"] = "c"
    contract = _contract(frame)
    head = frame.head(800)
    for name in ("linear", "boosting"):
        model = build_model(_candidate(name), contract, 7).fit(contract.features(head), contract.labels(head))
        assert (model.predict(contract.features(head)) == head["y"]).mean() > 0.95


def test_scores_of_texts_are_cross_fitted() -> None:
    """The target does not depend on the texts: cross-fitted scores of the training rows do not correlate with it."""
    rng = np.random.default_rng(6)
    texts = pd.DataFrame({"t": [" ".join(rng.choice(WORDS, 12)) for _ in range(1_000)]})
    target = rng.normal(size=1_000)
    encoder = TextEncoder("regression", random_state=0)
    score = encoder.fit_transform(texts, target)[:, -1]
    assert abs(np.corrcoef(score, target)[0, 1]) < 0.15
    assert abs(np.corrcoef(encoder.transform(texts)[:, -1], target)[0, 1]) > 0.5  # scores without cross-fitting


def test_texts_of_few_phrases_have_few_components() -> None:
    """A text with half of a phrase is no extreme value, though no text of the training rows has the half alone."""
    texts = ["washed in water", "dried in the sun", "peeled by hand"]
    frame = pd.DataFrame({"t": [f"{texts[row % 3]} {row:05x}" for row in range(1_200)], "x": range(1_200)})
    frame["y"] = np.arange(1_200) % 3 + np.random.default_rng(8).normal(size=1_200)
    model, contract = _fitted("linear", frame, data={"source": "x", "target": "y", "columns": {"t": "text"}})
    halves = pd.DataFrame({"t": ["washed", "sun", "by hand in water"], "x": 7, "y": 0.0})
    assert np.abs(model.predict(contract.features(halves))).max() < 100


@pytest.mark.parametrize(
    "texts",
    [
        [None] * 90 + ["a text once"] * 30,
        [f"{row:x}" for row in range(120)],
        ["日本語のテキスト" + "々" * row for row in range(120)],
    ],
    ids=["almost all null", "nothing repeated", "no spaces"],
)
def test_texts_of_any_form(texts: list[str | None]) -> None:
    frame = pd.DataFrame({"t": pd.Series(texts, dtype=object), "x": range(120), "y": [row % 2 for row in range(120)]})
    for name in ("linear", "boosting"):
        model, contract = _fitted(name, frame, data={"source": "x", "target": "y", "columns": {"t": "text"}})
        assert np.isfinite(model.predict_proba(contract.features(frame))).all()


def test_a_table_without_features_is_rejected() -> None:
    """The error has the note of each ignored column."""
    frame = pd.DataFrame({"constant": [1.0] * 100, "y": np.arange(100.0) * 1.5})
    with pytest.raises(FitError, match="there is no feature column") as caught:
        build_model(Candidate(estimator="linear"), _contract(frame), 7)
    assert caught.value.details == ("constant: constant",)


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_default_search_spaces_have_existing_parameters(task: str) -> None:
    """Every parameter of a default search space is a parameter of the estimator."""
    frame = pd.DataFrame({"x": np.arange(90.0) % 7, "y": [1, 2, 3] * 30})
    for name in at_least_one(NAMES[1:]):
        candidate = Candidate(estimator=name)
        params = dict.fromkeys(default_search_space(candidate, task), 1)
        assert params
        build_model(candidate, _contract(frame, task=task), 7, params)


@pytest.mark.parametrize(
    ("classes", "params", "iterations"), [(20, {}, 500), (50, {}, 200), (50, {"max_iter": 300}, 300)]
)
def test_boosting_of_many_classes_has_fewer_iterations(classes: int, params: dict[str, int], iterations: int) -> None:
    """Boosting has at most 10,000 trees, unless the config sets the number of iterations."""
    frame = pd.DataFrame({"a": np.arange(400) % 37 / 3, "y": [f"class {number % classes}" for number in range(400)]})
    model = build_model(Candidate(estimator="boosting", params=params), _contract(frame), 7)
    assert pipeline_of(model).named_steps["estimate"].max_iter == iterations
