"""Requests per second of one model in towline and in its peers, side by side in one run.

Usage: serving.py [--only mlflow towline] [--seconds 10] [--json FILE] [--cache DIR]

One row of named columns is posted by wrk at 1, 8 and 32 connections. Each peer runs in a separate environment, created
from ``peers/<peer>/requirements.txt`` at the first use, with one worker and set up as its guide shows. Access logs are
off, numbers of threads are 1: otherwise the peers are slower. Before and after the measurement a server must predict
200 rows like scikit-learn; a line with one wrong or refused response is marked failed. towline runs with an API key,
validation, metrics and its prediction log on. The ratios count, and the CPU time of a request: the load
generator uses the same cores. `scorer.py --onnx` compares the predictions of ONNX.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from peers import prepare
from peers.environments import CACHE, HERE, bin_of, version
from peers.prepare import Sample
from peers.rows import generate
from peers.servers import SERVERS, Place, Server

from towline.inference.predictor import open_release

CONNECTIONS = (1, 8, 32)
START = 120  # seconds a server has to answer for the first time
QUIET = {
    "BENTOML_DO_NOT_TRACK": "True",
    "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "UVICORN_ACCESS_LOG": "false",  # of `mlflow models serve`
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Failed(Exception):
    """A server that did not start, or answered wrongly."""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


class Running:
    """A started server, with everything it started."""

    def __init__(self, command: list[str], environ: dict[str, str], work: Path, port: int) -> None:
        self.port = port
        self.log = work / "server.log"
        self.started = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environ, cwd=work, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def memory(self) -> dict[str, float]:
        """Memory of the whole process tree, in MB: resident, and with shared pages counted once."""
        full = [process.memory_full_info() for process in self.tree()]
        return {"rss": sum(usage.rss for usage in full) / 1e6, "pss": sum(usage.pss for usage in full) / 1e6}

    def cpu(self) -> float:
        """CPU seconds of the whole process tree so far."""
        return sum(used.user + used.system for used in (process.cpu_times() for process in self.tree()))

    def load(self, url: str, connections: int, seconds: float, environ: dict[str, str]) -> dict[str, float]:
        """The results of wrk, and the server's CPU µs for a request, which hardly depends on other load."""
        before = self.cpu()
        figures = wrk(url, connections, seconds, environ)
        return figures | {"cpu": 1e6 * (self.cpu() - before) / max(figures["requests"], 1)}

    def stop(self) -> None:
        tree = self.tree()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        _, left = psutil.wait_procs(tree, timeout=5)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(5)

    def send_request(self, server: Server, body: bytes, headers: dict[str, str]) -> list[Any]:
        """The labels in the response to one body; OSError while no server listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST", server.path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise Failed(f"{answer.status}: {text[:300].decode(errors='replace')}")
        return server.labels(json.loads(text))

    def first_answer(self, server: Server, body: bytes, headers: dict[str, str]) -> float:
        """Seconds from the start to the first answer."""
        trouble: Exception | None = None
        while time.perf_counter() - self.started < START:
            try:
                self.send_request(server, body, headers)
            except (OSError, http.client.HTTPException, Failed) as error:
                trouble = error
            else:
                return time.perf_counter() - self.started
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        end = self.log.read_text(errors="replace")[-1500:]
        raise Failed(f"it does not answer: {trouble}\n{end}")


def wrk(url: str, connections: int, seconds: float, environ: dict[str, str]) -> dict[str, float]:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "--latency"]
    command += ["-s", str(HERE / "load.lua"), url]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=seconds + 60)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    figures: dict[str, float] = json.loads(line.removeprefix("RESULT "))
    return figures | {"rate": figures["requests"] / figures["seconds"]}


def wrong_answers(running: Running, server: Server, sample: Sample, headers: dict[str, str]) -> int:
    if not server.checked:
        return 0
    bodies = (json.dumps(server.body([row])).encode() for row in sample.rows)
    answers = [running.send_request(server, body, headers)[0] for body in bodies]
    return sum(str(answer) != label for answer, label in zip(answers, sample.labels, strict=True))


def settle(store: Path) -> None:
    """Waits for the process that writes a service's log into Parquet: it may outlive the service, and would be in the
    way of the next."""
    for _ in range(120):
        words = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        if not any("towline.prediction_log.maintenance" in line and str(store) in " ".join(line) for line in words):
            break
        time.sleep(0.5)
    shutil.rmtree(store / "predictions", ignore_errors=True)


def measure(server: Server, sample: Sample, key: str, store: Path, cache: Path, seconds: float) -> dict[str, Any]:
    """One line of the table.

    Raises:
        Failed: it does not start, or a row is refused.
    """
    ours = "towline" in server.versions
    bin_ = bin_of(server.folder, cache) if server.folder else Path(sys.executable).parent
    work = cache / "work" / "".join(c if c.isalnum() else "-" for c in server.name)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    place = Place(bin_, work, sample.model, free_ports(3))
    environ = (prepare.environment(store) if ours else dict(os.environ)) | QUIET
    environ |= {"PATH": f"{bin_}{os.pathsep}{environ['PATH']}", "BENCH_MODEL": str(sample.model), "HOME": str(work)}
    environ |= {"BENCH_ROWS": str(work / "rows.json"), "BENCH_BODY": str(work / "body.json")}
    (work / "rows.json").write_text(json.dumps(sample.rows))
    body = json.dumps(server.body(sample.rows[:1])).encode()
    (work / "body.json").write_bytes(body)
    headers = {"Content-Type": "application/json"}
    if ours:
        headers["Authorization"] = f"Bearer {key}"
        environ["BENCH_KEY"] = key
    if server.before:
        subprocess.run(server.before(place), env=environ, cwd=work, check=True, capture_output=True)
    running = Running(server.command(place), environ, work, place.ports[0])
    try:
        start = running.first_answer(server, body, headers)
        url = f"http://127.0.0.1:{running.port}{server.path}"
        wrong = wrong_answers(running, server, sample, headers)
        wrk(url, 8, 2, environ)  # warm
        loads = {str(connections): running.load(url, connections, seconds, environ) for connections in CONNECTIONS}
        memory = running.memory()
        wrong += wrong_answers(running, server, sample, headers)
    finally:
        running.stop()
        if ours:
            settle(store)
    return {
        "name": server.name,
        "versions": [version(package, bin_) for package in server.versions],
        "model": server.model,
        "start": start,
        **memory,
        "wrong": wrong,
        "loads": loads,
        "failed": bool(wrong or any(load["refused"] or load["broken"] for load in loads.values())),
    }


def wrong_embedded(sample: Sample, count: int) -> str:
    """How often the release, opened in this process, answers generated rows otherwise than scikit-learn."""
    estimator, contract = prepare.load(sample.release), prepare.contract_of(sample.release)
    rows = generate(pd.read_parquet(prepare.TABLE), contract, estimator, count)
    features = contract.features(pd.DataFrame(rows))
    answer = open_release(sample.release).predict_rows(rows)
    wrong = int((np.array(answer.predictions, dtype=object) != estimator.predict(features)).sum())
    gap = np.abs(np.array(answer.probabilities) - estimator.predict_proba(features)).max()
    return (
        f"embedded, compiled: {wrong:,} of {count:,} generated rows get another label; probabilities within {gap:.1e}"
    )


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown; the ratios are of requests per second at 32 connections, and against Flask for what is not compiled."""
    rates = {row["name"]: row["loads"]["32"]["rate"] for row in rows if "loads" in row}
    yield (
        "| server | requests/s at 1 | at 8 | at 32 | p99 at 8, ms | CPU µs a request | first answer, s "
        "| memory, MB (shared once) | x MLflow | x no-op | x Flask, same model | version |"
    )
    yield "|---|" + "---:|" * 10 + "---|"
    for row in rows:
        if "loads" not in row:
            yield f"| {row['name']} | failed: {row['failed']} |" + " |" * 10
            continue
        same = row["model"] == "boosting"
        against = ("mlflow models serve", "no-op, our stack") if same else ("", "")
        flask = "Flask + joblib" if same else "Flask, the same"
        ratios = [f"{rates[row['name']] / rates[peer]:.2f}" if peer in rates else "" for peer in (*against, flask)]
        loads = [f"{row['loads'][str(connections)]['rate']:,.0f}" for connections in CONNECTIONS]
        cells = [
            *loads,
            f"{row['loads']['8']['p99']:.1f}",
            f"{row['loads']['32']['cpu']:,.0f}",
            f"{row['start']:.2f}",
            f"{row['rss']:.0f} ({row['pss']:.0f})",
        ]
        name = row["name"] + (" FAILED" if row["failed"] else "")
        yield "| " + " | ".join([name, *cells, *ratios, ", ".join(row["versions"])]) + " |"


