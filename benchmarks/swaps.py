"""Swaps the champion under constant load, then checks every answer against the version it names.

    python benchmarks/swaps.py --swaps 100

Two versions of a model are trained, one is served, and callers ask without a pause while the ledger promotes the one
and rolls back to the other. Each answer is kept with its request id, its version and its rows. Afterwards each of the
two releases is opened here and asked for the same rows: an answer that is not exactly its version's own is mixed.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.kill import MODEL, Line, write_config  # noqa: E402
from towline.config import Settings  # noqa: E402
from towline.inference.predictor import open_release  # noqa: E402
from towline.operations import servers  # noqa: E402
from towline.registry.ledger import Ledger  # noqa: E402


class Answer(NamedTuple):
    """One answer; ``rows`` are positions in the pool, times are of this process's monotonic clock."""

    request_id: str
    version: int
    rows: tuple[int, ...]
    predictions: list[Any]
    began: float
    ended: float


class Serving:
    """A ``towline serve`` in a process of its own, that answers."""

    def __init__(self, settings: Settings, name: str, *words: str, wait: bool = True) -> None:
        self.log = Path(tempfile.mkstemp(prefix="towline-serve-", suffix=".log")[1])
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TOWLINE_")}
        environment |= {"TOWLINE_STORE": str(settings.store), "TOWLINE_LEDGER_URL": settings.ledger_url}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("towline")), "serve", name, "--port", "0", "--json", *words],
                env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        self.told: dict[str, Any] = {}
        if wait:
            assert self.process.stdout is not None
            text = ""
            while not text.endswith("\n}\n"):
                line = self.process.stdout.readline()
                if not line:
                    raise RuntimeError(f"it did not start:\n{self.log.read_text()}")
                text += line
            self.told = json.loads(text)

    @property
    def port(self) -> int:
        return int(self.told["address"].rpartition(":")[2])

    def memory(self) -> float:
        """Resident memory of the process in MiB, without its workers."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def end(self, name: signal.Signals = signal.SIGTERM) -> int:
        """Tells it to end and waits; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(name)
        return self.process.wait(timeout=40)

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.log.unlink(missing_ok=True)


@dataclass
class Load:
    """Callers that ask without a pause, each on a connection that it keeps as long as the service does."""

    port: int
    pool: Sequence[dict[str, Any]]
    headers: str = ""
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    refused: int = 0  # connections that were not taken: nothing was asked on them
    stop: bool = False

    async def run(self, callers: int, until: Callable[[], Any]) -> None:
        """Asks until ``until``, which runs in a thread, returns."""
        working = [asyncio.create_task(self._call(number)) for number in range(callers)]
        try:
            await asyncio.to_thread(until)
        finally:
            self.stop = True
            await asyncio.gather(*working)

    async def _call(self, number: int) -> None:
        draw, count, pair = random.Random(number), 0, None
        while not self.stop:
            if pair is None:
                try:
                    pair = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    self.refused += 1
                    await asyncio.sleep(0.02)
                    continue
            rows = tuple(draw.randrange(len(self.pool)) for _ in range(draw.choice((1, 1, 1, 8))))
            count += 1
            try:
                async with asyncio.timeout(30):
                    keep = await self._ask(*pair, f"{number}-{count}", rows)
            except (OSError, EOFError, ValueError, KeyError, TimeoutError) as error:
                self.failures.append(f"{number}-{count}: {type(error).__name__}: {error}"[:300])
                keep = False
            if not keep:
                pair[1].close()
                pair = None
        if pair:
            pair[1].close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, rows: tuple[int, ...]
    ) -> bool:
        body = json.dumps({"rows": [self.pool[row] for row in rows]}).encode()
        head = (
            f"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nx-request-id: {name}\r\n"
            f"{self.headers}content-length: {len(body)}\r\n\r\n"
        )
        began = time.monotonic()
        writer.write(head.encode() + body)
        top = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").lower()
        size = int(top.partition("content-length:")[2].partition("\r\n")[0])
        content = await reader.readexactly(size)
        ended = time.monotonic()
        if not top.startswith("http/1.1 200"):
            raise ValueError(f"{top.partition(chr(13))[0]} {content[:200]!r}")
        told = json.loads(content)
        if told["request_id"] != name:
            raise ValueError(f"answered {told['request_id']} to {name}")
        self.answers.append(Answer(name, told["model"]["version"], rows, told["predictions"], began, ended))
        return "connection: close" not in top

    def mixed(self, releases: dict[int, Path]) -> list[str]:
        """Answers that are not exactly what the version they name gives to their rows."""
        own = {}
        for version in {answer.version for answer in self.answers}:
            own[version] = open_release(releases[version]).predict_rows(self.pool).predictions
        return [
            answer.request_id
            for answer in self.answers
            if answer.predictions != [own[answer.version][row] for row in answer.rows]
        ]

    def longest_gap(self) -> float:
        """Seconds in which no answer came at all."""
        times = sorted(answer.ended for answer in self.answers)
        return max(after - before for before, after in itertools.pairwise(times))


