"""Model folder -> a repository on the Hugging Face hub. Knows files and the hub's client; knows no numbers.

What is pushed is what `plan_push` lists, no more: the files of the run's `model/` but its golden inputs, which are
images, in one commit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baseline.errors import OutputError, first_line
from baseline.files import CARD_FILE, CONFIG_FILE, GOLDEN_FILE, TENSORS_FILE, read_json
from baseline.progress import Progress
from baseline.runs.folder import read_manifest

__all__ = ["PushPlan", "plan_push", "push"]


NETWORK_FILES = (CONFIG_FILE, TENSORS_FILE)
"""What a model folder cannot do without."""


@dataclass(frozen=True)
class PushPlan:
    """What is to be pushed."""

    folder: Path
    files: dict[str, int]
    """Their names in the repository, and bytes."""
    card: str
    """The text of the model card."""


def push(run: str | Path, repo: str, *, private: bool = False, progress: Progress | None = None) -> str:
    """Puts the model folder of a finished run on the Hugging Face hub, in one commit, and returns its address.

    The token is the one that huggingface_hub finds: `HF_TOKEN`, or what `hf auth login` kept. A repository that is not
    there is made; in one that is there, files of the same names are replaced and others stay.

    Args:
        repo: `OWNER/NAME`.
        private: a new repository is private; one that is there has to be.

    Raises:
        OutputError: if the folder holds no finished run, a file names a path of this machine, there is no token, the
            hub cannot be reached, or it refuses.

    >>> push("runs/mine", "me/ants-and-bees")                                      # doctest: +SKIP
    'https://huggingface.co/me/ants-and-bees'
    """
    progress = progress or Progress()
    ready = plan_push(run, repo)
    client = hub_client()
    if client.get_token() is None:
        raise OutputError("There is no token for the Hugging Face hub. Set HF_TOKEN, or run: hf auth login")
    hub = client.HfApi(library_name="fastai-baseline")
    with _one_line_errors(client, hub.endpoint, repo):
        hub.create_repo(repo, private=private or None, exist_ok=True)
        if private and not hub.repo_info(repo).private:
            raise OutputError(f"{repo} is there and public. Choose another name, or make that one private first.")
        progress.log(
            f"push: {len(ready.files)} files, {sum(ready.files.values()) / 1e6:.1f} MB, to {hub.endpoint}/{repo}"
        )
        operations = [client.CommitOperationAdd(name, ready.folder / name) for name in ready.files]
        commit = hub.create_commit(repo, operations, commit_message="Model and card, by fastai-baseline")
    progress.log(f"push: commit {commit.oid}")
    return f"{hub.endpoint}/{repo}"


def plan_push(run: str | Path, repo: str) -> PushPlan:
    """What `push` would push, looked through: nothing is sent.

    A run of before there were cards gets its card first.

    Raises:
        OutputError: as `push` does, as far as that can be told without the hub.
    """
    _check_name(repo)
    run = Path(run)
    manifest, folder = read_manifest(run), run / "model"
    if lacking := [name for name in NETWORK_FILES if not (folder / name).is_file()]:
        raise OutputError(f"{folder} lacks {' and '.join(lacking)}, without which there is no model. Run it again.")
    _check_network(folder)
    if not (folder / CARD_FILE).exists():
        from baseline.report.model_card import write_card

        write_card(run)
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = [path.relative_to(folder) for path in paths]
    kept = [name for name in names if name.name != GOLDEN_FILE and not any(part.startswith(".") for part in name.parts)]
    for name in kept:
        _check_no_paths(folder / name, _local_paths(run, manifest))
    sizes = {name.as_posix(): (folder / name).stat().st_size for name in kept}
    return PushPlan(folder, sizes, (folder / CARD_FILE).read_text(encoding="utf-8"))


def _check_name(repo: str) -> None:
    """The hub's own rules: two names of letters, digits and `-_.`, no `--` or `..`, at most 96 characters each."""
    each = r"(?![-.])[A-Za-z0-9_.-]{1,96}(?<![-.])"
    if not re.fullmatch(f"{each}/{each}", repo) or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise OutputError(
            f"{repo!r} is no name of a repository. OWNER/NAME was needed, both of letters, digits, '-', '_' and '.', "
            "without '-' or '.' first or last, '--', '..', or .git at the end."
        )


def _check_network(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    facts = read_json(folder / NETWORK_FILES[0])
    if not isinstance(facts, dict) or not {"arch", "classes"} <= set(facts):
        raise OutputError(f"{folder / NETWORK_FILES[0]} does not tell arch and classes. Run it again.")
    try:
        with safe_open(folder / NETWORK_FILES[1], framework="np") as tensors:
            tensors.keys()
    except (SafetensorError, OSError) as error:
        words = " ".join(str(error).split())
        raise OutputError(f"{folder / NETWORK_FILES[1]} is damaged: {words}. Run it again.") from None


def _local_paths(run: Path, manifest: dict[str, Any]) -> list[str]:
    """Folders of this machine that a file may name by mistake: home, the run, and where images and weights were."""
    recipe, weights = manifest["recipe"], manifest.get("weights")
    found = [str(Path.home()), str(run.absolute()), str(run.resolve()), str(manifest.get("images") or "")]
    found += [str(recipe.get(key) or "") for key in ("image_dir", "weights", "split_file")]
    found += [str(weights.get("path") or "")] if isinstance(weights, dict) else []
    return list(dict.fromkeys(place for place in found if Path(place).is_absolute() and len(Path(place).parts) > 1))


def _check_no_paths(file: Path, places: list[str]) -> None:
    content = file.read_bytes()
    for place in places:
        written = {place.encode(), json.dumps(place)[1:-1].encode()}
        if any(re.search(re.escape(each) + rb"(?![\w.-])", content) for each in written):
            raise OutputError(
                f"{file} names {place}, a place on this machine, and would be published. Take that out of it."
            )


def hub_client() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise OutputError("Pushing needs the package huggingface_hub: pip install 'fastai-baseline[hub]'.") from None
    return huggingface_hub


@contextmanager
def _one_line_errors(client: Any, endpoint: str, repo: str) -> Iterator[None]:
    """What the client raises of a refusal or of the network, in words."""
    try:
        yield
    except client.errors.OfflineModeIsEnabled:
        raise OutputError("HF_HUB_OFFLINE is set, so that nothing can be pushed. Unset it.") from None
    except client.errors.HfHubHTTPError as error:
        raise OutputError(_refusal_message(error, endpoint, repo)) from None
    except (client.errors.HTTPError, ConnectionError, TimeoutError) as error:
        raise OutputError(f"{endpoint} cannot be reached: {first_line(error)}. Look at the network.") from None
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"Pushing to {repo} failed: {first_line(error.__cause__ or error)}.") from None


def _refusal_message(error: Any, endpoint: str, repo: str) -> str:
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return f"{endpoint} does not take the token. Make one that may write, then set HF_TOKEN or run: hf auth login"
    if status == 403:
        return f"{endpoint} does not let this token write to {repo}. Is the owner yours, and may the token write?"
    said = getattr(error, "server_message", None) or first_line(error)
    return f"{endpoint} refuses {repo} ({status}): {' '.join(str(said).split())[:200]}"
