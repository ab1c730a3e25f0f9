"""The metrics of the status server."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.metrics import parse_gauges
from tests.support.monitoring_records import get_page
from tests.support.sample_store import SampleStore
from towline.cli.status_server import StatusServer


@contextmanager
def serving(sample_store: SampleStore, host: str = "127.0.0.1") -> Iterator[str]:
    with StatusServer(0, sample_store.settings, host) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_metrics_are_served_without_a_valid_store(sample_store: SampleStore) -> None:
    """Stores: a valid one, one with a ledger that is no database, and none."""
    with serving(sample_store) as address:
        code, text = get_page(f"{address}/metrics")
        assert (code, parse_gauges(text)["champion_version",]) == (200, 1)
        assert get_page(f"{address}/metrics", Host="status:8090")[0] == 403
    sample_store.ledger_file.write_text("no database")
    with serving(sample_store) as address:
        code, text = get_page(f"{address}/metrics")
        assert (code, parse_gauges(text)) == (200, {("ledger_up",): 0})
    shutil.rmtree(sample_store.settings.store)
    with serving(sample_store) as address:
        assert get_page(f"{address}/metrics")[0] == 200


def test_unknown_host_names_are_refused_beyond_loopback(sample_store: SampleStore) -> None:
    """Names in the same network and addresses are allowed; other names with a dot are refused."""
    with serving(sample_store, "0.0.0.0") as address:
        answered = {
            host: get_page(f"{address}/health", Host=host)[0] for host in ("status:8090", "10.1.2.3:8090", "[::1]:1")
        }
        assert set(answered.values()) == {200}
        refused = {
            host: get_page(f"{address}/health", Host=host)[0] for host in ("evil.example", "127.0.0.1.evil.example:1")
        }
        assert set(refused.values()) == {403}
