"""The HTTP API and the web page: routes, their description for OpenAPI, and every error as JSON."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from efficientdet.detections import Detections
from efficientdet.errors import EfficientDetError, ImageError
from efficientdet.images.draw import class_color
from efficientdet.images.read import read
from efficientdet.inference.engines.session import EndToEndEngine
from efficientdet.serving.body import RequestError, Upload
from efficientdet.serving.observe import Observed
from efficientdet.serving.openapi import DETECT_REQUEST, DETECT_RESPONSES, DRAWN_RESPONSES
from efficientdet.serving.service import Service
from efficientdet.serving.settings import ServeSettings
from efficientdet.serving.worker import Found, QueueFullError
from efficientdet.settings import to_dict
from efficientdet.text import printable_lines
from efficientdet.version import __version__

if TYPE_CHECKING:
    from efficientdet.inference.detector import Detector

_LARGEST_JPEG = 65_500  # pixels of a side


def create_app(
    detectors: Mapping[str, Detector], settings: ServeSettings | None = None, api_key: str | None = None
) -> FastAPI:
    """The server as an ASGI application, ready to answer; its thread of each model ends with its lifespan.

    Args:
        detectors: by the name under which a request chooses them; the first is the default.
        settings: what is accepted.
        api_key: what `/v1` and `/metrics` want as `Authorization: Bearer KEY`; None for no key.
    """
    service = Service(detectors, settings or ServeSettings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="efficientdet",
        version=__version__,
        summary="Finds objects in images.",
        docs_url=None,  # would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(_open_routes(service))
    app.include_router(_guarded_routes(service), dependencies=[Depends(_key_check(api_key))] if api_key else [])
    app.mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True))
    for kind in (EfficientDetError, ValidationError, HTTPException):
        app.add_exception_handler(kind, _answer_error)
    app.add_middleware(Observed, metrics=service.metrics)
    return app


def _open_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/health")
    def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok", "version": __version__}

    @router.get("/ready", responses={503: {"description": "A model's thread has ended."}})
    def ready() -> Response:
        """Whether requests can be answered. The port is open only between the loading of the models and the end."""
        is_ready = all(worker.is_alive() for worker in service.workers.values())
        return _json({"status": "ready"}) if is_ready else _json({"status": "failed"}, 503)

    return router


def _guarded_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/detect", tags=["detection"], openapi_extra=DETECT_REQUEST, responses=DETECT_RESPONSES)
    async def detect(request: Request) -> Response:
        """Find objects in one or many images."""
        name, images, found = await service.detect(request)
        return _describe(name, images, found)

    @router.post("/v1/detect/annotated", tags=["detection"], openapi_extra=DETECT_REQUEST, responses=DRAWN_RESPONSES)
    async def detect_annotated(request: Request) -> Response:
        """Find objects in one image, and give it back with boxes and labels on it."""
        name, images, found = await service.detect(request, max_images=1)
        if isinstance(found[0], ImageError):
            return _describe(name, images, found)
        kind, data = await run_sync(_draw, found[0], images[0].data, limiter=service.drawing)
        return Response(data, media_type=kind)

    @router.get("/v1/models", tags=["detection"])
    def models() -> Response:
        """The models, each with its classes and default settings, and the limits of a request."""
        limits = {name: getattr(service.settings, name) for name in ("max_images", "max_megabytes", "max_pixels")}
        return _json(
            {"models": [_facts(name, one.detector) for name, one in service.workers.items()], "limits": limits}
        )

    @router.get("/metrics", tags=["operation"])
    def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _key_check(api_key: str) -> Any:
    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        """Compare the key in constant time."""
        if given is None or not secrets.compare_digest(given.credentials.encode("latin-1"), api_key.encode()):
            message = "this server needs its key: send it in the header 'Authorization: Bearer KEY'"
            raise RequestError(401, "bad_key", message, {"WWW-Authenticate": "Bearer"})

    return check


def _describe(name: str, images: Sequence[Upload], found: Sequence[Found]) -> Response:
    """What was found, image by image; 422 where none could be read."""
    rows = [
        {"source": image.name, "error": {"code": "image_unreadable", "message": str(one)}}
        if isinstance(one, ImageError)
        else {**one.to_json(), "source": image.name}
        for image, one in zip(images, found, strict=True)
    ]
    content: dict[str, Any] = {"model": name, "images": rows}
    errors = [row["error"] for row in rows if "error" in row]
    if len(errors) < len(rows):
        return _json(content)
    return _json({"error": errors[0], **content}, 422)


def _draw(detections: Detections, data: bytes) -> tuple[str, bytes]:
    """An annotated image's type and bytes: JPEG, or PNG where that cannot hold it."""
    file, is_large = BytesIO(), max(detections.image_size) > _LARGEST_JPEG
    detections.draw(read(data)).save(file, "PNG" if is_large else "JPEG", quality=92)
    return "image/png" if is_large else "image/jpeg", file.getvalue()


def _facts(name: str, detector: Detector) -> dict[str, Any]:
    return {
        "name": name,
        "class_names": detector.class_names,
        "class_colors": [f"#{bytes(class_color(label)).hex()}" for label in range(len(detector.class_names))],
        "image_size": detector.image_size,
        "engine": str(detector.engine),
        "settings": to_dict(detector.postprocess),
        "lowest_threshold": _lowest_threshold(detector),
        "metrics": detector.info.metrics,
        "about": detector.info.about,
    }


def _lowest_threshold(detector: Detector) -> float:
    """The lowest score threshold that a request may ask for: an end-to-end file has its own inside."""
    engine = detector.engine
    return float(np.max(engine.settings.score_threshold)) if isinstance(engine, EndToEndEngine) else 0.0


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII, which holds any text."""
    return Response(json.dumps(content), status, headers, media_type="application/json")


async def _answer_error(request: Request, error: Exception) -> Response:
    """An error as JSON: what kind, what was wrong, what to do."""
    status, code, message, headers = 400, "bad_setting", str(error), None
    if isinstance(error, RequestError):
        status, code, headers = error.status, error.code, error.headers
    elif isinstance(error, QueueFullError):
        status, code, headers = 429, "busy", {"Retry-After": str(error.retry_after)}
    elif isinstance(error, HTTPException):
        status, code, headers = error.status_code, "http", error.headers
        message = f"{error.detail}: {request.method} {request.url.path}; /openapi.json lists what there is"
    elif isinstance(error, ValidationError):
        first = {str(one["loc"][0]): one["msg"] for one in reversed(error.errors())}  # of each setting
        message = "; ".join(f"{name}: {text}" for name, text in first.items())
    return _json({"error": {"code": code, "message": printable_lines(message)}}, status, headers)
