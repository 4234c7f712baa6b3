"""ECG agents on Ray and MLflow: train, gate, promote and serve an LLM that reads ECGs."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ecg-agent-ray")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
