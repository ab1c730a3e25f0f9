"""The rate limiter of the service."""

import pytest

from towline.serving import rate_limit
from towline.serving.problems import Problem
from towline.serving.rate_limit import RateLimiter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def passes(rate: RateLimiter, caller: str, requests: int) -> int:
    count = 0
    for _ in range(requests):
        try:
            rate.take(caller)
        except Problem:
            continue
        count += 1
    return count


@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0, 100.0])
def test_the_rate_is_limited_after_a_burst_of_one_second(rate: float) -> None:
    clock = Clock()
    limiter = RateLimiter(rate, clock)
    assert passes(limiter, "a", 500) == max(1, rate)
    clock.now += 10
    total = passes(limiter, "a", 500)
    for _ in range(100):
        clock.now += 0.1
        total += passes(limiter, "a", 50)
    assert total == pytest.approx(max(1, rate) + 10 * rate, abs=1)


def test_each_caller_has_its_own_limit() -> None:
    clock = Clock()
    limiter = RateLimiter(2.0, clock)
    assert (passes(limiter, "a", 9), passes(limiter, "b", 9)) == (2, 2)


def test_retry_after_is_enough() -> None:
    """The header has whole seconds, after which a request is accepted."""
    clock = Clock()
    limiter = RateLimiter(0.1, clock)
    limiter.take("a")
    with pytest.raises(Problem) as error:
        limiter.take("a")
    ((name, value),) = error.value.headers
    assert (name, value) == (b"retry-after", b"10")
    clock.now += 10
    limiter.take("a")


def test_without_a_rate_nothing_is_limited() -> None:
    assert passes(RateLimiter(None), "a", 10_000) == 10_000


def test_the_number_of_stored_callers_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_CALLERS", 100)
    limiter = RateLimiter(1.0, Clock())
    assert sum(passes(limiter, str(n), 1) for n in range(1_000)) == 1_000
    assert len(limiter._full_at) == 100
