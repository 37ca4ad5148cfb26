"""Watching the live model: how often it is right, whether its world has changed, and what may be believed without labels.

    prediction log + labels --job `monitor`--> drift state, snapshots --> API, CLI, metrics, console (which only read)
                                    |
                                    +--> on an alarm: event `drift.alarm`, a training, auto-labels pause

`estimate` (accuracy from drawn labels), `drift` (charts) and `unlabelled` (ATC, CBPE) are pure; `answers` reads the log,
`job` is what the clock sends, `report` is what others read.

Rejected: MAPIE, NannyML, river, alibi-detect (13 to 92 packages for a hundred lines of numpy, and none knows our inclusion
probabilities); a plain normal interval (covers .66 to .95 of the time, not .95); accuracy from all labels without weights
(26 to 40 points off).
"""
