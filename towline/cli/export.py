"""towline export: releases and trainings for other platforms."""

from pathlib import Path

import click

from towline.cli import emit, json_option
from towline.cli.run import config_argument, set_option


@click.group(short_help="Exports a release for MLServer or a training for Kubeflow.")
def export() -> None:
    """Exports to other platforms: a model folder for MLServer, a pipeline for Kubeflow.

    \b
    Examples:
      towline export mlserver bike-demand models/bike-demand
      towline export kubeflow configs/bike_demand.yaml -o pipeline.yaml
    """


@export.command(short_help="Writes a folder for MLServer, KServe and Seldon Core 2.")
@click.argument("version", metavar="NAME[@VERSION]|PATH")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--max-rows", type=click.IntRange(1), help="Maximum rows of a request; default: 10,000.")
@json_option
def mlserver(version: str, folder: Path, max_rows: int | None, as_json: bool) -> None:
    """Writes a folder that MLServer, KServe and Seldon Core 2 can serve: the release and model-settings.json.

    NAME stands for its champion, and PATH is the folder of a release. MLServer needs the extra `mlserver`, in
    its own environment.

    \b
    Examples:
      towline export mlserver bike-demand models/bike-demand
      towline export mlserver bike-demand@3 models/bike-demand-3 --max-rows 1000
    """
    from towline.platforms.mlserver_export import export_release
    from towline.registry.selection import find_release

    exported = export_release(find_release(version), folder, max_rows=max_rows)
    text = f"{exported.model} version {exported.version}: {exported.folder}\nserve it: mlserver start {exported.folder}"
    emit(exported.model_dump(mode="json"), as_json, lambda: text)


@export.command(short_help="Compiles a training for Kubeflow Pipelines v2.")
@config_argument
@click.option(
    "-o", "--output", default="pipeline.yaml", show_default=True, type=click.Path(path_type=Path), help="The file."
)
@click.option(
    "--image",
    default="towline-pipeline",
    show_default=True,
    help="Image of the steps, with the project and towline[kubeflow,pipeline].",
)
@click.option("--secret", default="", metavar="NAME", help="Secret with the addresses of the ledger and of MLflow.")
@click.option("--claim", default="", metavar="NAME", help="PersistentVolumeClaim of the store, mounted at /store.")
@set_option
@json_option
def kubeflow(
    config: Path, output: Path, image: str, secret: str, claim: str, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Compiles the training of CONFIG to a pipeline of Kubeflow Pipelines v2.

    Its components call the steps of `towline run`, each in its own pod; artifacts carry the results from step to
    step. A run has the parameters as_of and force.

    \b
    Examples:
      towline export kubeflow configs/bike_demand.yaml -o pipeline.yaml
      towline export kubeflow configs/bike_demand.yaml --image registry.example.com/towline --claim towline-store
    """
    from towline.config import Settings, read_config
    from towline.platforms.kubeflow import ClusterOptions, export_pipeline, list_steps

    settings, pipeline = Settings.from_environment(), read_config(config, overrides)
    options = ClusterOptions(image=image, secret=secret, claim=claim)
    file = export_pipeline(pipeline, settings, options, output.absolute())
    steps = [step.name for step in list_steps(pipeline, settings)]
    document = {"file": str(file), "model": pipeline.name, "image": image, "steps": steps}
    emit(document, as_json, lambda: f"{file}: {len(steps)} steps, image {image}\n" + "\n".join(f"  {s}" for s in steps))
