"""What an LLM fine-tuning job takes: model, data, LoRA, optimiser, batch, and how it is spread."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL
from ecg_agent_ray.agent.speech import Speech
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.config import StrictConfig

__all__ = [
    "Assumptions",
    "BatchConfig",
    "DataSource",
    "DistributedConfig",
    "DpoSettings",
    "LLMFinetuneConfig",
    "LoraSettings",
    "Optimizer",
]

CHUNK = 128
"""Targets whose logits exist at a time: they stay in the last-level cache of a server's CPU."""
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class DataSource(StrictConfig):
    """Dialogues and how an epoch uses them; what it uses is drawn from ``seed`` and the epoch."""

    path: str = Field(description="As the string form of train.")
    repeat: float = Field(
        default=1.0, gt=0, description="Uses of a dialogue in an epoch; 0.3 draws three in ten."
    )
    weight: float = Field(default=1.0, gt=0, description="Factor of the loss of its targets.")
    first_actions: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the uses that end after the first action of a user turn drawn at "
        "random, with the names of actions as only targets: short rows on what decides most.",
    )


class LoraSettings(StrictConfig):
    """Used for a new adapter; one that is continued keeps its own settings."""

    r: int = Field(default=16, ge=1, description="Rank of the update matrices.")
    alpha: int = Field(default=32, ge=1, description="Scale; the update is multiplied by alpha/r.")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] = Field(default=LINEAR_LAYERS, min_length=1)
    layers: int | None = Field(
        default=None, ge=1, description="Train the upper so many layers alone; null: all."
    )
    first_layer: int | None = Field(
        default=None, ge=0, description="The same, as the index of the lowest trained layer."
    )

    def first(self, layers: int) -> int:
        """Index of the lowest trained one of a model's ``layers``.

        Raises :class:`ConfigError` where the model has fewer than are to be trained.
        """
        first = self.first_layer or 0
        if self.layers is not None:
            first = layers - self.layers
        if not 0 <= first < layers:
            raise ConfigError(
                f"lora: layers={self.layers} first_layer={self.first_layer} of {layers} layers"
            )
        return first


class DpoSettings(StrictConfig):
    """Preference tuning; see training.llm_objectives."""

    beta: float = Field(
        default=0.1, gt=0, description="Higher values hold the model nearer to its start."
    )
    sft_weight: float = Field(
        default=0.0, ge=0, description="Weight of the chosen answer's mean cross-entropy beside it."
    )


