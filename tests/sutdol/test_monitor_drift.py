"""The charts: quiet while nothing changes, loud when something does, and back when it is over."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from sutdol.errors import InputError
from sutdol.monitor import drift
from sutdol.monitor.drift import Batch, Reference, State, chi_square_p, cusum_limit, differs, learn, scores, watch
from sutdol.monitor.unlabelled import threshold, unlabelled


def traffic(
    n: int, seed: int, *, shift: dict[str, float] | None = None, classes=(0.5, 0.3, 0.2), strange=0.05
) -> Batch:
    """Images whose signals are skewed and differ in scale, with a shift in standard deviations of the logarithm."""
    rng = np.random.default_rng(seed)
    signals = {name: np.exp(rng.normal((shift or {}).get(name, 0.0), 1.0, n)) for name in drift.SIGNALS}
    names = [f"c{i}" for i in rng.choice(len(classes), n, p=classes)]
    return Batch(signals, names, rng.random(n) < strange)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return learn(traffic(400, 0))


def test_forty_thousand_images_of_the_same_world_raise_no_alarm(reference: Reference) -> None:
    """The budget is one false alarm in ten thousand; the limits are set for less."""
    state = State()
    changes = [c for seed in range(1, 5) for c in watch(reference, state, traffic(10_000, seed))]
    assert [c.chart for c in changes] == []
    assert state.seen == 40_000


@pytest.mark.parametrize("name", drift.SIGNALS)
@pytest.mark.parametrize("side", [1.5, -1.5])
def test_a_clear_shift_of_any_signal_is_found_within_fifty_images(reference: Reference, name: str, side: float) -> None:
    """Except less strange images, which are no reason to worry."""
    state = State()
    watch(reference, state, traffic(300, 7))
    changes = watch(reference, state, traffic(50, 8, shift={name: side}))
    if (name, side) == ("ood_score", -1.5):
        assert changes == []
    else:
        assert changes[0].chart == name + ("+" if side > 0 else "-")
        assert name.split("_")[0] in changes[0].text


def test_a_small_lasting_shift_is_found_within_five_hundred(reference: Reference) -> None:
    """Too small for any single image to show it."""
    changes = watch(reference, State(), traffic(500, 9, shift={"sharpness": -0.7}))
    assert [c.chart for c in changes] == ["sharpness-"]


def test_an_alarm_is_over_when_the_world_is_back(reference: Reference) -> None:
    """Otherwise auto-labels would pause for ever after one strange hour; and it must not end while the change lasts."""
    state = State()
    watch(reference, state, traffic(2_000, 10, shift={"brightness": 1.5}))
    assert state.alarms == ["brightness+"]
    changes = watch(reference, state, traffic(200, 11))
    assert [(c.chart, c.on) for c in changes] == [("brightness+", False)]
    assert state.alarms == []


def test_the_batches_may_be_cut_anywhere(reference: Reference) -> None:
    """The clock takes what there is; one image at a time must end in the same state as all at once."""
    stream = traffic(900, 12, shift={"colour": 0.8, "ood_score": 0.4}, classes=(0.2, 0.3, 0.5), strange=0.5)
    once, pieces = State(), State()
    together = watch(reference, once, stream)
    apart = []
    for start in range(0, 900, 37):
        apart += watch(reference, pieces, stream.part(start, start + 37))
        pieces = msgspec.json.decode(msgspec.json.encode(pieces), type=State)
    assert [(c.chart, c.on) for c in together] == [(c.chart, c.on) for c in apart]
    assert once.alarms == pieces.alarms
    assert once.seen == pieces.seen
    for name, chart in once.charts.items():
        assert pieces.charts[name].sum == pytest.approx(chart.sum)


def test_unfamiliar_images_raise_an_alarm_before_anything_was_learned() -> None:
    """A version that meets a strange world from its first image on has no usual to compare with."""
    state = State()
    assert watch(None, state, traffic(300, 1, strange=0.1)) == []
    changes = watch(None, state, traffic(50, 2, strange=0.95))
    assert [(c.chart, c.on) for c in changes] == [("unfamiliar", True)]
    assert changes[0].at < 20
    assert [c.on for c in watch(None, state, traffic(60, 3, strange=0.05))] == [False]


def test_another_mix_of_answers_raises_an_alarm(reference: Reference) -> None:
    """Every image may look as always and the question still be another."""
    changes = watch(reference, State(), traffic(400, 4, classes=(0.25, 0.3, 0.45)))
    assert [c.chart for c in changes] == ["classes"]
    assert "c2" in changes[0].text or "c0" in changes[0].text


def test_neighbouring_images_that_are_alike_do_not_look_like_drift() -> None:
    """A camera's light wanders; ten similar frames are not ten witnesses."""
    rng = np.random.default_rng(0)

    def camera(n: int) -> Batch:
        wander = np.repeat(rng.normal(0, 1, n // 10 + 1), 10)[:n]
        values = wander + rng.normal(0, 0.3, n)
        return Batch({"brightness": values}, ["a"] * n, np.zeros(n, bool))

    alarms = 0
    for _ in range(10):
        alarms += sum(c.on for c in watch(learn(camera(500)), State(), camera(2_000)))
    assert alarms <= 2


def test_signals_that_never_vary_or_are_missing_say_nothing() -> None:
    """Grey images have no colour, some models no OOD score."""
    n = 300
    grey = Batch(
        {"colour": np.zeros(n), "ood_score": np.full(n, np.nan), "brightness": np.linspace(0, 1, n)},
        ["a"] * n,
        np.zeros(n, bool),
    )
    known = learn(grey)
    assert set(known.values) == {"colour", "brightness"}
    assert scores(known, "colour", np.array([0.0, 1e-4, 0.1, -0.1, np.nan])).tolist() == [0.0, 0.0, 3.0, -3.0, 0.0]
    assert abs(scores(known, "brightness", np.array([np.nan]))[0]) < 0.01
    order = np.random.default_rng(0).permutation(n)
    again = Batch({k: v[order] for k, v in grey.signals.items()}, grey.classes, grey.unfamiliar)
    assert watch(known, State(), again) == []


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_learn_from_is_refused(n: int) -> None:
    """An empty reference would call everything drift."""
    with pytest.raises(InputError, match="at least 2"):
        learn(traffic(n, 0))


def test_columns_of_unequal_length_are_refused() -> None:
    """A lost value would shift every later one to another image."""
    with pytest.raises(InputError, match="one length"):
        Batch({"colour": np.zeros(3)}, ["a"] * 2, np.zeros(2, bool))


def test_a_limit_gives_the_run_length_it_promises() -> None:
    """Siegmund's formula against simulation, for a run length short enough to simulate."""
    rng, slack, wanted = np.random.default_rng(0), 0.5, 500.0
    limit = cusum_limit(wanted, slack)
    lengths = []
    for _ in range(400):
        total, steps = 0.0, 0
        for z in rng.normal(-slack, 1, 8_000):
            total, steps = max(0.0, total + z), steps + 1
            if total >= limit:
                break
        lengths.append(steps)
    assert np.mean(lengths) == pytest.approx(wanted, rel=0.2)


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        ([100, 100], [200, 200], 1.0, 1.0),
        ([60, 40], [500, 500], 0.03, 0.09),  # scipy.stats.chi2_contingency without correction: .0565
        ([30, 30, 40], [500, 300, 200], 1e-6, 2e-5),  # 5.5e-6
        ([5, 0, 0], [500, 1, 1], 0.8, 1.0),  # rare classes are put together
        ([], [], 1.0, 1.0),
        ([0, 0], [10, 10], 1.0, 1.0),
        ([10], [20], 1.0, 1.0),
    ],
)
def test_chi_square_says_what_the_tables_say(ours: list[int], theirs: list[int], low: float, high: float) -> None:
    """Hand-made, because the serving machine has no scipy."""
    assert low <= chi_square_p(ours, theirs) <= high


