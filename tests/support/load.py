"""Clients that load a service: RecordingLoad keeps each response, CountingLoad counts statuses and latencies."""

import asyncio
import collections
import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from towline.inference.predictor import open_release
from towline.registry.ledger import Ledger

CALLERS = 6
BIKE_ROW = {
    "datetime": "2012-12-18T08:00:00", "season": "fall", "hour": 8, "weekday": "Tue", "holiday": 0, "workingday": 1,
    "weather": "mist", "temp_c": 12.7, "feels_like_c": 13.0, "humidity": 94, "windspeed_kmh": 9.0,
}  # fmt: skip


class RecordedResponse(NamedTuple):
    """One response; ``rows`` are positions in the pool, times are of this process's monotonic clock."""

    request_id: str
    version: int
    rows: tuple[int, ...]
    predictions: list[Any]
    started: float
    ended: float


@dataclass
class RecordingLoad:
    """Clients that send requests without a pause, each on one connection as long as the service keeps it open."""

    port: int
    pool: Sequence[dict[str, Any]]
    headers: str = ""
    answers: list[RecordedResponse] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    refused: int = 0  # refused connections, on which no request was sent
    stop: bool = False

    async def run(self, callers: int, until: Callable[[], Any]) -> None:
        """Sends requests until ``until``, which runs in a thread, returns."""
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
                    keep = await self._send_request(*pair, f"{number}-{count}", rows)
            except (OSError, EOFError, ValueError, KeyError, TimeoutError) as error:
                self.failures.append(f"{number}-{count}: {type(error).__name__}: {error}"[:300])
                keep = False
            if not keep:
                pair[1].close()
                pair = None
        if pair:
            pair[1].close()

    async def _send_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, rows: tuple[int, ...]
    ) -> bool:
        body = json.dumps({"rows": [self.pool[row] for row in rows]}).encode()
        head = (
            f"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nx-request-id: {name}\r\n"
            f"{self.headers}content-length: {len(body)}\r\n\r\n"
        )
        started = time.monotonic()
        writer.write(head.encode() + body)
        top = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").lower()
        size = int(top.partition("content-length:")[2].partition("\r\n")[0])
        content = await reader.readexactly(size)
        ended = time.monotonic()
        if not top.startswith("http/1.1 200"):
            raise ValueError(f"{top.partition(chr(13))[0]} {content[:200]!r}")
        document = json.loads(content)
        if document["request_id"] != name:
            raise ValueError(f"answered {document['request_id']} to {name}")
        self.answers.append(
            RecordedResponse(name, document["model"]["version"], rows, document["predictions"], started, ended)
        )
        return "connection: close" not in top

    def find_wrong_predictions(self, releases: dict[int, Path]) -> list[str]:
        """Responses that differ from the predictions of the version that they name."""
        expected = {}
        for version in {answer.version for answer in self.answers}:
            expected[version] = open_release(releases[version]).predict_rows(self.pool).predictions
        return [
            answer.request_id
            for answer in self.answers
            if answer.predictions != [expected[answer.version][row] for row in answer.rows]
        ]

    def longest_gap(self) -> float:
        """The longest time without a response, in seconds."""
        times = sorted(answer.ended for answer in self.answers)
        return max(after - before for before, after in itertools.pairwise(times))


class LoadCounts(NamedTuple):
    """The number of responses by status (0: no response), and latencies in milliseconds."""

    statuses: dict[int, int]
    p99: float
    longest: float

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status != 200)


class CountingLoad:
    """Clients that wait for each response before the next request; they run during the block."""

    def __init__(self, port: int, key: str, rows: Sequence[object]) -> None:
        self._port, self._body = port, json.dumps({"rows": rows})
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        self._statuses: collections.Counter[int] = collections.Counter()
        self._seconds: list[float] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._go) for _ in range(CALLERS)]

    def __enter__(self) -> "CountingLoad":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def counts(self) -> LoadCounts:
        ordered = sorted(self._seconds)
        return LoadCounts(dict(self._statuses), ordered[int(len(ordered) * 0.99)] * 1e3, ordered[-1] * 1e3)

    def _go(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=15)
        while not self._ended.is_set():
            started = time.perf_counter()
            try:
                connection.request("POST", "/predict", self._body, self._headers)
                response = connection.getresponse()
                response.read()
                status = response.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            self._seconds.append(time.perf_counter() - started)
            self._statuses[status] += 1
            time.sleep(0.01)


def swap_champions(ledger: Ledger, model: str, load: RecordingLoad, times: int, newer: int) -> list[float]:
    """Promotes ``newer`` and rolls back, alternately; seconds from each change to the first response with it."""
    delays = []
    for number in range(times):
        champion = ledger.champion(model)
        if number % 2 == 0:
            champion_version = ledger.promote_again(
                model, newer, champion.version if champion else None, "swaps", ""
            ).version
        else:
            champion_version = ledger.rollback(model, "swaps", "").version
        changed, checked = time.monotonic(), len(load.answers)
        while not any(
            answer.version == champion_version and answer.started > changed for answer in load.answers[checked:]
        ):
            checked = len(load.answers)
            if time.monotonic() - changed > 30:
                raise RuntimeError(f"version {champion_version} does not answer after 30 s")
            time.sleep(0.01)
        delays.append(time.monotonic() - changed)
    return delays
