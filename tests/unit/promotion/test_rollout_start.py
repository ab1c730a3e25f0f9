"""The start of a rollout: both versions must answer the same requests; `towline up` evaluates it at intervals."""

import datetime as dt
from typing import Any

import pytest

from tests.support.sample_store import MODEL, SampleStore
from tests.support.serving import COLUMNS, make_contract
from towline.config import RolloutConfig, read_config
from towline.errors import ConfigError, PromotionRejectedError
from towline.monitoring import service_check
from towline.operations.supervisor import Supervisor
from towline.promotion.rollout_start import begin_rollout, check_contracts
from towline.registry.rollouts import start_rollout

VERSION = "house-price@4"


def check(challenger: Any, champion: Any = None, **config: Any) -> None:
    check_contracts(champion or make_contract(), challenger, version=VERSION, config=RolloutConfig(**config))


def test_a_challenger_with_fewer_fields_can_be_rolled_out() -> None:
    check(make_contract(columns=COLUMNS[:2]), key="kind")


def test_a_challenger_that_needs_another_field_is_refused_and_the_field_named() -> None:
    with pytest.raises(PromotionRejectedError, match="garden") as refusal:
        check(make_contract(columns=(*COLUMNS, ("garden", "boolean", {}))))
    assert f"towline rollout {VERSION} --fields both" in refusal.value.remedy
    assert f"towline promote {VERSION}" in refusal.value.remedy


def test_a_challenger_that_needs_another_field_can_be_rolled_out_if_requests_must_have_the_fields_of_both() -> None:
    check(make_contract(columns=(*COLUMNS, ("garden", "boolean", {}))), fields="both")
    check(make_contract(columns=(("size", "category", {}), *COLUMNS[1:])), fields="both")


def test_a_field_that_no_value_fits_for_both_versions_is_refused() -> None:
    with pytest.raises(PromotionRejectedError, match=r"no value fits both versions.*: size") as refusal:
        check(make_contract(columns=(("size", "datetime", {}), *COLUMNS[1:])), fields="both")
    assert "--fields" not in refusal.value.remedy


def test_a_challenger_that_reads_a_field_as_another_kind_is_refused() -> None:
    with pytest.raises(PromotionRejectedError, match="as another kind: size"):
        check(make_contract(columns=(("size", "category", {}), *COLUMNS[1:])))


def test_a_challenger_with_other_classes_is_refused() -> None:
    with pytest.raises(PromotionRejectedError, match="other classes"):
        check(make_contract(("no", "yes", "maybe")), champion=make_contract(("no", "yes")))


def test_a_key_that_is_no_column_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="no column 'kinds'") as refusal:
        check(make_contract(), key="kinds")
    assert "did you mean kind" in refusal.value.remedy


def test_a_refused_rollout_changes_nothing(sample_store: SampleStore) -> None:
    ledger = sample_store.ledger
    rows = ledger.rows(MODEL)
    with pytest.raises(ConfigError):
        begin_rollout(sample_store.settings, ledger, MODEL, 2, RolloutConfig(key="customers"), "ann", "passed")
    assert ledger.rows(MODEL) == rows


def test_towline_up_starts_the_evaluation_once_an_interval(
    sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[str, str]] = []

    def start(_: str, deployment: str, __: dict[str, Any], idempotency_key: str) -> None:
        runs.append((deployment, idempotency_key))

    monkeypatch.setattr(service_check, "_start_run", start)
    config = read_config(sample_store.release(1) / "config.yaml")
    now = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)

    def due(minutes: int) -> bool:
        return service_check.start_due_rollout(sample_store.settings, config, "", now + dt.timedelta(minutes=minutes))

    assert not due(0)  # no rollout is active
    start_rollout(sample_store.ledger, MODEL, 2, RolloutConfig(), "ann", "passed")
    assert [due(minutes) for minutes in (0, 1, 4, 5, 6)] == [True] * 5
    assert {deployment for deployment, _ in runs} == {f"rollout/{MODEL}"}
    assert [runs[0][1] == key for _, key in runs] == [True, True, True, False, False]


@pytest.mark.parametrize("ports", [(), (18080,)])
def test_towline_up_evaluates_rollouts_wherever_the_service_runs(
    sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch, ports: tuple[int, ...]
) -> None:
    """Also with --no-service."""
    models: list[str] = []
    monkeypatch.setattr(service_check, "start_due_rollout", lambda _, config, *__: models.append(config.name))
    path = sample_store.release(1) / "config.yaml"
    supervisor = Supervisor(sample_store.settings, [path], [read_config(path)], ports, print)
    supervisor._start_due_rollouts()
    assert models == []  # the first check comes after an interval
    supervisor._rollout_checks[MODEL].next_time = 0.0
    supervisor._start_due_rollouts()
    assert models == [MODEL]
