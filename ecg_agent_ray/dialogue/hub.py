"""Published dialogue data sets by their name on a Hugging Face hub.

``gustmd0121/12-lead-ecg-mtd-dataset`` names a data set, ``…:test`` one split of it. Files come
through ``huggingface_hub``, so ``HF_HOME``, ``HF_TOKEN``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE``
count, and what was fetched once is read from its cache.
"""

from __future__ import annotations

import re
from pathlib import Path

from ecg_agent_ray.dialogue.turns import LeadConfiguration
from ecg_agent_ray.errors import DialogueError

__all__ = ["SUFFIXES", "hub_files", "is_hub_name", "lead_of_name"]

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?::(?P<split>\w+))?$")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_LOCAL = "download its files elsewhere and give their path: Parquet or JSONL rows are read as well"


def is_hub_name(source: str | Path) -> bool:
    """Whether ``owner/name[:split]`` is meant: no path of this machine, no file's name."""
    text = str(source)
    if re.search(r"\.(?:jsonl?|ndjson|parquet|csv|tsv|gz|txt)$", text) or Path(text).exists():
        return False
    # a folder that is there makes the name a path with a mistake in it
    return _NAME.match(text) is not None and not Path(text.split("/")[0]).is_dir()


def lead_of_name(name: str) -> LeadConfiguration | None:
    """The lead configuration that a published data set's name tells."""
    found = re.search(r"single-lead-(II|I)\b", name)
    if found is not None:
        return "II" if found.group(1) == "II" else "I"
    return "12-lead" if "12-lead" in name else None


def hub_files(name: str) -> list[Path]:
    """Fetch a data set's rows: its files here, in the order of their names.

    Without a split, ``train`` where the data set has one, else all files. Raises
    :class:`DialogueError` where no hub can be reached, it has no such data set or split, or access
    is refused.
    """
    match = _NAME.match(name)
    if match is None:
        raise DialogueError(
            f"{name!r} is no data set's name", hint="owner/name or owner/name:split"
        )
    folder = _fetch(match["repo"])
    found = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES)
    found = [file for file in found if not file.name.startswith("dataset_info")]
    if not found:
        raise DialogueError(f"data set {match['repo']} holds no {', '.join(SUFFIXES)} file")
    split = match["split"]
    chosen = [file for file in found if _is_of(file.relative_to(folder), split or "train")]
    if split and not chosen:
        names = ", ".join(str(file.relative_to(folder)) for file in found)
        raise DialogueError(f"data set {match['repo']} has no split {split!r}: it holds {names}")
    return chosen or found


def _is_of(file: Path, split: str) -> bool:
    """``data/test-00000-of-00001.parquet``, ``test.jsonl``, ``test/0.parquet`` are of test."""
    name = re.escape(split.lower())
    return re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", str(file).lower()) is not None


def _fetch(repo: str) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                repo, repo_type="dataset", allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]
            )
        )
    except GatedRepoError as error:
        raise DialogueError(
            f"access to data set {repo} is refused: {_line(error)}",
            hint="accept its terms on the hub and set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise DialogueError(
            f"the hub has no data set {repo}, or it is private",
            hint="for a private one set HF_TOKEN; a file's path was not found either",
        ) from error
    except HFValidationError as error:
        raise DialogueError(f"{repo!r} is no data set's name: {_line(error)}") from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise DialogueError(
            f"{repo} is no file here, and as a data set it cannot be fetched: no hub can be "
            f"reached ({_line(error)})",
            hint=_LOCAL,
        ) from error


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
