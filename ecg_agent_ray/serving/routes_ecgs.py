"""ECGs: upload, description, signal, plot, deletion, and the three tools."""

from __future__ import annotations

import ast
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, HTTPException, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from ecg_agent_ray.errors import EcgAgentError, LeadError
from ecg_agent_ray.serving.access import OwnedEcg, Reader, Services, services_of
from ecg_agent_ray.serving.idempotency import IN_PROGRESS, upload_once
from ecg_agent_ray.serving.openapi import (
    CLASSIFICATION_ANSWER,
    EXPLANATION_ANSWER,
    MEASUREMENT_ANSWER,
    PLOT_ANSWER,
    SIGNAL_ANSWER,
)
from ecg_agent_ray.serving.schemas import (
    ClassificationRequest,
    EcgBody,
    ExplanationRequest,
    LeadConfiguration,
    MeasurementRequest,
)
from ecg_agent_ray.serving.store import EcgMeta

__all__ = ["lead_configuration_of", "router"]

router = APIRouter(prefix="/v1", tags=["ECGs"])

_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                            "description": "One ECG file, or a WFDB header and its signal files.",
                        }
                    },
                }
            }
        },
    }
}


@router.post(
    "/ecgs",
    status_code=201,
    response_model=EcgBody,
    openapi_extra=_UPLOAD_BODY,
    responses={409: IN_PROGRESS},
)
async def add_ecg(
    request: Request,
    response: Response,
    caller: Reader,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=128,
            description="An upload sent again with the same key gives the ECG of the first time.",
        ),
    ] = None,
) -> dict[str, Any]:
    """Upload one ECG. The files are parsed and not kept; the signal is."""
    services = services_of(request)
    try:
        files = await _uploaded_files(request, services)
        if idempotency_key is None:
            meta = await services.backend.add_ecg(files, caller.name)
        else:
            meta, replayed = await upload_once(services, caller.name, idempotency_key, files)
            if replayed:
                response.headers["Idempotent-Replayed"] = "true"
                services.audit(request, caller, meta.id)
                return meta.public()
    except EcgAgentError as error:
        services.metrics.refused_uploads.labels(type(error).__name__).inc()
        raise
    except HTTPException as error:
        services.metrics.refused_uploads.labels(str(error.status_code)).inc()
        raise
    services.audit(request, caller, meta.id)
    _observe(services, meta)
    return meta.public()


def _observe(services: Services, meta: EcgMeta) -> None:
    statuses = [str(found["status"]) for found in meta.quality.values()]
    services.metrics.observe_upload(_leads_of(meta), meta.format, statuses)


def _leads_of(meta: EcgMeta) -> str:
    """The lead configuration as a metric's label; ``other`` for a recording that has none."""
    try:
        return lead_configuration_of(meta, None)
    except LeadError:
        return "other"


async def _uploaded_files(request: Request, services: Services) -> list[tuple[str, bytes]]:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "send the files as multipart/form-data in parts named `files`")
    most = services.config.limits.upload_files
    async with request.form(max_files=most, max_fields=most) as form:
        parts = form.getlist("files")
        if not parts:
            raise HTTPException(422, "the upload has no part named `files`")
        files = []
        for part in parts:
            if not isinstance(part, UploadFile):
                raise HTTPException(422, "a part named `files` has no file name")
            files.append((part.filename or "", await part.read()))
    return files


@router.get("/samples")
async def samples(_: Reader) -> dict[str, Any]:
    """The sample records that ship with the service, with what their cardiologists said of them."""
    return {"data": await run_in_threadpool(_described_samples)}


def _described_samples() -> list[dict[str, Any]]:
    from ecg_agent_ray import ecg

    return [
        {
            "record_id": row.filename,
            "age": int(row.age),
            "sex": "female" if row.sex else "male",
            "statements": list(ast.literal_eval(row.scp_codes)),
        }
        for row in ecg.sample_metadata().itertuples()
    ]


@router.post("/samples/{record_id}", status_code=201, response_model=EcgBody)
async def add_sample(record_id: str, request: Request, caller: Reader) -> dict[str, Any]:
    """Take a sample record as if it had been uploaded."""
    from ecg_agent_ray import ecg

    known = {path.stem for path in await run_in_threadpool(ecg.samples)}
    if record_id not in known:
        raise HTTPException(404, "there is no sample record of this name")
    services = services_of(request)
    meta = await services.backend.add_sample(record_id, caller.name)
    services.audit(request, caller, meta.id)
    _observe(services, meta)
    return meta.public()


@router.get("/ecgs/{ecg_id}", response_model=EcgBody)
async def describe(meta: OwnedEcg) -> dict[str, Any]:
    """What the ECG is, and the signal quality of each lead."""
    return meta.public()


