"""The manifests as a cluster would get them, and what may be asked of them."""

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
# the oldest whose preStop can sleep without a feature gate, and the newest that there are schemas for
RELEASES = ("1.30", kubernetes_validate.latest_version())


def run_kubectl(*words: str | Path) -> str:
    """What kubectl prints: the one of the developers' tools, else the machine's. It asks no cluster."""
    own = Path(sys.executable).with_name("kubectl")
    found = str(own) if own.exists() else shutil.which("kubectl")
    assert found, "no kubectl: `make dev` installs it"
    done = subprocess.run([found, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return done.stdout


@cache
def _text(folder: Path) -> str:
    return run_kubectl("kustomize", folder)


def render_kustomization(folder: str | Path) -> list[Document]:
    """The documents of a kustomization, by its path below deployments/kubernetes or anywhere."""
    return list(yaml.safe_load_all(_text(KUBERNETES / folder)))


def validate_document(document: Document, release: str) -> None:
    """Raises kubernetes_validate.ValidationError where a release of Kubernetes would not take it, unknown keys too."""
    kubernetes_validate.validate(document, release, strict=True)


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [one for one in documents if one["kind"] == kind]


def pod_spec(deployment: Document) -> Document:
    """The pod's spec."""
    return dict(deployment["spec"]["template"]["spec"])


def selector_matches(selector: dict[str, str], deployment: Document) -> bool:
    """Whether labels of a selector meet the deployment's pods."""
    return selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def iterate_leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each value of a document with the way to it."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from iterate_leaves(value, (*path, key))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from iterate_leaves(value, (*path, place))
    else:
        yield path, node


def find_changes(before: Document, after: Document) -> dict[tuple[Any, ...], tuple[Any, Any]]:
    """The values that differ, old and new, by the way to them."""
    old, new = dict(iterate_leaves(before)), dict(iterate_leaves(after))
    return {way: (old.get(way), new.get(way)) for way in old.keys() | new.keys() if old.get(way) != new.get(way)}
