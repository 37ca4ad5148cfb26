"""Every expected failure of sutdol: a code, an HTTP status, a message, and a hint when there is a remedy.

    SutdolError
    ├── InputError            400  the caller sent something that cannot be used
    │   ├── ImageError        400  not an image, truncated, broken (413: too large, 415: a kind we do not read)
    │   └── DatasetError      422  a data set that cannot be imported; names file and line
    ├── AuthError             401  no key, unknown key, expired key (403: a key without the scope)
    ├── NotFoundError         404  an unknown model, version, prediction; lists the known ones
    ├── ConflictError         409  the state forbids it: nothing to roll back to, version refused
    ├── BusyError             503  the queue is full, try again after `retry_after_s`
    ├── ModelError            500  a model that cannot be loaded, or failed on an image
    │   └── NotFiniteError    500  it answered with something that is not a finite number
    ├── SetupError            500  the installation: port in use, missing extra, wrong setting
    ├── StudioError           502  Label Studio is unreachable or answered with something unexpected
    ├── TrainingError         500  the training child failed; the text is its own last words
    └── Cancelled             499  somebody asked for it to stop

Messages name the thing, what was expected, what was found; the hint says what to do. They are shown to clients, so they
hold no paths of the server, no keys and no other people's data (SetupError and TrainingError are for operators only).
"""

from __future__ import annotations

from typing import ClassVar


class SutdolError(Exception):
    """Base of all expected failures; `str(error)` is the message followed by the hint."""

    code: ClassVar[str] = "error"
    status: int = 500

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if status is not None:
            self.status = status

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InputError(SutdolError):
    code = "invalid-input"
    status = 400


class ImageError(InputError):
    code = "invalid-image"


class DatasetError(InputError):
    code = "invalid-dataset"
    status = 422


class AuthError(SutdolError):
    code = "unauthorized"
    status = 401


class NotFoundError(SutdolError):
    code = "not-found"
    status = 404


class ConflictError(SutdolError):
    code = "conflict"
    status = 409


class BusyError(SutdolError):
    code = "busy"
    status = 503

    def __init__(self, message: str, *, retry_after_s: int = 1, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class ModelError(SutdolError):
    code = "model-error"


class NotFiniteError(ModelError):
    pass


class SetupError(SutdolError):
    code = "setup"


class StudioError(SutdolError):
    code = "label-studio"
    status = 502


class TrainingError(SutdolError):
    code = "training"


class Cancelled(SutdolError):
    code = "cancelled"
    status = 499


def unknown(kind: str, name: object, known: list[str]) -> NotFoundError:
    """The one wording for "no such thing": names what was asked for and lists what there is (at most 20).

    >>> str(unknown("model", "cat", ["digits"]))
    "unknown model 'cat' (known: digits)"
    """
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return NotFoundError(
        f"unknown {kind} {str(name)!r}", hint=f"known: {shown}" if known else f"there is no {kind} yet"
    )
