"""Steps are logged, and their cost is stored."""

import logging
import os
from pathlib import Path

import pytest

from towline import helper_process, steps
from towline.errors import DataValidationError


def test_start_end_and_cost_of_a_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the step's name; its cost is stored in the folder."""
    with caplog.at_level(logging.INFO, "towline.steps"), steps.step("split", tmp_path) as running:
        running.note = "80 to train"
    assert [record.__dict__["status"] for record in caplog.records] == ["begin", "done"]
    assert "80 to train" in caplog.text
    costs = steps.costs(tmp_path)
    assert set(costs["split"]) == {"wall_s", "cpu_s", "peak_mb"}


def test_a_failed_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the cause of the failure, and no cost is stored."""
    with (
        caplog.at_level(logging.INFO, "towline.steps"),
        pytest.raises(DataValidationError),
        steps.step("validate", tmp_path),
    ):
        raise DataValidationError("3 rules failed")
    assert "3 rules failed" in caplog.text
    assert not steps.costs(tmp_path)


def test_calls_without_a_helper_process_run_here() -> None:
    """Workers and tests need no helper process."""
    pid, _ = helper_process.call_in_helper(os.getpid)
    assert pid == os.getpid()
