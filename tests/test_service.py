"""What operators of the server need: every request logged and counted once, readiness, other sites' pages, TTA."""

from __future__ import annotations

import asyncio
import http.client
import inspect
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from conftest import ROOT
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from typer.main import get_command

import baseline
from baseline import Model
from baseline.cli.app import app as command_line
from baseline.deploy.server import access_log
from baseline.deploy.server.app import create_app
from baseline.deploy.server.predictor import Limits
from baseline.deploy.server.security import TimedProtocol
from baseline.errors import OutputError, RecipeError
from baseline.inference import DEFAULT_TTA
from baseline.inference.output import PredictOptions
from baseline.inference.reference import class_sets

GUIDE = (ROOT / "docs" / "models.md").read_text()


def make_client(model: Any, **options: Any) -> TestClient:
    return TestClient(create_app(model, **options), base_url="http://localhost", raise_server_exceptions=False)


def read_metrics(text: str) -> dict[tuple[str, ...], float]:
    """Samples by name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def check_totals(records: list[dict[str, Any]], metrics: dict[tuple[str, ...], float]) -> None:
    """The log and the metrics say the same."""
    counts = Counter((record["path"], str(record["status"])) for record in records)
    assert {key[1:]: value for key, value in metrics.items() if key[0] == "baseline_requests_total"} == counts
    by_path = Counter(record["path"] for record in records)
    ends = {key[1]: value for key, value in metrics.items() if key[0] == "baseline_request_seconds_count"}
    assert ends == by_path
    assert metrics["baseline_images_total",] == sum(record["images"] for record in records)
    assert metrics["baseline_requests_rejected_total",] == sum(record["status"] == 503 for record in records)


# ---- the access log and the metrics ---------------------------------------------------------------------------------


def test_every_request_is_logged_once_and_the_metrics_add_up(
    tiny: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = [path.read_bytes() for path in sorted(images.rglob("*.jpg"))[:2]]
    forms = [[("image", (f"{number}.jpg", content)) for content in contents[: number % 2 + 1]] for number in range(24)]
    forms += [[("image", ("a.jpg", b"words"))], [("image", ("a.jpg", b"words")), ("image", ("b.jpg", contents[0]))]]
    with make_client(tiny, log_format="json") as client, ThreadPoolExecutor(6) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda form: client.post("/predict", files=form), forms)]
        assert statuses == [200] * 24 + [415, 200]
        health = client.get("/health")
        assert client.get("/health", headers={"host": "evil.example"}).status_code == 403
        before = capsys.readouterr().out.splitlines()
        metrics = read_metrics(client.get("/metrics").text)
        unknown = [client.get(f"/no/{number}").status_code for number in range(3)]
        after = read_metrics(client.get("/metrics").text)
    records = [json.loads(line) for line in before]
    assert len(records) == len(forms) + 2 and unknown == [404] * 3
    check_totals(records, metrics)
    assert metrics["baseline_images_rejected_total", "invalid"] == 2
    assert metrics["baseline_requests_in_flight",] == 1  # the one that reads the metrics
    assert metrics["baseline_images_waiting",] == 0
    assert after["baseline_requests_total", "other", "404"] == 3
    if sys.platform == "linux":
        assert metrics["process_resident_memory_bytes",] > 1e6
    (record,) = (record for record in records if record["path"] == "/health" and record["status"] == 200)
    assert record["bytes"] == len(health.content) and record["client"] == "testclient" and record["images"] == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"]) and 0 <= record["ms"] < 60_000


def test_the_guide_names_the_keys_of_the_log_and_all_metrics(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_client(tiny, log_format="json") as client:
        text = client.get("/metrics").text
    (example,) = re.findall(r"```json\n(\{.*\})\n```", GUIDE)
    record = json.loads(capsys.readouterr().out)
    assert list(record) == list(json.loads(example))
    families = [family for family in text_string_to_metric_families(text) if family.name.startswith("baseline")]
    names = {f"{family.name}{'_total' if family.type == 'counter' else ''}" for family in families}
    assert {name for name in names if "_created" not in name} == set(re.findall(r"`(baseline_\w+)", GUIDE))


def test_the_log_is_text_or_nothing_and_other_formats_are_refused(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with make_client(tiny, log_format="text") as client:
        client.get("/health?top=1%0a")
        assert client.head("/health").status_code == 200
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\S+Z testclient GET /health 200 [\d.]+ ms \d{2,3} bytes 0 images", first)
    assert " HEAD /health 200 " in second and " 0 bytes " in second
    with make_client(tiny) as client:
        client.get("/health")
    assert capsys.readouterr().out == ""
    with pytest.raises(OutputError, match=r"There is no log format 'jsonl'. Did you mean 'json'\?"):
        create_app(tiny, log_format="jsonl")


def test_a_log_that_nobody_reads_stops_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Path("closed").open("w")  # noqa: SIM115
    closed.close()
    with make_client(tiny, log_format="json") as client, monkeypatch.context() as patch:
        for stream in (closed, None):
            patch.setattr(sys, "stdout", stream)
            assert client.get("/health").status_code == 200


def test_metrics_without_their_package_say_what_to_install(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "find_spec", lambda _: None)
    with make_client(tiny) as client:
        answer = client.get("/metrics")
        assert answer.status_code == 501 and "needs prometheus-client: pip install" in answer.json()["error"]
        assert client.get("/health").status_code == 200


def test_requests_that_never_reach_the_application_are_logged_too(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = create_app(tiny, log_format="json")
    config = uvicorn.Config(app, http=TimedProtocol, port=0, log_level="critical", limit_concurrency=3)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.02)
    address = server.servers[0].sockets[0].getsockname()
    with socket.create_connection(address) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert b" 400 " in connection.recv(999)
    held = [socket.create_connection(address) for _ in range(3)]
    time.sleep(0.2)
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 503 " in connection.recv(9999)
    for connection in held:
        connection.close()
    server.should_exit = True
    thread.join()
    invalid, busy = map(json.loads, capsys.readouterr().out.splitlines())
    assert (invalid["status"], invalid["path"], invalid["client"]) == (400, "-", "127.0.0.1")
    assert (busy["status"], busy["path"], busy["client"]) == (503, "/health", "127.0.0.1")
    samples = {(s.name, *s.labels.values()): s.value for f in app.metrics.registry.collect() for s in f.samples}
    assert samples["baseline_requests_total", "other", "400"] == 1
    assert samples["baseline_requests_rejected_total",] == 1 and samples["baseline_requests_in_flight",] == 0


@pytest.mark.slow
def test_two_thousand_requests_are_logged_once_each(tiny: Path, images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "baseline", "serve", str(tiny), "--port", "0", "--log-format", "json"]
    contents = [path.read_bytes() for path in sorted(images.rglob("*.jpg"))]
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ports = (re.search(r"serving: \S+:(\d+) ", line) for line in process.stderr)
        port = next(int(match[1]) for match in ports if match)

        def send(client: int) -> list[int]:
            connection, statuses = http.client.HTTPConnection("127.0.0.1", port, timeout=120), []
            for turn in range(100):
                content = contents[(client + turn) % len(contents)] if turn % 10 else b"words"
                form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
                headers = {"Content-Type": "multipart/form-data; boundary=x"}
                connection.request("POST", "/predict", form + content + b"\r\n--x--\r\n", headers)
                answer = connection.getresponse()
                answer.read()
                statuses.append(answer.status)
            return statuses

        with ThreadPoolExecutor(20) as pool:
            statuses = [status for sent in pool.map(send, range(20)) for status in sent]
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/metrics")
        metrics = read_metrics(connection.getresponse().read().decode())
        process.send_signal(signal.SIGTERM)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(statuses) == 2000 and Counter(statuses) == {200: 1800, 415: 200}
    assert len(records) == 2001 and records.pop()["path"] == "/metrics"
    check_totals(records, metrics)


# ---- readiness, other sites' pages ----------------------------------------------------------------------------------


def test_ready_is_false_while_the_queue_is_full_and_after_the_end(
    tiny: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, original = threading.Event(), Model._predict_squares

    def blocked(self: Model, *arguments: Any) -> Any:
        assert opened.wait(20)
        return original(self, *arguments)

    content = (images / "ants" / "00.jpg").read_bytes()
    client = make_client(tiny, limits=Limits(waiting=1))
    assert client.get("/ready").status_code == 503  # the queue is not processed yet
    monkeypatch.setattr(Model, "_predict_squares", blocked)
    with client, ThreadPoolExecutor(1) as pool:
        assert client.get("/ready").json() == {"status": "ready", "waiting": 0}
        pending = pool.submit(client.post, "/predict", files={"image": content})
        while client.get("/health").json()["waiting"] == 0:
            time.sleep(0.01)
        full = client.get("/ready")
        assert full.status_code == 503 and int(full.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200
        opened.set()
        assert pending.result().status_code == 200 and client.get("/ready").status_code == 200
    assert client.get("/ready").status_code == 503


def test_only_pages_of_allowed_origins_can_read_answers(tiny: Path, images: Path) -> None:
    content = (images / "ants" / "00.jpg").read_bytes()
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    allowed, port, other = "https://my.site", "http://localhost:3000", "https://evil.example"
    with make_client(tiny, origins=[allowed, port.upper()], limits=Limits(megabytes=1)) as client:
        for origin, status in {allowed: 200, port: 200, other: 403, "https://my.site.evil.example": 403}.items():
            answers = (
                client.options("/predict", headers={"origin": origin, **ask}),
                client.post("/predict", files={"image": content}, headers={"origin": origin}),
            )
            for answer in answers:
                assert answer.status_code == status, origin
                assert answer.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
                assert answer.headers["x-content-type-options"] == "nosniff"
        large = client.post("/predict", content=bytes(2_000_000), headers={"origin": allowed})
        assert large.status_code == 413 and large.headers["access-control-allow-origin"] == allowed
        assert client.get("/health", headers={"host": "evil.example", "origin": allowed}).status_code == 403
    with make_client(tiny, origins=["*"]) as client:
        answer = client.post("/predict", files={"image": content}, headers={"origin": other})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "*"
    with make_client(tiny) as client:
        answer = client.options("/predict", headers={"origin": allowed, **ask})
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["my.site", "https://my.site/", "https://my.site/page", "null", "ftp://a", "https://"]
)
def test_what_is_no_origin_is_refused(tiny: Path, origin: str) -> None:
    with pytest.raises(OutputError, match=r"is not the origin of a page\. Pass scheme and host, such as"):
        create_app(tiny, origins=[origin])


# ---- TTA and sets ---------------------------------------------------------------------------------------------------


def test_commands_functions_and_the_server_have_the_same_default_for_tta(tiny: Path, images: Path) -> None:
    functions = (
        baseline.serve, create_app, baseline.export, Model.predict, Model.evaluate, Model.predict_batches,
        Model.predictor,
    )  # fmt: skip
    assert {inspect.signature(function).parameters["tta"].default for function in functions} == {DEFAULT_TTA}
    assert PredictOptions().tta is DEFAULT_TTA
    for name in ("predict", "serve", "evaluate", "export"):
        (option,) = (option for option in get_command(command_line).commands[name].params if option.name == "tta")
        assert option.default is DEFAULT_TTA, name
    image = images / "ants" / "00.jpg"
    expected = baseline.load(tiny).predict(image)["confidence"][0]
    for options, tta in (({}, DEFAULT_TTA), ({"tta": False}, False)):
        with make_client(tiny, **options) as client:
            answer = client.post("/predict", files={"image": image.read_bytes()}).json()
            assert answer["tta"] is tta
            if not options:
                assert answer["predictions"][0]["confidence"] == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def sets(done: baseline.Baseline) -> Iterator[TestClient]:
    """A server of a finished run that answers with sets."""
    with make_client(done.folder, coverage=0.7, examples=False) as client:
        yield client


def test_sets_of_the_server_are_those_of_the_model(done: baseline.Baseline, sets: TestClient) -> None:
    model = baseline.load(done.folder)
    paths = done.predictions["path"].tolist()[:6]
    table = model.predict(paths)
    expected = class_sets(table[[f"p_{name}" for name in model.classes]].to_numpy(), model.reference.set_threshold(0.7),
                          model.classes)  # fmt: skip
    form = [("image", (path, Path(path).read_bytes())) for path in paths]
    assert [prediction["set"] for prediction in sets.post("/predict", files=form).json()["predictions"]] == expected
    schema = sets.get("/openapi.json").text
    assert "Classes that contain the true one" in schema
    with pytest.raises(RecipeError, match="needs 19"):
        create_app(done.folder, coverage=0.95)
    with pytest.raises(RecipeError, match="Predict with TTA"):
        create_app(done.folder, coverage=0.7, tta=False)
