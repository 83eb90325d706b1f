"""A server under clients that are too many, too slow, or send images that are small files and large in memory."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from commands import call
from decoders import decoder_processes, wait_until_none_runs
from PIL import Image, ImageFile
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from baseline.deploy.server import decoder, predictor
from baseline.deploy.server.app import check_json, create_app
from baseline.deploy.server.decoder import DecodeJob, DecoderPool, ImageRefused
from baseline.deploy.server.predictor import Limits
from baseline.deploy.server.security import TimedProtocol


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that needs four bytes for each of its pixels in memory."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def limited(tiny: Path) -> Iterator[int]:
    """The port of a server that accepts less than three connections."""
    config = uvicorn.Config(
        create_app(tiny), http=TimedProtocol, port=0, log_level="critical", limit_concurrency=3, timeout_keep_alive=20
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def test_a_number_of_5000_digits_in_a_request_is_refused(tiny: Path) -> None:
    digits = "9" * 5000
    with TestClient(create_app(tiny), base_url="http://localhost") as client:
        for path in (f"/examples/{digits}", f"/examples/{digits}/small", "/examples/-1", "/examples/²"):
            assert client.get(path).status_code == 404
        assert client.post("/predict", headers={"content-length": digits}).status_code == 413


def test_too_many_connections_are_told_when_to_try_again(limited: int) -> None:
    def get(port: int) -> tuple[bytes, dict[bytes, bytes], bytes]:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            head, _, body = b"".join(iter(lambda: connection.recv(9999), b"")).partition(b"\r\n\r\n")
        start, *lines = head.split(b"\r\n")
        return start, dict(line.lower().split(b": ", 1) for line in lines), body

    assert b" 200 " in get(limited)[0]
    held = [socket.create_connection(("127.0.0.1", limited)) for _ in range(3)]
    time.sleep(0.3)
    start, headers, body = get(limited)
    assert b" 503 " in start and headers[b"retry-after"] == b"1" and headers[b"connection"] == b"close"
    assert headers[b"x-content-type-options"] == b"nosniff" and json.loads(body)["error"].startswith("Too many conn")
    for connection in held:
        connection.close()
    time.sleep(0.3)
    assert b" 200 " in get(limited)[0]


def test_a_malformed_request_is_one_line_in_the_log(limited: int, caplog: pytest.LogCaptureFixture) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked"
    for body in (b"-5\r\nhello\r\n", b"5;" + b"x" * 300_000 + b"\r\nhello\r\n", b"0\r\n" + b"a: b\r\n" * 50_000):
        with socket.create_connection(("127.0.0.1", limited), timeout=20) as connection:
            connection.sendall(head + b"\r\n\r\n" + body)
            assert b" 400 " in connection.recv(9999)
        time.sleep(0.2)
    assert {record.getMessage() for record in caplog.records} == {"a request was refused: it is not valid HTTP"}
    assert [record.exc_info for record in caplog.records] == [None] * 3


SLASHES = b'"' + rb"\/" * 200_000 + b'"'


@pytest.mark.parametrize("body", [b"[" + b"[]," * 100_000, b'{"a":1' + b',"a":1' * 9000 + b"}", SLASHES])
def test_json_that_takes_long_to_parse_is_refused_before(body: bytes) -> None:
    with pytest.raises(HTTPException) as caught:
        check_json(body)
    assert caught.value.status_code == 413
    image = base64.b64encode(bytes(range(256)) * 100).decode()
    check_json(json.dumps({"images": [f"data:image/jpeg;base64,{image}"] * 64}).replace("/", r"\/").encode())


def test_an_image_does_not_wait_for_large_ones(tiny: Path, images: Path) -> None:
    large, small = bomb(7000), (images / "ants" / "00.jpg").read_bytes()
    limits = Limits(seconds=300)
    with TestClient(create_app(tiny, limits=limits), base_url="http://localhost") as client:

        def post(content: bytes) -> int:
            return client.post("/predict", files={"image": content}).status_code

        assert post(small) == 200
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(post(large))) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert [post(small) for _ in range(3)] == [200] * 3
        assert len(answers) < 4
        for thread in threads:
            thread.join()
    assert answers == [200] * 6


def test_images_are_decoded_in_another_process(tiny: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("decoded in the process of the server")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    small = {"image": (images / "ants" / "00.jpg").read_bytes()}
    with TestClient(create_app(tiny), base_url="http://localhost") as client:
        assert client.post("/predict", files=small).status_code == 200
        assert client.post("/gradcam", files=small).status_code == 200


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list processes")
def test_a_decoder_that_never_ends_or_crashes_delays_no_other_image(
    tiny: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"image": (images / "ants" / "00.jpg").read_bytes()}
    wait_until_none_runs()  # those of another test
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # with two, an image may meet the first before it is idle
    monkeypatch.setattr(predictor, "SMALL_SECONDS", 60)
    with TestClient(create_app(tiny, limits=Limits(seconds=300)), base_url="http://localhost") as client:
        assert client.post("/predict", files=small).status_code == 200
        (first,) = decoder_processes()
        monkeypatch.setattr(predictor, "SMALL_SECONDS", 1)
        os.kill(first, signal.SIGSTOP)  # like one whose image takes for ever
        for _ in range(2):
            assert client.post("/predict", files=small).status_code == 200
        assert first not in decoder_processes()
        deadline = time.monotonic() + 60
        while len(decoder_processes()) != 2 and time.monotonic() < deadline:  # one for large images, and a new one
            time.sleep(0.05)
        assert len(decoder_processes()) == 2
    wait_until_none_runs()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list processes")
def test_an_image_whose_decoder_ends_is_decoded_again_once(images: Path) -> None:
    content = (images / "ants" / "00.jpg").read_bytes()
    wait_until_none_runs()  # those of another test
    pool = DecoderPool(1)
    pool.warm_up().result()
    (first,) = decoder_processes()
    os.kill(first, signal.SIGSTOP)  # so that it ends with the image
    future = pool.submit(DecodeJob(("JPEG",), 1_000_000, seconds=60), content)
    time.sleep(0.2)
    os.kill(first, signal.SIGKILL)
    assert future.result() is not None
    ends_any_process = DecodeJob(("JPEG",), "1,000,000", seconds=60)  # type: ignore[arg-type]
    with pytest.raises(ImageRefused, match="it ended the process"):
        pool.submit(ends_any_process, content).result()
    pool.close()
    wait_until_none_runs()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list processes")
def test_a_decoder_that_starts_while_the_server_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(decoder.Decoder):
        def __init__(self) -> None:
            super().__init__()
            pool.close()

    monkeypatch.setattr(decoder, "Decoder", Slow)
    wait_until_none_runs()  # those of another test
    pool = DecoderPool(1)
    pool.warm_up()
    pool.threads.shutdown()
    assert not decoder_processes()


MEMORY = """
import sys, time
from pathlib import Path
from starlette.testclient import TestClient
from baseline.deploy.server import predictor
from baseline.deploy.server.app import create_app

def resident_mb():
    children = [task.read_text().split() for task in Path("/proc/self/task").glob("*/children")]
    files = [Path("/proc", number, "statm") for number in ["self", *sum(children, [])]]
    return sum(int(file.read_text().split()[1]) for file in files) * 4096 / 1e6

contents = [Path(path).read_bytes() for path in sys.argv[2:]]
with TestClient(create_app(sys.argv[1]), base_url="http://localhost") as client:
    for turn, content in enumerate([*contents * 2, contents[1]]):
        assert client.post("/predict", files={"image": content}).status_code == 200
        time.sleep(0.3)
        if turn in (0, 4):
            print(resident_mb())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not report memory")
def test_memory_of_large_images_is_given_back(tiny: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(7900))  # 250 MB
    ended = call(tiny, images / "ants" / "00.jpg", tmp_path / "bomb.png", code=MEMORY)
    assert ended.returncode == 0, ended.stderr
    first, last = map(float, ended.stdout.split())
    assert last - first < 150  # including the process of large images, which has started meanwhile
