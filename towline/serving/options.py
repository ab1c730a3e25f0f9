"""The options of ``towline serve``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from towline.config import Settings


@dataclass(frozen=True)
class ServeOptions:
    """Options of a service.

    Args:
        name: ``NAME`` (its champion, followed as it changes), ``NAME@VERSION``, or a directory of a release.
        settings: where the store and the ledger are.
        host: address to listen on, or a name for it.
        port: 0 picks a free port.
        workers: number of worker processes.
        insecure: whether to listen for other machines although no key exists.
        certificate: PEM file with the chain; enables TLS.
        private_key: PEM file; None if the certificate's file holds it.
        max_body: maximum bytes of a request body.
        max_rows: maximum rows of a request.
        rate: requests per second for each key, or each address without keys; counted by each worker.
        allowed_hosts: allowed names in the Host header, besides loopback. If empty, a service on loopback without keys
            allows loopback only, and any other service allows all names.
        cors_origins: sites whose pages may send requests from a browser.
        trusted: your own packages whose estimators the release may contain.
        log: whether predictions are logged.
        grace: seconds after SIGTERM in which requests are still accepted, so that load balancers notice.
        drain: maximum seconds from SIGTERM to the end.
        metrics: ``emf``: the metrics are also written to stdout, in CloudWatch's embedded metric format.
        metrics_interval: seconds between two such writings.
        wait: whether to wait for the model's first version, or for an unavailable ledger, instead of exiting.
    """

    name: str
    settings: Settings
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    insecure: bool = False
    certificate: Path | None = None
    private_key: Path | None = None
    max_body: int = 5_000_000
    max_rows: int = 10_000
    rate: float | None = None
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()
    log: bool = True
    grace: float = 1.0
    drain: float = 25.0
    metrics: Literal["emf"] | None = None
    metrics_interval: float = 60.0
    wait: bool = False

    @property
    def state(self) -> Path:
        """The folder of the keys and of the last known good version."""
        return self.settings.layout.serving
