"""Random interleavings of tenants, against a model in memory that never leaks.

Several sessions and connections are open at the same time, over a pool of a few
connections. After each step each of them sees exactly the rows that the model gives it,
and the tables hold exactly what was committed.

``TENANTS_EXAMPLES`` and ``TENANTS_STEPS`` make the runs longer. The same seed gives the
same runs: see ``TENANTS_SEED`` in conftest.py.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from time import monotonic
from typing import Any, Literal, TypeAlias

import pytest
from hypothesis import HealthCheck, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError, ProgrammingError, SQLAlchemyError, TimeoutError
from sqlalchemy.orm import Session

from proxy import Proxy
from resting import Watch
from servers import Database, Server, fresh_database
from sqlalchemy_tenants import (
    ScopeError,
    TenancyError,
    TenantAlreadyExists,
    TenantNotFound,
    TenantSession,
    context_value,
)
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import (  # noqa: F401
    Note,
    World,
    driver_fixture,
    grant_logins,
    isolation_fixture,
    migrate,
)

EXAMPLES = int(os.environ.get("TENANTS_EXAMPLES", "12"))
STEPS = int(os.environ.get("TENANTS_STEPS", "50"))

#: The first ones exist at the beginning. Roles and names that contain one another.
TENANTS = ("acme", "b", "a_tenant_b", "tenant_acme")
AT_FIRST = TENANTS[:3]

#: Everybody who is there at the same time, and the connections for them.
ACTORS = 6
POOL, ADMIN_POOL = 3, 2

#: The login of admin sessions comes with a tenant of its own.
LOGIN_SETTING = "b"

#: Statements by the SQLSTATE of the error that they run into.
ERRORS = {
    "22012": "SELECT 1 / 0",
    "42P01": "SELECT * FROM nowhere",
    "42501": "TRUNCATE notes",
    "57014": "SELECT pg_sleep(60)",  # statement_timeout
}

Row: TypeAlias = tuple[str, str]

#: ``idle``: the next statement begins a transaction. ``aborted``: the server refuses
#: every statement until a rollback, be it to a savepoint. ``lost``: so does the client,
#: because the connection is gone, or because the scope was refused.
State: TypeAlias = Literal["idle", "open", "aborted", "lost"]


@dataclass(eq=False)
class Actor:
    """Whoever works on rows, and what the model knows of the transaction.

    :param handle: a session, or a Core connection.
    :param leave: leaves the block that opened the handle; with an error, if given.
    :param tenant: ``None`` for an admin session across tenants.
    :param marker: a value of its context, which nobody else has.
    :param commits: whether leaving the block commits: ``manager.begin()``.
    :param written: rows as this transaction wrote them, ``None`` where it deleted one.
    :param doomed: the tenant was deleted during the transaction.
    :param owns: the transaction has created a table: deleting the tenant would wait.
    """

    name: str
    handle: Any
    engine: Engine
    leave: Callable[[BaseException | None], object]
    tenant: str | None
    marker: str | None = None
    admin: bool = False
    commits: bool = False
    state: State = "idle"
    written: dict[int, Row | None] = field(default_factory=dict)
    savepoints: list[tuple[Any, dict[int, Row | None]]] = field(default_factory=list)
    doomed: bool = False
    owns: bool = False

    def __repr__(self) -> str:
        return f"{self.name} ({self.state})"

    @property
    def is_session(self) -> bool:
        return isinstance(self.handle, Session)

    @property
    def holds_connection(self) -> bool:
        if self.is_session:
            return self.state != "idle"
        return not self.handle.invalidated

    def sees(self, row: Row | None) -> bool:
        return row is not None and self.tenant in (None, row[0])

    def end(self) -> None:
        """The transaction is over."""
        self.state = "idle"
        self.written, self.savepoints = {}, []
        self.doomed = self.owns = False


def sqlstate(error: BaseException) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def backend_pid(handle: Any) -> int:
    connection = handle.connection() if isinstance(handle, Session) else handle
    raw = connection.connection.driver_connection
    if hasattr(raw, "get_server_pid"):
        return int(raw.get_server_pid())
    return int(raw.info.backend_pid)


class Stage:
    """What stays from example to example: database, engines, managers."""

    def __init__(self, world: World, proxy: Proxy) -> None:
        self.proxy = proxy
        self.watch = Watch()
        self.counts: Counter[str] = Counter()
        self.role = world.isolation == "role"
        self.isolation = world.isolation
        name = world.driver.removesuffix("-async")

        def engine(login: str, size: int) -> Engine:
            url = proxy.url(world.database.url(login, name))
            made = world.engine(url=url, pool_size=size, pool_timeout=0.02)
            setting = LOGIN_SETTING if login == "manager" else ""
            self.watch.add(made, "checkin", setting)
            return made

        self.engine = engine(world.login, POOL)
        self.admin_engine = engine("manager", ADMIN_POOL)
        self.managers = {
            schema: PostgresManager.from_engine(
                self.engine,
                schema,
                isolation=world.isolation,
                admin_engine=self.admin_engine,
            )
            for schema in ("public", None)
        }
        self.superuser = world.database.server.connect(world.database.name)
        for manager in self.managers.values():
            manager.create_tenants(AT_FIRST)

    def reset(self) -> None:
        """As it was at the beginning, with new connections: an example is reproducible
        only if nothing is left of the one before."""
        for engine in (self.engine, self.admin_engine):
            engine.dispose()
        self.terminate("usename IN (%s, 'manager')", self.engine.url.username)
        # what a backend that was ended in the midst of something may leave behind
        for (table,) in self.execute(
            "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relpersistence = 't' AND c.relkind = 'r'"
        ):
            self.execute(f"DROP TABLE IF EXISTS {table}")
        self.execute("DELETE FROM notes")
        self.execute("ALTER TABLE notes ALTER id RESTART")
        if self.role:
            for tenant in self.roles() - set(AT_FIRST):
                self.execute(f'DROP ROLE "tenant_{tenant}"')
            self.managers[None].create_tenants(AT_FIRST)

    def execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement as superuser."""
        cursor = self.superuser.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []

    def roles(self) -> set[str]:
        """The tenants that have a role."""
        rows = self.execute("SELECT rolname FROM pg_roles WHERE rolname ~ '^tenant_'")
        return {name.removeprefix("tenant_") for (name,) in rows}

    def rows(self) -> dict[int, Row]:
        """What is committed, past all policies."""
        rows = self.execute("SELECT id, tenant, body FROM public.notes")
        return {number: (tenant, body) for number, tenant, body in rows}

    def terminate(self, which: str, *parameters: Any) -> int:
        """End backends, and return when they are gone.

        :param which: a condition on ``pg_stat_activity``.
        :return: how many.
        """
        backends = self.execute(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE {which}",
            *parameters,
        )
        # with a timeout, pg_terminate_backend() looks every 100 ms only
        deadline = monotonic() + 30
        query = "SELECT FROM pg_stat_activity WHERE pid = ANY (%s)"
        while self.execute(query, [pid for pid, _ in backends]):
            assert monotonic() < deadline
        return len(backends)

    def interrupt(self, word: bytes, action: Callable[[], object]) -> bool:
        """Ctrl-C, or cancellation of the task, when a message with ``word`` passes.

        :return: whether it came.
        """
        task = None
        if self.engine.dialect.is_async:
            task = asyncio.current_task()
            loop = asyncio.get_running_loop()
        main = threading.get_ident()

        def on_request(data: bytes) -> None:
            if word in data:
                self.proxy.on_request = None
                if task is None:
                    signal.pthread_kill(main, signal.SIGINT)
                else:
                    loop.call_soon_threadsafe(task.cancel)

        # a signal that arrives in a callback of the garbage collector is swallowed
        gc.disable()
        self.proxy.on_request = on_request
        try:
            action()
        except KeyboardInterrupt:
            return True
        except asyncio.CancelledError:
            assert task is not None
            task.uncancel()
            return True
        finally:
            self.proxy.on_request = None
            gc.enable()
        return False


