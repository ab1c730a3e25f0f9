"""Health check of the service on this machine: ``python -m towline.serving.process.health``.

The exit code is 0 if the service is ready and 1 if not. ``--wait 60`` repeats the check for up to 60 seconds. ``--rows
FILE`` sends the ``rows`` of the file to /predict and prints the response. Uses the standard library only.
"""

import argparse
import http.client
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m towline.serving.process.health")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--rows", type=Path, metavar="FILE")
    options = parser.parse_args(words)
    if options.rows:
        rows = json.loads(options.rows.read_bytes())["rows"]
        status, answer = _request(options.port, "POST", "/predict", json.dumps({"rows": rows}))
        sys.stdout.write(answer + "\n")
        return int(status != 200)
    until = time.monotonic() + options.wait
    while (status := _ready(options.port)) != 200 and time.monotonic() < until:
        time.sleep(0.1)
    return int(status != 200)


def _ready(port: int) -> int:
    try:
        return _request(port, "GET", "/readyz")[0]
    except (OSError, http.client.HTTPException):
        return 0


def _request(port: int, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30 if body else 4)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
