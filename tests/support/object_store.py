"""An S3 server and web servers in threads of the test process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.request import Request, urlopen

BUCKET, SECRET_KEY = "rows", "a-s3cr3t-access-key"


@contextmanager
def running_s3() -> Iterator[dict[str, str]]:
    """An S3 server with an empty bucket; yields the environment of its clients."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()
    urlopen(Request(f"{address}/{BUCKET}", method="PUT")).close()
    try:
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


@contextmanager
def run_web_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A web server; yields its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class FileHandler(BaseHTTPRequestHandler):
    """Responds with the bytes of a path, and with ranges of them below /ranges; only if ``sig`` is the key."""

    files: ClassVar[dict[str, bytes]] = {}
    sent: ClassVar[list[int]] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path, _, query = self.path.partition("?")
        data = self.files.get(path.removeprefix("/ranges"))
        status = 404 if data is None else 200 if query == f"sig={SECRET_KEY}" else 403
        data = data if data is not None and status == 200 else b"refused"
        byte_range = self.headers.get("Range", "")
        if status == 200 and path.startswith("/ranges") and byte_range.startswith("bytes="):
            first, last = byte_range.removeprefix("bytes=").split("-")
            status, total, data = 206, len(data), data[int(first) : int(last) + 1]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{total}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if body:
            self.wfile.write(data)
            self.sent.append(len(data))

    def log_message(self, *_: Any) -> None:
        pass


class ExpiredHandler(BaseHTTPRequestHandler):
    """Responds as S3 does for an expired token: a response to HEAD has no reason."""

    ANSWER = (
        b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>ExpiredToken</Code>"
        b"<Message>The provided token has expired.</Message></Error>"
    )

    def do_HEAD(self) -> None:
        self.send_response(400)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(400)
        self.send_header("Content-Length", str(len(self.ANSWER)))
        self.end_headers()
        self.wfile.write(self.ANSWER)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass
