"""Batch scoring in separate processes: kills, and different numbers of workers."""

import multiprocessing
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from tests.support.batch import kill_at_shard, make_customer_table, score, train_customer_model
from tests.support.paths import TOWLINE
from tests.support.waiting import wait_until
from towline.batch.engines.process_pool import ProcessEngine
from towline.batch.input.shards import Shard
from towline.batch.job_options import ShardTask
from towline.batch.shard_scoring import score_shard
from towline.errors import TransientError

FILES, ROWS = 8, 4_000


def write_files(folder: Path, files: int, rows: int) -> None:
    folder.mkdir()
    for number in range(files):
        table = make_customer_table(rows, seed=number).drop(columns="bought")
        table.insert(0, "id", range(rows * number, rows * (number + 1)))
        table.to_csv(folder / f"part{number}.csv", index=False)


def command(folder: Path, model: Path, output: Path, workers: int) -> list[str]:
    words = [TOWLINE, "score", folder / "in", output, "--model", model, "--workers", workers]
    return [str(word) for word in words]


@pytest.mark.slow
def test_a_killed_job_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    """Killed after the first, third and fifth shard: each row is in the output once, which equals that of one worker.

    If only the main process is killed, its workers end too. The number of workers differs between the attempts.
    """
    model = train_customer_model(tmp_path / "model").directory
    write_files(tmp_path / "in", FILES, ROWS)
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


def test_a_shard_that_an_earlier_cluster_run_completes_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard is completed elsewhere after the local workers have started: the job uses the result and ends."""
    model, prepare = train_customer_model(tmp_path / "model"), ProcessEngine.prepare
    write_files(tmp_path / "in", 4, 100)
    expected = score(model, tmp_path / "in", tmp_path / "expected.csv").output_digest

    def prepare_and_write_piece(engine: ProcessEngine, shards: Sequence[Shard], task: ShardTask) -> None:
        prepare(engine, shards, task)
        score_shard(shards[1], task)

    monkeypatch.setattr(ProcessEngine, "prepare", prepare_and_write_piece)
    assert score(model, tmp_path / "in", tmp_path / "out.csv", workers=2).output_digest == expected


def test_a_worker_that_is_killed_while_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits to append its shard: the job ends with an error, and the next job completes the output."""
    model, submit = train_customer_model(tmp_path / "model"), ProcessEngine.submit
    write_files(tmp_path / "in", 3, 100)
    expected = score(model, tmp_path / "in", tmp_path / "expected.csv").output_digest

    def kill_a_waiting_worker(engine: ProcessEngine, shard: Shard, task: ShardTask, report: object) -> object:
        handle = submit(engine, Shard(**{**shard.model_dump(), "number": 1}), task, report)  # shard 0 is not written
        wait_until(lambda: bool(list(task.work.glob(".000001.quarantine.*"))))  # it has started
        for worker in multiprocessing.active_children()[:1]:  # in a later call all may have ended
            worker.kill()
        return handle

    with monkeypatch.context() as patch:
        patch.setattr(ProcessEngine, "submit", kill_a_waiting_worker)
        with pytest.raises(TransientError, match="a worker process ended"):
            score(model, tmp_path / "in", tmp_path / "out.csv", workers=2)
    assert score(model, tmp_path / "in", tmp_path / "out.csv", workers=2).output_digest == expected
