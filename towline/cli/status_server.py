"""Serves the status pages, rendered for each request, and ``/metrics`` for Prometheus.

``python -m towline.cli.status_server PORT [--host 0.0.0.0]``; the default is loopback. It has no authentication: on
other addresses, restrict access to its network.
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
from towline.html import content_security_policy
from towline.monitoring.reporting.metrics_exporter import MetricsExporter
from towline.monitoring.status.links import Links
from towline.monitoring.status.page import ALL_MODELS
from towline.registry.ledger import open_ledger

if TYPE_CHECKING:
    from towline.config import Settings

LOOPBACK = "127.0.0.1"
_FILES = re.compile(r"/(?P<model>[a-z0-9][a-z0-9-]{0,62})/(v(?P<version>\d{1,9})/card|drift/(?P<day>\d{4}-\d\d-\d\d))")
_CARD_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
# Evidently's reports contain scripts that draw them
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'none'"
)


class StatusServer(ThreadingHTTPServer):
    """Paths: ``/`` (the only model, or all), ``/_all``, ``/NAME``, ``/metrics`` and ``/health``.

    ``/NAME/v3/card`` is the model card of a version, ``/NAME/drift/2026-02-28`` the Evidently report of a window with
    an alarm. The pages link to Prefect, MLflow and Evidently if these run.
    """

    daemon_threads = True

    def __init__(self, port: int, settings: "Settings", host: str = LOOPBACK) -> None:
        super().__init__((host, port), _StatusHandler)
        self.settings = settings
        self.exporter = MetricsExporter(settings)
        self.local = host == LOOPBACK  # the other interfaces listen on loopback: links to them work only there


class _StatusHandler(BaseHTTPRequestHandler):
    server: StatusServer

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if not self._is_valid_host():
            self._respond(403, "text/plain", "this page is only served to 127.0.0.1")
        elif path == "/health":
            self._respond(200, "text/plain", "ok")
        elif path == "/metrics":
            self._respond(*self._metrics())
        elif match := _FILES.fullmatch(unquote(path)):
            self._respond(*self._file(match["model"], match["version"], match["day"]))
        else:
            self._respond(*self._page(unquote(path.strip("/"))))

    def _is_valid_host(self) -> bool:
        """Refuses names with a dot: another site's name may resolve to this server (DNS rebinding)."""
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
            return 200, "text/plain; version=0.0.4", self.server.exporter.text(dt.datetime.now(dt.UTC))
        except ImportError:
            return 501, "text/plain", "not installed: prometheus_client; remedy: pip install 'towline[serve]'"

    def _file(self, model: str, version: str | None, day: str | None) -> tuple[int, str, str, str]:
        """A page from the store. It is sandboxed, so that its content cannot access this address."""
        layout = self.server.settings.layout
        file = layout.drift_report(model, day or "")
        title = f"drift report of {day}"
        if version:
            title = f"card of version {version}"
            try:
                entry = open_ledger(self.server.settings).entry(model, int(version))
            except TowlineError as error:
                return 503, "text/plain", str(error), content_security_policy()
            file = layout.release(entry.release if entry else "none") / "card.html"
        try:
            return 200, "text/html", file.read_text(encoding="utf-8"), _CARD_POLICY if version else _REPORT_POLICY
        except (OSError, UnicodeDecodeError):
            return 404, "text/plain", f"{model} has no {title}", content_security_policy()

    def _page(self, name: str) -> tuple[int, str, str]:
        from towline.cli.status import read_links, read_statuses
        from towline.monitoring.status.page import render_index, render_status

        try:
            models = read_statuses(self.server.settings, None if name == ALL_MODELS else name or None)
        except ConfigError as error:
            return 404, "text/plain", str(error)
        except TowlineError as error:
            return 503, "text/plain", str(error)
        names = [model.model for model in models]
        links = read_links(self.server.settings, names) if self.server.local else Links()
        if len(models) == 1 and name != ALL_MODELS:
            return 200, "text/html", render_status(models[0], links)
        return 200, "text/html", render_index(models, dt.datetime.now(dt.UTC), links)

    def _respond(self, status: int, kind: str, text: str, policy: str = "") -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", policy or content_security_policy())
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


def main(arguments: Sequence[str] | None = None) -> None:
    from towline.config import Settings

    parser = argparse.ArgumentParser(prog="python -m towline.cli.status_server")
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default=LOOPBACK)
    options = parser.parse_args(arguments)
    StatusServer(options.port, Settings.from_environment(), options.host).serve_forever()


if __name__ == "__main__":
    main()
