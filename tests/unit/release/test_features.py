"""A release with features: equal predictions everywhere, inputs in its documents, and no executable code."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.batch import score
from tests.support.releases import TrainedRun, make_house_table, train_run
from towline.data.schema.contract import Contract
from towline.inference.predictor import Model, open_release
from towline.prediction_log.privacy import HashKeys, read_privacy_filter
from towline.serving.docs.openapi import openapi_document

FEATURES = {
    "size_per_door": "size / doors",
    "evening": "hour(at) >= 18 and not sunny",
    "first": 'substring("a `kind`, of sorts", 1, 1)',
    "large": "regexp_matches(cast(round(size) as text), '^[5-9]')",
}
INPUTS = ["at", "size", "a `kind`, of sorts", "doors", "sunny"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    table = make_house_table().drop(columns="sold")
    return train_run(tmp_path_factory.mktemp("features"), table, target="value", time="at", features=FEATURES)


@pytest.fixture(scope="module")
def model(run: TrainedRun) -> Model:
    return open_release(run.settings.store / run.package().path)


def make_rows(run: TrainedRun) -> list[dict[str, object]]:
    table = run.work.table()[INPUTS]
    rows: list[dict[str, object]] = json.loads(table.to_json(orient="records", date_format="iso", double_precision=15))
    return rows


def test_the_model_is_compiled_and_every_path_gives_equal_predictions(
    run: TrainedRun, model: Model, tmp_path: Path
) -> None:
    """One row, many rows, a table and a file have equal bits, also a table with other types."""
    assert model.compiled
    rows, table = make_rows(run), run.work.table()
    expected = model.predict(table)
    assert [model.predict(row)[0] for row in rows] == expected.tolist()
    assert np.array_equal(model.predict(rows), expected)
    assert np.array_equal(model.predict(pd.DataFrame(rows)), expected)
    table[INPUTS].to_parquet(tmp_path / "in.parquet")
    score(model, tmp_path / "in.parquet", tmp_path / "out.parquet")
    scored = pd.read_parquet(tmp_path / "out.parquet")
    assert np.array_equal(scored["prediction"], expected)
    assert [name for name in scored if name in FEATURES] == []


def test_documents_show_inputs_and_the_card_shows_features(model: Model, tmp_path: Path) -> None:
    """OpenAPI, log, profile and probe rows have the inputs; the card has the expressions."""
    document = openapi_document(model, 10)
    assert list(document["components"]["schemas"]["Row"]["properties"]) == INPUTS
    fields = read_privacy_filter(model.directory, model.contract, HashKeys(tmp_path)).fields
    assert [field.name for field in fields] == INPUTS
    assert list(json.loads((model.directory / "profile.json").read_bytes())["columns"]) == INPUTS
    assert list(json.loads((model.directory / "probe.json").read_bytes())["rows"][0]) == INPUTS
    assert "size / doors" in (model.directory / "card.html").read_text()
    importance = json.loads((model.directory / "metrics.json").read_bytes())["evaluation"]["importance"]
    assert set(FEATURES) <= {name for name, *_ in importance}


def test_the_contract_stores_expressions_as_text(model: Model) -> None:
    """A release has no code, and its digest covers the expressions."""
    contract = Contract.read(model.directory)
    assert {column.name: column.expression for column in contract.derived} == FEATURES
    assert contract.derived[0].inputs == ("size", "doors")
