"""What an operator sees of the server: metrics for Prometheus, and a line of JSON for each request."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from efficientdet.serving.worker import Worker
from efficientdet.text import printable

LOG = logging.getLogger("efficientdet.serving")
# Asked for every few seconds by machines.
_QUIET = ("/health", "/ready", "/metrics")
# The page may load and connect to what this server gives, and to nothing else; no other site may show it in a frame.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


class JsonLines(logging.Formatter):
    """A log record as one line of JSON; the fields of a request are in its `facts`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line: time (UTC), level, message, facts, and the traceback of an error."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        """Make them, and let the gauge of each model's queue ask its worker."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        by_route = ("method", "route", "status")
        self.requests = Counter("efficientdet_requests", "Requests answered.", by_route, registry=self.registry)
        self.seconds = Histogram(
            "efficientdet_request_seconds", "From the first byte to the answer.", ("route",), registry=self.registry
        )
        self.images = Counter(
            "efficientdet_images", "Images, by what became of them.", ("model", "outcome"), registry=self.registry
        )
        queue = Gauge("efficientdet_waiting_images", "Images that wait.", ("model",), registry=self.registry)
        for name, worker in workers.items():
            queue.labels(name).set_function(worker.__len__)


class Observed:
    """ASGI middleware: counts and logs each request, adds headers, and answers what failed unexpectedly with 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, number = time.perf_counter(), 499, uuid.uuid4().hex  # 499: the client went away
        facts: dict[str, Any] = {}
        scope.setdefault("state", {})["facts"] = facts

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update({**_HEADERS, "X-Request-ID": number})
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except ClientDisconnect:
            pass
        except Exception:
            LOG.exception("failed", extra={"facts": {"id": number}})
            if status == 499:
                await _failure(number)(scope, receive, send_on)
        seconds = time.perf_counter() - start
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(scope["method"] if route != "other" else "", route, status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        facts = {
            "id": number, "client": (scope.get("client") or ("",))[0], "method": printable(scope["method"], 20),
            "path": printable(scope["path"]), "status": status, "milliseconds": round(1000 * seconds, 1), **facts,
        }  # fmt: skip
        LOG.log(logging.DEBUG if route in _QUIET else logging.INFO, "request", extra={"facts": facts})


def _failure(number: str) -> Response:
    error = {"code": "internal", "message": f"the server failed at this request; its log says why, under {number}"}
    return Response(json.dumps({"error": error}), 500, media_type="application/json")
