"""The bridge to Label Studio: which samples people see, how they get there, what comes back.

    candidate --window--> queued --push--> in_studio --read--> annotated | skipped | conflict | unlabelable
                             ^                 |    ^                                     |
                             +--- sweep -------+    +--------------- reask ---------------+
                (the task or the whole project was deleted there)   (one more person, on top)

What was decided:

- Label Studio's task is the truth about answers, our database about everything else. Every step may run twice.
- One writer per project, by the lease `studio:{model}`. An import is not idempotent there and a request that timed out may
  still succeed: push looks up, imports what is missing, looks up again, repairs lost predictions, and leaves a batch of
  unknown outcome alone for a while; the sweep removes duplicates that appear late.
- What was deleted there comes back with its answers, so that every sample has exactly one task, whatever people delete.
- The webhook is a hint (fired once, never repeated); the poll by `updated_at` is complete but for deleted tasks; those are
  the sweep's.
- Label Studio's time is the labelers' time (one process, some 100 ms of it for each label). So tasks never change after their
  import: order and pre-annotation are predictions, imported and deleted by the batch; what has not changed is not read; with
  nothing to do nothing is asked; hints are read together.
- Nobody is believed twice over: people who contradict each other get a third, gold tasks measure people, blind tasks measure
  how far they follow the model (`quality`). Neither a skip, a conflict nor an empty answer is ever a label.
- A blind task carries an empty prediction with its score, or both entrances would show it last.
- Images reach the labeler's browser from our own server by a signed URL; Label Studio neither stores nor fetches them, unless
  `image_mode` says so (`pictures`).
- Label configs use constant names (`cls`, `bbox`, `image`, `$image`): Label Studio accepts a renamed data key and then
  breaks every task.

What was rejected: an ML backend as the default road of predictions (it is asked in the labeler's request, slow for people);
Label Studio's YOLO export (class ids sorted as text, one of two annotations lost); trusting the webhook's payload.

`account` (log-in, tokens) and `studio` (calls) are the only files that know Label Studio's HTTP. Pure: `config`, `convert`,
`labels`, `strategies`, `quality`. Models are run by `rescore`, `review` and `backend` (the ML backend, opt-in).
Jobs: `window`, `push`, `read`, `sweep`, `refresh`, `reask`, `quality`, `backup`, `review`, `pictures`, bound to their names in
`jobs.HANDLERS`. `doctor` tries the roads from the side that counts.
"""
