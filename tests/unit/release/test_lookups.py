"""A release with lookups: equal predictions everywhere, from rows without the joined columns."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.batch import score
from tests.support.releases import TrainedRun, make_house_table, train_run
from towline.inference.predictor import Model, open_release
from towline.serving.docs.openapi import openapi_document

INPUTS = ["at", "size", "a `kind`, of sorts", "doors", "sunny"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder, rng = tmp_path_factory.mktemp("lookups"), np.random.default_rng(3)
    table = make_house_table().drop(columns="sold")
    kinds = table["a `kind`, of sorts"].dropna().unique()
    prices = pd.DataFrame([(kind, at) for kind in kinds[:-1] for at in pd.date_range("2025-01-02", periods=20)])
    prices.columns = ["kind", "valid_from"]
    prices["price"], prices["zone"] = rng.normal(size=len(prices)), rng.choice(["x", "ÿ", None], len(prices))
    prices.to_csv(folder / "prices.csv", index=False)
    pd.DataFrame({"doors": range(1, 7), "floor": [1.5, 2, None, 4, 5, 6]}).to_parquet(folder / "doors.parquet")
    lookups = {
        "prices": {
            "table": "prices.csv", "key": {"a `kind`, of sorts": "kind"}, "columns": ["price", "zone"],
            "time": "valid_from",
        },
        "doors": {"table": "doors.parquet", "key": "doors", "columns": ["floor"]},
    }  # fmt: skip
    features = {"ratio": "price / floor", "in_x": "zone = 'x'"}
    return train_run(folder, table, target="value", time="at", lookups=lookups, features=features)


@pytest.fixture(scope="module")
def model(run: TrainedRun) -> Model:
    (run.settings.project / "prices.csv").unlink()  # the release has its own copy
    return open_release(run.settings.store / run.package().path)


def test_every_path_gives_equal_predictions(run: TrainedRun, model: Model, tmp_path: Path) -> None:
    """One row, many rows, a table and a file have the bits of the pipeline in training."""
    assert model.compiled
    table = run.work.table()
    rows = json.loads(table[INPUTS].to_json(orient="records", date_format="iso", double_precision=15))
    expected = model.predict(table)
    assert len(set(expected.tolist())) > 10
    assert [model.predict(row)[0] for row in rows] == expected.tolist()
    assert np.array_equal(model.predict(rows), expected)
    assert np.array_equal(model.predict(pd.DataFrame(rows)), expected)
    table[INPUTS].to_parquet(tmp_path / "in.parquet")
    score(model, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert np.array_equal(pd.read_parquet(tmp_path / "out.parquet")["prediction"], expected)


def test_documents_show_inputs_and_the_card_shows_the_tables(model: Model) -> None:
    document = openapi_document(model, 10)
    assert list(document["components"]["schemas"]["Row"]["properties"]) == INPUTS
    assert list(json.loads((model.directory / "probe.json").read_bytes())["rows"][0]) == INPUTS
    card = (model.directory / "card.md").read_text()
    for lookup in model.contract.lookups:
        assert lookup.digest[:16] in card
    importance = json.loads((model.directory / "metrics.json").read_bytes())["evaluation"]["importance"]
    assert {"price", "zone", "floor", "ratio"} <= {name for name, *_ in importance}
