"""``towline.load`` opens a trained model by name, by version or by path."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import towline as library
from tests.support.commands import CommandResult
from towline.errors import ConfigError


def test_load_opens_a_model_by_name_version_and_folder(
    towline: Callable[..., CommandResult], config: Path, store: Path
) -> None:
    """Name, version and release folder give equal predictions."""
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
def test_load_names_a_missing_model_or_version(store: Path, name: str) -> None:
    """Each missing model or version raises the same error, with a remedy."""
    with pytest.raises(ConfigError) as error:
        library.load(name)
    assert error.value.remedy
