"""The process behind ``towline serve``: opens sockets, keys, TLS files and the model, then answers or forks workers."""

import contextlib
import logging
import os
import re
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from towline.errors import ConfigError
from towline.serving.browser_access import check_hosts, check_origins
from towline.serving.options import ServeOptions
from towline.serving.process.worker import ServiceInfo, ServiceResources, serve_requests
from towline.serving.telemetry import otlp_environment

if TYPE_CHECKING:
    from towline.serving.auth import ApiKeys

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_LOG = logging.getLogger("towline.serving")
_WAIT_INTERVAL_S = 1.0  # seconds between two checks for a first version


def run_service(options: ServeOptions, on_started: Callable[[ServiceInfo], None]) -> None:
    """Serves a model until SIGTERM or SIGINT, then answers the requests that were accepted and returns.

    Args:
        options: the model, and how to serve it.
        on_started: called once, when the service answers requests.

    Raises:
        ConfigError: no such model, a port in use, keys or TLS files that cannot be read, or an address that other
            machines can reach without keys.
        ReleaseError: the release does not match its manifest.
        TransientError: the ledger is unavailable and no model was served before.
    """
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # before numpy: threads slow down the scoring of one row
    log_to_stderr()
    check_hosts(options.allowed_hosts)
    check_origins(options.cors_origins)
    otlp_environment.check_environment()
    _raise_file_limit()
    if options.wait:
        _wait_for_model(options)
    from towline.serving.model_reloader import ModelReloader
    from towline.serving.process.http_server import bind_sockets

    sockets = bind_sockets(options.host, options.port)
    try:
        keys, reloader = _read_keys(options, sockets), ModelReloader(options)
        reloader.open()
        resources = ServiceResources(options, sockets, keys, reloader, _tls_context(options))
        if options.workers == 1:
            os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
            serve_requests(resources, lambda: on_started(resources.info()))
        else:
            from towline.serving.process.supervisor import supervise

            supervise(resources, on_started)
    finally:
        for listener in sockets:
            listener.close()


class _LogFormatter(logging.Formatter):
    """One line per record, in UTC; API keys in messages are masked."""

    def converter(self, seconds: float | None) -> time.struct_time:
        return time.gmtime(seconds)

    def format(self, record: logging.LogRecord) -> str:
        return re.sub(r"tl_([0-9a-f]{8})_[\w-]+", r"tl_\1_***", super().format(record))


def log_to_stderr() -> None:
    """Writes towline's log, and the errors of uvicorn and OpenTelemetry, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LogFormatter("%(asctime)sZ %(levelname)s %(process)d %(message)s", "%Y-%m-%dT%H:%M:%S"))
    for name, level in (("towline", logging.INFO), ("uvicorn", logging.ERROR), ("opentelemetry", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _read_keys(options: ServeOptions, sockets: list[socket.socket]) -> "ApiKeys":
    from towline.serving.auth import ApiKeys
    from towline.serving.process.http_server import is_reachable

    keys = ApiKeys(options.settings.store)
    if not is_reachable(sockets):
        return keys
    if not keys.required and not options.insecure:
        raise ConfigError(
            "other machines could send requests without a key",
            where=f"--host {options.host}",
            remedy="create a key: `towline keys create NAME`; or use --host 127.0.0.1; or add --insecure",
        )
    if options.certificate is None:
        _LOG.warning("no --certificate: keys and rows are sent unencrypted unless a proxy in front uses TLS")
    return keys


def _wait_for_model(options: ServeOptions) -> None:
    """Returns when there is a version to serve; SIGTERM and SIGINT end the process with exit code 0 during the wait."""
    from towline.serving.model_reloader import ModelReloader

    signals = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.signal(number, lambda *_: sys.exit(0)) for number in signals}
    reloader, logged_reason = ModelReloader(options), ""
    while reason := reloader.unavailable_reason():
        if reason != logged_reason:
            _LOG.info("waiting for %s: %s", options.name, reason)
            logged_reason = reason
        time.sleep(_WAIT_INTERVAL_S)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _tls_context(options: ServeOptions) -> ssl.SSLContext | None:
    if options.certificate is None:
        if options.private_key is not None:
            raise ConfigError("a private key without a certificate", where="--private-key", remedy="give --certificate")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # with an empty passphrase OpenSSL does not prompt for one on the terminal
        context.load_cert_chain(options.certificate, options.private_key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"cannot use the TLS files: {reason}",
            where=" ".join(str(path) for path in (options.certificate, options.private_key) if path),
            remedy="give readable PEM files that belong together, and a private key without a passphrase",
        ) from None
    return context


def _raise_file_limit() -> None:
    """Raises the limit of open files to the system's maximum; each connection is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
