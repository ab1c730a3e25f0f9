"""For any table, the flow finishes or is refused with a named error."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from tests.support.commands import CommandResult
from tests.support.random_tables import Case, cases


def test_the_flow_finishes_or_raises_an_error_with_a_remedy(
    towline: Callable[..., CommandResult], tmp_path: Path
) -> None:
    """Random tables through the whole flow: promoted, not promoted, or an error of the input with place and remedy."""
    ends: Counter[str] = Counter()

    @settings(
        max_examples=18,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(cases())
    def check(case: Case) -> None:
        folder = tmp_path / str(ends.total())
        folder.mkdir()
        result = towline("run", case.write(folder, f"any-{ends.total()}"), "--json")
        assert result.code in (0, 2, 3, 4), result.err
        assert "Traceback" not in result.err
        if result.code in (2, 3):
            assert result.json["code"] in ("T100", "T200", "T300", "T400")
            assert result.json["what"]
            assert result.json["where"]
            assert result.json["remedy"]
        ends[result.json.get("what") or result.json["event"]] += 1
        print(*result.json.get("details", ()), sep="\n")

    check()
    print(ends)
    assert ends["promoted"] + ends["refused"] >= 6, ends
