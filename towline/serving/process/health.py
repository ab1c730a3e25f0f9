"""Asks the service on this machine, without a library: ``python -m towline.serving.process.health``.

Ends with 0 where it is ready and 1 where it is not. ``--wait 60`` goes on asking for so many seconds; ``--rows FILE``
sends the file's ``rows`` to be predicted and prints the answer.
"""

import argparse
import http.client
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> int:
    given = argparse.ArgumentParser(prog="python -m towline.serving.process.health")
    given.add_argument("--port", type=int, default=8080)
    given.add_argument("--wait", type=float, default=0.0, metavar="SECONDS")
    given.add_argument("--rows", type=Path, metavar="FILE")
    options = given.parse_args(words)
    if options.rows:
        rows = json.loads(options.rows.read_bytes())["rows"]
        status, answer = _ask(options.port, "POST", "/predict", json.dumps({"rows": rows}))
        sys.stdout.write(answer + "\n")
        return int(status != 200)
    until = time.monotonic() + options.wait
    while (status := _ready(options.port)) != 200 and time.monotonic() < until:
        time.sleep(0.1)
    return int(status != 200)


def _ready(port: int) -> int:
    try:
        return _ask(port, "GET", "/readyz")[0]
    except (OSError, http.client.HTTPException):
        return 0


def _ask(port: int, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30 if body else 4)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
