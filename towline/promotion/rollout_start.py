"""The start of a rollout: both versions must answer the same requests."""

from towline.config import PipelineConfig, RolloutConfig, Settings, read_config, suggest
from towline.data.schema.contract import Contract
from towline.errors import ConfigError, PromotionRejectedError
from towline.registry import rollouts
from towline.registry.ledger import Entry, Ledger
from towline.registry.rollouts import Rollout, active_rollout


def begin_rollout(
    settings: Settings, ledger: Ledger, model: str, version: int, config: RolloutConfig, actor: str, reason: str
) -> Rollout:
    """Starts the rollout of a version that has passed, if no other one is under way, or ``newer`` is replace.

    Raises:
        PromotionRejectedError: the version cannot be rolled out.
        ConfigError: the key is no column.
    """
    champion, challenger = ledger.champion(model), ledger.entry(model, version)
    if champion is not None and challenger is not None and champion.release and challenger.release:
        contracts = (Contract.read(settings.layout.release(entry.release)) for entry in (champion, challenger))
        check_contracts(*contracts, version=f"{model}@{version}", key=config.key)
    replace = config.newer == "replace"
    rollouts.start_rollout(ledger, model, version, config, actor, reason, replace=replace)
    rollout = active_rollout(ledger.rows(model))
    if rollout is None:
        what = "the rollout has ended already"
        raise PromotionRejectedError(what, where=model, remedy=f"see `towline history {model}`")
    return rollout


def check_contracts(champion: Contract, challenger: Contract, *, version: str, key: str | None) -> None:
    """Rejects a challenger that needs other fields than the champion, or predicts something else.

    Args:
        champion: its contract.
        challenger: its contract.
        version: ``NAME@3``, of the challenger.
        key: ``rollout.key`` of the config.

    Raises:
        PromotionRejectedError: the contracts differ.
        ConfigError: the key is no column.
    """
    kinds = {column.name: column.kind for column in champion.input_columns}
    missing = [column.name for column in challenger.input_columns if column.name not in kinds]
    changed = [column.name for column in challenger.input_columns if kinds.get(column.name, column.kind) != column.kind]
    remedy = f'promote it without a rollout: towline promote {version} --reason "clients are ready"'
    if missing or changed:
        problem = "needs fields that the champion does not need" if missing else "reads fields as another kind"
        names = ", ".join((missing or changed)[:10])
        raise PromotionRejectedError(f"it {problem}: {names}", where=version, remedy=remedy)
    same_target = (champion.target, champion.task) == (challenger.target, challenger.task)
    if not same_target or set(champion.classes) != set(challenger.classes):
        raise PromotionRejectedError("it predicts another target or other classes", where=version, remedy=remedy)
    columns = [column.name for column in champion.columns if column.role != "target"]
    if key is not None and key not in columns:
        remedy = f"{suggest(key, columns)}; or leave it out: the request id is the key"
        raise ConfigError(f"no column {key!r} to assign rows by", where="rollout.key", remedy=remedy)


def recorded_config(settings: Settings, ledger: Ledger, model: str) -> PipelineConfig | None:
    """The config in the champion's release; None without a champion."""
    champion: Entry | None = ledger.champion(model)
    return read_config(settings.layout.release(champion.release) / "config.yaml") if champion else None
