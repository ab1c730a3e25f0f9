"""A Docker engine: without one these tests are skipped; if the variable CI is set, they fail."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from docker import DockerClient


@pytest.fixture(scope="session")
def engine() -> "Iterator[DockerClient]":
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=600)
        client.ping()
    except DockerException as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Docker engine: {error}")
    yield client
    client.close()


@pytest.fixture
def untagged_images_are_removed(engine: "DockerClient") -> Iterator[None]:
    """Removes the build stages of the test's images, which remain without a tag: with a library, 0.5 GB each."""
    with remove_untagged_images(engine):
        yield


@pytest.fixture(scope="module", autouse=True)
def _untagged_images_of_the_module_are_removed(engine: "DockerClient") -> Iterator[None]:
    with remove_untagged_images(engine):
        yield


@contextmanager
def remove_untagged_images(engine: "DockerClient") -> Iterator[None]:
    """Removes, at the end of the block, untagged images that did not exist before; others may be the user's."""
    from docker.errors import APIError

    before = {image.id for image in engine.images.list(all=True)}
    yield
    for image in engine.images.list(filters={"dangling": True}):
        if image.id not in before:
            with suppress(APIError):  # a container uses it
                engine.images.remove(image.id)
