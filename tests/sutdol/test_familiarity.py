"""What is familiar: learned from features, kept in a file, true to the published methods and its limits."""

from __future__ import annotations

import numpy as np
import pytest

from sutdol import familiarity
from sutdol.errors import InputError
from sutdol.familiarity import OodStatistics, fit_ood, learn


def blobs(n: int, seed: int, d: int = 32, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Features of a few classes whose centres are always the same."""
    centres = np.random.default_rng(99).normal(0, 3, (classes, d))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return (centres[labels] + rng.normal(0, 0.5, (n, d))).astype(np.float32), labels


@pytest.mark.parametrize("normalise", [True, False])
def test_strange_features_score_higher_than_familiar_ones(normalise: bool) -> None:
    """The whole point of the second output."""
    rng = np.random.default_rng(2)
    centres = rng.normal(0, 3, (4, 32))
    labels = rng.integers(0, 4, 600)
    train = centres[labels] + rng.normal(0, 0.5, (600, 32))
    held_out = centres[rng.integers(0, 4, 200)] + rng.normal(0, 0.5, (200, 32))
    strange = rng.normal(0, 3, (200, 32))
    statistics = fit_ood(train, labels, held_out=held_out, normalise=normalise)
    familiar_scores, strange_scores = statistics.score(held_out), statistics.score(strange)
    assert abs(familiar_scores.mean()) < 1e-6
    assert np.median(strange_scores) > np.quantile(familiar_scores, 0.99)


def test_statistics_survive_their_file() -> None:
    """They travel beside the model."""
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (50, 8))
    statistics = fit_ood(x, None, held_out=x[:20], normalise=False)
    again = OodStatistics.from_bytes(statistics.to_bytes())
    assert np.allclose(again.score(x), statistics.score(x))
    with pytest.raises(InputError):
        OodStatistics.from_bytes(b"not a file")


@pytest.mark.parametrize(
    ("features", "held_out"),
    [
        (np.zeros((1, 4)), np.zeros((5, 4))),
        (np.zeros((5, 4)), np.zeros((0, 4))),
        (np.full((5, 4), np.nan), np.zeros((5, 4))),
    ],
)
def test_nothing_to_learn_from_is_said(features: np.ndarray, held_out: np.ndarray) -> None:
    """A silent NaN would make every image familiar."""
    with pytest.raises(InputError):
        fit_ood(features, None, held_out=held_out, normalise=True)


def test_features_that_never_vary_are_survived() -> None:
    """Dead channels are common in small nets."""
    x = np.zeros((20, 4))
    assert np.isfinite(fit_ood(x, None, held_out=x, normalise=True).score(x)).all()


def test_the_file_holds_the_projection_and_the_bank_too() -> None:
    """A model with many features must answer the same after a restart."""
    x, labels = blobs(400, 1, d=300)
    statistics = fit_ood(x, labels, held_out=blobs(50, 2, d=300)[0], normalise=True, low_level=9)
    again = OodStatistics.from_bytes(statistics.to_bytes())
    assert again.basis is not None
    assert again.bank.shape == (400, 256)
    assert np.array_equal(again.score(x), statistics.score(x))
    assert again.duplicate_at == statistics.duplicate_at


def test_the_nearest_image_is_found_exactly() -> None:
    """Approximate search would make scores depend on the order of training images."""
    x, labels = blobs(300, 3)
    probe = blobs(40, 4)[0]
    statistics = learn(x, labels, normalise=True)
    unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)  # noqa: E731
    brute = ((unit(probe)[:, None] - unit(x)[None]) ** 2).sum(axis=2).min(axis=1)
    assert statistics.distances(probe)[:, 1] == pytest.approx(np.log(brute + 1e-12), abs=1e-3)
    assert statistics.distances(x)[:, 1].max() < np.log(1e-6)


@pytest.mark.parametrize("decay", [0.0, 2.0], ids=["spread evenly", "most in the last columns"])
def test_a_large_bank_is_searched_exactly_too(decay: float) -> None:
    """Looking at a part of the columns first saves time; it must never save an image."""
    rng = np.random.default_rng(4)
    width, many = 200, 3_000
    shape = (np.arange(1, width + 1) / width) ** decay
    bank = (rng.normal(0, shape, (many, width)) + 3 * shape * rng.integers(0, 5, (many, 1))).astype(np.float32)
    statistics = learn(bank, None, normalise=False)
    near = bank[:40] + rng.normal(0, 0.1, (40, width)) * shape
    queries = np.concatenate([near, rng.normal(0, 2, (20, width)), np.zeros((1, width)), bank[:3]]).astype(np.float32)
    one_by_one = np.concatenate([statistics.distances(query[None]) for query in queries])[:, 1]
    centred = bank - bank.mean(axis=0, dtype=np.float64)
    brute = [((centred - (q - bank.mean(axis=0, dtype=np.float64))) ** 2).sum(axis=1).min() for q in queries]
    np.testing.assert_allclose(np.exp(one_by_one[:-3]), brute[:-3], rtol=1e-3)
    assert (np.exp(one_by_one[-3:]) < 1e-6).all()
    np.testing.assert_allclose(one_by_one[:-3], statistics.distances(queries)[:-3, 1], rtol=1e-3, atol=1e-3)


def test_what_the_projection_cuts_off_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What never varies among familiar images is exactly what tells strange ones."""
    rng, quiet = np.random.default_rng(5), np.r_[np.ones(200), np.full(200, 0.01)]
    x, held_out = rng.normal(0, 1, (600, 400)) * quiet, rng.normal(0, 1, (200, 400)) * quiet
    strange = rng.normal(0, 1, (50, 400)) * np.r_[np.ones(200), np.full(200, 0.7)]
    projected = fit_ood(x, None, held_out=held_out, normalise=False, most=0)
    assert projected.score(strange).min() > projected.score(held_out).max()
    monkeypatch.setattr(familiarity, "MAX_DIMENSIONS", 400)
    whole = fit_ood(x, None, held_out=held_out, normalise=False, most=0)
    assert whole.basis is None
    assert projected.score(strange) == pytest.approx(whole.score(strange), rel=0.15)


def test_a_model_without_a_bank_scores_by_classes_alone() -> None:
    """Detectors have one common centre and no bank."""
    x, _ = blobs(200, 6)
    statistics = fit_ood(x, None, held_out=blobs(50, 7)[0], normalise=False, most=0)
    assert statistics.distances(x).shape == (200, 1)
    assert abs(statistics.score(blobs(50, 7)[0]).mean()) < 1e-6


def test_a_picture_that_is_off_counts_only_when_it_is_far_off() -> None:
    """Brightness says nothing about a new kind of object; a blank frame has no other sign."""

    def pictures(n: int, seed: int) -> np.ndarray:
        low = np.random.default_rng(seed).normal(0.5, 0.05, (n, 3)).astype(np.float32)
        return np.concatenate([blobs(n, seed)[0], low], axis=1)

    train, held_out = pictures(400, 21), pictures(200, 22)
    statistics = fit_ood(train, None, held_out=held_out, normalise=True, low_level=3)
    plain = fit_ood(train[:, :-3], None, held_out=held_out[:, :-3], normalise=True)
    assert np.isclose(statistics.score(held_out), plain.score(held_out[:, :-3]), atol=1e-4).mean() > 0.9
    blank = held_out.copy()
    blank[:, -3:] = 0.0
    assert (statistics.score(blank) - plain.score(blank[:, :-3])).min() > 1.5


def test_statistics_stay_inside_their_memory() -> None:
    """Sixteen megabytes a model, however many images it was trained on and however wide its features are."""
    rng = np.random.default_rng(8)
    for n, d in ((12_000, 256), (1_000, 600)):
        statistics = learn(rng.normal(0, 1, (n, d)).astype(np.float32), None, normalise=True)
        arrays = [getattr(statistics, name) for name in ("mean", "basis", "whitening", "centres", "bank", "scale")]
        arrays += statistics._head or ()
        assert sum(a.nbytes for a in arrays if a is not None) <= familiarity.MAX_BYTES
        assert len(statistics.bank) <= familiarity.MAX_BANK


@pytest.mark.parametrize("features", [np.zeros((3, 5)), np.zeros(4)])
def test_features_of_another_model_are_refused(features: np.ndarray) -> None:
    """Numpy would broadcast some of them into a confident wrong answer."""
    statistics = learn(blobs(50, 9)[0], None, normalise=True)
    with pytest.raises(InputError, match="features"):
        statistics.score(features)


def test_a_picture_varied_a_little_lies_nearer_than_any_other_picture() -> None:
    """Near-duplicates are told by this distance, and labelled once."""
    x, labels = blobs(500, 10)
    statistics = learn(x, labels, normalise=True)
    projected = statistics.project(x)
    again = statistics.project(x + np.random.default_rng(11).normal(0, 0.02, x.shape).astype(np.float32))
    assert (np.linalg.norm(projected - again, axis=1) < statistics.duplicate_at).mean() > 0.95
    others = np.linalg.norm(projected[:, None] - projected[None], axis=2) + np.eye(500) * 9
    assert (others.min(axis=1) < statistics.duplicate_at).mean() < 0.02


@pytest.mark.filterwarnings("ignore")
def test_the_published_methods_give_the_same_order() -> None:
    """Our sixty lines of numpy against pytorch-ood's Mahalanobis and nearest neighbours."""
    torch, detector = pytest.importorskip("torch"), pytest.importorskip("pytorch_ood.detector")
    x, labels = blobs(2000, 12, d=16)
    probe = np.concatenate([blobs(100, 13, d=16)[0], np.random.default_rng(14).normal(0, 3, (100, 16))]).astype(
        np.float32
    )
    unit = [torch.from_numpy(v / np.linalg.norm(v, axis=1, keepdims=True)) for v in (x, probe)]
    ours = learn(x, labels, normalise=True).distances(probe)
    theirs = detector.Mahalanobis(None).fit_features(unit[0], torch.from_numpy(labels)).predict_features(unit[1])
    assert _rank_correlation(ours[:, 0], theirs.numpy()) > 0.999
    theirs = detector.KNN(None, k=1).fit_features(unit[0], torch.from_numpy(labels)).predict_features(unit[1])
    assert _rank_correlation(ours[:, 1], np.asarray(theirs)) > 0.999


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])
