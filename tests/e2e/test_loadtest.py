"""`towline loadtest` understands what `towline serve` says of itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.swaps import Serving
from tests.shelf import MODEL, Shelf
from towline.serving.auth import create_key


@pytest.mark.parametrize("kind", [["--users", "4"], ["--rate", "100"]])
def test_the_real_service_bears_load(shelf: Shelf, kind: list[str]) -> None:
    """Two workers with keys: no request fails, and cores and memory of both are told."""
    key, _ = create_key(shelf.settings.store, "load", ("admin",), None)
    with Serving(shelf.settings, MODEL, "--workers", "2") as serving:
        command = [Path(sys.executable).with_name("towline"), "loadtest", serving.told["address"], "--duration", "2s"]
        done = subprocess.run(
            [*command, *kind, "--json"],
            env={**os.environ, "TOWLINE_API_KEY": key}, capture_output=True, text=True, check=False, timeout=90,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["model"] == f"{MODEL}@1"
        assert told["failed"] == 0
        assert told["requests"] > 20
        assert told["server"]["cores"] > 0
        assert told["server"]["memory_most_mb"] > 2 * 20
