"""Records of the services that `towline serve` and `towline up` have started on this machine, with their addresses."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from towline import files
from towline.config import Settings
from towline.errors import TowlineError
from towline.operations.process_record import ProcessRecord
from towline.processes import process_start_time

if TYPE_CHECKING:
    from towline.serving.process.worker import ServiceInfo


class Service(ProcessRecord):
    """A service that was started and has not been stopped; ``address`` is where this machine reaches it."""

    model: str
    address: str
    host: str


@contextmanager
def record_service(settings: Settings) -> "Iterator[Callable[[ServiceInfo], None]]":
    """Yields a function that records a service which has started; removes the record at the end of the block.

    Without a store that can be written there is no record: a service does not need one.
    """
    records: list[Path] = []

    def record(started: "ServiceInfo") -> None:
        parts = urlsplit(started.address)
        address = started.address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        pid, path = os.getpid(), settings.layout.servers / f"service-{started.model}-{parts.port}.json"
        service = Service(
            model=started.model, address=address, host=socket.gethostname(), pid=pid, start_time=process_start_time(pid)
        )
        if settings.store.is_dir():
            with contextlib.suppress(TowlineError, OSError):
                records.append(files.write(path, service.model_dump_json()))

    try:
        yield record
    finally:
        for path in records:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def find_service_addresses(settings: Settings, model: str) -> list[str]:
    """The addresses of a model's services on this machine: of those that run, else of those that were killed."""
    services = []
    for path in sorted((settings.layout.servers).glob(f"service-{model}-*.json")):
        with contextlib.suppress(OSError, ValueError):
            services.append(Service.model_validate_json(path.read_bytes()))
    here = [service for service in services if service.model == model and service.host == socket.gethostname()]
    return [service.address for service in here if service.is_running] or [service.address for service in here]
