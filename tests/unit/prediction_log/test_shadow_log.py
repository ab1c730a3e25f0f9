"""The shadow log while the disk fails."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from towline.inference.scorer import RowPredictions
from towline.prediction_log import segments, shadow_log
from towline.prediction_log.segments import finished_segments
from towline.prediction_log.shadow_log import ShadowLog

MODEL: Any = SimpleNamespace(contract=SimpleNamespace(classes=()), version=2, name="houses")


def test_memory_is_bounded_while_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows beyond the limit are dropped and counted; the others are written when the disk works again."""
    monkeypatch.setattr(shadow_log, "_MAX_PENDING_BYTES", 20_000)
    monkeypatch.setattr(segments, "_RETRY", 0.0)
    (tmp_path / "log").write_text("no folder")
    log = ShadowLog(tmp_path / "log", "w1")
    for number in range(1000):
        log.add(f"r{number}", 1e9, MODEL, 0, RowPredictions([1.0] * 10, None))
        log.flush()
    assert 0 < log.lost < 10_000
    assert len([record for record in caplog.records if "cannot be written" in record.getMessage()]) == 1
    (tmp_path / "log").unlink()
    log.close()
    written = b"".join(path.read_bytes() for path in finished_segments(tmp_path / "log"))
    assert written.count(b'"id":') == (10_000 - log.lost) / 10
    assert f"rows lost so far: {log.lost}" in caplog.text
