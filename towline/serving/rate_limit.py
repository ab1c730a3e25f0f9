"""Rate limiting: a maximum of requests per second from one caller (a token bucket)."""

import time
from collections import OrderedDict
from collections.abc import Callable

from towline.serving.problems import Problem

MAX_CALLERS = 10_000  # callers with a bucket; the longest idle one is dropped first


class RateLimiter:
    """A token bucket for each caller, with a burst of one second.

    Args:
        rate: requests per second; None disables the limit.
        clock: monotonic seconds.
        what: the counted events, as named in the error.
        delay: seconds by which a refusal is delayed.
    """

    def __init__(
        self,
        rate: float | None,
        clock: Callable[[], float] = time.monotonic,
        what: str = "requests",
        delay: float = 0.0,
    ) -> None:
        self.rate = rate
        self._what, self._delay = what, delay
        self._burst = max(1.0, rate or 0.0)
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()  # by caller: when its bucket is full again

    def take(self, caller: str) -> None:
        """Counts one request of a caller.

        Raises:
            Problem: the caller is over the limit.
        """
        if self.rate is None:
            return
        now = self._clock()
        full_at = max(self._full_at.get(caller, now), now) + 1.0 / self.rate
        wait = full_at - now - self._burst / self.rate
        if wait > 1e-9:
            raise Problem(
                "too-many-requests",
                f"more than {self.rate:g} {self._what} a second",
                headers=((b"retry-after", b"%d" % max(1, -int(-wait // 1))),),
                delay=self._delay,
            )
        self._full_at[caller] = full_at
        self._full_at.move_to_end(caller)
        if len(self._full_at) > MAX_CALLERS:
            self._full_at.popitem(last=False)
