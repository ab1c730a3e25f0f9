"""The service as a process: promotions, failures, signals and connections."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import shutil
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

import towline
from tests.support.checks import at_least_one
from tests.support.load import RecordingLoad, swap_champions
from tests.support.sample_store import MODEL, SampleStore
from tests.support.serve_process import ServeProcess
from towline.api_keys import create_key, revoke_key
from towline.inference.predictor import open_release


@pytest.fixture
def serve(sample_store: SampleStore) -> Iterator[Callable[..., ServeProcess]]:
    """Starts services on the test's store: ``serve("--workers", "2").port``."""
    with contextlib.ExitStack() as running:
        yield lambda *arguments, name=MODEL: running.enter_context(
            ServeProcess(sample_store.settings, name, *arguments)
        )


def send_request(
    serving: ServeProcess, path: str, body: object = None, key: str = "", tls: ssl.SSLContext | None = None
) -> tuple[int, Any]:
    """Sends a request; returns the status and the content, which is parsed if it is JSON."""
    host, port = "127.0.0.1", serving.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=60, context=tls)
        if tls
        else http.client.HTTPConnection(host, port, timeout=60)
    )
    with contextlib.closing(connection):
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()
        kind = response.getheader("content-type") or ""
        return response.status, json.loads(content) if "json" in kind else content.decode()


def predict(serving: ServeProcess, sample_store: SampleStore, **options: Any) -> tuple[int, Any]:
    status, content = send_request(serving, "/predict", {"rows": sample_store.probe_rows()[:2]}, **options)
    return status, content["model"]["version"] if status == 200 else content


def wait_until_true(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.05)
    return value


def read_response(stream: Any) -> tuple[dict[str, str], bytes]:
    """Headers and body of the next response on a connection."""
    assert stream.readline().startswith(b"HTTP/1.1 200 ")
    headers = http.client.parse_headers(stream)
    return {name.lower(): value for name, value in headers.items()}, stream.read(int(headers["content-length"]))


def start_failing_service(sample_store: SampleStore, *arguments: str, name: str = MODEL) -> tuple[int, str]:
    """Exit code and stderr of a service that does not start."""
    with ServeProcess(sample_store.settings, name, *arguments, wait=False) as serving:
        return serving.process.wait(timeout=300), serving.log.read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_promotions_and_rollbacks_under_load(
    sample_store: SampleStore, serve: Callable[..., ServeProcess], workers: str
) -> None:
    """No request fails, and each response has the predictions of the version that it names."""
    serving = serve("--workers", workers)
    load = RecordingLoad(serving.port, sample_store.probe_rows())
    asyncio.run(load.run(4, lambda: swap_champions(sample_store.ledger, MODEL, load, 6, 2)))
    assert load.failures == []
    assert load.refused == 0
    assert {answer.version for answer in load.answers} == {1, 2}
    assert load.find_wrong_predictions({1: sample_store.release(1), 2: sample_store.release(2)}) == []


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_shutdown_answers_all_accepted_requests(
    sample_store: SampleStore, serve: Callable[..., ServeProcess], workers: str, name: signal.Signals
) -> None:
    """Under load from clients that reconnect immediately: every request is answered, and the exit code is 0."""
    serving = serve("--workers", workers)
    load = RecordingLoad(serving.port, sample_store.probe_rows())

    def end() -> None:
        wait_until_true(lambda: len(load.answers) > 200)
        before = len(load.answers)
        assert serving.stop(name) == 0
        assert len(load.answers) > before + 50  # it continued until load balancers had noticed

    asyncio.run(load.run(8, end))
    assert load.failures == []
    assert load.find_wrong_predictions({1: sample_store.release(1)}) == []
    assert "Traceback" not in serving.log.read_text()


