"""Work that is done later, by another process, exactly once to completion.

A job is a row (`tables.Job`), inserted in the transaction of what caused it; the Dramatiq message is only a doorbell that
carries the row's id. Any broker is therefore safe: a lost message is rung again by the sweeper, a repeated one finds the
row leased and does nothing, a killed worker's lease runs out and another worker claims the row under a higher lease
number, so a stale worker can commit nothing.

    send(session, kind, payload) -> row `queued` -> commit -> doorbell -> worker claims -> handler(Running) -> row `done`

`send` writes the doorbell too, as a row of table `message` in the same transaction, so it needs no broker and no Dramatiq:
the embedded broker delivers from that table, with any other broker the workers forward what lies there. Importing this
package loads no Dramatiq; `worker` and `brokers` do.

Rejected: Dramatiq's own retries, results and time limits (its defaults end a training after ten minutes and lose it after
`kill -9`); ringing from an after-commit hook (every process would need a broker); Celery beat, periodiq or APScheduler for
the clock (the clock is a leader with a lease, see `clock`).
"""

from __future__ import annotations

from sutdol.jobs.rows import KINDS, Handler, JobKind, Running, cancel, send

__all__ = ["KINDS", "Handler", "JobKind", "Running", "cancel", "send"]
