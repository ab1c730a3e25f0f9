"""The parts of a pipeline's config that say how a model in production is watched, and what is done when it slips."""

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

#: upper bounds in seconds of the latency histogram that services export
LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Sign = Literal["drift", "quality"]

#: sections of a config that a model does not depend on: changing them is no reason to train
WATCH = ("package", "drift", "quality", "retrain", "slo", "alerts", "schedule")


class PackageConfig(Frozen):
    """What is made of a release beside its folder."""

    image: bool = Field(False, description="build its container image too, and promote only what a container answers")
    repository: str = Field(
        "",
        pattern=r"^([a-z0-9][a-z0-9._:/-]{0,200})?$",
        description="what the image's tag begins with, e.g. registry.example.com/team/houses; default: the name",
    )
    trusted: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")], ...] = Field(
        (), description="installed packages whose code candidates may be taken from, beside the known libraries"
    )

    @field_validator("trusted")
    @classmethod
    def _installable(cls, trusted: tuple[str, ...]) -> tuple[str, ...]:
        for package in trusted:
            if package in sys.stdlib_module_names:
                raise ValueError(f"{package} is part of Python itself, which holds no estimators; leave it out")
        return trusted


class DriftConfig(Frozen):
    """When rows of production count as different from those of training."""

    false_alarms_per_year: float = Field(
        4.0, gt=0, le=180, description="nights a year that may alarm although nothing has changed"
    )
    min_rows: int = Field(50, ge=2, description="of a night; fewer say nothing")
    min_effect: float = Field(
        0.1, ge=0, description="distances below it are no drift however sure (sds; Jensen-Shannon distance)"
    )
    ignore: tuple[str, ...] = Field((), description="columns whose change means nothing, such as a counter")


class QualityConfig(Frozen):
    """How predictions are compared with what turned out to be true."""

    delay: Duration = Field(dt.timedelta(days=1), description="after it a label should be there, e.g. 30d")
    window: Duration = Field(
        dt.timedelta(days=1), description="of predictions looked at together; longer while they say nothing"
    )
    min_labels: int = Field(50, ge=10, description="fewer leave the quality unknown")
    min_coverage: float = Field(
        0.5,
        ge=0,
        le=1,
        description="labelled share of what is due; below it labels may be an early part, quality unknown",
    )
    tolerance: float = Field(0.25, ge=0, description="relative loss against the holdout that is still accepted")


class RetrainConfig(Frozen):
    """When a model is trained again by itself, or rolled back."""

    signs: tuple[Sign, ...] = Field(("drift", "quality"), description="what leads to training")
    need: int = Field(2, ge=1, description="bad windows ...")
    of: int = Field(3, ge=1, description="... among the last so many")
    cooldown: Duration = Field(dt.timedelta(days=7), description="after a training, none for so long")
    min_rows: int = Field(200, ge=2, description="new rows since the champion's training; fewer teach nothing new")
    rollback: bool = Field(True, description="roll back where the previous champion does better on the same rows")

    @model_validator(mode="after")
    def _possible(self) -> "RetrainConfig":
        if self.need > self.of:
            raise ValueError(f"{self.need} bad windows of {self.of} never come")
        return self


class SloConfig(Frozen):
    """What the service promises; each is a share of an error budget over ``period``."""

    availability: float | None = Field(0.999, gt=0, lt=1, description="share of requests without a 5xx")
    p95_ms: float | None = Field(None, gt=0, description="95 % of requests answer within it")
    metric: float | None = Field(None, description="bound of evaluation.metric on late labels")
    period: Duration = Field(dt.timedelta(days=30), description="over which the budget is counted")
    on_breach: Literal["alert", "rollback", "retrain"] = "alert"

    @field_validator("period")
    @classmethod
    def _long_enough(cls, period: dt.timedelta) -> dt.timedelta:
        if period < dt.timedelta(days=3):
            raise ValueError("a budget is counted over 3d at least: the longest window that is looked at for burning")
        return period


class AlertConfig(Frozen):
    """Who is told. The log always is."""

    webhook: str | None = Field(None, description="gets a JSON POST; ${NAME} is replaced from the environment")
    hosts: tuple[str, ...] = Field((), description="hosts a webhook may go to, and no other")

    @field_validator("hosts")
    @classmethod
    def _plain(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"[\w.-]+|[0-9A-Fa-f:]+", host):
                raise ValueError(f"not a host: {host!r}; write e.g. hooks.example.com, without https:// and path")
        return tuple(host.lower() for host in hosts)

    @field_validator("webhook")
    @classmethod
    def _without_secret(cls, webhook: str | None) -> str | None:
        begin, path = _halves(webhook or "")
        return begin + hide_path(begin, path) if begin else webhook

    @model_validator(mode="after")
    def _allowed(self) -> "AlertConfig":
        if self.webhook is None:
            return self
        if not self.hosts:
            raise ValueError("a webhook goes only to hosts that are listed; add hosts: [hooks.example.com]")
        begin, _ = _halves(self.webhook)
        if "${" not in begin:  # else it is known only when it is used
            self.check(self.webhook)
        return self

    def check(self, url: str) -> None:
        """Whether a webhook may go there.

        Raises:
            ValueError: it may not; the message holds nothing of the address but what the config itself lists.
        """
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            raise ValueError("the webhook is not an address") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("the webhook is not an https:// address")
        if "@" in parts.netloc:
            raise ValueError("the webhook names a user; put what is secret into its path, as ${NAME}")
        if host not in self.hosts:
            listed = ", ".join(self.hosts)
            raise ValueError(f"the webhook's host is not one of alerts.hosts ({listed}); add it there if it is meant")
        if parts.scheme == "http" and not _loopback(host):
            raise ValueError("the webhook would travel unencrypted; write https://")

    def masked(self) -> "AlertConfig":
        """What may be shown and stored: without what is literal in the webhook's path, which may be a secret."""
        if self.webhook is None:
            return self
        begin, path = _halves(self.webhook)
        return self.model_copy(update={"webhook": begin + mask_path(path)})


class ScheduleConfig(Frozen):
    """When ``towline up`` starts the flows, as cron lines; null: never."""

    train: str | None = Field(None, description="e.g. 0 3 * * 0")
    drift: str | None = "0 2 * * *"
    quality: str | None = "0 4 * * *"
    timezone: str = "UTC"

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"no time zone {name!r}; write e.g. Europe/Berlin") from None
        return name


def _halves(url: str) -> tuple[str, str]:
    """Scheme and host, and all that follows; the first is the whole where it is a ``${NAME}``."""
    found = re.match(r"(\$\{\w+\}|[A-Za-z]+://[^/?#]*)(.*)", url, re.DOTALL)
    return (found[1], found[2]) if found else ("", url)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
