"""Many images at once: a folder, an archive, a list or a video through one model version, as a job.

    source -> items in a fixed order -> threads, the predictor that serves -> chunks of results in the store + the run's row
           -> JSON lines, CSV, COCO or a zip with pictures, put together when somebody asks

Decided: it stands beside the server and not in the ground, because "the same log and arms" means the very code that answers
requests (`answers.compose`). It needs no web framework while it works. The order of a source is fixed, so the number of
finished chunks is all that a second attempt must know: it goes on with the first item of the next chunk, and a chunk that
was written but not committed is made again. Results are never held in memory.

Rejected: one row per result (a million rows for nobody); a results file that grows (no store can append); seeking in videos
(frames after a seek are not always those that were asked for).
"""
