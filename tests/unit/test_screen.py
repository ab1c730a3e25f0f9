"""The text at the end of a run."""

import logging
import re
import threading
from pathlib import Path

import click
import pytest

from tests.support.paths import REPOSITORY
from towline.cli import screen
from towline.config import Settings
from towline.promotion.gate import GateCheck, Verdict
from towline.promotion.outcome import Outcome
from towline.steps import step

DETAIL = (
    "mae 23.25 against 23.31 of version 1 on 9,201 rows new to it, better by 0.06 "
    "(90 % interval -4.029 to +4.149, + is better)"
)
OUTCOME = Outcome(
    model="bikes",
    version=2,
    event="refused",
    reason="inconclusive: " + ", ".join(f"check number {number}" for number in range(12)),
    run_key="",
    release="v2",
    dataset={"source": "bikes.csv", "rows": 600, "start": None, "end": None},
    checked={"rules": 9, "warned": 1, "warnings": ["temp_c: " + "colder than ever before, " * 8], "notes": []},
    split={"train": 480, "holdout": 120, "by": "random", "cut": None},
    verdict=Verdict(
        outcome="inconclusive",
        checks=(GateCheck(name="champion", outcome="inconclusive", detail=DETAIL),),
        primary="mae",
    ),
)


def summary() -> list[str]:
    settings = Settings.from_environment({"TOWLINE_STORE": "/s"}, cwd=REPOSITORY)
    return click.unstyle(screen.summary(OUTCOME, settings)).splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_long_lines_are_wrapped_with_indentation(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is longer than the terminal's width, and no number is split; continued lines are indented."""
    monkeypatch.setenv("COLUMNS", str(width))
    lines = summary()
    assert max(map(len, lines)) <= width
    at = next(place for place, line in enumerate(lines) if line.startswith("  ? champion:"))
    whole = [lines[at]]
    for line in lines[at + 1 :]:
        if not re.match(r" {4}\S", line):
            break
        whole.append(line)
    assert len(whole) == -(-len(f"  ? champion: {DETAIL}") // width)
    assert " ".join(line.strip() for line in whole) == f"? champion: {DETAIL}"
    assert not any(line.startswith("%") for line in map(str.strip, whole))


def test_no_line_is_wrapped_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that is not on a terminal can be searched line by line."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert f"  ? champion: {DETAIL}" in summary()


def test_prints_of_user_code_go_to_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """stdout is for the result, which a script may read as JSON; steps are shown as usual."""
    log = tmp_path / "logs" / "towline.log"
    with screen.progress(log):
        with step("fit"):
            print("epoch 1", "loss 0.5")
            thread = threading.Thread(target=print, args=("from a fold",))
            thread.start()
            thread.join()
        logging.getLogger("library").warning("a record")  # Prefect replaces towline's handlers when it is imported
    print("the result")
    shown = capsys.readouterr()
    assert shown.out == "the result\n"
    assert re.fullmatch(r"✓ fit +0\.0 s\n", shown.err)
    text = log.read_text()
    assert "epoch 1 loss 0.5\n" in text
    assert "from a fold\n" in text
    assert "WARNING library: a record\n" in text


def test_a_command_without_log_records_creates_no_log(tmp_path: Path) -> None:
    """Neither the file nor its folder is created."""
    with screen.progress(tmp_path / "store" / "logs" / "towline.log"):
        pass
    assert list(tmp_path.iterdir()) == []
