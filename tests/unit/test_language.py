"""Plain technical English: names and phrases that must not occur, each with its reason.

``python -m tests.unit.test_language FILE...`` checks single files, which the pre-commit hook does.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

#: former name of a class, function or module → its name now
RENAMED = {
    "Mendable": "UserError", "Unavailable": "TransientError", "DataRefused": "DataValidationError",
    "GateRefused": "PromotionRejectedError", "InputRefused": "InputValidationError",
    "patient": "retrying_task", "remembered": "cached_task", "contain": "build_image", "contained": "record_image",
    "Desk": "RouteHandlers", "Turn": "MicroBatcher", "Live": "ModelReloader", "Good": "LastKnownGood",
    "Joined": "CoalescingTransport", "PATIENCE": "REQUEST_TIMEOUT_S", "Gone": "ClientDisconnected",
    "Rate": "RateLimiter",
    "_hear": "_read_ready_pipe", "_bury": "_reap_workers", "Forgotten": "DeletionResult", "spelt": "canonical_text",
    "SetBack": "ClockSkew", "held": "exclusive_lock, lock_store, or buffer_to_numpy", "Keeping": "LoggingPolicy",
    "Odd": "InputAnomaly", "Tally": "HistogramAccumulator", "Seen": "ColumnStats", "looks": "metrics_scraper",
    "traffic": "slo_history", "Round": "MonitoringRun", "NIGHT": "a window's length", "Finding": "DriftCheckResult",
    "Measured": "SliceMetric", "Accepted": "PerformanceBound", "BY_CHANCE": "PROBABILITY_METRICS",
    "Answered": "LoggedPredictions", "Watched": "ModelMetricsSnapshot", "Promise": "SloConfig", "Episode": "AlertState",
    "tell": "notify", "unlabelled": "performance_estimation", "Basis": "EstimatorState", "Curve": "CalibrationCurve",
    "Past": "HistoryConfig", "Tried": "HistoryTrial", "learnt": "training_rows", "on_level": "remove_trend",
    "Restated": "DetrendedTarget", "Bits": "BitmaskForest", "Slot": "FeatureLookup", "few": "predict_rows",
    "many": "predict_columns", "lives": "simulation, or process_is_alive", "Life": "PolicyResult",
    "_World": "BacktestContext", "Untrained": "TrainingFailure", "There": "RemoteTarget", "run_there": "run_remote",
    "whose": "process_tags", "attended": "supervised", "thin_out": "cancel_missed_runs", "AGAIN": "RETRY_TAG",
    "pulse": "check_service_slo", "born": "process_start_time", "tie": "set_parent_death_signal", "ROOMS": "SECTIONS",
    "mend": "repair, or what is done", "upkeep": "maintenance", "replay": "backtest", "shelf": "sample_store",
    "nearest": "suggest", "_permit": "_check_permission", "_private": "_hide_values", "_useless": "_reason_to_ignore",
    "_unfit": "metric_error", "_cloud": "_scatter", "_dominant": "_find_dominant", "_boosted": "_predict_boosted",
    "_marked": "_is_marker", "_lookalikes": "_find_lookalikes", "_offences": "Rule",
    "_shown": "_format", "ALONE": "LEAK_SCORE", "STRONG": "DOMINANT_SCORE", "INFORMED": "OTHERS_SCORE",
    "APART": "DOMINANT_GAIN", "COMPANY": "MAX_OTHERS", "SHORTFALL": "MAX_UNEXPLAINED", "DENSE": "MAX_POINTS",
    "MOST": "MAX_COLUMNS, or another limit", "_OFFENDERS": "_MAX_EXAMPLES",
    "Log": "LoggedModel", "Target": "ServiceUnderTest", "find_target": "query_service", "Client": "ClosedLoopUser",
    "Arrivals": "OpenLoopUser", "Draft": "NewRow", "Check": "GateCheck", "CheckResult": "RolloutCheckResult",
    "Outcomes": "BooleanValues", "_Column": "_TableColumn, or _SampleColumn", "_Pair": "_ColumnPairRule, or _GroupPair",
    "Origin": "RunContext", "Run": "LoadedRun", "Loaded": "LoadResult", "Split": "SplitResult",
    "Choice": "SelectionResult", "FitPlan": "BudgetLimits", "Probe": "ModelUnderTest", "probe": "model_under_test",
    "measure_window": "measure_quality_window", "_Live": "_LiveProgress", "_Printed": "_PrintToLog",
    "sidecar": "helper_process", "_Sidecar": "_HelperProcess", "origins": "package_origin", "forms": "special_forms",
    "objection": "approval_error", "objection_to_person": "approver_error", "FOUR_EYES": "MIN_SEPARATE_APPROVERS",
    "careful": "manual",
}  # fmt: skip

#: names that are banned for modules only
FORMER_MODULES = {"looks", "traffic", "lives", "shelf"}

#: names that do not describe a value or a function
VAGUE_NAMES = {"told", "found", "kept", "seen", "one", "tried", "said", "came", "wanted", "learnt", "asked"}

#: phrase → why not, or what to write
PHRASES = {
    r"lived? through": "metaphor: write 'simulated'",
    r"turn(s|ed)? out to be true": "write 'ground-truth labels'",
    r"a (part|component) that is away": "metaphor: 'a component is down'",
    r"goes on where it stopped": "write 'resumes from the last completed step'",
    r"Killed at any moment": "inversion: 'if a run is interrupted'",
    r"\bnights? that alarm|\bnights\b": "the field's word is 'window'",
    r"\bthe watch\b": "write 'monitoring'",
    r"\bthe sidecar\b": "a second container of a pod: write 'the helper process'",
    r"\bfour eyes\b": "write 'two-person rule'",
    r"\bpromises\b": "the field's word is 'SLOs'",
    r"\bmend(s|ed|ing)?\b": "write 'correct', 'repair' or 'fix'",
    r"of these, with": "elliptic: write the noun again",
    r"and rightly": "opinion",
    r"\btells of\b|\bis told\b|\bare told\b|\bwere told\b": "write 'reports', 'describes' or 'receives'",
    r"what it makes of": "write 'transforms'",
    r"named when it has answered": "write 'tagged only after a smoke test'",
    r"alarm for nothing": "write 'false alarms'",
    r"\bby itself\b": "write 'automatically', or 'on its own'",
    r"\bthe house\b|\bwhich room\b": "metaphor: 'package', 'module'",
    r"in (the|their) stead|in place of which": "stilted: write 'instead'",
}

CODE = ("towline", "tasks", "flows")
#: folders that are checked like the product
OTHERS = ("tests", "benchmarks", "deployments", "docs", "examples", "data", "configs")
TEXT = {".py", ".md", ".yaml", ".yml", ".html", ".jinja", ".toml", ".in", ".sh", ".json"}
HERE = Path(__file__).resolve()


def sources() -> list[Path]:
    return [path for folder in CODE for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def pages() -> list[Path]:
    """All texts of the repository, except this module, which contains the banned names."""
    folders = [REPOSITORY / name for name in (*CODE, *OTHERS)]
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in TEXT and path.is_file()]
    return [*sorted(REPOSITORY.glob("*.md")), REPOSITORY / "Makefile", *(path for path in paths if path != HERE)]


def phrases(path: Path) -> Iterator[str]:
    """``file:line: phrase: reason`` for each banned phrase of a text; CHANGELOG.md may contain former names."""
    if path.name == "CHANGELOG.md":
        return
    text = path.read_text(encoding="utf-8")
    for pattern, reason in PHRASES.items():
        for match in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{path.relative_to(REPOSITORY)}:{line}: {match[0]!r}: {reason}"


@cache
def stored_names(path: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Names of classes, functions and constants, and names of values and parameters, with their lines."""
    definitions, values = list[tuple[str, int]](), list[tuple[str, int]]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            definitions.append((node.name, node.lineno))
        elif isinstance(node, ast.arg):
            values.append((node.arg, node.lineno))
        elif isinstance(node, ast.ExceptHandler) and node.name:
            values.append((node.name, node.lineno))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            (definitions if node.id.isupper() else values).append((node.id, node.lineno))
    return definitions, values


