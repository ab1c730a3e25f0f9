"""The service as a process: champions change, machines go, signals come, and who asks is answered."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.swaps import Load, Serving, swap
from tests.shelf import MODEL, Shelf
from towline.inference.predictor import open_release
from towline.serving.auth import create_key, revoke_key


@pytest.fixture
def serve(shelf: Shelf) -> Iterator[Callable[..., Serving]]:
    """Starts services on the test's store: ``serve("--workers", "2").port``."""
    with contextlib.ExitStack() as running:
        yield lambda *words, name=MODEL: running.enter_context(Serving(shelf.settings, name, *words))


def pool(shelf: Shelf) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((shelf.release(1) / "probe.json").read_bytes())["rows"]
    return rows


def ask(
    serving: Serving, path: str, body: object = None, key: str = "", tls: ssl.SSLContext | None = None
) -> tuple[int, Any]:
    """Status and content; JSON where it is."""
    host, port = "127.0.0.1", serving.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=20, context=tls)
        if tls
        else http.client.HTTPConnection(host, port, timeout=20)
    )
    with contextlib.closing(connection):
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        kind = answer.getheader("content-type") or ""
        return answer.status, json.loads(content) if "json" in kind else content.decode()


def predict(serving: Serving, shelf: Shelf, **how: Any) -> tuple[int, Any]:
    status, told = ask(serving, "/predict", {"rows": pool(shelf)[:2]}, **how)
    return status, told["model"]["version"] if status == 200 else told


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (found := holds()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
    return found


def refusal(shelf: Shelf, *words: str, name: str = MODEL) -> tuple[int, str]:
    """Exit code and stderr of a service that does not start."""
    with Serving(shelf.settings, name, *words, wait=False) as serving:
        return serving.process.wait(timeout=60), serving.log.read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_promotions_and_rollbacks_are_followed_under_load(
    shelf: Shelf, serve: Callable[..., Serving], workers: str
) -> None:
    """No request fails, and each answer is wholly the named version's."""
    serving = serve("--workers", workers)
    load = Load(serving.port, pool(shelf))
    asyncio.run(load.run(4, lambda: swap(shelf.ledger, MODEL, load, 6, 2)))
    assert load.failures == []
    assert load.refused == 0
    assert {answer.version for answer in load.answers} == {1, 2}
    assert load.mixed({1: shelf.release(1), 2: shelf.release(2)}) == []


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_answers_what_it_took(
    shelf: Shelf, serve: Callable[..., Serving], workers: str, name: signal.Signals
) -> None:
    """Under load, with callers that come back at once: none is left without an answer, and the exit code is 0."""
    serving = serve("--workers", workers)
    load = Load(serving.port, pool(shelf))

    def end() -> None:
        until(lambda: len(load.answers) > 200)
        before = len(load.answers)
        assert serving.end(name) == 0
        assert len(load.answers) > before + 50  # it went on while load balancers learnt of it

    asyncio.run(load.run(8, end))
    assert load.failures == []
    assert load.mixed({1: shelf.release(1)}) == []
    assert "Traceback" not in serving.log.read_text()


def test_the_end_begins_with_readiness(shelf: Shelf, serve: Callable[..., Serving]) -> None:
    """Load balancers are told at once; callers are still answered; a body that is under way is waited for."""
    serving = serve("--grace", "3")
    body = json.dumps({"rows": pool(shelf)[:1]}).encode()
    with socket.create_connection(("127.0.0.1", serving.port)) as slow:
        slow.settimeout(20)
        head = (
            b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        slow.sendall(head % len(body) + body[:20])
        assert ask(serving, "/readyz")[0] == 200
        serving.process.send_signal(signal.SIGTERM)
        until(lambda: ask(serving, "/readyz")[0] == 503)
        assert ask(serving, "/livez")[0] == 200
        assert predict(serving, shelf) == (200, 1)
        until(lambda: not listens(serving.port))
        slow.sendall(body[20:])
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
    assert serving.process.wait(timeout=30) == 0


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True


def test_a_body_that_never_comes_does_not_hold_up_the_end(shelf: Shelf, serve: Callable[..., Serving]) -> None:
    """After --drain seconds the process ends all the same."""
    serving = serve("--drain", "2")
    with socket.create_connection(("127.0.0.1", serving.port)) as stuck:
        stuck.sendall(
            b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        assert predict(serving, shelf) == (200, 1)
        assert serving.end() == 0


@pytest.mark.parametrize("outage", ["removed", "locked", "damaged"])
def test_without_its_ledger_it_answers_and_starts(shelf: Shelf, serve: Callable[..., Serving], outage: str) -> None:
    """What was promoted before serves on, after a restart too; when the ledger is back it is followed again."""
    shelf.promote(2)
    first = serve()
    assert predict(first, shelf) == (200, 2)
    kept, holder = shelf.ledger_file.read_bytes(), None
    if outage == "removed":
        shelf.ledger_file.unlink()
    elif outage == "damaged":
        shelf.ledger_file.write_bytes(b"\xff" * 9000)
    else:
        holder = sqlite3.connect(shelf.ledger_file, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
    second = serve()
    assert predict(first, shelf) == predict(second, shelf) == (200, 2)
    if holder:
        holder.close()
    else:
        until(lambda: "cannot read the ledger" in first.log.read_text())
        shelf.ledger_file.write_bytes(kept)
    shelf.rollback()
    for serving in (first, second):
        until(lambda serving=serving: predict(serving, shelf) == (200, 1))


def test_a_damaged_release_is_refused_while_the_old_one_answers(shelf: Shelf, serve: Callable[..., Serving]) -> None:
    """The log names it; the next good champion is taken."""
    serving = serve()
    file = shelf.release(2) / "plan.npz"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    load = Load(serving.port, pool(shelf))

    def damage() -> None:
        shelf.promote(2)
        until(lambda: "version 2 is rejected" in serving.log.read_text())
        asked = len(load.answers)
        until(lambda: len(load.answers) > asked + 100)

    asyncio.run(load.run(2, damage))
    assert (load.failures, {answer.version for answer in load.answers}) == ([], {1})
    assert "plan.npz has the sha256" in serving.log.read_text()
    assert re.search(r"^towline_releases_refused_total\{.*\} 1\.0$", ask(serving, "/metrics")[1], re.MULTILINE)
    shelf.rollback()
    file.write_bytes(content)
    time.sleep(1)
    shelf.promote(2)
    until(lambda: predict(serving, shelf) == (200, 2))


def workers_of(serving: Serving) -> set[int]:
    children = Path(f"/proc/{serving.process.pid}/task/{serving.process.pid}/children").read_text()
    return {int(pid) for pid in children.split()}


def requests(serving: Serving) -> float:
    text = ask(serving, "/metrics")[1]
    found = re.findall(r'^towline_requests_total\{route="/predict".*\} (\S+)$', text, re.MULTILINE)
    return sum(map(float, found))


def test_a_killed_worker_is_replaced_and_the_counts_stay(shelf: Shelf, serve: Callable[..., Serving]) -> None:
    """The others answer meanwhile; what the dead one had counted is still in the totals; the new one follows too."""
    serving = serve("--workers", "2")
    for _ in range(100):
        assert predict(serving, shelf) == (200, 1)
    until(lambda: requests(serving) == 100)
    before = workers_of(serving)
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    until(lambda: len(workers_of(serving)) == 2 and workers_of(serving) != before)
    shelf.promote(2)
    until(lambda: predict(serving, shelf) == (200, 2))
    time.sleep(1)
    asked = requests(serving)
    assert asked >= 100
    for _ in range(50):
        assert predict(serving, shelf) == (200, 2)
    until(lambda: requests(serving) == asked + 50)
    assert "SIGKILL" in serving.log.read_text()
    memory = re.findall(r"^towline_process_resident_memory_bytes\{.*\}", ask(serving, "/metrics")[1], re.MULTILINE)
    assert len(memory) == 2
    assert serving.end() == 0


def test_workers_end_with_their_supervisor(shelf: Shelf, serve: Callable[..., Serving]) -> None:
    """None is left behind on the port when it is killed; what it leaves on the disk goes at the next start."""
    serving = serve("--workers", "2")
    workers = workers_of(serving)
    serving.process.kill()
    until(lambda: not any(Path(f"/proc/{pid}/fd").exists() and list_open(pid) for pid in workers))
    assert not listens(serving.port)
    left = [
        path
        for path in Path(tempfile.gettempdir()).glob("towline-metrics-*")
        if list(path.glob(f"*_{min(workers)}.db"))
    ]
    assert len(left) == 1
    os.utime(left[0], (0, 0))
    assert predict(serve("--workers", "2"), shelf) == (200, 1)
    assert not left[0].exists()


def list_open(pid: int) -> bool:
    try:
        return bool(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return False


def test_other_machines_are_served_with_keys_alone(shelf: Shelf, serve: Callable[..., Serving]) -> None:
    """Without one it does not listen on other addresses, unless it is told to; keys count while it runs."""
    code, told = refusal(shelf, "--host", "0.0.0.0")
    assert code == 2
    assert "towline keys create" in told
    open_to_all = serve("--host", "0.0.0.0", "--insecure")
    assert predict(open_to_all, shelf) == (200, 1)
    first, key = create_key(shelf.settings.store, "shop")
    until(lambda: predict(open_to_all, shelf)[0] == 401)
    guarded = serve("--host", "0.0.0.0", "--workers", "2")
    assert predict(guarded, shelf)[0] == 401
    assert predict(guarded, shelf, key=first) == (200, 1)
    second, _ = create_key(shelf.settings.store, "bank")
    revoke_key(shelf.settings.store, key.id)
    for serving in (open_to_all, guarded):
        until(lambda serving=serving: all(predict(serving, shelf, key=first)[0] == 401 for _ in range(20)))
        assert predict(serving, shelf, key=second) == (200, 1)
        secret = [text.split("_", 2)[2] for text in (first, second)]
        assert not any(text in serving.log.read_text() for text in secret)
    (shelf.settings.store / "serving" / "keys.json").write_text("{")
    code, told = refusal(shelf, "--host", "0.0.0.0")
    assert (code, "damaged" in told) == (2, True)
    assert predict(guarded, shelf, key=second) == (200, 1)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificate, key, and the key under a passphrase."""
    folder = tmp_path_factory.mktemp("tls")
    for words in (
        (
            "req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out chain.pem -days 2 -subj /CN=127.0.0.1 "
            "-addext subjectAltName=IP:127.0.0.1"
        ),
        "rsa -aes256 -passout pass:secret -in key.pem -out locked.pem",
    ):
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
    return folder


def test_it_speaks_tls(shelf: Shelf, serve: Callable[..., Serving], pem: Path) -> None:
    """A client that trusts the certificate is answered by every worker."""
    serving = serve("--certificate", str(pem / "chain.pem"), "--private-key", str(pem / "key.pem"), "--workers", "2")
    assert serving.told["address"].startswith("https://")
    trusting = ssl.create_default_context(cafile=pem / "chain.pem")
    for _ in range(10):
        assert predict(serving, shelf, tls=trusting) == (200, 1)
        assert ask(serving, "/predict", " " * 6_000_000, tls=trusting)[0] == 413


def test_what_cannot_be_served_is_told_on_one_screen(
    shelf: Shelf, serve: Callable[..., Serving], pem: Path, tmp_path: Path
) -> None:
    """Exit codes as everywhere, what is wrong, where, and what to do; never a traceback."""
    running = serve()
    (tmp_path / "not.pem").write_text("nothing")
    spoilt = shelf.release(2) / "contract.json"
    spoilt.write_bytes(spoilt.read_bytes() + b" ")
    chain, key = str(pem / "chain.pem"), str(pem / "key.pem")
    for words, name, expected, said in (
        (["--port", str(running.port)], MODEL, 2, "another --port"),
        (["--host", "203.0.113.7"], MODEL, 2, "address of this machine"),
        (["--host", "no.such.host.invalid"], MODEL, 2, "no such host"),
        ([], "house-valu", 2, "did you mean house-value?"),
        ([], f"{MODEL}@7", 2, "house-value@1"),
        ([], f"{MODEL}@2", 6, "contract.json"),
        ([], str(tmp_path), 6, "manifest"),
        (["--certificate", chain, "--private-key", str(tmp_path / "none.pem")], MODEL, 2, "No such file"),
        (["--certificate", str(tmp_path / "not.pem"), "--private-key", key], MODEL, 2, "PEM"),
        (["--certificate", chain, "--private-key", str(pem / "locked.pem")], MODEL, 2, "passphrase"),
        (["--private-key", key], MODEL, 2, "--certificate"),
    ):
        port = [] if "--port" in words else ["--port", "0"]
        code, told = refusal(shelf, *port, *words, name=name)
        assert (code, said in told, "Traceback" in told) == (expected, True, False), (words, told)
        assert len(told.splitlines()) < 12


def test_connections_that_only_cost_are_ended(shelf: Shelf, serve: Callable[..., Serving]) -> None:
    """Headers without end are answered with 431, rubbish with 400, both as problems; others are served meanwhile."""
    serving = serve()
    for sent, status in (
        (b"GET / HTTP/1.1\r\n" + b"x-many: 1\r\n" * 20_000, b"431"),
        (b"GET / HTTP/1.1\r\nx-long: " + b"a" * 500_000, b"431"),
        (b"GET /" + b"a" * 500_000, b"431"),
        (b"POST /predict HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n" + b"x: 1\r\n" * 50_000, b"4"),
        (b"\x16\x03\x01 nonsense\r\n\r\n", b"400"),
    ):
        with socket.create_connection(("127.0.0.1", serving.port), timeout=20) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(sent)
            assert predict(serving, shelf) == (200, 1)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    answer += part
            assert answer.startswith(b"HTTP/1.1 " + status), (sent[:40], answer[:200])
            assert b"application/problem+json" in answer
    assert "Traceback" not in serving.log.read_text()


def test_a_release_is_served_from_its_folder(shelf: Shelf, serve: Callable[..., Serving]) -> None:
    """Without a ledger, as in an image that holds nothing but the release."""
    shelf.ledger_file.unlink()
    serving = serve(name=str(shelf.release(2)))
    assert predict(serving, shelf) == (200, 2)
    own = open_release(shelf.release(2)).predict_rows(pool(shelf)).predictions
    assert ask(serving, "/predict", {"rows": pool(shelf)})[1]["predictions"] == own


def test_without_its_extra_it_names_the_command(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel installed for embedding alone has no web server."""
    from towline.cli import extras as module

    monkeypatch.setattr(module, "find_spec", lambda vendor: None if vendor == "uvicorn" else sys)
    done = command("serve", MODEL)
    assert done.code == 2
    assert "pip install 'towline[serve]'" in done.err
