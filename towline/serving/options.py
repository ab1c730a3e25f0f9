"""What one service is told when it starts."""

from dataclasses import dataclass
from pathlib import Path

from towline.config import Settings


@dataclass(frozen=True)
class Options:
    """How to serve one model. It can be pickled.

    Args:
        name: ``NAME`` (its champion, followed as it changes), ``NAME@VERSION``, or a directory of a release.
        settings: where the store and the ledger are.
        host: the address to bind, or a name for it.
        port: 0 takes a free one.
        workers: processes that answer.
        insecure: serve other machines although there is no key.
        certificate: PEM file with the chain; TLS is used when it is given.
        private_key: PEM file; None when the certificate's file holds it.
        max_body: bytes a request may have.
        max_rows: rows a request may have.
        rate: requests a second for each key, or each address where there are no keys; counted by each worker.
        allowed_hosts: names in the Host header that are answered, besides those of loopback. When none is given, a
            service on loopback answers these alone while it has no keys, and any other service answers to all.
        cors_origins: sites whose pages may ask from a browser.
        trusted: packages of your own whose estimators may be in the release.
        log: whether predictions are logged.
        grace: seconds after the order to end in which requests are still taken, so that load balancers notice.
        drain: seconds from the order to end to the end, at most.
        wait: whether to wait for the model's first version, and for a ledger that is away, instead of ending.
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
    wait: bool = False

    @property
    def state(self) -> Path:
        """Where the service keeps its keys and what it served last."""
        return self.settings.layout.serving
