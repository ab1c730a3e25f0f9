"""The helper process of a run."""

import os
import signal
import time
from pathlib import Path

import pytest

from towline import helper_process
from towline.config import read_config
from towline.errors import ConfigError, TransientError


def test_the_helper_process_returns_results_and_errors(tmp_path: Path) -> None:
    """Functions run in the other process; an error keeps its type and its remedy."""
    helper_process.start(tmp_path / "log")
    helper_process.submit(int, "not a number")
    try:
        pid, _ = helper_process.call_in_helper(os.getpid)
        assert pid != os.getpid()
        with pytest.raises(ConfigError) as caught:
            helper_process.call_in_helper(read_config, Path("nowhere.yaml"))
        assert caught.value.remedy
        with pytest.raises(TransientError, match="killed"):
            helper_process.call_in_helper(os.kill, pid, signal.SIGKILL)
    finally:
        helper_process.stop()


def test_the_helper_process_ends_with_its_run(tmp_path: Path) -> None:
    """A killed run leaves no process that continues to write."""
    import subprocess
    import sys

    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom towline import helper_process\n"
        f"if __name__ == '__main__':\n    helper_process.start(Path({str(tmp_path / 'log')!r}))\n"
        "    print(helper_process.call_in_helper(os.getpid)[0], flush=True)\n    time.sleep(60)\n"
    )
    (tmp_path / "main.py").write_text(code)
    run = subprocess.Popen([sys.executable, tmp_path / "main.py"], stdout=subprocess.PIPE, text=True)
    assert run.stdout
    helper_pid = int(run.stdout.readline())
    run.kill()
    run.wait()
    for _ in range(100):
        if not Path(f"/proc/{helper_pid}/cmdline").exists() or not Path(f"/proc/{helper_pid}/cmdline").read_bytes():
            break
        time.sleep(0.1)
    else:
        os.kill(helper_pid, signal.SIGKILL)
        pytest.fail("the helper process outlived the run")
