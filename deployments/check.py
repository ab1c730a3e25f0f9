"""Whether what runs here does its part: ends with 0 if so.

``check.py URL`` asks an address, with CHECK_AUTH (name:password) where it is set. ``check.py --worker POOL`` asks
Prefect whether it hears of the worker on this machine.
"""

import base64
import json
import os
import socket
import sys
import urllib.error
import urllib.request


def ask(url: str, auth: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, body)  # noqa: S310 - an address of the stack
    request.add_header("Content-Type", "application/json")
    if auth:
        request.add_header("Authorization", "Basic " + base64.b64encode(auth.encode()).decode())
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=8) as answer:
        return bytes(answer.read())


def main(words: list[str]) -> str:
    try:
        if words[0] != "--worker":
            ask(words[0], os.environ.get("CHECK_AUTH", ""))
            return ""
        url = f"{os.environ['PREFECT_API_URL']}/work_pools/{words[1]}/workers/filter"
        workers = json.loads(ask(url, os.environ["PREFECT_API_AUTH_STRING"], b"{}"))
    except urllib.error.HTTPError as error:
        return "" if error.code == 404 and words[0] != "--worker" else f"{words}: {error.code}"
    except OSError as error:
        return f"{words}: {error}"
    ours = [worker["status"] for worker in workers if worker["name"].startswith(socket.gethostname())]
    return "" if "ONLINE" in ours else f"Prefect hears of no worker here: {ours}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) or 0)
