"""Runs `baseline WORDS` in a process of its own without waiting for torch each time.

A first process imports what the command needs, and is forked for each call: what a call does, changes and leaves
behind stays its own, and it can be killed as any process. What depends on the imports themselves, on the environment
they read, or on a process without them, is started with `sys.executable` instead.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

SERVER = """
import atexit, contextlib, gc, io, json, os, runpy, select, signal, socket, sys, threading, traceback, warnings
gc.disable()  # imports leave no garbage
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import baseline, fastai.vision.all, matplotlib.pyplot, sklearn.metrics, timm, torchvision
    for name in baseline.__all__:
        getattr(baseline, name)
    import baseline.cli.app, pygments.lexers, rich.markdown
    with contextlib.redirect_stdout(io.StringIO()):  # imports what the first command line needs
        baseline.cli.app.app(["recipes"], standalone_mode=False)
gc.freeze()  # nor is what they left looked through, or its memory copied, in each call
gc.enable()

def answer(line, value):
    with contextlib.suppress(OSError):
        line.sendall((json.dumps(value) + "\\n").encode())

def child(wanted, files):
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored in what nohup starts
    sys.argv = wanted["argv"]
    if wanted["code"]:
        exec(compile(wanted["code"], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module("baseline", run_name="__main__", alter_sys=True)

def serve():
    # Answers each request with the number of its process, and later with its exit code. Returns in that process only.
    door = socket.socket(fileno=int(sys.argv[1]))
    ended, wake = socket.socketpair()
    ended.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    lines = {}
    while True:
        ready = select.select([door, ended], [], [])[0]
        if ended in ready:
            ended.recv(4096)
            with contextlib.suppress(ChildProcessError):  # none is left
                while (process := os.waitpid(-1, os.WNOHANG))[0]:
                    with lines.pop(process[0]) as line:
                        answer(line, os.waitstatus_to_exitcode(process[1]))
        if door not in ready:
            continue
        try:
            text, files, _, _ = socket.recv_fds(door, 1, 4)
        except ConnectionError:
            return None
        if not text:
            return None
        line, *files = files
        line = socket.socket(fileno=line)
        wanted = json.loads(line.makefile().readline())
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for connection in (door, ended, wake, line, *lines.values()):
                connection.close()
            return wanted, files
        for file in files:
            os.close(file)
        lines[pid] = line
        answer(line, pid)

call = serve()
if call:
    code = 0
    try:
        child(*call)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without taking down every object of torch
"""


WITHOUT_PAGE = """
from baseline.report import page
page.write_report = lambda folder, progress=None: None
from baseline.cli.app import main
main()
"""
"""Code for a `Command` whose runs end without a page, whose pictures take longer than a short training."""


WITH_FORKS = """
import inspect, multiprocessing, os, runpy, signal, subprocess, sys, traceback

class Fork(subprocess.Popen):
    def _execute_child(self, args, *options):
        if args[:2] != [sys.executable, "-m"]:
            return super()._execute_child(args, *options)
        options = inspect.signature(super()._execute_child).bind(args, *options).arguments
        self.pid, self._child_created = os.fork(), True
        if self.pid:
            return
        code = 0
        try:
            for number, file in ((1, options["c2pwrite"]), (2, options["errwrite"])):
                if file != -1:
                    os.dup2(file, number)
            os.environ.clear()
            os.environ.update(options["env"])
            sys.argv = args[2:]
            runpy.run_module(args[2], run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))  # as in a new process
subprocess.Popen, context = Fork, multiprocessing.get_context
multiprocessing.get_context = lambda method=None: context("fork" if method == "spawn" else method)
"""
"""Begins the code of a `Command` whose own processes are forked, too, instead of importing everything again."""


COMMAND_WITH_FORKS = (
    WITH_FORKS
    + """
from baseline.cli.app import main
main()
"""
)


class _First:
    """The process that is forked, begun when it is first needed."""

    door: socket.socket | None = None

    def ask(self, wanted: dict[str, Any], files: list[int]) -> socket.socket:
        if self.door is None:
            self.door, theirs = socket.socketpair()
            environment = {**os.environ, "TERM": "dumb"}
            command = [sys.executable, "-c", SERVER, str(theirs.fileno())]
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, cwd="/"
            )
            theirs.close()
            atexit.register(process.wait)
            atexit.register(self.door.close)
        mine, theirs = socket.socketpair()
        socket.send_fds(self.door, [b"x"], [theirs.fileno(), *files])
        theirs.close()
        mine.sendall((json.dumps(wanted) + "\n").encode())
        return mine


_first = _First()


class Command:
    """A call that goes on, as `subprocess.Popen` has it; what it prints is read when it has ended.

    Args:
        code: what is run instead of the command line, with the same words.
        env: what is added to the environment.
    """

    def __init__(
        self,
        *words: Any,
        code: str = "",
        stdin: IO[Any] | None = None,
        stdout: IO[Any] | None = None,
        stderr: IO[Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.args = ["baseline", *map(str, words)]
        self._printed = [file or TemporaryFile() for file in (stdout, stderr)]  # noqa: SIM115
        with Path(os.devnull).open() as nothing:
            files = [file.fileno() for file in (stdin or nothing, *self._printed)]
            self._line = _first.ask({"argv": self.args, "cwd": str(Path.cwd()), "code": code,
                                     "env": {**os.environ, "TERM": "dumb", **(env or {})}}, files)  # fmt: skip
        self.pid = self._number()
        self.returncode: int | None = None

    def _number(self) -> int:
        """The next line that is answered: first the number of the process, then its exit code."""
        line = b""
        while not line.endswith(b"\n"):
            line += self._line.recv(1) or b"-1\n"
        return int(line)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._line.settimeout(timeout)
            try:
                self.returncode = self._number()
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        self.wait()
        texts = []
        for file in self._printed:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return texts[0], texts[1]


class SlowCommand(subprocess.Popen[str]):
    """The same without `fork`, as on Windows: each call imports for itself."""

    def __init__(
        self, *words: Any, code: str = "", stdin: Any = None, stdout: Any = None, stderr: Any = None, env: Any = None
    ) -> None:
        start = ["-c", code] if code else ["-m", "baseline"]
        super().__init__(
            [sys.executable, *start, *map(str, words)], stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE, stderr=stderr or subprocess.PIPE, text=True,
            env={**os.environ, "TERM": "dumb", **(env or {})},
        )  # fmt: skip

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[str, str]:
        printed, errors = super().communicate(input, timeout)
        return printed or "", errors or ""


if not hasattr(os, "fork"):
    Command = SlowCommand  # type: ignore[assignment,misc]


def call(*words: Any, code: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """`baseline WORDS`, to its end."""
    running = Command(*words, code=code, env=env)
    if isinstance(running, subprocess.Popen):
        printed, errors = running.communicate(timeout=300)
        return subprocess.CompletedProcess(running.args, running.returncode, printed, errors)
    try:
        running.wait(300)
    finally:
        running.send_signal(signal.SIGKILL)
    printed, errors = running.communicate()
    return subprocess.CompletedProcess(running.args, running.wait(), printed, errors)


def piped(*words: Any, code: str = "") -> tuple[Command, IO[str]]:
    """`baseline WORDS` as it goes on, and the lines that it writes to stderr."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as stderr:
        return Command(*words, stderr=stderr, code=code), os.fdopen(reading)
