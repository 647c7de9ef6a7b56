"""Bodies of every form, and of none: what is read from them, and that nothing else is raised than a refusal."""

from __future__ import annotations

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="fastapi is missing (extra serve)")
from starlette.requests import Request  # noqa: E402

from efficientdet.serving.body import Options, RequestError, Upload, read_request  # noqa: E402

FORM = "multipart/form-data; boundary=b"


def read(body: bytes, kind: str | None = None, length: int | None = None, step: int = 100, query: bytes = b"") -> Any:
    """What a request with this body holds; the body arrives in steps."""
    chunks = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages[-1]["more_body"] = False

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    headers = [(b"content-type", kind.encode())] if kind is not None else []
    headers += [(b"content-length", str(length).encode())] if length is not None else []
    request = Request({"type": "http", "method": "POST", "headers": headers, "query_string": query}, receive)
    with ThreadPoolExecutor(1) as pool:  # a browser of other tests has its event loop in this thread
        return pool.submit(asyncio.run, read_request(request, max_megabytes=0.01, max_images=3)).result()


def part(name: str, content: bytes, file: str | None = None) -> bytes:
    of_file = f'; filename="{file}"' if file is not None else ""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{of_file}\r\n\r\n'.encode() + content + b"\r\n"


@pytest.mark.parametrize("kind", [None, "image/jpeg", "text/plain", "application/x-www-form-urlencoded", "nonsense"])
def test_other_content_is_one_image(kind: str | None) -> None:
    assert read(b"\xff\xd8 an image", kind) == ([Upload(None, b"\xff\xd8 an image")], {})


def test_a_form_has_files_and_fields() -> None:
    body = part("image", b"one", "1.jpg") + part("threshold", b"0.5") + part("any", b"two", "../\x1b[2J\u202e2.png")
    body += part("classes", b"disc") + part("classes", b"square") + b"--b--\r\n"
    images, fields = read(body, FORM)
    assert images == [Upload("1.jpg", b"one"), Upload("../\\x1b[2J\\u202e2.png", b"two")]
    assert fields == {"threshold": "0.5", "classes": ["disc", "square"]}


def test_a_query_has_settings_and_the_body_goes_before_it() -> None:
    body = part("image", b"one", "1.jpg") + part("threshold", b"0.5") + b"--b--\r\n"
    query = b"threshold=0.1&classes=disc&model=a&tiles=64&tiles=32"
    fields = {"threshold": "0.5", "classes": ["disc"], "model": "a", "tiles": ["64", "32"]}
    assert read(body, FORM, query=query)[1] == fields


def test_json_has_images_in_base64_and_settings() -> None:
    content = {"images": [base64.b64encode(b"one").decode()], "threshold": 0.5, "classes": ["disc"]}
    images, fields = read(json.dumps(content).encode(), "application/json; charset=utf-8")
    assert images == [Upload(None, b"one")]
    assert fields == {"threshold": 0.5, "classes": ["disc"]}


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"", None, 400, "no image: send its bytes as the body"),
        (b"--b--\r\n", FORM, 400, "no image"),
        (part("image", b"") * 2 + b"--b--\r\n", FORM, 400, "no image"),
        (b'{"images": []}', "application/json", 400, "no image"),
        (b"x" * 10_001, None, 413, "the body is larger than 10,000 bytes; send fewer or smaller images"),
        (b"".join(part("i", b"x", "x") for _ in range(4)) + b"--b--\r\n", FORM, 400, "Too many files"),
        (b'{"images": ["", "", "", ""]}', "application/json", 413, "4 images; send at most 3 in a request"),
        (part("image", b"one", "1.jpg"), "multipart/form-data", 400, "Missing boundary"),
        (part("image", b"one", "1.jpg") + part("image", b"tw", "2.jpg"), FORM, 400, "it ends before its last boundary"),
        (b"no form", FORM, 400, "the multipart body cannot be read"),
        (b"[1]", "application/json", 400, "it must be an object with a list 'images'"),
        (b'{"image": "x"}', "application/json", 400, "it must be an object with a list 'images'"),
        (b'{"images": [1]}', "application/json", 400, "no addresses or paths are opened"),
        (b'{"images": ["http://localhost/x.jpg"]}', "application/json", 400, "cannot be read"),
        (b'{"images": ["/etc/passwd"]}', "application/json", 400, "cannot be read"),
        (b"\xff\xfe{", "application/json", 400, "the JSON body cannot be read"),
        (b'{"a":' * 1600, "application/json", 400, "the JSON body cannot be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "application/json", 400, "the JSON body cannot be read"),
    ],
)
def test_a_body_that_cannot_be_used(body: bytes, kind: str | None, status: int, message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("(", r"\(")) as caught:
        read(body, kind)
    assert caught.value.status == status


def test_a_body_that_says_that_it_is_too_large_is_not_read() -> None:
    with pytest.raises(RequestError) as caught:
        read(b"", length=10_001)  # nothing arrives
    assert caught.value.status == 413


WHOLE = part("image", b"\x00\xff one", "1.jpg") + part("threshold", b"0.5") + part("classes", b"a") + b"--b--\r\n"
KINDS = [FORM, "multipart/form-data; boundary=b; charset=hex", "multipart/form-data; boundary=", "application/json"]


@given(
    cut=st.slices(len(WHOLE)),
    put=st.binary(max_size=30),
    at=st.integers(0, len(WHOLE)),
    kind=st.sampled_from(KINDS) | st.text("multipart/form-data;boundary=\"'\\*%", max_size=80),
    step=st.integers(1, 400),
)
@settings(max_examples=200, deadline=None)
def test_a_damaged_body_is_read_or_refused(cut: slice, put: bytes, at: int, kind: str, step: int) -> None:
    body = WHOLE[cut]
    try:
        images, _ = read(body[:at] + put + body[at:], kind, step=step)
    except RequestError as error:
        assert error.status in (400, 413)
        assert str(error)
    else:
        assert all(isinstance(image, Upload) for image in images)


def test_settings_are_turned_from_text_into_their_types() -> None:
    given = Options.model_validate({"threshold": "0.5", "max_detections": "3", "nms": "soft", "unknown": "1"})
    assert given.model_dump(exclude_unset=True) == {
        "threshold": 0.5, "max_detections": 3, "nms": "soft", "unknown": "1",
    }  # fmt: skip
