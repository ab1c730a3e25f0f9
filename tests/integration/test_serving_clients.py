"""The service on a real socket: MLflow's clients, and behaviour of connections that only raw bytes show."""

import json
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import requests
from uvicorn import Config, Server

from tests.support.serving import ROW, FakeModel, create_application, make_contract
from towline.serving.process import connection
from towline.serving.process.connection import HttpConnection

BODY = json.dumps({"rows": [ROW]}).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
LARGE = b'{"rows": [' + b" " * 6_000_000
TINY = b"1\r\n \r\n" * 40_000  # chunks of one byte


@contextmanager
def run_server(folder: Path, keys: dict[str, frozenset[str]] | None = None) -> Iterator[int]:
    app, _, _ = create_application(FakeModel(make_contract(), folder), keys, max_body=100_000)
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(
        Config(app, loop="uvloop", http=HttpConnection, interface="asgi3", log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with run_server(tmp_path_factory.mktemp("release")) as listening_port:
        yield listening_port


@pytest.fixture(scope="module")
def port_with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A service with API keys."""
    with run_server(tmp_path_factory.mktemp("release"), {"pkey": frozenset({"predict"})}) as listening_port:
        yield listening_port


def exchange(port: int, *parts: bytes) -> bytes:
    """Sends bytes and reads until the other end closes the connection or stops sending."""
    with socket.create_connection(("127.0.0.1", port), 5) as sender:
        try:
            for part in parts:
                sender.sendall(part)
        except OSError:  # the service answered early and closed the connection
            pass
        sender.settimeout(1)
        answer = b""
        try:
            while part := sender.recv(65_536):
                answer += part
        except OSError:
            pass
        return answer


def test_mlflows_own_client(port: int) -> None:
    """It waits for the server, requests its version and scores a frame, as with MLflow's own server."""
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    from towline import __version__

    client = ScoringServerClient("127.0.0.1", port)
    client.wait_server_ready(timeout=10)
    assert client.get_version() == __version__
    frame = pd.DataFrame([ROW, {**ROW, "size": 7.5}])
    assert client.invoke(frame).get_predictions()[0].tolist() == [41.0, 15.0]
    assert client.invoke([[20.5, "house", True, None]]).get_predictions()[0].tolist() == [41.0]
    with pytest.raises(Exception, match="error code 422"):
        client.invoke(frame.drop(columns="size"))


def test_mlflows_deployments_client(port: int) -> None:
    """The model is an endpoint with its name; another name gets 404."""
    from mlflow.deployments import get_deploy_client

    client = get_deploy_client(f"http://127.0.0.1:{port}")
    rows = {"dataframe_records": [ROW, {**ROW, "size": 7.5}]}
    assert client.predict(endpoint="house-price", inputs=rows)["predictions"] == [41.0, 15.0]
    with pytest.raises(Exception, match="404"):
        client.predict(endpoint="another", inputs=rows)


def test_requests_on_one_connection(port: int) -> None:
    """A refused request does not end the connection."""
    bad = HEAD + b"Content-Length: 2\r\n\r\n{]"
    good = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    answers = exchange(port, bad + good + bad + good)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"400", b"200", b"400", b"200"]


def test_a_chunked_body(port: int) -> None:
    """Chunks of any size are one body."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:10], BODY[10:11], BODY[11:]))
    assert b" 200 OK" in exchange(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")


def test_a_chunked_body_without_end(port: int) -> None:
    """It gets 413 once it is too long, and the connection is closed."""
    chunk = b"2710\r\n" + b" " * 10_000 + b"\r\n"
    answer = exchange(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 60)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_length_that_is_too_large(port: int) -> None:
    """It gets 413 before the body arrives."""
    answer = exchange(port, HEAD + b"Content-Length: 100001\r\n\r\n")
    assert b" 413 " in answer
    assert b'"code":"too-large"' in answer


def test_clients_that_are_still_sending_get_the_refusal(port: int) -> None:
    """urllib and requests get the 413 for a body of 6 MB each time, instead of a reset connection."""
    url = f"http://127.0.0.1:{port}/predict"
    for _ in range(5):
        request = urllib.request.Request(url, LARGE, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=20)
        assert (caught.value.code, json.loads(caught.value.read())["code"]) == (413, "too-large")
        assert requests.post(url, LARGE, headers={"Content-Type": "application/json"}, timeout=20).status_code == 413
        parts = (LARGE[at : at + 8_000] for at in range(0, len(LARGE), 8_000))
        assert requests.post(url, parts, headers={"Content-Type": "application/json"}, timeout=20).status_code == 413


def test_bytes_after_a_refusal_are_discarded_up_to_a_limit(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes after the refusal are discarded up to a limit, then the connection is closed."""
    monkeypatch.setattr(connection, "LINGER_BYTES", 300_000)
    with socket.create_connection(("127.0.0.1", port), 5) as endless:
        endless.settimeout(20)
        endless.sendall(HEAD + b"Content-Length: 9999999999\r\n\r\n")
        with pytest.raises(ConnectionError):
            send_for_ever(endless, b" " * 100_000)


def send_for_ever(sender: socket.socket, part: bytes) -> None:
    while True:
        sender.sendall(part)


@pytest.mark.parametrize("limit", ["LINGER_IDLE_S", "LINGER_TOTAL_S"])
def test_the_connection_of_a_refused_sender_is_closed(port: int, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """It gets its response immediately; the connection is closed after the limit, whether it sends or not."""
    monkeypatch.setattr(connection, "LINGER_CHECK_S", 0.05)
    monkeypatch.setattr(connection, limit, -1.0)
    with socket.create_connection(("127.0.0.1", port), 5) as stalled:
        stalled.settimeout(20)
        stalled.sendall(HEAD + b"Content-Length: 9999999999\r\n\r\n")
        answer = b""
        while part := stalled.recv(65_536):
            answer += part
        assert answer.startswith(b"HTTP/1.1 413 ")
        with pytest.raises(ConnectionError):
            send_for_ever(stalled, b" ")


def test_tiny_chunks(port: int) -> None:
    """A small body in them is accepted; a body with much more framing than content is refused with a remedy."""
    single = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    assert exchange(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + single).startswith(b"HTTP/1.1 200 ")
    answer = exchange(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + TINY)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"send larger ones" in answer


def test_no_body_is_read_before_the_key_is_known(port_with_keys: int) -> None:
    """Without a key the response is 401, whatever the body is; with a key it depends on the body."""
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n"
    assert exchange(port_with_keys, chunked + b"\r\n" + TINY).startswith(b"HTTP/1.1 401 ")
    assert exchange(port_with_keys, chunked + b"X-API-Key: pkey\r\n\r\n" + TINY).startswith(b"HTTP/1.1 400 ")
    answer = exchange(port_with_keys, HEAD + b"Content-Length: 90000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer


def test_a_refusal_after_the_body_keeps_the_connection(port_with_keys: int) -> None:
    """The next request on the connection is answered."""
    body = b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    answers = exchange(port_with_keys, HEAD + body, HEAD + b"X-API-Key: pkey\r\n" + body)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"401", b"200"]


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    """All are answered in order, with bodies of different sizes."""
    sent, expected = [], []
    for number in range(2_000):
        rows = [{**ROW, "size": float(number % 100)}] * (1 + number % 3 * 20)
        body = json.dumps({"rows": rows}).encode()
        sent.append(HEAD + b"X-Request-Id: %d\r\nContent-Length: %d\r\n\r\n" % (number, len(body)) + body)
        expected.append(b"%d" % number)
    sent[-1] = sent[-1].replace(b"Content-Type", b"Connection: close\r\nContent-Type")
    with socket.create_connection(("127.0.0.1", port), 5) as pipelined:
        pipelined.settimeout(60)
        sender = threading.Thread(target=pipelined.sendall, args=(b"".join(sent),))
        sender.start()
        answers = b""
        while part := pipelined.recv(1_000_000):
            answers += part
        sender.join()
    request_ids = re.findall(rb"x-request-id: (\d+)", answers)
    assert request_ids == expected
    assert answers.count(b" 200 OK") == 2_000


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: abc\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"Bad Header\r\n\r\n",
        b"X: \0\r\n\r\n",
    ],
)
def test_invalid_headers_are_refused(port: int, head: bytes) -> None:
    """They get 4xx, and the bytes after them are not read as a request."""
    answer = exchange(port, HEAD + head + BODY)
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"predictions" not in answer


def test_a_client_that_disconnects(port: int) -> None:
    """A client disconnects in the middle of a body; the next client is served."""
    for part in (b"", b"Content-Length: 500\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"):
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(HEAD + part)
    good = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    assert b'"predictions":[41.0]' in exchange(port, good)
