"""Config section of behaviour tests: tests of the prediction function, written as data; docs/gate.md."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, ValidationInfo, model_validator

from towline.config.record import Frozen
from towline.config.training import MetricOrCustom, check_metric_name

RobustnessCase = Literal["nulls", "unseen", "out_of_range", "noise"]


def _with_text_keys(value: object) -> object:
    """A mapping whose keys are texts: YAML reads some names of classes as numbers or booleans."""
    if not isinstance(value, Mapping):
        return value
    words = {True: "true", False: "false"}
    return {words[key] if isinstance(key, bool) else str(key): entry for key, entry in value.items()}


Probabilities = Annotated[
    dict[str, Annotated[FiniteFloat, Field(ge=0, le=1)]],
    BeforeValidator(_with_text_keys, json_schema_input_type=dict[str, float]),
]


def _check_fairness_metric(name: str, info: ValidationInfo) -> str:
    return name if name == "selection_rate" else check_metric_name(name, info)


FairnessMetric = Annotated[str, AfterValidator(_check_fairness_metric)]
Violations = Annotated[FiniteFloat, Field(ge=0, lt=1, description="share of the rows that may break the test")]


class ExpectedPrediction(Frozen):
    """A row, and the prediction that is expected for it."""

    name: str = Field("", max_length=100, description="name in reports; default: its number")
    row: dict[str, Any] = Field(
        min_length=1, description="values of columns; a column that is left out has its typical value"
    )
    equals: str | bool | FiniteFloat | None = Field(None, description="the class, or the number within tolerance")
    tolerance: FiniteFloat = Field(0.0, ge=0, description="accepted distance from equals")
    between: tuple[FiniteFloat, FiniteFloat] | None = Field(None, description="minimum and maximum accepted number")
    probability: Probabilities = Field(default_factory=dict, description="class → its minimum accepted probability")

    @model_validator(mode="after")
    def _check_expectation(self) -> "ExpectedPrediction":
        named = [self.equals is not None, self.between is not None, bool(self.probability)]
        if sum(named) != 1:
            raise ValueError("give one of equals, between and probability")
        if self.between and self.between[0] > self.between[1]:
            raise ValueError(f"between starts at {self.between[0]:g}, which is above its end {self.between[1]:g}")
        if self.tolerance and (isinstance(self.equals, str | bool) or self.equals is None):
            raise ValueError("tolerance is for equals with a number; remove tolerance")
        return self


class InvarianceTest(Frozen):
    """A column whose value must not matter."""

    column: str
    delta: FiniteFloat | None = Field(None, gt=0, description="added to a number, and subtracted; null: other values")
    max_change: FiniteFloat = Field(0.0, ge=0, description="largest accepted change of the number or probability")
    violations: Violations = 0.0


class DirectionalTest(Frozen):
    """A column of which more must not lower the prediction, or must not raise it."""

    column: str
    delta: FiniteFloat = Field(gt=0, description="added to the column")
    must_not: Literal["fall", "rise"] = Field(
        "fall", description="forbidden change of the number, or of the class's probability"
    )
    of: str | bool | int | None = Field(None, description="the class; default: the positive one")
    tolerance: FiniteFloat = Field(0.0, ge=0, description="a change in the wrong direction that is accepted")
    violations: Violations = 0.0


class KnownCases(Frozen):
    """A frozen file of rows with their targets, and the minimum quality on them."""

    file: str = Field(min_length=1, description="a CSV, Parquet or JSON file with the features and the target")
    min: dict[MetricOrCustom, FiniteFloat] = Field(default_factory=dict, description="metric → its minimum value")
    max: dict[MetricOrCustom, FiniteFloat] = Field(default_factory=dict, description="metric → its maximum value")

    @model_validator(mode="after")
    def _check_bounds(self) -> "KnownCases":
        if not (self.min or self.max):
            raise ValueError("give a bound in min or max, e.g. min: {accuracy: 0.9}")
        return self


class RobustnessTest(Frozen):
    """Rows with nulls, unseen categories, numbers out of range and small perturbations: predictions stay finite."""

    cases: tuple[RobustnessCase, ...] = Field(("nulls", "unseen", "out_of_range", "noise"), min_length=1)
    noise: FiniteFloat = Field(0.01, gt=0, le=1, description="size of the perturbation, in standard deviations")
    max_change: dict[RobustnessCase, Annotated[FiniteFloat, Field(ge=0)]] = Field(
        default_factory=dict, description="case → largest change of a number or probability; default: any finite one"
    )

    @model_validator(mode="after")
    def _check_cases(self) -> "RobustnessTest":
        if unused := [case for case in self.max_change if case not in self.cases]:
            raise ValueError(f"max_change names {unused[0]}, which is not in cases; add it to cases")
        return self


class CalibrationTest(Frozen):
    """A bound on the expected calibration error of the probabilities on the holdout."""

    max_error: FiniteFloat = Field(gt=0, le=1)


class FairnessTest(Frozen):
    """A bound on how much a metric differs between the groups of rows that a column declares."""

    column: str
    metric: FairnessMetric = Field(
        description="a metric of the task; selection_rate: the share of rows that are predicted positive"
    )
    max_difference: FiniteFloat | None = Field(None, gt=0, description="largest accepted difference between two groups")
    min_ratio: FiniteFloat | None = Field(None, gt=0, le=1, description="smallest ratio of two groups, e.g. 0.8")

    @model_validator(mode="after")
    def _check_bounds(self) -> "FairnessTest":
        if self.max_difference is None and self.min_ratio is None:
            raise ValueError("give max_difference, min_ratio or both")
        return self


class BehaviourConfig(Frozen):
    """Tests of the prediction function; each is a check of the gate."""

    expect: tuple[ExpectedPrediction, ...] = Field((), description="expected predictions for single rows")
    invariance: tuple[InvarianceTest, ...] = Field((), description="columns that must not matter")
    directional: tuple[DirectionalTest, ...] = Field((), description="columns that must act in one direction")
    known_cases: tuple[KnownCases, ...] = Field((), description="minimum quality on files of known cases")
    robustness: RobustnessTest | None = Field(None, description="unusual values must give finite predictions")
    calibration: CalibrationTest | None = Field(None, description="maximum calibration error on the holdout")
    fairness: tuple[FairnessTest, ...] = Field((), description="differences between groups on the holdout")
    rows: int = Field(500, ge=10, le=10_000, description="holdout rows that are changed in a test")

    @property
    def is_empty(self) -> bool:
        """Whether no test is declared."""
        return not any(getattr(self, name) for name in type(self).model_fields if name != "rows")

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Each config key that names a column, and the column."""
        tests = {
            "invariance": [test.column for test in self.invariance],
            "directional": [test.column for test in self.directional],
            "fairness": [test.column for test in self.fairness],
        }
        return tuple(
            (f"behaviour.{kind}.{number}.column", column)
            for kind, columns in tests.items()
            for number, column in enumerate(columns)
        )
