"""One answer for the same values, whatever they come in."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.unit.release.conftest import Run, table
from towline.errors import DataError, ReleaseError
from towline.inference.predictor import Model, open_release
from towline.release.packaging import Release


@pytest.fixture(scope="module")
def value(regression: Run, packed: Release) -> Model:
    return open_release(regression.settings.store / packed.path)


@pytest.fixture(scope="module")
def sold(binary: Run) -> Model:
    return open_release(binary.settings.store / binary.package().path)


def dicts(frame: pd.DataFrame) -> list[dict[str, object]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def test_containers_agree(value: Model, tmp_path: Path) -> None:
    """dicts, JSON, pandas, CSV, Arrow and a row at a time: the same floats."""
    frame = table().tail(40)
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


def test_polars_agrees(value: Model) -> None:
    """A polars frame is an Arrow table to us."""
    polars = pytest.importorskip("polars")
    frame = table().tail(40)
    np.testing.assert_array_equal(value.predict(polars.from_pandas(frame)), value.predict(frame))


def test_labels_are_the_tables_own(sold: Model) -> None:
    """Class labels come back as strings, probabilities in the order of the classes."""
    frame = table().head(20)
    labels, chances = sold.predict(frame), sold.predict_proba(frame)
    assert all(type(label) is str for label in labels)
    assert sold.metadata.classes == ("no", "yes")
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    assert labels.tolist() == np.where(chances[:, 1] >= 0.4, "yes", "no").tolist()


@pytest.mark.parametrize(("yes", "no"), [(True, False), (1, 0)])
def test_labels_keep_their_type(tmp_path: Path, build: Callable[..., Run], yes: object, no: object) -> None:
    """Flags come back as bool, numbers as int, not as numpy's."""
    frame = table(200).drop(columns=["value", "at"])
    frame["sold"] = [yes if answer == "yes" else no for answer in frame["sold"]]
    run = build(tmp_path, frame, "linear", target="sold")
    labels = open_release(run.settings.store / run.package().path).predict(frame)
    assert {type(label) for label in labels} == {type(yes)}


def test_no_rows_no_answers(value: Model, sold: Model) -> None:
    """An empty batch is answered by an empty array."""
    assert value.predict([]).shape == (0,)
    assert sold.predict_proba(table().head(0)).shape == (0, 2)


def test_what_cannot_be_read_is_named(value: Model) -> None:
    """The field and the row are in the error; so is the type of what is no row at all."""
    good = dicts(table().head(3))
    with pytest.raises(DataError, match=r"row 2: 'size' is missing"):
        value.predict([good[0], {name: v for name, v in good[1].items() if name != "size"}])
    with pytest.raises(DataError, match=r"row 1: 'size' is not a number"):
        value.predict({**good[0], "size": "wide"})
    for rows in ({**good[0], "doors": 1e200}, table().head(2).assign(doors=1e200)):
        with pytest.raises(DataError, match="'doors'"):
            value.predict(rows)
    with pytest.raises(DataError, match="'doors'"):
        value.predict(table().drop(columns="doors"))
    with pytest.raises(DataError, match="ndarray"):
        value.predict(np.zeros((2, 4)))
    with pytest.raises(DataError, match="no probabilities"):
        value.predict_proba(good)


def test_unseen_and_null_values_are_answered(value: Model) -> None:
    """A new category, a null and a value beyond the training range each get a finite answer."""
    row = dicts(table().head(1))[0]
    for odd in ({"a `kind`, of sorts": "new"}, {"a `kind`, of sorts": None}, {"size": None, "doors": 1e9}):
        assert np.isfinite(value.predict({**row, **odd})).all()


def test_a_changed_model_is_never_built(release: Path) -> None:
    """Opening checks digests first: a file that skops would still load is refused."""
    raw = bytearray((release / "model.skops").read_bytes())
    raw[len(raw) // 2] ^= 1
    (release / "model.skops").write_bytes(raw)
    with pytest.raises(ReleaseError, match=r"model\.skops has the sha256"):
        open_release(release)


def test_an_embedded_model_is_light(regression: Run, packed: Release) -> None:
    """To answer a dict, a compiled release needs no pipeline, no web framework, no scikit-learn and no pandas."""
    code = (
        "import json, sys; from towline import load; model = load(sys.argv[1])\n"
        "print(float(model.predict(json.load(open(sys.argv[1] + '/probe.json'))['rows'][0])[0]))\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    release = regression.settings.store / packed.path
    done = subprocess.run([sys.executable, "-c", code, release], capture_output=True, text=True, check=True)
    answer, modules = done.stdout.splitlines()
    assert float(answer) == json.loads((release / "probe.json").read_bytes())["labels"][0]
    heavy = {
        "prefect", "mlflow", "great_expectations", "evidently", "starlette", "fastapi", "uvicorn", "sklearn", "scipy",
        "pandas", "pyarrow", "skops", "sqlalchemy", "matplotlib",
    }  # fmt: skip
    assert heavy & set(modules.split()) == set()