class Optimizer(StrictConfig):
    """AdamW with linear warm-up and cosine decay to a tenth of the peak."""

    lr: float = Field(default=2e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = Field(default=5, ge=0)
    min_lr_share: float = Field(default=0.1, ge=0, le=1, description="Last lr over peak lr.")
    max_grad_norm: float = Field(default=1.0, gt=0)


class BatchConfig(StrictConfig):
    """A step takes ``packs_per_step`` packs in all, whatever the number of workers."""

    max_tokens: int = Field(default=1024, ge=64, description="Tokens of one packed row.")
    packs_per_step: int = Field(default=4, ge=1, description="Global batch, in packed rows.")
    packing: bool = Field(
        default=True, description="false: one dialogue a row, so a batch is a number of dialogues."
    )
    share_prefix: bool = Field(
        default=False,
        description="A row holds a system message once for all its dialogues: the same losses with "
        "fewer tokens. Needs attention=packed.",
    )


class DistributedConfig(StrictConfig):
    """Ray Train workers and DeepSpeed."""

    num_workers: int = Field(default=2, ge=1)
    min_workers: int | None = Field(
        default=None, ge=1, description="Go on with as few where no more are free; null: never."
    )
    use_gpu: bool | Literal["auto"] = Field(default="auto", description="auto: if Ray has GPUs.")
    cpus_per_worker: float = Field(default=1, gt=0)
    threads_per_worker: int = Field(default=1, ge=1, description="OMP_NUM_THREADS of a worker.")
    zero_stage: Literal[0, 1, 2, 3] = Field(default=2, description="DeepSpeed ZeRO stage.")
    offload_optimizer: bool = Field(default=False, description="Optimiser state in host memory.")
    offload_parameters: bool = Field(
        default=False, description="Weights in host memory between uses; ZeRO stage 3 only."
    )
    max_failures: int = Field(default=2, ge=0, description="Worker losses to resume from.")


class Assumptions(StrictConfig):
    """What ``--plan`` takes for granted; training itself reads none of it."""

    device: str = Field(default="h100-80gb", description="A name of training.llm_shapes.DEVICES.")
    mfu: float = Field(
        default=0.35, gt=0, le=1, description="Share of the device's peak that training reaches."
    )
    dialogues: int | None = Field(
        default=None, ge=1, description="Dialogues of an epoch where the file is not here."
    )
    tokens_per_dialogue: int = Field(default=900, ge=1, description="For the same case.")
    target_share: float = Field(
        default=0.5, gt=0, le=1, description="Part of a row's tokens that are targets."
    )


class LLMFinetuneConfig(StrictConfig):
    """LoRA fine-tuning of a chat model on ECG dialogues."""

    name: str = Field(default="finetune-llm", description="Run name in MLflow and on disk.")
    experiment: str = "ecg-agent"
    base_model: str = Field(default=LAPTOP_BASE_MODEL, description="See agent.base_model.")
    adapter: str | None = Field(
        default=None, description="Adapter folder or builtin: to continue from; null starts anew."
    )
    objective: Literal["sft", "dpo"] = Field(
        default="sft",
        description="sft: what the assistant says in dialogues. dpo: preference pairs, see "
        "training.llm_pairs; the reference is the adapter that the job starts from.",
    )
    train: str | list[DataSource] = Field(
        min_length=1,
        description="Dialogues in ECG-MTD's form: JSONL or Parquet, a folder of such files, or a "
        "hub's data set as owner/name or owner/name:split. Or a list of sources to mix.",
    )
    validation: str | None = Field(default=None, description="Dialogues for validation loss.")
    output: str = Field(default="outputs/llm", description="Folder for agent/ and checkpoints/.")
    storage: str | None = Field(
        default=None, description="Ray Train's checkpoint storage; null: OUTPUT/checkpoints."
    )
    lead_configuration: Literal["12-lead", "I", "II"] | None = Field(
        default=None, description="Kept with the agent; null: that of the dialogues if they agree."
    )
    classifier: str | None = Field(default=None, description="Classifier URI pinned to the agent.")
    speech: Speech | None = Field(
        default=None,
        description="strict: the model reads and writes slots, kept with the agent; open: text; "
        "null: as the adapter that is continued, else open.",
    )
    steps: int | None = Field(default=None, ge=1, description="Stop after this many; null: epochs.")
    epochs: float = Field(default=1.0, gt=0)
    validate_every: int = Field(default=20, ge=1, description="Steps between validation losses.")
    checkpoint_every: int | None = Field(
        default=20, ge=1, description="Steps between checkpoints; null: checkpoint_minutes alone."
    )
    checkpoint_minutes: float | None = Field(
        default=None, gt=0, description="A checkpoint after the step that ends so long after one."
    )
    resume: Literal["auto", "never"] = Field(
        default="auto",
        description="auto: go on where an unfinished job of the same settings and output stopped, "
        "however it ended. Changed settings start a new job.",
    )
    keep_checkpoints: int = Field(default=2, ge=1)
    seed: int = 42
    gradient_checkpointing: bool = False
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="Of weights and activations; float32 to compare set-ups."
    )
    quantize: Literal["none", "nf4"] = Field(
        default="none", description="nf4: frozen weights in 4 bits (QLoRA), by bitsandbytes."
    )
    cache_lower_layers: bool = Field(
        default=False,
        description="Run the frozen layers below the trained ones once and keep their states in "
        "OUTPUT/lower-layers: about two bytes times tokens times hidden size on disk.",
    )
    cache_dtype: Literal["float16", "bfloat16", "float32"] = Field(
        default="float16", description="Of those states; bfloat16 where float16 overflows."
    )
    attention: Literal["auto", "flash_attention_2", "packed", "sdpa", "eager"] = Field(
        default="auto",
        description="auto: flash attention where GPU and package allow it, packed on a CPU.",
    )
    liger: bool | Literal["auto"] = Field(
        default="auto", description="Liger's fused kernels; auto: where GPU and package allow it."
    )
    early_stopping_patience: int | None = Field(
        default=None, ge=1, description="Validations without a lower loss before stopping."
    )
    action_weight: float = Field(
        default=1.0, gt=0, description="Loss weight of the tokens that name the next action."
    )
    loss_vocabulary: int | None = Field(
        default=None,
        ge=1,
        description="Softmax over so many of the tokenizer's first tokens, the most frequent ones, "
        "and all targets of the data, instead of the whole vocabulary: a third less time for a "
        "small model with a large one. For agents whose grammar rules the others out.",
    )
    dpo: DpoSettings = DpoSettings()
    lora: LoraSettings = LoraSettings()
    optimizer: Optimizer = Optimizer()
    batch: BatchConfig = BatchConfig()
    distributed: DistributedConfig = DistributedConfig()
    assume: Assumptions = Assumptions()

    @model_validator(mode="after")
    def _consistent(self) -> LLMFinetuneConfig:
        if problems := [*self._spread_problems(), *self._training_problems()]:
            raise ValueError("; ".join(problems))
        return self

    def _spread_problems(self) -> list[str]:
        spread = self.distributed
        problems = []
        if spread.min_workers and spread.min_workers > spread.num_workers:
            problems.append("distributed.min_workers needs at least as many num_workers")
        if spread.offload_parameters and spread.zero_stage != 3:
            problems.append("distributed.offload_parameters needs distributed.zero_stage=3")
        if spread.offload_optimizer and spread.zero_stage == 0:
            problems.append("distributed.offload_optimizer needs distributed.zero_stage of 1 to 3")
        if self.quantize == "nf4" and spread.zero_stage == 3:
            # ZeRO-3 partitions parameters; bitsandbytes keeps 4-bit weights as packed buffers
            problems.append("quantize=nf4 needs distributed.zero_stage of 0 to 2")
        if self.cache_lower_layers and spread.zero_stage == 3:
            # its partitions are only whole while a layer of the whole model runs
            problems.append("cache_lower_layers needs distributed.zero_stage of 0 to 2")
        return problems

    def _training_problems(self) -> list[str]:
        problems = []
        if self.early_stopping_patience and self.validation is None:
            problems.append("early_stopping_patience needs validation")
        if self.lora.layers is not None and self.lora.first_layer is not None:
            problems.append("lora.layers and lora.first_layer say the same; give one")
        if self.batch.share_prefix and self.attention not in ("auto", "packed"):
            problems.append("batch.share_prefix needs attention=packed")
        if self.batch.share_prefix and not self.batch.packing:
            problems.append("batch.share_prefix needs batch.packing=true")
        partly = self.distributed.zero_stage == 3 or self.quantize != "none"
        if self.loss_vocabulary is not None and partly:
            problems.append(
                "loss_vocabulary needs distributed.zero_stage of 0 to 2 and quantize=none"
            )
        if self.checkpoint_every is None and self.checkpoint_minutes is None:
            problems.append("give checkpoint_every or checkpoint_minutes")
        if self.objective == "dpo" and any(source.first_actions for source in self.sources):
            problems.append("first_actions is for dialogues, not for objective=dpo")
        return problems

    @property
    def sources(self) -> list[DataSource]:
        """``train`` as a list."""
        return [DataSource(path=self.train)] if isinstance(self.train, str) else self.train

    def deepspeed(self, *, gpu: bool, workers: int) -> dict[str, Any]:
        """The DeepSpeed configuration.

        Stage 0 leaves the adapter in fp32 as peft makes it, gradients summed over all workers.
        From stage 1 on its weights are bf16 with fp32 masters, gradients accumulated in fp32.
        """
        zero: dict[str, Any] = {
            "stage": self.distributed.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": gpu,
            "reduce_bucket_size": 5_000_000,
            "allgather_bucket_size": 5_000_000,
        }
        if self.distributed.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": gpu}
        if self.distributed.offload_parameters:
            zero["offload_param"] = {"device": "cpu", "pin_memory": gpu}
        low = self.dtype == "bfloat16" and self.distributed.zero_stage > 0
        accumulation = -(-self.batch.packs_per_step // workers)
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": self.optimizer.max_grad_norm,
            "bf16": {"enabled": low},
            "data_types": {"grad_accum_dtype": "fp32"},
            # torch's AdamW is a plain PyTorch optimiser; DeepSpeed's own needs compiled ops
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
            "steps_per_print": 1_000_000_000,
            "wall_clock_breakdown": False,
        }
