"""What is compared: each peer in a virtual environment of its own, and programs in it.

A program is a script in ``benchmarks/programs``, which answers requests with
``serve()`` there. It times its own inner loop, so that what passes between the
processes does not count; ours and the plain baseline run in just the same way.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from measure import say

FOLDER = Path(__file__).parent
ENVIRONMENTS = FOLDER / ".venvs"
PROGRAMS = FOLDER / "programs"

#: What a program may take for one request, in seconds; then it hangs.
TIMEOUT = 300


def _as_here(name: str, extra: str = "") -> str:
    return f"{name}{extra}=={version(name)}"


#: What all of them use, in the versions that our own environment has.
COMMON = (
    _as_here("sqlalchemy"),
    _as_here("greenlet"),
    _as_here("alembic"),
    _as_here("psycopg", "[binary]"),
    _as_here("asyncpg"),
)


@dataclass(frozen=True)
class Peer:
    """A package to compare with.

    :param name: as the tables have it.
    :param requirements: what is installed beside ``COMMON``.
    :param common: the versions of it that the package works with.
    """

    name: str
    requirements: tuple[str, ...] = ()
    common: tuple[str, ...] = COMMON


#: By the name that programs are started with.
PEERS = {
    # without our package, whose plugin Alembic would load
    "plain": Peer("plain SQLAlchemy"),
    # the earlier package of the same name, so ours must not be there
    "earlier": Peer("sqlalchemy-tenants 0.2.0", ("sqlalchemy-tenants==0.2.0",)),
    "rls": Peer("rls 0.3.2", ("rls==0.3.2",)),
    "alembic_utils": Peer("alembic_utils 0.8.8", ("alembic_utils==0.8.8",)),
}

#: Ours: the environment that runs the benchmarks, with the package installed.
OURS = "ours"


def python(peer: str) -> Path:
    """The interpreter of a peer's environment, which is created if it is missing."""
    if peer == OURS:
        return Path(sys.executable)
    environment = ENVIRONMENTS / peer
    stamp = environment / "requirements.txt"
    requirements = "\n".join((*PEERS[peer].common, *PEERS[peer].requirements))
    if not stamp.exists() or stamp.read_text() != requirements:
        _create(environment, peer, requirements)
    return environment / "bin" / "python"


def prepare(*peers: str) -> None:
    """Create the environments of several peers, side by side."""
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(python, peers):
            pass  # raises what went wrong


def _create(environment: Path, peer: str, requirements: str) -> None:
    say(f"installing {PEERS[peer].name} into {environment.relative_to(FOLDER.parent)}")
    ENVIRONMENTS.mkdir(exist_ok=True)
    # in place when it is complete, whoever else is creating it
    new = environment.with_name(f"{peer}.{os.getpid()}")
    pip = [sys.executable, "-m", "pip", "--python", str(new / "bin" / "python")]
    quiet = ["--quiet", "--quiet", "--disable-pip-version-check"]
    try:
        _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(new)])
        _run([*pip, *quiet, "install", *requirements.split("\n")])
        (new / "requirements.txt").write_text(requirements)
        shutil.rmtree(environment, ignore_errors=True)
        new.rename(environment)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, env=environment())


def environment() -> dict[str, str]:
    """What a process inherits: nothing that changes what Python imports."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON") and name != "VIRTUAL_ENV"
    }
    # the same order of sets in all processes, or they would differ by chance
    return {**kept, "PYTHONHASHSEED": "0"}


class ProgramError(RuntimeError):
    """A program did not do what it was asked to.

    :param reason: the error in one line.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Program:
    """A script of ``benchmarks/programs`` in the environment of a peer.

    :param peer: a key of ``PEERS``, or ``OURS``.
    :param script: its file name.
    :param arguments: the rest of its command line.
    """

    def __init__(self, peer: str, script: str, *arguments: str) -> None:
        self.peer = peer
        self._command = [str(python(peer)), str(PROGRAMS / script), *arguments]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it ends with its input
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def call(self, function: str, **arguments: Any) -> Any:
        """Call one of the functions that the script serves, and return its result.

        :raises ProgramError: with the script's traceback, or because it ended, or took
            longer than ``TIMEOUT``.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = json.dumps({"function": function, "arguments": arguments})
        timer = threading.Timer(TIMEOUT, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            command = " ".join(self._command)
            raise ProgramError(f"{command} ended in {function}()", "it ended")
        answer = json.loads(line)
        if "error" in answer:
            raise ProgramError(answer["error"], answer["reason"])
        return answer["result"]
