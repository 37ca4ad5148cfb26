"""The real Label Studio as a child process of ours, from its own virtual environment.

    settings -> environment (prefixed variables only) -> process -> wait_ready -> studio.Studio

Its data lie in `home/label-studio`, its output in `home/label-studio.log`; where our database is PostgreSQL it gets one of its
own beside it (on SQLite it may lose predictions while people work, see `push`). The account of the bridge is made at its first
start. Its protection against requests to inner addresses stays on, with loopback alone allowed, because our webhook is there.

Errors: SetupError when the environment is missing, the port is taken, or it does not come up.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from urllib.parse import urlparse

import sqlalchemy as sa

from labeling_bridge.account import is_ready
from sutdol import keys
from sutdol.context import Context
from sutdol.errors import SetupError
from sutdol.process import require_free_port, start_child
from sutdol.settings import Settings, child_environment

LOG_NAME = "label-studio.log"
_LEAKING = ("HOST", "PORT", "USERNAME", "PASSWORD", "DEBUG", "HOSTNAME", "SECRET_KEY", "PYTHONPATH", "PYTHONHOME")
"""Label Studio falls back to bare names; these are set by desktops and containers for other reasons."""
_INNER_NETWORKS = (
    "0.0.0.0/8,10.0.0.0/8,100.64.0.0/10,169.254.0.0/16,172.16.0.0/12,192.0.0.0/24,192.168.0.0/16,198.18.0.0/15,"
    "224.0.0.0/4,240.0.0.0/4,::/128,::ffff:0:0:0/96,64:ff9b::/96,64:ff9b:1::/48,2002::/16,fc00::/7,fe80::/10,ff00::/8"
)


def start(context: Context) -> subprocess.Popen[bytes]:
    """Start Label Studio and return at once; `wait_ready` tells when it answers (half a minute at its first start).

    Ending it is the caller's business: `terminate`, then `wait`.

    Raises:
        SetupError: its environment is missing, or the port is in use.
    """
    settings = context.settings
    program = settings.label_studio_venv.absolute() / "bin" / "label-studio"
    if not program.exists():
        raise SetupError(
            f"Label Studio is not installed in {settings.label_studio_venv}",
            hint="run `make setup`, or set SUTDOL_LABEL_STUDIO_VENV or SUTDOL_LABEL_STUDIO_URL",
        )
    port = settings.label_studio_port
    require_free_port("127.0.0.1", port, remedy="choose another with SUTDOL_LABEL_STUDIO_PORT")
    password = settings.label_studio_password or keys.secret(context.database, "label-studio-password")
    data = settings.home.absolute() / "label-studio"
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    inherited = child_environment(settings)
    environment = {
        name: value
        for name, value in inherited.items()
        if name not in _LEAKING and not name.startswith(("SUTDOL_", "LABEL_STUDIO_", "HEARTEX_", "DJANGO_"))
    }
    environment |= {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "LABEL_STUDIO_USERNAME": settings.label_studio_email,
        "LABEL_STUDIO_PASSWORD": password,
        "LABEL_STUDIO_PORT": str(port),
        "LABEL_STUDIO_HOST": _host(settings.label_studio_url, port),
        "LABEL_STUDIO_DEBUG": "false",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": "true",
        "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": "false",
        "LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS": _INNER_NETWORKS,
        "PYTHONUNBUFFERED": "1",
    }
    environment |= database_environment(settings)
    command = [str(program), "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    return start_child(command, environment=environment, log=settings.home / LOG_NAME, folder=data)


def database_environment(settings: Settings) -> dict[str, str]:
    """How Label Studio is told about its database; makes the database when it is missing. Empty: SQLite in its data folder.

    Raises:
        SetupError: the database cannot be reached or made.
    """
    url = settings.label_studio_database_url
    if not url and settings.database.startswith("postgresql"):
        ours = sa.engine.make_url(settings.database)
        url = ours.set(database=f"{ours.database}_label_studio").render_as_string(hide_password=False)
    if not url:
        return {}
    wanted = sa.engine.make_url(url)
    _ensure_database(settings, wanted)
    return {
        "DJANGO_DB": "default",
        "POSTGRE_NAME": wanted.database or "",
        "POSTGRE_USER": wanted.username or "",
        "POSTGRE_PASSWORD": wanted.password or "",
        "POSTGRE_HOST": wanted.host or "localhost",
        "POSTGRE_PORT": str(wanted.port or 5432),
    }


def _ensure_database(settings: Settings, wanted: sa.engine.URL) -> None:
    beside_ours = settings.database.startswith("postgresql") and not settings.label_studio_database_url
    known = sa.engine.make_url(settings.database) if beside_ours else wanted
    try:
        engine = sa.create_engine(
            known, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool, connect_args={"connect_timeout": 5}
        )
        with engine.connect() as connection:
            query = sa.text("SELECT 1 FROM pg_database WHERE datname = :name")
            if connection.execute(query, {"name": wanted.database}).first() is None:
                quoted = engine.dialect.identifier_preparer.quote_identifier(wanted.database or "")
                connection.execute(sa.text(f"CREATE DATABASE {quoted}"))
    except (sa.exc.SQLAlchemyError, ModuleNotFoundError) as error:
        raise SetupError(
            f"Label Studio's database {wanted.database!r} on {wanted.host} cannot be opened or made: {type(error).__name__}",
            hint="create it for that user, or name another one with SUTDOL_LABEL_STUDIO_DATABASE_URL",
        ) from error


def wait_ready(
    url: str, timeout_s: float = 180.0, *, process: subprocess.Popen[bytes] | None = None, log: Path | None = None
) -> None:
    """Return as soon as Label Studio at `url` is up.

    Raises:
        SetupError: it ended, or did not come up in time; with the last lines of its log.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise SetupError(f"Label Studio ended with status {process.returncode}", hint=_last_words(log))
        if is_ready(url):
            return
        time.sleep(0.25)
    raise SetupError(f"Label Studio at {url} did not come up within {timeout_s:.0f} s", hint=_last_words(log))


def _host(url: str, port: int) -> str:
    """The address under which browsers see it; Label Studio builds links with it."""
    return url.rstrip("/") if urlparse(url).scheme in ("http", "https") else f"http://127.0.0.1:{port}"


def _last_words(log: Path | None) -> str:
    if log is None or not log.exists():
        return f"see {LOG_NAME} in the home folder"
    lines = log.read_text(errors="replace").strip().splitlines()[-5:]
    return f"see {log}: " + " | ".join(lines)
