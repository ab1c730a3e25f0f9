"""The output of a job is complete or absent; a job resumes, and is not repeated."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.batch import Interrupted, make_customer_table, score, use_small_shards
from towline.batch import job, shard_scoring
from towline.batch.engines import process_pool
from towline.batch.job import summary_path
from towline.batch.job_options import LogTarget
from towline.batch.runner import Progress
from towline.config import DriftConfig
from towline.errors import ConfigError, TransientError
from towline.inference.predictor import Model
from towline.prediction_log import parquet_store


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_small_shards(monkeypatch)
    make_customer_table(200, seed=3).drop(columns="bought").to_csv(tmp_path / "in.csv", index=False)
    return tmp_path / "in.csv"


@pytest.mark.parametrize("target", ["out.csv", "out.csv.gz", "out.jsonl", "out.parquet", "out"])
def test_an_interrupted_job_resumes(
    tmp_path: Path, model: Model, source: Path, scored_shards: list[int], monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Wherever it is interrupted, finished shards are not scored again, and the output has the same bytes."""
    expected, output = tmp_path / "expected" / target, tmp_path / target
    digest = score(model, source, expected).output_digest
    count = len(scored_shards)
    scored_shards.clear()
    for name, module in (("run_shards", job), ("replace_output", job), ("summary_path", job)):
        real, calls = getattr(module, name), []

        def interrupt(*arguments: Any, name: str = name, real: Any = real, calls: list[int] = calls) -> Any:
            if name == "run_shards":
                return interrupt_after(real(*arguments), 3)
            calls.append(1)
            if name == "summary_path" and len(calls) < 2:  # the first call looks for an earlier result
                return real(*arguments)
            if name == "replace_output":
                real(*arguments)
            raise Interrupted

        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupt)
            with pytest.raises(Interrupted):
                score(model, source, output)
    assert score(model, source, output).output_digest == digest
    assert scored_shards == list(range(count))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("target", ["out.csv", "out.csv.gz", "out.jsonl"])
