"""The last line of a test run: the tests that it left out, why, and the command that runs them."""

from collections import Counter
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

FOLDERS = ("unit", "integration", "flows", "e2e", "docker")


class LeftOut:
    """Counts the tests that a run leaves out, over all workers of pytest-xdist."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.deselected = config, 0
        self.skipped: Counter[str] = Counter()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.deselected += len(items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[report.longrepr[2].removeprefix("Skipped: ")] += 1

    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["deselected"] = self.deselected

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """Workers collect the same tests, so the count of one worker is that of the run."""
        self.deselected = max(self.deselected, getattr(node, "workeroutput", {}).get("deselected", 0))

    def pytest_unconfigure(self) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or hasattr(self.config, "workerinput") or self.config.option.collectonly:
            return
        if text := self.describe():
            reporter.write_line(f"left out: {text}. All tests: make test-all")

    def describe(self) -> str:
        """The tests left out, as one line; empty if there are none."""
        selected = [_folder(argument.partition("::")[0]) for argument in self.config.args]
        absent = [f"tests/{name}" for name in FOLDERS if not any(path in (name, "") for path in selected)]
        parts = [", ".join(absent)] if absent else []
        if self.deselected:
            parts.append(f"{self.deselected} tests by -k or -m")
        parts += [f"{count} skipped: {reason}" for reason, count in sorted(self.skipped.items())]
        return "; ".join(parts)


def _folder(argument: str) -> str:
    """The folder below tests/ of an argument, empty for tests/ itself."""
    path = (REPOSITORY / argument).resolve()
    tests = REPOSITORY / "tests"
    return path.relative_to(tests).parts[0] if tests in path.parents else "" if path in (tests, *tests.parents) else "-"


def folder_of(item: pytest.Item) -> str:
    """The name of the folder below tests/ of a test."""
    return _folder(str(Path(item.path)))
