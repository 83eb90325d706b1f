"""Push a model folder to the Hugging Face Hub.

Only what `plan_push` lists is pushed, in one commit: the files of the run's `model/` except its golden inputs, which
are images, and its reference, which is made of features of training images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import OutputError, first_line, missing_package
from baseline.files import (
    CARD_FILE,
    CONFIG_FILE,
    GOLDEN_FILE,
    REFERENCE_FILE,
    TENSORS_FILE,
    is_inside,
    read_json,
    refuse_damaged,
)
from baseline.progress import Progress
from baseline.reading import MAX_WEIGHTS_BYTES, check_tensor_header, read_content
from baseline.recipe.diff import flat_recipe
from baseline.runs.folder import read_manifest

if TYPE_CHECKING:
    from baseline.runs.manifest import Manifest

__all__ = ["PushPlan", "plan_push", "push"]


NETWORK_FILES = (CONFIG_FILE, TENSORS_FILE)
"""Files that every model folder must contain."""


@dataclass(frozen=True)
class PushPlan:
    """The files to be pushed, and the model card."""

    folder: Path
    files: dict[str, int]
    """Names in the repository, and sizes in bytes."""
    card: str
    """Text of the model card, with the name of the repository."""


def push(run: str | Path, repo: str, *, private: bool = False, progress: Progress | None = None) -> str:
    """Push the model folder of a finished run to the Hugging Face Hub in one commit, and return its URL.

    The token is the one that huggingface_hub finds: `HF_TOKEN`, or the one stored by `hf auth login`. The repository is
    created if it does not exist; in an existing one, files of the same names are replaced and others stay.

    Args:
        repo: `OWNER/NAME`.
        private: create a private repository; an existing one must be private.

    Raises:
        OutputError: if the folder holds no finished run, a file contains a path of this machine, there is no token, or
            the hub cannot be reached or refuses.

    >>> push("runs/mine", "me/ants-and-bees")                                      # doctest: +SKIP
    'https://huggingface.co/me/ants-and-bees'
    """
    progress = progress or Progress()
    plan = plan_push(run, repo)
    client = hub_client()
    if client.get_token() is None:
        raise OutputError("There is no token for the Hugging Face Hub. Set HF_TOKEN, or run: hf auth login")
    hub = client.HfApi(library_name="fastai-baseline")
    with hub_errors(client, hub.endpoint, repo):
        hub.create_repo(repo, private=private or None, exist_ok=True)
        if private and not hub.repo_info(repo).private:
            raise OutputError(f"{repo} exists and is public. Choose another name, or make it private first.")
        megabytes, plural = sum(plan.files.values()) / 1e6, "" if len(plan.files) == 1 else "s"
        progress.log(f"push: {len(plan.files)} file{plural}, {megabytes:.1f} MB, to {hub.endpoint}/{repo}")
        contents = {name: plan.folder / name for name in plan.files} | {CARD_FILE: plan.card.encode()}
        operations = [client.CommitOperationAdd(name, content) for name, content in contents.items()]
        commit = hub.create_commit(repo, operations, commit_message="Model and card, by fastai-baseline")
    progress.log(f"push: commit {commit.oid}")
    return f"{hub.endpoint}/{repo}"


def plan_push(run: str | Path, repo: str) -> PushPlan:
    """Check and list what `push` would push; nothing is sent.

    A run that was written before model cards existed gets its card first.

    Raises:
        OutputError: as `push` does, except for what only the hub can tell.
    """
    check_repo_name(repo)
    run = Path(run)
    manifest, folder = read_manifest(run), run / "model"
    if missing := [name for name in NETWORK_FILES if not (folder / name).is_file()]:
        raise OutputError(f"{folder} is incomplete: {' and '.join(missing)} missing. Train the run again.")
    check_network_files(folder)
    if not (folder / CARD_FILE).exists():
        from baseline.report.model_card import write_card

        write_card(run)
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = [path.relative_to(folder) for path in paths]
    private_files = (GOLDEN_FILE, REFERENCE_FILE)
    names = [name for name in names if name.name not in private_files and not any(p[0] == "." for p in name.parts)]
    with refuse_damaged(run):
        private = local_paths(run, manifest)
    for name in names:
        if not is_inside(folder / name, folder):
            raise OutputError(f"{folder / name} is a link to a file elsewhere, which would be published. Remove it.")
        check_no_local_paths(folder / name, private)
    card = read_published(folder / CARD_FILE).decode().replace("OWNER/NAME", repo)
    sizes = {name.as_posix(): (folder / name).stat().st_size for name in names}
    return PushPlan(folder, {**sizes, CARD_FILE: len(card.encode())}, card)


def check_repo_name(repo: str) -> None:
    """Apply the hub's rules: two names of letters, digits and `-_.`, no `--` or `..`, at most 96 characters each."""
    name = r"(?![-.])[A-Za-z0-9_.-]{1,96}(?<![-.])"
    if not re.fullmatch(f"{name}/{name}", repo) or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise OutputError(
            f"{repo!r} is not a repository name. Use OWNER/NAME, both of letters, digits, '-', '_' and '.', without a "
            "leading or trailing '-' or '.', and without '--', '..' or a final .git."
        )


