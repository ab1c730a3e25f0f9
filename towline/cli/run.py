"""towline run and towline validate."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towline.cli import emit, json_option
from towline.cli.arguments import TimeType, only_config

if TYPE_CHECKING:
    from towline.orchestration.flow_runner import FlowName, FlowResult

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the config."
)
as_of_option = click.option(
    "--as-of",
    metavar="DATE",
    type=TimeType(),
    help="Leave out rows after this day or time, e.g. 2012-06-30.",
)
config_argument = click.argument(
    "config", metavar="[CONFIG]", required=False, default=only_config, type=click.Path(path_type=Path)
)


@click.command()
@config_argument
@as_of_option
@set_option
@click.option("--force", is_flag=True, help="Run again even if an identical run has finished.")
@json_option
def run(config: Path, as_of: datetime | None, overrides: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Trains, evaluates and promotes a model.

    Without CONFIG, the only config in the project's folder configs is used, also by other commands with CONFIG.

    The run is one Prefect flow. If a run is interrupted, run the same command again: it resumes from the last completed
    step. A run that has completed is not repeated.

    \b
    Examples:
      towline run configs/bike_demand.yaml
      towline run configs/bike_demand.yaml --as-of 2012-06-30 --set gate.max.mae=50
    """
    from towline.cli import screen
    from towline.config import Settings
    from towline.errors import PromotionRejectedError

    outcome, page = run_flow("training", config, as_of, overrides, force=force)
    settings = Settings.from_environment()
    document = outcome.model_dump(mode="json") | ({"page": page} if page else {})
    emit(document, as_json, lambda: screen.summary(outcome, settings, page))
    if outcome.event == "refused":
        click.get_current_context().exit(PromotionRejectedError.exit_code)


@click.command()
@config_argument
@as_of_option
@set_option
@json_option
def validate(config: Path, as_of: datetime | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Checks a config and its table without training.

    The config is checked before the table is loaded. Then the columns are shown with the kind and the role that they
    would have in a run.

    \b
    Examples:
      towline validate configs/bike_demand.yaml
      towline validate configs/bike_demand.yaml --json
    """
    from towline import api
    from towline.cli import screen
    from towline.config import Settings

    settings = Settings.from_environment()
    with screen.progress(settings.layout.log()):
        checked = api.validate(config, as_of=as_of, overrides=overrides)
    contract = checked.contract.model_dump(mode="json")
    document = {**checked.validation.model_dump(mode="json"), "report": str(checked.page), "contract": contract}
    emit(document, as_json, lambda: screen.validation_text(checked))


def run_flow(
    name: "FlowName", config: Path, as_of: datetime | None, overrides: tuple[str, ...], **parameters: object
) -> "FlowResult":
    """Runs a flow, with progress on stderr; on a worker if the command line names a profile.

    An interrupt does not end a run on a worker.
    """
    from towline import api
    from towline.cli import screen
    from towline.config import Settings, locating_errors, read_config

    settings = Settings.from_environment()
    pipeline = read_config(config, overrides)
    context = click.get_current_context(silent=True)
    profile = context.find_root().obj if context else None
    with screen.progress(settings.layout.log()), locating_errors(config, overrides):
        try:
            return api.run_flow(settings, name, {"config": pipeline, "as_of": as_of, **parameters}, profile)
        except KeyboardInterrupt:
            if profile:
                raise click.exceptions.Exit(130) from None
            raise
