"""All settings as data: name, default, unit, help, in one frozen object, read once at start.

The only file that reads the environment. Every setting `x` is the variable `SUTDOL_X`; `.env` in the working folder is
read too. `SUTDOL_X_FILE` names a file that holds the value instead: container engines hand secrets over as files.
`doctor`, `sutdol settings` and the README's table are made from `Settings.model_fields`.

Errors: SetupError with the setting's name, what was expected and what was found.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sutdol.errors import SetupError

_PASSWORD_IN_URL = re.compile(r"(://[^/@:]*:)[^/@]*@")
_SECRET = ("_key", "_password", "notify_urls")
"""How the names of settings end that are never shown."""


class _Files(PydanticBaseSettingsSource):
    """Values of `SUTDOL_X_FILE`: the text of the file without the line break at its end."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[str | None, str, bool]:
        variable = f"SUTDOL_{field_name.upper()}"
        path = os.environ.get(f"{variable}_FILE")
        if not path:
            return None, field_name, False
        if variable in os.environ:
            raise SetupError(f"setting {variable}: given twice, as {variable} and as {variable}_FILE")
        try:
            return Path(path).read_text().rstrip("\r\n"), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SetupError(f"setting {variable}_FILE: {path} cannot be read: {reason}") from error

    def __call__(self) -> dict[str, str]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """One frozen object for a whole process; hand it over, never import it."""

    model_config = SettingsConfigDict(env_prefix="SUTDOL_", env_file=".env", extra="ignore", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What wins over what: arguments, files, the environment, `.env`."""
        return init_settings, _Files(settings_cls), env_settings, dotenv_settings

    home: Path = Field(Path(".sutdol"), description="Folder for the database, images, models, runs and secrets.")
    database_url: str = Field("", description="SQLAlchemy URL. Empty: SQLite in the home folder.")
    store_url: str = Field("", description="Where images and models live. Empty: a folder in the home folder.")
    store_endpoint: str = Field("", description="Address of an S3 service that is not Amazon's, for s3:// stores.")
    store_region: str = Field("", description="Its region. Empty: what the AWS variables or the machine's role say.")
    store_access_key: str = Field("", repr=False, description="Access key for it. Empty: as with the region.")
    store_secret_key: str = Field("", repr=False, description="The secret that belongs to it.")
    broker_url: str = Field("", description="Queue of jobs. Empty: the database itself.")

    host: str = Field("127.0.0.1", description="Address that `serve` listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port that `serve` listens on.")
    public_url: str = Field("", description="URL under which browsers reach `serve`. Empty: http://HOST:PORT.")
    cors_origins: str = Field("", description="Browser origins that may call the API, separated by commas; * for any.")
    max_body_bytes: int = Field(20_000_000, ge=1_000, description="Largest request body, bytes.")
    inference_threads: int = Field(0, ge=0, description="Inference threads. 0: one per core.")
    queue_limit: int = Field(256, ge=1, description="Requests waiting for inference before new ones get 503.")
    keys_stale_s: float = Field(
        300.0, gt=0, description="Seconds that known API keys pass while the database cannot be read."
    )
    key_rate: float = Field(
        0.0, ge=0, description="Requests a second of one key, by server; ten seconds' worth at once. 0: no limit."
    )
    models_memory_bytes: int = Field(
        0, ge=0, description="What loaded models may take; others load when asked for, the least used go. 0: no limit."
    )
    pinned_models: str = Field("", description="Models that are loaded at start and stay, separated by commas.")
    model_queue_limits: str = Field(
        "", description="Requests that may wait for one model before it answers 429: NAME=N, separated by commas."
    )
    self_test_bytes: int = Field(
        2_000_000_000,
        ge=100_000_000,
        description="Memory in which a model that we did not train must show what it does.",
    )
    self_test_timeout_s: float = Field(60.0, gt=0, description="Seconds that it has for it.")
    watch_s: float = Field(600.0, ge=0, description="Seconds after a swap in which the version before stands by.")
    watch_share: float = Field(
        0.05, ge=0, le=1, description="Share of answers that it repeats meanwhile, unseen, for comparison."
    )
    rollback_errors: float = Field(
        0.05, ge=0, le=1, description="Share of failures at which a new version is taken back. 0: never."
    )
    rollback_slower: float = Field(
        3.0, ge=0, description="Times the time of the version before at which a new one is taken back. 0: never."
    )
    rollback_disagreement: float = Field(
        0.0, ge=0, le=1, description="Share of changed answers at which a new version is taken back. 0: never."
    )
    spool_dir: str = Field(
        "", description="Folder for the log while the database or the store is gone. Empty: in the home folder."
    )
    spool_bytes: int = Field(256_000_000, ge=0, description="What it may hold; then requests get 503. Bytes.")
    providers: str = Field(
        "", description="ONNX Runtime providers by preference, separated by commas. Empty: best found."
    )

    batch_folder: str = Field(
        "", description="Folder whose content the API may name as the source of a batch. Empty: only uploads."
    )
    batch_upload_bytes: int = Field(
        4_000_000_000, ge=1_000, description="Largest archive or video that is uploaded, bytes."
    )

    label_rate: float = Field(0.05, ge=0, le=1, description="Share of traffic that may be picked for labelling.")
    drawn_share: float = Field(0.5, ge=0, le=1, description="Part of the label budget for the random (`drawn`) arm.")
    arms: str = Field(
        "unfamiliar,empty,weak,diverse",
        description="Arms beside `drawn`, separated by commas; each gets an equal share and what those before it leave.",
    )
    labels_per_day: int = Field(500, ge=0, description="Labels that people are asked for in a day.")
    max_open_tasks: int = Field(500, ge=1, description="Unanswered tasks in Label Studio before nothing more is sent.")
    annotators_per_task: int = Field(1, ge=1, description="People who must answer a task before its label counts.")
    unlabelable_after_skips: int = Field(2, ge=1, description="People who skip a task before nobody is asked any more.")
    blind_share: float = Field(
        0.05, ge=0, le=1, description="Share of tasks without pre-annotation, to measure anchoring."
    )
    gold_share: float = Field(
        0.02, ge=0, le=0.5, description="Share of tasks whose answer is known, to measure labelers."
    )
    keep_share: float = Field(
        0.0, ge=0, le=1, description="Share of the images that no arm picked that is kept, for auto-labels."
    )
    auto_label_error: float = Field(
        0.0, ge=0, le=0.5, description="Error that labels made without people may have. 0: there are none."
    )
    clip_model: str = Field(
        "ViT-B-32", description="open_clip architecture for labels suggested by words: a name, or a .json description."
    )
    clip_weights: str = Field("", description="Its weights, a .safetensors file. Empty: no suggestions by words.")
    second_looks: int = Field(
        20, ge=0, description="Labels that are probably wrong, asked about again after a promotion. 0: none."
    )
    retrain_after_labels: int = Field(100, ge=1, description="New labels that start a retraining.")
    retrain_on_drift_labels: int = Field(
        30, ge=1, description="New labels that start a retraining while a drift alarm is on."
    )
    retrain_after_growth: float = Field(
        0.0, ge=0, description="New labels that start one, in % of the last training's images. 0: only the count above."
    )
    retrain_every_s: float = Field(
        0.0, ge=0, description="Seconds after which any new label starts one. 0: no schedule; 86400: every day."
    )
    retrain_debounce_s: float = Field(
        0.0, ge=0, description="Seconds without a further label that a training waits for; ten times that at most."
    )
    retrain_cooldown_s: float = Field(60.0, ge=0, description="Seconds between two retrainings of one model.")
    promotion: str = Field(
        "auto", pattern="^(auto|manual)$", description="What happens when the gate passes: auto or manual."
    )

    tensorflow_venv: Path = Field(
        Path(".venv-tensorflow"), description="Virtual environment with onnx2tf, for exports to TensorFlow."
    )
    mlflow_url: str = Field(
        "", description="MLflow server that gets a copy of the registry (http://..., sqlite:///...). Empty: none."
    )
    mlflow_interval_s: float = Field(60.0, gt=0, description="Seconds between two looks at what the copy lacks.")

    notify_urls: str = Field(
        "", repr=False, description="Apprise URLs (mailto://..., slack://..., json://...), separated by spaces."
    )
    notify_on: str = Field("done,failed,approval,drift", description="What people are told of.")

    label_studio_url: str = Field("", description="URL of Label Studio. Empty: the one that `up` starts.")
    label_studio_api_key: str = Field("", repr=False, description="Its access token. Empty: made by log-in.")
    label_studio_port: int = Field(8080, ge=1, le=65535, description="Port of the Label Studio that `up` starts.")
    label_studio_venv: Path = Field(Path(".venv-label-studio"), description="Virtual environment with Label Studio.")
    label_studio_database_url: str = Field(
        "", description="PostgreSQL for the Label Studio that `up` starts. Empty: beside ours, or SQLite where ours is."
    )
    label_studio_email: str = Field("bridge@sutdol.local", description="Account that the bridge uses.")
    label_studio_password: str = Field(
        "", repr=False, description="Its password. Empty: generated, kept in the home folder."
    )

    image_mode: str = Field(
        "url",
        pattern="^(url|presign|upload)$",
        description="How labelers get images: url (from us), presign (from S3), upload (copied into Label Studio).",
    )
    ml_backend: bool = Field(False, description="Offer the champion to Label Studio as an ML backend, /label-studio/*.")
    ml_backend_password: str = Field(
        "", repr=False, description="Password of that backend's user `sutdol`. Empty: generated, in the database."
    )
    export_interval_s: float = Field(
        86_400.0, gt=0, description="Seconds between two exports of all labels to the store."
    )

    clock_tick_s: float = Field(1.0, gt=0, description="Seconds between two looks of the clock.")
    poll_interval_s: float = Field(15.0, gt=0, description="Seconds between two polls of Label Studio.")
    window_interval_s: float = Field(5.0, gt=0, description="Seconds between two choices of what to label.")
    monitor_interval_s: float = Field(10.0, gt=0, description="Seconds between two looks at drift and live accuracy.")
    sweep_interval_s: float = Field(600.0, gt=0, description="Seconds between two full comparisons with Label Studio.")
    lease_s: float = Field(12.0, gt=0, description="Seconds after its last heartbeat that a job counts as abandoned.")
    heartbeat_s: float = Field(3.0, gt=0, description="Seconds between two heartbeats of a running job.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error.")

    @property
    def database(self) -> str:
        """The SQLAlchemy URL really used."""
        return self.database_url or f"sqlite:///{(self.home / 'sutdol.db').absolute()}"

    @property
    def store(self) -> str:
        """The store URL really used."""
        return self.store_url or f"file://{(self.home / 'store').absolute()}"

    @property
    def store_options(self) -> dict[str, str]:
        """What an S3 store is opened with beside its URL, in obstore's words."""
        given = {
            "endpoint": self.store_endpoint,
            "region": self.store_region,
            "access_key_id": self.store_access_key,
            "secret_access_key": self.store_secret_key,
        }
        return {name: value for name, value in given.items() if value}

    @property
    def pinned(self) -> list[str]:
        """Names of models that are never let go."""
        return [name.strip() for name in self.pinned_models.split(",") if name.strip()]

    @property
    def queue_limits(self) -> dict[str, int]:
        """Requests that may wait, by model.

        Raises:
            SetupError: not of the form NAME=N,NAME=N.
        """
        found = {}
        for part in filter(None, (p.strip() for p in self.model_queue_limits.split(","))):
            name, _, number = part.partition("=")
            if not name or not number.isdecimal() or int(number) < 1:
                raise SetupError(f"setting SUTDOL_MODEL_QUEUE_LIMITS: expected NAME=N, found {part!r}")
            found[name] = int(number)
        return found

    @property
    def spool(self) -> Path:
        """The folder of the spool."""
        return Path(self.spool_dir) if self.spool_dir else self.home / "spool"

    @property
    def broker(self) -> str:
        """The broker URL really used; the database's own URL when none was given."""
        return self.broker_url or self.database

    @property
    def url(self) -> str:
        """The address under which browsers and Label Studio reach `serve`, without a trailing slash."""
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def studio_url(self) -> str:
        """The address of Label Studio, without a trailing slash."""
        return (self.label_studio_url or f"http://127.0.0.1:{self.label_studio_port}").rstrip("/")

    @property
    def provider_names(self) -> list[str]:
        """Wanted ONNX Runtime providers, best first; empty means "best found"."""
        return [p.strip() for p in self.providers.split(",") if p.strip()]

    @property
    def origins(self) -> list[str]:
        """Browser origins that may call the API; Label Studio's own always may fetch images."""
        return [o.strip().rstrip("/") for o in self.cors_origins.split(",") if o.strip()]


def load(**overrides: object) -> Settings:
    """Settings from the environment, then `.env`, then defaults; keyword arguments win over all of them.

    Raises:
        SetupError: a value of the wrong kind or outside its range.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        raise SetupError(
            f"setting SUTDOL_{name.upper()}: {first['msg']}, found {first.get('input')!r}", hint="see `sutdol settings`"
        ) from error


def describe() -> list[tuple[str, str, str, str]]:
    """(name, variable, default, meaning) of every setting, in order; `sutdol settings` and the README's table."""
    return [
        (name, f"SUTDOL_{name.upper()}", str(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def effective(settings: Settings) -> list[tuple[str, str, str, str]]:
    """(variable, value in force, default, meaning) of every setting; secrets are shown as `set` or empty, in URLs as ***."""
    rows = []
    for name, variable, default, meaning in describe():
        value = getattr(settings, name)
        secret = name.endswith(_SECRET)
        shown = ("set" if value else "") if secret else without_passwords(str(value))
        rows.append((variable, shown, default, meaning))
    return rows


def without_passwords(text: str) -> str:
    """Text that may hold URLs, their passwords as ***."""
    return _PASSWORD_IN_URL.sub(r"\1***@", text)


def child_environment(settings: Settings, **extra: str) -> dict[str, str]:
    """The environment for a child process of ours that must see the same settings; `extra` is added as it is.

    Every setting that differs from its default is passed on, paths made absolute.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SUTDOL_")}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, Path):
            value = value.absolute()
        environment[f"SUTDOL_{name.upper()}"] = str(value)
    return environment | extra
