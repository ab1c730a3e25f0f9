"""Batch scoring in tests: a model with several kinds of columns, and jobs with small shards."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.releases import train_run
from tests.support.waiting import wait_until
from towline.batch import addresses
from towline.batch.batch_summary import BatchResult
from towline.batch.input import records, shards
from towline.batch.job import score_source
from towline.batch.job_options import BatchOptions, BatchRequest
from towline.inference.predictor import Model, open_release
from towline.store import StoreLayout


class Interrupted(BaseException):
    """Simulates the end of the process."""


def make_customer_table(rows: int = 300, seed: int = 5) -> pd.DataFrame:
    """A zip code, a word, a number with nulls, a boolean and a date; the target is whether a customer bought."""
    rng = np.random.default_rng(seed)
    size = rng.normal(20, 9, rows).round(3)
    zips, words = rng.choice(["00501", "501", "10115"], rows), rng.choice(["T", "-5", 'a "b", c', "two\nlines"], rows)
    value = size + 10 * (zips == "00501") + rng.normal(0, 3, rows)
    return pd.DataFrame(
        {
            "zip": zips,
            "word": words,
            "size": np.where(rng.random(rows) < 0.1, np.nan, size),
            "flag": rng.random(rows) < 0.5,
            "day": pd.date_range("2025-01-01", periods=rows, freq="7h"),
            "bought": np.where(value > 25, "yes", "no"),
        }
    )


def train_customer_model(folder: Path) -> Model:
    """A compiled model of these columns."""
    columns = {"zip": "category", "word": "category", "flag": "boolean", "day": "datetime"}
    run = train_run(folder, make_customer_table(), "linear", target="bought", columns=columns)
    return open_release(run.settings.store / run.package().path)


def score(model: Model, source: Path | str, output: Path, **options: Any) -> BatchResult:
    """Scores files with default options, except these and those of the job."""
    names, show = ("workers", "engine", "scheduler", "overwrite", "drift", "log"), options.pop("show", None)
    job = {name: options.pop(name) for name in names if name in options}
    request = BatchRequest(source=str(source), output=output, options=BatchOptions(**options), **job)
    return score_source(model, request, show)


def kill_at_shard(
    command: list[str], shard_results: Callable[[], Iterable[Path]], count: int, *, workers: bool = True, **process: Any
) -> bool:
    """Kills a command, with or without its workers, once ``count`` shards have a result; waits until all have ended.

    Returns:
        Whether the command was still running.
    """
    running = subprocess.Popen(command, start_new_session=True, **process)
    while running.poll() is None and len(list(shard_results())) < count:
        time.sleep(0.005)
    is_killed = running.poll() is None
    if is_killed:
        (os.killpg if workers else os.kill)(running.pid, signal.SIGKILL)
    running.wait()
    wait_until(lambda: not _is_group(running.pid))
    return is_killed


def _is_group(number: int) -> bool:
    """Whether a process of this group runs."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def score_addresses(model: Model, source: str, output: str, folder: Path, **options: Any) -> BatchResult:
    """Like ``score``, for URLs; a relative path starts at the folder, which is also the store."""
    job = {name: options.pop(name) for name in ("workers", "overwrite") if name in options}
    request = partial(BatchRequest, options=BatchOptions(**options), folder=folder, **job)
    return addresses.score(model, addresses.parse_source(source, None), output, request, StoreLayout(folder))


def use_small_shards(monkeypatch: pytest.MonkeyPatch, size: int = 500, block: int = 120) -> None:
    """Sets the size of shards to about ``size`` bytes, which are read in blocks of ``block`` bytes."""
    monkeypatch.setattr(shards, "_shard_bytes", lambda _head: size)
    monkeypatch.setattr(records, "BLOCK_BYTES", block)
