"""The routes of the service, on FastAPI: ``/docs`` shows them, ``/openapi.json`` describes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from cluster.serve.asked import refuse_above_limits
from cluster.serve.guard import FAULT, Refusal, RequestGuard
from cluster.serve.locks import KEY_HEADER, api_key
from cluster.serve.messages import (
    About,
    CatalogChange,
    ChatAnswer,
    ChatBody,
    FoundItem,
    FoundItems,
    InsertBody,
    ItemDetails,
    Problem,
    Readiness,
    RecommendAnswer,
    RecommendBatchAnswer,
    RecommendBatchBody,
    RecommendBody,
    ReloadAnswer,
    ReloadBody,
    ScoreAnswer,
    ScoreBody,
)
from cluster.serve.search_queue import TooLateError
from cluster.serve.service import HttpService
from cluster.serve.service_metrics import METRICS
from genrec.errors import InputError

PAGE = Path(__file__).parent / "page"
"""The page at ``/``, where it is installed."""

SCORED_PER_K = 10
"""``POST /v1/score`` takes so many items for each of ``serve.max_k``."""

TEXT = "text/plain; version=0.0.4; charset=utf-8"
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (401, 403, 404, 409, 413, 422, 429, 503, 504)
}
KEY = Security(APIKeyHeader(name=KEY_HEADER, auto_error=False, description="of GENREC_API_KEY"))

router = APIRouter()


def served(request: Request) -> HttpService:
    """The service that answers."""
    return cast("HttpService", request.app.state.service)


def request_id(request: Request) -> str:
    """The id of a request, as the client gave it or as ``RequestGuard`` made it."""
    return cast("str", request.state.request_id)


# Coroutines, as FastAPI calls other dependencies in a thread, where each has to wait for the search's turn to end.
async def _served(request: Request) -> HttpService:
    return served(request)


async def _request_id(request: Request) -> str:
    return request_id(request)


Served = Annotated[HttpService, Depends(_served)]
RequestId = Annotated[str, Depends(_request_id)]


def make_app(service: HttpService) -> ASGIApp:
    """The application of a service; it needs no Ray, so a test can call it."""
    key = api_key()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        following = asyncio.create_task(service.follow())
        yield
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await service.close()

    app = FastAPI(title="genrec", version="1", lifespan=lifespan, responses=PROBLEMS)
    app.state.service, app.state.has_key = service, key is not None
    app.include_router(router)
    app.add_exception_handler(InputError, _refused_input)
    app.add_exception_handler(RequestValidationError, _refused_body)
    app.add_exception_handler(HTTPException, _refused_route)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(TooLateError, _busy)
    app.add_exception_handler(Exception, _failed)
    if PAGE.is_dir():
        app.mount("/", StaticFiles(directory=PAGE, html=True))
    return RequestGuard(app, service.settings, key)


@router.post("/v1/recommend", tags=["recommendations"])
async def recommend(body: RecommendBody, service: Served, id_: RequestId) -> RecommendAnswer:
    """The next items after a history, or of a user of the log."""
    refuse_above_limits(body, service.settings)
    async with service.using(service.run_of(body)) as run:
        return await run.recommend(body, id_)


@router.post("/v1/recommend/batch", tags=["recommendations"])
async def recommend_batch(body: RecommendBatchBody, service: Served, id_: RequestId) -> RecommendBatchAnswer:
    """Several requests in one, answered by one search where they fit into it."""
    most = service.settings.max_batch_request
    if len(body.requests) > most:
        raise InputError(f"requests: got {len(body.requests)}; wanted at most {most} (serve.max_batch_request)")
    return RecommendBatchAnswer(request_id=id_, answers=await _each(body.requests, service, id_))


@router.post("/v1/score", tags=["recommendations"])
async def score(body: ScoreBody, service: Served, id_: RequestId) -> ScoreAnswer:
    """The probability of each of some items as the next one."""
    refuse_above_limits(body, service.settings)
    if len(body.items) > (most := SCORED_PER_K * service.settings.max_k):
        raise InputError(f"items: got {len(body.items)}; wanted at most {most} ({SCORED_PER_K} times serve.max_k)")
    async with service.using(service.run_of(body)) as run:
        return await run.score(body, id_)


@router.post("/v1/chat", tags=["recommendations"])
async def chat(body: ChatBody, service: Served, id_: RequestId) -> ChatAnswer:
    """The policy's next message, of a run that was trained on tasks."""
    async with service.using(service.named(body.run)) as run:
        reply = await run.chat(body)
        return ChatAnswer(request_id=id_, served=run.version, text=reply.text, items=reply.items, ended=reply.ended)


@router.get("/v1/items/{item_id:path}", tags=["catalogue"])
async def item(item_id: str, service: Served, run: str | None = None) -> ItemDetails:
    """What the catalogue knows of an item."""
    found = service.named(run).recommender.item(_known(service, item_id, run))
    return ItemDetails(
        id=found.id,
        title=found.title,
        categories=list(found.categories),
        price=found.price,
        sid=list(found.sid),
        path=list(found.path),
        removed=found.removed,
    )


