"""The page at `/` and the files it loads from this host: HTML, styles and ES modules, as they are.

Its script has the same rights as any other client: it talks to the HTTP API with the user's token.
"""

from __future__ import annotations

import importlib.resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from ecg_agent_ray.facts.statements import STATEMENTS

__all__ = ["add_page"]

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        # text reaches the document as text only, whatever the model or a file name says
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_REVALIDATE = {"Cache-Control": "no-cache"}
"""Kept by the browser and asked about each time, so that a new version shows at once."""


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/`` and its files below ``/page``."""
    folder = importlib.resources.files("ecg_agent_ray") / "_data" / "page"
    index = (folder / "index.html").read_text(encoding="utf-8")
    statements = {
        item.code: {"name": item.name, "meaning": item.meaning, "kind": item.kind}
        for item in STATEMENTS.values()
    }

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(index, headers={"Content-Security-Policy": _POLICY, **_REVALIDATE})

    @app.get("/page/statements.json", include_in_schema=False)
    async def names(request: Request) -> JSONResponse:
        """What the classifier's codes mean, in plain words."""
        return JSONResponse(statements, headers=_REVALIDATE)

    app.mount("/page", _Files(packages=[("ecg_agent_ray", "_data/page")]))


class _Files(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_REVALIDATE)
        return response
