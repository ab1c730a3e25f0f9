"""Container images of releases: an image is built, gets a smoke test, and is tagged only if the test passes."""

import gzip
import io
import json
import logging
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from towline.config import Frozen
from towline.errors import ReleaseError, TransientError
from towline.extras import BOOSTING_LIBRARIES
from towline.inference.compiled.codec import PLAN_FILE
from towline.inference.predictor import open_release
from towline.manifest import Manifest, verify_release
from towline.release import runtime

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_LOG = logging.getLogger("towline.steps")
_LABEL = "io.towline"
_START_TIMEOUT_S = 60  # seconds until a container must be ready
_STALE_S = 900  # seconds after which the container of a smoke test is a leftover of a killed run
_MEMORY = "1g"
_REMEDY = "correct the error in the lines above, then run the same command again; the release is not affected"


class ReleaseImage(Frozen):
    """An image of a release.

    Attributes:
        tag: its tag, from the repository and the folder name of the release.
        id: digest of the image configuration, which contains the digests of all layers.
        release: digest of the release in it.
        digest: digest of the image manifest in a registry; empty until the image is pushed.
        bytes: size of all layers.
        base: size of the layers of the base image.
        rows: number of probe rows for which the smoke test compared predictions.
        seconds: time from the start of the container until it was ready.
    """

    tag: str
    id: str
    release: str
    digest: str = ""
    bytes: int
    base: int
    rows: int
    seconds: float

    def text(self) -> str:
        size = f"{(self.bytes - self.base) / 1e6:.0f} MB larger than its base image"
        return f"{self.tag}: {size}, {self.rows} probe rows with identical predictions, ready in {self.seconds} s"


def build_release_image(directory: Path, repository: str = "", digest: str = "") -> ReleaseImage:
    """Builds the image of a release unless it exists, and runs a smoke test: a container must give equal predictions.

    The image gets its tag, ``<repository or model>:v7-<12 digits of the release>``, after the smoke test. An existing
    tag is never moved: an image of the same release is tested again, any other image is an error.

    Args:
        directory: the release.
        repository: repository of the tag, such as ``registry.example.com/team/bike-demand``; default: the model's name.
        digest: digest of the release in the ledger.

    Raises:
        ReleaseError: the release differs from its manifest, the build failed, the tag belongs to another image, or the
            predictions of the container differ.
        TransientError: the Docker engine does not answer; the release is not affected.
    """
    manifest = verify_release(directory)
    tag = f"{repository or manifest.name}:{manifest.folder}"
    with _docker_client(directory) as client:
        existing_id = _tagged_image(client, tag, manifest)
        image_id = existing_id or _build_image(client, directory, manifest)
        try:
            rows, seconds = _smoke_test(client, image_id, directory, manifest, digest)
            if not existing_id and not _tagged_image(client, tag, manifest):
                client.images.get(image_id).tag(*tag.rsplit(":", 1))
        except BaseException:
            if not existing_id:
                with suppress(Exception):  # the first error is reported, not that of the cleanup
                    client.images.remove(image_id)
            raise
        image = client.images.get(tag)
        base = client.images.get(f"python:{_python(manifest)}-slim-bookworm")
        pushed = [name.partition("@")[2] for name in image.attrs.get("RepoDigests") or ()]
        return ReleaseImage(
            tag=tag,
            id=str(image.id),
            release=manifest.digest,
            digest=pushed[0] if pushed else "",
            bytes=image.attrs["Size"],
            base=base.attrs["Size"],
            rows=rows,
            seconds=seconds,
        )


@contextmanager
def _docker_client(directory: Path) -> Iterator["DockerClient"]:
    import docker
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    client = None
    try:
        client = docker.from_env(timeout=600)
        client.ping()
        yield client
    except (DockerException, RequestException) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TransientError(
            f"the Docker engine reports an error: {first[:300]}" if client else "no Docker engine answers",
            where=str(directory),
            remedy="start Docker, or set DOCKER_HOST to the address of its engine, and run the same command again; "
            "`towline serve` works without an image",
        ) from error
    finally:
        if client is not None:
            client.close()


def _tagged_image(client: "DockerClient", tag: str, manifest: Manifest) -> str:
    """The id of the image with this tag; empty if there is none."""
    from docker.errors import ImageNotFound

    try:
        image = client.images.get(tag)
    except ImageNotFound:
        return ""
    if image.labels.get(f"{_LABEL}.release") != manifest.digest:
        raise ReleaseError(
            "another image already has this tag",
            where=tag,
            remedy=f"see `docker image inspect {tag}`; remove that image, or choose another tag with --repository",
        )
    return str(image.id)


def _build_image(client: "DockerClient", directory: Path, manifest: Manifest) -> str:
    compiled = (directory / PLAN_FILE).is_file()
    if not compiled and (foreign := _unlocked_packages(manifest)):
        raise ReleaseError(
            f"the estimator needs {', '.join(foreign)}, which the image does not contain",
            where=str(directory),
            remedy="write your own Dockerfile for the release: docs/containers.md",
        )
    lock_file = directory / runtime.NAME
    requirements = lock_file.read_text("utf-8") if lock_file.is_file() else runtime.select_lock_file(compiled=compiled)
    runtime.check_versions(requirements, manifest.libraries, compiled=compiled)
    lines: list[str] = []
    image_id = ""
    with tempfile.TemporaryFile() as context:
        _write_context(context, directory, requirements, _container_command(manifest))
        context.seek(0)
        for message in client.api.build(
            fileobj=context,
            custom_context=True,
            encoding="gzip",
            target="release",
            rm=True,
            forcerm=True,
            decode=True,
            buildargs={"PYTHON": _python(manifest)},
            labels=_labels(manifest),
        ):
            for line in str(message.get("stream", "")).splitlines():
                lines.append(line)
                if line.startswith("Step "):
                    _LOG.info("image: %s", line, extra={"step": f"image {line.split()[1]}", "status": "begin"})
            image_id = message.get("aux", {}).get("ID", image_id)
            if "error" in message:
                raise ReleaseError(
                    f"the image could not be built: {str(message['error'])[:300]}",
                    where=str(directory),
                    remedy=_REMEDY,
                    details=tuple(line for line in lines if line.strip())[-15:],
                )
    return image_id


