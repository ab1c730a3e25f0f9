"""The Python API: names, fast import, and results in a notebook."""

import ast
import inspect
import os
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import towline
from tests.support.paths import REPOSITORY
from tests.support.sample_store import MODEL, SampleStore
from towline import api, helper_process
from towline.config import DataConfig, Settings
from towline.data.source import python_tables, sources
from towline.errors import ConfigError, DataError, PromotionRejectedError, TransientError
from towline.html import notebook
from towline.operations import servers
from towline.orchestration import flow_runner
from towline.promotion.gate import GateCheck, Verdict
from towline.promotion.outcome import Outcome
from towline.registry.ledger import JudgedVersion
from towline.registry.mlflow import synchronization
from towline.store import StoreLayout
from towline.training.evaluation.predictions import Interval

PUBLIC = {
    "Model", "Outcome", "PipelineConfig", "TowlineError", "TransientError", "UserError", "__version__",
    "approvals", "approve", "backtest", "drift", "init", "load", "models", "promote", "quality", "rollback", "run",
    "score", "served_at", "show", "validate", "verify",
}  # fmt: skip
FUNCTIONS = sorted(name for name in PUBLIC if name[0].islower())


@pytest.fixture
def store(sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> SampleStore:
    """A store with two versions of a model, for the API."""
    monkeypatch.setenv("TOWLINE_PROJECT", str(REPOSITORY))
    monkeypatch.setenv("TOWLINE_STORE", str(sample_store.settings.store))
    monkeypatch.setattr(synchronization, "update_mlflow", lambda *_: "")
    return sample_store


def test_public_names() -> None:
    """A change of the public names must change this list."""
    assert set(towline.__all__) == PUBLIC
    assert all(getattr(towline, name) is not None for name in towline.__all__)
    assert set(towline.__all__) <= set(dir(towline))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        towline.lod  # noqa: B018


def test_no_module_hides_a_public_function() -> None:
    """A submodule ``towline.run`` would replace the function of this name once it is imported."""
    modules = {path.stem for path in (REPOSITORY / "towline").iterdir()}
    assert modules & set(FUNCTIONS) == set()


def test_import_is_light() -> None:
    """``import towline`` imports nothing but ``typing``: the API is imported on first use."""
    tree = ast.parse((REPOSITORY / "towline" / "__init__.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [getattr(node, "module", None) for node in imports] == ["typing"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented(name: str) -> None:
    """Each function documents every parameter and the errors it raises, and is typed."""
    function = getattr(towline, name)
    doc, signature = inspect.getdoc(function) or "", inspect.signature(function)
    assert "Raises:" in doc
    assert [parameter for parameter in signature.parameters if f"\n    {parameter}: " not in doc] == []
    assert signature.return_annotation is not inspect.Signature.empty


def test_typing_marker_is_in_the_package() -> None:
    """Type checkers read the annotations of the installed package."""
    assert (REPOSITORY / "towline" / "py.typed").is_file()


def test_models_are_listed(store: SampleStore) -> None:
    """One row for each model; with a name, one row for each version."""
    (champion,) = towline.models()
    assert (champion.model, champion.version, champion.state) == (MODEL, 1, "champion")
    assert [row.version for row in towline.models(MODEL)] == [1, 2]
    assert f">{MODEL}</td>" in towline.models()._repr_html_()
    with pytest.raises(ConfigError, match="no model called 'house-valu'"):
        towline.models("house-valu")


def test_promote_and_rollback(store: SampleStore) -> None:
    """A promotion changes the champion once; a rollback restores the previous one."""
    change = towline.promote(f"{MODEL}@2", reason="better at weekends")
    assert (change.version, change.previous, change.changed) == (2, 1, True)
    assert towline.promote(f"{MODEL}@2", reason="again").changed is False
    assert towline.load(MODEL).version == 2
    assert towline.rollback(MODEL).version == 1
    assert towline.load(MODEL).version == 1
    with pytest.raises(ConfigError, match="not a version"):
        towline.promote(MODEL, reason="no number")


def test_folder_with_a_models_name_is_not_a_release(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with the data of a model may have its name."""
    (tmp_path / MODEL).mkdir()
    monkeypatch.chdir(tmp_path)
    assert towline.load(MODEL).version == 1


def test_rejected_version_is_not_promoted(store: SampleStore) -> None:
    """The gate's verdict cannot be overridden."""
    store.ledger.register(MODEL, "ann", "trained", {}, "another run")
    store.ledger.refuse(MODEL, JudgedVersion(3, "another run", "", {"verdict": "fail", "checks": []}), "ann", "worse")
    with pytest.raises(PromotionRejectedError):
        towline.promote(f"{MODEL}@3", reason="I want it")


def test_show_returns_manifest_history_and_card(store: SampleStore) -> None:
    """A notebook shows the model card in a sandboxed frame."""
    details = towline.show(f"{MODEL}@1")
    assert details.manifest.version == 1
    assert {row.event for row in details.history} >= {"registered", "promoted"}
    assert details.card.lstrip().lower().startswith("<!doctype html>")
    assert details._repr_html_().startswith('<iframe sandbox srcdoc="')


def test_score_writes_predictions(store: SampleStore, tmp_path: Path) -> None:
    """The output file has the rows of the input and their predictions."""
    rows = pd.read_parquet(next(store.settings.store.glob("datasets/*.parquet"), None) or _table(tmp_path))
    rows.head(10).to_csv(tmp_path / "rows.csv", index=False)
    scored = towline.score(tmp_path / "rows.csv", tmp_path / "scored.csv", prefix="scored_")
    assert (scored.rows, scored.model, scored.version) == (10, MODEL, 1)
    assert len(pd.read_csv(tmp_path / "scored.csv")["scored_prediction"].dropna()) == 10
    assert towline.score(tmp_path / "rows.csv", tmp_path / "scored.csv", prefix="scored_").unchanged
    (row,) = [entry for entry in towline.show(MODEL).history if entry.event == "scored"]
    assert (row.evidence["rows"], row.evidence["input_digest"]) == (10, scored.input_digest)
    assert "scored_prediction" in scored._repr_html_()


def _table(folder: Path) -> Path:
    from tests.support.releases import make_house_table

    make_house_table(200).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def test_equal_tables_are_one_source(tmp_path: Path) -> None:
    """A table given in Python is stored under the digest of its content; equal tables give equal configs."""
    settings = Settings(project=tmp_path, store=tmp_path / "store", tracking_uri="", ledger_url="")
    raw = {"name": "bikes", "data": {"target": "rentals"}}
    frame = pd.DataFrame({"hour": [1, 2], "rentals": [3.0, 4.0]})
    first, again, other = (
        api._pipeline(raw, (), make_house_table, settings)
        for make_house_table in (frame, frame.copy(), frame.assign(hour=[1, 3]))
    )
    assert first.digest == again.digest != other.digest
    assert pd.read_parquet(tmp_path / str(first.data.source)).equals(frame)
    with pytest.raises(DataError, match="a list is not a table"):
        api._pipeline(raw, (), [1, 2], settings)


def _store(folder: Path, data: Any) -> pd.DataFrame:
    """A table given in Python, read as by a run."""
    source = python_tables.store_table(data, StoreLayout(folder / "store"), folder)
    dataset = sources.load_dataset(DataConfig(source=str(source), target="y"), folder, folder / "store", None)
    return sources.read_snapshot(dataset, folder / "store")


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (pd.Series([1, "x", None, 2.0] * 5, dtype=object), ["1", "x", None, "2"]),
        (pd.Series([Decimal("1.5"), 2.5, None, 3] * 5, dtype=object), [1.5, 2.5, None, 3.0]),
        (pd.Series([2**70, 1, 2, 3] * 5, dtype=object), [2.0**70, 1.0, 2.0, 3.0]),
        (pd.cut(pd.Series([1.0, 3.0, None, 1.0] * 5), [0, 2, 4]), ["(0.0, 2.0]", "(2.0, 4.0]", None, "(0.0, 2.0]"]),
        (pd.Series(pd.interval_range(0, 4)).repeat(5).sort_index(kind="stable"), ["(0, 1]"] * 4),
        (pd.Series(pd.arrays.SparseArray([0, 1, 0, 5] * 5)), [0, 1, 0, 5]),
        (pd.Series(["cut \ud83d", "b", "c", "d"] * 5, dtype=object), ["cut \ufffd", "b", "c", "d"]),
    ],
    ids=["mixed", "decimals and floats", "large", "cut", "intervals", "sparse", "half a surrogate pair"],
)
def test_columns_that_arrow_does_not_take_are_read(tmp_path: Path, values: pd.Series, read: list[Any]) -> None:
    """Mixed values and intervals are text, which is read as from a CSV."""
    table = _store(tmp_path, pd.DataFrame({"x": values.reset_index(drop=True), "y": np.arange(20) / 7}))
    assert [None if pd.isna(value) else value for value in table["x"][:4]] == read


def test_a_table_that_cannot_be_stored_is_refused_with_the_column(tmp_path: Path) -> None:
    """Complex numbers, names that occur twice, and types that Parquet does not have."""
    spans = pa.array([pa.MonthDayNano([1, 2, 3])] * 3)
    for data, what in (
        (pd.DataFrame({"y": range(3), "x": [1j, 2j, 3j]}), "column 'x' has values of the type complex"),
        (pd.DataFrame({"y": range(3), "x": [[1], "a", {}]}), "column 'x' has values of the type list"),
        (pd.DataFrame([[1, 2, 3]], columns=["x", "x", "y"]), "several columns have the same name: 'x'"),
        (pa.table({"y": range(3), "x": spans}), "column 'x' cannot be stored"),
    ):
        with pytest.raises(DataError, match=what) as caught:
            _store(tmp_path, data)
        assert "remove" in caught.value.remedy


def test_configs_in_three_forms_are_equal() -> None:
    """A path, a mapping and a PipelineConfig name the same pipeline."""
    path = REPOSITORY / "configs" / "bike_demand.yaml"
    settings = Settings.from_environment({}, cwd=REPOSITORY)
    config = api._pipeline(path, (), None, settings)
    mapping = config.model_dump(mode="json")
    assert api._pipeline(mapping, (), None, settings) == config == api._pipeline(config, (), None, settings)
    assert api._pipeline(str(path), ("seed=7",), None, settings).seed == 7
    with pytest.raises(ConfigError, match="overrides change a YAML file"):
        api._pipeline(config, ("seed=7",), None, settings)


def test_outcome_in_a_notebook_is_escaped() -> None:
    """Metrics and checks are tables; text of the user is never markup; nothing is loaded from a network."""
    checks = (GateCheck(name="baseline", outcome="fail", detail="mae <script>alert(1)</script> too high"),)
    outcome = Outcome(
        model="bikes",
        version=2,
        event="refused",
        reason="fail: <b>baseline</b>",
        run_key="",
        release="",
        metrics={"mae": Interval(value=3.14159, low=3.0, high=3.2)},
        verdict=Verdict(outcome="fail", checks=checks, primary="mae"),
    )
    html = outcome._repr_html_()
    assert "3.142" in html
    assert "&lt;b&gt;baseline&lt;/b&gt;" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; too high" in html
    assert "<script" not in html
    assert "http" not in html


def test_documents_cannot_leave_their_frame() -> None:
    """A model card is quoted whole into the frame's attribute."""
    html = notebook.render_document('<p class="x">"quoted"</p>')
    assert html.count('"') == 8
    assert "&lt;p class=&quot;x&quot;&gt;" in html


def test_a_run_on_another_store_starts_its_own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, the server address of the first store is removed from the environment, also after an error."""
    stores = [
        Settings.from_environment({"TOWLINE_STORE": str(tmp_path / name)}, cwd=tmp_path) for name in ("first", "second")
    ]
    started: list[Path] = []

    def start_server(settings: Settings, kind: str) -> SimpleNamespace:
        started.append(settings.store)
        return SimpleNamespace(url="http://127.0.0.1:9")

    def fail(_: Path) -> None:
        raise TransientError("the disk is full")

    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    monkeypatch.setattr(servers, "start", start_server)
    monkeypatch.setattr(helper_process, "start", fail)
    for settings in stores:
        with pytest.raises(TransientError, match="full"):
            flow_runner._run_in_process(settings, "training", {})
    assert started == [settings.store for settings in stores]
