"""The evidence that a training pays."""

import numpy as np
import pytest

from towline.monitoring.gain_evidence import judge_gain
from towline.monitoring.results import GainResult


def window(champion: np.ndarray, refit: np.ndarray, **changes: object) -> GainResult:
    blocks = tuple(zip(champion.tolist(), refit.tolist(), strict=True))
    facts = {"state": "measured", "version": 1, "loss": "absolute error", "blocks": blocks, "reason": "", **changes}
    return GainResult.model_validate(facts)


def draw(rng: np.random.Generator, gain: float, blocks: int = 20) -> GainResult:
    """A window whose refit has a lower loss by a share, with noise of a tenth of the loss."""
    champion = 10 + rng.normal(size=blocks)
    return window(champion, champion * (1 - gain) + rng.normal(size=blocks))


def test_a_clear_gain_pays_and_is_measured() -> None:
    """The reason names the gain, the windows and the evidence."""
    rng = np.random.default_rng(0)
    verdict = judge_gain([draw(rng, 0.2) for _ in range(2)], 0.05)
    assert verdict is not None
    assert verdict.pays
    assert verdict.gain == pytest.approx(0.2, abs=0.04)
    assert "lower the absolute error" in verdict.reason


def test_a_gain_below_the_required_one_does_not_pay() -> None:
    """However strong the evidence is."""
    rng = np.random.default_rng(0)
    verdict = judge_gain([draw(rng, 0.03) for _ in range(30)], 0.05)
    assert verdict is not None
    assert (verdict.pays, verdict.e_value > 20) == (False, True)


@pytest.mark.slow
def test_an_analysis_after_every_window_raises_few_false_alarms() -> None:
    """Without a gain, at most one of twenty champions is ever trained again, after any number of windows."""
    alarms = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        windows = [draw(rng, 0.0, blocks=7) for _ in range(24)]
        verdicts = [judge_gain(windows[: count + 1], 0.0) for count in range(24)]
        alarms += any(verdict is not None and verdict.pays for verdict in verdicts)
    assert alarms <= 3


def test_a_late_change_is_detected_after_many_windows_without_a_change() -> None:
    """The mean over all windows is below the required gain."""
    rng = np.random.default_rng(1)
    windows = [draw(rng, 0.0) for _ in range(20)] + [draw(rng, 0.3) for _ in range(2)]
    verdict = judge_gain(windows, 0.05)
    assert verdict is not None
    assert verdict.pays
    assert verdict.gain > 0.2


def test_a_worse_refit_does_not_pay() -> None:
    """A training on an outlier window would raise the loss."""
    verdict = judge_gain([draw(np.random.default_rng(2), -0.5)], 0.05)
    assert verdict is not None
    assert not verdict.pays


def test_windows_that_were_not_measured_are_no_evidence() -> None:
    """The same holds for few blocks, however different they are."""
    unknown = window(np.array([]), np.array([]), state="unknown")
    assert judge_gain([unknown], 0.05) is None
    few = judge_gain([unknown, window(np.full(3, 10.0), np.full(3, 1.0))], 0.05)
    assert few is not None
    assert not few.pays


def test_a_refit_on_the_champions_own_rows_is_no_evidence() -> None:
    """Such windows change nothing, so the first window after a training does not delay the next one."""
    rng = np.random.default_rng(3)
    losses, gains = 10 + rng.normal(size=20), [draw(rng, 0.1) for _ in range(3)]
    equal = window(losses, losses * (1 + 1e-12))
    verdict, later = judge_gain(gains, 0.05), judge_gain([equal, *gains], 0.05)
    assert verdict is not None
    assert later == verdict
    alone = judge_gain([equal], 0.05)
    assert alone is not None
    assert not alone.pays


def test_the_e_value_is_a_mean_of_likelihood_ratios() -> None:
    """Over positive effects with a half-normal prior and all scales, against no effect; computed here on a grid."""
    rng = np.random.default_rng(4)
    differences = rng.normal(0.5, 1.0, 8)
    effects, scales = np.linspace(0, 6, 400)[:, None, None], np.geomspace(0.01, 20, 400)[None, :, None]
    likelihoods = np.exp(-((differences * scales - effects) ** 2).sum(axis=2) / 2) * scales[:, :, 0] ** 7
    likelihoods = np.trapezoid(likelihoods, scales[0, :, 0], axis=1)
    prior = 2 * np.exp(-(effects[:, 0, 0] ** 2)) / np.sqrt(np.pi)
    expected = np.trapezoid(likelihoods * prior, effects[:, 0, 0]) / likelihoods[0]
    verdict = judge_gain([window(10 + differences, np.full(8, 10.0))], 0.05)
    assert verdict is not None
    assert verdict.e_value == pytest.approx(
        expected / 2, rel=1e-3
    )  # half of the weight is for changes in later windows
