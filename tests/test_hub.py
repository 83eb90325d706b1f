"""Pushing to the hub, tested against a local server that mimics the hub; the real hub is never contacted."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

import baseline
from baseline.deploy.hub import plan_push
from baseline.errors import OutputError
from baseline.vision.model_folder import load_network

pytest.importorskip("huggingface_hub")

COMMIT = "a" * 40
OWNERS = {"Bearer mine": "me", "Bearer theirs": "they"}


class Hub(ThreadingHTTPServer):
    """Repositories of `OWNER/NAME` in memory, with only those endpoints that the client library uses."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[list[str]] = []
        self.requests: list[str] = []


class HubHandler(BaseHTTPRequestHandler):
    """Handles one request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        hub, path = self.server, self.path.split("?")[0]
        hub.requests.append(f"{self.command} {path}")
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            header = json.loads(content)["content"].split("---\n")[1]
            errors = [] if isinstance(yaml.safe_load(header), dict) else [{"message": "no header"}]
            return self.answer(400 if errors else 200, {"errors": errors, "warnings": []})
        owner = OWNERS.get(self.headers.get("Authorization", ""))
        if owner is None:
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            return self.create(owner, json.loads(content))
        if match := re.fullmatch(r"/(?:api/models/)?([^/]+)/([^/]+?)(?:\.git)?/(preupload|commit|info)/.*", path):
            if match[1] != owner:
                return self.answer(403, {"error": "You don't have the required permissions"})
            return getattr(self, match[3])(f"{match[1]}/{match[2]}", content)
        self.answer(404, {"error": "not found"})

    def create(self, owner: str, options: dict[str, Any]) -> None:
        repo = f"{options['organization']}/{options['name']}"
        if options["organization"] != owner:
            return self.answer(403, {"error": f"You don't have the rights to create a model under {repo}"})
        if repo in self.server.files:
            return self.answer(
                409, {"error": "You already created this model repo", "url": f"{self.server.address}/{repo}"}
            )
        self.server.files[repo] = {}
        self.server.private[repo] = options.get("visibility") == "private" or options.get("private") is True
        self.answer(200, {"url": f"{self.server.address}/{repo}"})

    def preupload(self, _: str, content: bytes) -> None:
        names = [file["path"] for file in json.loads(content)["files"]]
        modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
        self.answer(200, {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})

    def info(self, _: str, content: bytes) -> None:
        objects = []
        for item in json.loads(content)["objects"]:
            upload = {"upload": {"href": f"{self.server.address}/objects/{item['oid']}"}}
            objects.append({**item} if item["oid"] in self.server.objects else {**item, "actions": upload})
        self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def commit(self, repo: str, content: bytes) -> None:
        lines = [json.loads(line) for line in content.splitlines()]
        for line in lines[1:]:
            value = line["value"]
            data = base64.b64decode(value["content"]) if line["key"] == "file" else self.server.objects[value["oid"]]
            self.server.files[repo][value["path"]] = data
        self.server.commits.append([line["value"]["path"] for line in lines[1:]])
        url = f"{self.server.address}/{repo}/commit/{COMMIT}"
        self.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rsplit("/", 1)[-1]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.objects[oid] = content
        self.answer(200)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            files = self.server.files.get(match[1])
            if files is None:
                return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            facts = {"id": match[1], "modelId": match[1], "sha": COMMIT, "private": self.server.private[match[1]]}
            return self.answer(200, {**facts, "siblings": [{"rfilename": name} for name in files], "tags": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.*", path):
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.server.files[match[1]].items()
            ]
            return self.answer(200, rows)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            data = self.server.files[match[1]][match[2]]
            return self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)
        self.answer(404, {"error": "not found"})

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(done: baseline.Baseline, tmp_path: Path) -> Path:
    """A copy of the finished run, for modification."""
    return Path(shutil.copytree(done.folder, tmp_path / "run"))


def call(hub: Hub | None, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as the client reads its settings when it is imported."""
    home = {"HF_HOME": str(Path.cwd() / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    home |= {"HF_ENDPOINT": hub.address} if hub else {}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment = {**inherited, **home, "NO_PROXY": "*", **environment}
    command = [sys.executable, "-m", "baseline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def assert_refused(result: subprocess.CompletedProcess[str], message: str) -> None:
    """Assert that the command ended with exit code 2 and this message in one line."""
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("push:", "model card:"))]
    assert len(lines) == 1 and lines[0].startswith("baseline: ") and message in lines[0], result.stderr


# ---- what is pushed --------------------------------------------------------------------------------------------------


def test_the_model_folder_arrives_byte_by_byte_in_one_commit_and_comes_back(run: Path, hub: Hub) -> None:
    (run / "model" / ".README.md.part").write_text("half")
    result = call(hub, "push", str(run), "me/ants", HF_TOKEN="mine")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{hub.address}/me/ants\n"
    names = ["README.md", "model.json", "model.safetensors"]
    assert hub.commits == [names] or [sorted(commit) for commit in hub.commits] == [sorted(names)]
    expected = {name: (run / "model" / name).read_bytes() for name in names}
    expected["README.md"] = expected["README.md"].replace(b"OWNER/NAME", b"me/ants")
    assert hub.files == {"me/ants": expected} and b'snapshot_download("me/ants")' in expected["README.md"]
    assert hub.private == {"me/ants": False} and len(hub.objects) == 1
    code = (
        "import huggingface_hub, sys; sys.stdout.write(huggingface_hub.snapshot_download('me/ants'));"
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(Path.cwd() / "other"), "NO_PROXY": "*"}
    environment |= {"HF_HUB_DISABLE_XET": "1"}
    back = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert back.returncode == 0, back.stderr
    folder = back.stdout
    assert load_network(folder)[1] == load_network(run)[1]
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == hub.files["me/ants"]


def test_a_second_push_replaces_and_private_is_kept(run: Path, hub: Hub) -> None:
    assert call(hub, "push", str(run), "me/ants", "--private", HF_TOKEN="mine").returncode == 0
    assert hub.private == {"me/ants": True}
    card = run / "model" / "README.md"
    card.write_text(card.read_text() + "\nMore.\n")
    result = call(hub, "push", str(run), "me/ants", "--private", "--quiet", HF_TOKEN="mine")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert hub.files["me/ants"]["README.md"].endswith(b"\nMore.\n") and len(hub.commits) == 2
    hub.private["me/ants"] = False
    assert_refused(call(hub, "push", str(run), "me/ants", "--private", HF_TOKEN="mine"), "exists and is public")
    assert len(hub.commits) == 2


def test_a_dry_run_lists_files_and_shows_the_card_without_a_request(run: Path, hub: Hub) -> None:
    result = call(hub, "push", str(run), "me/ants", "--dry-run")
    assert result.returncode == 0, result.stderr
    card = (run / "model" / "README.md").read_text().replace("OWNER/NAME", "me/ants")
    sizes = {name: (run / "model" / name).stat().st_size for name in ("model.json", "model.safetensors")}
    for name, size in {**sizes, "README.md": len(card.encode())}.items():
        assert re.search(rf"^{re.escape(name)} +{size:,} bytes", result.stdout, re.M), result.stdout[:400]
    assert result.stdout.endswith(card) and hub.requests == []


def test_only_the_model_folder_is_listed(run: Path) -> None:
    (run / "model" / "deeper").mkdir()
    (run / "model" / "deeper" / "extra.txt").write_text("x")
    (run / "model" / ".hidden").mkdir()
    (run / "model" / ".hidden" / "x").write_text("x")
    plan = plan_push(run, "me/ants")
    assert list(plan.files) == ["README.md", "deeper/extra.txt", "model.json", "model.safetensors"]
    assert plan.files["deeper/extra.txt"] == 1


def test_a_run_without_a_card_gets_one(run: Path) -> None:
    (run / "model" / "README.md").unlink()
    assert "library_name" in plan_push(run, "me/ants").card


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [str(Path.home()), "RUN", "IMAGES"])
def test_a_file_that_contains_a_path_of_this_machine_is_not_pushed(
    run: Path, done: baseline.Baseline, path: str
) -> None:
    path = {"RUN": str(run), "IMAGES": str(done.manifest["images"])}.get(path, path)
    (run / "model" / "notes.json").write_text(json.dumps({"from": f"{path}/a.jpg"}))
    with pytest.raises(OutputError, match=rf"notes\.json contains {re.escape(path)}, a path on this machine"):
        plan_push(run, "me/ants")
    (run / "model" / "notes.json").write_text(json.dumps({"from": f"{path}er/a.jpg"}))
    if path != str(Path.home()):
        assert "notes.json" in plan_push(run, "me/ants").files


