"""Steps tell what goes on, and keep what it cost."""

import logging
import os
from pathlib import Path

import pytest

from towline import sidecar, steps
from towline.errors import DataValidationError


def test_a_step_tells_its_begin_end_and_cost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever listens hears the step by name; its cost is kept in the folder."""
    with caplog.at_level(logging.INFO, "towline.steps"), steps.step("split", tmp_path) as told:
        told.note = "80 to train"
    assert [record.__dict__["status"] for record in caplog.records] == ["begin", "done"]
    assert "80 to train" in caplog.text
    kept = steps.costs(tmp_path)
    assert set(kept["split"]) == {"wall_s", "cpu_s", "peak_mb"}


def test_a_failed_step_tells_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A failure is told with its cause and leaves no cost behind."""
    with (
        caplog.at_level(logging.INFO, "towline.steps"),
        pytest.raises(DataValidationError),
        steps.step("validate", tmp_path),
    ):
        raise DataValidationError("3 rules failed")
    assert "3 rules failed" in caplog.text
    assert not steps.costs(tmp_path)


def test_without_a_second_process_calls_run_here() -> None:
    """Workers and tests need not prepare anything."""
    pid, _ = sidecar.call(os.getpid)
    assert pid == os.getpid()