def renamed(path: Path) -> Iterator[str]:
    """Definitions with a former name."""
    for name, line in [(path.stem, 1), *stored_names(path)[0]]:
        if name in RENAMED and not (name in FORMER_MODULES and line > 1):
            yield f"{path.relative_to(REPOSITORY)}:{line}: {name} was renamed to {RENAMED[name]}"


def vague_names(path: Path) -> Iterator[str]:
    """Values and functions with a name that does not describe them."""
    definitions, values = stored_names(path)
    for name, line in (*definitions, *values):
        if name in VAGUE_NAMES:
            yield f"{path.relative_to(REPOSITORY)}:{line}: {name}: name the value for what it is"


def test_texts_are_checked() -> None:
    """The lists are not empty, so that the tests below can fail."""
    assert len(sources()) > 150
    assert {REPOSITORY / "README.md", REPOSITORY / "tests" / "README.md"} <= set(pages())
    assert list(phrases(HERE))


def test_phrases() -> None:
    """No text uses a banned phrase."""
    lines = [line for path in pages() for line in phrases(path)]
    assert lines == [], "\n".join(lines)


def test_former_names() -> None:
    """No definition and no module has a former name."""
    lines = [line for path in pages() if path.suffix == ".py" for line in renamed(path)]
    assert lines == [], "\n".join(lines)


