"""A version is approved on its model's page: with a key with the scope admin, in a form of this page, on loopback."""

import datetime as dt
import re
import sqlite3
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from tests.support.sample_store import MODEL, SampleStore
from towline.api_keys import create_key
from towline.cli import status_server
from towline.cli.status_server import APPROVED_BY, StatusServer
from towline.config import ApprovalConfig
from towline.registry.approvals import request_evidence
from towline.registry.ledger import JudgedVersion, open_ledger


@pytest.fixture
def waiting_store(sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> SampleStore:
    """Version 2 waits for two approvals; ann started its run."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(status_server, "_BAD_KEY_DELAY_S", 0.0)
    ledger = open_ledger(sample_store.settings)
    judged = next(row for row in ledger.rows(MODEL) if row.version == 2 and row.event == "promoted")
    with closing(sqlite3.connect(sample_store.ledger_file)) as connection, connection:
        connection.execute("DELETE FROM ledger WHERE seq > 3")  # version 2 has no verdict yet
    requested = request_evidence(ApprovalConfig(required=2), dt.datetime.now(dt.UTC))
    version = JudgedVersion(2, judged.run_key, judged.release, {**judged.evidence, "approval": requested})
    ledger.mark_passed(MODEL, version, "ann", "passed 9 checks; awaiting approval")
    return sample_store


@contextmanager
def serve(store: SampleStore, host: str = "127.0.0.1") -> Iterator[str]:
    with StatusServer(0, store.settings, host) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def get(address: str) -> str:
    with urllib.request.urlopen(f"{address}/{MODEL}", timeout=30) as response:
        return str(response.read().decode())


def send(address: str, key: str, page: str, **headers: str) -> tuple[int, str]:
    """Fills in the form of a page and sends it; returns the status before a redirect, and the page after it."""
    (digest,) = re.findall(r'name="digest" value="(\w{64})"', page)
    (path,) = re.findall(r'<form method="post" action="([^"]+)"', page)
    body = urllib.parse.urlencode({"digest": digest, "key": key, "reason": "numbers checked"}).encode()
    request = urllib.request.Request(f"{address}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return (303 if response.geturl() != request.full_url else response.status), response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def champion(store: SampleStore) -> Any:
    row = store.ledger.champion(MODEL)
    return row.version if row else None


def test_the_last_approval_on_the_page_promotes(waiting_store: SampleStore) -> None:
    """Each person approves with their own key; the ledger names the holder and the page, not the key."""
    keys = [create_key(waiting_store.settings.store, holder, ["admin"])[0] for holder in ("bob", "eva")]
    with serve(waiting_store) as address:
        status, page = send(address, keys[0], get(address))
        assert (status, champion(waiting_store)) == (303, 1)
        assert "1 of 2" in page
        assert "bob" in page
        assert send(address, keys[1], page)[0] == 303
    assert champion(waiting_store) == 2
    rows = [row for row in waiting_store.ledger.rows(MODEL) if row.event == "approved"]
    assert [(row.evidence["holder"], row.actor, row.reason) for row in rows] == [
        ("bob", APPROVED_BY, "numbers checked"), ("eva", APPROVED_BY, "numbers checked"),
    ]  # fmt: skip
    assert not [key for key in keys if key in waiting_store.ledger_file.read_text(errors="ignore")]


def test_approvals_that_do_not_count_are_refused_on_the_page(waiting_store: SampleStore) -> None:
    """An unknown key, a key without the scope, the starter of the run, another release: the page has the reason."""
    predict = create_key(waiting_store.settings.store, "bob", ["predict"])[0]
    starter = create_key(waiting_store.settings.store, "ann", ["admin"])[0]
    with serve(waiting_store) as address:
        page = get(address)
        for key, why in (("tl_no_key", "is unknown"), (predict, "no scope admin"), (starter, "started the run")):
            status, response = send(address, key, page)
            assert (status, why in response) == (409, True), response
        other = page.replace(re.findall(r'value="(\w{64})"', page)[0], 64 * "0")
        status, response = send(address, create_key(waiting_store.settings.store, "eva", ["admin"])[0], other)
        assert (status, "another release" in response) == (409, True)
    assert not [row for row in waiting_store.ledger.rows(MODEL) if row.event == "approved"]


def test_forms_of_other_sites_and_on_other_addresses_are_refused(waiting_store: SampleStore) -> None:
    """A page of another site cannot send the form; a server on other addresses has no form and names the command."""
    key = create_key(waiting_store.settings.store, "bob", ["admin"])[0]
    with serve(waiting_store) as address:
        page = get(address)
        assert send(address, key, page, Origin="http://evil.example")[0] == 403
        assert send(address, key, page, Host="evil.example")[0] == 403
        assert send(address, key, page, **{"Content-Type": "text/plain"})[0] == 400
        assert send(address, key + "x" * 5_000, page)[0] == 400
    with serve(waiting_store, "0.0.0.0") as address:
        remote = get(address)
        assert "<form" not in remote
        assert f"towline approve {MODEL}@2" in remote
        assert send(address, key, page)[0] == 403
    assert not [row for row in waiting_store.ledger.rows(MODEL) if row.event == "approved"]
