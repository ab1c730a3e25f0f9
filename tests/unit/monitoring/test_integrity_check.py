"""The integrity check of `towline up`: a fault of the ledger is a page, a difference in MLflow a ticket."""

import sqlite3
from contextlib import closing

import pytest

from tests.support.sample_store import MODEL, SampleStore
from towline.config import PipelineConfig, Settings, build_config
from towline.monitoring.alerts.notifications import read_alerts, read_open_alerts
from towline.monitoring.integrity_check import check_integrity, notify_mlflow
from towline.registry.ledger import open_ledger


@pytest.fixture
def config() -> PipelineConfig:
    return build_config({"name": MODEL, "data": {"source": "t.csv", "target": "value"}}, "test")


@pytest.fixture
def settings(sample_store: SampleStore) -> Settings:
    open_ledger(sample_store.settings).promote_again(MODEL, 2, 1, "ann", "better")
    return sample_store.settings


def test_a_truncated_ledger_is_a_page_until_it_is_accepted(settings: Settings, config: PipelineConfig) -> None:
    """One alert, opened once, with the remedy; it is resolved when a person accepts the ledger."""
    assert check_integrity(settings, config, releases=True) == ""
    with closing(sqlite3.connect(settings.layout.ledger_database)) as connection, connection:
        connection.execute("DELETE FROM ledger WHERE seq = (SELECT max(seq) FROM ledger)")
    for _ in range(2):
        assert "the last 1 rows were removed" in check_integrity(settings, config, releases=False)
    (alert,) = read_open_alerts(settings.store, MODEL)
    assert (alert.kind, alert.subject, alert.severity) == ("integrity", "anchor", "page")
    assert "restore the ledger from a backup" in alert.detail
    open_ledger(settings).accept(MODEL, "ann", "restored a backup", [alert.title])
    assert check_integrity(settings, config, releases=False) == ""
    assert read_open_alerts(settings.store, MODEL) == ()


def test_a_damaged_release_stays_open_while_only_the_ledger_is_checked(
    settings: Settings, config: PipelineConfig, sample_store: SampleStore
) -> None:
    """Files of releases are verified less often: a quick check does not resolve their alert."""
    file = sample_store.release(2) / "profile.json"
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    assert "profile.json" in check_integrity(settings, config, releases=True)
    assert check_integrity(settings, config, releases=False) == ""
    assert [alert.subject for alert in read_open_alerts(settings.store, MODEL)] == ["champion"]
    file.write_bytes(content)
    assert check_integrity(settings, config, releases=True) == ""
    assert read_open_alerts(settings.store, MODEL) == ()


def test_a_change_in_mlflow_is_a_ticket(settings: Settings, config: PipelineConfig) -> None:
    """A champion deleted in MLflow is named; the alert is resolved when MLflow is repaired."""
    notify_mlflow(settings, config, ["version 2, which serves, is missing"])
    notify_mlflow(settings, config, ["version 2, which serves, is missing"])
    (state,) = read_alerts(settings.store, MODEL)
    assert (state.alert.kind, state.alert.severity) == ("mlflow", "ticket")
    assert "version 2, which serves, is missing" in state.alert.title
    notify_mlflow(settings, config, [])
    assert read_open_alerts(settings.store, MODEL) == ()
