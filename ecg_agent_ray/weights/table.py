"""The table of weights: names, digests, licences and where copies are kept."""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib import resources
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ecg_agent_ray.errors import ModelNotFoundError

__all__ = ["SCHEME", "HubFile", "PackageParts", "Source", "UrlFile", "Weights", "named", "table"]

SCHEME = "weights:"
"""What a reference to an entry begins with."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HubFile(_Row):
    """A file of a repository on the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    repository: str = Field(description="OWNER/NAME on the hub.")
    file: str = Field(description="Path inside the repository.")
    revision: str = Field(default="main", description="Branch, tag or commit.")

    def __str__(self) -> str:
        return f"hub {self.repository}"


class UrlFile(_Row):
    """A file at a URL."""

    kind: Literal["url"] = "url"
    url: str = Field(pattern="^https?://", description="http(s) URL of the whole file.")

    def __str__(self) -> str:
        return self.url


class PackageParts(_Row):
    """One member of each of some wheels, joined in order."""

    kind: Literal["packages"] = "packages"
    package: str = Field(description="Distribution's name; {part} is the part's number from 1.")
    version: str = Field(description="The version all parts have.")
    member: str = Field(description="Path in the wheel; {part} as above.")
    count: int = Field(default=1, ge=1, description="Number of parts.")

    def distribution(self, part: int) -> str:
        return self.package.format(part=part)

    def path(self, part: int) -> str:
        return self.member.format(part=part)

    def __str__(self) -> str:
        if self.count == 1:
            return f"package {self.distribution(1)}"
        return f"packages {self.distribution(1)} … {self.distribution(self.count)}"


Source = Annotated[HubFile | UrlFile | PackageParts, Field(discriminator="kind")]


class Weights(_Row):
    """An entry: which bytes a name stands for, and where they may be."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    file: str = Field(pattern=r"^[\w.-]+$", description="The file's name as its makers gave it.")
    size: int = Field(gt=0, description="Bytes.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    licence: str = Field(description="SPDX identifier.")
    maker: str
    sources: tuple[Source, ...]


class _Table(_Row):
    weights: tuple[Weights, ...]


@lru_cache(maxsize=1)
def table() -> tuple[Weights, ...]:
    """All entries, as the package ships them."""
    file = resources.files("ecg_agent_ray") / "_data" / "weights" / "weights.toml"
    return _Table.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))).weights


def named(reference: str) -> Weights:
    """The entry of ``NAME`` or ``weights:NAME``; raises :class:`ModelNotFoundError`."""
    name = reference.removeprefix(SCHEME)
    for weights in table():
        if weights.name == name:
            return weights
    known = ", ".join(weights.name for weights in table())
    raise ModelNotFoundError(f"no weights are named {name!r}", hint=f"known: {known}")
