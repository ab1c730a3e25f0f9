"""Kinds of columns and tasks of targets that do not follow from the type of the values alone."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from towline.config import DataConfig, TrainingConfig
from towline.data.schema.contract import Column, Contract
from towline.data.schema.detection.kind_model import LABELLED_KINDS, KindModel, describe_column
from towline.data.schema.detection.task import infer_task
from towline.data.schema.inference import infer_contract
from towline.errors import ConfigError

ROWS = 400
RANDOM = np.random.default_rng(3)
DAYS = pd.date_range("2024-01-03", periods=ROWS, freq="36h")
WORDS = ["the", "room", "was", "clean", "and", "our", "staff", "very", "friendly", "but", "breakfast", "is", "cold"]


def infer(name: str, values: Any, **data: Any) -> Contract:
    frame = pd.DataFrame({"y": RANDOM.normal(size=ROWS), name: values})
    return infer_contract(frame, TrainingConfig(name="x", data=DataConfig(source="t.csv", target="y", **data)))


def column(name: str, values: Any, **data: Any) -> Column:
    return infer(name, values, **data).columns[1]


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("temperature", RANDOM.normal(20, 5, ROWS), "numeric"),
        ("income", RANDOM.integers(10_000, 90_000, ROWS), "numeric"),
        ("country", RANDOM.choice(["France", "Spain", "Italy", "Chile", "Japan"], ROWS), "categorical"),
        ("status_code", RANDOM.integers(1, 5, ROWS), "categorical"),
        ("date", DAYS.strftime("%m/%d/%y"), "datetime"),
        ("review", [" ".join(RANDOM.choice(WORDS, 18)) + "." for _ in range(ROWS)], "sentence"),
        ("homepage", [f"https://www.example.org/shop/{row}.html" for row in range(ROWS)], "url"),
        ("price", [f"${row * 37 % 900 + 100},{row % 900 + 100}.00" for row in range(ROWS)], "embedded-number"),
        ("tags", [f"['red', 'blue', '{row}']" for row in range(ROWS)], "list"),
        ("customer_id", RANDOM.permutation(ROWS * 10)[:ROWS], "not-generalizable"),
        ("version", ["1.0.3"] * ROWS, "not-generalizable"),
    ],
)
def test_the_classifier_names_the_kind_of_a_column(name: str, values: Any, kind: str) -> None:
    probabilities = KindModel.read().predict([describe_column(pd.Series(values, name=name))])
    assert probabilities.sum() == pytest.approx(1)
    assert LABELLED_KINDS[int(probabilities.argmax())] == kind


def test_the_classifier_gives_equal_answers_for_one_column_and_for_many() -> None:
    """The kind of a column does not depend on the other columns."""
    columns = [
        describe_column(pd.Series(RANDOM.normal(size=50), name="a")),
        describe_column(pd.Series(["x", None, "y"], name="b")),
        describe_column(pd.Series([], dtype=object, name="c")),
        describe_column(pd.Series([np.inf, np.nan, 1e300, -1e300], name="")),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = KindModel.read().predict(columns)
    assert np.isfinite(together).all()
    np.testing.assert_array_equal(together, np.concatenate([KindModel.read().predict([each]) for each in columns]))


def test_whole_numbers_that_are_codes_are_a_category_and_say_so() -> None:
    """A declared kind is kept; counts, years and numbers with fractions stay numeric."""
    codes = column("status_code", RANDOM.integers(1, 5, ROWS))
    assert (codes.kind, codes.role, codes.levels) == ("category", "feature", 4)
    assert "codes" in codes.reason
    assert column("status_code", RANDOM.integers(1, 5, ROWS), columns={"status_code": "numeric"}).kind == "numeric"
    for name, values in (
        ("year", RANDOM.integers(1990, 1996, ROWS)),
        ("income", RANDOM.integers(10_000, 90_000, ROWS)),
        ("temperature", RANDOM.normal(20, 5, ROWS)),
    ):
        assert (column(name, values).kind, column(name, values).reason) == ("numeric", "")


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("review", [" ".join(RANDOM.choice(WORDS, 9)) + f" {row % 150}." for row in range(ROWS)], "text"),
        ("homepage", [f"https://www.example.org/{row % 150}.html" for row in range(ROWS)], "web pages"),
        ("link", [f"https://www.example.org/{RANDOM.choice(WORDS)}/{row}" for row in range(ROWS)], "web pages"),
    ],
)
def test_free_text_and_addresses_are_text_with_the_reason(name: str, values: Any, word: str) -> None:
    text = column(name, values)
    assert (text.kind, text.role) == ("text", "feature")
    assert word in text.reason
    assert column(name, values, columns={name: "ignore"}).role == "ignored"


def test_numbers_with_other_texts_among_them_are_no_classes() -> None:
    """Detection limits such as <0.5 are named, with the remedy; numbers with leading zeros alone are classes."""
    amounts = [f"{value:.2f}" for value in RANDOM.uniform(0.5, 9, 200)] + ["<0.5"] * 60
    with pytest.raises(ConfigError, match=r"numbers, and other texts such as '<0\.5'") as caught:
        infer_task(pd.Series(amounts, name="lead"))
    assert "data.columns: {lead: numeric}" in caught.value.remedy
    assert infer_task(pd.Series([f"{row % 40:03}" for row in range(400)], name="zone")).task == "multiclass"


@pytest.mark.parametrize(
    ("name", "values", "is_identifier"),
    [
        ("population", np.sort(RANDOM.lognormal(10, 1, ROWS).astype(int) * ROWS + np.arange(ROWS))[::-1], False),
        ("world_rank", np.arange(1, ROWS + 1), False),
        ("week", np.arange(1, ROWS + 1), False),
        ("order_no", np.cumsum(RANDOM.integers(1, 9, ROWS)) + 70_000, True),
        ("record", np.cumsum(RANDOM.integers(1, 9, ROWS)) + 70_000, True),
        ("obs", np.arange(1, ROWS + 1), True),
        ("Unnamed: 0", np.arange(ROWS), True),
    ],
)
def test_different_whole_numbers_are_identifiers_or_quantities(name: str, values: Any, is_identifier: bool) -> None:
    """A table may be sorted by a quantity, so the order of the rows alone makes no identifier."""
    assert ("identifies the row" in column(name, values).note) == is_identifier


def test_an_identifier_with_nulls_is_left_out() -> None:
    """As numbers and as text."""
    texts = pd.Series([f"C{row:06}" for row in RANDOM.permutation(ROWS)], dtype=object)
    for ids in (texts, pd.Series(RANDOM.permutation(ROWS * 10)[:ROWS] + 100_000.0)):
        ids[::50] = None
        assert "identifies the row" in column("customer_id", ids).note


@pytest.mark.parametrize(("repeated", "is_identifier"), [(12, True), (200, False)])
def test_keys_of_which_few_repeat_are_left_out(repeated: int, is_identifier: bool) -> None:
    """The words of hashes say nothing about other rows; codes of products that repeat may."""
    letters = np.array(list("abcdefghkmnpqrstuvwxyzABCDEFGHKLMNPQRSTUVWXYZ0123456789"))
    keys = np.array(["7a" + "".join(RANDOM.choice(letters, 20)) for _ in range(ROWS)], dtype=object)
    keys[-repeated:] = keys[:repeated]
    assert ("identifies the row" in column("track_id", keys).note) == is_identifier


# random counts, which are not smooth
_COMPLAINTS = [274, 201, 223, 314, 250, 275, 238, 208, 129, 101, 68, 44, 26, 9, 14, 1]


def targets() -> list[tuple[str, list[float], str]]:
    zoo = np.repeat([1, 2, 3, 4, 5, 6, 7], [41, 20, 5, 13, 4, 8, 10])
    return [
        ("y", zoo.tolist(), "multiclass"),
        ("class", list(range(10)) * 30, "multiclass"),
        ("y", [1, 2, 3] * 10, "multiclass"),
        ("y", [-1, 0, 1] * 10, "multiclass"),
        ("kind", np.repeat([1, 2, 3, 5, 6, 7], [70, 76, 17, 13, 9, 29]).tolist(), "multiclass"),
        ("species", list(range(32)) * 20, "multiclass"),
        ("y", [0.0, 1.0] * 20, "binary"),
        ("visits", np.repeat([0, 1, 2], [80, 30, 5]).tolist(), "regression"),
        ("y", RANDOM.poisson(1.5, 3_000).tolist(), "regression"),
        ("target", np.repeat(range(10), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]).tolist(), "multiclass"),
        ("y", np.repeat(range(1, 8), [499, *[500] * 6]).tolist(), "multiclass"),
        ("price_range", [0, 1, 2, 3] * 50, "multiclass"),
        ("electric_range", [0, *range(20, 39)] * 20, "regression"),
        ("complaints", np.repeat(range(16), _COMPLAINTS).tolist(), "regression"),
        ("y", np.repeat([1, 2, 3, 4, 5], [102, 130, 176, 169, 158]).tolist(), "regression"),
        ("star_rating", [1, 2, 3, 4, 5] * 50, "regression"),
        ("class_size", list(range(1, 9)) * 50, "regression"),
        ("y", [0, 2, 4, 6, 8, 10] * 50, "regression"),
        ("y", [0.5, 1.0, 1.5, 2.0] * 50, "regression"),
        ("y", list(range(60)), "regression"),
        ("class", list(range(60)), "regression"),
    ]


@pytest.mark.parametrize(("name", "values", "task"), targets())
def test_numbers_are_classes_or_quantities(name: str, values: list[float], task: str) -> None:
    """By their name, their smallest value (0 or 1) and their frequencies; the contract has the reason."""
    inferred = infer_task(pd.Series(values, name=name))
    assert inferred.task == task
    assert inferred.reason
    frame = pd.DataFrame({name: values, "x": RANDOM.normal(size=len(values))})
    contract = infer_contract(frame, TrainingConfig(name="x", data=DataConfig(source="t.csv", target=name)))
    assert (contract.task, contract.columns[0].reason) == (task, inferred.reason)
