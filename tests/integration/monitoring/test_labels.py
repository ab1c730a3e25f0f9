"""Labels added by a process that is killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.labels import CLASSES, LabelledLog
from tests.support.paths import REPOSITORY
from towline.prediction_log import labels


@pytest.fixture
def labelled_log(tmp_path: Path) -> LabelledLog:
    return LabelledLog(tmp_path, CLASSES)


ADDER = """
import datetime as dt, pathlib, sys
from tests.support.labels import CLASSES, LabelledLog
labelled_log = LabelledLog(pathlib.Path(sys.argv[1]), CLASSES)
print("ready", flush=True)
print(labelled_log.add(pathlib.Path(sys.argv[2]), now=dt.datetime(2026, 11, 20, tzinfo=dt.UTC)))
"""


@pytest.mark.slow
def test_kills_while_labels_are_added(labelled_log: LabelledLog) -> None:
    """After SIGKILL at any time the file is stored completely or not at all; a repetition stores it once."""
    labelled_log.predict("r1", "r2")
    path = labelled_log.file("request_id,y\n" + "".join(f"r{number},yes\n" for number in range(40_000)))
    command = [sys.executable, "-c", ADDER, str(labelled_log.folder), str(path)]
    for pause in (0.0, 0.1, 0.2, 0.3, 0.5):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert process.stdout
        process.stdout.readline()
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(labels.LabelStore(labelled_log.log.labels).table()) in (0, 40_000)
    labelled_log.add(path)
    assert len(labels.LabelStore(labelled_log.log.labels).table()) == 40_000
    assert labelled_log.read() == {"r1": "yes", "r2": "yes"}
    assert not list(labelled_log.log.labels.glob(".part-*"))
