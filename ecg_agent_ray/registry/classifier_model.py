"""A registered classifier as ``mlflow.pyfunc.load_model`` gives it.

Each row of the input names a ``file`` or carries a ``signal`` (leads x samples, mV) with its
``sampling_rate`` in Hz and ``leads``. Each row of the output is a classification as the command
line's JSON has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from mlflow.pyfunc import PythonModel
from mlflow.pyfunc.model import PythonModelContext

from ecg_agent_ray.errors import InputError

__all__ = ["ClassifierModel", "signature"]


class ClassifierModel(PythonModel):
    """pyfunc around :func:`ecg_agent_ray.tools.classify`."""

    def load_context(self, context: PythonModelContext) -> None:
        from ecg_agent_ray.classifier import load_classifier

        self._classifier = load_classifier(context.artifacts["classifier"])
        self._lead_configuration = context.model_config["lead_configuration"]

    def predict(  # type: ignore[override]
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """``params``: ``threshold`` (0.5) and ``lead_configuration`` (the model's own)."""
        from ecg_agent_ray import tools

        options = params or {}
        rows = []
        for row in model_input.to_dict(orient="records"):
            found = tools.classify(
                _recording(row),
                self._classifier,
                threshold=float(options.get("threshold", 0.5)),
                leads=str(options.get("lead_configuration", self._lead_configuration)),
            ).to_dict()
            rows.append({key: found[key] for key in _OUTPUT})
        return pd.DataFrame(rows, columns=list(_OUTPUT))


_OUTPUT = ("record_id", "lead_configuration", "labels", "positive", "not_assessed")


def _recording(row: Mapping[Any, Any]) -> Any:
    import numpy as np

    from ecg_agent_ray import ecg

    if isinstance(row.get("file"), str):
        return ecg.read(row["file"])
    signal = row.get("signal")
    if signal is None or isinstance(signal, float):
        raise InputError("a row has neither file nor signal")
    return ecg.Recording(
        signal=np.asarray([list(lead) for lead in signal], dtype=np.float32),
        sampling_rate=float(row["sampling_rate"]),
        leads=tuple(row["leads"]),
        record_id=str(row.get("record_id") or "recording"),
    )


def signature(lead_configuration: str) -> Any:
    """Every column of a row is optional, a row needs one of the two forms."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Map

    string, number = DataType.string, DataType.double
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(string, "file", required=False),
                ColSpec(Array(Array(number)), "signal", required=False),
                ColSpec(number, "sampling_rate", required=False),
                ColSpec(Array(string), "leads", required=False),
                ColSpec(string, "record_id", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(string, "record_id"),
                ColSpec(string, "lead_configuration"),
                ColSpec(Map(number), "labels"),
                ColSpec(Array(string), "positive"),
                ColSpec(Array(string), "not_assessed"),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("threshold", number, 0.5),
                ParamSpec("lead_configuration", string, lead_configuration),
            ]
        ),
    )
