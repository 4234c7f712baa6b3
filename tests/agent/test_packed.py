"""Several dialogues in one forward: each gets what it would get alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from ecg_agent_ray.agent import GenerationRequest, TransformersEngine
from ecg_agent_ray.agent.packed import ForwardQueue, Request, is_packable, packed_logits
from ecg_agent_ray.agent.prefix_cache import new_cache
from ecg_agent_ray.dialogue import system_prompt

SYSTEM = {"role": "system", "content": system_prompt("12-lead")}


def test_packed_logits_are_those_of_each_alone(make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model()
    assert is_packable(model)
    sequences = [list(range(5, 5 + length)) for length in (3, 17, 9)]
    requests = [Request(new_cache(model.config), tokens, 2) for tokens in sequences]
    with torch.inference_mode():
        for more in ([], [40], [41, 42, 43]):  # first the beginning, then one token, then several
            if more:
                sequences = [[*tokens, *more] for tokens in sequences]
                keep = min(2, len(more))
                requests = [Request(request.cache, more, keep) for request in requests]
            packed_logits(model, requests)
            for request, tokens in zip(requests, sequences, strict=True):
                alone = model(torch.tensor([tokens])).logits[0, -request.keep :]
                assert request.logits is not None
                assert torch.allclose(request.logits, alone, atol=1e-3, rtol=1e-4)
    assert model.config._attn_implementation == "sdpa"


def test_threads_share_forwards_and_keep_their_texts(
    tiny_tokenizer: Any, make_tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(make_tiny_model(), tokenizer=tiny_tokenizer)
    sizes: list[int] = []
    run = engine._run

    def slowly(requests: Sequence[Request]) -> None:
        sizes.append(len(requests))
        time.sleep(0.02)
        run(requests)

    monkeypatch.setattr(engine.queue, "_run", slowly)
    request = GenerationRequest(max_tokens=40)
    prompts = [[SYSTEM, {"role": "user", "content": f"question {n}"}] for n in range(6)]
    alone = [engine.generate(prompt, request).text() for prompt in prompts]
    assert set(sizes) == {1}
    sizes.clear()
    engine.clear_cache()
    texts: dict[int, str] = {}
    threads = [
        threading.Thread(
            target=lambda n=n: texts.__setitem__(n, engine.generate(prompts[n], request).text())
        )
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts[n] for n in range(6)] == alone
    assert max(sizes) >= 3


def test_a_failed_forward_is_told_to_all_who_wait() -> None:
    def fail(requests: Sequence[Request]) -> None:
        raise RuntimeError("out of memory")

    queue = ForwardQueue(fail)
    queue.enter()
    queue.enter()
    errors: list[str] = []

    def ask() -> None:
        try:
            queue(Request(None, [1], 1))
        except RuntimeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert errors == ["out of memory"] * 2
