"""How errors look from outside: problem+json for programs, a page for people."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from kvstore import errors
from kvstore.apps.shortener.pages import page
from kvstore.apps.shortener.problems import Problem, TooMany

Answer = tuple[int, dict[str, Any], dict[str, str]]
"""Status, problem document, headers."""


def problem_of(error: Exception) -> Answer:
    """What an error is to a client. What is not known is a 500 that tells nothing."""
    match error:
        case TooMany():
            return error.status, error.document(), {"retry-after": str(error.extra["retry_after"])}
        case Problem():
            more = {"www-authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else {}
            return error.status, error.document(), more
        case RequestValidationError():
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][1:]) or "body"
            return 422, _document(422, f"{where}: {first['msg']}", field=where), {}
        case HTTPException():
            return error.status_code, _document(error.status_code, error.detail), dict(error.headers or {})
        case errors.Unresolved():
            detail = "the store did not answer in time; it may have happened: repeat with the same key"
            return 504, _document(504, detail, code=error.code), {"retry-after": "1"}
        case errors.NotNow():
            return (
                503,
                _document(503, "the store cannot take this now", code=error.code),
                {"retry-after": "1"},
            )
        case _:
            return 500, _document(500, "something broke here"), {}


def _document(status: int, detail: str, **extra: Any) -> dict[str, Any]:
    title = HTTPStatus(status).phrase
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, **extra}


async def on_error(request: Request, error: Exception) -> Response:
    """Answer with a page where a browser asks for one, else with a problem."""
    status, document, headers = problem_of(error)
    wants_page = "text/html" in request.headers.get("accept", "")
    if wants_page and not request.url.path.startswith("/api/"):
        return page("problem.html", status=status, headers=headers, problem=document)
    return JSONResponse(document, status, headers, media_type="application/problem+json")