@pytest.mark.parametrize("name", ["ants", "me/", "/ants", "a/b/c", "me/a--b", "me/a..b", "-me/a", "me/a.", "me/a b",
                                  "me/a.git", "me/é", f"me/{'a' * 97}", "", "me/a\n"])  # fmt: skip
def test_invalid_repository_names_are_refused_as_by_the_client(run: Path, name: str) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    with pytest.raises(OutputError, match="is not a repository name"):
        plan_push(run, name)
    newer = tuple(map(int, huggingface_hub.__version__.split(".")[:2])) >= (1, 33)
    if "/" in name and (newer or name not in ("me/é", "me/a\n")):  # older clients leave these to the hub
        with pytest.raises(HFValidationError):
            validate_repo_id(name)


@pytest.mark.parametrize("name", ["me/a", "me/A.b_c-d", "o-r_g/0", f"me/{'a' * 96}"])
def test_valid_repository_names_are_accepted_as_by_the_client(run: Path, name: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name)
    assert plan_push(run, name).files


def test_an_incomplete_run_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="There is no folder"):
        plan_push(tmp_path / "nowhere", "me/ants")
    network = run / "model" / "model.safetensors"
    content = network.read_bytes()
    network.write_bytes(content[:-10])
    with pytest.raises(OutputError, match=r"model\.safetensors is damaged"):
        plan_push(run, "me/ants")
    network.unlink()
    with pytest.raises(OutputError, match=r"model\.safetensors missing"):
        plan_push(run, "me/ants")
    network.write_bytes(content)
    (run / "model" / "model.json").write_text("{}")
    with pytest.raises(OutputError, match="does not contain arch and classes"):
        plan_push(run, "me/ants")
    (run / "manifest.json").unlink()
    with pytest.raises(OutputError, match="an unfinished run"):
        plan_push(run, "me/ants")


