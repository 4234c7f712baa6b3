"""What the OpenAPI document says beyond the code: examples of answers, and the bearer token.

The examples are answers of the shipped models for a shipped record, shortened.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

__all__ = [
    "CHAT_ANSWER",
    "CLASSIFICATION_ANSWER",
    "EXPLANATION_ANSWER",
    "MEASUREMENT_ANSWER",
    "PLOT_ANSWER",
    "SIGNAL_ANSWER",
    "add_security",
]

_Responses = dict[int | str, dict[str, Any]]


def _json(example: dict[str, Any], **more: Any) -> _Responses:
    schema = {"type": "object", "additionalProperties": True}
    content = {"application/json": {"schema": schema, "example": example}}
    return {200: {"description": "Done.", "content": {**content, **more}}}


MEASUREMENT_ANSWER = _json(
    {
        "record_id": "00003_hr",
        "lead": "II",
        "status": "ok",
        "heart_rate_bpm": 64.1,
        "rr_ms": 936.0,
        "p_duration_ms": 93.08,
        "pr_ms": 133.7,
        "qrs_ms": 91.5,
        "qt_ms": 431.51,
        "qtc_bazett_ms": 445.89,
        "qtc_fridericia_ms": 442.17,
        "n_beats": 11,
        "quality": {"status": "usable", "reason": ""},
        "notes": [],
    }
)
CLASSIFICATION_ANSWER = _json(
    {
        "record_id": "00003_hr",
        "lead_configuration": "12-lead",
        "model": "models:/ecg-classifier/3",
        "calibration": "platt-cv5",
        "labels": {"SR": 0.9309, "1AVB": 0.0085, "2AVB": None},
        "positive": ["SR"],
        "not_assessed": ["2AVB"],
    }
)
EXPLANATION_ANSWER = _json(
    {
        "record_id": "00003_hr",
        "label": "SR",
        "probability": 0.9309,
        "lead": "II",
        "method": "spectralx-fia-combined",
        "cells": [
            {"start_s": 6.784, "end_s": 7.04, "low_hz": 0.0, "high_hz": 0.49, "score": 0.5634}
        ],
        "regions": [{"lead": "V2", "start_s": 7.0, "end_s": 8.0, "score": 0.0021}],
        "text": "SR (93.09%) | time=6.784-7.040s, freq=0.0-0.5Hz",
        "lead_configuration": "12-lead",
        "model": "models:/ecg-classifier/3",
        "notes": [],
    }
)
SIGNAL_ANSWER = _json(
    {
        "record_id": "00003_hr",
        "sampling_rate": 500.0,
        "unit": "mV",
        "start": 0.0,
        "end": 0.008,
        "signal": {"II": [-0.04, -0.045, None, -0.05]},
    }
)
PLOT_ANSWER: _Responses = {
    200: {
        "description": "The picture.",
        "content": {"image/svg+xml": {"schema": {"type": "string"}, "example": "<svg …/>"}},
    }
}
CHAT_ANSWER = _json(
    {
        "id": "chatcmpl-5b1f0c7e9a3d4c2b8e6f1a0d",
        "object": "chat.completion",
        "created": 1795612528,
        "model": "ecg-agent",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "The heart rate is 64 bpm.",
                    "refusal": None,
                },
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 412,
            "completion_tokens": 38,
            "total_tokens": 450,
            "prompt_tokens_details": {"cached_tokens": 396},
        },
        "ecg_agent": {
            "action": "response",
            "steps": [
                {
                    "action": "call_measurement_tool",
                    "tool": "measurement",
                    "tool_output": {
                        "heart_rate": "64.10",
                        "pr_interval": "133.70",
                        "qrs_duration": "91.50",
                        "qtc_interval": "445.89",
                    },
                    "ms": 41.2,
                    "turn": 0,
                }
            ],
            "grounding": {"repaired": 0, "dropped": 0},
            "timings": {"first_content_s": 0.9, "total_s": 1.2, "tools_s": 0.04, "queue_s": 0.002},
            "degraded": [],
            "version": "models:/ecg-agent/7",
        },
    },
    **{
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": 'data: {"object": "chat.completion.chunk", …}\n\ndata: [DONE]\n\n',
        }
    },
)


def add_security(app: FastAPI) -> None:
    """Say in the document that everything under ``/v1`` takes a bearer token."""
    plain = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = plain()
            schemes = found.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["token"] = {
                "type": "http",
                "scheme": "bearer",
                "description": "Made by `ecg-agent tokens create`; scopes read, chat, admin.",
            }
            for path, operations in found["paths"].items():
                for operation in operations.values() if path.startswith("/v1/") else ():
                    operation["security"] = [{"token": []}]
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
