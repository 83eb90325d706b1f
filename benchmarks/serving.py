"""How quickly a served model answers, beside the bare model in a process of its own. Prints lines of JSON.

python benchmarks/serving.py runs/mine images/     # starting, one image at a time, 50 clients at once
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer

import baseline


def said(**facts: Any) -> None:
    print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in facts.items()}), flush=True)


@contextmanager
def served(run: Path) -> Iterator[tuple[int, float]]:
    """Its port, and after how many seconds it answered."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "baseline", "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        port = next(int(found[1]) for line in process.stderr if (found := re.search(r"serving: \S+:(\d+) ", line)))
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/health")
        connection.getresponse().read()
        yield port, time.perf_counter() - began
        process.send_signal(signal.SIGTERM)


class Client:
    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def __call__(self, name: str, content: bytes) -> dict[str, Any]:
        head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        self.connection.request("POST", "/predict", head + content + b"\r\n--x--\r\n", kind)
        return json.loads(self.connection.getresponse().read())["predictions"][0]


def taken(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def percentiles(milliseconds: list[float]) -> tuple[float, float]:
    return statistics.median(milliseconds), statistics.quantiles(milliseconds, n=20)[-1]


def main(run: Path, images: Path, turns: int = 300, clients: int = 50, each: int = 10, starts: int = 3) -> None:
    contents = [path.read_bytes() for path in sorted(images.rglob("*.jpg"))[:100]]
    said(part="start", seconds=[round(seconds, 1) for seconds in map(started, [run] * starts)])
    model = baseline.load(run)

    @torch.inference_mode()
    def bare(content: bytes) -> Any:
        return model.network(model.inputs([model.load_square(content)])).softmax(-1).tolist()

    with served(run) as (port, _):
        client = Client(port)
        times: dict[str, list[float]] = {"bare": [], "served": []}
        for turn in range(turns + 20):  # the first are not counted
            content = contents[turn % len(contents)]
            ways = {"bare": lambda: bare(content), "served": lambda: client("a", content)}  # noqa: B023
            for name, way in ways.items():
                time.sleep(0.02)  # threads that the other keeps spinning for a while have stopped
                milliseconds = taken(way)
                if turn >= 20:
                    times[name].append(milliseconds)
        (bare_median, bare_p95), (median, p95) = percentiles(times["bare"]), percentiles(times["served"])
        said(part="single", turns=turns, bare_ms=bare_median, bare_p95_ms=bare_p95, served_ms=median,
             served_p95_ms=p95, ratio_of_p95=p95 / bare_p95, p95_to_bare_median=p95 / bare_median)  # fmt: skip

        def many(number: int) -> tuple[int, list[float]]:
            own, right, waited = Client(port), 0, []
            for turn in range(each):
                name, content = f"{number}-{turn}", contents[(number + turn) % len(contents)]
                found: dict[str, Any] = {}
                waited.append(taken(lambda: found.update(own(name, content))))  # noqa: B023
                right += found["name"] == name and "predicted" in found
            return right, waited

        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            ended = list(pool.map(many, range(clients)))
        seconds = time.perf_counter() - began
        median, p95 = percentiles([each for _, waited in ended for each in waited])
        said(part="clients", clients=clients, sent=clients * each, answered=sum(right for right, _ in ended),
             images_per_second=clients * each / seconds, median_ms=median, p95_ms=p95)  # fmt: skip


def started(run: Path) -> float:
    with served(run) as (_, seconds):
        return seconds


if __name__ == "__main__":
    typer.run(main)
