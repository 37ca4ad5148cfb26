"""Which photo trains, which validates, which tests: shared out by class, whole groups at a time, the same every time.

    photo -> unit (its group, or itself) with a stratum (its rarest class) -> ranked by hash -> train | val | test

A unit is never divided: photos of one patient, session or camera stay together, or the test would measure memory.
`grouping("...")` makes the group out of a photo's record: its folder, a part of its name, or a column of its table.

Errors: DatasetError for ratios that do not add up, and for a grouping that cannot be understood or does not fit.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from retrain.formats import Record
from sutdol.errors import DatasetError
from sutdol.types import Split

RATIOS = (0.7, 0.1, 0.2)
"""Shares of train, val and test for photos whose data set says nothing."""
MAX_GROUP = 200
"""Characters of a group's name."""


@dataclass(frozen=True)
class Stratum:
    """All units of one class: how many, how many photos they hold, and (key, photos) of each in the order of their rank."""

    units: int
    photos: int
    members: Iterable[tuple[str, int]]


def check_ratios(ratios: tuple[float, float, float]) -> None:
    """Raises DatasetError unless they are three shares of one whole."""
    if len(ratios) != 3 or min(ratios) < 0 or abs(sum(ratios) - 1) > 1e-6:
        raise DatasetError(f"split ratios: expected three shares that add up to 1, found {ratios}")


def share_out(strata: Iterable[Stratum], ratios: tuple[float, float, float]) -> Iterator[tuple[str, Split]]:
    """(key, split) of every unit. Every stratum is shared out by `ratios`, counted in photos.

    Every stratum keeps at least one unit in train; what it is too small to give to test and val, the next one gives. A
    unit goes where it brings the count nearer to its share.
    """
    check_ratios(ratios)
    owed_test, owed_val = 0.0, 0.0
    for stratum in strata:
        owed_test += ratios[2] * stratum.photos
        owed_val += ratios[1] * stratum.photos
        tests, vals = float(round(owed_test)), float(round(owed_val))
        training = False
        for place, (key, photos) in enumerate(stratum.members, 1):
            last = place == stratum.units and not training and ratios[0] > 0
            if not last and tests > 0 and tests >= photos / 2:
                tests, owed_test, split = tests - photos, owed_test - photos, "test"
            elif not last and vals > 0 and vals >= photos / 2:
                vals, owed_val, split = vals - photos, owed_val - photos, "val"
            else:
                training, split = True, "train"
            yield key, split  # type: ignore[misc]


def assign_splits(
    units: Sequence[tuple[str, str]], ratios: tuple[float, float, float] = RATIOS, *, salt: str = ""
) -> list[Split]:
    """Splits for `units` of (key, stratum), one photo each, deterministic by hash.

    Raises:
        DatasetError: ratios that are negative or do not add up to 1.

    >>> assign_splits([(str(i), "cat") for i in range(10)]).count("test")
    2
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, (_, stratum) in enumerate(units):
        members[stratum].append(index)
    strata = []
    for name in sorted(members):
        ranked = sorted(members[name], key=lambda i: rank(units[i][0], salt))
        strata.append(Stratum(len(ranked), len(ranked), [(str(i), 1) for i in ranked]))
    splits: list[Split] = ["train"] * len(units)
    for place, split in share_out(strata, ratios):
        splits[int(place)] = split
    return splits


def rank(key: str, salt: str = "") -> str:
    """A place in an order that has nothing to do with names, and is the same everywhere."""
    return hashlib.sha256(f"{salt}:{key}".encode()).hexdigest()


def grouping(rule: str | None) -> Callable[[Record], str | None]:
    """A function from a record to its group, by `rule`:

        None            the group that the data set itself gives (a CSV column `group`)
        folder          the folder that holds the photo; folder:1 the first folder of its path, folder:2 the first two
        column:NAME     the value in that column of its table
        name:REGEX      what the first (...) of the regular expression finds in the photo's name

    A record for which the rule finds nothing belongs to no group.

    Raises:
        DatasetError: an unknown rule, a broken regular expression; from the function: a column that the table lacks.

    >>> from sutdol.types import Label
    >>> grouping("name:(p[0-9]+)_")(Record("x/p7_2.png", Label(), data=b"..."))
    'p7'
    """
    if rule is None:
        return lambda record: record.group
    kind, _, argument = rule.partition(":")
    if kind == "folder" and (not argument or argument.isdecimal()):
        depth = int(argument or 0)

        def by_folder(record: Record) -> str | None:
            folders = PurePosixPath(record.name).parent.parts
            return "/".join(folders[:depth] if depth else folders) or None

        return by_folder
    if kind == "column" and argument:

        def by_column(record: Record) -> str | None:
            if argument == "group":
                return record.group
            if argument not in record.columns:
                known = ", ".join(sorted(record.columns)[:10])
                raise DatasetError(
                    f"{record.name}: expected a column {argument!r}, found {known or 'none'}",
                    hint="only csv data sets have columns",
                )
            return record.columns[argument][:MAX_GROUP] or None

        return by_column
    if kind == "name" and argument:
        try:
            pattern = re.compile(argument)
        except re.error as error:
            raise DatasetError(f"group {rule!r}: not a regular expression: {error}", hint="name:(.+)_") from error
        if pattern.groups < 1:
            raise DatasetError(f"group {rule!r}: expected a part in (...)", hint="name:^(p[0-9]+)_")

        def by_name(record: Record) -> str | None:
            name = record.name if record.path is None else record.path.name
            match = pattern.search(name)
            return match.group(1)[:MAX_GROUP] if match and match.group(1) else None

        return by_name
    raise DatasetError(
        f"group {rule!r}: expected folder, folder:N, column:NAME or name:REGEX", hint="e.g. --group column:patient"
    )
