"""The API of a real server: what it answers to requests of every kind."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientdet.errors import ImageError
from efficientdet.images.find import sample_image
from efficientdet.inference.detector import Detector, load

pytest.importorskip("fastapi", reason="fastapi is missing (extra serve)")
from efficientdet.serving.observe import JsonLines  # noqa: E402

PHOTO = sample_image().read_bytes()


@pytest.fixture(scope="module")
def server(start_process: Callable[..., Any], tiny: Path) -> Any:
    return start_process("--weights", f"first={tiny}", "--weights", tiny, "--max-images", 3, "--max-megabytes", 2)


@pytest.fixture(scope="module")
def detector(tiny: Path) -> Detector:
    return load(tiny)


def encoded(*size: int, kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.effect_noise((size[1], size[0]), 90).convert("RGB").save(file, kind)
    return file.getvalue()


def test_the_answer_is_that_of_predict(server: Any, detector: Detector) -> None:
    expected = detector.predict(PHOTO)
    assert len(expected) > 0
    answer = server.detect(PHOTO)
    assert answer.status == 200
    assert answer.content == {"model": "first", "images": [expected.to_json()]}


def test_every_form_of_a_request_has_the_same_answer(server: Any, detector: Detector) -> None:
    other = encoded(50, 90)
    rows = [one.to_json() for one in detector.predict([PHOTO, other], max_detections=2, nms="soft")]
    files = server.form(("image", "a.jpg", PHOTO), ("image", "b.png", other), ("max_detections", None, b"2"))
    texts = [base64.b64encode(image).decode() for image in (PHOTO, other)]
    content = json.dumps({"images": texts, "nms": "soft", "max_detections": 2}).encode()
    form_answer = server.detect(*files, nms="soft").content["images"]
    json_answer = server.detect(content, {"Content-Type": "application/json"}).content["images"]
    for found, names in ((form_answer, ["a.jpg", "b.png"]), (json_answer, [None, None])):
        assert [one["source"] for one in found] == names
        for one, row in zip(found, rows, strict=True):
            assert one["image_size"] == row["image_size"]
            assert [box["class_name"] for box in one["detections"]] == [box["class_name"] for box in row["detections"]]
            for key in ("box_xyxy", "score"):
                values = [[box[key] for box in each["detections"]] for each in (one, row)]
                np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-3)  # of a batch, and of one image


def test_a_request_may_choose_the_model_the_threshold_and_classes(server: Any, detector: Detector) -> None:
    found = server.detect(PHOTO, model="tiny", threshold=0.01, classes=["square"]).content
    expected = detector.predict(PHOTO, score_threshold=0.01)
    assert found == {"model": "tiny", "images": [expected.filter(classes=["square"]).to_json()]}
    assert len(expected.filter(classes=["square"])) > 0
    by_class = detector.predict(PHOTO, score_threshold=(0.01, 1.0))
    assert server.detect(PHOTO, threshold=[0.01, 1.0]).content["images"] == [by_class.to_json()]
    assert server.detect(PHOTO, threshold=1).content["images"][0]["detections"] == []


def test_the_annotated_image(server: Any, detector: Detector) -> None:
    answer = server.ask("POST", "/v1/detect/annotated", PHOTO, max_detections=3)
    assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
    drawn = detector.predict(PHOTO, max_detections=3).draw()
    file = BytesIO()
    drawn.save(file, "JPEG", quality=92)
    assert answer.body == file.getvalue()


def test_only_one_image_can_be_annotated(server: Any) -> None:
    body, headers = server.form(("i", "a.jpg", PHOTO), ("i", "b.jpg", PHOTO))
    answer = server.ask("POST", "/v1/detect/annotated", body, headers)
    assert answer.status == 400
    assert "Maximum number of files is 1" in answer.content["error"]["message"]


def test_an_image_that_jpeg_cannot_hold_comes_back_as_png(server: Any) -> None:
    wide = BytesIO()
    Image.new("L", (70_000, 2)).save(wide, "PNG")
    answer = server.ask("POST", "/v1/detect/annotated", wide.getvalue())
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    assert Image.open(BytesIO(answer.body)).size == (70_000, 2)


def test_an_image_of_several_that_cannot_be_read(server: Any) -> None:
    body, headers = server.form(("i", "a.jpg", PHOTO[:1000]), ("i", "b.jpg", PHOTO), ("i", "c.jpg", b"text"))
    answer = server.detect(body, headers)
    assert answer.status == 200
    first, second, third = answer.content["images"]
    assert len(second["detections"]) > 0
    assert (first["source"], third["source"]) == ("a.jpg", "c.jpg")
    assert {first["error"]["code"], third["error"]["code"]} == {"image_unreadable"}
    assert "not an image" in third["error"]["message"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"treshold": 0.5}, "unknown setting 'treshold'; did you mean 'threshold'?"),
        ({"threshold": 2}, "score_threshold is 2.0; it must be at least 0 and at most 1"),
        ({"threshold": "nan"}, "score_threshold is nan; it must be a finite number"),
        ({"threshold": "high"}, "threshold: Input should be a valid number"),
        ({"threshold": 0.5, "score_threshold": 0.5}, "are the same setting"),
        ({"nms": "medium"}, "nms: Input should be 'hard', 'soft', 'matrix' or 'wbf'"),
        (
            {"max_detections": 101},
            "max_detections is 101; this server allows at most 100 (its option --max-detections)",
        ),
        ({"max_candidates": 10**8}, "this server allows at most 5000"),
        ({"max_detections": 0}, "max_detections is 0"),
        ({"model": "third"}, "unknown model 'third'. Known: first, tiny"),
        ({"classes": "disk"}, "unknown class 'disk'; did you mean 'disc'?"),
        ({"\x1b[2J": 1}, r"unknown setting '\x1b[2J'"),
    ],
)
def test_a_setting_that_cannot_be(query: dict[str, object], message: str, server: Any) -> None:
    answer = server.detect(PHOTO, **query)
    assert answer.status == 400
    assert answer.content["error"]["code"] == "bad_setting"
    assert message in answer.content["error"]["message"]


@pytest.mark.parametrize("value", [["hard"], {}, True, "0.5x", 10**400, float("inf"), "\ud800"])
def test_a_value_of_json_that_cannot_be(value: object, server: Any) -> None:
    content = json.dumps({"images": [base64.b64encode(PHOTO).decode()], "iou_threshold": value, "nms": value})
    answer = server.detect(content.encode(), {"Content-Type": "application/json"})
    assert answer.status == 400
    assert answer.content["error"]["message"]


def test_one_image_that_cannot_be_read_is_422_and_says_why(server: Any) -> None:
    for path in ("/v1/detect", "/v1/detect/annotated"):
        answer = server.ask("POST", path, b"GIF89a, said the file")
        assert answer.status == 422
        assert answer.content["error"]["code"] == "image_unreadable"
        assert "cannot be read" in answer.content["error"]["message"] or "damaged" in answer.content["error"]["message"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server: Any) -> None:
    answer = server.detect(bytes(2_000_001))
    assert (answer.status, answer.content["error"]["code"]) == (413, "body_too_large")


def test_a_body_without_a_length_is_refused_once_it_is_too_large(server: Any) -> None:
    with server.connect() as connection:
        connection.request("POST", "/v1/detect", iter([bytes(500_000)] * 6), encode_chunked=True)
        assert connection.getresponse().status == 413


def test_an_image_with_too_many_pixels_is_refused_by_its_header(
    start_here: Callable[..., Any], detector: Detector
) -> None:
    small = start_here(detector, max_pixels=5000)
    assert small.detect(encoded(50, 100)).status == 200
    answer = small.detect(encoded(51, 100))
    assert answer.status == 422
    assert answer.content["error"]["message"] == "100x51 is over the limit of 5,000 pixels; shrink the image"


def test_tiles_are_those_of_predict_and_not_too_many(server: Any, detector: Detector) -> None:
    tiled = detector.predict(PHOTO, tiles=256)
    assert server.detect(PHOTO, tiles=256).content["images"] == [tiled.to_json()]
    answer = server.detect(PHOTO, tiles=32, overlap=0.9)
    assert answer.status == 422
    message = "tiles of 32; at most 400 are allowed; take larger tiles"
    assert message in answer.content["error"]["message"]
    answer = server.detect(encoded(1, 200_000), tiles=32, overlap=0.9)  # counted without making them
    assert answer.status == 422
    assert message in answer.content["error"]["message"]


def test_the_odd_images_are_read_and_refused_as_by_predict(shared_data: Path, server: Any, detector: Detector) -> None:
    names = json.loads((shared_data / "odd_images" / "manifest.json").read_text())
    assert len(names) > 30
    for name in names:
        data = (shared_data / "odd_images" / name).read_bytes()
        answer = server.detect(*server.form(("image", name, data)))
        try:
            expected = detector.predict(data)
        except ImageError as error:
            assert (answer.status, answer.content["error"]["message"]) == (422, str(error)), name
        else:
            assert (answer.status, answer.content["images"]) == (200, [{**expected.to_json(), "source": name}]), name


def test_what_waits_too_long(start_here: Callable[..., Any], detector: Detector) -> None:
    server = start_here(detector, time_limit=0.2)
    with server.connect() as connection:
        connection.putrequest("POST", "/v1/detect")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"the rest never comes")
        reply = connection.getresponse()
        assert reply.status == 408
        assert "did not arrive within 0.2 s" in json.loads(reply.read())["error"]["message"]


def test_what_is_answered_too_late(
    start_here: Callable[..., Any], detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, go, predict = start_here(detector, time_limit=0.5), threading.Event(), detector.predict

    def wait(*arguments: Any, **settings: Any) -> Any:
        assert go.wait(600)
        return predict(*arguments, **settings)

    monkeypatch.setattr(detector, "predict", wait)
    try:
        while (answer := server.detect(PHOTO)).status == 408:  # on a busy machine even that takes too long
            pass
    finally:
        go.set()
    assert (answer.status, answer.content["error"]["code"]) == (504, "time_limit")
    assert "not done within 0.5 s" in answer.content["error"]["message"]


def test_a_full_house_says_when_to_come_again(start_here: Callable[..., Any], detector: Detector) -> None:
    server = start_here(detector, queue_size=1, max_images=1)
    with server.connect() as slow:
        slow.putrequest("POST", "/v1/detect")
        slow.putheader("Content-Length", str(len(PHOTO)))
        slow.endheaders(PHOTO[:100])  # in progress
        while (answer := server.detect(PHOTO)).status == 200:  # until the server has seen the other one
            pass
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert answer.content["error"]["code"] == "busy"
        slow.send(PHOTO[100:])
        assert slow.getresponse().status == 200
    assert server.detect(PHOTO).status == 200


def test_the_key_is_wanted_where_it_matters(start_here: Callable[..., Any], detector: Detector) -> None:
    server = start_here(detector, "sésame")
    right = {"Authorization": "Bearer sésame".encode().decode("latin-1")}
    for path in ("/v1/models", "/metrics"):
        assert server.ask("GET", path).status == 401
        assert server.ask("GET", path, headers=right).status == 200
    for wrong in ({}, {"Authorization": "Bearer sesame"}, {"Authorization": "Basic x"}, {"Authorization": "Bearer"}):
        answer = server.detect(PHOTO, wrong)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "send it in the header" in answer.content["error"]["message"]
    assert server.detect(PHOTO, right).status == 200
    for path in ("/", "/app.js", "/health", "/ready"):
        assert server.ask("GET", path).status == 200


def test_the_models(server: Any, detector: Detector) -> None:
    answer = server.ask("GET", "/v1/models").content
    assert answer["limits"] == {"max_images": 3, "max_megabytes": 2.0, "max_pixels": 89_478_485}
    first, second = answer["models"]
    assert (first["name"], second["name"]) == ("first", "tiny")
    assert first["class_names"] == ["disc", "square"]
    assert first["class_colors"] == ["#dc144c", "#00c2a8"]
    assert first["engine"] == str(detector.engine)
    assert first["settings"]["score_threshold"] == 0.009
    assert first["lowest_threshold"] == 0


def test_health_and_readiness(server: Any) -> None:
    assert server.ask("GET", "/health").content["status"] == "ok"
    assert server.ask("GET", "/ready").content == {"status": "ready"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/detect", 404), ("POST", "/", 405), ("GET", "/docs", 404), ("GET", "/..%2f..%2fetc/passwd", 404),
     ("GET", "/app.py", 404), ("GET", "/%00", 404), ("DELETE", "/v1/models", 405), ("GET", "/favicon.ico", 404)],
)  # fmt: skip
def test_what_is_not_there(method: str, path: str, status: int, server: Any) -> None:
    answer = server.ask(method, path)
    assert answer.status == status
    assert "/openapi.json lists what there is" in answer.content["error"]["message"]


def test_openapi_describes_every_route_with_examples(server: Any) -> None:
    content = server.ask("GET", "/openapi.json").content
    assert set(content["paths"]) == {
        "/v1/detect",
        "/v1/detect/annotated",
        "/v1/models",
        "/health",
        "/ready",
        "/metrics",
    }
    detect = content["paths"]["/v1/detect"]["post"]
    names = {parameter["name"] for parameter in detect["parameters"]}
    assert {"model", "classes", "threshold", "iou_threshold", "nms", "max_detections"} <= names
    assert set(detect["requestBody"]["content"]) == {"image/*", "multipart/form-data", "application/json"}
    assert detect["responses"]["200"]["content"]["application/json"]["example"]["images"][0]["detections"]
    assert {"400", "401", "408", "413", "422", "429", "504"} <= set(detect["responses"])


def test_every_answer_forbids_what_a_page_does_not_need(server: Any) -> None:
    for path in ("/", "/v1/models", "/missing"):
        headers = server.ask("GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "connect-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
        assert len(headers["x-request-id"]) == 32


def test_metrics_count_requests_and_images(server: Any) -> None:
    def read() -> dict[str, float]:
        lines = server.ask("GET", "/metrics").body.decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    before = read()
    server.detect(PHOTO, model="tiny")
    server.detect(b"no image", model="tiny")
    after = read()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('efficientdet_images_total{model="tiny",outcome="predicted"}') == 1
    assert grown('efficientdet_images_total{model="tiny",outcome="unreadable"}') == 1
    assert grown('efficientdet_requests_total{method="POST",route="/v1/detect",status="422"}') == 1
    assert grown('efficientdet_request_seconds_count{route="/v1/detect"}') == 2
    assert after['efficientdet_waiting_images{model="tiny"}'] == 0


def test_logs_are_json_and_name_no_image(server: Any) -> None:
    body, headers = server.form(("image", "secret.jpg", PHOTO))
    number = server.detect(body, headers).headers["x-request-id"]
    server.ask("GET", "/%1b[2J%0a{}?key=secret")
    server.ask("GET", "/health")
    last = server.ask("GET", "/missing").headers["x-request-id"]
    while server.log[-1].get("id") != last:  # the log is read by another thread
        pass
    log = server.log[next(i for i, line in enumerate(server.log) if line.get("id") == number) :]
    assert [(line["path"], line["status"]) for line in log] == [
        ("/v1/detect", 200), ("/\\x1b[2J\\x0a{}", 404), ("/missing", 404),
    ]  # fmt: skip
    assert (log[0]["model"], log[0]["images"], log[0]["client"]) == ("first", 1, "127.0.0.1")
    assert {line["level"] for line in server.log} <= {"info", "warning"}  # Pillow warns of odd images
    assert "secret" not in json.dumps(server.log)
    assert server.other_lines == []


def test_a_failure_of_the_server_is_logged_and_answered(
    start_here: Callable[..., Any],
    detector: Detector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = start_here(detector)
    monkeypatch.setattr(detector, "_prepare", lambda source: 1 / 0)
    answer = server.detect(PHOTO)
    number = answer.headers["x-request-id"]
    assert (answer.status, answer.content["error"]["code"]) == (500, "internal")
    assert number in answer.content["error"]["message"]
    (record,) = [record for record in caplog.records if record.exc_info]
    line = json.loads(JsonLines().format(record))
    assert (line["id"], line["level"]) == (number, "error")
    assert "ZeroDivisionError" in line["traceback"]
    monkeypatch.undo()
    assert server.detect(PHOTO).status == 200  # it goes on
