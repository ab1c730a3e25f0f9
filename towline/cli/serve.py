"""towline serve: serves a model over HTTP."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towline import extras
from towline.cli import emit, json_option
from towline.cli.arguments import NumberRange

if TYPE_CHECKING:
    from towline.serving.process.worker import ServiceInfo


@click.command()
@click.argument("name")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free port.")
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Number of worker processes."
)
@click.option("--insecure", is_flag=True, help="Serve other machines without API keys.")
@click.option("--certificate", type=click.Path(path_type=Path), help="PEM file; serves HTTPS.")
@click.option("--private-key", type=click.Path(path_type=Path), help="PEM file, if not part of the certificate file.")
@click.option("--rate", type=NumberRange(min=0, min_open=True), help="Requests/s for each key, per worker.")
@click.option("--allowed-hosts", metavar="NAMES", help="Allowed Host headers, e.g. api.example.com,*.example.org.")
@click.option(
    "--cors-origins", metavar="ORIGINS", help="Sites whose pages may send requests, e.g. https://app.example.com."
)
@click.option(
    "--max-body",
    default=5_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum size of a request in bytes.",
)
@click.option(
    "--max-rows", default=10_000, show_default=True, type=click.IntRange(1), help="Maximum rows of a request."
)
@click.option("--no-log", is_flag=True, help="Do not log predictions.")
@click.option(
    "--trust",
    "trusted",
    multiple=True,
    metavar="PACKAGE",
    help="A package whose types a release may contain.",
)
@click.option(
    "--grace",
    default=1.0,
    show_default=True,
    type=NumberRange(0, 60),
    help="Seconds to accept requests after SIGTERM.",
)
@click.option(
    "--drain",
    default=25.0,
    show_default=True,
    type=NumberRange(1, 600),
    help="Maximum seconds from SIGTERM to the end of the process.",
)
@click.option(
    "--metrics",
    type=click.Choice(["emf"]),
    help="Also write the metrics to stdout, in CloudWatch's embedded metric format.",
)
@click.option(
    "--metrics-interval",
    default=60.0,
    show_default=True,
    type=NumberRange(1, 3600),
    help="Seconds between two writings of --metrics.",
)
@click.option("--wait", is_flag=True, help="Wait for the model's first version instead of ending.")
@json_option
def serve(no_log: bool, as_json: bool, allowed_hosts: str | None, cors_origins: str | None, **options: Any) -> None:
    """Serves a model over HTTP.

    NAME is a model, a version (NAME@3), or the path of a release. For a model, its champion is served; a newly promoted
    champion replaces it without a restart. SIGTERM and Ctrl-C shut the service down gracefully.

    \b
    Examples:
      towline serve bike-demand
      towline serve bike-demand@3 --port 8081
      towline serve bike-demand --metrics emf
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

        options |= {"allowed_hosts": _split(allowed_hosts), "cors_origins": _split(cors_origins)}
        run_service(ServeOptions(settings=settings, log=not no_log, **options), started)


def _split(names: str | None) -> tuple[str, ...]:
    """The items of a list separated by commas."""
    return tuple(part.strip() for part in (names or "").split(",") if part.strip())
