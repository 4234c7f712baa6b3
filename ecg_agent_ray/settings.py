"""Where things are kept, read from the environment once and passed on.

Standard variables are honoured under their own names (``MLFLOW_TRACKING_URI``, ``RAY_ADDRESS``,
``HF_HOME``); ``ECG_AGENT_*`` names only what has none. Nothing is created on disk at import.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings", "load_settings"]


class Settings(BaseSettings):
    """Embedded defaults: all state of a working directory lies under ``./.ecg-agent``."""

    model_config = SettingsConfigDict(extra="ignore")

    home: Path = Field(
        default=Path(".ecg-agent"),
        validation_alias="ECG_AGENT_HOME",
        description="Local state: the SQLite MLflow store, its artifacts, uploaded ECGs.",
    )
    cache: Path = Field(
        default=Path("~/.cache/ecg-agent-ray"),
        validation_alias="ECG_AGENT_CACHE",
        description="What can be had again: weights, dequantised base models, compiled ops.",
    )
    tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")
    ray_address: str | None = Field(default=None, validation_alias="RAY_ADDRESS")
    api_tokens: Path | None = Field(
        default=None,
        validation_alias="ECG_AGENT_API_TOKENS",
        description="File of name:sha256:scopes lines; once it has one, tokens are asked for.",
    )

    delineator: Path | None = Field(
        default=None,
        validation_alias="ECG_AGENT_DELINEATOR",
        description="ONNX file of an own delineation network; left out: the shipped one.",
    )

    @property
    def mlflow_uri(self) -> str:
        """``MLFLOW_TRACKING_URI``, else SQLite under :attr:`home`."""
        return self.tracking_uri or f"sqlite:///{(self.home.resolve() / 'mlflow.db').as_posix()}"

    @property
    def artifact_root(self) -> Path:
        """Where experiments of the embedded store keep artifacts."""
        return self.home.resolve() / "mlartifacts"

    @property
    def cache_dir(self) -> Path:
        return self.cache.expanduser().resolve()


def load_settings() -> Settings:
    """Read the environment now (not cached, so that tests and jobs can change it)."""
    return Settings()
