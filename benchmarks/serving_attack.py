"""Measures a served model under slow and hostile clients: the answers for honest ones, and memory. Prints JSON lines.

python benchmarks/serving_attack.py runs/mine images/ --seconds 600     # 64 slow, 64 hostile and 4 honest clients
python benchmarks/serving_attack.py runs/mine images/ --bombs 50        # memory after decompression bombs
"""

from __future__ import annotations

import http.client
import io
import itertools
import json
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer
from PIL import Image
from serving import elapsed_ms, print_json

HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
FORM = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


@contextmanager
def running_server(run: Path) -> Iterator[tuple[int, int]]:
    """Yield the port and the process id of a server."""
    command = [sys.executable, "-m", "baseline", "serve", str(run), "--port", "0", "--no-examples", "--no-tta"]
    command += ["--log-format", "none"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        port = next(int(match[1]) for line in process.stderr if (match := re.search(r"serving: \S+:(\d+) ", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield port, process.pid
        finally:
            process.send_signal(signal.SIGTERM)


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def request(content: bytes) -> bytes:
    body = FORM + content + b"\r\n--x--\r\n"
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def bomb(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def status(port: int, data: bytes, timeout: float = 60) -> str:
    """Send bytes to a new connection and return the status code of the answer, or why there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
            connection.sendall(data)
            answer = connection.recv(200)
        return answer.split()[1].decode() if answer.startswith(b"HTTP/") else "closed"
    except OSError as error:
        return type(error).__name__


def hostile_requests(images: list[bytes]) -> list[bytes]:
    bodies = [bomb(8000, 8000), bomb(9000, 9000), bomb(65_000, 900), images[0][:2000], b"", random.randbytes(10**6)]
    deep = b"[" * 100_000
    return [
        *map(request, bodies),
        request(images[0])[:3000],
        b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000,
        HEAD + b"Content-Length: 99999999999\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + b"Content-Length: %d\r\n\r\n" % len(deep) + deep,
        b"\x16\x03\x01" + random.randbytes(500),
    ]  # fmt: skip


class Attack:
    """Clients in threads of their own that go on until `stop`."""

    def __init__(self, port: int, images: list[bytes]) -> None:
        self.port, self.images, self.stopped = port, images, threading.Event()
        self.answers: dict[str, Counter[str]] = {"hostile": Counter(), "honest": Counter(), "slow": Counter()}
        self.milliseconds: list[float] = []
        self.threads: list[threading.Thread] = []

    def start(self, count: int, client: Callable[[random.Random], None]) -> None:
        for number in range(count):
            self.threads.append(threading.Thread(target=self._repeat, args=(client, number), daemon=True))
            self.threads[-1].start()

    def _repeat(self, client: Callable[[random.Random], None], number: int) -> None:
        rng = random.Random(number)
        while not self.stopped.is_set():
            with suppress(OSError):
                client(rng)

    def slow(self, rng: random.Random) -> None:
        """Send a request byte by byte, for as long as the server lets it."""
        data = request(rng.choice(self.images))
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            for byte in data:
                if self.stopped.wait(0.2):
                    return
                connection.sendall(bytes([byte]))
        self.answers["slow"]["sent"] += 1

    def hostile(self, rng: random.Random, requests: list[bytes]) -> None:
        self.answers["hostile"][status(self.port, rng.choice(requests))] += 1
        self.stopped.wait(rng.random())

    def honest(self, rng: random.Random) -> None:
        """Send an image, and again after the time that a 503 asks for."""
        body = FORM + rng.choice(self.images) + b"\r\n--x--\r\n"
        start = time.perf_counter()
        for _ in itertools.count():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            try:
                connection.request("POST", "/predict", body, {"Content-Type": "multipart/form-data; boundary=x"})
                answer = connection.getresponse()
                content = answer.read()
            except OSError as error:  # such as no answer in time, which counts as well
                self.answers["honest"][type(error).__name__] += 1
                return
            self.answers["honest"][str(answer.status)] += 1
            if answer.status != 503 or self.stopped.wait(float(answer.headers["Retry-After"])):
                break
        if answer.status == 200:
            assert json.loads(content)["predictions"][0]["predicted"]
            self.milliseconds.append(1000 * (time.perf_counter() - start))
        self.stopped.wait(0.5)


def main(
    run: Path, images: Path, seconds: float = 600, slow: int = 64, hostile: int = 64, honest: int = 4, bombs: int = 0
) -> None:
    contents = [path.read_bytes() for path in sorted(images.rglob("*.jpg"))[:100]]
    with running_server(run) as (port, pid):
        for content in contents[:20]:
            status(port, request(content))
        if bombs:
            before, data = resident_mb(pid), request(bomb(8000, 8000))
            answers = Counter(status(port, data) for _ in range(bombs))
            time.sleep(1)
            print_json(part="bombs", sent=bombs, answers=answers, before_mb=before, after_mb=resident_mb(pid))
            return
        attack, requests = Attack(port, contents), hostile_requests(contents)
        for count, client in ((slow, attack.slow), (hostile, lambda rng: attack.hostile(rng, requests))):
            attack.start(count, client)
        attack.start(honest, attack.honest)
        start, memory = time.perf_counter(), []
        while (passed := time.perf_counter() - start) < seconds:
            time.sleep(min(seconds / 10, 30))
            memory.append(resident_mb(pid))
            print_json(part="memory", seconds=passed, resident_mb=memory[-1], answered=len(attack.milliseconds))
        attack.stopped.set()
        for thread in attack.threads:
            thread.join()
        alone = elapsed_ms(lambda: status(port, request(contents[0])))
        print_json(part="clients", seconds=seconds, slow=slow, hostile=hostile, honest=honest, answers=attack.answers)
        if len(attack.milliseconds) > 1:
            print_json(
                part="honest", answered=len(attack.milliseconds), median_ms=statistics.median(attack.milliseconds),
                p95_ms=statistics.quantiles(attack.milliseconds, n=20)[-1], afterwards_ms=alone,
            )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
