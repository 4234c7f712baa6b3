"""Tokens a second of `train llm` against a bare torch loop, in turns, in one run.

    python benchmarks/training_llm.py
    python benchmarks/training_llm.py --steps 20 --repeats 3 --layers 6 --output training_llm.json

Both train the same model (the laptop model's shape with fewer layers, random weights, LoRA of rank
16, bf16) on the same packed rows in the same order, one process with one thread. Ours is the whole
job: Ray Train, DeepSpeed ZeRO-2, a metric report to MLflow each step. The bare loop is peft's model
and torch's AdamW in a plain process, and nothing else. Times run from the end of the first
steps (`--warmup`) to the end of the last, so that starting is in neither; all that lies between two
steps is in both. The ratio is of the medians over the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    args = _arguments()
    if args.bare is not None:
        print(json.dumps(bare_loop(args.bare, args.steps, args.warmup)))  # noqa: T201
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="ecg-agent-bench-") as name:
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        make_inputs(folder, args.layers)
        speeds: dict[str, list[float]] = {"ray_train": [], "bare": []}
        for repeat in range(args.repeats):
            order = list(speeds) if repeat % 2 == 0 else list(reversed(speeds))
            for kind in order:
                spans = _ours(folder, args) if kind == "ray_train" else _bare(folder, args)
                speeds[kind].append(spans["tokens"] / spans["seconds"])
                sys.stderr.write(f"{kind}: {speeds[kind][-1]:.1f} tokens/s\n")
    medians = {kind: statistics.median(values) for kind, values in speeds.items()}
    ratios = [ours / bare for ours, bare in zip(*speeds.values(), strict=True)]
    result = {
        "tokens_per_second": {k: [round(v, 1) for v in values] for k, values in speeds.items()},
        "ratio_of_medians": round(medians["ray_train"] / medians["bare"], 3),
        "ratio_by_repeat": [round(ratio, 3) for ratio in ratios],
        "steps": args.steps,
        "warmup": args.warmup,
        "layers": args.layers,
        "load_average": os.getloadavg()[0],
        "cores": os.cpu_count(),
    }
    text = json.dumps(result, indent=2)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


def make_inputs(folder: Path, layers: int) -> None:
    """A model of the laptop model's width with its tokenizer; dialogues with made-up outputs."""
    from transformers import AutoConfig, LlamaForCausalLM

    from ecg_agent_ray.agent.base_model import (
        LAPTOP_BASE_MODEL,
        load_tokenizer,
        resolve_base_model,
    )
    from ecg_agent_ray.dialogue import write_dialogues
    from ecg_agent_ray.dialogue.synthesis import RecordFacts, synthesize, vary

    shape = AutoConfig.from_pretrained(resolve_base_model(LAPTOP_BASE_MODEL))
    shape.num_hidden_layers = layers
    shape.layer_types = None
    LlamaForCausalLM(shape).save_pretrained(folder / "model")
    load_tokenizer(LAPTOP_BASE_MODEL).save_pretrained(folder / "model")
    empty = dict.fromkeys(("heart_rate", "pr_interval", "qrs_duration", "qtc_interval"))
    facts = vary([RecordFacts("1", "1.hea", "12-lead", empty, [])], n=60, seed=0)
    write_dialogues(folder / "train.jsonl", synthesize(facts, n=120, seed=0))


def job(folder: Path, steps: int) -> Any:
    from ecg_agent_ray.training.config import load_config
    from ecg_agent_ray.training.llm_config import LLMFinetuneConfig

    return load_config(
        LLMFinetuneConfig,
        None,
        [
            f"base_model={folder / 'model'}",
            f"train={folder / 'train.jsonl'}",
            f"output={folder / 'out'}",
            f"steps={steps}",
            f"checkpoint_every={steps}",
            "batch.max_tokens=1024",
            "batch.packs_per_step=1",
            "distributed={num_workers: 1, use_gpu: false, zero_stage: 2}",
        ],
    )


def _ours(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """The job as a user starts it; its own clock and count of tokens, as it reports them."""
    import mlflow

    from ecg_agent_ray.training.llm import finetune_llm

    result = finetune_llm(job(folder, args.steps))
    client = mlflow.MlflowClient()
    spans = {}
    for name, key in (("tokens", "tokens_seen"), ("seconds", "elapsed_seconds")):
        values = {m.step: m.value for m in client.get_metric_history(result.run_id, key)}
        spans[name] = values[args.steps] - values[args.warmup]
    return spans


def _bare(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--bare", str(folder)]
    command += ["--steps", str(args.steps), "--warmup", str(args.warmup)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    spans: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return spans


def bare_loop(folder: Path, steps: int, warmup: int) -> dict[str, float]:
    import torch

    from ecg_agent_ray.agent.base_model import load_tokenizer
    from ecg_agent_ray.agent.chat_format import ChatFormat
    from ecg_agent_ray.dialogue import read_dialogues
    from ecg_agent_ray.training.llm_data import encode_all
    from ecg_agent_ray.training.llm_model import build_model, sequence_loss
    from ecg_agent_ray.training.packing import make_packs

    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    config = job(folder, steps)
    chat = ChatFormat(load_tokenizer(config.base_model))
    encoded = encode_all(chat, read_dialogues(config.train))
    rows = make_packs(encoded, config.batch.max_tokens, config.seed)
    model = build_model(config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.lr, weight_decay=0.0)
    tokens, begin = 0, 0.0
    for step in range(steps):
        if step == warmup:
            tokens, begin = 0, time.perf_counter()
        row = rows[step % len(rows)]
        loss = sequence_loss(model, row, "cpu") / row.n_targets
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        tokens += len(row.input_ids)
    return {"tokens": tokens, "seconds": time.perf_counter() - begin}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