def time_scorers(samples: dict[str, Sample]) -> Iterator[str]:
    """CPU time of one row in the compiled scorer, without a service; the best of alternating repeats."""
    models = {name: open_release(sample.release) for name, sample in samples.items() if name in prepare.SAME_SIZE}
    rows = {name: model.reader.read(samples[name].rows) for name, model in models.items()}
    best = dict.fromkeys(models, float("inf"))
    for _ in range(15):
        for name, model in models.items():
            began = time.process_time()
            for row in rows[name]:
                model.predict_canonical([row])
            best[name] = min(best[name], 1e6 * (time.process_time() - began) / len(rows[name]))
    if best:
        yield "\nCPU µs of one row, without a service: " + ", ".join(
            f"{name} {value:.1f}" for name, value in best.items()
        )


def same_size(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Requests per second of boosting libraries, divided by those of scikit-learn's boosting of the same size."""
    measured = {row["model"]: row["loads"] for row in rows if "loads" in row and row["model"] in prepare.SAME_SIZE}
    reference = measured.pop("boosting-100", {})
    for model, loads in measured.items() if reference else ():
        ratios = [f"{loads[at]['rate'] / reference[at]['rate']:.2f} at {at}" for at in reference]
        cpu = [f"{reference[at]['cpu'] / loads[at]['cpu']:.2f} at {at}" for at in reference]
        yield (
            f"\n{model}, compiled, x boosting, compiled, of the same size: requests/s {', '.join(ratios)} connections; "
            f"requests per CPU second {', '.join(cpu)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="servers whose names hold one of these words")
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--json", type=Path, help="all figures, into this file")
    parser.add_argument("--rows", type=int, default=100_000, help="generated, to look for wrong answers")
    parser.add_argument("--cache", type=Path, default=CACHE)
    given = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: install Debian's package wrk")
    chosen = [server for server in SERVERS if any(word.lower() in server.name.lower() for word in given.only)]
    given.cache.mkdir(parents=True, exist_ok=True)
    store = given.cache / "store"
    try:
        models = dict.fromkeys(["boosting", *(server.model for server in chosen)])
        samples = {model: prepare.train(store, f"bench-{model}", prepare.MODELS[model]) for model in models}
        key = prepare.key(store)
    finally:
        prepare.stop_servers(store)
    rows: list[dict[str, Any]] = []
    busy = os.getloadavg()[0]
    for server in chosen:
        print(f"{server.name} …", file=sys.stderr)
        try:
            rows.append(measure(server, samples[server.model], key, store, given.cache, given.seconds))
        except Failed as error:
            rows.append({"name": server.name, "failed": str(error)})
            print(error, file=sys.stderr)
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1))
    print("\n".join(table(rows)))
    print("\n".join([*same_size(rows), *time_scorers(samples)]))
    print(f"\n{os.cpu_count()} cores; load average before the first server {busy:.1f}, over the last minute")
    print(f"\n{wrong_embedded(samples['boosting'], given.rows)}")


if __name__ == "__main__":
    main()
