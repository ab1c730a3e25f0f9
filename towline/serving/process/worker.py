"""A worker process: answers HTTP requests with the model until it receives a stop signal."""

import gc
import logging
import os
import re
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from towline.serving.options import ServeOptions

if TYPE_CHECKING:
    from towline.prediction_log.writer import PredictionLog
    from towline.serving.auth import ApiKeys
    from towline.serving.model_reloader import ModelReloader

_LOG = logging.getLogger("towline.serving")
_SWITCH_INTERVAL_S = 0.0005  # longest time that a thread which parses a large request blocks the event loop
_KEEP_ALIVE_S = 75  # idle time of a connection; longer than the 60 s after which load balancers close theirs


@dataclass(frozen=True)
class ServiceInfo:
    """The address and the model of a running service, as printed at the start."""

    address: str
    docs: str
    model: str
    version: int
    compiled: bool
    workers: int
    pid: int

    def text(self) -> str:
        scorer = "compiled" if self.compiled else "not compiled: scores with scikit-learn, which is slow"
        workers = f", {self.workers} workers" if self.workers > 1 else ""
        return f"{self.address} serves {self.model} version {self.version} ({scorer}{workers}); docs: {self.docs}"


@dataclass(frozen=True)
class ServiceResources:
    """The parts of a worker that answer requests. It is opened before the workers are forked."""

    options: ServeOptions
    sockets: list[socket.socket]
    keys: "ApiKeys"
    reloader: "ModelReloader"
    tls: ssl.SSLContext | None

    def info(self) -> ServiceInfo:
        model = self.reloader.model
        assert model is not None  # noqa: S101 - opened before anything listens
        host, port = self.sockets[0].getsockname()[:2]
        shown_host = f"[{host}]" if ":" in host else host
        address = f"{'https' if self.tls else 'http'}://{shown_host}:{port}"
        return ServiceInfo(
            address=address,
            docs=f"{address}/docs",
            model=model.name,
            version=model.version,
            compiled=model.compiled,
            workers=self.options.workers,
            pid=os.getpid(),
        )


def serve_requests(
    resources: ServiceResources, on_started: Callable[[], None], supervisor_pipe: int | None = None
) -> None:
    """Answers requests in this process until SIGTERM or SIGINT.

    Args:
        resources: sockets, model and keys.
        on_started: called when requests are answered.
        supervisor_pipe: file descriptor that closes when the supervisor ends; this process then ends too.
    """
    from uvicorn.config import Config

    from towline.serving.app import create_app
    from towline.serving.process.connection import HttpConnection
    from towline.serving.process.http_server import DrainingServer, Lifecycle, is_reachable

    options, reloader = resources.options, resources.reloader

    def start() -> None:
        gc.collect()
        gc.freeze()  # the collector skips everything made during the start
        gc.set_threshold(20_000, 50, 100)  # a request makes hundreds of objects and no cycles
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        reloader.follow()
        on_started()

    log = _open_prediction_log(resources)
    config = Config(
        create_app(options, reloader, resources.keys, log, loopback=not is_reachable(resources.sockets)),
        loop="uvloop",
        http=HttpConnection,
        ws="none",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=2048,
        timeout_keep_alive=_KEEP_ALIVE_S,
        ssl_context_factory=None if resources.tls is None else lambda *_: resources.tls,  # type: ignore[arg-type]
    )
    server = DrainingServer(config, Lifecycle(options.grace, options.drain, start, reloader.drain, supervisor_pipe))
    try:
        server.run(resources.sockets)
    finally:
        reloader.close()
        if log is not None:
            log.close(timeout=min(10.0, max(1.0, server.seconds_left())))
    _LOG.info("ended")


def _open_prediction_log(resources: ServiceResources) -> "PredictionLog | None":
    from towline.prediction_log.writer import PredictionLog

    model = resources.reloader.model
    if not resources.options.log or model is None:
        return None
    worker = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:40] + f"-{os.getpid()}"
    folder = resources.options.settings.layout.predictions(model.name)
    return PredictionLog(folder, worker, convert=find_spec("pyarrow") is not None)
