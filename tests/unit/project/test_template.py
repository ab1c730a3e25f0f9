"""The files of a new project refer to files of the same project."""

import re
import tomllib
from pathlib import Path

from tests.support.paths import REPOSITORY
from towline.project.template import PATHS, read_template

_PATH = re.compile(r"(?<![\w/.])(?:deployments|configs|flows|tasks|data)/[\w./$-]*\w")


def test_every_path_in_the_deployments_of_a_project_is_there() -> None:
    """Also the folders that the CI workflows apply to a cluster."""
    project = dict(read_template("churn", "churn.yaml")) | {"configs/churn.yaml": ""}
    project = {path: text for path, text in project.items() if path != "README.md"}
    present = {*project, *(parent.as_posix() for path in project for parent in Path(path).parents)}
    deployments = {path: text for path, text in project.items() if path.startswith("deployments/")}
    assert len(deployments) > 10
    for path, text in deployments.items():
        assert "bike" not in text, path
        named = {name.replace("$CI_ENVIRONMENT_NAME", "staging") for name in _PATH.findall(text)}
        assert named - present == set(), path
        if path.endswith("kustomization.yaml"):
            beside = re.findall(r"^  - (?:path: )?([\w./]+)$", text, re.MULTILINE)
            places = {(REPOSITORY / path).parent / name for name in beside}
            assert {place.resolve().relative_to(REPOSITORY).as_posix() for place in places} - present == set(), path


def test_the_wheel_holds_the_template() -> None:
    included = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(included["force-include"]) == set(PATHS)
