"""The folder of a run: found again by what the run is, held by one process, gone in one move."""

import os
import time
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from towline import files
from towline.config import PipelineConfig, build_config
from towline.data.sources import Dataset
from towline.data.workspace import Workspace, open_workspace
from towline.errors import TransientError

CONFIG = PipelineConfig.model_validate({"name": "fares", "data": {"source": "fares.csv", "target": "fare"}})
DATA = Dataset(path="", digest="d" * 64, rows=1, columns=("fare",), start=None, end=None, source="fares.csv")


def opened(store: Path, *ended: str) -> Workspace:
    return open_workspace(CONFIG, DATA, REPOSITORY, store, None, ended=ended)


def test_the_same_run_finds_its_folder_until_it_is_removed(tmp_path: Path) -> None:
    """A killed run's folder is taken up with its token; after a removal the token, and so every result, is another."""
    first = opened(tmp_path)
    assert opened(tmp_path) == first
    first.remove()
    assert not any((tmp_path / "work").iterdir())
    again = opened(tmp_path)
    assert again.key == first.key
    assert again.token != first.token


def test_a_run_that_another_process_has_ended_is_not_gone_on_with(tmp_path: Path) -> None:
    """Its files are gone: the caller is told to run again, and nothing is left behind."""
    work = opened(tmp_path)
    work.remove()
    with pytest.raises(TransientError, match="another process"), work.exclusive_lock():
        pass
    assert not any((tmp_path / "work").iterdir())


def test_only_one_process_holds_a_run(tmp_path: Path) -> None:
    """The second is told that the run is under way."""
    with (
        opened(tmp_path).exclusive_lock(),
        pytest.raises(TransientError, match="under way"),
        opened(tmp_path).exclusive_lock(),
    ):
        pass


def test_a_forced_run_takes_the_next_key_that_has_not_ended(tmp_path: Path) -> None:
    """The same key each time it is given, until that run has ended; one killed after its verdict is taken up."""
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
    """Bounds, validation rules and monitoring change no fit; the split and personal data do."""

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


def test_an_ended_run_leaves_its_fits_to_runs_with_another_gate(tmp_path: Path) -> None:
    """After a rejection its verdict and provenance go; other files and the token stay."""
    work = opened(tmp_path)
    run_key = work.run_key(CONFIG)
    for file in (work.verdict_file(run_key), work.origin_file(run_key), work.file("model.skops")):
        file.write_text("{}")
    work.end_run(run_key, keep_fits=True)
    assert sorted(path.name for path in work.path.iterdir()) == ["model.skops", "token"]
    assert opened(tmp_path) == work


def test_what_a_kill_kept_from_being_deleted_goes_with_the_next(tmp_path: Path) -> None:
    """Removal is a rename and then a deletion; a folder left between the two is swept up."""
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


def test_workspaces_that_were_given_up_go_with_a_run_that_ends(tmp_path: Path) -> None:
    """A month after the last write the folder of a changed config is gone; younger, judged and held ones stay."""
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
    """Only of the libraries that the candidates are of: what the config does not name changes nothing."""

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
    boosted = key("xgboost.XGBRegressor", {})
    assert key("xgboost.XGBRegressor", {"xgboost-cpu": "9.9"}) != boosted


def test_changed_code_of_the_projects_own_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module, and any file of a package, beside which there need be no __init__.py."""
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
