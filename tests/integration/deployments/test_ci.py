import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.support.checks import at_least_one
from tests.support.json_schemas import check_file
from tests.support.paths import REPOSITORY
from towline.cli import main

CI = REPOSITORY / "deployments" / "ci"
FILES = {
    "ci.yml": (REPOSITORY / ".github" / "workflows" / "ci.yml", "vendor.github-workflows"),
    "github.yml": (CI / "github.yml", "vendor.github-workflows"),
    "gitlab-ci.yml": (CI / "gitlab-ci.yml", "vendor.gitlab-ci"),
}
DIGEST = "sha256:" + "0123456789abcdef" * 4


def read(name: str) -> dict[Any, Any]:
    return dict(yaml.safe_load(FILES[name][0].read_text()))


def scripts(name: str) -> Iterator[str]:
    """The shell scripts of each job."""
    content = read(name)
    if name == "gitlab-ci.yml":
        for job in content.values():
            if isinstance(job, dict):
                for part in ("before_script", "script", "after_script"):
                    yield "\n".join(job.get(part, ()))
    else:
        for job in content["jobs"].values():
            yield from (step["run"] for step in job["steps"] if "run" in step)


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_valid_under_its_schema(name: str) -> None:
    """Workflows and pipelines are valid under the schemas of GitHub and GitLab."""
    result = check_file(*FILES[name])
    assert result.code == 0, result.out


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("ci.yml", "runs-on:", "run-on:"),
        ("github.yml", "    needs: train", "    need: train"),
        ("github.yml", "timeout-minutes: 240", "timeout-minutes: long"),
        ("gitlab-ci.yml", "when: manual", "when: by-hand"),
        ("gitlab-ci.yml", "  resource_group: train", "  ressource_group: train"),
    ],
)
def test_the_schema_refuses_misspelt_keys_and_invalid_values(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    """The schema refuses a misspelt key and an invalid value, so the test above can fail."""
    file, kind = FILES[name]
    text = file.read_text()
    assert right in text
    (tmp_path / name).write_text(text.replace(right, wrong, 1))
    result = check_file(tmp_path / name, kind)
    assert (result.code, result.json["status"]) == (1, "fail")


@pytest.mark.parametrize("name", FILES)
def test_each_script_is_valid_bash(name: str) -> None:
    """bash can parse each script; expressions of the CI system are passed to it as variables."""
    texts = [script for script in scripts(name) if script]
    assert texts
    for script in at_least_one(texts):
        result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=10, check=False)
        assert result.returncode == 0, result.stderr
        assert "${{" not in script


def test_each_towline_command_and_option_exists() -> None:
    """Each towline command in the examples exists, with all of its options."""
    texts = [*scripts("github.yml"), *scripts("gitlab-ci.yml"), (CI / "package.sh").read_text()]
    lines = re.findall(r"(?:^|\$\()towline ([^|>)\n]*)", "\n".join(texts), re.MULTILINE)
    named = [shlex.split(line) for line in lines]
    assert {words[0] for words in named} == {"validate", "run", "package"}
    for name, *words in at_least_one(named):
        assert name in main.commands, name
        command = main.commands[name]
        assert isinstance(command, click.Command)
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, (name, words)
        # raises for a missing or unexpected argument
        command.make_context(name, [word for word in words if word != "--json"])


def test_targets_scripts_and_configs_of_the_jobs_exist() -> None:
    """make targets, scripts, overlays and configs that the examples name exist; scripts are executable."""
    texts = "\n".join(text for name in FILES for text in scripts(name))
    targets = set(re.findall(r"\bmake ([a-z]+)", texts))
    makefile = (REPOSITORY / "Makefile").read_text()
    assert targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
    for script in at_least_one(set(re.findall(r"deployments/ci/\w+\.sh", texts))):
        assert os.access(REPOSITORY / script, os.X_OK), script
    for overlay in at_least_one(re.findall(r"deployments/kubernetes/overlays/\w+", texts)):
        assert (REPOSITORY / overlay / "kustomization.yaml").exists()
    for name in ("staging", "production"):  # GitLab's are named after the environment
        assert read("gitlab-ci.yml")[name]["environment"]["name"] == name
    assert (REPOSITORY / read("github.yml")["env"]["CONFIG"]).exists()
    assert (REPOSITORY / read("gitlab-ci.yml")["variables"]["CONFIG"]).exists()
    assert any(re.search(r"\bbash \.ci/run\b", script) for script in scripts("ci.yml"))


@pytest.mark.parametrize("name", ["ci.yml", "github.yml"])
def test_workflows_have_minimal_permissions(name: str) -> None:
    """The token can only read the repository and is not stored in the checkout; each job has a time limit."""
    content = read(name)
    assert content["permissions"] == {"contents": "read"}
    assert content["concurrency"]["group"]
    for job in at_least_one(content["jobs"].values()):
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 240
        for step in at_least_one(job["steps"]):
            action = step.get("uses", "")
            assert not action or re.fullmatch(r"actions/[a-z-]+@v\d+", action)
            if action.startswith("actions/checkout"):
                assert step["with"] == {"persist-credentials": False}


