"""The compared servers: the command, the request and the parser of the response of each."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.environments import HERE
from peers.prepare import TOWLINE

NUMBERS = ("age", "balance", "campaign", "pdays", "previous")
Row = Mapping[str, Any]


def _rows(rows: Sequence[Row]) -> Any:
    return {"rows": rows}


def _records(rows: Sequence[Row]) -> Any:
    return {"dataframe_records": rows}


def _columns(rows: Sequence[Row]) -> Any:
    """The Open Inference Protocol as MLServer's pandas codec reads it: one input a column."""
    inputs = [
        {
            "name": name,
            "shape": [len(rows)],
            "datatype": "FP64" if name in NUMBERS else "BYTES",
            "data": [row[name] for row in rows],
            **({} if name in NUMBERS else {"parameters": {"content_type": "str"}}),
        }
        for name in rows[0]
    ]
    return {"parameters": {"content_type": "pd"}, "inputs": inputs}


@dataclass(frozen=True)
class Place:
    """The inputs of a server's command: its environment's bin folder, its working folder, the model, free ports."""

    bin: Path
    work: Path
    model: Path
    ports: Sequence[int]

    @property
    def port(self) -> str:
        return str(self.ports[0])


Words = Callable[[Place], list[str]]


@dataclass(frozen=True)
class Server:
    """One line of the table.

    Attributes:
        name: of the line.
        command: the words that start it.
        folder: its own under ``peers``, with its requirements; empty for what runs in this environment.
        versions: distributions whose versions the table shows.
        before: words that prepare its working folder.
        path: of the request.
        body: rows → body of the request.
        labels: body of the response → labels.
        model: which of the samples it serves.
        checked: False for what answers a constant.
    """

    name: str
    command: Words
    folder: str = ""
    versions: tuple[str, ...] = ()
    before: Words | None = None
    path: str = "/predict"
    body: Callable[[Sequence[Row]], Any] = _rows
    labels: Callable[[Any], list[Any]] = lambda answer: answer["predictions"]
    model: str = "boosting"
    checked: bool = True


def _towline(model: str, workers: int) -> Words:
    return lambda at: [TOWLINE, "serve", f"bench-{model}", "--port", at.port, "--workers", str(workers)]


def _gunicorn(at: Place) -> list[str]:
    where = ["--workers", "1", "--bind", f"127.0.0.1:{at.port}", "--chdir", str(HERE / "flask")]
    return [str(at.bin / "gunicorn"), *where, "--log-level", "warning", "app:app"]


def _noop(*words: str) -> Words:
    return lambda at: [str(at.bin / "python"), str(HERE / "noop" / "app.py"), at.port, *words]


def _uvicorn(at: Place) -> list[str]:
    where = ["--app-dir", str(HERE / "fastapi"), "--host", "127.0.0.1", "--port", at.port]
    return [str(at.bin / "uvicorn"), *where, "--no-access-log", "--log-level", "warning", "app:app"]


def _save(at: Place) -> list[str]:
    return [str(at.bin / "python"), str(HERE / "mlflow" / "save.py"), str(at.work / "saved")]


def _mlflow(at: Place) -> list[str]:
    what = ["models", "serve", "--model-uri", str(at.work / "saved"), "--env-manager", "local"]
    return [str(at.bin / "mlflow"), *what, "--host", "127.0.0.1", "--port", at.port]


def _mlserver(at: Place) -> list[str]:
    http, grpc, metrics = at.ports
    server = {"debug": False, "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    model = {"name": "bank", "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": str(at.model)}}
    (at.work / "settings.json").write_text(json.dumps(server))
    (at.work / "model-settings.json").write_text(json.dumps(model))
    return [str(at.bin / "mlserver"), "start", str(at.work)]


def _bentoml(at: Place) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", at.port, "--working-dir", str(HERE / "bentoml")]
    return [str(at.bin / "bentoml"), "serve", "service:Bank", *where]


def _litserve(at: Place) -> list[str]:
    return [str(at.bin / "python"), str(HERE / "litserve" / "server.py"), at.port]


SERVERS = (
    Server("no-op, our stack", _noop(), versions=("uvicorn",), checked=False),
    Server("no-op, uvicorn as it comes", _noop("plain"), versions=("uvicorn",), checked=False),
    Server("towline, 1 worker", _towline("boosting", 1), versions=("towline",)),
    Server("towline, 2 workers", _towline("boosting", 2), versions=("towline",)),
    Server("Flask + joblib", _gunicorn, "flask", ("flask", "gunicorn")),
    Server("FastAPI + pandas", _uvicorn, "fastapi", ("fastapi", "uvicorn")),
    Server("mlflow models serve", _mlflow, "mlflow", ("mlflow",), before=_save, path="/invocations", body=_records),
    Server(
        "MLServer", _mlserver, "mlserver", ("mlserver",), path="/v2/models/bank/infer",
        body=_columns, labels=lambda answer: answer["outputs"][0]["data"],
    ),
    Server("BentoML", _bentoml, "bentoml", ("bentoml",), labels=lambda answer: answer),
    Server("LitServe", _litserve, "litserve", ("litserve",)),
    Server("towline, boosting of 100 trees", _towline("boosting-100", 1), versions=("towline",), model="boosting-100"),
    Server("towline, LightGBM of 100 trees", _towline("lightgbm", 1), versions=("towline",), model="lightgbm"),
    Server("towline, XGBoost of 100 trees", _towline("xgboost", 1), versions=("towline",), model="xgboost"),
    Server("towline, CatBoost of 100 trees", _towline("catboost", 1), versions=("towline",), model="catboost"),
    Server("towline, not compiled", _towline("uncompiled", 1), versions=("towline",), model="uncompiled"),
    Server("Flask, the same", _gunicorn, "flask", ("flask", "gunicorn"), model="uncompiled"),
)  # fmt: skip
