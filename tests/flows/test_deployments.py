"""Schedules in Prefect, missed runs, and runs whose process has ended."""

import asyncio
import datetime as dt
import os
import time
import zoneinfo
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from towline.config import PipelineConfig, build_config
from towline.errors import ConfigError

if TYPE_CHECKING:  # the fixture sets the server's address before Prefect is imported
    from prefect.automations import Automation
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def config(name: str, **schedule: str | None) -> PipelineConfig:
    return build_config({"name": name, "data": {"source": "x.csv", "target": "y"}, "schedule": schedule}, "test")


def deploy(*configs: PipelineConfig, mark: str = "test") -> list[UUID]:
    from flows.deployments import deployments
    from towline.orchestration import scheduler

    return scheduler.deploy([deployment for config in configs for deployment in deployments(config, mark)], mark)


def runs(client: "SyncPrefectClient", number: UUID) -> "list[FlowRun]":
    from prefect.client.schemas.filters import FlowRunFilter

    run_filter = FlowRunFilter.model_validate({"deployment_id": {"any_": [number]}})
    return client.read_flow_runs(flow_run_filter=run_filter)


def wait_for_scheduled_runs(client: "SyncPrefectClient", number: UUID, count: int = 1) -> "list[FlowRun]":
    """The runs that Prefect's scheduler has created, once there are enough."""
    deadline = time.monotonic() + 300
    while len(slots := runs(client, number)) < count:
        assert time.monotonic() < deadline, "Prefect's scheduler makes no runs"
        time.sleep(0.5)
    return slots


def make_runs_late(client: "SyncPrefectClient", number: UUID, *ago: int) -> list[UUID]:
    """Makes scheduled runs as many days late as ``ago`` says, as if the machine had been off."""
    from prefect.states import Scheduled

    run_ids = []
    for run, days in zip(wait_for_scheduled_runs(client, number, len(ago)), ago, strict=False):
        then = dt.datetime.now(dt.UTC) - dt.timedelta(days=days)
        client.set_flow_run_state(run.id, Scheduled(scheduled_time=then), force=True)
        run_ids.append(run.id)
    return run_ids


def states(client: "SyncPrefectClient", number: UUID) -> list[str]:
    """The states of all runs except runs that are scheduled for the future."""
    due = [run for run in runs(client, number) if not is_scheduled(run) or age(run) > dt.timedelta(0)]
    return sorted("Scheduled" if is_scheduled(run) else str(run.state_name) for run in due)


def is_scheduled(run: "FlowRun") -> bool:
    """Whether a run is scheduled; the server gives scheduled runs in the past the name Late."""
    return run.state is not None and run.state.is_scheduled()


def age(run: "FlowRun") -> dt.timedelta:
    """The time since the scheduled start of a run; negative for a start in the future."""
    times = [time for time in (run.expected_start_time, run.next_scheduled_start_time) if time]
    return dt.datetime.now(dt.UTC) - min(times)


def test_cron_lines_become_scheduled_runs(client: "SyncPrefectClient") -> None:
    """Prefect's scheduler creates runs for each flow with a cron line, in its time zone, and none for others."""
    training, drift, quality, reaction, *_ = deploy(config("laid-out", drift="30 2 * * *", timezone="Europe/Berlin"))
    slots = [
        run.expected_start_time.astimezone(BERLIN)
        for run in wait_for_scheduled_runs(client, drift)
        if run.expected_start_time
    ]
    assert {(slot.hour, slot.minute) for slot in slots} <= {(2, 30), (1, 30)}  # 1:30 on the day without 2:30
    assert wait_for_scheduled_runs(client, quality)
    assert runs(client, training) == runs(client, reaction) == []


def test_the_trigger_of_a_training(client: "SyncPrefectClient") -> None:
    """The trigger in the ledger is schedule for scheduled runs and manual for a run from Prefect's page."""
    training = deploy(config("weekly", train="0 3 * * 0"))[0]
    assert {run.parameters["trigger"] for run in wait_for_scheduled_runs(client, training)} == {"schedule"}
    assert "trigger" not in client.create_flow_run_from_deployment(training).parameters


def test_a_changed_config_applies_to_scheduled_runs(client: "SyncPrefectClient") -> None:
    """After a new deployment, scheduled runs have the new config; a flow without a cron line has none."""
    drift = deploy(config("edited"))[1]
    assert wait_for_scheduled_runs(client, drift)
    changed = config("edited", drift="15 5 * * *").model_copy(update={"seed": 7})
    assert deploy(changed)[1] == drift
    assert {run.parameters["config"]["seed"] for run in wait_for_scheduled_runs(client, drift)} == {7}
    deploy(config("edited", drift=None))
    assert runs(client, drift) == []
    assert client.read_deployment_schedules(drift) == []


