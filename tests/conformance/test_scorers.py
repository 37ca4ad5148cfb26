"""Every line of SCORERS keeps the same promises: one comparable number per image, larger means label it sooner."""

from __future__ import annotations

import numpy as np
import pytest

from sutdol import scoring
from sutdol.errors import InputError
from sutdol.familiarity import learn
from sutdol.scoring import SCORERS, Evidence, scorers_for

STATISTICS = learn(
    np.random.default_rng(0).normal(3, 1, (200, 8)).astype(np.float32), None, normalise=True, low_level=3
)
BOXES = [np.zeros((0, 2)), np.array([[0.99, 0.0]]), np.array([[0.5, 1.0], [0.99, 0.0]]), np.full((30, 2), [0.5, 1.0])]


def evidence(kind: str, n: int = 4, temperature: float = 1.0) -> Evidence:
    rng = np.random.default_rng(n)
    if kind == "logits":
        return Evidence(temperature, logits=rng.normal(0, 3, (n, 5)))
    if kind == "boxes":
        return Evidence(temperature, boxes=BOXES[:n], missed=np.linspace(0, 0.2, len(BOXES[:n])))
    return Evidence(temperature, features=rng.normal(3, 1, (n, 8)).astype(np.float32), statistics=STATISTICS)


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("n", [0, 1, 4])
def test_a_score_is_one_finite_number_per_image(name: str, n: int) -> None:
    """NaN sorts anywhere, and a missing one shifts all others."""
    found = SCORERS[name].score(evidence(SCORERS[name].kind, n))
    assert found.shape == (n,)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", SCORERS)
def test_a_score_does_not_depend_on_its_neighbours(name: str) -> None:
    """Serving asks for one image, a benchmark for a thousand."""
    kind = SCORERS[name].kind
    whole = evidence(kind)
    single = [
        Evidence(
            logits=None if whole.logits is None else whole.logits[i : i + 1],
            boxes=None if whole.boxes is None else whole.boxes[i : i + 1],
            missed=None if whole.missed is None else whole.missed[i : i + 1],
            features=None if whole.features is None else whole.features[i : i + 1],
            statistics=whole.statistics,
        )
        for i in range(4)
    ]
    assert SCORERS[name].score(whole) == pytest.approx([float(SCORERS[name].score(one)[0]) for one in single], abs=1e-4)


@pytest.mark.parametrize("name", SCORERS)
def test_the_doubtful_or_strange_one_scores_higher(name: str) -> None:
    """One sign for all: whoever sorts by a score must not have to know which it is."""
    known = np.random.default_rng(1).normal(3, 1, (1, 8)).astype(np.float32)
    pairs = {
        "logits": (Evidence(logits=np.array([[9.0, 0, 0, 0]])), Evidence(logits=np.array([[1.0, 0.9, 0.8, 0.7]]))),
        "boxes": (Evidence(boxes=[np.array([[0.99, 0.0]])]), Evidence(boxes=[np.array([[0.55, 0.0]])])),
        "features": (
            Evidence(features=known, statistics=STATISTICS),
            Evidence(features=-known, statistics=STATISTICS),
        ),
    }
    sure, unsure = pairs[SCORERS[name].kind]
    if name == "nothing_found":
        unsure = Evidence(boxes=[np.zeros((0, 2))], missed=np.array([0.1]))
    assert SCORERS[name].score(sure)[0] < SCORERS[name].score(unsure)[0]


@pytest.mark.parametrize("name", [n for n, s in SCORERS.items() if s.kind == "logits"])
def test_very_sure_answers_are_still_told_apart(name: str) -> None:
    """Probabilities of 1.0 are all alike in float32; the order must not end there."""
    if name == "gen":
        pytest.skip("a root of a probability has no more digits than the probability")
    found = SCORERS[name].score(Evidence(0.1, logits=np.array([[30.0, 0], [28, 0], [26, 0], [24, 0]])))
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("name", [n for n, s in SCORERS.items() if s.kind == "logits" and n not in ("energy",)])
@pytest.mark.parametrize("logits", [[[0.0, 0.0]], [[1e4, -1e4]], [[5.0]]])
def test_ties_certainty_and_a_single_class_have_an_answer(name: str, logits: list[list[float]]) -> None:
    """Probabilities of exactly 0, 1/2 and 1 happen."""
    assert not np.isnan(SCORERS[name].score(Evidence(logits=np.array(logits)))).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"logits": np.array([[np.nan, 0.0]])},
        {"logits": np.zeros(3)},
        {"features": np.array([[np.inf]])},
        {"boxes": [np.array([[1.5, 0.0]])]},
        {"boxes": [np.array([[np.nan, 0.0]])]},
        {"boxes": [np.zeros(3)]},
    ],
)
def test_what_is_no_evidence_is_refused(wrong: dict) -> None:
    """A NaN would travel into the queue and stay there."""
    with pytest.raises(InputError):
        Evidence(**wrong)


