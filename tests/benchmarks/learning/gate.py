"""Is anything promoted on luck, and is a real gain seen? Verdicts by `retrain.gate.judge` itself.

    a champion right on 93 % of a frozen test set + candidates that differ from it on 8 % of the items -> judge -> verdict

Twenty candidates that are no better meet one champion on one test set (until one is promoted by luck and takes its place);
the same while each round adds 40 fresh drawn items; candidates that are 4 points better at each look; and the class guard on
ten classes of 100 items.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrain import gate
from retrain.evaluate import Evaluated
from retrain.metrics import Outcome
from sutdol import stats
from sutdol.tables import DatasetItem
from tests.benchmarks.learning.tables import Figure, show

ACCURACY, DISCORDANCE, GAIN = 0.93, 0.08, 0.04
ROUNDS = 20
RUNS, VERDICTS = 2_000, 20_000
GUARDED, REFRESHED = 400, 100
FRESH = 40
CLASSES = [str(i) for i in range(10)]
Bools = NDArray[np.bool_]


class World:
    """Test items of ten classes in turn, made once; only who is right changes."""

    def __init__(self, n: int, *, drawn_from: int | None = None) -> None:
        self._known: dict[tuple[int, int, float], bool] = {}
        self.names = [f"{i:05d}" for i in range(n)]
        self.items = [
            DatasetItem(
                dataset_version_id="",
                sample_id=name,
                split="test",
                value={"classes": [CLASSES[i % 10]], "boxes": []},
                source="imported" if drawn_from is None or i < drawn_from else "annotation",
                arm=None if drawn_from is None or i < drawn_from else "drawn",
            )
            for i, name in enumerate(self.names)
        ]
        self._right = [Outcome(m, True, [CLASSES[i % 10]], [CLASSES[i % 10]], 0.9) for i, m in enumerate(self.names)]
        self._wrong = [
            Outcome(m, False, [CLASSES[i % 10]], [CLASSES[-1 - i % 10]], 0.6) for i, m in enumerate(self.names)
        ]

    def evaluated(self, right: Bools) -> Evaluated:
        outcomes = [self._right[i] if r else self._wrong[i] for i, r in enumerate(right)]
        return Evaluated("classify", CLASSES, 0.0, outcomes, {})

    def promoted(self, candidate: Bools, champion: Bools, looks: int) -> bool:
        """The verdict where no class has enough items to be judged and no slice but the whole: it depends on the counts of
        wins and losses alone, so each pair is judged once."""
        key = (int((candidate & ~champion).sum()), int((champion & ~candidate).sum()), stats.alpha_for_look(looks + 1))
        if key not in self._known:
            self._known[key] = self.verdict(candidate, champion, looks=looks).verdict == "promote"
        return self._known[key]

    def verdict(
        self,
        candidate: Bools,
        champion: Bools,
        *,
        looks: int,
        recent: int | None = None,
        recent_looks: int | None = None,
    ) -> gate.Verdict:
        n = len(champion)
        fresh = set(self.names[recent:n]) if recent is not None else set()
        return gate.judge(
            "classify",
            CLASSES,
            self.evaluated(candidate),
            self.evaluated(champion),
            self.items[:n],
            recent=fresh,
            looks=looks,
            recent_looks=recent_looks,
        )


def candidate_of(
    champion: Bools, rng: np.random.Generator, *, gain: float = 0.0, discordance: float = DISCORDANCE
) -> Bools:
    """Wins and losses that make `gain` and `discordance` on average, whoever the champion is."""
    wins, losses = (discordance + gain) / 2, (discordance - gain) / 2
    u = rng.random(len(champion))
    return np.where(champion, u >= losses / ACCURACY, u < wins / (1 - ACCURACY))


def frozen(rng: np.random.Generator) -> tuple[float, float, float]:
    """(promotions per round, share of runs with any, optimism in points) over ROUNDS on one test set of 500."""
    world, first, any_, optimism = World(500), [], [], []
    for _ in range(RUNS):
        champion = rng.random(500) < ACCURACY
        promoted = []
        for look in range(ROUNDS):
            candidate = candidate_of(champion, rng)
            promoted.append(world.promoted(candidate, champion, look))
            if promoted[-1]:
                champion = candidate
        first.append(np.mean(promoted))
        any_.append(any(promoted))
        optimism.append(100 * (champion.mean() - ACCURACY))
    return float(np.mean(first)), float(np.mean(any_)), float(np.mean(optimism))


def refreshed(rng: np.random.Generator) -> tuple[float, float]:
    """The same while every round adds FRESH drawn items to 300 imported ones: (share of runs with any, looks at the end)."""
    start = 300
    world = World(start + ROUNDS * FRESH, drawn_from=start)
    any_, last = [], []
    for _ in range(REFRESHED):
        truth = rng.random(start + ROUNDS * FRESH) < ACCURACY
        seen: list[set[str]] = []
        known, promoted = start, False
        for round_ in range(ROUNDS):
            n = start + (round_ + 1) * FRESH
            champion = truth[:n]
            looks = gate.looks_at(set(world.names[:n]), seen)
            recent_looks = gate.looks_at(set(world.names[known:n]), seen)
            verdict = world.verdict(
                candidate_of(champion, rng), champion, looks=looks, recent=known, recent_looks=recent_looks
            )
            seen.append(set(world.names[:n]))
            promoted |= verdict.verdict == "promote"
        any_.append(promoted)
        last.append(looks)
    return float(np.mean(any_)), float(np.mean(last))


def power(n: int, looks: int, rng: np.random.Generator, verdicts: int = VERDICTS) -> float:
    """Share of candidates GAIN better that are promoted at this look."""
    world, seen = World(n), []
    for _ in range(verdicts):
        champion = rng.random(n) < ACCURACY
        seen.append(world.promoted(candidate_of(champion, rng, gain=GAIN), champion, looks))
    return float(np.mean(seen))


def class_guard(rng: np.random.Generator, discordance: float) -> tuple[float, float]:
    """(share blocked when nothing is lost, share blocked when class 3 loses 15 points) with 100 items a class.

    The loss comes on top of the discordance that every class has: in class 3 the candidate still wins as many items as before.
    """
    world, blocked = World(1000), {False: [], True: []}
    third = np.arange(1000) % 10 == 3
    for _ in range(GUARDED):
        champion = rng.random(1000) < ACCURACY
        equal = candidate_of(champion, rng, discordance=discordance)
        worse = candidate_of(champion, rng, gain=-0.15, discordance=0.15 + discordance)
        for lost in (False, True):
            candidate = np.where(third, worse, equal) if lost else equal
            record = world.verdict(candidate, champion, looks=0).record
            found = record["classes"]["lost"]
            blocked[lost].append("3" in found if lost else bool(found))
    return float(np.mean(blocked[False])), float(np.mean(blocked[True]))


def main() -> bool:
    rng = np.random.default_rng(0)
    alphas = [stats.alpha_for_look(look) for look in range(1, ROUNDS + 1)]
    print(
        f"spending schedule: look 1 {alphas[0]:g}, looks 2 to {ROUNDS} {alphas[1]:g} each, sum {sum(alphas):.4f}; then halving"
    )
    per_round, any_, optimism = frozen(rng)
    first = World(500)
    champions = rng.random((VERDICTS, 500)) < ACCURACY
    early = [first.promoted(candidate_of(champion, rng), champion, 0) for champion in champions]
    with_fresh, looks = refreshed(rng)
    at_first, later = power(500, 0, rng), power(500, 1, rng)
    average = (at_first + (ROUNDS - 1) * later) / ROUNDS
    large = power(800, 1, rng)
    guard = {d: class_guard(rng, d) for d in (0.04, 0.06, DISCORDANCE)}
    return show(
        "The gate",
        [
            Figure("false promotions at a first look", float(np.mean(early)), "at most", 0.05),
            Figure("false promotions per round, one frozen test set", per_round, "at most", 0.05),
            Figure(f"any false promotion in {ROUNDS} rounds, frozen", any_, "at most", 0.10),
            Figure("optimism of the reported accuracy, points", optimism, "at most", 0.3),
            Figure(
                f"any in {ROUNDS} rounds, {FRESH} fresh drawn items each",
                with_fresh,
                note=f"{looks:.0f} looks at the last round",
            ),
            Figure("power for +4 points, n = 500, first look", at_first, "at least", 0.88),
            Figure(f"the same, average of {ROUNDS} looks", average, "at least", 0.70, f"later looks {later:.3f}"),
            Figure("the same, n = 800, a later look", large, "at least", 0.88),
            *(
                Figure(f"class guard: false blocks, discordance {d:g}", blocks, "at most", 0.05)
                for d, (blocks, _) in guard.items()
            ),
            *(
                Figure(f"class guard: -15 points at 100 items, discordance {d:g}", found, "at least", 0.85)
                for d, (_, found) in guard.items()
            ),
        ],
    )


if __name__ == "__main__":
    main()
