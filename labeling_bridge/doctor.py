"""Does the bridge reach Label Studio, and Label Studio's people us? Checks for `sutdol doctor`, each from the side that counts.

    version    Label Studio's own word, among the ones we are tested with
    account    log-in or key -> a call that only an account may make
    origin     an https page may not show http images (mixed content); the address people use must be one of ours
    images     a signed address, asked for as the labeler's browser does: `Origin` sent, CORS header wanted
    webhook    a project of its own with our webhook, changed once: does the event arrive here? (deleted afterwards)

Where Label Studio or `serve` is not running the check says so and does not fail: `up` starts them.
Errors: SetupError and StudioError with the remedy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlparse
from uuid import uuid4

from sqlmodel import select

from labeling_bridge.account import fetch, is_ready
from labeling_bridge.pictures import image_url
from labeling_bridge.project import webhook_url
from labeling_bridge.routes import SELF_TEST, allowed_origins
from labeling_bridge.studio import Studio
from sutdol import keys
from sutdol.context import Context, open_context
from sutdol.errors import SetupError, StudioError
from sutdol.settings import Settings
from sutdol.tables import Event, Sample

SUPPORTED = ("1.23",)
"""Versions whose behaviour is measured; others usually work."""
HINT_WAIT_S = 8.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_version(settings: Settings) -> str:
    """Ask Label Studio what it is."""
    if not is_ready(settings.studio_url):
        return _down(settings)
    with Studio.open(open_context(settings)) as studio:
        found = studio.version()
    if not found.startswith(tuple(f"{v}." for v in SUPPORTED)):
        raise SetupError(
            f"Label Studio {found} is not among the tested versions ({', '.join(SUPPORTED)})",
            hint="it may work all the same; run `sutdol doctor` after every upgrade of Label Studio",
        )
    return f"{found} is a tested version"


def check_account(settings: Settings) -> str:
    """Log in as the bridge does, and ask for something that only an account may see."""
    if not is_ready(settings.studio_url):
        return _down(settings)
    with Studio.open(open_context(settings)) as studio:
        who = studio.whoami()
        studio.find_project("sutdol doctor: may this account list projects?")
    return f"works as {who}"


def check_origin(settings: Settings) -> str:
    """Addresses that a browser would refuse, found by looking at them."""
    studio, ours = urlparse(settings.studio_url), urlparse(settings.url)
    inner = ours.hostname in _LOOPBACK
    if studio.scheme == "https" and ours.scheme == "http" and not inner and settings.image_mode != "upload":
        raise SetupError(
            f"Label Studio is on https and images would come from {settings.url} by http: browsers block that",
            hint="put https before `serve` and set SUTDOL_PUBLIC_URL, or set SUTDOL_IMAGE_MODE=upload",
        )
    if inner and studio.hostname not in _LOOPBACK and settings.image_mode != "upload":
        raise SetupError(
            f"Label Studio is on {studio.hostname}, but images would come from {settings.url}, the labeler's own machine",
            hint="set SUTDOL_PUBLIC_URL to an address that labelers reach, or SUTDOL_IMAGE_MODE=upload",
        )
    return f"images for {', '.join(sorted(allowed_origins(settings)))} come from {settings.url}"


def check_images(settings: Settings) -> str:
    """Fetch one image as a labeler's browser would."""
    if settings.image_mode == "upload":
        return "are copied into Label Studio"
    context = open_context(settings)
    with context.database.read() as session:
        sample = session.exec(select(Sample).limit(1)).first()
    if sample is None:
        return "none is stored yet"
    origin = settings.studio_url
    try:
        status, headers = fetch(image_url(context, sample.id), origin)
    except StudioError:
        return f"`serve` does not answer on {settings.url}; not checked"
    if status != 200:
        raise SetupError(
            f"a signed image from {settings.url}: expected 200, found {status}",
            hint="is SUTDOL_PUBLIC_URL the address of this installation's `serve`?",
        )
    if headers.get("access-control-allow-origin") not in (origin, "*"):
        raise SetupError(
            f"a signed image carries no CORS header for {origin}; labelers would see an error and label blindly",
            hint="does a proxy strip Access-Control-Allow-Origin? Is SUTDOL_LABEL_STUDIO_URL what people type?",
        )
    return f"can be read from {origin}"


def check_webhook(settings: Settings) -> str:
    """Have Label Studio send one event through the road that answers take."""
    if not is_ready(settings.studio_url):
        return _down(settings)
    context = open_context(settings)
    try:
        fetch(f"{settings.url}/livez", settings.studio_url)
    except StudioError:
        return f"`serve` does not answer on {settings.url}; not checked"
    nonce = uuid4().hex
    with Studio.open(context) as studio:
        project_id = studio.create_project("sutdol doctor", f"{SELF_TEST}{nonce}", "<View></View>")
        try:
            secret = keys.secret(context.database, "label-studio-webhook")
            if studio.ensure_webhook(project_id, webhook_url(settings), secret, actions=["PROJECT_UPDATED"]) is None:
                raise SetupError(
                    f"Label Studio refuses the webhook {webhook_url(settings)}",
                    hint="it protects inner addresses: allow ours with USE_DEFAULT_BANNED_SUBNETS=false and "
                    "USER_ADDITIONAL_BANNED_SUBNETS there, and use a host name with a dot; until then labels come by poll",
                )
            studio.touch_project(project_id)
            arrived = _wait(context, nonce)
        finally:
            studio.delete_project(project_id)
    if not arrived:
        raise SetupError(
            f"Label Studio's event did not arrive on {webhook_url(settings)} within {HINT_WAIT_S:.0f} s",
            hint="can its machine reach that address? Set SUTDOL_PUBLIC_URL; until then labels come by poll",
        )
    return f"an event of Label Studio arrived on {settings.url}"


CHECKS: dict[str, Callable[[Settings], str]] = {
    "Label Studio's version": check_version,
    "the bridge's account": check_account,
    "browser origins": check_origin,
    "images for labelers": check_images,
    "webhook": check_webhook,
}


def _wait(context: Context, nonce: str) -> bool:
    deadline = time.monotonic() + HINT_WAIT_S
    while time.monotonic() < deadline:
        with context.database.read() as session:
            seen = select(Event).where(Event.kind == "bridge.self-test", Event.text == nonce)
            if session.exec(seen.limit(1)).first() is not None:
                return True
        time.sleep(0.1)
    return False


def _down(settings: Settings) -> str:
    return f"Label Studio does not answer on {settings.studio_url}; not checked"