# What may come next: a method of the machine, its arguments, and how often it comes.
# A number stands for itself or for one of the actors.
MOVES: dict[str, tuple[int, tuple[Sequence[Any], ...]]] = {
    "come": (
        15,
        (
            ["new_session", "connect", "begin", "alone", "admin", "interrupt"],
            TENANTS,
            [False, True],
            ["public", None],
        ),
    ),
    "work": (
        40,
        (
            range(ACTORS),
            ["write"] * 4
            + ["change_all", "read", "trespass"] * 2
            + ["change_one", "shadow"],
            TENANTS,
            range(20),
        ),
    ),
    "finish": (
        18,
        (
            range(ACTORS),
            ["commit"] * 9
            + ["rollback"] * 3
            + ["close", "reset", "invalidate", "leave", "fail"],
        ),
    ),
    "nest": (
        10,
        (range(ACTORS), ["begin", "begin", "release", "rollback"], range(1, 4)),
    ),
    "disturb": (
        10,
        (
            range(ACTORS),
            ["interrupt"] * 3
            + ["terminate"] * 2
            + ["terminate_idle", "autocommit", *ERRORS],
        ),
    ),
    "manage": (
        7,
        (["share", "checkout", "create", "create", "delete"], TENANTS, TENANTS),
    ),
}
WEIGHTS = [weight for weight, _ in MOVES.values()]


