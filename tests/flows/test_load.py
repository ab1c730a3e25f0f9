"""A trained model in a program: by name, by version, by path."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import towline as library
from tests.support.commands import CommandResult
from towline.errors import ReleaseError


def test_a_trained_model_answers_in_a_program(towline: Callable[..., CommandResult], config: Path, store: Path) -> None:
    """The champion by its name, a version by its number, a release by its folder: the same answers."""
    outcome = towline("run", config, "--json").json
    rows = pd.read_csv(config.parent / "bikes.csv").tail(50)
    by_name, by_version = library.load("bikes"), library.load("bikes@1")
    by_path = library.load(store / outcome["release"])
    assert by_name.version == outcome["version"]
    expected = by_name.predict(rows)
    assert (by_version.predict(rows) == expected).all()
    assert (by_path.predict(rows.to_dict("records")) == expected).all()
    assert by_name.predict(rows.iloc[0].to_dict()) == pytest.approx(expected[:1], rel=1e-9)


@pytest.mark.parametrize("name", ["bikes@7", "bikes@x", "bikes@", "bikes", "../x@1"])
def test_what_is_not_there_is_named(store: Path, name: str) -> None:
    """One error with a remedy, whatever is missing."""
    with pytest.raises(ReleaseError) as refused:
        library.load(name)
    assert refused.value.remedy