def test_removed_configs_are_paused(client: "SyncPrefectClient") -> None:
    """A config that `towline up` no longer has gets no scheduled runs; deployments of another store are not changed."""
    first, other = deploy(config("left-out"), mark="mine")[1], deploy(config("not-mine"), mark="theirs")[1]
    deploy(config("kept"), mark="mine")
    assert client.read_deployment(first).paused
    assert not client.read_deployment(other).paused
    deploy(config("left-out"), mark="mine")
    assert not client.read_deployment(first).paused


def test_one_of_three_missed_runs_is_run(client: "SyncPrefectClient") -> None:
    """The newest one runs, with the new config; a second call changes nothing."""
    from towline.orchestration import scheduler

    drift = deploy(config("missed"))[1]
    make_runs_late(client, drift, 1, 3, 2)
    deploy(config("missed").model_copy(update={"seed": 7}))
    for _ in range(2):
        scheduler.catch_up(client, drift)
        assert states(client, drift) == ["Missed", "Missed", "Scheduled"]
    (remaining,) = [run for run in runs(client, drift) if is_scheduled(run) and age(run) > dt.timedelta(0)]
    assert age(remaining) < dt.timedelta(days=1, hours=1)
    assert remaining.parameters["config"]["seed"] == 7


def test_requested_runs_are_not_cancelled(client: "SyncPrefectClient") -> None:
    """A training that drift requested before the shutdown runs in addition to the missed scheduled run."""
    from towline.orchestration import scheduler

    training = deploy(config("asked-for", train="0 3 * * *"))[0]
    make_runs_late(client, training, 1, 2)
    client.create_flow_run_from_deployment(training, parameters={"trigger": "drift"})
    scheduler.catch_up(client, training)
    assert states(client, training) == ["Missed", "Scheduled", "Scheduled"]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_whose_process_was_killed_is_run_again_once(client: "SyncPrefectClient", recorded: bool) -> None:
    """It has the same parameters and cause, also if its process was not recorded."""
    from prefect.states import Running

    from towline.orchestration import scheduler
    from towline.orchestration.crash_detection import process_tags

    training = deploy(config(f"lost-{recorded}".lower()))[0]
    cut = client.create_flow_run_from_deployment(
        training, parameters={"trigger": "drift"}, idempotency_key=f"cause-{recorded}"
    )
    if recorded:
        client.update_flow_run(cut.id, tags=[process_tags(1)[0], "process:1:0"])
    client.set_flow_run_state(cut.id, Running(), force=True)
    for _ in range(2):
        scheduler.catch_up(client, training)
        assert states(client, training) == ["Crashed", "Scheduled"]
    (again,) = [run for run in runs(client, training) if is_scheduled(run)]
    assert again.parameters["trigger"] == "drift"
    client.set_flow_run_state(again.id, Running(), force=True)
    scheduler.catch_up(client, training)
    assert states(client, training) == ["Crashed", "Crashed"]  # a run that crashes the machine is not repeated for ever


def test_a_crashed_part_of_a_batch_job_is_left_to_the_job(client: "SyncPrefectClient") -> None:
    """The waiting command gives its shards to new runs; a worker would score them a second time."""
    from prefect.states import Running

    from towline.orchestration import scheduler
    from towline.orchestration.crash_detection import process_tags

    part = deploy(config("parts"))[-1]
    run = client.create_flow_run_from_deployment(part, parameters={"shards": [1]}, tags=[scheduler.WATCHED_TAG])
    client.update_flow_run(run.id, tags=[scheduler.WATCHED_TAG, process_tags(1)[0], "process:1:0"])
    client.set_flow_run_state(run.id, Running(), force=True)
    for _ in range(2):
        scheduler.catch_up(client, part, shared=True)
        assert states(client, part) == ["Crashed"]


def test_a_run_with_a_running_process_is_not_changed(client: "SyncPrefectClient") -> None:
    """The run is not reported as crashed."""
    from prefect.states import Running

    from towline.orchestration import scheduler
    from towline.orchestration.crash_detection import process_tags

    training = deploy(config("alive"))[0]
    run = client.create_flow_run_from_deployment(training)
    client.update_flow_run(run.id, tags=process_tags(os.getpid()))
    client.set_flow_run_state(run.id, Running(), force=True)
    scheduler.catch_up(client, training)
    assert states(client, training) == ["Running"]


