"""A store that has releases and a ledger without their rows: it was lost, and is not taken for a new store."""

import shlex
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.support.commands import CommandResult
from tests.support.sample_store import MODEL, SampleStore
from towline.errors import ReleaseError
from towline.registry.selection import check_recorded, find_release, highest_version

Command = Callable[..., CommandResult]


@pytest.mark.parametrize("lost", ["no file", "an empty file", "no rows", "the rows of this model"])
def test_a_lost_ledger_is_told(lost: str, sample_store: SampleStore, command: Command) -> None:
    """However it was lost. What serves goes on: only its service, started with what it served last, needs no ledger."""
    sample_store.ledger.register("other", "ann", "", {}, "key")
    if lost in ("no file", "an empty file"):
        sample_store.ledger_file.unlink()
    if lost == "an empty file":
        sample_store.ledger_file.touch()
    if "rows" in lost:
        with closing(sqlite3.connect(sample_store.ledger_file)) as database, database:
            database.execute("DELETE FROM ledger" + (f" WHERE model = '{MODEL}'" if "model" in lost else ""))
    for words in (("models",), ("models", MODEL), ("history",), ("status",), ("show", MODEL), ("serve", MODEL)):
        done = command(*words)
        assert done.code == 6, (words, done.out)
        assert f"the ledger has no row of {MODEL}, but the store holds its releases up to version 2" in done.err
    with pytest.raises(ReleaseError, match="the ledger was lost"):
        find_release(MODEL, sample_store.settings)
    assert find_release(sample_store.release(1)).directory == sample_store.release(1)


def test_a_model_that_is_whole_is_not_held_up(sample_store: SampleStore, command: Command) -> None:
    """Another model's loss is reported where that one, or all, are asked for."""
    (sample_store.settings.store / "releases" / "other" / "v3-0123456789ab").mkdir(parents=True)
    assert command("models", MODEL).code == 0
    assert command("history", MODEL).code == 0
    assert command("models").code == 6
    assert "no row of other" in command("show", "other").err


def test_a_store_without_releases_is_new(sample_store: SampleStore) -> None:
    """So is one that holds other folders there."""
    check_recorded(sample_store.settings, sample_store.ledger)
    (sample_store.settings.store / "releases" / "new" / ".draft-12").mkdir(parents=True)
    (sample_store.settings.store / "releases" / "Old.lost" / "v1-0123456789ab").mkdir(parents=True)
    check_recorded(sample_store.settings, sample_store.ledger)


def test_its_remedy_makes_a_new_store_of_it(sample_store: SampleStore, command: Command) -> None:
    """The command that the error prints, as it stands there."""
    sample_store.ledger_file.unlink()
    with pytest.raises(ReleaseError) as caught:
        check_recorded(sample_store.settings, sample_store.ledger)
    subprocess.run(shlex.split(caught.value.remedy.rpartition(": ")[2]), check=True)
    assert command("models", "--json").json == []
    assert highest_version(sample_store.settings, MODEL) == 0
