"""The status pages over HTTP, on loopback: ``python -m towline.cli.status_server PORT``; made anew for each request."""

import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote

from towline.errors import ConfigError, TowlineError

if TYPE_CHECKING:
    from towline.config import Settings


class Pages(ThreadingHTTPServer):
    """Serves ``/`` (the one model, or all), ``/NAME`` and ``/health``."""

    daemon_threads = True

    def __init__(self, port: int, settings: "Settings") -> None:
        super().__init__(("127.0.0.1", port), _Page)
        self.settings = settings


class _Page(BaseHTTPRequestHandler):
    server: Pages

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in ("127.0.0.1", "localhost"):  # another site's name that was made to point here
            self._answer(403, "text/plain", "this page is for 127.0.0.1")
        elif self.path == "/health":
            self._answer(200, "text/plain", "ok")
        else:
            self._answer(*self._page(unquote(self.path.split("?")[0].strip("/"))))

    def _page(self, name: str) -> tuple[int, str, str]:
        import datetime as dt

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


def main(words: Sequence[str]) -> None:
    from towline.config import Settings

    Pages(int(words[0]), Settings.from_environment()).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
