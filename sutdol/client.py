"""A small typed client for the predict API, synchronous and asynchronous.

    client = Client("http://127.0.0.1:8000", key)
    answer = client.predict("digits", image_bytes)
    client.feedback(answer.prediction_id, classes=["7"])

Errors: ApiError for every answer that is not 2xx, with the problem's own words; httpx.TransportError when nothing answers.
"""

from __future__ import annotations

from typing import Any, Self

import httpx
import msgspec

from sutdol.errors import SutdolError


class Found(msgspec.Struct, frozen=True):
    """One class or one object; `box` (x1, y1, x2, y2 in pixels) is there for detectors only."""

    name: str
    index: int = msgspec.field(name="class")
    confidence: float = 0.0
    box: dict[str, float] | None = None


class Answer(msgspec.Struct, frozen=True):
    """What the server said about one image; fields as in the OpenAPI document."""

    prediction_id: str
    model: str
    version: int
    predictions: list[Found]
    confidence: float
    ood_score: float | None = None
    unfamiliar: bool = False
    queued: dict[str, Any] | None = None
    unsure: bool = False
    """Only with `max_risk`: no answer is good enough for it, and `predictions` is empty."""


class ApiError(SutdolError):
    """The server refused or failed; `problem` is its RFC 9457 body."""

    code = "api"

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"), status=status)
        self.problem = problem


class _BatchEntry(msgspec.Struct):
    status: int
    answer: Answer | None = None
    problem: dict[str, Any] | None = None


class _BatchReply(msgspec.Struct):
    results: list[_BatchEntry]


class Client:
    """Synchronous; close it, or use it in a `with` block."""

    def __init__(self, url: str, key: str, *, timeout_s: float = 30.0) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout_s)

    def predict(self, model: str, image: bytes, *, max_risk: float | None = None) -> Answer:
        """Ask `model` about one encoded image (JPEG, PNG, WebP or GIF).

        Args:
            max_risk: accepted chance of a wrong answer, in [0, 1]; a riskier one comes as `unsure`.
        """
        reply = self._http.post(f"/v1/predict/{model}", content=image, headers=_IMAGE, params=_risk(max_risk))
        return _answer(reply)

    def predict_batch(
        self, model: str, images: list[bytes], *, max_risk: float | None = None
    ) -> list[Answer | ApiError]:
        """Ask about up to 64 images in one request; each has its answer or its own error, in the order given."""
        files = [("file", (str(i), image)) for i, image in enumerate(images)]
        return _answers(self._http.post(f"/v1/predict/{model}/batch", files=files, params=_risk(max_risk)))

    def feedback(self, prediction_id: str, **value: Any) -> None:
        """Tell the right answer: `classes=[...]` or `boxes=[...]`."""
        _checked(self._http.post(f"/v1/predictions/{prediction_id}/feedback", json=value))

    def get(self, path: str) -> Any:
        """Any other GET route, decoded."""
        return _checked(self._http.get(path)).json()

    def post(self, path: str, value: Any = None) -> Any:
        """Any other POST route, decoded."""
        return _checked(self._http.post(path, json=value)).json()

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """The same for asyncio; many requests may be in flight at once."""

    def __init__(self, url: str, key: str, *, timeout_s: float = 30.0, connections: int = 32) -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=timeout_s, limits=limits)

    async def predict(self, model: str, image: bytes, *, max_risk: float | None = None) -> Answer:
        """As `Client.predict`."""
        reply = await self._http.post(f"/v1/predict/{model}", content=image, headers=_IMAGE, params=_risk(max_risk))
        return _answer(reply)

    async def feedback(self, prediction_id: str, **value: Any) -> None:
        """As `Client.feedback`."""
        _checked(await self._http.post(f"/v1/predictions/{prediction_id}/feedback", json=value))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


_IMAGE = {"Content-Type": "application/octet-stream"}


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _answer(response: httpx.Response) -> Answer:
    return msgspec.json.decode(_checked(response).content, type=Answer)


def _answers(response: httpx.Response) -> list[Answer | ApiError]:
    entries = msgspec.json.decode(_checked(response).content, type=_BatchReply).results
    return [entry.answer or ApiError(entry.status, entry.problem or {}) for entry in entries]


def _risk(max_risk: float | None) -> dict[str, float]:
    return {} if max_risk is None else {"max_risk": max_risk}


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        problem = response.json()
    except ValueError:
        problem = {"detail": f"HTTP {response.status_code}: {response.text[:200]}"}
    raise ApiError(response.status_code, problem if isinstance(problem, dict) else {"detail": str(problem)})


def reachable(url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether `url` answers with anything below 500."""
    try:
        return httpx.get(url, timeout=timeout_s).status_code < 500
    except httpx.TransportError:
        return False
