"""Twelve real 12-lead recordings that ship with the package (PTB-XL, CC BY 4.0)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ecg_agent_ray.ecg.reading import read
from ecg_agent_ray.ecg.recording import Recording
from ecg_agent_ray.errors import RecordingError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["sample", "sample_metadata", "samples"]

_FOLDER = Path(__file__).resolve().parents[1] / "_data" / "records"


def samples() -> list[Path]:
    """Headers of the shipped records, in the order of their numbers, for `read`."""
    return sorted(_FOLDER.glob("*.hea"))


def sample(record_id: str | int) -> Recording:
    """One shipped record, by its stem (``00003_hr``) or PTB-XL number (``3``).

    Raises RecordingError for any other.
    """
    wanted = str(record_id)
    for path in samples():
        if wanted == path.stem or (wanted.isdecimal() and int(wanted) == int(path.stem[:5])):
            return read(path)
    raise RecordingError(
        f"no shipped record {wanted!r}", hint=f"there are {', '.join(p.stem for p in samples())}"
    )


def sample_metadata() -> pd.DataFrame:
    """One row for each shipped record: ecg_id, patient_id, age (years), sex (0 male, 1 female),
    scp_codes (a dict of SCP-ECG statement to likelihood, as text), strat_fold, filename."""
    import pandas as pd

    return pd.read_csv(_FOLDER / "records.csv")