def test_shutdown_fails_readiness_first(sample_store: SampleStore, serve: Callable[..., ServeProcess]) -> None:
    """/readyz fails immediately; requests are still answered, and the service waits for an incomplete body."""
    serving = serve("--grace", "3")
    body = json.dumps({"rows": sample_store.probe_rows()[:1]}).encode()
    with socket.create_connection(("127.0.0.1", serving.port)) as slow:
        slow.settimeout(20)
        head = (
            b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        slow.sendall(head % len(body) + body[:20])
        assert send_request(serving, "/readyz")[0] == 200
        serving.process.send_signal(signal.SIGTERM)
        wait_until_true(lambda: send_request(serving, "/readyz")[0] == 503)
        assert send_request(serving, "/livez")[0] == 200
        assert predict(serving, sample_store) == (200, 1)
        wait_until_true(lambda: not listens(serving.port))
        slow.sendall(body[20:])
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
    assert serving.process.wait(timeout=300) == 0


def test_a_request_on_an_open_connection_is_answered_during_shutdown(
    sample_store: SampleStore, serve: Callable[..., ServeProcess]
) -> None:
    """A client that connects before the shutdown and sends its request after the port is closed gets a response."""
    serving = serve("--grace", "0.5")
    body = json.dumps({"rows": sample_store.probe_rows()[:1]}).encode()
    head = b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", serving.port)) as late:
        late.settimeout(20)
        serving.process.send_signal(signal.SIGTERM)
        wait_until_true(lambda: not listens(serving.port))
        time.sleep(1)
        late.sendall(head % len(body) + body)
        assert late.recv(65536).startswith(b"HTTP/1.1 200")
    assert serving.process.wait(timeout=300) == 0


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True


def test_incomplete_body_does_not_block_shutdown(sample_store: SampleStore, serve: Callable[..., ServeProcess]) -> None:
    """After --drain seconds the process ends."""
    serving = serve("--drain", "2")
    with socket.create_connection(("127.0.0.1", serving.port)) as stuck:
        stuck.sendall(
            b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        assert predict(serving, sample_store) == (200, 1)
        assert serving.stop() == 0


@pytest.mark.parametrize("outage", ["removed", "locked", "damaged"])
def test_service_runs_and_starts_without_the_ledger(
    sample_store: SampleStore, serve: Callable[..., ServeProcess], outage: str
) -> None:
    """The last champion is served, also after a restart; with the ledger available again, promotions are followed."""
    sample_store.promote(2)
    first = serve()
    assert predict(first, sample_store) == (200, 2)
    ledger_bytes, holder = sample_store.ledger_file.read_bytes(), None
    if outage == "removed":
        sample_store.ledger_file.unlink()
    elif outage == "damaged":
        sample_store.ledger_file.write_bytes(b"\xff" * 9000)
    else:
        holder = sqlite3.connect(sample_store.ledger_file, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
    second = serve()
    assert predict(first, sample_store) == predict(second, sample_store) == (200, 2)
    if holder:
        holder.close()
    else:
        wait_until_true(lambda: "cannot read the ledger" in first.log.read_text())
        sample_store.ledger_file.write_bytes(ledger_bytes)
    sample_store.rollback()
    for serving in (first, second):
        wait_until_true(lambda serving=serving: predict(serving, sample_store) == (200, 1))


def test_damaged_release_is_refused_and_the_previous_one_serves(
    sample_store: SampleStore, serve: Callable[..., ServeProcess]
) -> None:
    """The log names the damaged release; the next valid champion is loaded."""
    serving = serve()
    file = sample_store.release(2) / "plan.npz"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    load = RecordingLoad(serving.port, sample_store.probe_rows())

    def damage() -> None:
        sample_store.promote(2)
        wait_until_true(lambda: "version 2 is rejected" in serving.log.read_text())
        answered = len(load.answers)
        wait_until_true(lambda: len(load.answers) > answered + 100)

    asyncio.run(load.run(2, damage))
    assert (load.failures, {answer.version for answer in load.answers}) == ([], {1})
    assert "plan.npz has the sha256" in serving.log.read_text()
    assert re.search(r"^towline_releases_refused_total\{.*\} 1\.0$", send_request(serving, "/metrics")[1], re.MULTILINE)
    sample_store.rollback()
    file.write_bytes(content)
    time.sleep(1)
    sample_store.promote(2)
    wait_until_true(lambda: predict(serving, sample_store) == (200, 2))


def workers_of(serving: ServeProcess) -> set[int]:
    children = Path(f"/proc/{serving.process.pid}/task/{serving.process.pid}/children").read_text()
    return {int(pid) for pid in children.split()}


def requests(serving: ServeProcess) -> float:
    text = send_request(serving, "/metrics")[1]
    counts = re.findall(r'^towline_requests_total\{route="/predict".*\} (\S+)$', text, re.MULTILINE)
    return sum(map(float, counts))


def test_killed_worker_is_replaced_and_its_counts_are_kept(
    sample_store: SampleStore, serve: Callable[..., ServeProcess]
) -> None:
    """Other workers still answer; the killed worker's counters remain; the new worker follows promotions."""
    serving = serve("--workers", "2")
    for _ in range(100):
        assert predict(serving, sample_store) == (200, 1)
    wait_until_true(lambda: requests(serving) == 100)
    before = workers_of(serving)
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    wait_until_true(lambda: len(workers_of(serving)) == 2 and workers_of(serving) != before)
    sample_store.promote(2)
    wait_until_true(lambda: predict(serving, sample_store) == (200, 2))
    time.sleep(1)
    counted = requests(serving)
    assert counted >= 100
    for _ in range(50):
        assert predict(serving, sample_store) == (200, 2)
    wait_until_true(lambda: requests(serving) == counted + 50)
    assert "SIGKILL" in serving.log.read_text()
    memory = re.findall(
        r"^towline_process_resident_memory_bytes\{.*\}", send_request(serving, "/metrics")[1], re.MULTILINE
    )
    assert len(memory) == 2
    assert serving.stop() == 0


def test_a_replaced_worker_runs_the_code_that_the_service_was_started_with(
    sample_store: SampleStore, serve: Callable[..., ServeProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade of the files of a running service has no effect until it is restarted."""
    code = shutil.copytree(Path(towline.__file__).parent, tmp_path / "code" / "towline")
    monkeypatch.setenv("PYTHONPATH", str(code.parent))
    serving = serve("--workers", "2")
    for module in at_least_one([*code.rglob("*.py")]):
        module.write_text("raise RuntimeError('another version')")
    before = workers_of(serving)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until_true(lambda: len(workers_of(serving)) == 2 and not workers_of(serving) & before)
    assert [predict(serving, sample_store) for _ in range(20)] == [(200, 1)] * 20
    assert "another version" not in serving.log.read_text()


def test_workers_end_with_their_supervisor(sample_store: SampleStore, serve: Callable[..., ServeProcess]) -> None:
    """After the supervisor is killed no worker listens on the port; its files are removed at the next start."""
    serving = serve("--workers", "2")
    workers = workers_of(serving)
    serving.process.kill()
    wait_until_true(lambda: not any(Path(f"/proc/{pid}/fd").exists() and list_open(pid) for pid in workers))
    assert not listens(serving.port)
    left = [
        path
        for path in Path(tempfile.gettempdir()).glob("towline-metrics-*")
        if list(path.glob(f"*_{min(workers)}.db"))
    ]
    assert len(left) == 1
    os.utime(left[0], (0, 0))
    assert predict(serve("--workers", "2"), sample_store) == (200, 1)
    assert not left[0].exists()


def list_open(pid: int) -> bool:
    try:
        return bool(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return False


def test_other_machines_need_a_key(sample_store: SampleStore, serve: Callable[..., ServeProcess]) -> None:
    """Without keys it listens on loopback only, unless an option changes this; new keys work without a restart."""
    code, error = start_failing_service(sample_store, "--host", "0.0.0.0")
    assert code == 2
    assert "towline keys create" in error
    open_to_all = serve("--host", "0.0.0.0", "--insecure")
    assert predict(open_to_all, sample_store) == (200, 1)
    first, key = create_key(sample_store.settings.store, "shop")
    wait_until_true(lambda: predict(open_to_all, sample_store)[0] == 401)
    guarded = serve("--host", "0.0.0.0", "--workers", "2")
    assert predict(guarded, sample_store)[0] == 401
    assert predict(guarded, sample_store, key=first) == (200, 1)
    second, _ = create_key(sample_store.settings.store, "bank")
    revoke_key(sample_store.settings.store, key.id)
    for serving in (open_to_all, guarded):
        wait_until_true(
            lambda serving=serving: all(predict(serving, sample_store, key=first)[0] == 401 for _ in range(20))
        )
        assert predict(serving, sample_store, key=second) == (200, 1)
        secret = [text.split("_", 2)[2] for text in (first, second)]
        assert not any(text in serving.log.read_text() for text in secret)
    (sample_store.settings.store / "serving" / "keys.json").write_text("{")
    code, error = start_failing_service(sample_store, "--host", "0.0.0.0")
    assert (code, "damaged" in error) == (2, True)
    assert predict(guarded, sample_store, key=second) == (200, 1)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificate, key, and the key under a passphrase."""
    folder = tmp_path_factory.mktemp("tls")
    for arguments in (
        (
            "req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out chain.pem -days 2 -subj /CN=127.0.0.1 "
            "-addext subjectAltName=IP:127.0.0.1"
        ),
        "rsa -aes256 -passout pass:secret -in key.pem -out locked.pem",
    ):
        subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)
    return folder


def test_tls(sample_store: SampleStore, serve: Callable[..., ServeProcess], pem: Path) -> None:
    """A client that trusts the certificate is answered by every worker."""
    serving = serve("--certificate", str(pem / "chain.pem"), "--private-key", str(pem / "key.pem"), "--workers", "2")
    assert serving.startup["address"].startswith("https://")
    trusting = ssl.create_default_context(cafile=pem / "chain.pem")
    for _ in range(10):
        assert predict(serving, sample_store, tls=trusting) == (200, 1)
        assert send_request(serving, "/predict", " " * 6_000_000, tls=trusting)[0] == 413


def test_errors_at_start_are_short(
    sample_store: SampleStore, serve: Callable[..., ServeProcess], pem: Path, tmp_path: Path
) -> None:
    """Each has an exit code, the problem, its location and a remedy, and no traceback."""
    running = serve()
    (tmp_path / "not.pem").write_text("nothing")
    spoilt = sample_store.release(2) / "contract.json"
    spoilt.write_bytes(spoilt.read_bytes() + b" ")
    chain, key = str(pem / "chain.pem"), str(pem / "key.pem")
    for options, name, expected, message in (
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
        port = [] if "--port" in options else ["--port", "0"]
        code, error = start_failing_service(sample_store, *port, *options, name=name)
        assert (code, message in error, "Traceback" in error) == (expected, True, False), (options, error)
        assert len(error.splitlines()) < 12


def test_abusive_connections_are_closed(sample_store: SampleStore, serve: Callable[..., ServeProcess]) -> None:
    """Endless headers get 431 and invalid HTTP gets 400, both as problem documents; other clients are served."""
    serving = serve()
    for request_bytes, status in (
        (b"GET / HTTP/1.1\r\n" + b"x-many: 1\r\n" * 20_000, b"431"),
        (b"GET / HTTP/1.1\r\nx-long: " + b"a" * 500_000, b"431"),
        (b"GET /" + b"a" * 500_000, b"431"),
        (b"POST /predict HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n" + b"x: 1\r\n" * 50_000, b"4"),
        (b"\x16\x03\x01 nonsense\r\n\r\n", b"400"),
    ):
        with socket.create_connection(("127.0.0.1", serving.port), timeout=20) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(request_bytes)
            assert predict(serving, sample_store) == (200, 1)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    answer += part
            assert answer.startswith(b"HTTP/1.1 " + status), (request_bytes[:40], answer[:200])
            assert b"application/problem+json" in answer
    assert "Traceback" not in serving.log.read_text()


def test_a_release_is_served_from_its_folder(sample_store: SampleStore, serve: Callable[..., ServeProcess]) -> None:
    """Without a ledger, as in an image with the release only."""
    sample_store.ledger_file.unlink()
    serving = serve(name=str(sample_store.release(2)))
    assert predict(serving, sample_store) == (200, 2)
    predictions = open_release(sample_store.release(2)).predict_rows(sample_store.probe_rows()).predictions
    assert send_request(serving, "/predict", {"rows": sample_store.probe_rows()})[1]["predictions"] == predictions


def test_missing_extra_names_the_install_command(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel without extras has no web server."""
    from towline.cli import extras as module

    monkeypatch.setattr(module, "find_spec", lambda vendor: None if vendor == "uvicorn" else sys)
    result = command("serve", MODEL)
    assert result.code == 2
    assert "pip install 'towline[serve]'" in result.err


def test_http_1_0_with_keep_alive(serve: Callable[..., ServeProcess], sample_store: SampleStore) -> None:
    """Twenty requests on one connection get responses of one length. Without the header it closes after the first."""
    body = json.dumps({"row": sample_store.probe_rows()[0]}).encode()
    head = b"POST /predict HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    port = serve().port
    lengths = set()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection, connection.makefile("rb") as stream:
        for _ in range(20):
            connection.sendall(head + b"Connection: Keep-Alive\r\n\r\n" + body)
            headers, content = read_response(stream)
            assert headers["connection"] == "keep-alive"
            lengths.add(len(content))
        connection.sendall(head + b"\r\n" + body)
        headers, content = read_response(stream)
        assert headers["connection"] == "close"
        assert stream.read() == b"", "the service closes the connection"
    assert len(lengths | {len(content)}) == 1


@pytest.mark.skipif(shutil.which("ab") is None, reason="Apache Bench is not installed: apt-get install apache2-utils")
def test_apache_bench(serve: Callable[..., ServeProcess], sample_store: SampleStore, tmp_path: Path) -> None:
    """It counts no failed request, and reuses its connections."""
    (tmp_path / "row.json").write_text(json.dumps({"row": sample_store.probe_rows()[0]}))
    url = f"http://127.0.0.1:{serve('--workers', '2').port}/predict"
    command = ["ab", "-k", "-n", "400", "-c", "4", "-p", str(tmp_path / "row.json"), "-T", "application/json", url]
    report = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    counts = {name: int(count) for name, count in re.findall(r"^([A-Z][\w -]+?):\s+(\d+)$", report, re.MULTILINE)}
    assert (counts["Complete requests"], counts["Failed requests"], counts["Keep-Alive requests"]) == (400, 0, 400)
    assert "Non-2xx responses" not in counts
