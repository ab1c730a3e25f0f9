"""`towline serve` in a separate process, on a free port."""

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.support.paths import TOWLINE
from towline.config import Settings


def read_startup(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON document that `towline serve --json` prints on stdout when it is ready.

    Raises:
        RuntimeError: the process ended before it was ready.
    """
    assert process.stdout is not None
    text = ""
    while not text.endswith("\n}\n"):
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("`towline serve` did not start")
        text += line
    document: dict[str, Any] = json.loads(text)
    return document


class ServeProcess:
    """A running `towline serve`; as a context manager it is killed at the end of the block.

    Args:
        settings: the store and the ledger.
        name: the model to serve.
        options: options of the command.
        wait: whether to return only when the service is ready.

    Attributes:
        log: the file with its stderr.
        startup: the JSON document that the command prints when it is ready; empty without ``wait``.
    """

    def __init__(self, settings: Settings, name: str, *options: str, wait: bool = True) -> None:
        self.log = Path(tempfile.mkstemp(prefix="towline-serve-", suffix=".log")[1])
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TOWLINE_")}
        environment |= {"TOWLINE_STORE": str(settings.store), "TOWLINE_LEDGER_URL": settings.ledger_url}
        words = [TOWLINE, "serve", name, "--port", "0", "--json", *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        self.startup: dict[str, Any] = {}
        if wait:
            try:
                self.startup = read_startup(self.process)
            except RuntimeError as error:
                raise RuntimeError(f"{error}:\n{self.log.read_text()}") from None

    @property
    def port(self) -> int:
        return int(self.startup["address"].rpartition(":")[2])

    def memory(self) -> float:
        """Resident memory of the process in MiB, without its workers."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def stop(self, name: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal, waits for the end, and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(name)
        return self.process.wait(timeout=120)

    def __enter__(self) -> "ServeProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.log.unlink(missing_ok=True)
