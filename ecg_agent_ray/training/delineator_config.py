"""What a job that trains the delineation network takes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ecg_agent_ray.evaluation.measurement_reference import Database
from ecg_agent_ray.training.classifier_config import DataParallelConfig
from ecg_agent_ray.training.config import StrictConfig

__all__ = ["AnnotatedSource", "DelineatorTrainConfig", "HoldOut", "UnannotatedSource"]


class AnnotatedSource(StrictConfig):
    """Records with marked waves."""

    database: Database
    path: str = Field(description="Folder with the records, anywhere below.")
    share: float = Field(gt=0, le=1, description="Of the annotated examples of a batch.")


class UnannotatedSource(StrictConfig):
    """Recordings of which at most the rhythm is known."""

    kind: Literal["ptbxl", "physionet", "cinc2017"]
    path: str


class HoldOut(StrictConfig):
    """One fold of a cross-validation by record: every ``folds``-th record from ``fold`` on."""

    folds: int = Field(default=5, ge=2)
    fold: int = Field(ge=0)


class DelineatorTrainConfig(StrictConfig):
    """A 1-D U-Net for P, QRS and T; see ``ecg_agent_ray.training.delineator``."""

    name: str = "train-delineator"
    experiment: str = "ecg-delineator"
    output: str
    annotated: list[AnnotatedSource] = Field(min_length=1)
    unannotated: list[UnannotatedSource] = Field(default_factory=list)
    hold_out: HoldOut | None = Field(
        default=None, description="Left out: train on every record, nothing is evaluated."
    )
    evaluate_leads: list[str] = Field(default=["II", "I"], min_length=1)
    widths: tuple[int, ...] = Field(
        default=(12, 24, 32, 48, 64, 96), min_length=2, description="Channels of each level."
    )
    dropout: float = Field(default=0.1, ge=0, lt=1)
    steps: int = Field(default=3000, ge=1)
    batch_size: int = Field(default=8, ge=1, description="Annotated examples of each worker.")
    unannotated_batch_size: int = Field(default=2, ge=0)
    unannotated_weight: float = Field(
        default=0.2, ge=0, description="Of the loss against the averaged network's own view."
    )
    lr: float = Field(default=3e-3, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    averaging: float = Field(default=0.998, ge=0, lt=1, description="Decay of the weights' mean.")
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: int = 0
    checkpoint_every: int = Field(default=250, ge=1, description="Steps.")
    distributed: DataParallelConfig = Field(default_factory=DataParallelConfig)