@router.delete("/ecgs/{ecg_id}", status_code=204)
async def delete(meta: OwnedEcg, request: Request) -> None:
    """Delete the ECG and all that is kept about it."""
    services = services_of(request)
    await services.stored(services.store.delete, meta.id)


@router.get("/ecgs/{ecg_id}/signal", responses=SIGNAL_ANSWER, response_class=Response)
async def signal(
    meta: OwnedEcg,
    request: Request,
    leads: Annotated[str | None, Query(max_length=256, description="Comma-separated")] = None,
    start: Annotated[float, Query(ge=0, description="Seconds")] = 0.0,
    end: Annotated[float | None, Query(gt=0, description="Seconds")] = None,
) -> Response:
    """Samples in mV, one list per lead; null is a gap in the recording."""
    wanted = [name.strip() for name in leads.split(",")] if leads else list(meta.leads)
    stop = min(meta.duration_s, end) if end is not None else meta.duration_s
    if stop <= start:
        raise HTTPException(422, f"end must be after start; the ECG is {meta.duration_s:g} s long")
    most = services_of(request).config.limits.signal_samples
    if len(wanted) * (stop - start) * meta.sampling_rate > most:
        raise HTTPException(422, f"more than {most} samples; ask for fewer leads or less time")
    body = await services_of(request).backend.signal(
        meta.id, {"leads": wanted, "start": start, "end": stop}
    )
    return Response(body, media_type="application/json")


@router.get("/ecgs/{ecg_id}/plot.svg", responses=PLOT_ANSWER, response_class=Response)
async def plot(
    meta: OwnedEcg,
    request: Request,
    marks: Annotated[bool, Query(description="Show the measured fiducial points")] = False,
    layout: Annotated[Literal["auto", "3x4", "12x1", "rows"], Query()] = "auto",
    start: Annotated[float, Query(ge=0, description="Seconds")] = 0.0,
) -> Response:
    """The ECG on standard paper: 25 mm/s, 10 mm/mV."""
    options = {"marks": marks, "layout": layout, "start": start}
    svg = await services_of(request).backend.plot(meta.id, options)
    return Response(svg, media_type="image/svg+xml")


@router.post("/ecgs/{ecg_id}/measurement", responses=MEASUREMENT_ANSWER)
async def measurement(
    meta: OwnedEcg, request: Request, body: MeasurementRequest | None = None
) -> dict[str, Any]:
    """Heart rate, PR, QRS, QT and QTc, as `ecg-agent measure --json` gives them."""
    options = (body or MeasurementRequest()).model_dump()
    return await _detail(request, meta, "measurement", options)


@router.post("/ecgs/{ecg_id}/classification", responses=CLASSIFICATION_ANSWER)
async def classification(
    meta: OwnedEcg, request: Request, body: ClassificationRequest | None = None
) -> dict[str, Any]:
    """Probabilities of the classifier's labels, as `ecg-agent classify --json` gives them."""
    options = (body or ClassificationRequest()).model_dump()
    options["leads"] = lead_configuration_of(meta, options["leads"])
    return await _detail(request, meta, "classification", options)


@router.post("/ecgs/{ecg_id}/explanation", responses=EXPLANATION_ANSWER)
async def explanation(meta: OwnedEcg, request: Request, body: ExplanationRequest) -> dict[str, Any]:
    """Where in the signal a label comes from, as `ecg-agent explain --json` gives it."""
    options = body.model_dump()
    options["leads"] = lead_configuration_of(meta, options["leads"])
    return await _detail(request, meta, "explanation", options)


async def _detail(
    request: Request, meta: EcgMeta, tool: str, options: dict[str, Any]
) -> dict[str, Any]:
    services = services_of(request)
    result = await services.backend.tool(tool, meta.id, options)
    services.metrics.observe_tool(tool, options.get("leads") or _leads_of(meta), result)
    detail: dict[str, Any] = result["detail"]
    return detail


def lead_configuration_of(meta: EcgMeta, wanted: LeadConfiguration | None) -> LeadConfiguration:
    """The configuration to work with: what was asked for, else the most the recording has.

    Raises:
        LeadError: the recording lacks a lead of the configuration asked for.
    """
    twelve = {"I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"}
    needed: dict[LeadConfiguration, set[str]] = {"12-lead": twelve, "II": {"II"}, "I": {"I"}}
    have = set(meta.leads)
    if wanted is not None:
        missing = needed[wanted] - have
        if missing:
            raise LeadError(f"the recording lacks {', '.join(sorted(missing))} for {wanted}")
        return wanted
    for configuration, leads in needed.items():
        if leads <= have:
            return configuration
    raise LeadError(
        f"the recording has neither 12 leads nor lead II or I; it has {', '.join(meta.leads)}"
    )