class Tenants(RuleBasedStateMachine):
    """One example: everybody comes, works and goes in a random order."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        stage.reset()
        stage.watch.violations.clear()
        self.committed: dict[int, Row] = {}
        self.tenants = set(AT_FIRST if stage.role else TENANTS)
        self.actors: list[Actor] = []
        self.serial = 0
        self.drawn: Counter[int] = Counter()
        #: Connections that died while nobody used them: the next to begin gets to know.
        self.dead: dict[Engine, int] = {stage.engine: 0, stage.admin_engine: 0}
        #: Whose temporary tables may be there: their roles cannot be dropped.
        self.temporary: set[str] = set()

    # --- the model ---

    def view(self, actor: Actor) -> dict[int, Row]:
        """What an actor has to see: what is committed, and what it wrote itself."""
        rows = {**self.committed, **actor.written}
        return {number: row for number, row in rows.items() if row and actor.sees(row)}

    def locked(self, actor: Actor) -> bool:
        """Whether writing all rows that it sees would have to wait for another."""
        mine = self.view(actor).keys()
        return any(mine & each.written.keys() for each in self.actors if each != actor)

    def exhausted(self, engine: Engine) -> bool:
        """Whether all connections are in use."""
        pool: Any = engine.pool
        return bool(pool.checkedout() == pool.size())

    def is_missing(self, actor: Actor) -> bool:
        return not actor.admin and actor.tenant not in self.tenants

    def alive(self, engine: Engine) -> bool:
        """Whether no connection died while nobody used it."""
        return self.dead[engine] == 0

    def died(self, error: SQLAlchemyError | TenancyError, *engines: Engine) -> bool:
        """Whether an error tells of a connection that died while nobody used it."""
        dead = next((engine for engine in engines if not self.alive(engine)), None)
        if dead is None or not getattr(error, "connection_invalidated", False):
            return False
        self.dead[dead] -= 1
        return True

    def attempt(
        self, actor: Actor, action: Callable[[], Any], expected: str | None = None
    ) -> Any:
        """Do something that sends a statement, and follow what becomes of it.

        :param expected: SQLSTATE of the error that the statement runs into.
        :return: ``None`` if it failed, as it had to.
        """
        idle = actor.state == "idle"
        missing = idle and self.is_missing(actor)
        exhausted = not actor.holds_connection and self.exhausted(actor.engine)
        try:
            result = action()
        except (SQLAlchemyError, TenancyError) as error:
            note(f"  {actor}: {type(error).__name__} {sqlstate(error)}")
            if actor.state in ("aborted", "lost"):
                return None
            if exhausted and isinstance(getattr(error, "orig", error), TimeoutError):
                if not actor.is_session and actor.handle.closed:
                    self.gone(actor)
                return None
            if missing and isinstance(error, TenantNotFound):
                self.refused(actor)
                return None
            if idle and self.died(error, actor.engine):
                self.refused(actor)
                return None
            told = isinstance(error, DBAPIError) and not error.connection_invalidated
            fails = expected is not None and sqlstate(error) == expected
            if told and (fails or actor.doomed):
                actor.state = "aborted"
                return None
            raise
        assert actor.state in ("idle", "open"), f"{actor}"
        must_fail = missing or exhausted or expected
        assert not must_fail, f"{actor}"
        if idle:
            actor.state = "open"
            self.count("transactions")
        return result

    def refused(self, actor: Actor) -> None:
        """The transaction could not begin in its scope: nothing more is executed."""
        self.count("refusals")
        if actor.is_session:
            actor.state = "lost"
            with pytest.raises((SQLAlchemyError, ScopeError)):
                actor.handle.execute(text("SELECT 1"))
        else:
            assert actor.handle.closed
            self.gone(actor)

    def gone(self, actor: Actor, error: BaseException | None = None) -> None:
        """The block that opened the handle is left."""
        self.actors.remove(actor)
        actor.leave(error)

    def number(self) -> int:
        self.serial += 1
        return self.serial

    def body(self) -> str:
        return f"body {self.number()}"

    def context(self) -> dict[str, str] | None:
        """The context of the next actor: every other one has a value."""
        number = self.number()
        return {"marker": f"value {number}"} if number % 2 else None

    def count(self, what: str) -> None:
        self.stage.counts[what] += 1

    def begun(self, actor: Actor) -> bool:
        """Whether an actor is in a transaction, which it begins if need be."""
        if actor.state == "idle":
            handle = actor.handle
            begin = handle.connection if actor.is_session else handle.begin
            self.attempt(actor, begin)
        return actor.state == "open" and actor in self.actors

    # --- coming and going ---

    def enter(
        self,
        name: str,
        manager: Any,
        tenant: str | None,
        context: dict[str, str] | None,
        **kw: Any,
    ) -> None:
        """Enter a block of a manager; the caller has foreseen its errors."""
        stack = ExitStack()
        handle = stack.enter_context(manager)

        def leave(error: BaseException | None) -> None:
            if error is None:
                stack.close()
            else:
                assert not stack.__exit__(type(error), error, None)

        self.count(name)
        kw = {"engine": self.stage.engine, **kw, **(context or {})}
        label = f"{name} {self.number()} of {tenant}"
        self.actors.append(Actor(label, handle, leave=leave, tenant=tenant, **kw))

    def open(self, way: str, tenant: str, create: bool, schema: Any) -> None:
        """``new_session()``, ``connect()`` or ``begin()`` of a manager."""
        stage = self.stage
        kw: Any = {"create_if_missing": create} if way == "new_session" else {}
        context = self.context()
        missing = tenant not in self.tenants
        creates = missing and way == "new_session" and create
        engines = [stage.engine, *([stage.admin_engine] if creates else [])]
        full = any(map(self.exhausted, engines))
        try:
            block = getattr(stage.managers[schema], way)(tenant, context=context, **kw)
            commits = way == "begin"
            self.enter(way, block, tenant, context, state="open", commits=commits)
        except TimeoutError:
            assert full
        except TenantNotFound:
            assert missing
            assert not creates
        except DBAPIError as error:
            if not self.died(error, *engines):
                raise
        else:
            assert not full
            assert not missing or creates
            self.count("transactions")
        if creates:  # an error may have come after that
            self.tenants |= stage.roles() & {tenant}

    def open_alone(self, tenant: str, schema: Any) -> None:
        """A session without a manager, which begins later."""
        context = self.context()
        session = TenantSession(
            self.stage.engine,
            tenant=tenant,
            isolation=self.stage.isolation,
            schema=schema,
            context=context,
        )
        self.enter("session", session, tenant, context)

    def open_admin(self, tenant: str | None, schema: Any) -> None:
        """An admin session, across tenants or narrowed to one."""
        engine = self.stage.admin_engine
        full = self.exhausted(engine)
        context = self.context()
        kw: Any = {"state": "open", "engine": engine, "admin": True}
        try:
            block = self.stage.managers[schema].admin_session(tenant, context=context)
            self.enter("admin session", block, tenant, context, **kw)
        except TimeoutError:
            assert full
        except DBAPIError as error:
            if not self.died(error, engine):
                raise
        else:
            assert not full
            self.count("transactions")

    def interrupt_open(self, way: str, tenant: str, schema: Any) -> None:
        """Ctrl-C, or cancellation, while a block is entered."""
        engine = self.stage.engine
        if tenant in self.tenants and not self.exhausted(engine) and self.alive(engine):
            block = getattr(self.stage.managers[schema], way)(tenant)
            self.count("interruptions")
            assert self.stage.interrupt(b"ROLE", block.__enter__)

    def leave(self, actor: Actor, error: BaseException | None) -> None:
        """The end of the block, by an error or without one."""
        commits = actor.commits and error is None
        try:
            self.gone(actor, error)
        except SQLAlchemyError:
            if actor.state != "lost":
                raise
        else:
            assert not (commits and actor.state == "lost")
            if commits and actor.state == "open":
                self.merge(actor)

    # --- the end of a transaction ---

    def merge(self, actor: Actor) -> None:
        """What an actor wrote is committed."""
        rows = {**self.committed, **actor.written}
        self.committed = {number: row for number, row in rows.items() if row}
        self.count("commits")

    def commit(self, actor: Actor) -> None:
        before = actor.state
        try:
            actor.handle.commit()
        except SQLAlchemyError as error:
            note(f"  {type(error).__name__} {sqlstate(error)}")
            if before not in ("aborted", "lost"):
                raise
            self.roll_back(actor, "rollback")
            return
        if before == "open":
            self.merge(actor)
        # COMMIT of a transaction that had an error is a rollback, to PostgreSQL
        actor.end()

    def roll_back(self, actor: Actor, way: str) -> None:
        """``rollback()``, and other ways to end a transaction without a commit."""
        if not actor.is_session and way != "invalidate":
            way = "rollback"
        try:
            getattr(actor.handle, way)()
        except SQLAlchemyError as error:
            # ROLLBACK was the first to be told that the connection is gone
            note(f"  {type(error).__name__} {sqlstate(error)}")
            if actor.state != "lost":
                raise
        actor.handle.rollback()
        actor.end()

    # --- rows ---

    def read(self, actor: Actor, way: str) -> None:
        if way == "stream" and actor.state != "open":
            way = "columns"  # psycopg warns of a server's cursor that failed
        expected = self.view(actor)
        found = self.attempt(actor, lambda: fetch(actor.handle, way, actor.marker))
        if found is not None:
            assert found == expected, f"{actor}"

    def write(self, actor: Actor, tenant: str, way: str) -> None:
        """New rows. They get their tenant by themselves, except across tenants."""
        if way == "orm" and not self.begun(actor):
            return
        rows: list[dict[str, str]] = [{"body": self.body()} for _ in range(2)]
        if actor.tenant is None:
            for row in rows:
                row["tenant"] = tenant
        numbers = self.attempt(actor, lambda: store(actor.handle, rows, way))
        if numbers is not None:
            for number, row in zip(numbers, rows, strict=True):
                actor.written[number] = (actor.tenant or tenant, row["body"])

    def change_all(self, actor: Actor, deletes: bool) -> None:
        """UPDATE or DELETE, without WHERE."""
        if self.locked(actor):
            return
        expected, body = self.view(actor), self.body()
        statement = delete(Note) if deletes else update(Note).values(body=body)
        result = self.attempt(actor, lambda: execute(actor.handle, statement))
        if result is not None:
            assert result.rowcount == len(expected), f"{actor}"
            for number, (tenant, _) in expected.items():
                actor.written[number] = None if deletes else (tenant, body)

    def change_one(self, actor: Actor, number: int, deletes: bool) -> None:
        """A row that the ORM has loaded."""
        if not actor.is_session or not self.begun(actor) or actor.doomed:
            return
        expected = self.view(actor)
        if not expected or self.locked(actor):
            return
        chosen = sorted(expected)[number % len(expected)]
        tenant, body = expected[chosen][0], self.body()
        loaded = actor.handle.get_one(Note, chosen)
        assert loaded.tenant == tenant
        if deletes:
            actor.handle.delete(loaded)
        else:
            loaded.body = body
        actor.handle.flush()
        actor.written[chosen] = None if deletes else (tenant, body)

    def trespass(self, actor: Actor, tenant: str, way: str) -> None:
        """What concerns another tenant fails, or finds nothing."""
        if actor.tenant in (None, tenant):
            return
        handle = actor.handle
        foreign = [n for n, row in self.committed.items() if row[0] == tenant]
        if way == "get":
            query = select(Note.body).where(Note.id.in_(foreign))
            found = self.attempt(actor, lambda: handle.execute(query).all())
            assert not found, f"{actor}"
        elif way in ("update", "delete"):
            statement: Any = update(Note).values(body="smuggled")
            if way == "delete":
                statement = delete(Note)
            statement = statement.where((Note.tenant == tenant) | Note.id.in_(foreign))
            result = self.attempt(actor, lambda: execute(handle, statement))
            assert result is None or result.rowcount == 0, f"{actor}"
        elif way == "flush":
            if actor.is_session and self.begun(actor) and not actor.doomed:
                handle.add(Note(tenant=tenant, body="smuggled"))
                self.attempt(actor, handle.flush, "42501")
        elif way == "insert":
            statement = insert(Note).values(tenant=tenant, body="smuggled")
            self.attempt(actor, lambda: execute(handle, statement), "42501")
        elif self.view(actor) and not self.locked(actor):
            statement = update(Note).values(tenant=tenant)
            self.attempt(actor, lambda: execute(handle, statement), "42501")

    def shadow(self, actor: Actor) -> None:
        """A temporary table that stays on the connection, in place of the real one."""
        if not actor.admin:
            statement = text(
                "CREATE TEMPORARY TABLE IF NOT EXISTS notes AS"
                " SELECT 1 AS id, tenancy.current_tenant() AS tenant, 'decoy' AS body"
            )
            self.attempt(actor, lambda: actor.handle.execute(statement))
            self.temporary.add(str(actor.tenant))
            actor.owns = True

    # --- errors ---

    def fail(self, actor: Actor, error: str) -> None:
        """An error in a statement."""
        if error == "57014":
            if not self.begun(actor):
                return
            setting = text("SET LOCAL statement_timeout = 1")
            self.attempt(actor, lambda: actor.handle.execute(setting))
        statement = text(ERRORS[error])
        self.attempt(actor, lambda: actor.handle.execute(statement), error)

    def terminate(self, actor: Actor) -> None:
        """Its backend, in a transaction or between two."""
        if not actor.holds_connection or actor.state == "lost":
            return
        try:
            pid = backend_pid(actor.handle)
        except SQLAlchemyError:  # a session that waits for a rollback
            assert actor.state == "aborted"
            return
        terminated = self.stage.terminate("pid = %s", pid)
        if actor.state == "idle":
            self.dead[actor.engine] += terminated  # none, the second time
        else:
            assert terminated == 1
            actor.state = "lost"
        self.stage.counts["backends terminated"] += terminated

    def terminate_idle(self, engine: Engine) -> None:
        """The backends that nobody uses, or nobody in a transaction."""
        idle = "usename = %s AND state = 'idle'"
        terminated = self.stage.terminate(idle, engine.url.username)
        self.dead[engine] += terminated
        self.stage.counts["backends terminated"] += terminated

    def interrupt(self, actor: Actor) -> None:
        """Ctrl-C, or cancellation, in BEGIN or in a query."""
        handle, engine = actor.handle, actor.engine
        if actor.state == "idle":
            full = not actor.holds_connection and self.exhausted(engine)
            if full or self.is_missing(actor) or not self.alive(engine):
                return
            word = b"ROLE"
        elif actor.state == "open" and not actor.doomed:
            word = b""
        else:
            return
        self.count("interruptions")
        assert self.stage.interrupt(
            word, lambda: fetch(handle, "columns", actor.marker)
        )
        if actor.state == "idle":
            self.refused(actor)
        else:
            actor.state = "lost"

    def autocommit(self, actor: Actor) -> None:
        """In which no statement could be confined: refused before any."""
        handle, options = actor.handle, {"isolation_level": "AUTOCOMMIT"}
        full = not actor.holds_connection and self.exhausted(actor.engine)
        if actor.state != "idle" or full or not self.alive(actor.engine):
            return
        if actor.is_session:
            with pytest.raises(ScopeError):
                handle.connection(execution_options=options)
        else:
            handle.execution_options(**options)
            with pytest.raises(ScopeError):
                handle.execute(text("SELECT 1"))
        self.refused(actor)

    # --- everything else ---

    def checkout(self, engine: Engine) -> None:
        """Somebody uses a connection of the pool without a session."""
        full = self.exhausted(engine)
        try:
            with engine.connect() as connection:
                user = connection.scalar(text("SELECT current_user::text"))
                assert user == engine.url.username
                with pytest.raises(ProgrammingError) as raised:
                    connection.execute(select(Note.id)).all()
                assert sqlstate(raised.value) == "42501"
        except TimeoutError:
            assert full
        except DBAPIError as error:
            if not self.died(error, engine):
                raise
        else:
            assert not full

    def share(self, tenant: str, other: str) -> None:
        """Two sessions on one connection cannot have two tenants."""
        engine = self.stage.engine
        if tenant == other or not {tenant, other} <= self.tenants:
            return
        if self.exhausted(engine) or not self.alive(engine):
            return
        kw: Any = {"isolation": self.stage.isolation, "schema": "public"}
        mine = {n: row for n, row in self.committed.items() if row[0] == tenant}
        with engine.connect() as connection:
            context = {"marker": "first"}
            first = TenantSession(connection, tenant=tenant, context=context, **kw)
            second = TenantSession(connection, tenant=other, **kw)
            assert fetch(first, "columns", "first") == mine
            for _ in range(2):  # not even if the error is overlooked
                with pytest.raises(ScopeError):
                    fetch(second, "columns")
            assert fetch(first, "columns", "first") == mine
            second.close()
            first.close()

    def create_tenant(self, tenant: str) -> None:
        stage = self.stage
        full = stage.role and self.exhausted(stage.admin_engine)
        exists = stage.role and tenant in self.tenants
        try:
            stage.managers["public"].create_tenant(tenant)
        except TimeoutError:
            assert full
        except TenantAlreadyExists:
            assert exists
        except DBAPIError as error:
            if not self.died(error, stage.admin_engine):
                raise
        else:
            assert not full
            assert not exists
            self.tenants.add(tenant)

    def delete_tenant(self, tenant: str) -> None:
        """Its rows stay, and who works for it meanwhile gets errors at most."""
        stage = self.stage
        if any(actor.tenant == tenant and actor.owns for actor in self.actors):
            return
        full = stage.role and self.exhausted(stage.admin_engine)
        missing = tenant not in self.tenants
        try:
            stage.managers["public"].delete_tenant(tenant)
        except TimeoutError:
            assert full
        except TenantNotFound:
            assert missing
        except ScopeError:
            assert tenant in self.temporary
        except DBAPIError as error:
            if not self.died(error, stage.admin_engine):
                raise
        else:
            assert not full
            assert not missing
            if stage.role:
                self.count("tenants deleted")
                self.tenants.remove(tenant)
                for actor in self.actors:
                    if actor.tenant == tenant and not actor.admin:
                        actor.doomed = actor.state != "idle"

    # --- the steps ---

    # A number is a step, and another one when it comes again: from several strategies,
    # and of several rules, Hypothesis chooses a few far too often. What it does well is
    # to leave out steps of a failure until it is short.
    @rule(number=st.integers(0, 1 << 32))
    def step(self, number: int) -> None:
        self.drawn[number] += 1
        random = Random(f"{number} {self.drawn[number]}")
        (name,) = random.choices(list(MOVES), WEIGHTS)
        if len(self.actors) < random.randint(1, 3):
            name = "come"
        elif name == "come" and len(self.actors) == ACTORS:
            name = "finish"
        arguments = [random.choice(values) for values in MOVES[name][1]]
        note(f"  {name} {arguments}")
        self.count("steps")
        if name not in ("come", "manage"):
            arguments[0] = self.actors[arguments[0] % len(self.actors)]
            note(f"  {arguments[0]}")
        getattr(self, name)(*arguments)

    def come(self, way: str, tenant: str, flag: bool, schema: Any) -> None:
        if way == "alone":
            self.open_alone(tenant, schema)
        elif way == "admin":
            self.open_admin(tenant if flag else None, schema)
        elif way == "interrupt":
            self.interrupt_open("connect" if flag else "new_session", tenant, schema)
        else:
            self.open(way, tenant, flag, schema)

    def work(self, actor: Actor, what: str, tenant: str, way: int) -> None:

        def one_of(*ways: str) -> str:
            return ways[way % len(ways)]

        if what == "read":
            self.read(actor, one_of("columns", "orm", "text", "stream"))
        elif what == "write":
            self.write(actor, tenant, one_of("core", "orm", "text"))
        elif what == "change_all":
            self.change_all(actor, deletes=way % 4 == 0)
        elif what == "change_one":
            self.change_one(actor, way // 2, deletes=way % 2 == 0)
        elif what == "trespass":
            ways = ("get", "update", "delete", "flush", "insert", "give")
            self.trespass(actor, tenant, one_of(*ways))
        else:
            self.shadow(actor)
        # what comes next would fail, too
        if actor.state in ("aborted", "lost") and way % 2 and not actor.commits:
            self.roll_back(actor, "rollback")

    def finish(self, actor: Actor, how: str) -> None:
        if how in ("leave", "fail") or actor.commits:
            self.leave(actor, ZeroDivisionError() if how != "leave" else None)
        elif how == "commit":
            self.commit(actor)
        else:
            self.roll_back(actor, how)

    def nest(self, actor: Actor, how: str, depth: int) -> None:
        """Savepoints."""
        if how != "begin" and not actor.savepoints:
            actor = next((each for each in self.actors if each.savepoints), actor)
        if how == "begin":
            if self.begun(actor) and not actor.doomed:
                savepoint = actor.handle.begin_nested()
                actor.savepoints.append((savepoint, dict(actor.written)))
        elif not actor.savepoints or actor.state == "lost" or actor.doomed:
            return
        elif how == "release" and actor.state == "open":
            actor.savepoints.pop()[0].commit()
        else:
            for _ in range(min(depth, len(actor.savepoints))):
                savepoint, actor.written = actor.savepoints.pop()
                savepoint.rollback()
                actor.state = "open"
            self.count("rollbacks to savepoints")

    def disturb(self, actor: Actor, what: str) -> None:
        if what == "interrupt":
            self.interrupt(actor)
        elif what == "terminate":
            self.terminate(actor)
        elif what == "autocommit":
            self.autocommit(actor)
        elif what == "terminate_idle":
            self.terminate_idle(actor.engine)
        else:
            self.fail(actor, what)

    def manage(self, what: str, tenant: str, other: str) -> None:
        if what == "share":
            self.share(tenant, other)
        elif what == "checkout":
            for engine in (self.stage.engine, self.stage.admin_engine):
                self.checkout(engine)
        elif what == "create":
            self.create_tenant(tenant)
        else:
            self.delete_tenant(tenant)

    # --- what holds after each step ---

    @invariant()
    def isolated(self) -> None:
        for actor in list(self.actors):
            if actor.state == "open":
                self.read(actor, "columns")
        self.settled()

    def settled(self) -> None:
        assert self.stage.rows() == self.committed
        assert self.stage.watch.violations == []

    def teardown(self) -> None:
        self.count("examples")
        failed = sys.exc_info()[0] is not None
        for actor in list(self.actors):
            try:
                self.gone(actor, ZeroDivisionError())
            except Exception:
                if actor.state != "lost" and not failed:
                    raise
        if failed:
            return
        for engine in (self.stage.engine, self.stage.admin_engine):
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        self.settled()


def execute(handle: Any, statement: Any) -> Any:
    """Execute DML, which says nothing of objects that are loaded."""
    return handle.execute(statement, execution_options={"synchronize_session": False})


def fetch(handle: Any, way: str, marker: str | None = None) -> dict[int, Row]:
    """All rows that somebody sees, by number.

    :param marker: the value in the context, ``None`` without one.
    """
    rows: Any
    if way == "orm" and isinstance(handle, Session):
        handle.expire_all()
        loaded = handle.scalars(select(Note))
        rows = [(each.id, each.tenant, each.body) for each in loaded]
    elif way == "text":
        rows = handle.execute(text("SELECT id, tenant, body FROM notes")).all()
    else:
        query = select(Note.id, Note.tenant, Note.body, context_value("marker"))
        if way == "stream":
            query = query.execution_options(yield_per=2)
        found = list(handle.execute(query))
        assert {row[3] for row in found} <= {marker}
        rows = [row[:3] for row in found]
    return {number: (tenant, body) for number, tenant, body in rows}


def store(handle: Any, rows: list[dict[str, str]], way: str) -> list[int]:
    """Write rows, and return their numbers."""
    if way == "orm" and isinstance(handle, Session):
        notes = [Note(**row) for row in rows]
        handle.add_all(notes)
        handle.flush()
        return [note.id for note in notes]
    if way == "text":
        names = ", ".join(rows[0])
        values = ", ".join(f":{name}" for name in rows[0])
        statement = text(f"INSERT INTO notes ({names}) VALUES ({values}) RETURNING id")
        return [handle.execute(statement, row).scalar_one() for row in rows]
    statement = insert(Note).returning(Note.id, sort_by_parameter_order=True)
    return list(handle.execute(statement, rows).scalars())


@pytest.fixture(scope="module", name="prepared")
def prepared_fixture(server: Server) -> Iterator[Database]:
    """One database for all runs."""
    with fresh_database(server) as database:
        migrate(database)
        grant_logins(database)
        # a statement of one that would touch rows of another fails, and does not wait
        database.execute("ALTER DATABASE test SET lock_timeout = '5s'")
        database.execute(f"ALTER ROLE manager SET tenancy.tenant = '{LOGIN_SETTING}'")
        yield database


def test_nobody_sees_or_writes_anything_of_another(
    prepared: Database,
    driver: str,
    isolation: str,
    run_seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    world = World(prepared, driver, isolation)

    def run() -> None:
        with Proxy(prepared.server) as proxy:
            stage = Stage(world, proxy)
            try:
                run_state_machine_as_test(
                    seed(f"{run_seed} {driver} {isolation}")(lambda: Tenants(stage)),  # type: ignore[arg-type]
                    settings=settings(
                        max_examples=EXAMPLES,
                        stateful_step_count=STEPS,
                        deadline=None,
                        database=None,
                        print_blob=True,
                        report_multiple_bugs=False,
                        suppress_health_check=list(HealthCheck),
                    ),
                )
            finally:
                counts = stage.counts
                listed = ", ".join(f"{counts[name]} {name}" for name in sorted(counts))
                record_property("counts", listed)
                stage.superuser.close()
                for engine in world.engines:
                    engine.dispose()

    world.run(run)
