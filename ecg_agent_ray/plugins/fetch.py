"""Files and folders at a URL, such as ``s3://bucket/checkpoint_best.pt``, as local copies.

Whatever fsspec opens is taken. A copy is made once and lies under ``$ECG_AGENT_CACHE/remote``,
named by the URL and the state of what is there (S3: the ETag), so that a changed object is fetched
anew. Processes of one machine share copies: one fetches while the others wait, and a copy is made
beside its name and then renamed. A copy that nobody asked for in 30 days goes when another is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock

from ecg_agent_ray.errors import InputError, MissingDependencyError, ModelNotFoundError
from ecg_agent_ray.settings import load_settings

__all__ = ["fetched", "is_url", "remove_unused"]

_UNUSED_S = 30 * 24 * 3600


def is_url(source: str | Path) -> bool:
    """Whether it is for :func:`fetched` and no local path."""
    return "://" in str(source)


def fetched(source: str | Path) -> Path:
    """Local path of a file or folder; what is local already is returned as it is.

    Raises
    ------
    ModelNotFoundError
        Nothing is at the URL.
    MissingDependencyError
        The URL's protocol needs a package (``s3://``: s3fs).
    InputError
        The protocol is unknown, or the store refused or did not answer.
    """
    if not is_url(source):
        return Path(source)
    url = str(source).rstrip("/")
    shown = _shown(url)
    files, root = _open(url)
    try:
        folder = files.isdir(root)
        members = sorted(files.find(root)) if folder else [root]
        state = [(member, *_state(files, member)) for member in members]
        name = hashlib.sha256(repr((url, state)).encode()).hexdigest()[:24]
        copies = load_settings().cache_dir / "remote"
        copies.mkdir(parents=True, exist_ok=True)
        target = copies / name / _name(root)
        with FileLock(copies / f"{name}.lock"):
            if target.exists():
                os.utime(target.parent)
            else:
                remove_unused(copies)
                _copy(files, root, target, recursive=folder)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"nothing is at {shown}") from error
    except Exception as error:  # each file system raises its own kinds
        said = str(error).replace(url, shown)
        raise InputError(f"cannot read {shown}: {type(error).__name__}: {said}") from error
    return target


def _state(files: Any, member: str) -> tuple[Any, ...]:
    """What changes with the contents; of HTTP's files ``ukey`` says that they never do."""
    about = files.info(member)
    return files.ukey(member), *(about.get(key) for key in ("ETag", "Last-Modified", "size"))


def _shown(url: str) -> str:
    """``url`` as it may be printed: without a password, and without a query, which may sign it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _name(root: str) -> str:
    return urlsplit(root).path.rsplit("/", 1)[-1]


def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(url)
    except ImportError as error:
        raise MissingDependencyError(
            f"{_shown(url)}: {error}", hint="for s3:// pip install 'ecg-agent-ray[s3]'"
        ) from error
    except ValueError as error:
        raise InputError(f"cannot read {_shown(url)}: {error}") from error
    files.invalidate_cache()
    return files, root.rstrip("/")


def _copy(files: Any, root: str, target: Path, *, recursive: bool) -> None:
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        made = Path(partial) / target.name
        if recursive:
            files.get(f"{root}/", str(made), recursive=True)
        else:
            files.get_file(root, str(made))
        made.rename(target)


def remove_unused(copies: Path) -> None:
    """Remove folders in ``copies`` whose time, set at each use, is 30 days past.

    Their locks stay (empty files).
    """
    for copy in copies.iterdir():
        with contextlib.suppress(OSError):  # another process may be at it
            if copy.is_dir() and time.time() - copy.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(copy)