def swap(ledger: Ledger, model: str, load: Load, times: int, newer: int) -> list[float]:
    """Promotes ``newer`` and rolls back in turn; seconds from each change of the ledger to the first answer by it."""
    seen = []
    for number in range(times):
        champion = ledger.champion(model)
        if number % 2 == 0:
            wanted = ledger.promote_again(model, newer, champion.version if champion else None, "swaps", "").version
        else:
            wanted = ledger.rollback(model, "swaps", "").version
        began, read = time.monotonic(), len(load.answers)
        while not any(answer.version == wanted and answer.began > began for answer in load.answers[read:]):
            read = len(load.answers)
            if time.monotonic() - began > 30:
                raise RuntimeError(f"version {wanted} does not answer after 30 s")
            time.sleep(0.01)
        seen.append(time.monotonic() - began)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="towline swaps ") as folder:
        line = Line(Path(folder) / "store", write_config(Path(folder)))
        try:
            for candidate in ("linear", "{estimator: boosting, params: {max_iter: 60}}"):
                code, _, err = line.run("--set", f"candidates=[{candidate}]")
                if code:
                    raise SystemExit(err)
        finally:
            servers.stop(line.settings)
        releases = {row.version: line.store / row.release for row in line.ledger.versions(MODEL)}
        line.ledger.rollback(MODEL, "swaps", "begin with the older")
        pool = json.loads((releases[1] / "probe.json").read_bytes())["rows"]
        with Serving(line.settings, MODEL, "--workers", str(given.workers)) as serving:
            load, seen, memory = Load(serving.port, pool), [], [serving.memory()]
            asyncio.run(load.run(given.callers, lambda: seen.extend(swap(line.ledger, MODEL, load, given.swaps, 2))))
            memory.append(serving.memory())
            code = serving.end()
        mixed = load.mixed(releases)
        latency = sorted(answer.ended - answer.began for answer in load.answers)
        versions = Counter(answer.version for answer in load.answers)
        for name, value in (
            ("requests answered", f"{len(load.answers):,}"),
            ("by version", ", ".join(f"{version}: {count:,}" for version, count in sorted(versions.items()))),
            ("failures", len(load.failures)),
            ("swaps", len(seen)),
            ("mixed answers", len(mixed)),
            ("picked up after, median", f"{sorted(seen)[len(seen) // 2]:.2f} s"),
            ("picked up after, at most", f"{max(seen):.2f} s"),
            ("longest gap without an answer", f"{load.longest_gap() * 1e3:.0f} ms"),
            ("latency, median", f"{latency[len(latency) // 2] * 1e3:.1f} ms"),
            ("latency, p99", f"{latency[len(latency) * 99 // 100] * 1e3:.1f} ms"),
            ("memory, before and after", " and ".join(f"{size:.0f} MiB" for size in memory)),
            ("exit code of the service", code),
        ):
            print(f"{name:<32}{value:>24}")
        for problem in (*load.failures[:10], *mixed[:10]):
            print(problem, file=sys.stderr)


if __name__ == "__main__":
    main()
