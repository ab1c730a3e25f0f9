"""A load from beginning to end: its generator in a process of its own, watched from here."""

import contextlib
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from towline.errors import TowlineError, TransientError
from towline.operations.loadtest.resources import Watch
from towline.operations.loadtest.samples import Samples, intervals
from towline.operations.loadtest.target import KEY, WAIT, Target

LATE = 0.01  # seconds; a load generator later than that blames the service for itself
BUSY = 0.9  # of a core; the same


@dataclass(frozen=True)
class Load:
    """``users`` who wait for their answers, or a ``rate`` (requests/s) that waits for nobody; one of them is None."""

    seconds: float
    users: int | None = None
    rate: float | None = None

    def text(self) -> str:
        who = f"{self.users} users" if self.users else f"{self.rate:g} requests/s"
        return f"{who} for {self.seconds:g} s"


@dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
        target, load: what was asked and how.
        samples: every request.
        server: cores and memory, or why they are not known.
        cores: that the load generator used.
        interrupted: it was stopped before its end.
    """

    target: Target
    load: Load
    samples: Samples
    server: dict[str, float | str]
    cores: float
    interrupted: bool

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        if not len(self.samples):
            return 0.0
        return float((self.samples.at + self.samples.seconds).max() - self.samples.at[0])

    @property
    def failed(self) -> int:
        return int(self.samples.failed.sum())

    @property
    def answered_rate(self) -> float:
        """Right answers a second."""
        return (len(self.samples) - self.failed) / max(self.seconds, 1e-9)

    @property
    def warnings(self) -> list[str]:
        """What makes the figures say less than they seem to."""
        found = []
        late = self.samples.late
        if self.load.rate and len(late) and (share := float((late > LATE).mean())) > 0.01:
            found.append(
                f"the load generator sent {share:.0%} of the requests more than {LATE * 1e3:.0f} ms late: "
                "its machine is busy, and its own delay is in these latencies"
            )
        if self.cores > BUSY:
            found.append(f"the load generator used {self.cores:.2f} cores of its one: the service may answer more")
        if self.interrupted:
            found.append(f"stopped before its end, which would have come after {self.load.seconds:g} s")
        return found

    def document(self) -> dict[str, Any]:
        samples = self.samples
        return {
            "url": self.target.url,
            "model": self.target.model,
            "users": self.load.users,
            "rate": self.load.rate,
            "seconds": round(self.seconds, 3),
            "requests": len(samples),
            "failed": self.failed,
            "errors": samples.kinds(),
            "answered_per_second": round(self.answered_rate, 2),
            "latency_ms": samples.percentiles(),
            "server": self.server,
            "generator_cores": round(self.cores, 3),
            "interrupted": self.interrupted,
            "warnings": self.warnings,
            "over_time": [asdict(interval) for interval in intervals(samples)],
        }


def run(target: Target, load: Load, key: str | None, show: Callable[[str], None]) -> Result:
    """Puts the load on and tells how it goes, in one line again and again.

    Ctrl-C ends it early; what has happened until then is the result.

    Raises:
        TransientError: no request could be made.
        TowlineError: the load generator failed; with the end of what it said.
    """
    watch = Watch(target.url, key)
    with tempfile.TemporaryDirectory() as folder:
        kept, said = Path(folder) / "samples.csv", Path(folder) / "said.txt"
        kept.touch()
        watch.start()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.time()
        interrupted = False
        with said.open("wb") as output:
            process = subprocess.Popen(
                _command(target, load, kept),
                env={**os.environ, "PYTHONUNBUFFERED": "1"} | ({KEY: key} if key else {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that Ctrl-C reaches this process alone
            )
            try:
                _follow(process, kept, load, show)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                _end(process)
        watch.stop()
        samples = Samples.read(kept)
        end = said.read_text(errors="replace").strip()[-2000:]
    if not interrupted and (process.returncode or not len(samples)):
        raise _failed(process.returncode, end, target)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    begin = float(samples.at[0]) if len(samples) else begin
    finish = float((samples.at + samples.seconds).max()) if len(samples) else time.time()
    server = watch.told(begin, finish)
    return Result(target, load, samples, server, busy / max(finish - begin, 1e-9), interrupted)


def _command(target: Target, load: Load, kept: Path) -> list[str]:
    if load.rate:
        words = [target.url, repr(load.rate), repr(load.seconds), str(kept)]
        return [sys.executable, "-m", "towline.operations.loadtest.arrivals", *words]
    file = Path(__file__).with_name("locustfile.py")
    return [
        sys.executable, "-m", "locust", "--headless", "--locustfile", str(file), "--host", target.url,
        "--users", str(load.users), "--spawn-rate", str(load.users), "--run-time", f"{math.ceil(load.seconds)}s",
        "--stop-timeout", f"{WAIT:g}", "--samples", str(kept),
        "--only-summary", "--loglevel", "WARNING", "--exit-code-on-error", "0",
    ]  # fmt: skip


def _follow(process: "subprocess.Popen[bytes]", kept: Path, load: Load, show: Callable[[str], None]) -> None:
    """Until the generator ends; ``show`` gets a line twice a second."""
    lines = _tail(kept)
    requests = failed = 0
    began: float | None = None
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        new = Samples.of(next(lines))
        if not len(new):
            continue
        began = float(new.at[0]) if began is None else began
        requests, failed = requests + len(new), failed + int(new.failed.sum())
        passed = min(load.seconds, time.time() - began)
        rate = requests / max(time.time() - began, 0.5)
        show(
            f"{passed:4.0f} of {load.seconds:g} s   {requests:,} requests   {rate:,.0f}/s   "
            f"p99 now {new.percentiles()['p99']:,.1f} ms   {failed:,} failed"
        )


def _tail(path: Path) -> Iterator[list[str]]:
    """The whole lines that have come since."""
    rest = ""
    with path.open(encoding="utf-8") as file:
        while True:
            *lines, rest = (rest + file.read()).split("\n")
            yield lines


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(WAIT + 5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _failed(code: int, end: str, target: Target) -> TowlineError:
    if code == TransientError.exit_code:
        return TransientError("the service went away before the load began", where=target.url, remedy="try again")
    details = tuple(end.splitlines()[-8:])
    if not code:
        return TransientError(
            "no request was made in that time", where="towline loadtest", remedy="give --duration more"
        )
    return TowlineError(f"the load generator ended with {code}", where="towline loadtest", details=details)
