"""The page and the API: the numbers of `Model.predict`, refusals in a sentence, nothing on the disk, nothing lost."""

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
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import baseline
from baseline import Model, OutputError, WeightsError, web
from baseline.web import Limits, application

ODD = ["<b>ants</b>", 'be"es', "</script><script>alert(1)</script>"]


def client_of(model: Any, **options: Any) -> TestClient:
    return TestClient(application(model, **options), base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(tiny: Path) -> Iterator[TestClient]:
    with client_of(tiny) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return baseline.load(tiny)


@pytest.fixture(scope="module")
def files(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.jpg"))


def sent(*contents: bytes, name: str = "a.jpg") -> list[tuple[str, Any]]:
    return [("photo", (name, content, "image/jpeg")) for content in contents]


def with_facts(tiny: Path, folder: Path, **facts: Any) -> Path:
    """A copy of the model that says something else of itself."""
    shutil.copytree(tiny, folder)
    told = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(told | facts))
    return folder


def picture(kind: str, image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# ---- what is predicted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tta", [False, True])
def test_it_tells_what_the_model_predicts(tiny: Path, model: Model, files: list[Path], tta: bool) -> None:
    expected = model.predict(files[:5], tta=tta)
    with client_of(tiny, tta=tta) as client:
        form = [("photo", (path.name, path.read_bytes(), "image/jpeg")) for path in files[:5]]
        found = client.post("/predict", files=form).json()["predictions"]
    assert [each["name"] for each in found] == [path.name for path in files[:5]]
    assert [each["predicted"] for each in found] == expected["predicted"].tolist()
    for row, each in zip(expected.to_dict("records"), found, strict=True):
        assert each["confidence"] == pytest.approx(row["confidence"], abs=1e-5)
        assert each["probabilities"] == pytest.approx({c: row[f"p_{c}"] for c in model.classes}, abs=1e-5)
        assert list(each["probabilities"].values()) == sorted(each["probabilities"].values(), reverse=True)


def test_json_forms_and_data_addresses_are_told_the_same(client: TestClient, files: list[Path]) -> None:
    contents = [path.read_bytes() for path in files[:2]]
    texts = [base64.b64encode(content).decode() for content in contents]
    by_form = client.post("/predict", files=sent(*contents)).json()["predictions"]
    by_text = client.post("/predict", json={"photos": texts}).json()["predictions"]
    by_address = client.post("/predict", json={"photo": f"data:image/jpeg;base64,{texts[0]}"}).json()["predictions"]
    assert len(by_text) == 2 and len(by_address) == 1
    for one, other in zip((*by_form, by_form[0]), (*by_text, *by_address), strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5) and other["name"] == ""
    top = client.post("/predict?top=1", json={"photo": texts[0]}).json()["predictions"][0]
    assert list(top["probabilities"]) == [top["predicted"]]


def test_photos_of_every_kind_are_read_as_elsewhere(client: TestClient, model: Model, files: list[Path]) -> None:
    photo = Image.open(files[0])
    turned = Image.Exif()
    turned[274] = 6
    grey = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    clear = photo.convert("RGBA")
    clear.putalpha(120)
    kinds = {
        "exif": picture("JPEG", photo, exif=turned),
        "cmyk": picture("JPEG", photo.convert("CMYK")),
        "16 bits": picture("PNG", grey),
        "clear": picture("PNG", clear),
        "animation": picture("GIF", photo, save_all=True, append_images=[Image.open(files[30])]),
        "webp": picture("WEBP", photo),
        "tiff": picture("TIFF", photo),
        "one bit": picture("PNG", photo.convert("1")),
        "one pixel": picture("PNG", photo.resize((1, 1))),
        "long": picture("PNG", photo.resize((3000, 1))),
    }
    for kind, content in kinds.items():
        told = client.post("/predict", files=sent(content)).json()["predictions"][0]
        expected = model.predict(content, tta=False).iloc[0]
        assert told["predicted"] == expected["predicted"], kind
        assert told["confidence"] == pytest.approx(expected["confidence"], abs=1e-5), kind
    assert len({client.post("/predict", files=sent(each)).text for each in (kinds["exif"], kinds["webp"])}) == 2


def test_of_many_labels_all_above_the_threshold_are_told(tiny: Path, tmp_path: Path, files: list[Path]) -> None:
    folder = with_facts(tiny, tmp_path / "many", labels="many", threshold=0.45)
    expected = baseline.load(folder).predict(files, tta=False)["predicted"].tolist()
    with client_of(folder) as client:
        found = client.post("/predict", files=sent(*(path.read_bytes() for path in files))).json()["predictions"]
        assert 'data-many="1"' in client.get("/").text
    assert [";".join(each["predicted"]) for each in found] == expected
    assert len({len(each["predicted"]) for each in found}) > 1


def test_grad_cam_is_a_picture_of_the_photo_and_of_the_class(client: TestClient, files: list[Path]) -> None:
    content = picture("PNG", Image.open(files[0]).resize((300, 200)))
    pictures = {}
    for name in ("ants", "bees"):
        answer = client.post("/gradcam", files=sent(content), data={"class": name})
        assert answer.headers["content-type"] == "image/jpeg"
        pictures[name] = Image.open(io.BytesIO(answer.content))
        assert pictures[name].size == (300, 200)
    assert pictures["ants"].tobytes() != pictures["bees"].tobytes()
    best = client.post("/predict", files=sent(content)).json()["predictions"][0]["predicted"]
    named = client.post("/gradcam", files=sent(content), data={"class": best}).content
    assert client.post("/gradcam", files=sent(content)).content == named


# ---- what is refused ------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", b"photo")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"these are words", 415, "no photo"),
        (b"", 422, "empty"),
        (b"\xff\xd8\xff\xe0", 415, "no photo"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", 415, "no photo"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", 415, "no photo"),
        (zipped(), 415, "no photo"),
        (png_of(20_000, 20_000), 413, "pixels"),
        (png_of(10_000, 10_000), 413, "10,000 x 10,000 pixels"),
        (png_of(0, 0), 415, "no photo"),
        (b"GIF89a" + bytes(7) + b"\x3b", 415, "no photo"),
        (b"P6 0 0 255\n", 415, "no photo"),
        (png_of(500, 500), 422, "damaged"),
        ("half", 422, "damaged"),
    ],
)
def test_a_bad_upload_is_refused_in_a_sentence(
    client: TestClient, files: list[Path], content: Any, status: int, words: str
) -> None:
    whole = files[0].read_bytes()
    content = whole[: len(whole) // 2] if content == "half" else content
    for address in ("/predict", "/gradcam"):
        answer = client.post(address, files=sent(content))
        assert answer.status_code == status and words in answer.json()["error"], answer.text
        assert list(answer.json()) == ["error"] and answer.json()["error"].endswith(".")


def test_of_several_photos_the_bad_ones_say_why(client: TestClient, files: list[Path]) -> None:
    answer = client.post("/predict", files=sent(b"words", files[0].read_bytes(), b""))
    first, second, third = answer.json()["predictions"]
    assert answer.status_code == 200
    assert "no photo" in first["error"] and "empty" in third["error"] and second["predicted"]


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"content": b"photo", "headers": {"content-type": "image/jpeg"}}, 415, "not 'image/jpeg'"),
        ({"content": b"photo"}, 415, "was needed"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "no JSON"),
        ({"content": b"[" * 200_000, "headers": {"content-type": "application/json"}}, 400, "no JSON"),
        ({"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 400, "no JSON"),
        ({"json": [1]}, 422, "was needed"),
        ({"json": {}}, 422, "no photo in"),
        ({"json": {"photo": 7}}, 422, "base64"),
        ({"json": {"photo": None}}, 422, "base64"),
        ({"json": {"photos": "text"}}, 422, "list"),
        ({"json": {"photos": [{}]}}, 422, "list"),
        ({"json": {"photo": "é!"}}, 422, "no base64"),
        ({"json": {"photo": "abc"}}, 422, "no base64"),
        ({"json": {"photo": ""}}, 422, "empty"),
        ({"data": {"photo": "text"}, "files": {}}, 415, "not 'application/x-www-form-urlencoded'"),
        ({"files": sent(*[b"x"] * 65)}, 400, "Too many files"),
        ({"json": {"photos": [""] * 65}}, 413, "At most 64 photos"),
        ({"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 422, "no photo"),
        ({"content": b"--y--", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "cannot be read"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"files": sent(b"x"), "params": {"top": "0"}}, 422, "top has to be"),
        ({"files": sent(b"x"), "params": {"top": "²"}}, 422, "top has to be"),
        ({"content": bytes(33_000_000)}, 413, "At most 32 MB"),
        ({"content": iter([bytes(11_000_000)] * 3), "headers": {"content-type": "application/json"}}, 413, "MB"),
    ],
)
def test_a_bad_request_is_refused_in_a_sentence(
    client: TestClient, options: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post("/predict", **options)
    assert answer.status_code == status and words in answer.json()["error"], answer.text


def test_a_class_that_is_not_there_is_refused(client: TestClient, files: list[Path]) -> None:
    answer = client.post("/gradcam", files=sent(files[0].read_bytes()), data={"class": "ant"})
    assert answer.status_code == 422 and "Did you mean 'ants'?" in answer.json()["error"]
    text = base64.b64encode(files[0].read_bytes()).decode()
    assert client.post("/gradcam", json={"photo": text, "class": ["ants"]}).status_code == 422


def test_only_own_names_and_own_pages_may_ask(tiny: Path, files: list[Path]) -> None:
    with client_of(tiny, hosts=["photos.example"]) as client:
        for host, status in {
            "localhost:8000": 200, "127.0.0.1": 200, "[::1]:80": 200, "192.168.1.4:80": 200, "photos.example": 200,
            "evil.example": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example": 403, "": 403, "[": 403,
        }.items():  # fmt: skip
            assert client.get("/health", headers={"host": host}).status_code == status, host
        for origin, status in {
            "http://localhost": 200, "http://evil.example": 403, "null": 403, "http://localhost.evil.example": 403,
            "http://localhost:8001": 403, "https://photos.example": 200, "http://127.0.0.1": 403, "http://[": 403,
        }.items():  # fmt: skip
            answer = client.post("/predict", files=sent(files[0].read_bytes()), headers={"origin": origin})
            assert answer.status_code == status, origin
            assert not any("access-control" in name for name in answer.headers)


def test_a_failure_of_ours_shows_the_client_no_traceback(
    tiny: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with client_of(tiny) as client:
        seen = Model._seen
        monkeypatch.setattr(Model, "_seen", lambda *_: 1 / 0)
        answer = client.post("/predict", files=sent(files[0].read_bytes()))
        assert answer.status_code == 500 and list(answer.json()) == ["error"] and "division" not in answer.text
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.setattr(Model, "_seen", seen)
        assert client.post("/predict", files=sent(files[0].read_bytes())).status_code == 200


# ---- the queue ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[int]]]:
    """Holds the network until it is set; and the sizes of the batches that it saw."""
    opened, sizes, seen = threading.Event(), [], Model._seen
    opened.set()

    def held(self: Model, network: Any, squares: Any, *more: Any) -> Any:
        sizes.append(len(squares))
        assert opened.wait(20)
        return seen(self, network, squares, *more)

    monkeypatch.setattr(Model, "_seen", held)
    yield opened, sizes
    opened.set()


def until(true: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < 20
        time.sleep(0.01)


def test_what_waits_goes_through_the_network_together(tiny: Path, model: Model, files: list[Path], gate: Any) -> None:
    opened, sizes = gate
    expected = [f"{value:.4f}" for value in model.predict(files[:10], tta=False)["confidence"]]
    with client_of(tiny, limits=Limits(batch=6)) as client, ThreadPoolExecutor(10) as pool:
        opened.clear()
        sizes.clear()
        one = pool.submit(client.post, "/predict", files=sent(files[0].read_bytes()))
        until(lambda: sizes == [1])  # alone, and at once
        rest = [pool.submit(client.post, "/predict", files=sent(path.read_bytes())) for path in files[1:10]]
        until(lambda: client.get("/health").json()["waiting"] == 10)
        time.sleep(0.3)  # they are decoded
        opened.set()
        found = [each.result().json()["predictions"][0]["confidence"] for each in (one, *rest)]
    assert [f"{value:.4f}" for value in found] == expected
    assert sizes == [1, 6, 3]


def test_a_full_queue_says_when_to_come_again(tiny: Path, files: list[Path], gate: Any) -> None:
    opened, _ = gate
    content = files[0].read_bytes()
    with client_of(tiny, limits=Limits(waiting=2, seconds=8)) as client, ThreadPoolExecutor(2) as pool:
        opened.clear()
        held = [pool.submit(client.post, "/predict", files=sent(content))]
        until(lambda: client.get("/health").json()["waiting"] == 1)
        refused = client.post("/predict", files=sent(content, content))  # there is room for one
        assert refused.status_code == 503 and "1 of 2 places" in refused.json()["error"]
        held.append(pool.submit(client.post, "/predict", files=sent(content)))
        until(lambda: client.get("/health").json()["waiting"] == 2)
        for address in ("/predict", "/gradcam"):
            refused = client.post(address, content=b"not even looked at")
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert "2 of 2 places" in refused.json()["error"]
        opened.set()
        assert [each.result().status_code for each in held] == [200, 200]
        assert client.post("/predict", files=sent(content)).status_code == 200
        assert client.post("/predict", files=sent(content, content, content)).status_code == 413


def test_time_is_limited_and_what_came_too_late_is_left_out(tiny: Path, files: list[Path], gate: Any) -> None:
    opened, sizes = gate
    with client_of(tiny, limits=Limits(seconds=0.3)) as client:
        opened.clear()
        sizes.clear()
        for _ in range(2):
            answer = client.post("/predict", files=sent(files[0].read_bytes()))
            assert answer.status_code == 503 and "no answer after 0.3 s" in answer.json()["error"]
        opened.set()
        until(lambda: client.post("/predict", files=sent(files[0].read_bytes())).status_code == 200)
        assert sum(sizes) == 2  # the first, and the last
        assert client.get("/health").json()["waiting"] == 0


def test_what_is_held_of_all_requests_is_bounded(
    tiny: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "HELD", 0.5)
    with client_of(tiny, limits=Limits(megabytes=1)) as client:
        for _ in range(3):
            refused = client.post("/predict", files=sent(bytes(700_000)))
            assert refused.status_code == 503 and "Too much is being sent" in refused.json()["error"]
            assert client.post("/predict", files=sent(files[0].read_bytes())).status_code == 200


# ---- nothing on the disk --------------------------------------------------------------------------------------------


def test_no_upload_reaches_the_disk(client: TestClient) -> None:
    opened: list[str] = []
    watching = True

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if watching and (event.startswith("tempfile.") or (event == "open" and writes(args))):
            opened.append(f"{event} {args}")

    def writes(args: tuple[Any, ...]) -> bool:
        return bool(args[2] & (os.O_WRONLY | os.O_RDWR)) and not isinstance(args[0], int)

    sys.addaudithook(watch)
    large = picture("BMP", Image.new("RGB", (1500, 1500)))
    assert len(large) > 6_000_000
    for answer in (
        client.post("/predict", files=sent(large, large)),
        client.post("/predict", json={"photo": base64.b64encode(large).decode()}),
        client.post("/predict", files=sent(picture("TIFF", Image.new("RGB", (900, 900)), compression="tiff_lzw"))),
        client.post("/gradcam", files=sent(large)),
    ):
        assert answer.status_code == 200
    watching = False
    assert opened == []


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_escapes_names_and_loads_nothing_from_elsewhere(tiny: Path, tmp_path: Path) -> None:
    with client_of(with_facts(tiny, tmp_path / "odd", classes=ODD)) as client:
        page, headers = client.get("/").text, client.get("/").headers
        assert "<b>ants" not in page and "&lt;b&gt;ants" in page and "alert(1)</script>" not in page
        loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
        assert sorted(loaded) == ["data:,", "openapi.json", "serve.css", "serve.js"]
        assert "script-src 'self'" in headers["content-security-policy"] and "unsafe" not in str(headers)
        for address in loaded[1:]:
            answer = client.get(address)
            assert answer.status_code == 200 and "://" not in answer.text and answer.headers["x-content-type-options"]
    assert "data-maps" in page and "without test-time augmentation" in page and "temperature 1.70" in page


def test_the_api_describes_itself(client: TestClient, files: list[Path]) -> None:
    told = client.get("/openapi.json").json()
    assert told["openapi"].startswith("3.1") and set(told["paths"]) == {"/predict", "/gradcam", "/health"}
    answers = told["paths"]["/predict"]["post"]["responses"]
    schema = answers["200"]["content"]["application/json"]["schema"]["properties"]["predictions"]["items"]
    found = client.post("/predict", files=sent(files[0].read_bytes(), b"words")).json()["predictions"]
    assert {key for each in found for key in each} == set(schema["properties"])
    assert {"400", "403", "408", "413", "415", "422", "503"} < set(answers)
    health = client.get("/health").json()
    assert health["status"] == "ok" and health["version"] == baseline.__version__
    assert client.get("/nothing").json() == {"error": "Not Found"} and client.get("/predict").status_code == 405


def test_a_run_brings_its_number_and_some_photos(done: baseline.Baseline, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done.folder, tmp_path / "run"))
    with client_of(run) as client:
        page = client.get("/").text
        labels = re.findall(r'data-label="([^"]*)"', page)
        assert len(labels) == web.EXAMPLES and labels.count("ants") == 4
        assert f"{100 * done.metrics['test']['tta']['accuracy']:.1f}\xa0%" in page
        contents = {path.read_bytes() for path in map(Path, done.predictions["path"])}
        assert all(client.get(f"/examples/{number}").content in contents for number in range(len(labels)))
        small = Image.open(io.BytesIO(client.get("/examples/0/small").content))
        assert max(small.size) <= web.SMALL
        assert client.get(f"/examples/{len(labels)}").status_code == 404
        assert client.get("/examples/../manifest.json").status_code == 404
    for model, options in ((run, {"examples": False}), (run / "model", {})):
        with client_of(model, **options) as client:
            assert "examples/0" not in client.get("/").text and client.get("/examples/0").status_code == 404
    (run / "split.csv").write_text("path\nnothing\n")
    with client_of(run) as client:
        assert client.get("/").status_code == 200


# ---- the server -----------------------------------------------------------------------------------------------------

START = """
import sys
from baseline import Terminal, web
web.IDLE_SECONDS = 1
web.serve(sys.argv[1], port=0, limits=web.Limits(seconds=1.5, waiting=400), show=Terminal())
"""


@pytest.fixture(scope="module")
def server(done: baseline.Baseline) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that serves the run, and its port."""
    command = [sys.executable, "-c", START, str(done.folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ports = (re.search(r"serving: http://127.0.0.1:(\d+) ", line) for line in process.stderr)
        yield process, next(int(found[1]) for found in ports if found)
        process.kill()


def read_all(connection: socket.socket) -> bytes:
    connection.settimeout(10)
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_what_cannot_be_served_is_one_line(tiny: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OutputError, match=r"already in use\. Give"):
        baseline.serve(tiny, port=taken.getsockname()[1])
    with pytest.raises(OutputError, match=r"Cannot listen at nowhere\.invalid"):
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


def test_in_a_browser_a_dropped_photo_of_an_ant_is_an_ant(
    server: Any, done: baseline.Baseline, tmp_path: Path, browser: Any
) -> None:
    words = tmp_path / "<i>words<b>.jpg"
    words.write_text("words")
    address = f"http://127.0.0.1:{server[1]}"
    table = done.predictions
    told = baseline.load(done.folder).predict(table["path"].tolist(), tta=False)
    ant = Path(told["path"][(table["label"] == "ants") & (told["predicted"] == "ants")].iloc[0])
    bee = Path(told["path"][told["predicted"] == "bees"].iloc[0])
    text = base64.b64encode(ant.read_bytes()).decode()
    asked: list[str] = []
    complaints: list[str] = []
    for width, scheme in ((1280, "light"), (390, "dark")):
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(address)
        tab.evaluate(DROP, [text, "ant.jpg"])
        tab.wait_for_selector(".bars li")
        assert tab.locator(".bars b").all_inner_texts() == ["ants", "bees"]
        assert tab.locator(".answer").inner_text().startswith("ants")
        tab.click(".look")
        tab.wait_for_selector("figcaption:not(:empty)")
        assert tab.locator(".card img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        tab.set_input_files("#choose", [bee, words])
        tab.wait_for_selector(".wrong")
        tab.wait_for_selector(".waits", state="detached")
        assert "no photo" in tab.locator(".wrong .answer").inner_text()
        assert tab.locator(".wrong .name").inner_text() == words.name
        assert tab.locator(".card").nth(1).locator(".answer").inner_text().startswith("bees")
        tab.locator("#examples button").first.click()
        tab.wait_for_selector(".card >> nth=3")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
        tab.click("#clear")
        assert tab.locator(".card").count() == 0
    assert complaints == [] and {each.split("/")[2] for each in asked if each.startswith("http")} == {address[7:]}


# ---- the end, which comes last as it stops the server ----------------------------------------------------------------


def test_a_server_loses_nothing_ends_slow_requests_and_stops_at_once(server: Any, files: list[Path]) -> None:
    process, port = server
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"

    def posted(number: int) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        form = f'--x\r\nContent-Disposition: form-data; name="photo"; filename="{number}"\r\n\r\n'.encode()
        body = form + files[number % len(files)].read_bytes() + b"\r\n--x--\r\n"
        connection.request("POST", "/predict", body, {"Content-Type": "multipart/form-data; boundary=x"})
        return json.loads(connection.getresponse().read())["predictions"][0]

    with ThreadPoolExecutor(100) as pool:
        assert [each["name"] for each in pool.map(posted, range(100))] == [str(number) for number in range(100)]
    slow = {part: socket.create_connection(("127.0.0.1", port)) for part in (b"", head[:50], head + b"\r\n{")}
    for part, connection in slow.items():
        connection.sendall(part)
    huge = socket.create_connection(("127.0.0.1", port))
    huge.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000)
    assert b" 400 " in read_all(huge)
    answers = [read_all(connection) for connection in slow.values()]
    assert answers[:2] == [b"", b""] and b" 408 " in answers[2] and b"not whole after 1.5 s" in answers[2]
    busy = socket.create_connection(("127.0.0.1", port))
    busy.sendall(head + b"\r\n{")
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=10)[1]
    assert time.monotonic() - began < 3
    assert "Traceback" not in said
