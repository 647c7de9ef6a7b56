"""What OpenAPI says of requests and answers beside the settings, which it takes from `body.Options`; with examples."""

from __future__ import annotations

from typing import Any

from efficientdet.serving.body import Options

_FOUND = {
    "model": "people",
    "images": [
        {
            "source": "photo.jpg",
            "image_size": [480, 640],
            "detections": [
                {"box_xyxy": [131.2, 40.5, 402.0, 471.9], "score": 0.91, "label": 0, "class_name": "person"},
            ],
        }
    ],
}
_ERRORS: dict[int | str, str] = {
    400: "A setting or the body is wrong.",
    401: "The key is missing or wrong.",
    408: "The request took too long to arrive.",
    413: "The body is too large, or has too many images.",
    422: "No image of the request can be read.",
    429: "Too much is waiting; Retry-After says when to try again.",
    504: "The answer would take too long.",
}
_EXAMPLE = {"error": {"code": "bad_setting", "message": "score_threshold is 2.0; it must be at least 0 and at most 1"}}


def _responses(kind: str, content: dict[str, Any], description: str) -> dict[int | str, dict[str, Any]]:
    error = {"application/json": {"example": _EXAMPLE}}
    found: dict[int | str, dict[str, Any]] = {200: {"description": description, "content": {kind: content}}}
    return found | {status: {"description": text, "content": error} for status, text in _ERRORS.items()}


_BYTES = {"schema": {"type": "string", "format": "binary"}}
DETECT_RESPONSES = _responses(
    "application/json",
    {"example": _FOUND},
    "For each image, in order: its size as [height, width], and its objects, with boxes as [left, top, right, bottom] "
    "in pixels; or, of several images, the error of one that cannot be read.",
)
DRAWN_RESPONSES = _responses("image/jpeg", _BYTES, "The image with boxes; a PNG where JPEG cannot hold its size.")
_BASE64 = {"type": "array", "items": {"type": "string", "format": "byte"}}
DETECT_REQUEST = {
    "parameters": [
        {"name": name, "in": "query", "description": schema.pop("description"), "schema": schema}
        for name, schema in Options.model_json_schema()["properties"].items()
    ],
    "requestBody": {
        "required": True,
        "description": "One encoded image as it is, files of a form, or images in base64. A form and JSON may hold the "
        "settings too. Paths and addresses are not opened.",
        "content": {
            "image/*": _BYTES,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/json": {
                "schema": {"type": "object", "required": ["images"], "properties": {"images": _BASE64}},
                "example": {"images": ["iVBORw0KGgo..."], "score_threshold": 0.5, "classes": ["person"]},
            },
        },
    },
}
