"""Measures the latency of a served model, compared with the model in the client's own process. Prints lines of JSON.

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


def print_json(**values: Any) -> None:
    print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in values.items()}), flush=True)


@contextmanager
def running_server(run: Path) -> Iterator[tuple[int, float]]:
    """Yield the port of a server and the seconds until its first response."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "baseline", "serve", str(run), "--port", "0", "--no-tta", "--log-format", "none"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        port = next(int(match[1]) for line in process.stderr if (match := re.search(r"serving: \S+:(\d+) ", line)))
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/health")
        connection.getresponse().read()
        yield port, time.perf_counter() - start
        process.send_signal(signal.SIGTERM)


class Client:
    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def __call__(self, name: str, content: bytes) -> dict[str, Any]:
        head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        self.connection.request("POST", "/predict", head + content + b"\r\n--x--\r\n", headers)
        return json.loads(self.connection.getresponse().read())["predictions"][0]


def elapsed_ms(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def percentiles(milliseconds: list[float]) -> tuple[float, float]:
    return statistics.median(milliseconds), statistics.quantiles(milliseconds, n=20)[-1]


def main(run: Path, images: Path, turns: int = 300, clients: int = 50, requests: int = 10, starts: int = 3) -> None:
    contents = [path.read_bytes() for path in sorted(images.rglob("*.jpg"))[:100]]
    print_json(part="start", seconds=[round(seconds, 1) for seconds in map(startup_seconds, [run] * starts)])
    model = baseline.load(run)

    @torch.inference_mode()
    def bare(content: bytes) -> Any:
        return model.network(model.inputs([model.load_square(content)])).softmax(-1).tolist()

    with running_server(run) as (port, _):
        client = Client(port)
        times: dict[str, list[float]] = {"bare": [], "served": []}
        for turn in range(turns + 20):  # the first are not counted
            content = contents[turn % len(contents)]
            calls = {"bare": lambda: bare(content), "served": lambda: client("a", content)}  # noqa: B023
            for name, call in calls.items():
                time.sleep(0.02)  # the other call's threads stop spinning
                milliseconds = elapsed_ms(call)
                if turn >= 20:
                    times[name].append(milliseconds)
        (bare_median, bare_p95), (median, p95) = percentiles(times["bare"]), percentiles(times["served"])
        print_json(part="single", turns=turns, bare_ms=bare_median, bare_p95_ms=bare_p95, served_ms=median,
             served_p95_ms=p95, ratio_of_p95=p95 / bare_p95, p95_to_bare_median=p95 / bare_median)  # fmt: skip

        def send_requests(number: int) -> tuple[int, list[float]]:
            client, correct, latencies = Client(port), 0, []
            for turn in range(requests):
                name, content = f"{number}-{turn}", contents[(number + turn) % len(contents)]
                response: dict[str, Any] = {}
                latencies.append(elapsed_ms(lambda: response.update(client(name, content))))  # noqa: B023
                correct += response["name"] == name and "predicted" in response
            return correct, latencies

        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            results = list(pool.map(send_requests, range(clients)))
        seconds = time.perf_counter() - start
        median, p95 = percentiles([value for _, latencies in results for value in latencies])
        print_json(
            part="clients", clients=clients, sent=clients * requests, answered=sum(correct for correct, _ in results),
            images_per_second=clients * requests / seconds, median_ms=median, p95_ms=p95,
        )  # fmt: skip


def startup_seconds(run: Path) -> float:
    with running_server(run) as (_, seconds):
        return seconds


if __name__ == "__main__":
    typer.run(main)
