"""The workspace of a run: identified by its inputs, used by one process, removed at the end."""

import os
import time
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from towline import files
from towline.config import PipelineConfig, build_config
from towline.data.source.sources import Dataset
from towline.data.workspace import Workspace, open_workspace
from towline.errors import TransientError

CONFIG = PipelineConfig.model_validate({"name": "fares", "data": {"source": "fares.csv", "target": "fare"}})
DATA = Dataset(path="", digest="d" * 64, rows=1, columns=("fare",), start=None, end=None, source="fares.csv")


def opened(store: Path, *ended: str) -> Workspace:
    return open_workspace(CONFIG, DATA, REPOSITORY, store, None, ended=ended)


def test_an_interrupted_run_opens_its_workspace_again(tmp_path: Path) -> None:
    """An interrupted run has the same token again; after a removal there is a new one."""
    first = opened(tmp_path)
    assert opened(tmp_path) == first
    first.remove()
    assert not any((tmp_path / "work").iterdir())
    again = opened(tmp_path)
    assert again.key == first.key
    assert again.token != first.token


def test_a_workspace_that_was_removed_is_not_continued(tmp_path: Path) -> None:
    """The error asks the user to repeat the command, and no file remains."""
    work = opened(tmp_path)
    work.remove()
    with pytest.raises(TransientError, match="another process"), work.exclusive_lock():
        pass
    assert not any((tmp_path / "work").iterdir())


def test_only_one_process_uses_a_workspace(tmp_path: Path) -> None:
    """A second process gets an error that the run is in progress."""
    with (
        opened(tmp_path).exclusive_lock(),
        pytest.raises(TransientError, match="under way"),
        opened(tmp_path).exclusive_lock(),
    ):
        pass


def test_a_forced_run_takes_the_next_key_that_has_not_ended(tmp_path: Path) -> None:
    """A forced run has the same key until it has ended; a run that was killed after its verdict is resumed."""
    plain = opened(tmp_path)
    first = plain.run_key(CONFIG)
    forced = opened(tmp_path, first)
    second = forced.run_key(CONFIG)
    assert second != first
    assert opened(tmp_path, first) == forced
    assert opened(tmp_path, first, second).run_key(CONFIG) not in {first, second}
    forced.verdict_file(second).write_text("{}")
    assert opened(tmp_path, first, second) == forced


def test_a_changed_gate_has_the_same_workspace_and_another_run_key(tmp_path: Path) -> None:
    """Bounds, validation rules and monitoring do not affect fits; the split and personal data do."""

    def opened_with(**sections: object) -> tuple[str, str]:
        config = build_config({**CONFIG.model_dump(mode="json"), **sections}, "test")
        work = open_workspace(config, DATA, REPOSITORY, tmp_path, None)
        return work.key, work.run_key(config)

    key, run_key = opened_with()
    for sections in ({"gate": {"champion_margin": 0.5}}, {"validation": {"min_rows": 30}}, {"description": "Fares"}):
        assert opened_with(**sections)[0] == key
        assert opened_with(**sections)[1] != run_key
    assert opened_with(drift={"min_rows": 80}) == (key, run_key)
    for sections in ({"split": {"holdout": 0.3}}, {"privacy": {"pii": ["name"]}}, {"seed": 7}):
        assert opened_with(**sections)[0] != key


def test_fits_are_kept_after_a_rejection(tmp_path: Path) -> None:
    """After a rejection the verdict and the origin are removed; other files and the token stay."""
    work = opened(tmp_path)
    run_key = work.run_key(CONFIG)
    for file in (work.verdict_file(run_key), work.origin_file(run_key), work.file("model.skops")):
        file.write_text("{}")
    work.end_run(run_key, keep_fits=True)
    assert sorted(path.name for path in work.path.iterdir()) == ["model.skops", "token"]
    assert opened(tmp_path) == work


def test_interrupted_deletions_are_completed(tmp_path: Path) -> None:
    """A removal is a rename and a deletion; a folder left between the two is removed later."""
    half = tmp_path / "work" / ".gone-0123"
    half.mkdir(parents=True)
    (half / "model.skops").write_bytes(b"x")
    opened(tmp_path).remove()
    assert not any((tmp_path / "work").iterdir())


def aged(folder: Path, days: float) -> Path:
    then = time.time() - days * 86_400
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))
    return folder


def other(store: Path, name: str, *files: str) -> Path:
    folder = store / "work" / name
    folder.mkdir(parents=True)
    for file in ("token", *files):
        (folder / file).write_text("x")
    return folder


def test_abandoned_workspaces_are_removed(tmp_path: Path) -> None:
    """A month after its last write a workspace is removed; newer, judged and locked ones remain."""
    aged(other(tmp_path, "given-up", "contract.json"), 31)
    young = aged(other(tmp_path, "young"), 29)
    written = aged(other(tmp_path, "written-to-again"), 31)
    (written / "costs-fit.json").write_text("{}")
    judged = aged(other(tmp_path, "judged", "verdict-0123.json"), 400)
    held = aged(other(tmp_path, "held", "lock"), 400)
    with files.exclusive_lock(held / "lock"):
        opened(tmp_path).remove()
    assert set((tmp_path / "work").iterdir()) == {young, written, judged, held}
    opened(tmp_path).remove()
    assert held not in (tmp_path / "work").iterdir()


def test_another_version_of_a_candidates_library_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only versions of libraries that the candidates use change the key."""

    def key(estimator: str, installed: dict[str, str]) -> str:
        raw = {"name": "t", "data": {"source": "t", "target": "y"}, "candidates": [estimator]}
        real = metadata.version
        with monkeypatch.context() as patched:
            patched.setattr(metadata, "version", lambda name: installed.get(name) or real(name))
            return open_workspace(build_config(raw, "test"), DATA, tmp_path, tmp_path / "store", None).key

    now = key("lightgbm.LGBMRegressor", {})
    assert key("lightgbm.LGBMRegressor", {}) == now
    assert key("lightgbm.LGBMRegressor", {"lightgbm": "9.9"}) != now
    assert key("lightgbm.LGBMRegressor", {"catboost": "9.9"}) == now
    for estimator in ("xgboost.XGBRegressor", "xgboost"):
        boosted = key(estimator, {})
        assert key(estimator, {"xgboost-cpu": "9.9"}) != boosted


def test_changed_project_code_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed module, or a file of a package, changes the key, also without __init__.py."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, file in (("own_module", "own_module.py"), ("own_package", "own_package/inner.py")):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("a = 1\n")
        raw = {"name": "t", "data": {"source": "t", "target": "y"}, "candidates": [f"{name}.inner.make"]}
        config = build_config(raw, "test")
        before = open_workspace(config, DATA, tmp_path, tmp_path / "store", None).key
        path.write_text("a = 2\n")
        assert open_workspace(config, DATA, tmp_path, tmp_path / "store", None).key != before
