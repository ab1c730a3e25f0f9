"""The standard variables of OpenTelemetry that switch the export on, checked before the service starts."""

import os
from collections.abc import Mapping

from towline import extras
from towline.errors import ConfigError

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_DEFAULT_INTERVAL_MS = "60000"  # of the specification


def sends(signal: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a signal, ``traces`` or ``metrics``, is sent: it has an address, and is not switched off."""
    name = signal.upper()
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get(f"OTEL_{name}_EXPORTER") == "none":
        return False
    return bool(environ.get(f"OTEL_EXPORTER_OTLP_{name}_ENDPOINT") or environ.get(_ENDPOINT))


def metrics_interval(environ: Mapping[str, str] = os.environ) -> float:
    """Seconds between two exports of the metrics."""
    return float(environ.get(_INTERVAL) or _DEFAULT_INTERVAL_MS) / 1000


def check_environment(environ: Mapping[str, str] = os.environ) -> None:
    """Checks the variables of the signals that are sent, and that the extra is installed.

    Raises:
        ConfigError: the extra is missing, an address is not an http URL, the protocol is not http/protobuf, or the
            interval is not a positive number.
    """
    signals = [signal for signal in ("traces", "metrics") if sends(signal, environ)]
    if not signals:
        return
    extras.require(_ENDPOINT, "otel")
    for name in (_ENDPOINT, *(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT" for signal in signals)):
        address = environ.get(name)
        if address and not address.startswith(("http://", "https://")):
            remedy = f"write the scheme and the port, e.g. {name}=http://localhost:4318"
            raise ConfigError(f"not an http address: {address!r}", where=name, remedy=remedy)
    for name in (_PROTOCOL, *(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL" for signal in signals)):
        if environ.get(name, "http/protobuf") != "http/protobuf":
            remedy = f"set {name}=http/protobuf, and the address of the collector's HTTP port, by default 4318"
            raise ConfigError(f"OTLP is sent as http/protobuf only, not {environ[name]!r}", where=name, remedy=remedy)
    try:
        valid = metrics_interval(environ) > 0
    except ValueError:
        valid = False
    if not valid:
        value, remedy = environ[_INTERVAL], f"set a number of milliseconds, e.g. {_INTERVAL}={_DEFAULT_INTERVAL_MS}"
        raise ConfigError(f"not a positive number: {value!r}", where=_INTERVAL, remedy=remedy)
