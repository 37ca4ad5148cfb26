"""One account on one Label Studio server: log-in, tokens, plain HTTP. `studio.Studio` adds what the bridge asks for.

    settings -> Account -> PAT (kept in a file, 0600; made again by form log-in when lost) -> access token (300 s) -> ask

Errors: StudioError names what was asked and what came; UnknownOutcome is a StudioError after which a write may or may not
have happened (timeout, lost connection, 5xx): look before doing it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from labeling_bridge.tokens import TokenFile
from sutdol import keys
from sutdol.context import Context
from sutdol.errors import StudioError

T = TypeVar("T")
_START = "start it with `sutdol up` or set SUTDOL_LABEL_STUDIO_URL"


class UnknownOutcome(StudioError):
    """A write may or may not have happened, and the server may still be at it."""


class Account:
    """Thread-safe; close it."""

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        email: str = "",
        password: str = "",
        token_file: Path | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """`key` (a PAT or a legacy token) is used when given; else the account logs in with `email` and `password`."""
        self.url = url.rstrip("/")
        self._key, self._email, self._password = key, email, password
        self._tokens = TokenFile(token_file, self.url, email)
        self._lock = threading.Lock()
        self._access, self._access_until = "", 0.0
        # Loading certificates takes 30 ms, for every client and every job; both clients speak to `url` alone.
        encrypted = self.url.startswith("https:")
        self._plain = httpx.Client(base_url=self.url, timeout=timeout_s, verify=encrypted)
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, auth=_Bearer(self), verify=encrypted)

    @classmethod
    def open(cls, context: Context) -> Self:
        """The bridge's own account on the Label Studio of these settings."""
        settings = context.settings
        return cls(
            settings.studio_url,
            key=settings.label_studio_api_key,
            email=settings.label_studio_email,
            password=settings.label_studio_password or keys.secret(context.database, "label-studio-password"),
            token_file=settings.home / "label-studio.json",
        )

    def close(self) -> None:
        self._plain.close()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, method: str, path: str, *, allowed: tuple[int, ...] = (), **kwargs: Any) -> httpx.Response:
        """Any call as this account; statuses in `allowed` are the caller's to judge.

        Raises:
            StudioError: another status, or no server. UnknownOutcome.
        """
        response = self._try(f"{method} {path}", lambda: self._http.request(method, path, **kwargs))
        if response.is_success or response.status_code in allowed:
            return response
        raise unexpected(f"{method} {path}", response)

    def _try(self, asked: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except httpx.ConnectError as error:
            raise StudioError(f"Label Studio at {self.url} does not answer", hint=_START) from error
        except httpx.HTTPError as error:
            text = f"Label Studio at {self.url}, {asked}: no answer ({type(error).__name__})"
            raise UnknownOutcome(text, hint="it may have been done all the same") from error

    def authorization(self, *, stale: str = "") -> str:
        """The Authorization header; a new access token when the last one is about to run out or equals `stale`.

        Raises:
            StudioError: neither key, kept token nor log-in work.
        """
        if self._key and self._key.count(".") != 2:
            return f"Token {self._key}"
        with self._lock:
            if time.monotonic() >= self._access_until or self._access == stale:
                self._access, seconds = self._refresh(stale)
                self._access_until = time.monotonic() + seconds
            return self._access

    def _refresh(self, stale: str) -> tuple[str, float]:
        """An access token and for how many seconds to use it."""
        for token in (self._key or self._tokens.token(), ""):
            if not token and self._key:
                raise StudioError(
                    f"Label Studio at {self.url} refuses the key", hint="check SUTDOL_LABEL_STUDIO_API_KEY"
                )
            kept = self._tokens.access(token)
            if kept is not None and kept[0] != stale:
                return kept
            pat = token or self._log_in()
            asked = lambda pat=pat: self._plain.post("/api/token/refresh/", json={"refresh": pat})  # noqa: E731
            response = self._try("refresh the token", asked)
            if response.status_code == 200:
                access = f"Bearer {response.json()['access']}"
                return access, self._tokens.keep(self._tokens.token() if self._key else pat, pat, access)
            if response.status_code >= 500 or not token:
                raise unexpected("refresh the token", response)
        raise AssertionError("unreachable")

    def _log_in(self) -> str:
        """Log in by the form, make a PAT (an old one whose copy is lost is given up), keep it."""
        with httpx.Client(base_url=self.url, timeout=30) as session:
            self._try("log in", lambda: form_log_in(session, self._email, self._password))
            headers = {"X-CSRFToken": session.cookies["csrftoken"], "Referer": self.url}
            made = self._try("make a token", lambda: session.post("/api/token/", headers=headers))
            if made.status_code == 409:
                for old in session.get("/api/token/").json():
                    session.post("/api/token/blacklist/", json={"refresh": old["token"]}, headers=headers)
                made = session.post("/api/token/", headers=headers)
            if made.status_code != 201:
                raise unexpected("make a token", made)
        token = str(made.json()["token"])
        self._tokens.keep(token)
        return token


class _Bearer(httpx.Auth):
    """Puts the access token on every request; after a 401 (nothing was done) once more with a fresh one."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        used = self._account.authorization()
        request.headers["Authorization"] = used
        response = yield request
        if response.status_code == 401 and used.startswith("Bearer "):
            request.headers["Authorization"] = self._account.authorization(stale=used)
            yield request


def is_ready(url: str) -> bool:
    """Whether Label Studio answers at `url` and says that it is up."""
    try:
        response = httpx.get(f"{url.rstrip('/')}/health", timeout=5)
        return response.status_code == 200 and response.json().get("status") == "UP"
    except (httpx.HTTPError, ValueError):
        return False


def fetch(url: str, origin: str) -> tuple[int, dict[str, str]]:
    """(status, headers in lower case) of a GET as a page of `origin` would send it.

    Raises:
        StudioError: nobody answers.
    """
    try:
        response = httpx.get(url, headers={"Origin": origin}, timeout=5)
    except httpx.HTTPError as error:
        raise StudioError(f"{url.split('?', 1)[0]} does not answer ({type(error).__name__})") from error
    return response.status_code, {k.lower(): v for k, v in response.headers.items()}


def form_log_in(session: httpx.Client, email: str, password: str) -> None:
    """Log `session` in through the page's form.

    Raises:
        StudioError: wrong e-mail or password.
    """
    page = session.get("/user/login/")
    if "csrftoken" not in session.cookies:
        raise unexpected("log-in page", page)
    body = {"email": email, "password": password, "csrfmiddlewaretoken": session.cookies["csrftoken"]}
    response = session.post("/user/login/", data=body, headers={"Referer": f"{session.base_url}user/login/"})
    if response.status_code != 302:
        raise StudioError(
            f"Label Studio at {session.base_url} refuses the log-in of {email}",
            hint="set SUTDOL_LABEL_STUDIO_EMAIL and SUTDOL_LABEL_STUDIO_PASSWORD, or SUTDOL_LABEL_STUDIO_API_KEY",
        )


def sign_up(invite_url: str, email: str, password: str) -> None:
    """Make an account as a person would: open the invite link, fill in the form.

    Raises:
        StudioError: the link is not valid, or the form is refused (an account of that name, a short password).
    """
    with httpx.Client(timeout=30) as session:
        try:
            session.get(invite_url)
            body = {"email": email, "password": password, "csrfmiddlewaretoken": session.cookies.get("csrftoken", "")}
            response = session.post(invite_url, data=body, headers={"Referer": invite_url})
        except httpx.HTTPError as error:
            raise StudioError(f"sign-up page cannot be reached: {type(error).__name__}", hint=_START) from error
    if response.status_code != 302:
        raise StudioError(
            f"Label Studio refuses to sign {email} up ({response.status_code})",
            hint="is there an account of that name?",
        )


def unexpected(asked: str, response: httpx.Response) -> StudioError:
    kind = UnknownOutcome if response.status_code >= 500 else StudioError
    url = response.url.copy_with(path="/", query=None)
    return kind(f"Label Studio at {url}, {asked}: found {response.status_code} {explain(response)}")


def explain(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.text[:200]
    if not isinstance(body, dict):
        return str(body)[:500]
    return str(body.get("validation_errors") or body.get("detail") or body)[:500]
