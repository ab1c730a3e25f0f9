"""A training as a pipeline of Kubeflow Pipelines v2, compiled with the kfp SDK.

``flows/kubeflow.py`` of the project lists the steps. Each becomes a component that calls ``tasks.kubeflow.run_step``
with the artifacts of earlier steps.
"""

import importlib
import importlib.util
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from towline import extras, files
from towline.config import Frozen, PipelineConfig, Settings
from towline.config.passwords import PREFIX
from towline.errors import ConfigError
from towline.orchestration.flow_runner import prepare_project

if TYPE_CHECKING:
    from types import ModuleType

#: keys of the Secret that steps get as environment variables, those of the worker in deployments/kubernetes/worker
SECRET_KEYS = ("TOWLINE_LEDGER_URL", "TOWLINE_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
STORE = "/store"  # of the image `pipeline` in deployments/Dockerfile
_FLOW, _TASKS = "flows.kubeflow", "tasks.kubeflow"
_PARAMETERS = {"config": "str", "as_of": "str", "force": "bool"}
_COMPONENT = '''
def {name}({signature}output: Output[{artifact}]{parameters}) -> None:
    """{step}"""
    from {tasks} import run_step

    artifacts = {artifacts}
    output.metadata.update(run_step("{function}", "{step}", output.path, artifacts{values}))
'''


class PipelineStep(Frozen):
    """A step of a pipeline.

    Attributes:
        name: as Kubeflow shows it; unique in the pipeline.
        function: of ``tasks.kubeflow``.
        inputs: names of the steps whose artifacts it needs.
        artifact: Kubeflow's type of the step's own artifact.
        parameters: its other inputs: ``config``, ``as_of`` and ``force``.
    """

    name: str
    function: str
    inputs: tuple[str, ...] = ()
    artifact: Literal["Artifact", "Dataset", "Metrics", "Model"] = "Artifact"
    parameters: tuple[Literal["config", "as_of", "force"], ...] = ()


class ClusterOptions(Frozen):
    """The settings of the pods of the steps.

    Attributes:
        image: with towline[kubeflow,pipeline] and the project.
        secret: Secret with ``SECRET_KEYS``; empty: none.
        claim: PersistentVolumeClaim of the store; empty: none.
    """

    image: str
    secret: str = ""
    claim: str = ""


def export_pipeline(config: PipelineConfig, settings: Settings, options: ClusterOptions, file: Path) -> Path:
    """Compiles the training of a config to a pipeline definition; returns its path.

    Raises:
        ConfigError: the extra is missing, the project has no such flow, or the config has a literal password.
        TransientError: the file cannot be written.
    """
    extras.require("towline export kubeflow", "kubeflow")
    text = config.model_dump_json()
    if PREFIX in text:
        raise ConfigError(
            "the config has a literal password, which the pipeline would store",
            where="data.source.url or alerts",
            remedy="write ${NAME} instead, and give the steps the variable NAME",
        )
    steps = list_steps(config, settings)
    with tempfile.TemporaryDirectory() as folder:
        components = _make_components(steps, Path(folder), options.image)
        compiled = Path(folder) / "pipeline.yaml"
        _compile(config, text, steps, components, options, compiled)
        return files.write(file, compiled.read_bytes(), mode=0o644)


def list_steps(config: PipelineConfig, settings: Settings) -> Sequence[PipelineStep]:
    """The steps of the project's pipeline for a config, each after those that it needs."""
    prepare_project(settings, "kubeflow")
    steps: Sequence[PipelineStep] = importlib.import_module(_FLOW).training_pipeline(config)
    return steps


def _name_steps(steps: Sequence[PipelineStep]) -> dict[str, str]:
    """The name of each step as an identifier of Python, unique among them."""
    identifiers: dict[str, str] = {}
    for step in steps:
        identifier = base = re.sub(r"\W+", "_", step.name)
        number = 2
        while identifier in identifiers.values():
            identifier, number = f"{base}_{number}", number + 1
        identifiers[step.name] = identifier
    return identifiers


def _make_components(steps: Sequence[PipelineStep], folder: Path, image: str) -> dict[str, Any]:
    """The component of each step. kfp reads the source of a component from a file, so it is written to one."""
    from kfp import dsl

    source, identifiers = "from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output\n", _name_steps(steps)
    file = folder / "components.py"
    file.write_text(source + "".join(_component_source(step, identifiers) for step in steps), encoding="utf-8")
    module = _import_file(file)
    make = dsl.component(base_image=image, install_kfp_package=False)
    return {step.name: make(getattr(module, identifiers[step.name])) for step in steps}


def _component_source(step: PipelineStep, identifiers: Mapping[str, str]) -> str:
    inputs = {name: identifiers[name] for name in step.inputs}
    return _COMPONENT.format(
        name=identifiers[step.name],
        step=step.name,
        function=step.function,
        artifact=step.artifact,
        tasks=_TASKS,
        signature="".join(f"{identifier}: Input[Artifact], " for identifier in inputs.values()),
        artifacts="{" + ", ".join(f'"{name}": {identifier}.path' for name, identifier in inputs.items()) + "}",
        parameters="".join(f", {name}: {_PARAMETERS[name]}" for name in step.parameters),
        values="".join(f", {name}={name}" for name in step.parameters),
    )


def _import_file(file: Path) -> "ModuleType":
    spec = importlib.util.spec_from_file_location(f"_towline_{file.stem}", file)
    assert spec is not None  # noqa: S101 - the file is Python
    assert spec.loader is not None  # noqa: S101 - as above
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(
    config: PipelineConfig,
    text: str,
    steps: Sequence[PipelineStep],
    components: Mapping[str, Any],
    options: ClusterOptions,
    file: Path,
) -> None:
    from kfp import compiler, dsl, kubernetes

    identifiers = _name_steps(steps)

    def training(as_of: str = "", force: bool = False) -> None:
        values = {"config": text, "as_of": as_of, "force": force}
        tasks: dict[str, Any] = {}
        for step in steps:
            arguments = {identifiers[name]: tasks[name].outputs["output"] for name in step.inputs}
            arguments |= {name: values[name] for name in step.parameters}
            task = components[step.name](**arguments)
            task.set_display_name(step.name)
            task.set_caching_options(enable_caching=False)  # only reading the source shows whether it has changed
            if options.secret:
                keys = {key: key for key in SECRET_KEYS}
                kubernetes.use_secret_as_env(task, options.secret, secret_key_to_env=keys, optional=True)
            if options.claim:
                kubernetes.mount_pvc(task, pvc_name=options.claim, mount_path=STORE)
            tasks[step.name] = task

    description = f"towline's training of {config.name}"
    pipeline = dsl.pipeline(name=f"{config.name}-training", description=description)(training)
    compiler.Compiler().compile(pipeline, str(file))
