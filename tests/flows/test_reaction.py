"""The reaction to a monitoring run: each trigger of the policy starts a training that records it."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import yaml

from tests.support.checks import at_least_one
from tests.support.commands import CommandResult
from towline.config.monitoring import PolicyTrigger
from towline.monitoring.policy import Decision, MonitoringRun


def test_each_trigger_starts_a_training(
    towline: Callable[..., CommandResult], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a new row, a training registers a version with the trigger; without one, the finished run is returned."""
    from flows import reaction
    from towline.orchestration.local_run import run_local

    assert towline("run", config, "--set", "gate.champion_margin=5").code == 0
    path = Path(yaml.safe_load(config.read_text())["data"]["source"])
    pd.read_csv(path).iloc[:-1].to_csv(path, index=False)
    for trigger in at_least_one(get_args(PolicyTrigger)):
        decision = Decision(action="retrain", trigger=trigger, reason="a test", cause=f"cause of {trigger}")
        monkeypatch.setattr(reaction, "decide", lambda *_, decision=decision: decision)
        run: MonitoringRun = run_local(reaction.reaction_flow, {"config": str(config)})
        assert run.done.startswith("version 2, "), run.done
    registered = [row for row in towline("history", "--json").json if row["event"] == "registered"]
    assert [row["reason"] for row in registered] == ["trained, trigger gain", "trained, trigger manual"]
