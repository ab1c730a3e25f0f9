"""Where the services answer that `towline serve` and `towline up` have started on this machine."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from towline import files
from towline.config import Frozen, Settings
from towline.errors import TowlineError
from towline.processes import born, lives

if TYPE_CHECKING:
    from towline.serving.process.server import Started


class Service(Frozen):
    """A service that was started and has not ended in order; ``address`` is where this machine reaches it."""

    model: str
    address: str
    host: str
    pid: int
    born: str

    @property
    def runs(self) -> bool:
        return lives(self.pid, self.born)


@contextmanager
def noted(settings: Settings) -> "Iterator[Callable[[Started], None]]":
    """Gives what notes a service that answers; the note goes when the service ends.

    A store that is not there, or cannot be written, takes no note: a service needs neither.
    """
    notes: list[Path] = []

    def note(started: "Started") -> None:
        parts = urlsplit(started.address)
        address = started.address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        pid, path = os.getpid(), settings.layout.servers / f"service-{started.model}-{parts.port}.json"
        service = Service(model=started.model, address=address, host=socket.gethostname(), pid=pid, born=born(pid))
        if settings.store.is_dir():
            with contextlib.suppress(TowlineError, OSError):
                notes.append(files.write(path, service.model_dump_json()))

    try:
        yield note
    finally:
        for path in notes:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def find(settings: Settings, model: str) -> list[str]:
    """The addresses of a model's services on this machine: those that run, else those that were killed."""
    services = []
    for path in sorted((settings.layout.servers).glob(f"service-{model}-*.json")):
        with contextlib.suppress(OSError, ValueError):
            services.append(Service.model_validate_json(path.read_bytes()))
    here = [one for one in services if one.model == model and one.host == socket.gethostname()]
    return [one.address for one in here if one.runs] or [one.address for one in here]