def test_refusals_of_the_hub_are_one_line(run: Path, hub: Hub) -> None:
    assert_refused(call(hub, "push", str(run), "me/ants"), "There is no token")
    assert_refused(call(hub, "push", str(run), "me/ants", HF_TOKEN="wrong"), "rejects the token")
    assert_refused(
        call(hub, "push", str(run), "they/ants", HF_TOKEN="mine"), "does not let this token write to they/ants"
    )
    hub.files["they/bees"], hub.private["they/bees"] = {"x": b"theirs"}, False
    assert_refused(
        call(hub, "push", str(run), "they/bees", HF_TOKEN="mine"), "does not let this token write to they/bees"
    )
    assert hub.files == {"they/bees": {"x": b"theirs"}} and hub.commits == []


def test_a_missing_network_or_client_is_reported_in_one_line(run: Path, tmp_path: Path) -> None:
    unreachable = {"HF_TOKEN": "mine", "HF_ENDPOINT": "http://127.0.0.1:9"}
    message = "http://127.0.0.1:9 cannot be reached: [Errno 111] Connection refused. Check the network."
    assert_refused(call(None, "push", str(run), "me/ants", **unreachable), message)
    assert_refused(call(None, "push", str(run), "me/ants", **unreachable, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set")
    code = "import sys; sys.modules['huggingface_hub'] = None\nfrom baseline.deploy.hub import hub_client\nhub_client()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "OutputError: Pushing needs the package huggingface_hub: pip install" in result.stderr


def test_push_is_also_a_function(run: Path, hub: Hub) -> None:
    code = (
        f"import sys; from baseline.deploy.hub import push; print(push({str(run)!r}, 'me/ants', private=True));"
        "assert 'torch' not in sys.modules"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": "mine",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
    }
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and result.stdout == f"{hub.address}/me/ants\n", result.stderr
    assert hub.private == {"me/ants": True}
