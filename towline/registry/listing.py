"""Lists models and their versions from the ledger and the manifests of the releases, without MLflow."""

from towline.config import Frozen, Settings
from towline.errors import ReleaseError
from towline.formatting import format_time
from towline.html.notebook import render_table
from towline.manifest import read_manifest
from towline.registry.ledger import Entry, Ledger
from towline.registry.selection import check_recorded, require_model


class ModelSummary(Frozen):
    """One version in a list of models.

    Attributes:
        model: its name.
        version: its number.
        state: champion, previous, challenger, refused, registered.
        since: the time it became champion, else the time of its verdict (UTC).
        release: the folder of its release in the store; empty while its run is not finished.
        holdout: the primary metric on the holdout, with its interval.
        rows: of the dataset.
        estimator: the class of the model.
    """

    model: str
    version: int
    state: str
    since: str
    release: str
    holdout: str
    rows: int | None = None
    estimator: str | None = None


class ModelList(tuple[ModelSummary, ...]):
    """Versions, in the order of the ledger."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        columns = ("model", "version", "state", "since", "holdout", "rows", "estimator")
        return render_table(columns, [[getattr(row, name) for name in columns] for row in self])


def list_models(settings: Settings, ledger: Ledger, name: str | None = None) -> ModelList:
    """Returns one row a model (its champion, else its newest version), or the versions of one model.

    Raises:
        ConfigError: there is no such model.
        ReleaseError: the ledger was changed or lost.
    """
    if not name:
        check_recorded(settings, ledger)
    rows = []
    for model in [require_model(settings, ledger, name)] if name else ledger.models():
        champion, versions = ledger.champion(model), ledger.versions(model)
        if not name:
            versions = [entry for entry in versions if champion and entry.version == champion.version] or versions[-1:]
        rows += [_summary(settings, ledger, entry, champion) for entry in versions]
    return ModelList(rows)


def _summary(settings: Settings, ledger: Ledger, entry: Entry, champion: Entry | None) -> ModelSummary:
    is_champion = champion is not None and champion.version == entry.version
    holdout, rows, estimator = "no release yet", None, None
    if entry.release:
        try:
            manifest = read_manifest(settings.layout.release(entry.release))
        except ReleaseError:
            holdout = "release missing"
        else:
            holdout = f"{manifest.primary} {manifest.metrics[manifest.primary].text()}"
            rows, estimator = manifest.dataset["rows"], manifest.estimator
    return ModelSummary(
        model=entry.model,
        version=entry.version,
        state=ledger.state(entry.model, entry.version),
        since=format_time((champion if is_champion and champion else entry).time),
        release=entry.release,
        holdout=holdout,
        rows=rows,
        estimator=estimator,
    )
