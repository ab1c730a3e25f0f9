"""towline serve: a release behind HTTP."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towline import extras
from towline.cli import emit, json_option

if TYPE_CHECKING:
    from towline.serving.process.worker import ServiceInfo


@click.command()
@click.argument("name")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes that answer.")
@click.option("--insecure", is_flag=True, help="Serve other machines without any key.")
@click.option("--certificate", type=click.Path(path_type=Path), help="PEM file: speak TLS.")
@click.option("--private-key", type=click.Path(path_type=Path), help="PEM file, if not in the certificate's.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests a second for each key, a worker.")
@click.option("--allowed-hosts", metavar="NAMES", help="Host headers to answer to, e.g. api.example.com,*.example.org.")
@click.option("--cors-origins", metavar="ORIGINS", help="Sites whose pages may ask, e.g. https://app.example.com.")
@click.option("--max-body", default=5_000_000, show_default=True, type=click.IntRange(1), help="Bytes of a request.")
@click.option("--max-rows", default=10_000, show_default=True, type=click.IntRange(1), help="Rows of a request.")
@click.option("--no-log", is_flag=True, help="Keep no log of predictions.")
@click.option(
    "--trust",
    "trusted",
    multiple=True,
    metavar="PACKAGE",
    help="A package whose types to read.",
)
@click.option(
    "--grace",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 60),
    help="Seconds to go on accepting when told to end.",
)
@click.option(
    "--drain",
    default=25.0,
    show_default=True,
    type=click.FloatRange(1, 600),
    help="Seconds until it has ended, at most.",
)
@click.option("--wait", is_flag=True, help="Wait for the model's first version instead of ending.")
@json_option
def serve(no_log: bool, as_json: bool, allowed_hosts: str | None, cors_origins: str | None, **given: Any) -> None:
    """Answers requests over HTTP.

    NAME is a model, whose champion is served and followed as it changes; a version of one, NAME@3; or a folder that
    holds a release. Ends in order on SIGTERM and Ctrl-C.

    \b
    Examples:
      towline serve bike-demand
      towline serve bike-demand@3 --port 8081
      towline serve bike-demand --host 0.0.0.0 --certificate chain.pem --private-key key.pem
    """
    from towline.config import Settings

    extras.require("towline serve", "serve")
    from towline.operations.services import record_service
    from towline.serving.options import ServeOptions
    from towline.serving.process.server import run_service

    settings = Settings.from_environment()
    with record_service(settings) as record:

        def started(service: "ServiceInfo") -> None:
            record(service)
            emit(asdict(service), as_json, service.text)
            sys.stdout.flush()

        given |= {"allowed_hosts": _listed(allowed_hosts), "cors_origins": _listed(cors_origins)}
        run_service(ServeOptions(settings=settings, log=not no_log, **given), started)


def _listed(given: str | None) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for part in (given or "").split(",") if part.strip())
