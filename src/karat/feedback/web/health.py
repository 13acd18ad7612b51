"""Whether the server is well, and the description of its API.

Knows the store's pulse only; says nothing about what is in it.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from sqlalchemy import text
from starlette.requests import Request

from karat.feedback.web.access import PUBLIC, Visitor

router = APIRouter(tags=["server"])
Guest = Annotated[Visitor | None, Depends(PUBLIC)]


@router.get("/health")
def health(request: Request, _: Guest) -> dict[str, str]:
    """Whether the server can read its store; 503 where it cannot."""
    with request.app.state.store.connection() as connection:
        connection.execute(text("SELECT 1"))
    return {"status": "ok"}


@router.get("/api/v1/openapi.json")
def description(request: Request, _: Guest) -> dict[str, Any]:
    """The description of the API, OpenAPI 3.1."""
    return request.app.state.describe()