def _unlocked_packages(manifest: Manifest) -> list[str]:
    """Packages that the model needs and that are in no lock file of towline."""
    paths = [*manifest.trusted, *([manifest.estimator] if "." in manifest.estimator else [])]
    return sorted({path.partition(".")[0] for path in paths} - {"sklearn", *BOOSTING_LIBRARIES})


def _container_command(manifest: Manifest) -> list[str]:
    """The command of the container; it has no ledger with the digest of the release, so the types are trusted here."""
    trust = [word for name in manifest.trusted for word in ("--trust", name)]
    return ["serve", "/release", "--host", "0.0.0.0", *trust]  # noqa: S104 - inside the container's network


def _write_context(file: IO[bytes], directory: Path, requirements: str, command: list[str]) -> None:
    """Writes the build context: the Dockerfile, the lock file, towline and the release; always the same bytes."""
    package = Path(__file__).parents[1]
    with (
        gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        _add(tar, "requirements.txt", requirements.encode())
        dockerfile = (package / "release" / "Dockerfile").read_text(encoding="utf-8")
        _add(tar, "Dockerfile", f"{dockerfile}CMD {json.dumps(command)}\n".encode())
        for root, name in ((package, "towline"), (directory, "release")):
            for path in sorted(root.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    _add(tar, f"{name}/{path.relative_to(root).as_posix()}", path.read_bytes())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, io.BytesIO(content))


def _labels(manifest: Manifest) -> dict[str, str]:
    annotation = "org.opencontainers.image"
    return {
        f"{annotation}.title": manifest.name,
        f"{annotation}.version": str(manifest.version),
        f"{annotation}.revision": manifest.commit,
        f"{annotation}.created": manifest.created,
        f"{annotation}.description": f"{manifest.name} {manifest.version}: {manifest.estimator}, {manifest.task}",
        f"{annotation}.base.name": f"python:{_python(manifest)}-slim-bookworm",
        f"{_LABEL}.model": manifest.name,
        f"{_LABEL}.release": manifest.digest,
        f"{_LABEL}.dataset": str(manifest.dataset["digest"]),
        f"{_LABEL}.run": manifest.run_key,
    }


def _python(manifest: Manifest) -> str:
    return ".".join(manifest.python.split(".")[:2])


def _smoke_test(
    client: "DockerClient", image_id: str, directory: Path, manifest: Manifest, digest: str
) -> tuple[int, float]:
    """Compares predictions of a container without network, capabilities or a writable root with those of the release.

    Returns:
        Number of compared rows, and seconds until the container was ready.
    """
    _remove_stale_containers(client)
    container = client.containers.run(
        image_id,
        [*_container_command(manifest), "--insecure"],  # it has no network
        detach=True,
        network_mode="none",
        read_only=True,
        tmpfs={"/tmp": "size=64m"},  # noqa: S108 - inside the container
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        mem_limit=_MEMORY,
        labels={f"{_LABEL}.trial": str(int(time.time()))},
    )
    try:
        began = time.perf_counter()
        _run_health_check(container, directory, "--wait", str(_START_TIMEOUT_S))
        seconds = round(time.perf_counter() - began, 1)
        response = json.loads(_run_health_check(container, directory, "--rows", "/release/probe.json"))
    finally:
        container.remove(force=True, v=True)
    probe_rows = json.loads((directory / "probe.json").read_bytes())["rows"]
    expected = open_release(directory, digest=digest).predict_rows(probe_rows)
    for what, actual, expected_values in (
        ("predictions", response.get("predictions"), expected.predictions),
        ("probabilities", response.get("probabilities"), expected.probabilities),
    ):
        if json.dumps(actual) != json.dumps(expected_values):  # compared as text: in Python 1 == True
            raise ReleaseError(
                f"the {what} of the container differ from those of the release for the {len(probe_rows)} probe rows",
                where=str(directory),
                remedy="build on the processor architecture that the model was trained on, with the same versions",
            )
    return len(probe_rows), seconds


def _run_health_check(container: "Container", directory: Path, *words: str) -> str:
    code, output = container.exec_run(["python", "-m", "towline.serving.process.health", *words], demux=True)
    if code == 0:
        return str((output[0] or b"").decode())
    container.reload()
    log_lines = container.logs(tail=15).decode("utf-8", "replace").splitlines()
    raise ReleaseError(
        f"a container of the image {'did not become ready' if '--wait' in words else 'did not answer the probe rows'}",
        where=str(directory),
        remedy=f"read the last lines of its log above; the container was {container.status}",
        details=tuple(log_lines),
    )


def _remove_stale_containers(client: "DockerClient") -> None:
    """Removes the containers that killed runs left during a smoke test."""
    from docker.errors import DockerException

    for container in client.containers.list(all=True, filters={"label": f"{_LABEL}.trial"}):
        if time.time() - int(container.labels[f"{_LABEL}.trial"]) > _STALE_S:
            with suppress(DockerException):
                container.remove(force=True, v=True)
