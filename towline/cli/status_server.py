"""Serves the status pages, rendered for each request, and ``/metrics`` for Prometheus.

``python -m towline.cli.status_server PORT [--host 0.0.0.0]``; the default is loopback. Pages need no authentication: on
other addresses, restrict access to its network. Only on loopback a version can be approved on its model's page, with an
API key that the form sends: other addresses have no TLS here.
"""

import argparse
import datetime as dt
import ipaddress
import re
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from towline.errors import ConfigError, TowlineError
from towline.html import content_security_policy
from towline.monitoring.reporting.metrics_exporter import MetricsExporter
from towline.monitoring.status.links import Links
from towline.monitoring.status.page import ALL_MODELS
from towline.registry.ledger import open_ledger

if TYPE_CHECKING:
    from towline.config import Settings

LOOPBACK = "127.0.0.1"
APPROVED_BY = "status page"  # the user in the ledger: the person is the holder of the key
_MAX_FORM = 4_096  # bytes
_FORM_TIMEOUT_S = 10.0
_BAD_KEY_DELAY_S = 1.0
_APPROVE = re.compile(r"/(?P<model>[a-z0-9][a-z0-9-]{0,62})/v(?P<version>\d{1,9})/approve")
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
    an alarm. The form that approves a version is sent to ``/NAME/v3/approve``. The pages link to Prefect, MLflow and
    Evidently if these run.
    """

    daemon_threads = True

    def __init__(self, port: int, settings: "Settings", host: str = LOOPBACK) -> None:
        super().__init__((host, port), _StatusHandler)
        self.settings = settings
        self.exporter = MetricsExporter(settings)
        self.local = host == LOOPBACK  # the other interfaces listen on loopback: links to them work only there


class _StatusHandler(BaseHTTPRequestHandler):
    server: StatusServer
    timeout = 30  # seconds; an idle connection holds a thread

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

    def do_POST(self) -> None:
        match = _APPROVE.fullmatch(self.path)
        if not self._is_valid_host() or not self.server.local or not self._is_same_origin():
            self._respond(403, "text/plain", "forms are only accepted from this page, on 127.0.0.1")
        elif match is None:
            self._respond(404, "text/plain", "no such form")
        elif (form := self._read_form()) is None:
            self._respond(400, "text/plain", f"not a form of at most {_MAX_FORM:,} bytes")
        elif message := self._approve(match["model"], int(match["version"]), form):
            self._respond(*self._page(match["model"], message))
        else:
            self.send_response(303)
            self.send_header("Location", f"/{match['model']}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _is_same_origin(self) -> bool:
        """Refuses forms of other sites' pages."""
        origin = self.headers.get("Origin")
        return origin in (None, f"http://{self.headers.get('Host', '')}")

    def _read_form(self) -> dict[str, str] | None:
        """The fields of the form; None if it is none, or too large."""
        kind, length = self.headers.get_content_type(), self.headers.get("Content-Length", "")
        if kind != "application/x-www-form-urlencoded" or not length.isdecimal() or int(length) > _MAX_FORM:
            return None
        self.connection.settimeout(_FORM_TIMEOUT_S)
        try:
            fields = parse_qs(self.rfile.read(int(length)).decode("ascii"), max_num_fields=10)
        except (OSError, ValueError):
            return None
        return {name: values[0].strip() for name, values in fields.items()}

    def _approve(self, model: str, version: int, form: Mapping[str, str]) -> str:
        """Approves a version; returns why it was refused, empty if it was not."""
        from towline.promotion.approval_decision import approve, list_approvals

        settings, name = self.server.settings, f"{model}@{version}"
        try:
            requests = list_approvals(settings, open_ledger(settings), model)
            if form.get("digest") not in [each.digest for each in requests if each.version == version]:
                return f"the page was made for another release of {name}: reload the page"
            reason = form.get("reason") or "approved"
            status = approve(settings, name, form.get("key", ""), actor=APPROVED_BY, reason=reason[:300])
        except TowlineError as error:
            if isinstance(error, ConfigError):
                time.sleep(_BAD_KEY_DELAY_S)
            return f"{error.what}; {error.remedy}" if error.remedy else error.what
        if status.state == "promoted":
            from towline.registry.mlflow.synchronization import update_mlflow

            update_mlflow(settings, model)  # a failure is repaired by the next command
        return status.note

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

    def _page(self, name: str, message: str = "") -> tuple[int, str, str, str]:
        from towline.cli.status import read_links, read_statuses
        from towline.monitoring.status.page import render_index, render_status

        try:
            models = read_statuses(self.server.settings, None if name == ALL_MODELS else name or None)
        except ConfigError as error:
            return 404, "text/plain", str(error), ""
        except TowlineError as error:
            return 503, "text/plain", str(error), ""
        names = [model.model for model in models]
        links = read_links(self.server.settings, names) if self.server.local else Links()
        if len(models) == 1 and name != ALL_MODELS:
            page = render_status(models[0], links, forms=self.server.local, message=message)
            return 409 if message else 200, "text/html", page, content_security_policy(forms=self.server.local)
        return 200, "text/html", render_index(models, dt.datetime.now(dt.UTC), links), ""

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
