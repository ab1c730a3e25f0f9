"""The parts of a pipeline's config that say how a model in production is watched, and what is done when it slips."""

import datetime as dt
import zoneinfo
from typing import Literal

from pydantic import Field, field_validator, model_validator

from towline.config.record import Duration, Frozen

Sign = Literal["drift", "quality"]

#: sections of a config that a model does not depend on: changing them is no reason to train
WATCH = ("drift", "quality", "retrain", "slo", "alerts", "schedule")


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
    window: Duration = Field(dt.timedelta(days=7), description="predictions that are looked at together")
    min_labels: int = Field(50, ge=10, description="fewer leave the quality unknown")
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


class AlertConfig(Frozen):
    """Who is told. The log always is."""

    webhook: str | None = Field(None, description="gets a JSON POST; ${NAME} is replaced from the environment")
    hosts: tuple[str, ...] = Field((), description="hosts a webhook may go to, and no other")


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
