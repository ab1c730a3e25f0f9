"""Markers in columns with personal data: no command copies them out of the snapshot."""

import json
import os
import stat
import struct
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.support.commands import run_command
from tests.support.databases import copy_databases
from tests.support.paths import REPOSITORY
from tests.support.serve_process import ServeProcess
from tests.support.traces import find_traces
from towline import helper_process
from towline.config import Settings
from towline.operations import servers

ROWS = 600
TOWNS = [f"town-mk{n}x7q" for n in range(6)]
TEXTS = {
    "name": "Name-mkA9fz", "email": "mkB7@example.org", "remark": "a long remark mkC5 " * 5, "street": "Street mkD3w",
    "customer": "customer-mkE1v", "household": "household-mkF8u",
}  # fmt: skip
NUMBERS = {"income": 918273.6455, "age": 48213.579, "phone": 491768302, "score": 7736251}
DATES = {"born": "1871-03-29", "joined": "1873-09-17", "left": "1874-05-23"}
AGED = {"column": "age", "max_value": 9}
PII = ["town", *TEXTS, *NUMBERS, *DATES]
assert len({*TOWNS, *TEXTS, *NUMBERS, *DATES, "town"}) == 20


def markers() -> list[bytes]:
    """Each marker as text, number and time, and in the encodings of columnar and array files."""
    encodings = [text.strip().encode() for text in (*TOWNS, *TEXTS.values(), *DATES.values())]
    for number in NUMBERS.values():
        encodings += [str(number).encode(), struct.pack("<d", number)]
        if isinstance(number, int):
            encodings.append(struct.pack("<q", number))
    for text in DATES.values():
        moment = pd.Timestamp(text)
        encodings += [struct.pack("<q", moment.value // unit) for unit in (1, 10**3, 10**6)]
    return encodings


def table(rows: int = ROWS, seed: int = 1) -> pd.DataFrame:
    """Rows whose first three hold every marker; the towns occur in all rows."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"at": pd.date_range("2026-01-01", periods=rows, freq="h"), "size": rng.normal(0, 1, rows)})
    frame["town"] = rng.choice(TOWNS, rows)
    for name in ("name", "email", "street", "customer"):
        frame[name] = [f"{name}-{n}" for n in rng.permutation(rows)]
    frame["remark"] = [f"{n} " + "nothing to remark about this row at all " * 3 for n in rng.permutation(rows)]
    frame["household"] = [f"household-{n // 15}" for n in range(rows)]
    frame["income"] = rng.normal(30_000, 5_000, rows)
    frame["age"] = rng.normal(40, 9, rows)
    frame["phone"] = rng.integers(10**8, 2 * 10**8, rows)
    frame["score"] = rng.integers(0, 100, rows)
    for name in DATES:
        frame[name] = pd.Timestamp("1950-01-01") + pd.to_timedelta(rng.integers(0, 20_000, rows), unit="D")
    for name, value in {**TEXTS, **NUMBERS}.items():
        frame.loc[:2, name] = value
    for name, text in DATES.items():
        frame.loc[:2, name] = pd.Timestamp(text)
    frame["y"] = 3 * frame["size"] + 2 * (frame["town"] == TOWNS[0]) + rng.normal(0, 0.3, rows)
    return frame


def drifted_rows() -> pd.DataFrame:
    """Rows without the target, with drift, that hold every marker."""
    return table(200, seed=2).drop(columns="y").assign(size=lambda frame: frame["size"] + 4)


@dataclass
class UsedStore:
    """A store after training, serving and monitoring.

    Attributes:
        folder: the store.
        output: of the service and the commands.
    """

    folder: Path
    output: str


@pytest.fixture(scope="module")
def used_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UsedStore]:
    """The commands start a Prefect server in the store, as a user's do."""
    folder = tmp_path_factory.mktemp("personal")
    table().to_parquet(folder / "t.parquet", index=False)
    config = folder / "t.yaml"
    raw = {
        "name": "people",
        "data": {
            "source": str(folder / "t.parquet"),
            "target": "y",
            "time": "at",
            "group": "household",
            "columns": {"left": "ignore", "joined": "datetime", "phone": "ignore"},
        },
        "privacy": {"pii": PII, "join_on": ["customer"], "columns": {"score": "hash"}},
        "validation": {
            "columns": {"income": {"max": 900_000, "severity": "warn"}},
            "expectations": [{"type": "expect_column_max_to_be_between", "severity": "warn"} | {"kwargs": AGED}],
        },
        "candidates": [
            {"estimator": "boosting", "params": {"max_iter": 30, "early_stopping": False, "max_leaf_nodes": 31}}
        ],
        "cross_validation": {"folds": 2},
        "evaluation": {"resamples": 50},
        "quality": {"delay": "1h", "min_labels": 10},
        "drift": {"min_rows": 10},
        "retrain": {"bad_windows": 5, "recent_windows": 5},
    }
    config.write_text(yaml.safe_dump(raw))
    outputs = []

    def run(*words: object, codes: tuple[int, ...] = (0,)) -> None:
        result = run_command(*words)
        assert result.code in codes, result.err
        outputs.append(result.out + result.err)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOWLINE_PROJECT", str(REPOSITORY))
        patch.setenv("TOWLINE_STORE", str(folder / "store"))
        patch.setenv("PREFECT_HOME", str(folder / "store" / "prefect"))
        patch.delenv("PREFECT_API_URL", raising=False)  # of the session's server
        settings = Settings.from_environment()
        copy_databases(settings)
        patch.setattr(helper_process, "start", lambda _: None)  # the modules are imported once, in this process
        try:
            run("validate", config)
            run("run", config)
            outputs.append(_serve_markers(settings))
            drifted_rows().to_csv(folder / "new.csv", index=False)
            labels = table(200, seed=2)[["customer", "y"]].drop_duplicates("customer")
            labels.loc[len(labels) + 1] = [f"{TEXTS['customer']}-of-whom-no-prediction-is-known", 1.0]
            labels.to_csv(folder / "labels.csv", index=False)
            run("labels", "add", "people", folder / "labels.csv", "--by", "customer")
            run("score", folder / "new.csv", folder / "scored.csv")
            run("drift", config, "--current", folder / "new.csv", "--report")
            run("drift", config)
            run("quality", config)
            run("status", "people")
            run("run", config, "--set", "validation.columns.income.severity=error", codes=(3,))
            run("run", config, "--set", "candidates=[linear]", codes=(0, 4))
            yield UsedStore(settings.store, "\n".join(outputs))
        finally:
            servers.stop(settings)


def _serve_markers(settings: Settings) -> str:
    """The output of a service that has predicted rows with every marker."""
    with ServeProcess(settings, "people") as service:
        address = service.startup["address"]
        rows = json.loads(drifted_rows().to_json(orient="records", date_format="iso"))
        request = urllib.request.Request(
            f"{address}/predict", json.dumps({"rows": rows}).encode(), {"Content-Type": "application/json"}
        )
        output = str(service.startup)
        with urllib.request.urlopen(request, timeout=30) as response:  # on loopback
            assert len(json.load(response)["predictions"]) == len(rows)
        for path in ("/docs", "/openapi.json", "/metadata", "/metrics", "/v2/models/people"):
            with urllib.request.urlopen(address + path, timeout=30) as response:  # on loopback
                output += response.read().decode()
        assert service.stop() == 0
        return output + service.log.read_text()


def test_no_marker_outside_the_snapshot(used_store: UsedStore) -> None:
    """No marker is in releases, MLflow, Prefect, Evidently, logs, workspaces or the commands' output."""
    (snapshot,) = (used_store.folder / "datasets").glob("*.parquet")
    for part in ("releases", "artifacts", "prefect", "evidently", "monitoring", "predictions", "logs"):
        assert any((used_store.folder / part).rglob("*")), part
    encodings = markers()
    assert len(find_traces(snapshot.parent, encodings)) > 15
    assert find_traces(used_store.folder, encodings, [snapshot]) == []
    assert [encoding for encoding in encodings if encoding in used_store.output.encode()] == []


def test_only_the_user_can_read_the_store(used_store: UsedStore) -> None:
    """Each file of the store has mode 0600 and each folder 0700, whichever library has written it."""
    os.umask(before := os.umask(0))
    assert before != 0o077, "the test would prove nothing"
    readable = []
    for path in used_store.folder.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if not path.is_symlink() and not path.is_socket() and mode & 0o077:
            readable.append(f"{path.relative_to(used_store.folder)} {mode:o}")
    assert readable == []
