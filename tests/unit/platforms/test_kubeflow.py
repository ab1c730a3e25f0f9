"""`towline export kubeflow`: the definition is valid for Kubeflow, and has the steps and order of the training flow."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from tasks.kubeflow import STEPS
from tests.support.checks import at_least_one
from tests.support.commands import CommandResult
from tests.support.paths import REPOSITORY
from towline.config import PipelineConfig, Settings
from towline.errors import ConfigError
from towline.platforms.kubeflow import ClusterOptions, export_pipeline, list_steps

Command = Callable[..., CommandResult]
CONFIG = {
    "name": "taxis",
    "data": {"source": "taxis.csv", "target": "fare"},
    "candidates": ["linear", {"estimator": "forest", "name": "linear-2"}, "ensemble"],
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "taxis.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture
def exported(config: Path, tmp_path: Path, command: Command) -> list[dict[str, Any]]:
    """The two documents of a definition: the pipeline, and its Kubernetes settings."""
    words = ("--image", "registry.example.com/team/towline", "--secret", "addresses", "--claim", "store")
    result = command("export", "kubeflow", config, "-o", tmp_path / "pipeline.yaml", *words, "--json")
    assert result.code == 0, result.err
    assert result.json["steps"][:3] == ["load", "validate", "split"]
    return list(yaml.safe_load_all(Path(result.json["file"]).read_text()))


def test_the_definition_is_valid_for_kubeflow(exported: list[dict[str, Any]]) -> None:
    """Kubeflow's schemas of a pipeline and its platform accept each key, and refuse an unknown key."""
    pipeline, platform = exported
    spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    assert (spec.pipeline_info.name, spec.schema_version) == ("taxis-training", "2.1.0")
    assert set(spec.root.input_definitions.parameters) == {"as_of", "force"}
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    with pytest.raises(json_format.ParseError, match="misspelt"):
        json_format.ParseDict(pipeline | {"misspelt": 1}, pipeline_spec_pb2.PipelineSpec())


def test_each_pod_gets_the_image_the_store_and_the_addresses(exported: list[dict[str, Any]]) -> None:
    """Without them a step would have neither the ledger nor the releases."""
    pipeline, platform = exported
    executors = pipeline["deploymentSpec"]["executors"]
    assert {each["container"]["image"] for each in executors.values()} == {"registry.example.com/team/towline"}
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert pods.keys() == executors.keys()
    for pod in at_least_one(pods.values()):
        settings = json_format.ParseDict(pod, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
        assert (settings.pvc_mount[0].constant, settings.pvc_mount[0].mount_path) == ("store", "/store")
        assert settings.secret_as_env[0].secret_name == "addresses"
        names = {each.env_var for each in settings.secret_as_env[0].key_to_env}
        assert {"TOWLINE_LEDGER_URL", "TOWLINE_TRACKING_URI"} <= names


def test_candidates_are_cross_validated_in_parallel(exported: list[dict[str, Any]]) -> None:
    """Each candidate waits only for the split, an ensemble for its parts, and the selection for all of them."""
    tasks = exported[0]["root"]["dag"]["tasks"]
    before = {name: set(task.get("dependentTasks", ())) for name, task in tasks.items()}
    singles = {"cross-validate-baseline", "cross-validate-linear", "cross-validate-linear-2"}
    for name in singles:
        assert before[name] == {"load", "validate", "split"}
    assert before["cross-validate-ensemble"] == {"load", "validate", "split", *singles}
    assert before["choose-history"] == {"load", "validate", "split", "cross-validate-ensemble", *singles}
    assert {"gate", "package", "register"} <= before["decide-promotion"]
    assert not any("enableCache" in task.get("cachingOptions", {}) for task in tasks.values())


def test_every_task_of_the_training_flow_is_called() -> None:
    """The pipeline calls each task of the flow, and has no other code for a step."""
    flow = ast.parse((REPOSITORY / "flows" / "training.py").read_text())
    imports = [node for node in ast.walk(flow) if isinstance(node, ast.ImportFrom) and node.module]
    tasks = {name.name for node in imports if str(node.module).startswith("tasks.") for name in node.names}
    steps = ast.parse((REPOSITORY / "tasks" / "kubeflow.py").read_text())
    called = {
        node.value.attr
        for node in ast.walk(steps)
        if isinstance(node, ast.Attribute) and node.attr == "fn" and isinstance(node.value, ast.Attribute)
    }
    assert called == tasks


def test_each_step_has_its_function() -> None:
    settings = Settings.from_environment({"TOWLINE_PROJECT": str(REPOSITORY)})
    steps = list_steps(PipelineConfig.model_validate(CONFIG), settings)
    assert {step.function for step in steps} == {"load", *STEPS}
    for number, step in enumerate(steps):
        assert set(step.inputs) <= {earlier.name for earlier in steps[:number]}


def test_the_config_is_passed_unchanged(exported: list[dict[str, Any]]) -> None:
    """The step that loads gets the exported config, so the run key is that of the local run."""
    inputs = exported[0]["root"]["dag"]["tasks"]["load"]["inputs"]["parameters"]
    text = inputs["config"]["runtimeValue"]["constant"]
    assert PipelineConfig.model_validate_json(text).digest == PipelineConfig.model_validate(CONFIG).digest
    assert json.loads(text)["name"] == "taxis"


def test_a_literal_password_is_refused(tmp_path: Path, command: Command) -> None:
    """The definition is uploaded and shown, so it must not hold a secret. The remedy works."""
    source = {"url": "postgresql+psycopg://ann:hunter2@db/taxis", "query": "SELECT * FROM rides"}
    path, output = tmp_path / "taxis.yaml", tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(CONFIG | {"data": {"source": source, "target": "fare"}}))
    result = command("export", "kubeflow", path, "-o", output, "--json")
    assert (result.code, result.json["what"][:33]) == (2, "the config has a literal password")
    assert "hunter2" not in result.out + result.err
    assert not output.exists()
    source["url"] = "postgresql+psycopg://ann:${PGPASSWORD}@db/taxis"
    path.write_text(yaml.safe_dump(CONFIG | {"data": {"source": source, "target": "fare"}}))
    assert command("export", "kubeflow", path, "-o", output, "--json").code == 0


def test_a_folder_without_flows_is_named(tmp_path: Path) -> None:
    """A folder that is no project, and a project of an older version, whose remedy is a command."""
    settings = Settings.from_environment({"TOWLINE_PROJECT": str(tmp_path)})
    config, options = PipelineConfig.model_validate(CONFIG), ClusterOptions(image="x")
    with pytest.raises(ConfigError, match="no flows in this folder") as error:
        export_pipeline(config, settings, options, tmp_path / "p.yaml")
    assert str(tmp_path) in error.value.where
    (tmp_path / "flows").mkdir()
    with pytest.raises(ConfigError, match=r"no flows/kubeflow.py") as error:
        export_pipeline(config, settings, options, tmp_path / "p.yaml")
    assert "towline init --update" in error.value.remedy
