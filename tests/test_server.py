"""The page and the API: predictions of `Model.predict`, errors in one sentence, no uploads on disk, nothing lost."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from commands import Command, piped
from PIL import Image
from starlette.testclient import TestClient

import baseline
from baseline import Model
from baseline.data.image import load_image
from baseline.deploy.server import examples, predictor, security
from baseline.deploy.server.app import create_app
from baseline.deploy.server.predictor import Limits
from baseline.errors import OutputError, WeightsError

HTML_CLASSES = ["<b>ants</b>", 'be"es', "</script><script>alert(1)</script>"]


def make_client(model: Any, tta: bool = False, **options: Any) -> TestClient:
    return TestClient(create_app(model, tta=tta, **options), base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(tiny: Path) -> Iterator[TestClient]:
    with make_client(tiny) as client:
        yield client


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return baseline.load(tiny)


@pytest.fixture(scope="module")
def files(images: Path) -> list[Path]:
    return sorted(images.rglob("*.jpg"))


def uploads(*contents: bytes, name: str = "a.jpg") -> list[tuple[str, Any]]:
    return [("image", (name, content, "image/jpeg")) for content in contents]


def copy_with_facts(tiny: Path, folder: Path, **facts: Any) -> Path:
    """Copy the model folder and change its configuration."""
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(config | facts))
    return folder


def encode(kind: str, image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# ---- predictions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tta", [False, True])
def test_predictions_are_those_of_the_model(tiny: Path, model: Model, files: list[Path], tta: bool) -> None:
    expected = model.predict(files[:5], tta=tta)
    with make_client(tiny, tta=tta) as client:
        form = [("image", (path.name, path.read_bytes(), "image/jpeg")) for path in files[:5]]
        predictions = client.post("/predict", files=form).json()["predictions"]
    assert [prediction["name"] for prediction in predictions] == [path.name for path in files[:5]]
    assert [prediction["predicted"] for prediction in predictions] == expected["predicted"].tolist()
    for row, prediction in zip(expected.to_dict("records"), predictions, strict=True):
        probabilities = prediction["probabilities"]
        assert prediction["confidence"] == pytest.approx(row["confidence"], abs=1e-5)
        assert probabilities == pytest.approx({c: row[f"p_{c}"] for c in model.classes}, abs=1e-5)
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)


def test_forms_json_and_data_urls_get_the_same_predictions(client: TestClient, files: list[Path]) -> None:
    contents = [path.read_bytes() for path in files[:2]]
    texts = [base64.b64encode(content).decode() for content in contents]
    by_form = client.post("/predict", files=uploads(*contents)).json()["predictions"]
    by_text = client.post("/predict", json={"images": texts}).json()["predictions"]
    by_data_url = client.post("/predict", json={"image": f"data:image/jpeg;base64,{texts[0]}"}).json()["predictions"]
    assert len(by_text) == 2 and len(by_data_url) == 1
    for one, other in zip((*by_form, by_form[0]), (*by_text, *by_data_url), strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5) and other["name"] == ""
    top = client.post("/predict?top=1", json={"image": texts[0]}).json()["predictions"][0]
    assert list(top["probabilities"]) == [top["predicted"]]


def test_images_of_every_format_are_read_as_by_the_model(client: TestClient, model: Model, files: list[Path]) -> None:
    image = Image.open(files[0])
    rotated = Image.Exif()
    rotated[274] = 6
    gray = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    transparent = image.convert("RGBA")
    transparent.putalpha(120)
    kinds = {
        "exif": encode("JPEG", image, exif=rotated),
        "cmyk": encode("JPEG", image.convert("CMYK")),
        "16 bits": encode("PNG", gray),
        "transparent": encode("PNG", transparent),
        "animation": encode("GIF", image, save_all=True, append_images=[Image.open(files[30])]),
        "webp": encode("WEBP", image),
        "tiff": encode("TIFF", image),
        "one bit": encode("PNG", image.convert("1")),
        "one pixel": encode("PNG", image.resize((1, 1))),
        "long": encode("PNG", image.resize((3000, 1))),
    }
    for kind, content in kinds.items():
        prediction = client.post("/predict", files=uploads(content)).json()["predictions"][0]
        expected = model.predict(content, tta=False).iloc[0]
        assert prediction["predicted"] == expected["predicted"], kind
        assert prediction["confidence"] == pytest.approx(expected["confidence"], abs=1e-5), kind
    assert (
        len({client.post("/predict", files=uploads(content)).text for content in (kinds["exif"], kinds["webp"])}) == 2
    )


def test_multilabel_predictions_are_all_labels_above_the_threshold(
    tiny: Path, tmp_path: Path, files: list[Path]
) -> None:
    folder = copy_with_facts(tiny, tmp_path / "many", task="multilabel", threshold=0.45)
    expected = baseline.load(folder).predict(files, tta=False)["predicted"].tolist()
    with make_client(folder) as client:
        predictions = client.post("/predict", files=uploads(*(path.read_bytes() for path in files))).json()[
            "predictions"
        ]
        assert 'data-multilabel="1"' in client.get("/").text
    assert [";".join(prediction["predicted"]) for prediction in predictions] == expected
    assert len({len(prediction["predicted"]) for prediction in predictions}) > 1


def test_grad_cam_depends_on_image_and_class(client: TestClient, files: list[Path]) -> None:
    content = encode("PNG", Image.open(files[0]).resize((300, 200)))
    overlays = {}
    for name in ("ants", "bees"):
        answer = client.post("/gradcam", files=uploads(content), data={"class": name})
        assert answer.headers["content-type"] == "image/jpeg"
        overlays[name] = Image.open(io.BytesIO(answer.content))
        assert overlays[name].size == (300, 200)
    assert overlays["ants"].tobytes() != overlays["bees"].tobytes()
    best = client.post("/predict", files=uploads(content)).json()["predictions"][0]["predicted"]
    named = client.post("/gradcam", files=uploads(content), data={"class": best}).content
    assert client.post("/gradcam", files=uploads(content)).content == named


# ---- refusals -------------------------------------------------------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", b"image")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"these are words", 415, "not an image"),
        (b"", 422, "empty"),
        (b"\xff\xd8\xff\xe0", 415, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", 415, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", 415, "not an image"),
        (zip_bytes(), 415, "not an image"),
        (png_of(20_000, 20_000), 413, "pixels"),
        (png_of(10_000, 10_000), 413, "10,000 x 10,000 pixels"),
        (png_of(0, 0), 415, "not an image"),
        (b"GIF89a" + bytes(7) + b"\x3b", 415, "not an image"),
        (b"P6 0 0 255\n", 415, "not an image"),
        (png_of(500, 500), 422, "damaged"),
        ("half", 422, "damaged"),
    ],
)
def test_a_bad_upload_is_refused_in_one_sentence(
    client: TestClient, files: list[Path], content: Any, status: int, message: str
) -> None:
    original = files[0].read_bytes()
    content = original[: len(original) // 2] if content == "half" else content
    for address in ("/predict", "/gradcam"):
        answer = client.post(address, files=uploads(content))
        assert answer.status_code == status and message in answer.json()["error"], answer.text
        assert list(answer.json()) == ["error"] and answer.json()["error"].endswith(".")


def test_bad_images_among_several_have_an_error(client: TestClient, files: list[Path]) -> None:
    answer = client.post("/predict", files=uploads(b"words", files[0].read_bytes(), b""))
    first, second, third = answer.json()["predictions"]
    assert answer.status_code == 200
    assert "not an image" in first["error"] and "empty" in third["error"] and second["predicted"]


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"content": b"image", "headers": {"content-type": "image/jpeg"}}, 415, "not 'image/jpeg'"),
        ({"content": b"image"}, 415, "must be multipart/form-data or application/json"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "not valid JSON"),
        ({"content": b"[" * 200_000, "headers": {"content-type": "application/json"}}, 400, "not valid JSON"),
        ({"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 400, "not valid JSON"),
        ({"json": [1]}, 422, "must be an object"),
        ({"json": {}}, 422, "no image in"),
        ({"json": {"image": 7}}, 422, "base64"),
        ({"json": {"image": None}}, 422, "base64"),
        ({"json": {"images": "text"}}, 422, "list"),
        ({"json": {"images": [{}]}}, 422, "list"),
        ({"json": {"image": "é!"}}, 422, "not valid base64"),
        ({"json": {"image": "abc"}}, 422, "not valid base64"),
        ({"json": {"image": ""}}, 422, "empty"),
        ({"data": {"image": "text"}, "files": {}}, 415, "not 'application/x-www-form-urlencoded'"),
        ({"files": uploads(*[b"x"] * 65)}, 400, "Too many files"),
        ({"json": {"images": [""] * 65}}, 413, "At most 64 images"),
        ({"content": b"--x--\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 422, "no image"),
        ({"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "it is cut"),
        ({"content": b"--y--", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "cannot be read"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"files": uploads(b"x"), "params": {"top": "0"}}, 422, "top must be"),
        ({"files": uploads(b"x"), "params": {"top": "²"}}, 422, "top must be"),
        ({"content": bytes(33_000_000)}, 413, "maximum size of a request is 32 MB"),
        ({"content": iter([bytes(11_000_000)] * 3), "headers": {"content-type": "application/json"}}, 413, "MB"),
    ],
)
def test_a_bad_request_is_refused_in_one_sentence(
    client: TestClient, options: dict[str, Any], status: int, message: str
) -> None:
    answer = client.post("/predict", **options)
    assert answer.status_code == status and message in answer.json()["error"], answer.text


def test_an_unknown_class_is_refused(client: TestClient, files: list[Path]) -> None:
    answer = client.post("/gradcam", files=uploads(files[0].read_bytes()), data={"class": "ant"})
    assert answer.status_code == 422 and "Did you mean 'ants'?" in answer.json()["error"]
    text = base64.b64encode(files[0].read_bytes()).decode()
    assert client.post("/gradcam", json={"image": text, "class": ["ants"]}).status_code == 422


def test_only_own_host_names_and_own_pages_are_accepted(tiny: Path, files: list[Path]) -> None:
    with make_client(tiny, hosts=["images.example"]) as client:
        for host, status in {
            "localhost:8000": 200, "127.0.0.1": 200, "[::1]:80": 200, "192.168.1.4:80": 200, "images.example": 200,
            "evil.example": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example": 403, "": 403, "[": 403,
        }.items():  # fmt: skip
            assert client.get("/health", headers={"host": host}).status_code == status, host
        for origin, status in {
            "http://localhost": 200, "http://evil.example": 403, "null": 403, "http://localhost.evil.example": 403,
            "http://localhost:8001": 403, "https://images.example": 200, "http://127.0.0.1": 403, "http://[": 403,
        }.items():  # fmt: skip
            answer = client.post("/predict", files=uploads(files[0].read_bytes()), headers={"origin": origin})
            assert answer.status_code == status, origin
            assert not any("access-control" in name for name in answer.headers)


def test_an_internal_error_shows_no_traceback_to_the_client(
    tiny: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with make_client(tiny) as client:
        original = Model._predict_squares
        monkeypatch.setattr(Model, "_predict_squares", lambda *_: 1 / 0)
        answer = client.post("/predict", files=uploads(files[0].read_bytes()))
        assert answer.status_code == 500 and list(answer.json()) == ["error"] and "division" not in answer.text
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.setattr(Model, "_predict_squares", original)
        assert client.post("/predict", files=uploads(files[0].read_bytes())).status_code == 200


# ---- the queue ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[int]]]:
    """An event that blocks the network until it is set, and the sizes of the batches that the network ran."""
    opened, sizes, original = threading.Event(), [], Model._predict_squares
    opened.set()

    def blocked(self: Model, network: Any, squares: Any, *more: Any) -> Any:
        sizes.append(len(squares))
        assert opened.wait(20)
        return original(self, network, squares, *more)

    monkeypatch.setattr(Model, "_predict_squares", blocked)
    yield opened, sizes
    opened.set()


def wait_until(condition: Callable[[], bool]) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 20
        time.sleep(0.01)


def test_waiting_images_share_a_pass_of_the_network(tiny: Path, model: Model, files: list[Path], gate: Any) -> None:
    opened, sizes = gate
    expected = [f"{value:.4f}" for value in model.predict(files[:10], tta=False)["confidence"]]
    with make_client(tiny, limits=Limits(batch=6)) as client, ThreadPoolExecutor(10) as pool:
        opened.clear()
        sizes.clear()
        first = pool.submit(client.post, "/predict", files=uploads(files[0].read_bytes()))
        wait_until(lambda: sizes == [1])  # alone, and at once
        others = [pool.submit(client.post, "/predict", files=uploads(path.read_bytes())) for path in files[1:10]]
        wait_until(lambda: client.get("/health").json()["waiting"] == 10)
        time.sleep(0.3)  # until all are decoded
        opened.set()
        confidences = [answer.result().json()["predictions"][0]["confidence"] for answer in (first, *others)]
    assert [f"{value:.4f}" for value in confidences] == expected
    assert sizes == [1, 6, 3]


def test_a_full_queue_says_when_to_try_again(tiny: Path, files: list[Path], gate: Any) -> None:
    opened, _ = gate
    content = files[0].read_bytes()
    with make_client(tiny, limits=Limits(waiting=2, seconds=8)) as client, ThreadPoolExecutor(2) as pool:
        opened.clear()
        pending = [pool.submit(client.post, "/predict", files=uploads(content))]
        wait_until(lambda: client.get("/health").json()["waiting"] == 1)
        refused = client.post("/predict", files=uploads(content, content))  # only one place is free
        assert refused.status_code == 503 and "1 of 2 places" in refused.json()["error"]
        pending.append(pool.submit(client.post, "/predict", files=uploads(content)))
        wait_until(lambda: client.get("/health").json()["waiting"] == 2)
        for address in ("/predict", "/gradcam"):
            refused = client.post(address, content=b"not read at all")
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert "2 of 2 places" in refused.json()["error"]
        opened.set()
        assert [answer.result().status_code for answer in pending] == [200, 200]
        assert client.post("/predict", files=uploads(content)).status_code == 200
        assert client.post("/predict", files=uploads(content, content, content)).status_code == 413


def test_time_is_limited_and_timed_out_images_are_skipped(tiny: Path, files: list[Path], gate: Any) -> None:
    opened, sizes = gate
    with make_client(tiny, limits=Limits(seconds=0.3)) as client:
        opened.clear()
        sizes.clear()
        for _ in range(2):
            answer = client.post("/predict", files=uploads(files[0].read_bytes()))
            assert answer.status_code == 503 and "no answer after 0.3 s" in answer.json()["error"]
        opened.set()
        wait_until(lambda: client.post("/predict", files=uploads(files[0].read_bytes())).status_code == 200)
        assert sum(sizes) == 2  # the first, and the last
        assert client.get("/health").json()["waiting"] == 0


def test_the_memory_of_all_requests_is_bounded(tiny: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "MAX_BODIES_IN_MEMORY", 0.5)
    with make_client(tiny, limits=Limits(megabytes=1)) as client:
        for _ in range(3):
            refused = client.post("/predict", files=uploads(bytes(700_000)))
            assert refused.status_code == 503 and "Too many requests are being sent" in refused.json()["error"]
            assert client.post("/predict", files=uploads(files[0].read_bytes())).status_code == 200


# ---- nothing on disk ------------------------------------------------------------------------------------------------


def test_no_upload_is_written_to_disk(client: TestClient) -> None:
    opened: list[str] = []
    watching = True

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if watching and (event.startswith("tempfile.") or (event == "open" and writes(args))):
            opened.append(f"{event} {args}")

    def writes(args: tuple[Any, ...]) -> bool:
        return bool(args[2] & (os.O_WRONLY | os.O_RDWR)) and not isinstance(args[0], int)

    sys.addaudithook(watch)
    large = encode("BMP", Image.new("RGB", (1500, 1500)))
    assert len(large) > 6_000_000
    for answer in (
        client.post("/predict", files=uploads(large, large)),
        client.post("/predict", json={"image": base64.b64encode(large).decode()}),
        client.post("/predict", files=uploads(encode("TIFF", Image.new("RGB", (900, 900)), compression="tiff_lzw"))),
        client.post("/gradcam", files=uploads(large)),
    ):
        assert answer.status_code == 200
    watching = False
    assert opened == []


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_escapes_names_and_loads_nothing_from_other_servers(tiny: Path, tmp_path: Path) -> None:
    with make_client(copy_with_facts(tiny, tmp_path / "odd", classes=HTML_CLASSES)) as client:
        page, headers = client.get("/").text, client.get("/").headers
        assert "<b>ants" not in page and "&lt;b&gt;ants" in page and "alert(1)</script>" not in page
        loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
        assert sorted(loaded) == ["data:,", "openapi.json", "serve.css", "serve.js"]
        assert "script-src 'self'" in headers["content-security-policy"] and "unsafe" not in str(headers)
        for address in loaded[1:]:
            answer = client.get(address)
            assert answer.status_code == 200 and "://" not in answer.text and answer.headers["x-content-type-options"]
    assert "data-gradcam" in page and "without test-time augmentation (TTA)" in page and "temperature 1.70" in page


def test_the_api_describes_itself(client: TestClient, files: list[Path]) -> None:
    schema = client.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1") and set(schema["paths"]) == {
        "/predict", "/gradcam", "/health", "/ready", "/metrics"
    }  # fmt: skip
    responses = schema["paths"]["/predict"]["post"]["responses"]
    prediction = responses["200"]["content"]["application/json"]["schema"]["properties"]["predictions"]["items"]
    predictions = client.post("/predict", files=uploads(files[0].read_bytes(), b"words")).json()["predictions"]
    assert {key for returned in predictions for key in returned} == set(prediction["properties"])
    assert {"400", "403", "408", "413", "415", "422", "503"} < set(responses)
    health = client.get("/health").json()
    assert health["status"] == "ok" and health["version"] == baseline.__version__
    assert client.get("/nothing").json() == {"error": "Not Found"} and client.get("/predict").status_code == 405


def test_a_run_adds_its_accuracy_and_some_images(done: baseline.Baseline, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done.folder, tmp_path / "run"))
    with make_client(run) as client:
        page = client.get("/").text
        labels = re.findall(r'data-label="([^"]*)"', page)
        assert len(labels) == examples.MAX_EXAMPLES and labels.count("ants") == 4
        assert f"{done.metrics['test']['tta']['accuracy']:.2%}" in page
        pixels = {np.asarray(load_image(path)).tobytes() for path in done.predictions["path"]}
        shown = [client.get(f"/examples/{number}").content for number in range(len(labels))]
        assert all(np.asarray(Image.open(io.BytesIO(content))).tobytes() in pixels for content in shown)
        small = Image.open(io.BytesIO(client.get("/examples/0/small").content))
        assert max(small.size) <= predictor.THUMBNAIL_SIZE
        assert client.get(f"/examples/{len(labels)}").status_code == 404
        assert client.get("/examples/../manifest.json").status_code == 404
    for model, options in ((run, {"examples": False}), (run / "model", {})):
        with make_client(model, **options) as client:
            assert "examples/0" not in client.get("/").text and client.get("/examples/0").status_code == 404
    (run / "split.csv").write_text("path\nnothing\n")
    with make_client(run) as client:
        assert client.get("/").status_code == 200


# ---- the server -----------------------------------------------------------------------------------------------------

START = """
import sys
from baseline import ConsoleProgress
from baseline.deploy.server import app
from baseline.deploy.server.predictor import Limits
app.IDLE_TIMEOUT_SECONDS = 1
app.serve(sys.argv[1], port=0, tta=False, limits=Limits(seconds=1.5, waiting=400), progress=ConsoleProgress())
"""


@pytest.fixture(scope="module")
def server(done: baseline.Baseline) -> Iterator[tuple[Command, IO[str], int]]:
    """A process that serves the run, the lines that it writes to stderr, and its port."""
    process, lines = piped(done.folder, code=START)
    ports = (re.search(r"serving: http://127.0.0.1:(\d+) ", line) for line in lines)
    yield process, lines, next(int(match[1]) for match in ports if match)
    process.send_signal(signal.SIGKILL)
    lines.close()


def read_all(connection: socket.socket) -> bytes:
    connection.settimeout(10)
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_a_server_that_cannot_start_fails_with_one_line(tiny: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OutputError, match=r"already in use\. Use"):
        baseline.serve(tiny, port=taken.getsockname()[1])
    with pytest.raises(OutputError, match=r"Cannot listen on nowhere\.invalid"):
        baseline.serve(tiny, host="nowhere.invalid", port=0)
    with pytest.raises(OutputError, match="cannot be read"):
        baseline.serve(tmp_path, port=0)
    damaged = Path(shutil.copytree(tiny, tmp_path / "damaged"))
    (damaged / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="damaged"):
        baseline.serve(damaged, port=0)


# ---- a browser ------------------------------------------------------------------------------------------------------

DROP = """([text, name]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), moved = new DataTransfer();
  moved.items.add(new File([bytes], name, { type: "image/jpeg" }));
  dispatchEvent(new DragEvent("drop", { dataTransfer: moved, bubbles: true, cancelable: true }));
}"""


def test_an_image_dropped_in_a_browser_is_predicted(
    server: Any, done: baseline.Baseline, tmp_path: Path, browser: Any
) -> None:
    text_file = tmp_path / "<i>words<b>.jpg"
    text_file.write_text("words")
    address = f"http://127.0.0.1:{server[2]}"
    table = done.predictions
    predictions = baseline.load(done.folder).predict(table["path"].tolist(), tta=False)
    ant = Path(predictions["path"][(table["label"] == "ants") & (predictions["predicted"] == "ants")].iloc[0])
    bee = Path(predictions["path"][predictions["predicted"] == "bees"].iloc[0])
    text = base64.b64encode(ant.read_bytes()).decode()
    requests: list[str] = []
    errors: list[str] = []
    for width, scheme in ((1280, "light"), (390, "dark")):
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(address)
        tab.evaluate(DROP, [text, "ant.jpg"])
        tab.wait_for_selector(".bars li")
        assert tab.locator(".bars b").all_inner_texts() == ["ants", "bees"]
        assert tab.locator(".answer").inner_text().startswith("ants")
        tab.click(".gradcam")
        tab.wait_for_selector("figcaption:not(:empty)")
        assert tab.locator(".card img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        tab.set_input_files("#choose", [bee, text_file])
        tab.wait_for_selector(".failed")
        tab.wait_for_selector(".pending", state="detached")
        assert "not an image" in tab.locator(".failed .answer").inner_text()
        assert tab.locator(".failed .name").inner_text() == text_file.name
        assert tab.locator(".card").nth(1).locator(".answer").inner_text().startswith("bees")
        tab.locator("#examples button").first.click()
        tab.wait_for_selector(".card >> nth=3")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing overflows
        tab.click("#clear")
        assert tab.locator(".card").count() == 0
    assert errors == [] and {url.split("/")[2] for url in requests if url.startswith("http")} == {address[7:]}


# ---- shutdown, which comes last as it stops the server ---------------------------------------------------------------


def test_a_server_loses_no_request_ends_slow_ones_and_stops_at_once(server: Any, files: list[Path]) -> None:
    process, lines, port = server
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"

    def post(number: int) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        form = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{number}"\r\n\r\n'.encode()
        body = form + files[number % len(files)].read_bytes() + b"\r\n--x--\r\n"
        connection.request("POST", "/predict", body, {"Content-Type": "multipart/form-data; boundary=x"})
        return json.loads(connection.getresponse().read())["predictions"][0]

    with ThreadPoolExecutor(100) as pool:
        assert [prediction["name"] for prediction in pool.map(post, range(100))] == [
            str(number) for number in range(100)
        ]
    slow = {part: socket.create_connection(("127.0.0.1", port)) for part in (b"", head[:50], head + b"\r\n{")}
    for part, connection in slow.items():
        connection.sendall(part)
    huge = socket.create_connection(("127.0.0.1", port))
    huge.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000)
    assert b" 400 " in read_all(huge)
    answers = [read_all(connection) for connection in slow.values()]
    assert answers[:2] == [b"", b""] and b" 408 " in answers[2] and b"incomplete after 1.5 s" in answers[2]
    busy = socket.create_connection(("127.0.0.1", port))
    busy.sendall(head + b"\r\n{")
    time.sleep(0.2)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(10)
    assert time.monotonic() - start < 3
    assert "Traceback" not in lines.read()
