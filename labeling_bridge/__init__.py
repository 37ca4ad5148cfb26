"""The bridge to Label Studio: which samples people see, how they get there, what comes back.

    candidate --window--> queued --push--> in_studio --read--> annotated | skipped | conflict | unlabelable
                             ^                 |
                             +--- sweep -------+   (the task or the whole project was deleted there)

What was decided:

- Label Studio's task is the truth about answers, our database about everything else. Every step may run twice.
- One writer per project, by the lease `studio:{model}`. An import is not idempotent there and a request that timed out may
  still succeed: push looks up, imports what is missing, looks up again, repairs lost predictions, and leaves a batch of
  unknown outcome alone for a while; the sweep removes duplicates that appear late.
- The webhook is a hint (fired once, never repeated); the poll by `updated_at` is complete but for deleted tasks; those are
  the sweep's.
- Label Studio's time is the labelers' time (one process, some 100 ms of it for each label). So tasks never change after their
  import: order and pre-annotation are predictions, imported and deleted by the batch; what has not changed is not read; with
  nothing to do nothing is asked; hints are read together.
- A blind task carries an empty prediction with its score, or both entrances would show it last.
- Images reach the labeler's browser from our own server by a signed URL; Label Studio never stores or fetches them.
- Label configs use constant names (`cls`, `bbox`, `image`, `$image`): Label Studio accepts a renamed data key and then
  breaks every task.

What was rejected: an ML backend as the default road of predictions (it is asked in the labeler's request, slow for people);
Label Studio's YOLO export (class ids sorted as text, one of two annotations lost); trusting the webhook's payload.

`studio.py` is the only file that knows Label Studio's HTTP. Pure: `config`, `convert`, `labels`, `strategies`.
`rescore` is the only one that runs a model.
Jobs: `window`, `push`, `read`, `sweep`, `refresh`, bound to their names in `jobs.HANDLERS`.
"""
