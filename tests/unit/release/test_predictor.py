"""Equal values get equal predictions, whatever the type of the table."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.support.releases import TrainedRun, make_house_table
from towline.errors import DataError, ReleaseError
from towline.inference.predictor import Model, open_release
from towline.release.packaging import Release


@pytest.fixture(scope="module")
def value(regression: TrainedRun, packed: Release) -> Model:
    return open_release(regression.settings.store / packed.path)


@pytest.fixture(scope="module")
def sold(binary: TrainedRun) -> Model:
    return open_release(binary.settings.store / binary.package().path)


def dicts(frame: pd.DataFrame) -> list[dict[str, object]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def test_all_kinds_of_tables_give_equal_predictions(value: Model, tmp_path: Path) -> None:
    """Dicts, JSON, pandas, CSV, Arrow and single rows give the same floats."""
    frame = make_house_table().tail(40)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    arrow = pa.Table.from_pandas(frame)
    expected = value.predict(frame)
    assert expected.dtype == np.float64
    for rows in (
        dicts(frame),
        json.loads(json.dumps(dicts(frame), default=str)),
        pd.read_csv(tmp_path / "rows.csv", float_precision="round_trip"),
        frame.convert_dtypes(dtype_backend="pyarrow"),
        frame[frame.columns[::-1]],
        arrow,
        arrow.set_column(2, "a `kind`, of sorts", arrow[2].dictionary_encode()),
    ):
        np.testing.assert_array_equal(value.predict(rows), expected)
    np.testing.assert_array_equal([value.predict(row)[0] for row in dicts(frame)], expected)


def test_a_polars_frame_gives_equal_predictions(value: Model) -> None:
    polars = pytest.importorskip("polars")
    frame = make_house_table().tail(40)
    np.testing.assert_array_equal(value.predict(polars.from_pandas(frame)), value.predict(frame))


def test_labels_are_strings_and_probabilities_follow_the_classes(sold: Model) -> None:
    frame = make_house_table().head(20)
    labels, probabilities = sold.predict(frame), sold.predict_proba(frame)
    assert all(type(label) is str for label in labels)
    assert sold.metadata.classes == ("no", "yes")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert labels.tolist() == np.where(probabilities[:, 1] >= 0.4, "yes", "no").tolist()


@pytest.mark.parametrize(("yes", "no"), [(True, False), (1, 0)])
def test_labels_keep_their_type(tmp_path: Path, build: Callable[..., TrainedRun], yes: object, no: object) -> None:
    """Booleans are returned as bool and integers as int, not as NumPy types."""
    frame = make_house_table(200).drop(columns=["value", "at"])
    frame["sold"] = [yes if answer == "yes" else no for answer in frame["sold"]]
    run = build(tmp_path, frame, "linear", target="sold")
    labels = open_release(run.settings.store / run.package().path).predict(frame)
    assert {type(label) for label in labels} == {type(yes)}


def test_no_rows_give_an_empty_array(value: Model, sold: Model) -> None:
    assert value.predict([]).shape == (0,)
    assert sold.predict_proba(make_house_table().head(0)).shape == (0, 2)


def test_the_error_names_the_field_and_the_row(value: Model) -> None:
    """For an unknown container it names the type."""
    good = dicts(make_house_table().head(3))
    with pytest.raises(DataError, match=r"row 2: 'size' is missing"):
        value.predict([good[0], {name: v for name, v in good[1].items() if name != "size"}])
    with pytest.raises(DataError, match=r"row 1: 'size' is not a number"):
        value.predict({**good[0], "size": "wide"})
    for rows in ({**good[0], "doors": 1e200}, make_house_table().head(2).assign(doors=1e200)):
        with pytest.raises(DataError, match="'doors'"):
            value.predict(rows)
    with pytest.raises(DataError, match="'doors'"):
        value.predict(make_house_table().drop(columns="doors"))
    with pytest.raises(DataError, match="ndarray"):
        value.predict(np.zeros((2, 4)))
    with pytest.raises(DataError, match="no probabilities"):
        value.predict_proba(good)


def test_unseen_null_and_extreme_values_get_finite_predictions(value: Model) -> None:
    row = dicts(make_house_table().head(1))[0]
    for odd in ({"a `kind`, of sorts": "new"}, {"a `kind`, of sorts": None}, {"size": None, "doors": 1e9}):
        assert np.isfinite(value.predict({**row, **odd})).all()


def test_a_changed_model_file_is_refused_before_it_is_loaded(release: Path) -> None:
    """The digest is checked first; skops itself would load this file."""
    raw = bytearray((release / "model.skops").read_bytes())
    raw[len(raw) // 2] ^= 1
    (release / "model.skops").write_bytes(raw)
    with pytest.raises(ReleaseError, match=r"model\.skops has the sha256"):
        open_release(release)
