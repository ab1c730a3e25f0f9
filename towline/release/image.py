"""The container image of a release: built, tried and only then named."""

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
_STALE_S = 900  # seconds after which a container that tries an image belongs to a run that was killed
_MEMORY = "1g"
_REMEDY = "read the lines above; the release itself is whole, so the same command may be given again"


class ReleaseImage(Frozen):
    """An image of a release. ``id`` is the digest of its configuration, which names every layer by its own.

    Attributes:
        tag: what it is called: the model and its release's folder.
        release: the digest of the release in it.
        digest: of the manifest that a registry holds; empty until it is pushed.
        bytes: of all its layers. base: of these, those of the base image.
        rows: how many probe rows a container of it answered as the release does.
        seconds: from its start until it was ready.
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
        own = f"{(self.bytes - self.base) / 1e6:.0f} MB over its base"
        return f"{self.tag}, {own}, answers {self.rows} rows identically, ready in {self.seconds} s"


def build_release_image(directory: Path, repository: str = "", digest: str = "") -> ReleaseImage:
    """Builds the image of a release unless it is there, starts a container of it and holds its answers to the release.

    It is given its tag, ``<repository or model>:v7-<12 digits of the release>``, when it has answered. A tag that is
    there already is never moved: if it is of this release it is tried again, else refused.

    Args:
        directory: the release.
        repository: what the tag begins with, such as ``registry.example.com/team/bike-demand``; default: the model.
        digest: of the release, as the ledger recorded it.

    Raises:
        ReleaseError: the release is not what its manifest says, the build failed, the tag is another image's, or a
            container does not answer as the release does.
        TransientError: no Docker engine answers; the release stays where it is.
    """
    manifest = verify_release(directory)
    tag = f"{repository or manifest.name}:{manifest.folder}"
    with _docker_client(directory) as client:
        found = _tagged_image(client, tag, manifest)
        number = found or _build_image(client, directory, manifest)
        try:
            rows, seconds = _smoke_test(client, number, directory, manifest, digest)
            if not found and not _tagged_image(client, tag, manifest):
                client.images.get(number).tag(*tag.rsplit(":", 1))
        except BaseException:
            if not found:
                with suppress(Exception):  # what went wrong is told, not that it could not be swept up
                    client.images.remove(number)
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
            f"the Docker engine did not do its part: {first[:300]}" if client else "no Docker engine answers",
            where=str(directory),
            remedy="start Docker, or name its engine in DOCKER_HOST, and give the same command again; the release is "
            "there, and `towline serve` answers from it without an image",
        ) from error
    finally:
        if client is not None:
            client.close()


def _tagged_image(client: "DockerClient", tag: str, manifest: Manifest) -> str:
    """The id of the image that has this tag; empty where none has."""
    from docker.errors import ImageNotFound

    try:
        image = client.images.get(tag)
    except ImageNotFound:
        return ""
    if image.labels.get(f"{_LABEL}.release") != manifest.digest:
        raise ReleaseError(
            "the tag is another image's, and a tag is never moved",
            where=tag,
            remedy=f"see `docker image inspect {tag}`; remove it, or give --repository",
        )
    return str(image.id)


def _build_image(client: "DockerClient", directory: Path, manifest: Manifest) -> str:
    compiled = (directory / PLAN_FILE).is_file()
    if not compiled and (foreign := _unlocked_packages(manifest)):
        raise ReleaseError(
            f"its estimator comes from {', '.join(foreign)}, which the image would not hold",
            where=str(directory),
            remedy="use the release as the base of an image of your own: docs/containers.md",
        )
    own = directory / runtime.NAME
    requirements = own.read_text("utf-8") if own.is_file() else runtime.select_lock_file(compiled=compiled)
    runtime.check_versions(requirements, manifest.libraries, compiled=compiled)
    lines: list[str] = []
    number = ""
    with tempfile.TemporaryFile() as context:
        _write_context(context, directory, requirements, _container_command(manifest))
        context.seek(0)
        for told in client.api.build(
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
            for line in str(told.get("stream", "")).splitlines():
                lines.append(line)
                if line.startswith("Step "):
                    _LOG.info("image: %s", line, extra={"step": f"image {line.split()[1]}", "status": "begin"})
            number = told.get("aux", {}).get("ID", number)
            if "error" in told:
                raise ReleaseError(
                    f"the image could not be built: {str(told['error'])[:300]}",
                    where=str(directory),
                    remedy=_REMEDY,
                    details=tuple(line for line in lines if line.strip())[-15:],
                )
    return number


def _unlocked_packages(manifest: Manifest) -> list[str]:
    """Packages that the model needs and no lock file of ours names."""
    paths = [*manifest.trusted, *([manifest.estimator] if "." in manifest.estimator else [])]
    return sorted({path.partition(".")[0] for path in paths} - {"sklearn", *runtime.LIBRARIES})


def _container_command(manifest: Manifest) -> list[str]:
    """What a container of the image does; it has no ledger that vouches for the types in its release."""
    trust = [word for name in manifest.trusted for word in ("--trust", name)]
    return ["serve", "/release", "--host", "0.0.0.0", *trust]  # noqa: S104 - the container's own network


def _write_context(file: IO[bytes], directory: Path, requirements: str, command: list[str]) -> None:
    """The build's context: the Dockerfile, the lock file, towline itself and the release, always the same bytes."""
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
    client: "DockerClient", number: str, directory: Path, manifest: Manifest, digest: str
) -> tuple[int, float]:
    """Starts a container without network, rights or a writable root; returns how many rows it answered as we do."""
    _remove_stale_containers(client)
    container = client.containers.run(
        number,
        [*_container_command(manifest), "--insecure"],  # it has no network
        detach=True,
        network_mode="none",
        read_only=True,
        tmpfs={"/tmp": "size=64m"},  # noqa: S108 - the container's own
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        mem_limit=_MEMORY,
        labels={f"{_LABEL}.trial": str(int(time.time()))},
    )
    try:
        began = time.perf_counter()
        _run_health_check(container, directory, "--wait", str(_START_TIMEOUT_S))
        seconds = round(time.perf_counter() - began, 1)
        given = json.loads(_run_health_check(container, directory, "--rows", "/release/probe.json"))
    finally:
        container.remove(force=True, v=True)
    asked = json.loads((directory / "probe.json").read_bytes())["rows"]
    ours = open_release(directory, digest=digest).predict_rows(asked)
    for what, theirs, own in (
        ("predictions", given.get("predictions"), ours.predictions),
        ("probabilities", given.get("probabilities"), ours.probabilities),
    ):
        if json.dumps(theirs) != json.dumps(own):  # as text: to Python 1 is equal to True
            raise ReleaseError(
                f"a container of the image gives other {what} for the {len(asked)} probe rows than the release does",
                where=str(directory),
                remedy="build on the processor architecture that it was trained on, with the same versions",
            )
    return len(asked), seconds


def _run_health_check(container: "Container", directory: Path, *words: str) -> str:
    code, output = container.exec_run(["python", "-m", "towline.serving.process.health", *words], demux=True)
    if code == 0:
        return str((output[0] or b"").decode())
    container.reload()
    said = container.logs(tail=15).decode("utf-8", "replace").splitlines()
    raise ReleaseError(
        f"a container of the image {'did not get ready' if '--wait' in words else 'did not answer the probe rows'}",
        where=str(directory),
        remedy=f"its last lines are above; it was {container.status}",
        details=tuple(said),
    )


def _remove_stale_containers(client: "DockerClient") -> None:
    """Removes containers of runs that were killed while they tried an image."""
    from docker.errors import DockerException

    for left in client.containers.list(all=True, filters={"label": f"{_LABEL}.trial"}):
        if time.time() - int(left.labels[f"{_LABEL}.trial"]) > _STALE_S:
            with suppress(DockerException):
                left.remove(force=True, v=True)
