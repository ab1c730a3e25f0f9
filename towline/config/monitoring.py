"""Config sections of monitoring: packaging, drift, quality, retraining, SLOs, alerts and schedules."""

import datetime as dt
import ipaddress
import re
import sys
import zoneinfo
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator, model_validator

from towline.config.passwords import hide_path, mask_path
from towline.config.record import Duration, Frozen

#: upper bounds, in seconds, of the buckets of the service's latency histogram
LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

RetrainTrigger = Literal["gain", "drift", "quality"]
PolicyTrigger = Literal[RetrainTrigger, "slo", "schedule"]
#: why a training was started
RunTrigger = Literal["manual", PolicyTrigger]

#: sections that a trained model does not depend on: a change in them leads to no training
MONITORING_SECTIONS = (
    "package",
    "approval",
    "rollout",
    "drift",
    "quality",
    "retrain",
    "slo",
    "alerts",
    "schedule",
    "scoring",
)


class PackageConfig(Frozen):
    """Container image and trusted packages of a release."""

    image: bool = Field(
        False, description="also build a container image, and promote only if a container of it answers"
    )
    repository: str = Field(
        "",
        pattern=r"^([a-z0-9][a-z0-9._:/-]{0,200})?$",
        description="repository of the image, e.g. registry.example.com/team/houses; default: the model's name",
    )
    trusted: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")], ...] = Field(
        (), description="installed packages that estimators may come from, besides the known libraries"
    )

    @field_validator("trusted")
    @classmethod
    def _check_trusted(cls, trusted: tuple[str, ...]) -> tuple[str, ...]:
        for package in trusted:
            if package in sys.stdlib_module_names:
                raise ValueError(
                    f"{package} is part of Python's standard library, which has no estimators; leave it out"
                )
        return trusted


class DriftConfig(Frozen):
    """When current rows count as different from the training rows."""

    false_alarms_per_year: float = Field(
        4.0, gt=0, le=180, description="the yearly false-alarm budget: windows without drift that may raise an alarm"
    )
    min_rows: int = Field(50, ge=2, description="minimum rows of a window; with fewer, drift is unknown")
    min_effect: float = Field(
        0.1,
        ge=0,
        description="distances below it are not drift (standard deviations; Jensen-Shannon distance)",
    )
    ignore: tuple[str, ...] = Field((), description="columns that may change, such as a counter")


class QualityConfig(Frozen):
    """How predictions are compared with ground-truth labels."""

    delay: Duration = Field(dt.timedelta(days=1), description="time until labels are expected, e.g. 30d")
    window: Duration = Field(
        dt.timedelta(days=1), description="length of a window; it is extended while its quality is unknown"
    )
    min_labels: int = Field(50, ge=10, description="minimum labels of a window; with fewer, quality is unknown")
    min_coverage: float = Field(
        0.5,
        ge=0,
        le=1,
        description="minimum labelled share of the predictions that are due; below it, quality is unknown",
    )
    tolerance: float = Field(0.25, ge=0, description="acceptable relative loss against the holdout")

    @field_validator("window")
    @classmethod
    def _check_window(cls, window: dt.timedelta) -> dt.timedelta:
        if not dt.timedelta(minutes=1) <= window <= dt.timedelta(days=3650):
            raise ValueError("the window must be at least a minute and at most 3650d")
        return window


class RetrainConfig(Frozen):
    """When monitoring starts a training or a rollback."""

    triggers: tuple[RetrainTrigger, ...] = Field(
        ("gain", "drift", "quality"),
        description="what may start a training; while gain can be measured, the others only warn",
    )
    min_gain: float = Field(0.05, ge=0, lt=1, description="share of the loss that a training has to avoid")
    bad_windows: int = Field(2, ge=1, description="bad windows that a training needs")
    recent_windows: int = Field(3, ge=1, description="recent windows among which bad windows are counted")
    cooldown: Duration = Field(dt.timedelta(days=7), description="minimum time between two trainings")
    min_rows: int = Field(200, ge=2, description="minimum new rows since the champion's training")
    rollback: bool = Field(True, description="roll back if the previous champion is better on the same rows")

    @model_validator(mode="after")
    def _check_windows(self) -> "RetrainConfig":
        if self.bad_windows > self.recent_windows:
            raise ValueError(
                f"bad_windows is {self.bad_windows}, but only {self.recent_windows} recent_windows are counted"
            )
        return self


