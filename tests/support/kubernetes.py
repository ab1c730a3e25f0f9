"""The Kubernetes manifests as a cluster would receive them, and functions that query them."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.support.paths import REPOSITORY

Document = dict[str, Any]
KUBERNETES = REPOSITORY / "deployments" / "kubernetes"
# the oldest with sleep in preStop without a feature gate, and the newest with published schemas
RELEASES = ("1.30", kubernetes_validate.latest_version())


def run_kubectl(*arguments: str | Path) -> str:
    """Runs the kubectl of the environment, else the installed one, without a cluster; returns its output."""
    beside_python = Path(sys.executable).with_name("kubectl")
    kubectl = str(beside_python) if beside_python.exists() else shutil.which("kubectl")
    assert kubectl, "no kubectl: `make dev` installs it"
    result = subprocess.run([kubectl, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr, result.stderr
    return result.stdout


@cache
def _text(folder: Path) -> str:
    return run_kubectl("kustomize", folder)


def render_kustomization(folder: str | Path) -> list[Document]:
    """The documents of a kustomization, by its path below deployments/kubernetes or an absolute path."""
    return list(yaml.safe_load_all(_text(KUBERNETES / folder)))


def validate_document(document: Document, release: str) -> None:
    """Raises kubernetes_validate.ValidationError if Kubernetes would refuse the document, e.g. for an unknown key."""
    kubernetes_validate.validate(document, release, strict=True)


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def pod_spec(deployment: Document) -> Document:
    """The pod's spec."""
    return dict(deployment["spec"]["template"]["spec"])


def selector_matches(selector: dict[str, str], deployment: Document) -> bool:
    """Whether the labels of a selector select the deployment's pods."""
    return selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def iterate_leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each value of a document with its path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from iterate_leaves(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from iterate_leaves(value, (*path, index))
    else:
        yield path, node


def find_changes(before: Document, after: Document) -> dict[tuple[Any, ...], tuple[Any, Any]]:
    """The values that differ, old and new, by path."""
    old, new = dict(iterate_leaves(before)), dict(iterate_leaves(after))
    return {path: (old.get(path), new.get(path)) for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
