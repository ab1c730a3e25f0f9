"""The start of a rollout: both versions must answer the same requests, or requests must have the fields of both."""

from towline.config import Kind, PipelineConfig, RolloutConfig, Settings, read_config, suggest
from towline.data.schema.contract import Contract
from towline.data.schema.values import TEXT_KINDS
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
        ConfigError: the key is not a column.
    """
    champion, challenger = ledger.champion(model), ledger.entry(model, version)
    if champion is not None and challenger is not None and champion.release and challenger.release:
        contracts = (Contract.read(settings.layout.release(entry.release)) for entry in (champion, challenger))
        check_contracts(*contracts, version=f"{model}@{version}", config=config)
    replace = config.newer == "replace"
    rollouts.start_rollout(ledger, model, version, config, actor, reason, replace=replace)
    rollout = active_rollout(ledger.rows(model))
    if rollout is None:
        what = "the rollout has ended already"
        raise PromotionRejectedError(what, where=model, remedy=f"see `towline history {model}`")
    return rollout


def check_contracts(champion: Contract, challenger: Contract, *, version: str, config: RolloutConfig) -> None:
    """Rejects a challenger with another target, task or classes, or, unless ``fields`` is both, with other fields.

    Args:
        champion: its contract.
        challenger: its contract.
        version: ``NAME@3``, of the challenger.
        config: of the rollout.

    Raises:
        PromotionRejectedError: the contracts differ.
        ConfigError: the key is not a column.
    """
    missing, kinds = find_new_fields(champion, challenger), _changed_kinds(champion, challenger)
    without_common_value = [name for name, pair in kinds.items() if not pair & TEXT_KINDS]
    remedy = f'promote it without a rollout: towline promote {version} --reason "clients are ready"'
    if config.fields == "both":
        if without_common_value:
            what = f"no value fits both versions: they read fields as different kinds: {_join(without_common_value)}"
            raise PromotionRejectedError(what, where=version, remedy=remedy)
    elif missing or kinds:
        problem = "needs fields that the champion does not need" if missing else "reads fields as another kind"
        if not without_common_value:
            remedy = f"when clients send what both versions read: towline rollout {version} --fields both; or {remedy}"
        raise PromotionRejectedError(f"it {problem}: {_join(missing or [*kinds])}", where=version, remedy=remedy)
    same_target = (champion.target, champion.task) == (challenger.target, challenger.task)
    if not same_target or set(champion.classes) != set(challenger.classes):
        raise PromotionRejectedError("it predicts another target or other classes", where=version, remedy=remedy)
    columns = [column.name for column in champion.columns if column.role != "target"]
    if config.key is not None and config.key not in columns:
        remedy = f"{suggest(config.key, columns)}; or leave it out: the request id is the key"
        raise ConfigError(f"no column {config.key!r} to assign rows by", where="rollout.key", remedy=remedy)


def find_new_fields(champion: Contract, challenger: Contract) -> list[str]:
    """The fields that only the challenger needs."""
    names = {column.name for column in champion.input_columns}
    return [column.name for column in challenger.input_columns if column.name not in names]


def _changed_kinds(champion: Contract, challenger: Contract) -> dict[str, set[Kind]]:
    """The two kinds of each field that the versions read as different kinds."""
    kinds = {column.name: column.kind for column in champion.input_columns}
    pairs = {c.name: {c.kind, kinds[c.name]} for c in challenger.input_columns if c.name in kinds}
    return {name: pair for name, pair in pairs.items() if len(pair) == 2}


def _join(names: list[str]) -> str:
    return ", ".join(names[:10])


def recorded_config(settings: Settings, ledger: Ledger, model: str) -> PipelineConfig | None:
    """The config in the champion's release; None without a champion."""
    champion: Entry | None = ledger.champion(model)
    return read_config(settings.layout.release(champion.release) / "config.yaml") if champion else None
