"""Extras are the optional packages of some commands; a missing one is reported with the command that installs it."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec

from towline.errors import ConfigError

#: extra of towline → the modules it brings that towline imports
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "serve": ("httptools", "jinja2", "orjson", "prometheus_client", "starlette", "uvicorn", "uvloop"),
    "pipeline": (
        "cronsim", "docker", "evidently", "fastapi", "great_expectations", "jinja2", "matplotlib", "mlflow", "optuna",
        "prefect", "psycopg", "rich",
    ),
    "loadtest": ("locust",),
    "otel": ("opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk"),
    "remote": ("aiohttp", "fsspec", "s3fs"),
    "dask": ("distributed",),
    "ray": ("ray",),
    "kubeflow": ("kfp",),
    "mlserver": ("mlserver", "orjson", "uvloop"),
}  # fmt: skip
COMMON = ("serve", "pipeline", "loadtest", "otel", "remote")  # those of `towline[all]`

#: libraries of boosted trees: candidates, extras and modules with the same names
BOOSTING_LIBRARIES = ("catboost", "lightgbm", "xgboost")


def require(command: str, *extras: str) -> None:
    """Checks that the packages of these extras are installed, before a command starts.

    Raises:
        ConfigError: packages are missing; names them and the command that installs them.
    """
    missing = [module for extra in extras for module in EXTRAS[extra] if not is_installed(module)]
    if missing:
        raise _not_installed(missing, command, extras)


def is_installed(module: str) -> bool:
    """Whether a module, or a part of a namespace package, can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def not_installed(error: ModuleNotFoundError, command: str) -> ConfigError | None:
    """The error for a missing package of an extra; None for any other module."""
    module = (error.name or "").partition(".")[0]
    extras = [extra for extra, modules in EXTRAS.items() if module in modules][:1]
    return _not_installed([module], command, extras) if extras else None


def _not_installed(modules: Iterable[str], command: str, extras: Iterable[str]) -> ConfigError:
    return ConfigError(
        f"not installed: {', '.join(dict.fromkeys(modules))}",
        where=command,
        remedy=f"pip install 'towline[{','.join(sorted(extras))}]'",
    )
