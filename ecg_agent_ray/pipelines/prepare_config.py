"""The data preparation job's options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ecg_agent_ray.pipelines.prepare import FORMATS, Format, Prepared
from ecg_agent_ray.training.config import StrictConfig

__all__ = ["PrepareConfig", "run"]

_ONLY_PHYSIONET = ("resample", "ptbxl_database")


class PrepareConfig(StrictConfig):
    """Options of ``jobs/prepare_data.py``; the same as of ``ecg-agent data prepare DATASET``."""

    dataset: Literal["ptbxl", "physionet2021"]
    root: Path = Field(description="Folder of the data set as published.")
    output: Path = Field(description="Folder for the shards and .mat files.")
    manifest_dir: Path = Field(description="Folder for the manifests.")
    split: Literal["official", "patient"] = Field(
        default="official", description="ptbxl: strat_fold 9 and 10, or drawn by seed."
    )
    valid: float = Field(default=0.1, ge=0, le=0.9, description="Share of patients.")
    test: float = Field(default=0.1, ge=0, le=0.9, description="Share of patients.")
    seed: int = Field(default=42, description="Of the draw of patients.")
    resample: bool = Field(
        default=False, description="physionet2021: take records of other rates than 500 Hz too."
    )
    ptbxl_database: Path | None = Field(
        default=None, description="physionet2021: PTB-XL's table, for the patients of HR records."
    )
    formats: list[Format] = Field(
        default=list(FORMATS),
        min_length=1,
        description="parquet: shards that training reads; mat: files and manifests that "
        "fairseq-signals reads.",
    )
    workers: int = Field(default=2, ge=1, description="Shards written at once; a CPU each.")

    @model_validator(mode="after")
    def _fits_the_data_set(self) -> PrepareConfig:
        foreign = _ONLY_PHYSIONET if self.dataset == "ptbxl" else ("split",)
        if given := sorted(self.model_fields_set & set(foreign)):
            raise ValueError(f"{self.dataset} takes no {', '.join(given)}")
        return self


def run(config: PrepareConfig, *, progress: Callable[[int, int], None] | None = None) -> Prepared:
    """Prepare as configured; raises what the data set's function raises."""
    from ecg_agent_ray.pipelines.prepare_physionet import prepare_physionet2021
    from ecg_agent_ray.pipelines.prepare_ptbxl import prepare_ptbxl

    folders = (config.root, config.output, config.manifest_dir)
    if config.dataset == "ptbxl":
        return prepare_ptbxl(
            *folders,
            split=config.split,
            valid=config.valid,
            test=config.test,
            seed=config.seed,
            formats=config.formats,
            workers=config.workers,
            progress=progress,
        )
    return prepare_physionet2021(
        *folders,
        valid=config.valid,
        test=config.test,
        seed=config.seed,
        resample=config.resample,
        ptbxl_database=config.ptbxl_database,
        formats=config.formats,
        workers=config.workers,
        progress=progress,
    )
