"""Messages to people where they are: mail, Slack, a webhook and a hundred other places, by apprise URLs.

    queue(session, ...) -> job `notify`, in the transaction of what happened -> handle -> apprise -> the services

Delivered at least once: a worker that dies between sending and saying so sends again. Nothing is queued without URLs.

Errors: SetupError when apprise is missing or a URL is none; BusyError when a service did not take it (tried again).
"""

from __future__ import annotations

from typing import Any

from sqlmodel import Session

from sutdol import jobs
from sutdol.errors import BusyError, SetupError
from sutdol.jobs import Handler, Running
from sutdol.settings import Settings


def queue(session: Session, settings: Settings, kind: str, title: str, text: str) -> None:
    """Tell people, if the settings say where and `kind` (done, failed, approval, drift) is among those wanted."""
    if settings.notify_urls and kind in [k.strip() for k in settings.notify_on.split(",")]:
        jobs.send(session, "notify", {"kind": kind, "title": title, "text": text})


def handle(running: Running) -> dict[str, Any]:
    """The handler of `notify`."""
    try:
        import apprise
    except ModuleNotFoundError as error:
        raise SetupError(
            "notifications need apprise, not installed here", hint="pip install 'sutdol[notify]'"
        ) from error
    settings, payload = running.context.settings, running.payload
    services = apprise.Apprise()
    for number, url in enumerate(settings.notify_urls.split(), 1):
        if not services.add(url):
            # The URL holds a password, so only its place is told.
            raise SetupError(
                f"SUTDOL_NOTIFY_URLS: apprise does not know the URL number {number}", hint="see apprise's list"
            )
    kinds = {"failed": "failure", "done": "success", "approval": "warning"}
    sent = services.notify(
        title=f"sutdol: {payload['title']}", body=payload["text"], notify_type=kinds.get(payload["kind"], "info")
    )
    if not sent:
        raise BusyError("a notification service did not take the message", hint="it is tried again")
    return {"services": len(services)}


HANDLERS: dict[str, Handler] = {"notify": handle}
