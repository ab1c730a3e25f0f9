"""The status pages over HTTP, made anew for each request, and ``/metrics`` for Prometheus.

``python -m towline.cli.status_server PORT [--host 0.0.0.0]``; on loopback unless told otherwise. It asks for no key:
who listens elsewhere keeps strangers off that network.
"""

import argparse
import datetime as dt
import ipaddress
import re
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from towline.errors import ConfigError, TowlineError
from towline.monitoring.reporting.model_metrics import Watch
from towline.monitoring.status.links import Links
from towline.monitoring.status.page import ALL, POLICY
from towline.registry.ledger import open_ledger

if TYPE_CHECKING:
    from towline.config import Settings

LOOPBACK = "127.0.0.1"
_FILES = re.compile(
    r"/(?P<model>[a-z0-9][a-z0-9-]{0,62})/(v(?P<version>\d{1,9})/card|drift/(?P<night>\d{4}-\d\d-\d\d))"
)
_OF_CARDS = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
# Evidently draws its reports with scripts that the page itself holds
_OF_REPORTS = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'none'"
)


class Pages(ThreadingHTTPServer):
    """The front door: ``/`` (the one model, or all), ``/_all``, ``/NAME``, ``/metrics`` and ``/health``.

    ``/NAME/v3/card`` is the model card of a version, ``/NAME/drift/2026-02-28`` Evidently's report of a night that
    alarmed. The pages link to Prefect, MLflow and Evidently where these run.
    """

    daemon_threads = True

    def __init__(self, port: int, settings: "Settings", host: str = LOOPBACK) -> None:
        super().__init__((host, port), _Page)
        self.settings = settings
        self.watch = Watch(settings)
        self.local = host == LOOPBACK  # the other interfaces are, so for others no link would lead anywhere


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
        elif found := _FILES.fullmatch(unquote(path)):
            self._answer(*self._file(found["model"], found["version"], found["night"]))
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
            return not self.server.local and bool(host)
        try:
            return not self.server.local and bool(ipaddress.ip_address(host))
        except ValueError:
            return False

    def _metrics(self) -> tuple[int, str, str]:
        try:
            return 200, "text/plain; version=0.0.4", self.server.watch.text(dt.datetime.now(dt.UTC))
        except ImportError:
            return 501, "text/plain", "not installed: prometheus_client; remedy: pip install 'towline[serve]'"

    def _file(self, model: str, version: str | None, night: str | None) -> tuple[int, str, str, str]:
        """A page that stands in the store. It is sandboxed: what is in it can reach nothing of this address."""
        layout = self.server.settings.layout
        file = layout.drift_report(model, night or "")
        what = f"report of the night of {night}"
        if version:
            what = f"card of version {version}"
            try:
                entry = open_ledger(self.server.settings).entry(model, int(version))
            except TowlineError as error:
                return 503, "text/plain", str(error), POLICY
            file = layout.release(entry.release if entry else "none") / "card.html"
        try:
            return 200, "text/html", file.read_text(encoding="utf-8"), _OF_CARDS if version else _OF_REPORTS
        except (OSError, UnicodeDecodeError):
            return 404, "text/plain", f"{model} has no {what}", POLICY

    def _page(self, name: str) -> tuple[int, str, str]:
        from towline.cli.status import gather, links
        from towline.monitoring.status.page import index, render

        try:
            found = gather(self.server.settings, None if name == ALL else name or None)
        except ConfigError as error:
            return 404, "text/plain", str(error)
        except TowlineError as error:
            return 503, "text/plain", str(error)
        leads = links(self.server.settings, [one.model for one in found]) if self.server.local else Links()
        if len(found) == 1 and name != ALL:
            return 200, "text/html", render(found[0], leads)
        return 200, "text/html", index(found, dt.datetime.now(dt.UTC), leads)

    def _answer(self, status: int, kind: str, text: str, policy: str = POLICY) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", policy)
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
