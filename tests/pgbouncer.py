"""PgBouncer, the connection pooler, in front of a server of the tests.

It listens on a TCP port of 127.0.0.1, lets every login in as the server does, and is
gone when its ``with`` block ends.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import URL

from servers import Database, free_port, lacking

SETTINGS = {
    "pool_mode": "transaction",
    "default_pool_size": "5",
    "max_client_conn": "200",
    "auth_type": "trust",
    "log_connections": "0",
    "log_disconnections": "0",
    # Gives up what it cannot serve, instead of keeping the test waiting.
    "query_wait_timeout": "60",
}


def program() -> Path | None:
    """The program, or None if the machine lacks it."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which("pgbouncer", path=path)
    return None if found is None else Path(found)


class PgBouncer:
    """A PgBouncer in front of one database; its pools hold five connections each.

    :param database: the database; its server may be of any version.
    :param settings: settings beyond ``SETTINGS``.
    """

    host = "127.0.0.1"

    def __init__(self, database: Database, settings: Mapping[str, str] | None = None):
        self.database = database
        self.port = free_port()
        self.settings = {**SETTINGS, **(settings or {})}

    def __enter__(self) -> Self:
        path = program()
        if path is None:
            lacking("PgBouncer is not installed")
        self.directory = Path(tempfile.mkdtemp(prefix="tenants-pgbouncer-"))
        atexit.register(self._remove)  # for a second Ctrl-C, during the first one
        try:
            self._configure()
            self._start(path)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def url(self, login: str, driver: str = "psycopg") -> str:
        """A SQLAlchemy URL of the database, through the pooler."""
        url = URL.create(
            f"postgresql+{driver}",
            login,
            host=self.host,
            port=self.port,
            database=self.database.name,
        )
        return url.render_as_string(hide_password=False)

    @property
    def log(self) -> Path:
        """The log."""
        return self.directory / "log"

    def _configure(self) -> None:
        server = self.database.server
        users = self.directory / "users"
        logins = self.database.rows("SELECT rolname FROM pg_roles WHERE rolcanlogin")
        users.write_text("".join(f'"{login}" ""\n' for (login,) in logins))
        settings = {
            "listen_addr": self.host,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_file": str(users),
            "logfile": str(self.log),
            **self.settings,
        }
        lines = [
            "[databases]",
            f"{self.database.name} = host={server.host} port={server.port}",
            "[pgbouncer]",
            *(f"{name} = {settings[name]}" for name in settings),
        ]
        (self.directory / "pgbouncer.ini").write_text("\n".join(lines) + "\n")

    def _start(self, path: Path) -> None:
        account = None
        if os.geteuid() == 0:
            # PgBouncer refuses to run as root.
            account = pwd.getpwnam("nobody")
            os.chown(self.directory, account.pw_uid, account.pw_gid)
        self._process = subprocess.Popen(
            [path, self.directory / "pgbouncer.ini"],
            cwd=self.directory,
            user=account and account.pw_uid,
            group=account and account.pw_gid,
            extra_groups=account and [],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        # Its log goes there, too, until we have seen that it listens.
        with self._process.stderr as lines:
            seen = ""
            for line in lines:
                seen += line
                if "process up" in line:
                    return
        raise RuntimeError(f"pgbouncer failed: {seen}")

    def _remove(self) -> None:
        atexit.unregister(self._remove)
        process = getattr(self, "_process", None)
        if process is not None:
            process.kill()  # at once, whoever is connected
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