def test_a_killed_and_a_missed_run_are_caught_up_by_one(client: "SyncPrefectClient") -> None:
    """One run replaces a killed run and a missed run."""
    from prefect.states import Running

    from towline.orchestration import scheduler

    drift = deploy(config("both"))[1]
    first, _ = make_runs_late(client, drift, 2, 1)
    client.set_flow_run_state(first, Running(), force=True)
    scheduler.catch_up(client, drift)
    assert states(client, drift) == ["Crashed", "Scheduled"]


def test_runs_of_other_workers_are_not_changed(client: "SyncPrefectClient") -> None:
    """A run without a recorded process, or on another machine, is not ended by this worker."""
    from prefect.states import Pending, Running

    from towline.orchestration import scheduler

    training = deploy(config("pooled"))[0]
    client.set_flow_run_state(client.create_flow_run_from_deployment(training).id, Pending(), force=True)
    elsewhere = client.create_flow_run_from_deployment(training)
    client.update_flow_run(elsewhere.id, tags=["host:elsewhere", "process:1:1"])
    client.set_flow_run_state(elsewhere.id, Running(), force=True)
    scheduler.catch_up(client, training, shared=True)
    assert states(client, training) == ["Pending", "Running"]


def test_a_killed_run_of_a_pool_is_run_again(client: "SyncPrefectClient") -> None:
    """The run is repeated once, with any number of workers, and with its own config instead of the deployment's."""
    from prefect.states import Crashed

    from towline.orchestration import scheduler

    training = deploy(config("lost"))[0]
    parameters_config = config("lost").model_copy(update={"seed": 7}).model_dump(mode="json")
    lost = client.create_flow_run_from_deployment(training, parameters={"config": parameters_config})
    client.set_flow_run_state(lost.id, Crashed(), force=True)
    for _ in range(2):
        scheduler.catch_up(client, training, shared=True)
    assert states(client, training) == ["Crashed", "Scheduled"]
    (again,) = [run for run in runs(client, training) if is_scheduled(run)]
    assert again.parameters["config"]["seed"] == 7


def test_crash_automations_are_created_once(client: "SyncPrefectClient") -> None:
    """Each worker creates them at its start if they are missing; a changed time limit is not replaced."""
    from towline.orchestration import crash_detection

    def automations() -> "list[Automation]":
        return [item for item in client.read_automations() if item.name.startswith("towline: ")]

    for left_by_another_test in automations():
        client.delete_automation(left_by_another_test.id)
    crash_detection.create_crash_automations(client, silence_limit=dt.timedelta(seconds=400))
    crash_detection.create_crash_automations(client)
    created = automations()
    try:
        assert sorted(item.trigger.within.total_seconds() for item in created) == [400, 480]
    finally:
        for item in created:
            client.delete_automation(item.id)


def test_the_first_training_is_started_once(client: "SyncPrefectClient") -> None:
    """A model without a version is trained immediately, and only once."""
    from towline.orchestration import scheduler

    training = client.read_deployment(deploy(config("first"))[0])
    for _ in range(2):
        scheduler.start_run(client, training)
    assert states(client, training.id) == ["Scheduled"]


def test_an_invalid_cron_line_is_reported() -> None:
    """The error has the key and the config."""
    from flows.deployments import deployments

    with pytest.raises(ConfigError, match="not a cron line: '0 25") as caught:
        deployments(config("wrong", quality="0 25 * * *"))
    assert caught.value.where == "wrong: schedule.quality"


@pytest.mark.parametrize("day", [dt.date(2026, 3, 29), dt.date(2026, 10, 25)], ids=["forward", "back"])
@pytest.mark.parametrize("line", ["30 2 * * *", "0 2 * * *", "0 3 * * *", "59 1 * * *"])
def test_one_run_a_day_across_a_clock_change(day: dt.date, line: str) -> None:
    """A day on which the clock skips or repeats the hour of the schedule has one run."""
    from prefect.server.schemas.schedules import CronSchedule

    schedule = CronSchedule(cron=line, timezone="Europe/Berlin")
    noon = dt.datetime.combine(day, dt.time(12), dt.UTC)
    slots: set[dt.datetime] = set()
    for quarter in range(4 * 84):
        start = noon - dt.timedelta(hours=60) + dt.timedelta(minutes=15 * quarter)
        slots |= {slot.astimezone(dt.UTC) for slot in asyncio.run(schedule.get_dates(n=3, start=start))}
    days = [slot.astimezone(BERLIN).date() for slot in slots]
    for offset in (-1, 0, 1):
        assert days.count(day + dt.timedelta(days=offset)) == 1
