"""Config section of rollouts: how a version that has passed the gate replaces the champion."""

import datetime as dt
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator, model_validator

from towline.config.record import Duration, Frozen

Strategy = Literal["canary", "shadow", "blue-green", "ab"]
_ONE_WEIGHT: Mapping[Strategy, float] = {"shadow": 0.0, "blue-green": 100.0}


class RolloutConfig(Frozen):
    """How a version that has passed the gate replaces the champion. It serves only a part of the requests at first."""

    strategy: Strategy = Field(
        "canary",
        description="canary: rising weights; shadow: it answers, but no client sees it; blue-green: all requests at "
        "once, the champion stays loaded; ab: a fixed split",
    )
    key: str | None = Field(
        None, description="column whose value decides which version answers a row; default: the request id"
    )
    steps: tuple[float, ...] = Field(
        (0.0, 1.0, 5.0, 25.0, 50.0, 100.0),
        min_length=1,
        description="canary: the challenger's weights in percent, rising to 100; 0: shadow only",
    )
    split: float = Field(50.0, gt=0, lt=100, description="ab: the challenger's weight in percent")
    bake: Duration = Field(dt.timedelta(hours=1), description="minimum time of a step")
    min_rows: int = Field(200, ge=1, description="minimum rows that the challenger answers in a step")
    promote_if: Literal["better", "not_worse", "healthy"] = Field(
        "better",
        description="better, not_worse: the loss on labelled rows, compared with the champion's; healthy: no labels "
        "are needed, only answers without errors",
    )
    margin: float = Field(0.02, ge=0, lt=1, description="not_worse: acceptable relative loss")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="probability of a wrong decision by the comparison of losses")
    max_error_rate: float = Field(
        0.01, gt=0, lt=1, description="acceptable share of the challenger's answers that fail or are not finite"
    )
    max_disagreement: float | None = Field(
        None, gt=0, le=1, description="acceptable share of rows with another answer than the champion's; null: any"
    )
    until: Duration = Field(dt.timedelta(days=14), description="maximum time of a rollout")
    inconclusive: Literal["keep", "promote"] = Field(
        "keep", description="after the maximum time: keep the champion, or promote the challenger"
    )
    newer: Literal["wait", "replace"] = Field(
        "wait", description="a version that passes during a rollout: it waits for its end, or replaces the challenger"
    )
    fields: Literal["same", "both"] = Field(
        "same",
        description="if the challenger needs other fields than the champion: same: it is refused; both: requests must "
        "have the fields of both, else they are refused",
    )
    every: Duration = Field(dt.timedelta(minutes=5), description="time between two evaluations")

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if steps[0] < 0 or steps[-1] != 100 or not all(low < high for low, high in pairwise(steps)):
            raise ValueError("the weights must rise to 100 percent; write e.g. steps: [0, 1, 5, 25, 50, 100]")
        return steps

    @field_validator("bake", "every")
    @classmethod
    def _check_interval(cls, length: dt.timedelta) -> dt.timedelta:
        if length < dt.timedelta(seconds=1):
            raise ValueError("must be a positive duration, such as 1h")
        return length

    @model_validator(mode="after")
    def _check_until(self) -> "RolloutConfig":
        if self.until < len(self.weights) * self.bake:
            raise ValueError(
                f"{len(self.weights)} steps of {self.bake} take longer than until ({self.until}); "
                "lengthen rollout.until or shorten rollout.bake"
            )
        return self

    @property
    def weights(self) -> tuple[float, ...]:
        """The challenger's weight in each step, in percent."""
        if self.strategy == "canary":
            return self.steps
        return (_ONE_WEIGHT.get(self.strategy, self.split),)
