"""Ways to run transactions of tenants, each in a process of its own, ready to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from cores import CLIENT, SERVER, on
from database import create_roles, fill, first_id, tenant_name, tenants_database
from peers import OURS, Program, ProgramError, prepare
from sqlalchemy import make_url

from servers import CREATE_LOGINS, Database, Server

DRIVERS = ("psycopg", "psycopg-async", "asyncpg")

TENANTS = 10

#: The baseline.
PLAIN = "plain"


@dataclass(frozen=True)
class Way:
    """How to run transactions of tenants.

    :param peer: whose environment it runs in.
    :param arguments: of ``programs/transactions.py``.
    :param login: what it connects as.
    :param own: whether the database is as the peer makes it; otherwise it is ours.
    """

    peer: str
    arguments: tuple[str, ...]
    login: str
    own: bool = False


#: The floors of ours: they send the same, without sessions of tenants, and what they
#: take is the server's.
FLOORS = {"role": "floor of role", "shared": "floor of shared"}

#: By the name that the tables have. The login of the earlier package is the one that
#: creates its tenants, since a manager has one engine.
WAYS = {
    PLAIN: Way("plain", ("plain",), "app"),
    "role": Way(OURS, ("ours", "role"), "app"),
    "shared": Way(OURS, ("ours", "shared"), "app_shared"),
    FLOORS["role"]: Way(OURS, ("floor", "role"), "app"),
    FLOORS["shared"]: Way(OURS, ("floor", "shared"), "app_shared"),
    "SET LOCAL by hand": Way("plain", ("set_local",), "app"),
    "sqlalchemy-tenants 0.2.0": Way("earlier", ("earlier",), "owner", own=True),
    "rls 0.3.2": Way("rls", ("rls_session",), "app", own=True),
}


class Running:
    """A way in its process, with its database.

    :param server: that the database is on.
    """

    def __init__(self, name: str, program: Program, database: Database) -> None:
        self.name = name
        self.program = program
        self.database = database
        self.login = WAYS[name].login

    def connect(
        self, driver: str, address: tuple[str, int] | None = None, *, warmup: int
    ) -> Connected | ProgramError:
        """Connect, and run transactions for each tenant.

        :param address: a proxy's.
        :param warmup: how many for each; psycopg prepares a statement that it has sent
            five times, asyncpg at once.
        :return: the error if the peer cannot use this driver.
        """
        host, port = address or (self.database.server.host, self.database.server.port)
        name = driver.removesuffix("-async")
        url = make_url(self.database.url(self.login, name))
        text = url.set(host=host, port=port).render_as_string(hide_password=False)
        connected = Connected(self.program, driver, text)
        try:
            self.program.call("connect", driver=driver, url=text)
            connected.run(warmup * TENANTS)
        except ProgramError as error:
            return error
        return connected


@dataclass(frozen=True)
class Connected:
    """A way that is connected to its database."""

    program: Program
    driver: str
    url: str

    def run(self, transactions: int, *, one_session: bool = False) -> Sequence[float]:
        """Run transactions, each with one query.

        :return: the seconds that they took, and those of the process' CPU.
        """
        numbers = [1 + number % TENANTS for number in range(transactions)]
        if one_session:
            numbers = [1] * transactions
        seconds: Sequence[float] = self.program.call(
            "run",
            driver=self.driver,
            url=self.url,
            rows=[(tenant_name(number), first_id(number)) for number in numbers],
            one_session=one_session,
        )
        return seconds


@contextmanager
def running(version: int) -> Iterator[list[Running]]:
    """All ways, on two servers, since roles belong to the server."""
    prepare(*{way.peer for way in WAYS.values() if way.peer != OURS})
    with ExitStack() as stack:
        with on(SERVER):
            ours = stack.enter_context(tenants_database(version))
            server = stack.enter_context(Server(version))
        create_roles(ours, 1, TENANTS)
        fill(ours, TENANTS)
        ours.execute("GRANT SELECT ON plain_notes TO app")
        with server.connect() as connection:
            connection.execute(CREATE_LOGINS)
        found = []
        for name, way in WAYS.items():
            program = Program(way.peer, "transactions.py", *way.arguments)
            with on(CLIENT):
                stack.enter_context(program)
            database = ours
            if way.own:
                database = _prepared(server, way.peer, program)
            found.append(Running(name, program, database))
        yield found


def _prepared(server: Server, name: str, program: Program) -> Database:
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER owner")
    database = Database(name, server)
    tenants = [tenant_name(number + 1) for number in range(TENANTS)]
    program.call("prepare", url=database.owner_url, tenants=tenants)
    fill(database, TENANTS, ["notes"])
    database.execute("GRANT SELECT ON notes TO app")
    return database
