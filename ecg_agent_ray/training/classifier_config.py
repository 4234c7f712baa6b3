"""What a classifier fine-tuning job takes: start, data, validation, optimiser, how it is spread."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ecg_agent_ray.classifier.challenge import CLASSES
from ecg_agent_ray.classifier.dataset import SourceKind
from ecg_agent_ray.classifier.labels import LABELS
from ecg_agent_ray.training.config import StrictConfig

__all__ = [
    "AugmentationConfig",
    "ClassifierFinetuneConfig",
    "ClassifierOptimizer",
    "DataParallelConfig",
    "DataSource",
    "NetworkConfig",
    "StrategyConfig",
    "ValidationConfig",
]


class NetworkConfig(StrictConfig):
    """A network to train from scratch."""

    architecture: Literal["beat_rhythm", "ecg_transformer", "xresnet1d"] = "beat_rhythm"
    sizes: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the architecture's config; rest is default."
    )


class DataSource(StrictConfig):
    """One data set; see ``ecg_agent_ray.classifier.dataset`` for the kinds."""

    kind: SourceKind
    path: str = Field(
        description="Folder or file; samples: for the shipped records; prepared: a URL too."
    )


class ValidationConfig(StrictConfig):
    """Patients kept out. Drawn by patient, so that nobody is on both sides."""

    fraction: float = Field(default=0.2, ge=0, lt=1, description="Of patients; 0 trains on all.")
    seed: int = 42
    official: bool = Field(
        default=False,
        description="Hold out the data's own validation split instead (ptbxl: strat_fold 9; "
        "prepared: valid), and leave its test split alone.",
    )
    records: list[str] | None = Field(
        default=None, description="Record ids to hold out instead (with their whole patients)."
    )


class AugmentationConfig(StrictConfig):
    """See ``ecg_agent_ray.classifier.augmentation.Augmentation``."""

    shift: bool = True
    gain: float = Field(default=0.2, ge=0, lt=1)
    noise_mv: float = Field(default=0.01, ge=0)
    single_lead: float = Field(default=0.2, ge=0, le=1)
    lead_dropout: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _one_kind_of_masking(self) -> Self:
        if self.single_lead + self.lead_dropout > 1:
            raise ValueError("single_lead + lead_dropout exceed 1")
        return self


class ClassifierOptimizer(StrictConfig):
    """AdamW with linear warm-up and cosine decay to zero."""

    lr: float = Field(default=3e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_share: float = Field(default=0.1, ge=0, lt=1, description="Of all steps.")
    max_grad_norm: float = Field(default=1.0, gt=0)


class DataParallelConfig(StrictConfig):
    """Ray Train workers, one process each."""

    num_workers: int = Field(default=2, ge=1)
    use_gpu: bool = False
    backend: Literal["gloo", "nccl"] = Field(default="gloo", description="nccl for GPUs.")
    cpus_per_worker: float = Field(default=1, gt=0)
    threads_per_worker: int = Field(default=1, ge=1, description="OMP_NUM_THREADS of a worker.")
    max_failures: int = Field(default=2, ge=0, description="Worker losses to resume from.")


class StrategyConfig(StrictConfig):
    """How a training job is spread; see ``ecg_agent_ray.training.strategies``."""

    strategy: Literal["ddp", "fsdp", "deepspeed"] = Field(
        default="ddp",
        description="fsdp shards weights, gradients and optimiser over workers; deepspeed what "
        "zero_stage says.",
    )
    zero_stage: Literal[1, 2] = Field(
        default=2, description="deepspeed: 1 shards the optimiser, 2 the gradients too."
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16: forward passes under autocast, weights stay fp32."
    )
    distributed: DataParallelConfig = Field(default_factory=DataParallelConfig)


class ClassifierFinetuneConfig(StrategyConfig):
    """Binary cross-entropy over labels, cells that were not assessed left out."""

    name: str = Field(default="finetune-classifier", description="Run name in MLflow and on disk.")
    experiment: str = "ecg-classifier"
    init: str | None = Field(
        default="builtin:",
        description="Classifier to continue: builtin:, a folder, a fairseq-signals checkpoint "
        "(fine-tuned or pre-trained), or their URL. null builds `network` from scratch.",
    )
    num_heads: int | None = Field(default=None, ge=1, description="Of a fairseq checkpoint.")
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    labels: Literal["ptbxl", "challenge2021"] = Field(
        default="ptbxl",
        description="Of a fresh head, or of a checkpoint with as many outputs: PTB-XL's 71 "
        "statements, or the 26 scored classes of the PhysioNet/CinC Challenge 2021 (12-lead only).",
    )
    data: list[DataSource] = Field(min_length=1)
    exclude_patients_of: list[DataSource] = Field(
        default_factory=list, description="No record of these patients is trained on or validated."
    )
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    cross_validation_folds: int = Field(
        default=0,
        ge=0,
        description="Patient-grouped folds trained first, for honest metrics and calibration; "
        "the final model then trains on all. 0: a single run with `validation`.",
    )
    calibrate: bool = Field(
        default=False,
        description="Platt scaling and a threshold for each label (greatest F1) from the held-out "
        "records, kept with the model.",
    )
    choose_thresholds: bool = Field(
        default=False, description="Only the thresholds, probabilities stay as they are."
    )
    min_positives: int = Field(
        default=8, ge=1, description="Labels with fewer positives are not taught (not assessed)."
    )
    drop_unlearned: bool = Field(
        default=False,
        description="Labels whose held-out AUROC may be chance (95 % interval reaching 0.5) "
        "become not assessed in the final model.",
    )
    leads: Literal["12-lead", "I", "II"] = Field(
        default="12-lead",
        description="12-lead keeps all configurations; I or II trains for that lead only.",
    )
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    optimizer: ClassifierOptimizer = Field(default_factory=ClassifierOptimizer)
    epochs: int = Field(default=3, ge=1)
    report_every: int = Field(
        default=1,
        ge=1,
        description="Epochs between reports (metrics and a checkpoint to resume from); a split's "
        "last epoch is always reported.",
    )
    batch_size: int = Field(default=8, ge=1, description="Global: of all workers together.")
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Records a worker takes at once; gradients are accumulated up to batch_size. "
        "null: all at once.",
    )
    feature_grad_mult: float | None = Field(
        default=None,
        ge=0,
        description="ECG transformer: factor on the conv extractor's gradient; 0 freezes it "
        "(fairseq-signals' fine-tuning), null keeps the network's own.",
    )
    seed: int = 42
    output: str = Field(default="outputs/classifier", description="Where the classifier goes.")
    storage: str | None = Field(
        default=None, description="Ray Train's checkpoint storage; null: OUTPUT/checkpoints."
    )
    card: str | None = Field(default=None, description="File with the model card's introduction.")

    @property
    def label_codes(self) -> tuple[str, ...]:
        return LABELS if self.labels == "ptbxl" else CLASSES

    @model_validator(mode="after")
    def _held_out_records(self) -> Self:
        if self.cross_validation_folds == 1:
            raise ValueError("cross_validation_folds is 0 or at least 2")
        wanted = [
            name
            for name in ("calibrate", "choose_thresholds", "drop_unlearned")
            if getattr(self, name)
        ]
        validation = self.validation
        held_out = validation.fraction > 0 or validation.official or validation.records is not None
        if wanted and not self.cross_validation_folds and not held_out:
            raise ValueError(
                f"{', '.join(wanted)}: no record is held out, set validation or "
                "cross_validation_folds"
            )
        return self
