"""What is an alarm: shifts within so many values, and none in usual ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from envs.errors import InputError
from experiments.online.watch import ALLOWANCE, EFFECT, FEWEST, FRESH, THRESHOLD, Watch


def uniform(rng: np.random.Generator, count: int = 256) -> list[float]:
    return rng.random(count).tolist()


def test_a_shift_is_an_alarm_within_so_many_prompts_and_nothing_else_is() -> None:
    """ADWIN with δ = .05: a mean rank of .75 within 64 values, and in 10,000 usual ones no alarm."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        watch = Watch({"entropy": uniform(rng)}, 0.05)
        assert not [alarm for value in uniform(rng, 1000) for alarm in watch.see({"entropy": value})]
        shifted = [watch.see({"entropy": 0.5 + value / 2}) for value in uniform(rng, 64)]
        alarms = [alarm for found in shifted for alarm in found]
        assert [alarm.signal for alarm in alarms] == ["entropy"] and alarms[0].mean >= 0.5 + EFFECT


def test_what_gets_better_is_no_alarm_and_a_length_has_two_sides() -> None:
    rng = np.random.default_rng(1)
    usual = {"forward_kl": uniform(rng), "reply_length": uniform(rng)}
    watch = Watch(usual, 0.05)
    found = [watch.see({"forward_kl": value / 4, "reply_length": value / 4}) for value in uniform(rng, 100)]
    assert [alarm.signal for alarms in found for alarm in alarms] == ["reply_length"]


def test_a_rebased_watch_takes_the_new_for_usual_and_goes_on_watching() -> None:
    rng = np.random.default_rng(2)
    watch = Watch({"surprise": uniform(rng), "leak": uniform(rng)}, 0.05)
    for value in uniform(rng, 128):
        watch.see({"surprise": 2 + value})
    watch.rebased({"surprise": 128, "leak": 0})
    assert len(watch.usual["surprise"]) == 128 and min(watch.usual["surprise"]) > 2
    assert len(watch.usual["leak"]) == FEWEST
    assert not [alarm for value in uniform(rng, 500) for alarm in watch.see({"surprise": 2 + value})]
    assert [alarm for value in uniform(rng, 64) for alarm in watch.see({"surprise": 2.8 + value})]


def test_a_signal_that_was_forgotten_is_learnt_anew() -> None:
    rng = np.random.default_rng(4)
    watch = Watch({"leak": uniform(rng)}, 0.05)
    watch.forget(["leak"])
    assert not [alarm for value in uniform(rng, 200) for alarm in watch.see({"leak": 5 + value})]
    assert len(watch.usual["leak"]) == FRESH
    again = Watch(**watch.state(), delta=0.05)
    assert [alarm for value in uniform(rng, 64) for alarm in again.see({"leak": 6 + value})]


def test_few_usual_values_give_few_false_alarms() -> None:
    """After `forget` 32 values say what is usual: of 300 streams of 200, less than one in fifty is alarmed."""
    rng, alarmed = np.random.default_rng(5), 0
    for _ in range(300):
        watch = Watch({"reply_length": uniform(rng, FEWEST)}, 0.05)
        watch.forget(["reply_length"])
        alarmed += any(watch.see({"reply_length": value}) for value in uniform(rng, FRESH + 200))
    assert alarmed <= 6


def test_a_watch_keeps_so_many_values_and_goes_on_as_it_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.online.watch.MOST", 50)
    rng = np.random.default_rng(6)
    watch = Watch({"leak": uniform(rng)}, 0.05)
    for value in [0.2 + value for value in uniform(rng, 380)]:
        watch.see({"leak": value})
        assert len(watch.seen["leak"]) < 100
    again, more = Watch(**watch.state(), delta=0.05), uniform(rng, 200)
    assert watch.raised == {"leak"} == again.raised
    for value in more:
        watch.see({"leak": value})
        again.see({"leak": value})
    assert watch._detectors["leak"].estimation == again._detectors["leak"].estimation


def test_a_watch_goes_on_as_it_would_have() -> None:
    rng = np.random.default_rng(3)
    usual, stream = {"leak": uniform(rng)}, [*uniform(rng, 100), *(0.3 + 0.7 * rng.random(200)).tolist()]
    whole = Watch(usual, 0.05)
    alarms = [place for place, value in enumerate(stream) if whole.see({"leak": value})]
    half = Watch(usual, 0.05)
    for value in stream[:110]:
        half.see({"leak": value})
    again = Watch(**half.state(), delta=0.05)
    assert [place for place, value in enumerate(stream[110:], 110) if again.see({"leak": value})] == alarms != []


def test_scarce_signals_need_six_values_above_all_usual_ones() -> None:
    """With m = 100 k is ¼ + 1/√1200 = .27887, and each adds ½ − k = .22113 to S: five make 1.106, six 1.327.

    A usual value of rank .3 adds .3 − ½ − k = −.47887.
    """
    usual = {name: np.linspace(0.005, 0.995, 100).tolist() for name in ("forward_kl", "entropy")}
    watch = Watch(usual, 0.05)
    found = [watch.see({"forward_kl": 2.0, "entropy": 2.0}) for _ in range(7)]
    assert [[(alarm.signal, alarm.by) for alarm in alarms] for alarms in found[5:]] == [[("forward_kl", "cusum")], []]
    assert not any(found[:5])
    watch = Watch(usual, 0.05)
    for value in (2.0, 2.0, 2.0, 2.0, 0.3):
        assert not watch.see({"forward_kl": value})
    assert watch._sums["forward_kl"] == pytest.approx(4 * 0.22113 - 0.47887, abs=1e-4)
    again = Watch(**watch.state(), delta=0.05)
    assert again._sums == pytest.approx(watch._sums)


def test_usual_ranks_seldom_sum_up() -> None:
    """Lundberg's bound: sinh(θ/2) / (θ/2) = exp(θk) at θ = 8.61; on the average exp(θh) values or more an alarm."""
    theta = 8.6145
    assert math.sinh(theta / 2) / (theta / 2) == pytest.approx(math.exp(theta * ALLOWANCE), rel=1e-3)
    count, alarms, total = 1_000_000, 0, 0.0
    for rank in np.random.default_rng(7).random(count).tolist():
        total = max(0.0, total + rank - 0.5 - ALLOWANCE)
        if total > THRESHOLD:
            alarms, total = alarms + 1, 0.0
    assert 0 < alarms <= count / math.exp(theta * THRESHOLD)


def test_few_usual_values_of_a_scarce_signal_give_few_false_alarms() -> None:
    """64 values say what is usual, 32 behind a hold: of 300 streams of 200, less than one in twenty is alarmed."""
    rng = np.random.default_rng(8)
    for fewest in (FEWEST, FRESH):
        alarmed = 0
        for _ in range(300):
            watch = Watch({"leak": uniform(rng, fewest)}, 0.05)
            alarmed += any(watch.see({"leak": value}) for value in uniform(rng, 200))
        assert alarmed <= 15, fewest


def test_a_missing_detector_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "river.drift", None)
    with pytest.raises(InputError, match=r"pip install 'tdistill\[online\]'"):
        Watch({}, 0.05)