def test_production_needs_a_manual_approval() -> None:
    """GitHub asks the environment's reviewers, GitLab needs a click: after staging, on the main branch only."""
    jobs = read("github.yml")["jobs"]
    assert jobs["production"]["environment"] == "production"
    assert {"train", "staging"} <= set(jobs["production"]["needs"])
    assert "refs/heads/main" in jobs["train"]["if"]
    pipeline = read("gitlab-ci.yml")
    (rule,) = pipeline["production"]["rules"]
    assert (rule["if"], rule["when"]) == ("$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH", "manual")
    assert pipeline["production"]["environment"] == {"name": "production"}
    assert {"train", "staging"} <= set(pipeline["production"]["needs"])


def test_secrets_reach_only_the_jobs_that_use_them() -> None:
    """No secret is in the environment of the job that runs the code of a pull request."""
    jobs = read("github.yml")["jobs"]
    assert "secrets." not in json.dumps(jobs["test"])
    assert "secrets." not in json.dumps(read("github.yml")["env"])
    assert "REGISTRY_PASSWORD" not in json.dumps([jobs["staging"], jobs["production"]])


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Fake programs that record their calls; a call that matches the pattern in the file ``fails`` fails once."""
    folder = tmp_path / "bin"
    folder.mkdir()
    answers = {
        "towline": 'echo "{\\"image\\": \\"$5:v7-0123456789ab\\", \\"digest\\": null}"',
        "docker": 'case "$*" in "image inspect"*) echo "elsewhere/bike-demand@sha256:00";'
        f' echo "registry.example.com/team/bike-demand@{DIGEST}";; push*) echo pushed;; esac',
        "kustomize": ":",
        "kubectl": ":",
    }
    for name, answer in answers.items():
        script = f"""#!/bin/bash
echo "{name} $*" >> "{tmp_path}/calls"
if read -r pattern < "{tmp_path}/fails" && [[ "{name} $*" == $pattern ]]; then : > "{tmp_path}/fails"; exit 1; fi
{answer}
"""
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    (tmp_path / "fails").write_text("")
    shutil.copytree(REPOSITORY / "deployments" / "kubernetes", tmp_path / "kubernetes")
    return tmp_path


def run_script(tools: Path, script: str, *words: str) -> tuple[int, str, list[str]]:
    """Runs a script; returns its exit code, its standard output and the calls of the tools."""
    (tools / "calls").write_text("")
    environment = os.environ | {"PATH": f"{tools / 'bin'}:{os.environ['PATH']}"}
    result = subprocess.run(
        [CI / script, *words], env=environment, cwd=tools, capture_output=True, text=True, timeout=20, check=False
    )
    return result.returncode, result.stdout, (tools / "calls").read_text().splitlines()


IMAGE = f"registry.example.com/team/bike-demand@{DIGEST}"
DEPLOYED = [
    f"kustomize edit set image towline-release={IMAGE}",
    "kubectl apply -k kubernetes/overlays/production",
    "kubectl -n towline-production rollout status deployment/predictions --timeout=300s",
]


def test_packaging_prints_the_pushed_digest(tools: Path) -> None:
    """The image is pushed under its tag; stdout has one line, the reference by which the cluster pulls it."""
    code, out, calls = run_script(tools, "package.sh", "bike-demand@7", "registry.example.com/team/bike-demand")
    assert (code, out) == (0, f"{IMAGE}\n")
    repository = "registry.example.com/team/bike-demand"
    assert calls[0] == f"towline package bike-demand@7 --image --repository {repository} --json"
    assert f"docker push --quiet {repository}:v7-0123456789ab" in calls


@pytest.mark.parametrize("failing", ["towline package*", "docker push*", "docker image*"])
def test_failed_packaging_prints_no_image(tools: Path, failing: str) -> None:
    """If any step fails, the script fails, too."""
    (tools / "fails").write_text(f"{failing}\n")
    code, out, _ = run_script(tools, "package.sh", "bike-demand@7", "registry.example.com/team/bike-demand")
    assert code != 0
    assert out == ""


def test_a_release_is_deployed_by_digest(tools: Path) -> None:
    """The script sets the image, applies the overlay and waits, in this order and in the overlay's namespace."""
    assert run_script(tools, "deploy.sh", "kubernetes/overlays/production", IMAGE) == (0, "", DEPLOYED)


def test_a_failed_deployment_is_undone(tools: Path) -> None:
    """The previous version is restored, the script waits for it, and the job fails."""
    (tools / "fails").write_text("*rollout status*\n")
    code, _, calls = run_script(tools, "deploy.sh", "kubernetes/overlays/production", IMAGE)
    assert code == 1
    assert calls[:3] == DEPLOYED
    assert calls[3:] == ["kubectl -n towline-production rollout undo deployment/predictions", DEPLOYED[2]]


@pytest.mark.parametrize("image", ["bike-demand:v7", "bike-demand@sha256:12", "bike-demand@" + DIGEST.upper(), ""])
def test_a_tag_is_not_deployed(tools: Path, image: str) -> None:
    """An image without a complete digest is refused, and nothing is changed."""
    assert run_script(tools, "deploy.sh", "kubernetes/overlays/production", image) == (2, "", [])


def test_a_rejected_apply_is_not_undone(tools: Path) -> None:
    """Nothing has changed, so the script neither waits for a rollout nor undoes one."""
    (tools / "fails").write_text("*apply*\n")
    code, _, calls = run_script(tools, "deploy.sh", "kubernetes/overlays/staging", IMAGE)
    assert code != 0
    assert [line for line in calls if "rollout" in line] == []
