"""From labels to a better version: data sets, training, export, evaluation, the gate.

    labels -> dataset version (frozen) -> fit in a child process -> ONNX -> calibrated bundle -> judged against the champion
           -> decision record -> promoted, refused, or waiting for a person

Decided: training runs in a child process, one per device, so that its memory, its device and its crashes are its own and
the worker's heartbeat never starves. Only `retrain/families` knows torch; everything after the export, judging included,
goes through `sutdol.predictor`, the code that will serve the model. Weights travel as safetensors, models as one ONNX file.

Rejected: training inside the worker (a segmentation fault would take the worker along); Lightning and other trainers (the
loop is fifty lines); accepting `.pt` files (pickles run code); MLflow as the registry (see `sutdol.registry`).
"""
