"""Latency of normal clients during attacks: p50, p95 and p99 without an attack and during each of them.

Usage: hostile.py [--seconds 10] [--json FILE] [--cache DIR]

Four normal clients post one row each on an open connection, and pause for 2 ms between two requests. The attacks, one
after the other, are: eight connections that send bodies in chunks of one byte, with a key and without; four that send
objects of 300,000 keys; eight with invalid keys; eight that send many requests in one write; and four that send gzip
without end. Each sends its next request as soon as one is refused. Normal clients and attackers are separate
processes, the attackers at lower priority: the service is measured, not the share of the cores that the load takes.
For comparison, the last load is valid bodies of the maximum size.
"""

import argparse
import contextlib
import gzip
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from peers import prepare
from peers.environments import CACHE

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.support.serve_process import ServeProcess  # noqa: E402
from towline.config import Settings  # noqa: E402

CALLERS = 4
PAUSE = 0.002  # seconds between two honest requests of a caller
SPAWN = multiprocessing.get_context("spawn")


class Attack(NamedTuple):
    """``sent`` again and again on each of so many connections."""

    name: str
    connections: int
    sent: bytes


def head(key: str, more: str) -> bytes:
    shown = f"X-API-Key: {key}\r\n" if key else ""
    return f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n{shown}Content-Type: application/json\r\n{more}\r\n".encode()


def whole(key: str, body: bytes, more: str = "") -> bytes:
    return head(key, f"Content-Length: {len(body)}\r\n{more}") + body


def attacks(key: str, row: dict[str, Any]) -> list[Attack]:
    chunks = b"1\r\n \r\n" * 1_000_000 + b"0\r\n\r\n"
    chunked = "Transfer-Encoding: chunked\r\n"
    keys = json.dumps({"row": {f"key{number}": 1 for number in range(300_000)}}).encode()
    body = json.dumps({"row": row}).encode()
    rows = json.dumps({"rows": [row] * 10_000}, separators=(",", ":")).encode()[:4_900_000]
    count = rows.count(b"{") - 2
    rows = json.dumps({"rows": [row] * count}, separators=(",", ":")).encode()
    return [
        Attack("chunks of one byte", 8, head(key, chunked) + chunks),
        Attack("the same without a key", 8, head("", chunked) + chunks),
        Attack("objects of 300,000 keys", 4, whole(key, keys)),
        Attack("bad keys", 8, whole("tl_00000000_" + "x" * 43, body)),
        Attack("requests in one write", 8, whole("", body) * 2_000),
        Attack("gzip without end", 4, whole(key, gzip.compress(b" " * 200_000_000, 1), "Content-Encoding: gzip\r\n")),
        Attack("bodies as large as allowed", 2, whole(key, rows)),
    ]


def until(ended: Any, work: Callable[[], None]) -> None:
    while not ended.value:
        with contextlib.suppress(OSError):
            work()


def send_normal_requests(port: int, request: bytes, ready: Any, ended: Any, results: Any) -> None:
    """Milliseconds of each answer, and how many were none."""
    waited: list[float] = []
    failed = [0]

    def call() -> None:
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not ended.value:
                began = time.perf_counter()
                connection.sendall(request)
                answer = connection.recv(65_536)
                waited.append((time.perf_counter() - began) * 1e3)
                if not answer.startswith(b"HTTP/1.1 200"):
                    failed[0] += 1
                    return
                time.sleep(PAUSE)

    threads = [threading.Thread(target=until, args=(ended, call)) for _ in range(CALLERS)]
    ready.wait()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((waited, failed[0]))


def attack(port: int, connections: int, sent: bytes, ready: Any, ended: Any, counts: Any) -> None:
    """Sends, reads until it is answered or thrown out, and begins anew."""
    os.nice(10)

    def go(place: int) -> None:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.settimeout(5)
            while not ended.value:
                counts[place] += 1
                connection.sendall(sent)
                answer = connection.recv(1_000_000)
                if not answer or b"connection: close" in answer:
                    return

    threads = [
        threading.Thread(target=until, args=(ended, partial(go, place)), daemon=True) for place in range(connections)
    ]
    ready.wait()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure(port: int, request: bytes, hostile: Attack | None, seconds: float) -> dict[str, Any]:
    """One line of the table."""
    ended, results = SPAWN.RawValue("b", 0), SPAWN.Queue()
    counts = SPAWN.RawArray("l", hostile.connections if hostile else 1)
    ready = SPAWN.Barrier(3 if hostile else 2)
    processes = [SPAWN.Process(target=send_normal_requests, args=(port, request, ready, ended, results), daemon=True)]
    if hostile:
        given = (port, hostile.connections, hostile.sent, ready, ended, counts)
        processes.append(SPAWN.Process(target=attack, args=given, daemon=True))
    for process in processes:
        process.start()
    ready.wait(60)
    time.sleep(seconds)
    ended.value = 1
    waited, failed = results.get(timeout=60)
    for process in processes:
        process.join(10)
    waited.sort()
    return {
        "attack": hostile.name if hostile else "none",
        **{f"p{part}": waited[min(len(waited) - 1, int(len(waited) * part / 100))] for part in (50, 95, 99)},
        "max": waited[-1],
        "answers": len(waited),
        "failed": failed,
        "attempts": sum(counts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--json", type=Path, help="all figures, into this file")
    parser.add_argument("--cache", type=Path, default=CACHE)
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    store = given.cache / "store"
    try:
        sample = prepare.train(store, "bench-boosting", prepare.BOOSTING)
        key = prepare.key(store)
    finally:
        prepare.stop_servers(store)
    settings = Settings(project=REPOSITORY, store=store, tracking_uri="", ledger_url=f"sqlite:///{store}/ledger.db")
    request = whole(key, json.dumps({"rows": sample.rows[:1]}).encode())
    lines = []
    print("| attack | p50, ms | p95 | p99 | longest | answers | failed | hostile attempts |\n|---|" + "---:|" * 7)
    with ServeProcess(settings, sample.name) as serving:
        measure(serving.port, request, None, 2)  # warm
        for hostile in (None, *attacks(key, sample.rows[0]), None):
            line = measure(serving.port, request, hostile, given.seconds)
            lines.append(line)
            times = " | ".join(f"{line[name]:.1f}" for name in ("p50", "p95", "p99", "max"))
            print(
                f"| {line['attack']} | {times} | {line['answers']:,} | {line['failed']} | {line['attempts']:,} |",
                flush=True,
            )
        serving.stop()
    if given.json:
        given.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
