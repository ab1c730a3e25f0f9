"""The config of a backtest on a table with concept drift."""

from pathlib import Path

import pytest

from tests.support.backtests import make_config
from towline.config import PipelineConfig


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    return make_config(tmp_path)