@router.get("/v1/items", tags=["catalogue"])
async def search_items(
    service: Served,
    title: Annotated[str, Query(max_length=200, description="words that the title holds, or an id")],
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    run: str | None = None,
) -> FoundItems:
    """Search titles."""
    found = await asyncio.to_thread(service.named(run).recommender.search_titles, title, limit)
    return FoundItems(items=[FoundItem(id=one.id, title=one.title) for one in found])


@router.post("/v1/items", tags=["catalogue"], dependencies=[KEY])
async def insert_items(body: InsertBody, service: Served) -> CatalogChange:
    """Insert items: each gets the nearest free semantic ID, and can be recommended from then on."""
    return await service.insert(body.items)


@router.delete("/v1/items/{item_id:path}", tags=["catalogue"], dependencies=[KEY])
async def remove_item(item_id: str, service: Served) -> CatalogChange:
    """Hide an item: no later answer has it."""
    having = await service.having(item_id)
    if not having:
        raise _unknown(item_id)
    return await service.remove(item_id, having)


@router.post("/v1/reload", tags=["service"], dependencies=[KEY])
async def reload(body: ReloadBody, service: Served) -> ReloadAnswer:
    """Serve another run, or newer weights of the same one; the old one stays if the new one fails its smoke test."""
    old = service.named(body.replaces)
    if body.run is not None and not await asyncio.to_thread(old.place.has_neighbour, body.run):
        raise Refusal(404, f"run: there is no {body.run!r} beside the served runs; make one with `genrec full`")
    try:
        # A reload that began goes on to its end, also where its client is gone: half of one would leak what it loaded.
        return await asyncio.shield(service.begin(service.reload(body.run, body.replaces)))
    except InputError as error:
        raise Refusal(409, f"nothing was changed: {error}") from None


@router.get("/v1/about", tags=["service"])
async def about(request: Request, service: Served) -> About:
    """What is served, the limits, and the most frequent categories."""
    return service.about(cast("bool", request.app.state.has_key))


@router.get("/healthz", tags=["service"])
async def healthz() -> dict[str, str]:
    """Whether the process answers at all."""
    return {"status": "alive"}


@router.get("/readyz", tags=["service"])
async def readyz(service: Served, response: Response) -> Readiness:
    """Whether requests are answered; status 503 where not."""
    if service.closing:
        response.status_code = 503
        return Readiness(status="closing")
    return Readiness(status="ready", served=service.versions)


@router.get("/metrics", tags=["service"])
async def metrics() -> Response:
    """The figures of this replica, for Prometheus."""
    return Response(METRICS.text(), media_type=TEXT)


async def _each(bodies: Sequence[RecommendBody], service: HttpService, id_: str) -> list[RecommendAnswer]:
    """The answers of all; the errors of a batch say which of its requests they are of."""
    answered = (recommend(body, service, id_) for body in bodies)
    answers = await asyncio.gather(*answered, return_exceptions=True)
    for place, one in enumerate(answers):
        if isinstance(one, InputError):
            raise InputError(f"requests.{place}: {one}") from one
        if isinstance(one, BaseException):
            raise one
    return [one for one in answers if isinstance(one, RecommendAnswer)]


def _known(service: HttpService, item_id: str, run: str | None) -> str:
    """The id, if the catalogue of the run has it; else 404."""
    if item_id not in service.named(run).recommender.view.rows:
        raise _unknown(item_id)
    return item_id


def _unknown(item_id: str) -> Refusal:
    return Refusal(404, f"no item of the catalogue has the id {item_id[:100]!r}; GET /v1/items?title=… finds ids")


def _refused_input(request: Request, error: Exception) -> Response:
    return _problem(request, 422, str(error))


def _refused_route(request: Request, error: Exception) -> Response:
    """No such path or method, or a file of the page that does not exist."""
    known = cast("HTTPException", error)
    return _problem(request, known.status_code, f"{known.detail}; GET /docs shows every route")


def _refused_body(request: Request, error: Exception) -> Response:
    """All that is wrong with a body, without its values: they may be long, or titles of a history."""
    found = cast("RequestValidationError", error).errors()
    told = [f"{_place_in_body(one)}: {one['msg']}" for one in found[:5]]
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return _problem(request, 422, "; ".join(told) + more)


def _place_in_body(error: Mapping[str, Any]) -> str:
    """The field, or the body where it is no JSON (its place is a number of characters)."""
    inner = () if error["type"] == "json_invalid" else error["loc"][1:]
    return ".".join(str(part) for part in inner) or str(error["loc"][0])


def _refused(request: Request, error: Exception) -> Response:
    refusal = cast("Refusal", error)
    return _problem(request, refusal.status_code, refusal.detail, refusal.headers)


def _busy(request: Request, error: Exception) -> Response:
    return _problem(request, 503, "too many requests of this kind wait already; try again", {"retry-after": "1"})


def _failed(request: Request, error: Exception) -> Response:
    """Any other error: it is raised again after this answer, and ``RequestGuard`` logs it."""
    return _problem(request, 500, FAULT)


def _problem(request: Request, status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as JSON; where the files lie is nobody's business outside."""
    storage = str(served(request).runs[0].record.storage)
    reason = reason.replace(storage, "<storage>")
    return JSONResponse({"error": reason, "request_id": request_id(request)}, status, headers)
