"""Following the remedy for a lost ledger."""

import shlex
import subprocess
from collections.abc import Callable

import pytest

from tests.support.commands import CommandResult
from tests.support.sample_store import MODEL, SampleStore
from towline.errors import ReleaseError
from towline.registry.resolution import check_recorded, highest

Command = Callable[..., CommandResult]


def test_its_remedy_makes_a_new_store_of_it(sample_store: SampleStore, command: Command) -> None:
    """The command that the error prints, as it stands there."""
    sample_store.ledger_file.unlink()
    with pytest.raises(ReleaseError) as caught:
        check_recorded(sample_store.settings, sample_store.ledger)
    subprocess.run(shlex.split(caught.value.remedy.rpartition(": ")[2]), check=True)
    assert command("models", "--json").json == []
    assert highest(sample_store.settings, MODEL) == 0
