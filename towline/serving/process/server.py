"""The process behind ``towline serve``: sockets, one process or several, an orderly end."""

import contextlib
import gc
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
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from towline.errors import ConfigError
from towline.serving.browser_access import check_hosts, check_origins
from towline.serving.options import Options
from towline.serving.process import sockets as listening

if TYPE_CHECKING:
    from towline.prediction_log.writer import PredictionLog
    from towline.serving.auth import Keys
    from towline.serving.model_reloader import Live

LOG = logging.getLogger("towline.serving")
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_SWITCH = 0.0005  # seconds that a thread which reads a large request may hold up the event loop
_WAIT = 1.0  # seconds between two looks for a first version
_KEEP_ALIVE = 75  # seconds a connection may idle; longer than the minute after which load balancers close theirs


@dataclass(frozen=True)
class Started:
    """What a service says of itself once it answers."""

    address: str
    docs: str
    model: str
    version: int
    compiled: bool
    workers: int
    pid: int

    def text(self) -> str:
        how = "compiled" if self.compiled else "scikit-learn answers: slow"
        several = f", {self.workers} workers" if self.workers > 1 else ""
        return f"{self.address} serves {self.model} version {self.version} ({how}{several}); docs: {self.docs}"


@dataclass(frozen=True)
class Service:
    """Everything a process needs to answer, made before it forks."""

    options: Options
    sockets: list[socket.socket]
    keys: "Keys"
    live: "Live"
    tls: ssl.SSLContext | None

    def started(self) -> Started:
        model = self.live.model
        assert model is not None  # noqa: S101 - opened before anything listens
        host, port = self.sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        address = f"{'https' if self.tls else 'http'}://{shown}:{port}"
        return Started(
            address=address,
            docs=f"{address}/docs",
            model=model.name,
            version=model.version,
            compiled=model.compiled,
            workers=self.options.workers,
            pid=os.getpid(),
        )


def run(options: Options, started: Callable[[Started], None]) -> None:
    """Serves until SIGTERM or SIGINT, then lets the requests that were taken end.

    Args:
        options: what to serve, and how.
        started: is called once, when the service answers.

    Raises:
        ConfigError: no such model, a port that is taken, keys or TLS files that cannot be read, an address that other
            machines reach without keys.
        ReleaseError: the release is not what its manifest says.
        TransientError: the ledger is away and nothing was served before.
    """
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # before numpy: threads make the answer to one row slower
    log_to_stderr()
    check_hosts(options.allowed_hosts)
    check_origins(options.cors_origins)
    _raise_file_limit()
    if options.wait:
        _wait(options)
    sockets = listening.bind(options.host, options.port)
    try:
        service = Service(options, sockets, _keys(options, sockets), _live(options), _tls(options))
        if options.workers == 1:
            os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
            answer(service, lambda: started(service.started()))
        else:
            from towline.serving.process.workers import supervise

            supervise(service, started)
    finally:
        for one in sockets:
            one.close()


def answer(service: Service, ready: Callable[[], None], orphaned: int | None = None) -> None:
    """Answers requests in this process until it is told to end.

    Args:
        service: what to serve.
        ready: called when requests are answered.
        orphaned: a file descriptor that ends when the supervisor does; this process ends then too.
    """
    from uvicorn.config import Config

    from towline.serving.app import create
    from towline.serving.process.connection import Connection
    from towline.serving.process.draining import Draining

    options, live = service.options, service.live

    def answering() -> None:
        gc.collect()
        gc.freeze()  # a request does not wait while the collector goes through what was made at the start
        gc.set_threshold(20_000, 50, 100)  # a request makes hundreds of objects and no cycles
        sys.setswitchinterval(_SWITCH)
        live.follow()
        ready()

    log = _prediction_log(service)
    config = Config(
        create(options, live, service.keys, log, loopback=not listening.open_to_others(service.sockets)),
        loop="uvloop",
        http=Connection,
        ws="none",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=2048,
        timeout_keep_alive=_KEEP_ALIVE,
        ssl_context_factory=None if service.tls is None else lambda *_: service.tls,  # type: ignore[arg-type]
    )
    server = Draining(config, options.grace, options.drain, answering, live.drain, orphaned)
    try:
        server.run(service.sockets)
    finally:
        live.close()
        if log is not None:
            log.close(timeout=min(10.0, max(1.0, server.left())))
    LOG.info("ended")


class _Lines(logging.Formatter):
    """One line a record, in UTC; a key that got into a message does not get out."""

    def converter(self, seconds: float | None) -> time.struct_time:
        return time.gmtime(seconds)

    def format(self, record: logging.LogRecord) -> str:
        return re.sub(r"tl_([0-9a-f]{8})_[\w-]+", r"tl_\1_***", super().format(record))


def log_to_stderr() -> None:
    """Plain lines of the service's own log, and what goes wrong in the web server."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(asctime)sZ %(levelname)s %(process)d %(message)s", "%Y-%m-%dT%H:%M:%S"))
    for name, level in (("towline", logging.INFO), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _keys(options: Options, sockets: list[socket.socket]) -> "Keys":
    from towline.serving.auth import Keys

    keys = Keys(options.settings.store)
    if not listening.open_to_others(sockets):
        return keys
    if not keys.required and not options.insecure:
        raise ConfigError(
            "other machines could ask without a key",
            where=f"--host {options.host}",
            remedy="make one: `towline keys create NAME`; or keep to 127.0.0.1; or say --insecure",
        )
    if options.certificate is None:
        LOG.warning("no --certificate: keys and rows travel unencrypted unless a proxy in front speaks TLS")
    return keys


def _wait(options: Options) -> None:
    """Returns once there is something to serve; ends the process in order when it is told to meanwhile."""
    from towline.serving.model_reloader import Live

    before = {one: signal.signal(one, lambda *_: sys.exit(0)) for one in (signal.SIGTERM, signal.SIGINT)}
    live, told = Live(options), ""
    while why := live.missing():
        if why != told:
            LOG.info("waiting for %s: %s", options.name, why)
            told = why
        time.sleep(_WAIT)
    for one, handler in before.items():
        signal.signal(one, handler)


def _live(options: Options) -> "Live":
    from towline.serving.model_reloader import Live

    live = Live(options)
    live.open()
    return live


def _tls(options: Options) -> ssl.SSLContext | None:
    if options.certificate is None:
        if options.private_key is not None:
            raise ConfigError("a private key without a certificate", where="--private-key", remedy="give --certificate")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # an empty passphrase: OpenSSL would else ask for it on the terminal
        context.load_cert_chain(options.certificate, options.private_key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"cannot use the TLS files: {said}",
            where=" ".join(str(path) for path in (options.certificate, options.private_key) if path),
            remedy="give PEM files that belong together, readable, the private key without a passphrase",
        ) from None
    return context


def _prediction_log(service: Service) -> "PredictionLog | None":
    from towline.prediction_log.writer import PredictionLog

    model = service.live.model
    if not service.options.log or model is None:
        return None
    worker = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:40] + f"-{os.getpid()}"
    folder = service.options.settings.layout.predictions(model.name)
    return PredictionLog(folder, worker, convert=find_spec("pyarrow") is not None)


def _raise_file_limit() -> None:
    """A connection is an open file: takes as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