class ScoringConfig(Frozen):
    """Batch scoring by the scoring flow."""

    log: bool = Field(False, description="write the predictions to the prediction log, so that monitoring sees them")
    bad_rows: Literal["quarantine", "stop"] = Field(
        "quarantine", description="write bad rows to a quarantine file, or stop at the first one"
    )
    workers: int = Field(1, ge=1, description="number of processes, or of runs on a work pool")
    engine: Literal["processes", "dask", "ray", "prefect"] = Field(
        "processes", description="engine that scores; prefect: the workers of the work pool"
    )
    scheduler: str | None = Field(None, description="address of a Dask or Ray cluster")


class SloConfig(Frozen):
    """Service level objectives; each has an error budget over ``period``."""

    availability: float | None = Field(0.999, gt=0, lt=1, description="share of requests without a 5xx response")
    p95_ms: float | None = Field(None, gt=0, description="latency that 95 % of requests stay below, in ms")
    metric: float | None = Field(None, description="bound of evaluation.metric on ground-truth labels")
    period: Duration = Field(dt.timedelta(days=30), description="period of the error budget")
    on_breach: Literal["alert", "rollback", "retrain"] = "alert"

    @field_validator("period")
    @classmethod
    def _check_period(cls, period: dt.timedelta) -> dt.timedelta:
        if period < dt.timedelta(days=3):
            raise ValueError("the period must be at least 3d, the longest window of a burn rate")
        return period


class AlertConfig(Frozen):
    """The receivers of notifications, in addition to the log."""

    webhook: str | None = Field(
        None, description="receives each alert as a JSON POST; ${NAME} is replaced from the environment"
    )
    hosts: tuple[str, ...] = Field((), description="the only hosts that the webhook may be sent to")

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"[\w.-]+|[0-9A-Fa-f:]+", host):
                raise ValueError(f"not a host: {host!r}; write e.g. hooks.example.com, without https:// and path")
        return tuple(host.lower() for host in hosts)

    @field_validator("webhook")
    @classmethod
    def _hide_secret(cls, webhook: str | None) -> str | None:
        origin, path = _split_address(webhook or "")
        return origin + hide_path(origin, path) if origin else webhook

    @model_validator(mode="after")
    def _check_webhook(self) -> "AlertConfig":
        if self.webhook is None:
            return self
        if not self.hosts:
            raise ValueError("a webhook is only sent to listed hosts; add hosts: [hooks.example.com]")
        origin, _ = _split_address(self.webhook)
        if "${" not in origin:  # else the address is known only when it is used
            self.check(self.webhook)
        return self

    def check(self, url: str) -> None:
        """Checks the address of a webhook.

        Raises:
            ValueError: it is not allowed. The message does not contain the address, which may be secret.
        """
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            raise ValueError("the webhook is not an address") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("the webhook is not an https:// address")
        if "@" in parts.netloc:
            raise ValueError("the webhook contains a user; put the secret into its path, as ${NAME}")
        if host not in self.hosts:
            listed = ", ".join(self.hosts)
            raise ValueError(f"the webhook's host is not one of alerts.hosts ({listed}); add it if it is correct")
        if parts.scheme == "http" and not is_loopback(host):
            raise ValueError("the webhook is not encrypted; write https://")

    def masked(self) -> "AlertConfig":
        """A copy to show and store: literal text in the webhook's path, which may be a secret, is masked."""
        if self.webhook is None:
            return self
        origin, path = _split_address(self.webhook)
        return self.model_copy(update={"webhook": origin + mask_path(path)})


class ScheduleConfig(Frozen):
    """Cron schedules of the flows that ``towline up`` starts; null: never."""

    train: str | None = Field(None, description="e.g. 0 3 * * 0")
    drift: str | None = "0 2 * * *"
    quality: str | None = "0 4 * * *"
    rollout: str | None = Field(
        None, description="rollout evaluations on pools of workers; towline up does not need it: see rollout.every"
    )
    timezone: str = "UTC"

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, name: str) -> str:
        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"no time zone {name!r}; write e.g. Europe/Berlin") from None
        return name


def _split_address(url: str) -> tuple[str, str]:
    """Scheme and host (or a ``${NAME}`` that holds both), and the rest."""
    match = re.match(r"(\$\{\w+\}|[A-Za-z]+://[^/?#]*)(.*)", url, re.DOTALL)
    return (match[1], match[2]) if match else ("", url)


def is_loopback(host: str) -> bool:
    """Whether a host is localhost or a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
