"""What a pre-training job takes: network, objective, segments, optimiser, how it is spread."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ecg_agent_ray.classifier.model import ECGTransformerConfig
from ecg_agent_ray.classifier.pretraining import PretrainingConfig
from ecg_agent_ray.training.classifier_config import StrategyConfig
from ecg_agent_ray.training.config import StrictConfig

__all__ = ["PretrainConfig", "PretrainOptimizer", "PretrainSource"]

_RATES = {
    "num_labels": 0,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "dropout_input": 0.1,
    "feature_grad_mult": 0.1,
}


class PretrainSource(StrictConfig):
    """One data set; labels are not used."""

    kind: Literal["manifest", "ptbxl", "ludb", "physionet", "prepared", "cmsc"] = Field(
        description="cmsc: a fairseq-signals CMSC manifest (TSV) of .mat segments; the others as "
        "for fine-tuning, cut into segments here."
    )
    path: str = Field(description="Folder or file; samples: for the shipped records.")


class PretrainOptimizer(StrictConfig):
    """AdamW (Adam with decoupled weight decay), constant rate after a linear warm-up."""

    lr: float = Field(default=5e-5, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)
    warmup_updates: int = Field(default=0, ge=0)
    max_grad_norm: float | None = Field(default=None, gt=0, description="null: no clipping.")


class PretrainConfig(StrategyConfig):
    """W2V + CMSC + RLM over pairs of successive segments of a patient."""

    name: str = Field(default="pretrain-classifier", description="Run name in MLflow and on disk.")
    experiment: str = "ecg-pretraining"
    init: str | None = Field(
        default=None, description="Pre-training checkpoint to continue (weights only)."
    )
    num_heads: int | None = Field(default=None, ge=1, description="Of `init`.")
    network: dict[str, Any] = Field(
        default_factory=dict, description="Fields of ECGTransformerConfig; the rest is full size."
    )
    objective: dict[str, Any] = Field(
        default_factory=dict, description="Fields of PretrainingConfig; the rest is the recipe's."
    )
    data: list[PretrainSource] = Field(min_length=1)
    validation_fraction: float = Field(default=0.1, ge=0, lt=1, description="Of patients.")
    segment_samples: int = Field(default=2500, ge=320, description="At 500 Hz; 2500 is 5 s.")
    optimizer: PretrainOptimizer = Field(default_factory=PretrainOptimizer)
    epochs: int = Field(default=200, ge=1)
    report_every: int = Field(default=1, ge=1, description="Epochs between checkpoints.")
    batch_size: int = Field(
        default=512, ge=2, description="Pairs of an update, of all workers together."
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=2,
        description="Pairs a worker takes at once; gradients are accumulated up to batch_size. "
        "The patient contrast compares within these. null: all at once.",
    )
    seed: int = 42
    output: str = Field(default="outputs/pretraining", description="Where checkpoints go.")
    storage: str | None = Field(
        default=None, description="Ray Train's checkpoint storage; null: OUTPUT/checkpoints."
    )

    @field_validator("network", "objective")
    @classmethod
    def _known_fields(cls, values: dict[str, Any], info: Any) -> dict[str, Any]:
        kind: Any = ECGTransformerConfig if info.field_name == "network" else PretrainingConfig
        known = {field.name for field in fields(kind)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return values

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        workers = self.distributed.num_workers
        if self.batch_size % workers:
            raise ValueError(f"batch_size {self.batch_size} is not shared by {workers} workers")
        local = self.batch_size // workers
        if self.micro_batch_size and local % self.micro_batch_size:
            raise ValueError(
                f"a worker's {local} pairs are no multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        return self

    def network_config(self) -> ECGTransformerConfig:
        return ECGTransformerConfig.from_dict(
            {**ECGTransformerConfig().to_dict(), **_RATES, **self.network}
        )

    def objective_config(self) -> PretrainingConfig:
        values = dict(self.objective)
        if "latent_temp" in values:
            values["latent_temp"] = tuple(values["latent_temp"])
        return PretrainingConfig(**values)
