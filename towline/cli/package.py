"""towline package: verifies the release of a version, and builds its container image."""

from typing import TYPE_CHECKING, Any

import click

from towline.cli import emit, json_option

if TYPE_CHECKING:
    from towline.config import Settings
    from towline.registry.ledger import Entry, Ledger
    from towline.release.image import ReleaseImage


@click.command(short_help="Verifies a release; builds its container image.")
@click.argument("version", metavar="NAME[@VERSION]")
@click.option("--image", is_flag=True, help="Build its container image and run a smoke test.")
@click.option(
    "--repository", default="", metavar="NAME", help="Repository of the image's tag; default: the model's name."
)
@json_option
def package(version: str, image: bool, repository: str, as_json: bool) -> None:
    """Verifies the release of a version and shows its path; with --image builds its container image.

    The image gets the tag NAME:v3-<digest of the release> after a smoke test: a container must give the same
    predictions for the probe rows as the release. An existing tag is never moved. The image is recorded with the
    version.

    \b
    Examples:
      towline package bike-demand
      towline package bike-demand@3 --image
      towline package bike-demand@3 --image --repository registry.example.com/team/bike-demand
    """
    from towline.cli import models, screen
    from towline.manifest import verify_release
    from towline.registry.selection import require_release, select_version

    settings, ledger = models.stores()
    entry = require_release(select_version(settings, ledger, version))
    directory = settings.layout.release(entry.release)
    manifest = verify_release(directory)
    size = sum(file.size for file in manifest.files.values())
    document: dict[str, Any] = {
        "model": entry.model,
        "version": entry.version,
        "release": str(directory),
        "release_digest": manifest.digest,
        "release_bytes": size,
    }
    summary = f"{len(manifest.files)} files, {size / 1e6:.1f} MB, all digests match"
    lines = [screen.format_label("release") + f"{directory}: {summary}"]
    if image or repository:
        with screen.progress(settings.layout.log()):
            built = _build_image(settings, ledger, entry, repository)
        document |= {"image": built.tag, "image_id": built.id, "digest": built.digest or None, "size": built.bytes}
        lines += [screen.format_label("image") + built.text(), screen.format_label("id") + built.id]
    emit(document, as_json, lambda: "\n".join(lines))


def _build_image(settings: "Settings", ledger: "Ledger", entry: "Entry", repository: str) -> "ReleaseImage":
    from towline.config import read_config
    from towline.promotion.image_check import record_image
    from towline.registry.ledger import actor
    from towline.registry.mlflow.synchronization import update_mlflow
    from towline.release.image import build_release_image
    from towline.steps import step

    directory = settings.layout.release(entry.release)
    config = read_config(directory / "config.yaml")
    with step("image") as record:
        built = build_release_image(directory, repository or config.package.repository, ledger.digest(entry))
        record.note = f"{built.tag}, {built.bytes / 1e6:.0f} MB"
    record_image(ledger, entry.model, entry.version, built, actor=actor(), release=entry.release)
    if note := update_mlflow(settings, entry.model):
        click.echo(f"note: {note}", err=True)
    return built
