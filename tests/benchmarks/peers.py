"""Other servers with the same model, decoder and post-processing, for the paired runs; each started when it is installed.

PROGRAMS: name -> (module it needs, program text, command). The program gets the model's file, the port and the task; each
answers `POST /predict` with a raw JPEG. All run two workers (this machine's cores), ONNX Runtime with intra_op = 1.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMON = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
os.environ["OMP_NUM_THREADS"] = "1"
from pathlib import Path
from tests.benchmarks import limit
ONNX, PORT, DETECT = os.environ["PEER_ONNX"], int(os.environ["PEER_PORT"]), os.environ["PEER_DETECT"] == "1"

def open_session():
    session = limit._session(Path(ONNX).read_bytes())
    return session, session.get_inputs()[0].name, session.get_inputs()[0].shape[2]

def said(row):
    if DETECT:
        return {{"boxes": len(limit._boxes(row))}}
    best = row.argmax()
    return {{"class": int(best), "score": float(row[best])}}
"""
FASTAPI = (
    COMMON
    + """
import asyncio
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
app = FastAPI()
session, name, side = open_session()

def answer(data):
    tensor = limit._tensor(data, side, detect=DETECT)
    (scores,) = session.run(["scores"], {name: tensor[None]})
    return said(scores[0])

@app.post("/predict")
async def predict(request: Request):
    return await run_in_threadpool(answer, await request.body())
"""
)
LITSERVE = (
    COMMON
    + """
import litserve as ls
from fastapi import Request

class Api(ls.LitAPI):
    def setup(self, device):
        self.session, self.name, self.side = open_session()
    def decode_request(self, request: Request):
        return request["file"].file.read()
    def predict(self, data):
        tensor = limit._tensor(data, self.side, detect=DETECT)
        (scores,) = self.session.run(["scores"], {self.name: tensor[None]})
        return said(scores[0])
    def encode_response(self, output):
        return output

if __name__ == "__main__":
    ls.LitServer(Api(), accelerator="cpu", workers_per_device=2).run(
        host="127.0.0.1", port=PORT, generate_client_file=False)
"""
)
MOSEC = (
    COMMON
    + """
from mosec import Server, Worker
import json
import numpy as np

class Predict(Worker):
    def __init__(self):
        self.session, self.name, self.side = open_session()
    def deserialize(self, data):
        return data
    def serialize(self, data):
        return json.dumps(data).encode()
    def forward(self, batch):
        tensors = [limit._tensor(data, self.side, detect=DETECT) for data in batch]
        (scores,) = self.session.run(["scores"], {self.name: np.stack(tensors)})
        return [said(row) for row in scores]

if __name__ == "__main__":
    server = Server()
    server.append_worker(Predict, num=2, max_batch_size=4, max_wait_time=1, route="/predict")
    server.run()
"""
)
FORM = "peer-boundary"
"""LitServe reads JSON or forms, no raw bodies."""
FORMS = {"LitServe"}
PROGRAMS: dict[str, tuple[str, str, list[str]]] = {
    "FastAPI": (
        "fastapi",
        FASTAPI,
        ["-m", "uvicorn", "peer:app", "--port", "{port}", "--workers", "2", "--no-access-log"],
    ),
    "LitServe": ("litserve", LITSERVE, ["peer.py"]),
    "mosec": ("mosec", MOSEC, ["peer.py", "--port", "{port}"]),
}


def available(python: Path | None) -> list[str]:
    """Names of the peers that this Python can start; none without one."""
    if python is None:
        return []
    found = []
    for name, (module, _, _) in PROGRAMS.items():
        words = [str(python), "-c", f"import {module}"]
        if subprocess.run(words, capture_output=True, check=False).returncode == 0:
            found.append(name)
    return found


def in_a_form(image: bytes) -> bytes:
    """The body of a form with one file."""
    head = (
        f'--{FORM}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    return head.encode() + image + f"\r\n--{FORM}--\r\n".encode()


@contextlib.contextmanager
def started(python: Path, peer: str, onnx: Path, *, detect: bool) -> Iterator[tuple[str, dict[str, str], int]]:
    """(URL, headers, process id) of a peer that answers."""
    _, text, command = PROGRAMS[peer]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "peer.py").write_text(text)
        environment = dict(os.environ) | {
            "PEER_ONNX": str(onnx),
            "PEER_PORT": str(port),
            "PEER_DETECT": str(int(detect)),
        }
        with (Path(folder) / "log").open("wb") as log:
            words = [str(python), *(word.format(port=port) for word in command)]
            process = subprocess.Popen(
                words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            _wait(process, port, Path(folder) / "log")
            kind = f"multipart/form-data; boundary={FORM}" if peer in FORMS else "image/jpeg"
            yield f"http://127.0.0.1:{port}/predict", {"Content-Type": kind}, process.pid
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            time.sleep(2)  # the workers behind the port load the model
            return
        time.sleep(0.2)
    raise RuntimeError(f"the peer does not answer: {log.read_text(errors='replace')[-2000:]}")
