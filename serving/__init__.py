"""The HTTP side of sutdol: predictions, operations, and the swap of the model that answers.

    request -> auth, limits -> engine (decode, run, interpret, pick) -> log (one commit) -> reply

Decided:

- One process, one worker thread per core, one ONNX Runtime session per model with intra_op = 1. Several processes were no
  faster, need twice the memory, and would leave several places to swap and to log.
- No batching timer: a thread takes its fair share of what is waiting, so that a lone request never waits for company.
- The reply waits for its own commit of the log, and for nothing else outside the engine. One writer thread commits at once
  and takes along what has queued meanwhile, which makes a durable log nearly free.
- A model is one entry of one dictionary; publishing is one assignment. The old one ends with its last request and is kept.
- Granian embedded in this process: its own command line starts a second process that survives a `kill -9` of the first
  and keeps the port.
- Keys are a snapshot of the whole (small) table, renewed several times a second by a thread: no query in a request.

Rejected: uvicorn with several processes (the kernel may hand all connections to one of them), Litestar's own multipart and
JSON body parsing (a wrong field name passes, broken JSON answers 500), its documentation pages (they load from foreign hosts),
prometheus_client's global registry, an asynchronous database driver.

Errors: every SutdolError reaches the client as an RFC 9457 problem, see `problems`.
"""