def test_one_process_and_a_cluster_resume_each_others_jobs(
    tmp_path: Path, model: Model, source: Path, scored_shards: list[int], monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """One process appends to the output, a cluster writes a file for each shard; no finished shard is scored again."""
    digest = score(model, source, tmp_path / "expected" / target).output_digest
    count = len(scored_shards)
    scored_shards.clear()
    for shards, appended in ((2, True), (4, False), (6, True)):
        with monkeypatch.context() as patch:
            if not appended:
                patch.setattr(process_pool, "AppendedText", lambda: None)
            interrupt_job(patch, shards, model, source, tmp_path / target)
    assert score(model, source, tmp_path / target).output_digest == digest
    assert scored_shards == list(range(count))
    assert (tmp_path / target).read_bytes() == (tmp_path / "expected" / target).read_bytes()


@pytest.mark.parametrize("state", ["half a row more", "shorter", "lost"])
def test_an_unfinished_output_is_not_trusted(
    tmp_path: Path, model: Model, source: Path, scored_shards: list[int], monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Text after the last finished shard is cut; if text before its end is lost, all shards are scored again."""
    digest = score(model, source, tmp_path / "expected.csv").output_digest
    count = len(scored_shards)
    scored_shards.clear()
    interrupt_job(monkeypatch, 3, model, source, tmp_path / "out.csv")
    (unfinished,) = tmp_path.glob(".out.csv.*/output")
    match state:
        case "half a row more":
            with unfinished.open("a") as file:
                file.write("half a row")
        case "shorter":
            os.truncate(unfinished, unfinished.stat().st_size - 1)
        case _:
            unfinished.unlink()
    before = len(scored_shards)
    assert score(model, source, tmp_path / "out.csv").output_digest == digest
    assert len(scored_shards) == (count if state == "half a row more" else before + count)


def test_a_first_shard_without_good_rows_resumes(
    tmp_path: Path, model: Model, scored_shards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text is empty, and JSON lines have no header: the output of the interrupted job is empty."""
    use_small_shards(monkeypatch)
    rows = make_customer_table(60, seed=3).drop(columns="bought").astype({"size": object})
    rows.loc[:20, "size"] = "large"
    rows.to_csv(tmp_path / "in.csv", index=False)
    expected = score(model, tmp_path / "in.csv", tmp_path / "expected.jsonl")
    count = len(scored_shards)
    scored_shards.clear()
    interrupt_job(monkeypatch, 0, model, tmp_path / "in.csv", tmp_path / "out.jsonl")
    (unfinished,) = tmp_path.glob(".out.jsonl.*/output")
    assert unfinished.read_bytes() == b""
    assert score(model, tmp_path / "in.csv", tmp_path / "out.jsonl").output_digest == expected.output_digest
    assert scored_shards == list(range(count))


def test_progress_after_an_interruption(
    tmp_path: Path, model: Model, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share includes the finished shards; rows and remaining time are those of the other shards."""
    output, shown = tmp_path / "out.csv", list[Progress]()
    interrupt_job(monkeypatch, 3, model, source, output, show=shown.append)
    before = list(shown)
    shown.clear()
    result = score(model, source, output, show=shown.append)
    assert 0 < shown[0].done <= shown[0].share < shown[-1].share == 1
    assert shown[0].done == shown[-1].done >= before[-1].share
    assert shown[-1].rows < result.rows_in
    assert shown[-1].rows + before[-1].rows >= result.rows_in


def interrupt_after(results: Any, count: int) -> Any:
    for number, result in enumerate(results):
        if number == count:
            raise Interrupted
        yield result


def interrupt_job(monkeypatch: pytest.MonkeyPatch, shards: int, *arguments: Any, **options: Any) -> None:
    """Starts a job and interrupts it after this number of shards."""
    real = job.run_shards
    with monkeypatch.context() as patch:
        patch.setattr(job, "run_shards", lambda *given: interrupt_after(real(*given), shards))
        with pytest.raises(Interrupted):
            score(*arguments, **options)


def test_a_finished_job_is_not_repeated(tmp_path: Path, model: Model, source: Path, scored_shards: list[int]) -> None:
    """A job is repeated if input, options or output have changed; an output of another job needs --overwrite."""
    output = tmp_path / "out.csv"
    first = score(model, source, output)
    count = len(scored_shards)
    again = score(model, source, output)
    assert (again.unchanged, len(scored_shards)) == (True, count)
    assert "not scored again" in again.text()
    assert again.output_digest == first.output_digest
    with pytest.raises(ConfigError, match="the output exists") as caught:
        score(model, source, output, prefix="p_")
    assert "--overwrite" in caught.value.remedy
    assert not score(model, source, output, prefix="p_", overwrite=True).unchanged
    assert "p_prediction" in output.read_text()
    output.write_text("spoiled")
    assert not score(model, source, output, prefix="p_", overwrite=True).unchanged
    with source.open("a") as file:
        file.write("501,T,1,true,\n")
    assert score(model, source, output, prefix="p_", overwrite=True).rows == 201


def test_a_full_disk_leaves_the_earlier_output(
    tmp_path: Path, model: Model, source: Path, scored_shards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says that the command resumes, and it resumes."""
    output = tmp_path / "out.csv"
    output.write_text("old")
    real = shard_scoring.open_piece

    def fail(task: Any, shard: int, *direct: Any) -> Any:
        if shard == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))
        return real(task, shard, *direct)

    with monkeypatch.context() as patch:
        patch.setattr(shard_scoring, "open_piece", fail)
        with pytest.raises(TransientError, match="No space left") as full:
            score(model, source, output, overwrite=True)
    assert "run the same command again" in full.value.remedy
    assert output.read_text() == "old"
    score(model, source, output, overwrite=True)
    assert scored_shards == sorted(set(scored_shards))
    assert len(pd.read_csv(output)) == 200


def test_the_summary_has_counts_digests_and_drift(tmp_path: Path, model: Model) -> None:
    """The rows of the training table have no drift; shifted rows have drift in the shifted column."""
    table = make_customer_table(300, seed=5).drop(columns="bought")
    table.to_csv(tmp_path / "same.csv", index=False)
    table.assign(size=table["size"] + 100, word="new").to_csv(tmp_path / "shifted.csv", index=False)
    config = DriftConfig(min_rows=100)
    same = score(model, tmp_path / "same.csv", tmp_path / "out1.csv", drift=config)
    shifted = score(model, tmp_path / "shifted.csv", tmp_path / "out2.csv", drift=config)
    assert same.drift
    assert same.drift.state == "ok", same.drift
    assert same.column_checks == ()
    assert shifted.drift
    assert shifted.drift.state == "drift"
    assert {"size", "word"} <= {check.column for check in shifted.drift.checks if check.alarm}
    checks = {check.column: check for check in shifted.column_checks}
    assert (checks["size"].out_of_range > 200, checks["word"].unseen) == (True, 300)
    summary = json.loads(summary_path(tmp_path / "out2.csv").read_text())
    assert (summary["rows"], summary["input_digest"]) == (300, shifted.input_digest)
    assert summary["drift"]["state"] == "drift"


def test_shards_do_not_change_the_drift(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts of the shards add up to those of one shard."""
    make_customer_table(300, seed=8).drop(columns="bought").to_csv(tmp_path / "in.csv", index=False)
    config = DriftConfig(min_rows=100)
    single = score(model, tmp_path / "in.csv", tmp_path / "one.csv", drift=config).drift
    use_small_shards(monkeypatch)
    many = score(model, tmp_path / "in.csv", tmp_path / "many.csv", drift=config).drift
    assert single is not None
    assert many is not None
    assert [(check.column, check.name) for check in many.checks] == [
        (check.column, check.name) for check in single.checks
    ]
    assert [check.value for check in many.checks] == pytest.approx([check.value for check in single.checks])


def test_a_work_folder_of_another_input_is_removed(tmp_path: Path, model: Model, source: Path) -> None:
    """Otherwise it would remain, since the command with the old input is not repeated."""
    leftover = tmp_path / ".out.csv.towline-batch-0123456789abcdef"
    leftover.mkdir()
    (leftover / "000000.piece").write_text("x")
    score(model, source, tmp_path / "out.csv")
    assert not leftover.exists()


def test_predictions_enter_the_prediction_log(
    tmp_path: Path, model: Model, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, even if the job is interrupted after they were logged; in the format of the service."""
    log, output = tmp_path / "predictions", tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        patch.setattr(job, "summary_path", interrupt_second_call(job.summary_path))
        with pytest.raises(Interrupted):
            score(model, source, output, log=LogTarget(folder=log))
    score(model, source, output, log=LogTarget(folder=log))
    logged = parquet_store.read_predictions(log)
    table = make_customer_table(200, seed=3).drop(columns="bought")
    assert len(logged) == 200
    order = sorted(range(200), key=lambda row: (int(logged["request_id"][row].as_py().rpartition("-")[2]), row))
    assert logged["prediction"].take(order).to_pylist() == model.predict(table).tolist()
    assert logged["input.zip"].take(order).to_pylist() == table["zip"].tolist()
    assert logged["input.size"].take(order).to_pylist() == [None if pd.isna(v) else v for v in table["size"]]
    assert set(logged["version"].to_pylist()) == {3}


def interrupt_second_call(real: Any) -> Any:
    calls: list[int] = []

    def call(output: Path) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise Interrupted
        return real(output)

    return call
