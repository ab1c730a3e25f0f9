"""The service on a real socket: MLflow's own client, and what only shows in the bytes of a connection."""

import json
import re
import socket
import threading
from collections.abc import Iterator

import pandas as pd
import pytest
from uvicorn import Config, Server

from tests.unit.serving.service import ROW, Fake, application, make_contract
from towline.serving.connection import Connection

BODY = json.dumps({"rows": [ROW]}).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    app, _, _ = application(Fake(make_contract(), tmp_path_factory.mktemp("release")), max_body=100_000)
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(Config(app, loop="uvloop", http=Connection, interface="asgi3", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


def exchange(port: int, *parts: bytes) -> bytes:
    """Sends bytes and reads until the other end closes, or stops answering."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:  # an answer that came early, and then the end
            pass
        connection.settimeout(1)
        answer = b""
        try:
            while part := connection.recv(65_536):
                answer += part
        except OSError:
            pass
        return answer


def test_mlflows_own_client(port: int) -> None:
    """It waits for the server, asks its version and scores a frame, as against MLflow's own server."""
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
    """The model is an endpoint of its name; another name is not found."""
    from mlflow.deployments import get_deploy_client

    client = get_deploy_client(f"http://127.0.0.1:{port}")
    rows = {"dataframe_records": [ROW, {**ROW, "size": 7.5}]}
    assert client.predict(endpoint="house-price", inputs=rows)["predictions"] == [41.0, 15.0]
    with pytest.raises(Exception, match="404"):
        client.predict(endpoint="another", inputs=rows)


def test_requests_on_one_connection(port: int) -> None:
    """A refusal ends the request, not the connection."""
    bad = HEAD + b"Content-Length: 2\r\n\r\n{]"
    good = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    answers = exchange(port, bad + good + bad + good)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"400", b"200", b"400", b"200"]


def test_a_chunked_body(port: int) -> None:
    """Read like any other."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:10], BODY[10:11], BODY[11:]))
    assert b" 200 OK" in exchange(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")


def test_a_chunked_body_without_end(port: int) -> None:
    """Refused once it is too long, and the connection ends."""
    chunk = b"2710\r\n" + b" " * 10_000 + b"\r\n"
    answer = exchange(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 60)
    assert answer == b"" or b" 413 " in answer  # the answer may be lost to a client that goes on sending
    assert b" 200 " not in answer


def test_a_length_that_is_too_large(port: int) -> None:
    """Refused before the body comes."""
    answer = exchange(port, HEAD + b"Content-Length: 100001\r\n\r\n")
    assert b" 413 " in answer
    assert b'"code":"too-large"' in answer


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
def test_heads_that_are_no_http(port: int, head: bytes) -> None:
    """Refused, and nothing behind them is taken for a request."""
    answer = exchange(port, HEAD + head + BODY)
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"predictions" not in answer


def test_a_client_that_leaves(port: int) -> None:
    """In the middle of a body; the next one is served."""
    for part in (b"", b"Content-Length: 500\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"):
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(HEAD + part)
    good = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    assert b'"predictions":[41.0]' in exchange(port, good)