@pytest.mark.parametrize("name", SCORERS)
def test_a_score_without_its_evidence_says_what_is_missing(name: str) -> None:
    """An empty answer would look like an empty batch."""
    if SCORERS[name].kind != "boxes":
        with pytest.raises(InputError, match="expected"):
            SCORERS[name].score(Evidence())


def test_a_crowded_image_counts_by_its_most_doubtful_boxes() -> None:
    """A plain sum would send people the most crowded images first, whatever the model knows of them."""
    many = Evidence(boxes=[np.full((500, 2), [0.5, 0.0])])
    assert scoring.box_doubts(many)[0] == pytest.approx(scoring.TOP_BOXES)


def test_a_doubt_about_a_hard_class_weighs_more() -> None:
    """Labels belong where the detector is bad."""
    boxes = [np.array([[0.5, 0.0]]), np.array([[0.5, 1.0]])]
    easy, hard = scoring.box_doubts(Evidence(boxes=boxes, difficulty=np.array([0.1, 0.9])))
    assert (easy, hard) == pytest.approx((0.1, 0.9))


def test_every_empty_image_stands_above_every_other() -> None:
    """Missed objects look exactly like this, and the nearest miss comes first."""
    found = scoring.nothing_found(
        Evidence(boxes=[np.zeros((0, 2)), np.array([[0.26, 0.0]]), np.zeros((0, 2))], missed=np.array([0.2, 0.0, 0.0]))
    )
    assert found[0] > found[2] > found[1]


def test_each_task_gets_the_scores_it_can_have() -> None:
    """A detector has no logits, and statistics without a bank have no neighbours."""
    assert "margin" in scorers_for("classify", None)
    assert "unfamiliar" not in scorers_for("classify", None)
    assert "nothing_found" in scorers_for("detect", STATISTICS)
    bankless = learn(np.random.default_rng(0).normal(0, 1, (20, 8)), None, normalise=False, most=0)
    assert "nearest" not in scorers_for("detect", bankless)


@pytest.mark.filterwarnings("ignore")
def test_published_implementations_give_the_same_order() -> None:
    """pytorch-ood and scikit-activeml, on the same logits."""
    torch, detector = pytest.importorskip("torch"), pytest.importorskip("pytorch_ood.detector")
    pool = pytest.importorskip("skactiveml.pool")
    logits = np.random.default_rng(5).normal(0, 2, (300, 6))
    given, tensor = Evidence(logits=logits), torch.from_numpy(logits)
    for name, theirs in (
        ("max_probability", detector.MaxSoftmax.score(tensor)),
        ("energy", detector.EnergyBased.score(tensor)),
        ("gen", detector.GEN.score(tensor)),
        ("margin", pool.uncertainty_scores(scoring.softmax(logits), method="margin_sampling")),
        ("entropy", pool.uncertainty_scores(scoring.softmax(logits), method="entropy")),
    ):
        ours = SCORERS[name].score(given)
        expected = np.asarray(theirs)
        if (
            name == "margin"
        ):  # theirs compares probabilities, ours their logs: alike only where the best class is as sure
            best = np.sort(scoring.softmax(logits), axis=1)
            assert expected == pytest.approx(1 - (best[:, -1] - best[:, -2]))
            assert ours == pytest.approx(np.log(best[:, -2] / best[:, -1]))
            continue
        assert np.array_equal(np.argsort(ours, kind="stable"), np.argsort(expected, kind="stable")), name
