"""The status pages over HTTP, made anew for each request, and ``/metrics`` for Prometheus.

``python -m towline.cli.status_server PORT [--host 0.0.0.0]``; on loopback unless told otherwise. It asks for no key:
who listens elsewhere keeps strangers off that network.
"""

import argparse
import datetime as dt
import ipaddress
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from towline.errors import ConfigError, TowlineError
from towline.monitoring.watched import Watch

if TYPE_CHECKING:
    from towline.config import Settings

LOOPBACK = "127.0.0.1"


class Pages(ThreadingHTTPServer):
    """Serves ``/`` (the one model, or all), ``/NAME``, ``/metrics`` and ``/health``."""

    daemon_threads = True

    def __init__(self, port: int, settings: "Settings", host: str = LOOPBACK) -> None:
        super().__init__((host, port), _Page)
        self.settings = settings
        self.watch = Watch(settings)
        self.open = host != LOOPBACK


class _Page(BaseHTTPRequestHandler):
    server: Pages

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if not self._meant():
            self._answer(403, "text/plain", "this page is for 127.0.0.1")
        elif path == "/health":
            self._answer(200, "text/plain", "ok")
        elif path == "/metrics":
            self._answer(*self._metrics())
        else:
            self._answer(*self._page(unquote(path.strip("/"))))

    def _meant(self) -> bool:
        """Whether no other site's name was made to point here: such a name has a dot, and is no address."""
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        except ValueError:
            return False
        if host in (LOOPBACK, "localhost"):
            return True
        if "." not in host:
            return self.server.open and bool(host)
        try:
            return self.server.open and bool(ipaddress.ip_address(host))
        except ValueError:
            return False

    def _metrics(self) -> tuple[int, str, str]:
        try:
            return 200, "text/plain; version=0.0.4", self.server.watch.text(dt.datetime.now(dt.UTC))
        except ImportError:
            return 501, "text/plain", "not installed: prometheus_client; remedy: pip install 'towline[serve]'"

    def _page(self, name: str) -> tuple[int, str, str]:
        from towline.cli.status import gather
        from towline.monitoring.page import index, render

        try:
            found = gather(self.server.settings, name or None)
        except ConfigError as error:
            return 404, "text/plain", str(error)
        except TowlineError as error:
            return 503, "text/plain", str(error)
        one = len(found) == 1
        return 200, "text/html", render(found[0]) if one else index(found, dt.datetime.now(dt.UTC))

    def _answer(self, status: int, kind: str, text: str) -> None:
        from towline.monitoring.page import POLICY

        body = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


def main(words: Sequence[str] | None = None) -> None:
    from towline.config import Settings

    given = argparse.ArgumentParser(prog="python -m towline.cli.status_server")
    given.add_argument("port", type=int)
    given.add_argument("--host", default=LOOPBACK)
    options = given.parse_args(words)
    Pages(options.port, Settings.from_environment(), options.host).serve_forever()


if __name__ == "__main__":
    main()