def test_values_are_named_for_what_they_are() -> None:
    """No variable, parameter or function is called ``found`` or ``told``."""
    lines = [line for path in pages() if path.suffix == ".py" for line in vague_names(path)]
    assert lines == [], "\n".join(lines)


def test_public_classes_have_one_name_each() -> None:
    """No two public classes of towline share a name: one name, one thing."""
    places = defaultdict(list)
    for path in sources():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(REPOSITORY)))
    shared = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert shared == {}


#: module names that may occur in several packages, with the reason
SHARED_MODULES = {
    "__init__": "packages",
    "results": "records of a package: of monitoring, of the backtest",
    "charts": "each draws for its package",
    "page": "each renders the page of its package",
    "links": "addresses within MLflow's pages; addresses on the status page",
    "metrics": "scikit-learn's sense in training; Prometheus' sense in serving",
    "scorer": "how a model is called; the compiled form of it",
    "supervisor": "of `towline up`; of a service's workers",
    "worker": "of a Prefect work pool; of a service",
}


def test_modules_have_one_name_each() -> None:
    """No two modules of towline share a name, except commands (named like the called function) and the list above."""
    places = defaultdict(list)
    for path in sorted((REPOSITORY / "towline").rglob("*.py")):
        if path.parent.name != "cli":
            places[path.stem].append(str(path.relative_to(REPOSITORY)))
    shared = {name: paths for name, paths in places.items() if len(paths) > 1 and name not in SHARED_MODULES}
    assert shared == {}


@pytest.mark.parametrize("text", ["four nights a year", "It mends what is lost", "the watch"])
def test_phrases_are_reported(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A banned phrase is reported with its file and line."""
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    (tmp_path / "page.md").write_text(f"# Title\n\n{text}\n")
    (line,) = phrases(tmp_path / "page.md")
    assert line.startswith("page.md:3: ")


@pytest.mark.parametrize(
    "code",
    ["told = 1", "def seen() -> None: ...", "sorted((), key=lambda kept: 0)", "[0 for one in ()]", "(found := 1)",
     "with open('x') as told: ...", "try: ...\nexcept OSError as told: ..."],
)  # fmt: skip
def test_vague_names_are_reported(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a name is reported with its file and line, for each kind of definition."""
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    (tmp_path / "module.py").write_text(f"\n\n{code}\n")
    (line,) = vague_names(tmp_path / "module.py")
    assert line.startswith(f"module.py:{3 + code.count(chr(10))}: ")


def main(names: list[str]) -> int:
    """Checks files of the repository as the tests above do; returns the number of findings."""
    given = {Path(name).resolve() for name in names}
    paths = [path for path in pages() if path.resolve() in given]
    lines = [line for path in paths for line in phrases(path)]
    for path in paths:
        if path.suffix == ".py":
            lines += [*renamed(path), *vague_names(path)]
    print("\n".join(lines))
    return len(lines)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
