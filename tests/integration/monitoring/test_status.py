"""The status pages, served over HTTP."""

import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.monitoring_records import NOW, get_page, make_drift
from tests.support.sample_store import MODEL, SampleStore
from towline.cli.status_server import Pages
from towline.monitoring.journal import Journal
from towline.monitoring.results import DriftResult, QualityResult


def journal(sample_store: SampleStore, *records: DriftResult | QualityResult) -> None:
    for record in records:
        Journal.of(sample_store.settings, MODEL).add(record, NOW)


@pytest.fixture
def address(sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with Pages(0, sample_store.settings) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_pages_are_served_as_things_are_now(sample_store: SampleStore, address: str) -> None:
    """The one model stands at /, each at its name; another name is 404, and another host's name gets nothing."""
    assert get_page(f"{address}/health") == (200, "ok")
    assert "drift it is" not in get_page(address)[1]
    journal(sample_store, make_drift(0, "drift"))
    assert "drift it is" in get_page(address)[1]
    assert MODEL in get_page(f"{address}/{MODEL}")[1]
    assert get_page(f"{address}/..%2f..%2fetc")[0] == 404
    assert "Models" in get_page(f"{address}/_all")[1]
    assert "Performance on the holdout" in get_page(f"{address}/{MODEL}/v2/card")[1]
    assert get_page(f"{address}/{MODEL}/v9/card")[0] == 404
    (sample_store.settings.store / "watch" / MODEL / "drift-2026-02-28.html").write_text("<p>a night</p>")
    assert get_page(f"{address}/{MODEL}/drift/2026-02-28") == (200, "<p>a night</p>")
    assert get_page(f"{address}/{MODEL}/drift/2026-02-27")[0] == 404
    with urllib.request.urlopen(f"{address}/{MODEL}/drift/2026-02-28", timeout=30) as answer:
        assert answer.headers["Content-Security-Policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert get_page(address, Host="evil.example")[0] == 403
    sample_store.ledger_file.write_text("no database")
    code, text = get_page(address)
    assert code == 503
    assert "remedy" in text
    assert json.dumps(text)


def gauges(text: str) -> dict[tuple[str, ...], float]:
    """By name and the labels' values, the model first where it is not the one there is."""
    return {
        (sample.name.removeprefix("towline_"), *(v for k, v in sample.labels.items() if (k, v) != ("model", MODEL))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextmanager
def serving(sample_store: SampleStore, host: str = "127.0.0.1") -> Iterator[str]:
    with Pages(0, sample_store.settings, host) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_metrics_are_served_whatever_the_store_is(sample_store: SampleStore) -> None:
    """Prometheus gets text, with a store, with a ledger that is no database, and with none at all."""
    with serving(sample_store) as address:
        code, text = get_page(f"{address}/metrics")
        assert (code, gauges(text)["champion_version",]) == (200, 1)
        assert get_page(f"{address}/metrics", Host="status:8090")[0] == 403
    sample_store.ledger_file.write_text("no database")
    with serving(sample_store) as address:
        code, text = get_page(f"{address}/metrics")
        assert (code, gauges(text)) == (200, {("ledger_up",): 0})
    shutil.rmtree(sample_store.settings.store)
    with serving(sample_store) as address:
        assert get_page(f"{address}/metrics")[0] == 200


def test_beyond_loopback_a_strangers_name_is_still_refused(sample_store: SampleStore) -> None:
    """A service of the same network and an address are answered; a name with a dot may be anybody's."""
    with serving(sample_store, "0.0.0.0") as address:
        answered = {
            host: get_page(f"{address}/health", Host=host)[0] for host in ("status:8090", "10.1.2.3:8090", "[::1]:1")
        }
        assert set(answered.values()) == {200}
        refused = {
            host: get_page(f"{address}/health", Host=host)[0] for host in ("evil.example", "127.0.0.1.evil.example:1")
        }
        assert set(refused.values()) == {403}