def test_a_comparison_of_two_sets_finds_what_differs(reference: Reference) -> None:
    """Label-free estimates are hidden by it."""
    assert differs(reference, traffic(300, 5)) == []
    assert differs(reference, traffic(300, 5, shift={"sharpness": 0.6})) == ["sharpness"]
    assert differs(reference, traffic(0, 5)) == []


def judged(n: int = 200) -> tuple[Batch, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    belief = rng.beta(6, 1, n)
    return traffic(n, 20), belief, (rng.random(n) < belief).astype(float)


def test_label_free_numbers_are_close_while_the_world_is_the_judged_one() -> None:
    """With calibrated beliefs both are right by construction."""
    batch, belief, right = judged(2000)
    found = unlabelled(batch, belief, right, traffic(500, 21), np.random.default_rng(4).beta(6, 1, 500))
    assert found.hidden == ""
    assert found.cbpe == pytest.approx(6 / 7, abs=0.03)
    assert found.atc == pytest.approx(6 / 7, abs=0.03)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"alarm": "brightness is higher"}, "alarm is on: brightness"),
        ({"judged": 10}, "50 judged"),
        ({"traffic": 20}, "100 recent"),
        ({"shift": {"brightness": 1.0}}, "brightness"),
        ({"strange": 0.4}, "unfamiliar"),
    ],
)
def test_label_free_numbers_are_hidden_with_the_reason(case: dict, words: str) -> None:
    """They are nearly always too optimistic exactly when it matters."""
    batch, belief, right = judged(case.get("judged", 200))
    n = case.get("traffic", 300)
    seen = traffic(n, 22, shift=case.get("shift"), strange=case.get("strange", 0.05))
    found = unlabelled(batch, belief, right, seen, np.full(n, 0.9), alarm=case.get("alarm", ""))
    assert (found.atc, found.cbpe) == (None, None)
    assert words in found.hidden


@pytest.mark.parametrize(("right", "share"), [([1, 1, 1, 1], 1.0), ([0, 1, 1, 1], 0.75), ([0, 0, 0, 0], 0.0)])
def test_atc_gives_the_judged_accuracy_back(right: list[int], share: float) -> None:
    """The threshold is defined by that."""
    belief = np.array([0.2, 0.6, 0.9, 0.95])
    assert (belief >= threshold(belief, np.array(right, float))).mean() == share
