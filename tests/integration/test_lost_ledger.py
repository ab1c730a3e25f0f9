"""A store with releases whose ledger has no rows for them: the ledger was lost, and the store is not a new one."""

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
def test_commands_report_a_lost_ledger(lost: str, sample_store: SampleStore, command: Command) -> None:
    """The file, all rows, or the rows of this model are missing. A release is still opened by its path."""
    sample_store.ledger.register("other", "ann", "", {}, "key")
    if lost in ("no file", "an empty file"):
        sample_store.ledger_file.unlink()
    if lost == "an empty file":
        sample_store.ledger_file.touch()
    if "rows" in lost:
        with closing(sqlite3.connect(sample_store.ledger_file)) as database, database:
            database.execute("DELETE FROM ledger" + (f" WHERE model = '{MODEL}'" if "model" in lost else ""))
    for words in (("models",), ("models", MODEL), ("history",), ("status",), ("show", MODEL), ("serve", MODEL)):
        result = command(*words)
        assert result.code == 6, (words, result.out)
        assert f"the ledger has no row of {MODEL}, but the store holds its releases up to version 2" in result.err
    with pytest.raises(ReleaseError, match="the ledger was lost"):
        find_release(MODEL, sample_store.settings)
    assert find_release(sample_store.release(1)).directory == sample_store.release(1)


def test_lost_rows_of_another_model_do_not_block_a_model(sample_store: SampleStore, command: Command) -> None:
    """Commands for that other model, and commands for all models, report the loss."""
    (sample_store.settings.store / "releases" / "other" / "v3-0123456789ab").mkdir(parents=True)
    assert command("models", MODEL).code == 0
    assert command("history", MODEL).code == 0
    assert command("models").code == 6
    assert "no row of other" in command("show", "other").err


def test_a_store_without_releases_is_new(sample_store: SampleStore) -> None:
    """Other folders below releases/ do not count as releases."""
    check_recorded(sample_store.settings, sample_store.ledger)
    (sample_store.settings.store / "releases" / "new" / ".draft-12").mkdir(parents=True)
    (sample_store.settings.store / "releases" / "Old.lost" / "v1-0123456789ab").mkdir(parents=True)
    check_recorded(sample_store.settings, sample_store.ledger)


def test_the_remedy_for_a_lost_ledger_makes_a_new_store(sample_store: SampleStore, command: Command) -> None:
    """The command that the error prints works as printed."""
    sample_store.ledger_file.unlink()
    with pytest.raises(ReleaseError) as caught:
        check_recorded(sample_store.settings, sample_store.ledger)
    subprocess.run(shlex.split(caught.value.remedy.rpartition(": ")[2]), check=True)
    assert command("models", "--json").json == []
    assert highest_version(sample_store.settings, MODEL) == 0
