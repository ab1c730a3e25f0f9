"""A number with its uncertainty."""

from towline.config import Frozen


class Interval(Frozen):
    """A point estimate with a 95 % interval; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def text(self) -> str:
        """For people: ``21.3 [20.6, 22.1]``."""
        if self.value is None:
            return "undefined"
        return f"{self.value:.4g}" + (
            "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        )
