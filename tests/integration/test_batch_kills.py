"""Batch scoring in processes of its own: kills, and the number of workers."""

import subprocess
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from tests.support.batch import kill_at_shard, make_customer_table, train_customer_model
from tests.support.paths import TOWLINE

FILES, ROWS = 8, 4_000


def command(folder: Path, model: Path, output: Path, workers: int) -> list[str]:
    words = [TOWLINE, "score", folder / "in", output, "--model", model, "--workers", workers]
    return [str(word) for word in words]


@pytest.mark.slow
def test_a_killed_job_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    """Killed after the first, the third and the fifth shard: each row is there once, and one worker gives the same.

    If only the main process is killed, its workers end too. One worker continues the work of several, and they its.
    """
    model = train_customer_model(tmp_path / "model").directory
    (tmp_path / "in").mkdir()
    for number in range(FILES):
        table = make_customer_table(ROWS, seed=number).drop(columns="bought")
        table.insert(0, "id", range(ROWS * number, ROWS * (number + 1)))
        table.to_csv(tmp_path / "in" / f"part{number}.csv", index=False)
    subprocess.run(command(tmp_path, model, tmp_path / "expected.csv", 1), check=True)
    output, kills = tmp_path / "out.csv", 0
    for finished, count in ((1, 2), (3, 1), (5, 2)):
        words = command(tmp_path, model, output, count)
        results = partial(tmp_path.glob, ".out.csv.*/*.json")
        kills += kill_at_shard(words, results, finished, workers=finished == 1)
        assert not output.exists() or output.read_bytes() == (tmp_path / "expected.csv").read_bytes()
    assert kills
    subprocess.run(command(tmp_path, model, output, 2), check=True)
    assert output.read_bytes() == (tmp_path / "expected.csv").read_bytes()
    assert pd.read_csv(output)["id"].tolist() == list(range(FILES * ROWS))
    assert not list(tmp_path.glob(".out.csv.*"))
