"""The last check of the gate, if ``package.image`` is set: a container predicts the same as the release."""

from pathlib import Path

from towline.errors import ReleaseError
from towline.promotion.gate import GateCheck
from towline.registry.ledger import Entry, Ledger
from towline.release.image import ReleaseImage, build_release_image
from towline.release.packaging import Release


def build_image(store: Path, release: Release, repository: str) -> tuple[GateCheck, ReleaseImage | None]:
    """Builds and smoke-tests the image of a release.

    Args:
        store: holds the release.
        release: to build the image of.
        repository: first part of the image's tag; empty: the model's name.

    Returns:
        The check for the verdict, and the image if it could be built.

    Raises:
        TransientError: no Docker engine answers; run the same command again.
    """
    try:
        image = build_release_image(store / release.path, repository, release.digest)
    except ReleaseError as error:
        return GateCheck(name="image", outcome="fail", detail="; ".join((error.what, *error.details[-3:]))), None
    return GateCheck(name="image", outcome="pass", detail=image.text()), image


def record_image(ledger: Ledger, model: str, version: int, image: ReleaseImage, *, actor: str, release: str) -> Entry:
    """Records the image of a version's release in the ledger.

    Args:
        ledger: to write to.
        model: the model's name.
        version: its version.
        image: the built image.
        actor: who built it.
        release: folder of the release, relative to the store.
    """
    evidence = {"image": image.tag, "image_id": image.id, "image_digest": image.digest, "bytes": image.bytes}
    return ledger.packaged(model, version, actor, f"image {image.tag}", evidence, release)
