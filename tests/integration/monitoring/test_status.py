"""The status pages, served over HTTP."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.monitoring_records import NOW, get_page, make_drift
from tests.support.sample_store import MODEL, SampleStore
from towline.cli.status_server import StatusServer
from towline.monitoring.journal import Journal
from towline.monitoring.results import DriftResult, QualityResult


def journal(sample_store: SampleStore, *records: DriftResult | QualityResult) -> None:
    for record in records:
        Journal.of(sample_store.settings, MODEL).add(record, NOW)


@pytest.fixture
def address(sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with StatusServer(0, sample_store.settings) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_pages_show_the_current_state(sample_store: SampleStore, address: str) -> None:
    """A single model is at /, each model at its name; unknown names are 404, other host names are refused."""
    assert get_page(f"{address}/health") == (200, "ok")
    assert "drift it is" not in get_page(address)[1]
    journal(sample_store, make_drift(0, "drift"))
    assert "drift it is" in get_page(address)[1]
    assert MODEL in get_page(f"{address}/{MODEL}")[1]
    assert get_page(f"{address}/..%2f..%2fetc")[0] == 404
    assert "Models" in get_page(f"{address}/_all")[1]
    assert "Performance on the holdout" in get_page(f"{address}/{MODEL}/v2/card")[1]
    assert get_page(f"{address}/{MODEL}/v9/card")[0] == 404
    (sample_store.settings.store / "monitoring" / MODEL / "drift-2026-02-28.html").write_text("<p>a drift report</p>")
    assert get_page(f"{address}/{MODEL}/drift/2026-02-28") == (200, "<p>a drift report</p>")
    assert get_page(f"{address}/{MODEL}/drift/2026-02-27")[0] == 404
    with urllib.request.urlopen(f"{address}/{MODEL}/drift/2026-02-28", timeout=30) as response:
        assert response.headers["Content-Security-Policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert get_page(address, Host="evil.example")[0] == 403
    sample_store.ledger_file.write_text("no database")
    code, text = get_page(address)
    assert code == 503
    assert "remedy" in text
    assert json.dumps(text)