def check_network_files(folder: Path) -> None:
    """Raise an OutputError if configuration or tensors of a model folder are unreadable."""
    from safetensors import SafetensorError, safe_open

    config, tensors = (folder / name for name in NETWORK_FILES)
    facts = read_json(config)
    if not isinstance(facts, dict) or not {"arch", "classes"} <= set(facts):
        raise OutputError(f"{config} does not contain arch and classes. Train the run again.")
    try:
        check_tensor_header(tensors)
        with safe_open(tensors, framework="np") as file:
            file.keys()
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OutputError(f"{tensors} is damaged: {reason}. Train the run again.") from None


def local_paths(run: Path, manifest: Manifest) -> list[str]:
    """Return folders of this machine that a file may contain by mistake: home, the run, the images and the weights."""
    recipe, weights = flat_recipe(manifest["recipe"]), manifest.get("weights")
    paths = [str(Path.home()), str(run.absolute()), str(run.resolve()), str(manifest.get("images") or "")]
    paths += [str(recipe.get(key) or "") for key in ("image_dir", "weights", "split_file")]
    paths += [str(weights.get("path") or "")] if isinstance(weights, dict) else []
    return list(dict.fromkeys(path for path in paths if Path(path).is_absolute() and len(Path(path).parts) > 1))


def check_no_local_paths(file: Path, paths: list[str]) -> None:
    """Raise an OutputError if a file contains one of the paths, as plain text or inside JSON."""
    content = read_published(file)
    for path in paths:
        encodings = {path.encode(), json.dumps(path)[1:-1].encode()}
        if any(re.search(re.escape(encoded) + rb"(?![\w.-])", content) for encoded in encodings):
            raise OutputError(f"{file} contains {path}, a path on this machine, and would be published. Remove it.")


def read_published(file: Path) -> bytes:
    """Return the content of a file that is to be published, or raise an OutputError."""
    try:
        return read_content(file, MAX_WEIGHTS_BYTES)
    except OSError as error:
        raise OutputError(f"{file} cannot be read: {error.strerror}. Remove it, or train the run again.") from None


def hub_client() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise OutputError(f"{missing_package('Pushing', 'the package huggingface_hub', 'hub')}.") from None
    return huggingface_hub


@contextmanager
def hub_errors(client: Any, endpoint: str, repo: str) -> Iterator[None]:
    """Turn what the client raises about the network or a refusal into an OutputError of one line."""
    try:
        yield
    except client.errors.OfflineModeIsEnabled:
        raise OutputError("HF_HUB_OFFLINE is set, so nothing can be pushed. Unset it.") from None
    except client.errors.HfHubHTTPError as error:
        raise OutputError(_refusal_message(error, endpoint, repo)) from None
    except (_network_error(client), ConnectionError, TimeoutError) as error:
        raise OutputError(
            f"{endpoint} cannot be reached: {first_line(_root_cause(error))}. Check the network."
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"Pushing to {repo} failed: {first_line(error.__cause__ or error)}.") from None


def _network_error(client: Any) -> type[Exception]:
    """Return the class of the client's errors without an answer: that of httpx, or of requests before version 1."""
    error: Any = client.errors.HTTPError
    return error.__base__ if issubclass(error, OSError) else error


def _root_cause(error: BaseException) -> BaseException:
    """Return the operating system's error behind one of a library, which may be a long line; the same if none is."""
    cause: Any = error
    while cause := cause.__cause__ or cause.__context__:
        error = cause if isinstance(cause, OSError) else error
    return error


def _refusal_message(error: Any, endpoint: str, repo: str) -> str:
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return f"{endpoint} rejects the token. Create one with write access, then set HF_TOKEN or run: hf auth login"
    if status == 403:
        return f"{endpoint} does not let this token write to {repo}. Check the owner and the token's permissions."
    message = getattr(error, "server_message", None) or first_line(error)
    return f"{endpoint} refuses {repo} ({status}): {' '.join(str(message).split())[:200]}"
