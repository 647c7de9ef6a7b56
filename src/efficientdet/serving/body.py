"""The body of a request -> encoded images and settings. Nothing is decoded here, and nothing fetched."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from fastapi import Request
from fastapi.datastructures import Headers
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from efficientdet.errors import EfficientDetError
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.text import printable


class RequestError(EfficientDetError):
    """A request is refused.

    Attributes:
        status: HTTP status.
        code: kind of fault, for programs.
        headers: of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


class Upload(NamedTuple):
    """An encoded image, and the name that its sender gave it, safe to show."""

    name: str | None
    data: bytes


def _make_options() -> type[BaseModel]:
    fields: dict[str, Any] = {
        "model": (str | None, Field(None, description="Name of the model; by default the first of /v1/models.")),
        "classes": (list[str] | None, Field(None, description="Names of the classes to return; by default all.")),
    }
    hints = get_type_hints(PostprocessSettings)
    for field in dataclasses.fields(PostprocessSettings):
        for name in filter(None, (field.name, field.metadata["also"])):
            default = " By default the model's; see /v1/models."
            fields[name] = (hints[field.name] | None, Field(None, description=field.metadata["help"] + default))
    # An unknown one is kept, for the check that names the nearest.
    return create_model("Options", __config__=ConfigDict(extra="allow", protected_namespaces=()), **fields)


# What stands in the query or beside the images in the body: strings become numbers; limits are checked later, by the
# settings themselves.
if TYPE_CHECKING:
    Options = BaseModel
else:
    Options = _make_options()


async def read_request(request: Request, max_megabytes: float, max_images: int) -> tuple[list[Upload], dict[str, Any]]:
    """The images of a request, and the settings in its query and beside the images.

    The type of the content decides: `multipart/form-data` has files and fields; `application/json` an object with
    `images`, a list in base64, and settings; anything else is taken as one encoded image.

    Raises:
        RequestError: the body is too large, cut off, damaged, or has no or too many images.
    """
    body = await _read_body(request, int(max_megabytes * 1_000_000))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images, fields = await _from_form(request.headers, body, max_images)
    elif kind == "application/json":
        images, fields = _from_json(body)
    else:
        images, fields = [Upload(None, body)] if body else [], {}
    if not images:
        raise RequestError(
            400, "no_image", "no image: send its bytes as the body, files as multipart/form-data, or JSON with 'images'"
        )
    if len(images) > max_images:
        raise RequestError(413, "too_many_images", f"{len(images)} images; send at most {max_images} in a request")
    return images, {**_settings_in(request.query_params.multi_items()), **fields}


def _settings_in(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Settings from a query or a form: a list of values where a name is repeated, and always for classes."""
    found: dict[str, Any] = {}
    for name, value in items:
        found[name] = [*found.get(name, []), value]
    return {name: values if len(values) > 1 or name == "classes" else values[0] for name, values in found.items()}


async def _read_body(request: Request, most: int) -> bytes:
    refusal = RequestError(
        413, "body_too_large", f"the body is larger than {most:,} bytes; send fewer or smaller images"
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > most:
        raise refusal
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise refusal
        chunks.append(chunk)
    return b"".join(chunks)


class _FormParser(MultiPartParser):
    """Also knows whether it has seen the last boundary: a form that is cut off is no form of fewer images."""

    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True


async def _from_form(headers: Headers, body: bytes, most: int) -> tuple[list[Upload], dict[str, Any]]:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body
        if not parser.is_whole:
            raise MultiPartException("it ends before its last boundary")

    parser = _FormParser(headers, chunks(), max_files=most, max_fields=100)
    parser.spool_max_size = len(body) + 1  # never to a temporary file
    try:
        form = await parser.parse()
    except Exception as error:  # whatever a parser raises, the body is at fault
        reason = f"the multipart body cannot be read ({getattr(error, 'message', error)})"
        raise RequestError(400, "bad_body", f"{reason}; send it as `curl -F image=@photo.jpg` does") from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    images = [Upload(printable(file.filename) or None, await file.read()) for file in files]
    await form.close()
    return images, _settings_in((name, value) for name, value in form.multi_items() if isinstance(value, str))


def _from_json(body: bytes) -> tuple[list[Upload], dict[str, Any]]:
    try:
        content = json.loads(body)
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise ValueError("it must be an object with a list 'images'")
        texts = content.pop("images")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("'images' must be a list of texts in base64; no addresses or paths are opened")
        return [Upload(None, base64.b64decode(text, validate=True)) for text in texts], content
    except (ValueError, RecursionError) as error:
        message = f'the JSON body cannot be read ({error}); send {{"images": ["<base64>"], "threshold": 0.5}}'
        raise RequestError(400, "bad_body", message) from error
