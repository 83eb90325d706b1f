"""Pushing to the hub, tried on a stand-in on this machine that speaks as the hub does. The real hub is never asked."""

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
from baseline import OutputError
from baseline.deploy.hub import plan_push

pytest.importorskip("huggingface_hub")

COMMIT = "a" * 40
OWNERS = {"Bearer mine": "me", "Bearer theirs": "they"}


class Hub(ThreadingHTTPServer):
    """Repositories of `OWNER/NAME`, in memory; what the client's library asks of the real one, and no more."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[list[str]] = []
        self.asked: list[str] = []


class Answers(BaseHTTPRequestHandler):
    """One request."""

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
        hub.asked.append(f"{self.command} {path}")
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            header = json.loads(content)["content"].split("---\n")[1]
            wrong = [] if isinstance(yaml.safe_load(header), dict) else [{"message": "no header"}]
            return self.answer(400 if wrong else 200, {"errors": wrong, "warnings": []})
        owner = OWNERS.get(self.headers.get("Authorization", ""))
        if owner is None:
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            return self.create(owner, json.loads(content))
        if found := re.fullmatch(r"/(?:api/models/)?([^/]+)/([^/]+?)(?:\.git)?/(preupload|commit|info)/.*", path):
            if found[1] != owner:
                return self.answer(403, {"error": "You don't have the required permissions"})
            return getattr(self, found[3])(f"{found[1]}/{found[2]}", content)
        self.answer(404, {"error": "not found"})

    def create(self, owner: str, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != owner:
            return self.answer(403, {"error": f"You don't have the rights to create a model under {repo}"})
        if repo in self.server.files:
            return self.answer(
                409, {"error": "You already created this model repo", "url": f"{self.server.address}/{repo}"}
            )
        self.server.files[repo] = {}
        self.server.private[repo] = asked.get("visibility") == "private" or asked.get("private") is True
        self.answer(200, {"url": f"{self.server.address}/{repo}"})

    def preupload(self, _: str, content: bytes) -> None:
        names = [each["path"] for each in json.loads(content)["files"]]
        modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
        self.answer(200, {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})

    def info(self, _: str, content: bytes) -> None:
        objects = []
        for each in json.loads(content)["objects"]:
            upload = {"upload": {"href": f"{self.server.address}/objects/{each['oid']}"}}
            objects.append({**each} if each["oid"] in self.server.objects else {**each, "actions": upload})
        self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def commit(self, repo: str, content: bytes) -> None:
        lines = [json.loads(line) for line in content.splitlines()]
        for line in lines[1:]:
            value = line["value"]
            kept = base64.b64decode(value["content"]) if line["key"] == "file" else self.server.objects[value["oid"]]
            self.server.files[repo][value["path"]] = kept
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
        self.server.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            files = self.server.files.get(found[1])
            if files is None:
                return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            facts = {"id": found[1], "modelId": found[1], "sha": COMMIT, "private": self.server.private[found[1]]}
            return self.answer(200, {**facts, "siblings": [{"rfilename": name} for name in files], "tags": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.*", path):
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.server.files[found[1]].items()
            ]
            return self.answer(200, rows)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            data = self.server.files[found[1]][found[2]]
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
    """A copy of the finished run, to do things to."""
    return Path(shutil.copytree(done.folder, tmp_path / "run"))


def call(hub: Hub | None, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`baseline WORDS` in a process of its own, as the client reads its settings when it is imported."""
    home = {"HF_HOME": str(Path.cwd() / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    home |= {"HF_ENDPOINT": hub.address} if hub else {}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment = {**kept, **home, "NO_PROXY": "*", **environment}
    command = [sys.executable, "-m", "baseline", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def refused(ended: subprocess.CompletedProcess[str], words: str) -> None:
    """It ended with exit code 2 and one line that says so."""
    assert ended.returncode == 2, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if not line.startswith(("push:", "model card:"))]
    assert len(lines) == 1 and lines[0].startswith("baseline: ") and words in lines[0], ended.stderr


# ---- what arrives ---------------------------------------------------------------------------------------------------


def test_the_model_folder_arrives_byte_by_byte_in_one_commit_and_comes_back(run: Path, hub: Hub) -> None:
    (run / "model" / ".README.md.part").write_text("half")
    ended = call(hub, "push", str(run), "me/ants", HF_TOKEN="mine")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{hub.address}/me/ants\n"
    names = ["README.md", "model.json", "model.safetensors"]
    assert hub.commits == [names] or [sorted(each) for each in hub.commits] == [sorted(names)]
    assert hub.files == {"me/ants": {name: (run / "model" / name).read_bytes() for name in names}}
    assert hub.private == {"me/ants": False} and len(hub.objects) == 1
    code = (
        "import baseline, huggingface_hub, json;"
        "folder = huggingface_hub.snapshot_download('me/ants');"
        "print(json.dumps([sorted(baseline.load_network(folder)[1]), folder]))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(Path.cwd() / "other"), "NO_PROXY": "*"}
    environment |= {"HF_HUB_DISABLE_XET": "1"}
    back = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert back.returncode == 0, back.stderr
    facts, folder = json.loads(back.stdout)
    assert facts == sorted(baseline.load_network(run)[1])
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == hub.files["me/ants"]


def test_a_second_push_replaces_and_private_is_kept(run: Path, hub: Hub) -> None:
    assert call(hub, "push", str(run), "me/ants", "--private", HF_TOKEN="mine").returncode == 0
    assert hub.private == {"me/ants": True}
    card = run / "model" / "README.md"
    card.write_text(card.read_text() + "\nMore.\n")
    ended = call(hub, "push", str(run), "me/ants", "--private", "--quiet", HF_TOKEN="mine")
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert hub.files["me/ants"]["README.md"].endswith(b"\nMore.\n") and len(hub.commits) == 2
    hub.private["me/ants"] = False
    refused(call(hub, "push", str(run), "me/ants", "--private", HF_TOKEN="mine"), "is there and public")
    assert len(hub.commits) == 2


def test_a_dry_run_lists_files_and_shows_the_card_and_asks_nobody(run: Path, hub: Hub) -> None:
    ended = call(hub, "push", str(run), "me/ants", "--dry-run")
    assert ended.returncode == 0, ended.stderr
    for name in ("README.md", "model.json", "model.safetensors"):
        size = (run / "model" / name).stat().st_size
        assert re.search(rf"^{re.escape(name)} +{size:,} bytes", ended.stdout, re.M), ended.stdout[:400]
    assert ended.stdout.endswith((run / "model" / "README.md").read_text()) and hub.asked == []


def test_only_the_model_folder_is_listed(run: Path) -> None:
    (run / "model" / "deeper").mkdir()
    (run / "model" / "deeper" / "extra.txt").write_text("x")
    (run / "model" / ".hidden").mkdir()
    (run / "model" / ".hidden" / "x").write_text("x")
    ready = plan_push(run, "me/ants")
    assert list(ready.files) == ["README.md", "deeper/extra.txt", "model.json", "model.safetensors"]
    assert ready.files["deeper/extra.txt"] == 1


def test_a_run_of_before_there_were_cards_gets_one(run: Path) -> None:
    (run / "model" / "README.md").unlink()
    assert "library_name" in plan_push(run, "me/ants").card


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [str(Path.home()), "RUN", "IMAGES"])
def test_a_file_that_names_a_place_of_this_machine_is_not_pushed(
    run: Path, done: baseline.Baseline, place: str
) -> None:
    place = {"RUN": str(run), "IMAGES": str(done.manifest["images"])}.get(place, place)
    (run / "model" / "notes.json").write_text(json.dumps({"from": f"{place}/a.jpg"}))
    with pytest.raises(OutputError, match=rf"notes\.json names {re.escape(place)}, a place on this machine"):
        plan_push(run, "me/ants")
    (run / "model" / "notes.json").write_text(json.dumps({"from": f"{place}er/a.jpg"}))
    if place != str(Path.home()):
        assert "notes.json" in plan_push(run, "me/ants").files


@pytest.mark.parametrize("name", ["ants", "me/", "/ants", "a/b/c", "me/a--b", "me/a..b", "-me/a", "me/a.", "me/a b",
                                  "me/a.git", "me/é", f"me/{'a' * 97}", "", "me/a\n"])  # fmt: skip
def test_what_is_no_name_of_a_repository_is_refused_as_the_client_would(run: Path, name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    with pytest.raises(OutputError, match="is no name of a repository"):
        plan_push(run, name)
    if "/" in name:
        with pytest.raises(HFValidationError):
            validate_repo_id(name)


@pytest.mark.parametrize("name", ["me/a", "me/A.b_c-d", "o-r_g/0", f"me/{'a' * 96}"])
def test_what_the_client_takes_for_a_name_is_taken(run: Path, name: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name)
    assert plan_push(run, name).files


def test_what_is_no_whole_run_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="There is no folder"):
        plan_push(tmp_path / "nowhere", "me/ants")
    network = run / "model" / "model.safetensors"
    whole = network.read_bytes()
    network.write_bytes(whole[:-10])
    with pytest.raises(OutputError, match=r"model\.safetensors is damaged"):
        plan_push(run, "me/ants")
    network.unlink()
    with pytest.raises(OutputError, match=r"lacks model\.safetensors"):
        plan_push(run, "me/ants")
    network.write_bytes(whole)
    (run / "model" / "model.json").write_text("{}")
    with pytest.raises(OutputError, match="does not tell arch and classes"):
        plan_push(run, "me/ants")
    (run / "manifest.json").unlink()
    with pytest.raises(OutputError, match="no run that was finished"):
        plan_push(run, "me/ants")


def test_what_the_hub_refuses_is_one_line(run: Path, hub: Hub) -> None:
    refused(call(hub, "push", str(run), "me/ants"), "There is no token")
    refused(call(hub, "push", str(run), "me/ants", HF_TOKEN="wrong"), "does not take the token")
    refused(call(hub, "push", str(run), "they/ants", HF_TOKEN="mine"), "does not let this token write to they/ants")
    hub.files["they/bees"], hub.private["they/bees"] = {"x": b"theirs"}, False
    refused(call(hub, "push", str(run), "they/bees", HF_TOKEN="mine"), "does not let this token write to they/bees")
    assert hub.files == {"they/bees": {"x": b"theirs"}} and hub.commits == []


def test_without_a_network_or_the_client_it_is_one_line(run: Path, tmp_path: Path) -> None:
    nobody = {"HF_TOKEN": "mine", "HF_ENDPOINT": "http://127.0.0.1:9"}
    refused(call(None, "push", str(run), "me/ants", **nobody), "http://127.0.0.1:9 cannot be reached")
    refused(call(None, "push", str(run), "me/ants", **nobody, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set")
    code = "import sys; sys.modules['huggingface_hub'] = None\nfrom baseline.deploy.hub import hub_client\n_client()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "OutputError: Pushing needs the package huggingface_hub: pip install" in ended.stderr


def test_push_is_a_function_too(run: Path, hub: Hub) -> None:
    code = f"import baseline; print(baseline.push({str(run)!r}, 'me/ants', private=True))"
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": "mine",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
    }
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0 and ended.stdout == f"{hub.address}/me/ants\n", ended.stderr
    assert hub.private == {"me/ants": True}
