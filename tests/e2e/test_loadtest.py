"""`towline loadtest` against a real `towline serve`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sample_store import MODEL, SampleStore
from tests.support.serve_process import ServeProcess
from towline.api_keys import create_key


@pytest.mark.parametrize("kind", [["--users", "4"], ["--rate", "100"]])
def test_load_test_of_a_real_service(sample_store: SampleStore, kind: list[str]) -> None:
    """Two workers with API keys: no request fails; the report has the CPU and memory of both."""
    key, _ = create_key(sample_store.settings.store, "load", ("admin",), None)
    with ServeProcess(sample_store.settings, MODEL, "--workers", "2") as serving:
        command = [
            Path(sys.executable).with_name("towline"),
            "loadtest",
            serving.startup["address"],
            "--duration",
            "2s",
        ]
        result = subprocess.run(
            [*command, *kind, "--json"],
            env={**os.environ, "TOWLINE_API_KEY": key}, capture_output=True, text=True, check=False, timeout=90,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        assert report["model"] == f"{MODEL}@1"
        assert report["failed"] == 0
        assert report["requests"] > 20
        assert report["server"]["cores"] > 0
        assert report["server"]["memory_max_mb"] > 2 * 20
