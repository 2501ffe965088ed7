"""Many threads and tasks, while backends die, the server restarts, the network fails,
the pool runs dry, and tenants come and go.

Every row names its tenant, and a ledger keeps what became of every transaction. So it
is known afterwards, and in each transaction meanwhile, which rows have to be there.

``TENANTS_TRANSACTIONS`` makes the runs longer. With the same seed everybody does the
same things, but not at the same moments: see ``TENANTS_SEED`` in conftest.py.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import StringIO
from itertools import product
from random import Random
from typing import Any, Literal, TypeAlias

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, insert, select, text
from sqlalchemy.exc import DBAPIError, OperationalError, TimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from proxy import Proxy
from resting import Watch
from servers import Database, Server, fresh_database, requested_version
from sqlalchemy_tenants import ScopeError, TenantAlreadyExists, TenantNotFound, aio
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import (  # noqa: F401
    Note,
    driver_fixture,
    grant_logins,
    isolation_fixture,
    migrate,
)

#: Transactions that are committed, for each driver and isolation.
TRANSACTIONS = int(os.environ.get("TENANTS_TRANSACTIONS", "300"))
#: In one round; then the tables are emptied, and everything begins again.
ROUND = 300

WORKERS = 10
POOL, ADMIN_POOL = 4, 2

#: Who stays, and who comes and goes.
STAYING = ("acme", "b", "a_tenant_b", "tenant_acme")
PASSING = ("passing", "by")

#: Seconds after which a round hangs, and a part of it. It takes a few.
HARD_LIMIT, PART_LIMIT = 180, 60

#: SQLSTATEs of what may happen to anybody: the connection is lost, the server starts
#: or stops, a timeout, a deadlock.
FAULTS = {"57P01", "57P02", "57P03", "57014", "55P03", "40P01", "22012"}
#: What may happen to who works for a tenant that is deleted and created meanwhile.
#: XX000: "tuple concurrently updated", from GRANT and DROP ROLE at the same time.
PASSING_FAULTS = {"22023", "42501", "42704", "XX000"}

Handle: TypeAlias = Session | Connection
Outcome: TypeAlias = Literal["open", "committed", "undone", "unknown"]


def sqlstate(error: BaseException) -> str | None:
    for each in (error, getattr(error, "orig", None)):
        found = getattr(each, "sqlstate", None)
        if found is not None:
            return str(found)
    return None


def is_lost(error: BaseException) -> bool:
    """Whether the connection is gone, or could not be opened."""
    state = sqlstate(error)
    if getattr(error, "connection_invalidated", False) or isinstance(error, OSError):
        return True
    # while it connects: asyncpg's own errors, which SQLAlchemy passes on or wraps
    own = getattr(error, "orig", None) or error
    if isinstance(own, OSError) or "connection is closed" in str(own):
        return True
    if state is not None:
        return state.startswith("08")
    return isinstance(error, OperationalError) or "connection was closed" in str(own)


@dataclass
class Ledger:
    """What became of every row, and of everything else.

    :param up: whether the server accepts connections, as far as the injector knows.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    committed: dict[str, set[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    # its lock is reentrant
    changed: threading.Condition = field(default_factory=threading.Condition)
    up: threading.Event = field(default_factory=threading.Event)
    finished: bool = False

    def count(self, what: str) -> None:
        with self.changed:
            self.counts[what] += 1
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[Counter[str]], bool]) -> None:
        """Wait until the counts are as asked for, or all is over."""
        with self.changed:
            if not self.changed.wait_for(
                lambda: self.finished or condition(self.counts), PART_LIMIT
            ):
                raise RuntimeError(f"it never happened: {dict(self.counts)}")

    def violation(self, message: str) -> None:
        """Take down what must not happen; then it is over."""
        with self.changed:
            self.violations.append(message)
            self.finished = True
            self.changed.notify_all()

    def new_row(self, tenant: str) -> str:
        """The body of a row that is about to be written."""
        with self.changed:
            body = f"{tenant}/{len(self.outcomes)}"
            self.outcomes[body] = "open"
            return body

    def settle(self, tenant: str, bodies: list[str], outcome: Outcome) -> None:
        """A transaction has ended, or a savepoint."""
        with self.changed:
            for body in bodies:
                self.outcomes[body] = outcome
            if outcome == "committed":
                self.committed.setdefault(tenant, set()).update(bodies)

    def snapshot(self, tenant: str) -> set[str]:
        """Rows that have to be there from now on."""
        with self.changed:
            return set(self.committed.get(tenant, ()))

    def check(self, tenant: str, rows: list[Any], required: set[str]) -> None:
        """Rows that somebody of ``tenant`` has seen."""
        seen = {body for _, body in rows}
        with self.changed:
            for owner, body in rows:
                if owner != tenant or not body.startswith(f"{tenant}/"):
                    self.violation(f"{tenant} saw {body} of {owner}")
                elif self.outcomes.get(body, "undone") == "undone":
                    self.violation(f"{tenant} saw {body}, never committed")
            for body in required - seen:
                self.violation(f"{tenant} missed {body}")

    def tolerate(self, error: BaseException, tenant: str | None) -> None:
        """Count an error that may happen, and take down any other."""
        found = sqlstate(error)
        # wrapped, where a Core connection that was lost asks for another one
        if isinstance(getattr(error, "orig", error), TimeoutError):
            self.count("pool timeouts")
        elif found in FAULTS:
            self.count(f"errors {found}")
        elif is_lost(error):
            self.count("lost connections")
        elif tenant not in STAYING and (
            found in PASSING_FAULTS or isinstance(error, TenantNotFound | ScopeError)
        ):
            self.count("refusals of passing tenants")
        else:
            trace = "".join(traceback.format_exception(error))
            self.violation(f"an error that is no fault, for {tenant}: {trace}")


# --- what everybody does -------------------------------------------------------------


@dataclass
class Visit:
    """A tenant's session or Core connection, at work.

    :param bodies: the rows that the transaction has written.
    """

    handle: Handle
    tenant: str
    random: Random
    ledger: Ledger
    bodies: list[str] = field(default_factory=list)

    def run(self) -> None:
        """A few transactions, the next one also where the one before has failed."""
        for _ in range(self.random.randint(1, 4)):
            try:
                self.transact()
            except Exception as error:
                cancelled = error.__context__
                if isinstance(error, AssertionError) and isinstance(
                    cancelled, asyncio.CancelledError
                ):
                    # psycopg 3.3.9 raises this instead where executemany() is cancelled
                    # while it enters pipeline mode, and the connection stays in it
                    self.handle.invalidate()
                    raise cancelled from None
                self.ledger.tolerate(error, self.tenant)
                if isinstance(self.handle, Connection) and self.handle.closed:
                    return
                self.handle.rollback()

    def transact(self) -> None:
        """One transaction, and what became of it."""
        self.bodies = []
        outcome: Outcome = "undone"
        try:
            for _ in range(self.random.randint(1, 4)):
                self.random.choice(ACTIONS)(self)
            if self.random.random() < 0.15:
                self.handle.rollback()
                self.ledger.count("rollbacks")
            else:
                outcome = "unknown"
                self.handle.commit()
                outcome = "committed"
        except DBAPIError as error:
            if outcome == "unknown" and not is_lost(error):
                outcome = "undone"  # so says the server
            raise
        finally:
            self.ledger.settle(self.tenant, self.bodies, outcome)
            if outcome != "undone":
                self.ledger.count(
                    "commits" if outcome == "committed" else "unknown outcomes"
                )

    def write(self) -> None:
        """A few rows, which get their tenant by themselves."""
        bodies = [
            self.ledger.new_row(self.tenant) for _ in range(self.random.randint(1, 3))
        ]
        self.bodies += bodies
        self.handle.execute(insert(Note), [{"body": body} for body in bodies])

    def read(self) -> None:
        required = self.ledger.snapshot(self.tenant)
        rows = list(self.handle.execute(select(Note.tenant, Note.body)))
        self.ledger.check(self.tenant, rows, required)

    def update_all(self) -> None:
        """Without WHERE: a row of another tenant would name this one afterwards."""
        self.handle.execute(
            text("UPDATE notes SET body = :tenant || substr(body, strpos(body, '/'))"),
            {"tenant": self.tenant},
        )

    def undo(self) -> None:
        """A savepoint that is rolled back, by an error or without one."""
        before = len(self.bodies)
        savepoint = self.handle.begin_nested()
        self.write()
        if self.random.random() < 0.5:
            try:
                self.fail()
            except DBAPIError as error:
                # the connection may be lost right after it has told of the error
                if sqlstate(error) != "22012" or is_lost(error):
                    raise
        savepoint.rollback()
        self.ledger.settle(self.tenant, self.bodies[before:], "undone")
        del self.bodies[before:]

    def release(self) -> None:
        with self.handle.begin_nested():
            self.write()

    def fail(self) -> None:
        self.handle.execute(text("SELECT 1 / 0"))

    def take_too_long(self) -> None:
        self.handle.execute(text("SET LOCAL statement_timeout = 5"))
        self.handle.execute(text("SELECT pg_sleep(600)"))


ACTIONS = (
    [Visit.write, Visit.read] * 6
    + [Visit.update_all, Visit.undo, Visit.release] * 2
    + [Visit.fail, Visit.take_too_long]
)


def visit(handle: Handle, tenant: str, random: Random, ledger: Ledger) -> None:
    Visit(handle, tenant, random, ledger).run()


def look(handle: Handle, tenant: str | None, random: Random, ledger: Ledger) -> None:
    """As admin: every tenant's rows, or those of one."""
    required = {each: ledger.snapshot(each) for each in (*STAYING, *PASSING)}
    rows = list(handle.execute(select(Note.tenant, Note.body)))
    if tenant is not None:
        ledger.check(tenant, rows, required[tenant])
    else:
        for each in required:
            own = [row for row in rows if row[1].startswith(f"{each}/")]
            ledger.check(each, own, required[each])
    ledger.count("admin sessions")


def plan(random: Random) -> tuple[str, str | None, Callable[..., None]]:
    """How somebody opens what, for whom, and what then."""
    way = random.choice(["new_session"] * 6 + ["connect"] * 3 + ["admin_session"])
    tenant: str | None = random.choice(STAYING * 2 + PASSING)
    if way != "admin_session":
        return way, tenant, visit
    return way, random.choice([None, tenant]), look


# --- faults --------------------------------------------------------------------------


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def nothing(data: bytes) -> bytes:
    return b""


@dataclass
class Injector:
    """Makes everything fail, in an order that the seed gives."""

    database: Database
    proxy: Proxy
    ledger: Ledger
    manager: PostgresManager
    login: str
    random: Random
    #: Cancels all tasks that are at work, if there are tasks.
    cancel: Callable[[], None] | None = None

    def run(self, commits: int) -> None:
        """All faults, spread over a number of commits."""
        names = ["terminate", "cut_all", "cut_request", "cut_answer", "tenants"] * 3
        names += ["terminate_all", "lock_rows", "lock_roles"]
        if self.cancel is not None:
            names += ["cancelled"] * 6
        self.random.shuffle(names)
        # in the midst of everything else
        names.insert(len(names) // 3, "restart_fast")
        names.insert(2 * len(names) // 3, "restart_immediate")
        for number, name in enumerate(names, 1):
            due = number * commits // (len(names) + 1)
            if self.ledger.finished:
                break
            self.ledger.wait_for(lambda counts, due=due: counts["commits"] >= due)
            getattr(self, name)()
            self.ledger.count(f"fault {name}")
        self.ledger.wait_for(lambda counts: counts["commits"] >= commits)

    def execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.database.rows(statement, parameters)

    def terminate(self) -> None:
        self.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid"
            " FROM pg_stat_activity WHERE usename IN (%s, 'manager')"
            " ORDER BY state = 'idle', random() LIMIT 1) AS one",
            self.login,
        )

    def terminate_all(self) -> None:
        self.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE usename IN (%s, 'manager')",
            self.login,
        )

    def restart_fast(self) -> None:
        self.restart("fast")

    def restart_immediate(self) -> None:
        self.restart("immediate")

    def restart(self, mode: Literal["fast", "immediate"]) -> None:
        self.ledger.up.clear()
        try:
            self.database.server.restart(mode)
        finally:
            self.ledger.up.set()

    def at(self, hook: str, word: bytes, act: Callable[[bytes], object]) -> None:
        """Act when a message with a word passes, and wait until it did."""
        passed = threading.Event()

        def pass_(data: bytes) -> object:
            if word not in data or passed.is_set():
                return None
            setattr(self.proxy, hook, None)
            with self.ledger.changed:
                passed.set()
                self.ledger.changed.notify_all()
            return act(data)

        setattr(self.proxy, hook, pass_)
        self.ledger.wait_for(lambda counts: passed.is_set())

    def word(self) -> bytes:
        return self.random.choice([b"ROLE", b"COMMIT", b""])

    def cut_all(self) -> None:
        self.at("on_request", self.word(), lambda data: self.proxy.cut())

    def cut_request(self) -> None:
        """Within the message, or before it."""
        self.at("on_request", self.word(), self.random.choice([half, nothing]))

    def cut_answer(self) -> None:
        """The server has done what it was asked for, and nobody gets to know."""
        word = self.random.choice([b"COMMIT\0", b"BEGIN\0"])
        self.at("on_answer", word, self.random.choice([half, nothing]))

    def cancelled(self) -> None:
        assert self.cancel is not None
        cancel = self.cancel
        self.at("on_request", self.word(), lambda data: cancel())

    @contextmanager
    def locked(self, table: str) -> Iterator[Counter[str]]:
        """Lock a table against everybody; yields the counts as they are then."""
        with self.database.server.connect(self.database.name) as connection:
            # all others give up their locks sooner or later
            connection.execute("SET lock_timeout = 0")
            before = Counter(self.ledger.counts)
            connection.execute(f"BEGIN; LOCK TABLE {table}")
            yield before
            connection.execute("ROLLBACK")

    def lock_rows(self) -> None:
        """Until statements run into their timeouts, and others into that of the pool,
        whose connections wait."""
        with self.locked("notes") as before:
            self.ledger.wait_for(
                lambda counts: all(
                    counts[each] > before[each]
                    for each in ("errors 55P03", "pool timeouts")
                )
            )

    def lock_roles(self) -> None:
        """Until SET ROLE, which looks up a role, has run into a timeout, or nobody
        had to look up any."""
        with self.locked("pg_catalog.pg_authid") as before:
            self.ledger.wait_for(
                lambda counts: (
                    counts["errors 55P03"] > before["errors 55P03"]
                    or counts["pool timeouts"] > before["pool timeouts"]
                    or counts["commits"] > before["commits"] + 10
                )
            )

    def tenants(self) -> None:
        """Delete and create tenants under everybody's feet."""
        acts = (self.manager.delete_tenant, self.manager.create_tenant)
        for act, tenant in product(acts, PASSING):
            try:
                act(tenant)
            except TenantAlreadyExists:
                pass  # who opens a session creates it
            except Exception as error:
                self.ledger.tolerate(error, tenant)


# --- a round -------------------------------------------------------------------------


class Round:
    """Everybody at work, and everything failing, until there were enough commits."""

    def __init__(self, database: Database, proxy: Proxy, isolation: Any, seed: str):
        self.database, self.proxy, self.isolation = database, proxy, isolation
        self.seed = seed
        self.login = "app" if isolation == "role" else "app_shared"
        self.ledger = Ledger()
        self.ledger.up.set()
        self.watch = Watch()

    def url(self, login: str, driver: str = "psycopg") -> str:
        return self.proxy.url(self.database.url(login, driver))

    def pool(self, size: int) -> dict[str, Any]:
        return {"pool_size": size, "max_overflow": 0, "pool_timeout": 0.1}

    def inject(
        self, commits: int, cancel: Callable[[], None] | None = None
    ) -> threading.Thread:
        """Start the injector. It works past the proxy, with connections of its own."""
        engines = [
            create_engine(self.database.url(login), poolclass=NullPool)
            for login in (self.login, "manager")
        ]
        manager = PostgresManager.from_engine(
            engines[0], "public", isolation=self.isolation, admin_engine=engines[1]
        )
        injector = Injector(
            self.database,
            self.proxy,
            self.ledger,
            manager,
            self.login,
            Random(self.seed),
            cancel,
        )

        def run() -> None:
            try:
                injector.run(commits)
            except BaseException as error:
                trace = "".join(traceback.format_exception(error))
                self.ledger.violation(f"the injector failed: {trace}")
            finally:
                self.ledger.finished = True

        return start(run, "injector")

    def settle_up(self, engines: list[Engine], manager: PostgresManager) -> None:
        """Afterwards the pool recovers, and everybody sees what was committed."""
        for engine in engines:
            self.recover(engine)
        self.verify()
        for tenant in (*STAYING, *PASSING):
            with manager.new_session(tenant) as session:
                Visit(session, tenant, Random(0), self.ledger).read()
        self.ledger.violations += self.watch.violations

    def recover(self, engine: Engine) -> None:
        """An error tells the pool of its dead connections; then all of them work."""
        pool: Any = engine.pool
        size = pool.size()
        for attempt in range(size + 1):
            try:
                with ExitStack() as stack:
                    for _ in range(size):
                        connection = stack.enter_context(engine.connect())
                        user = connection.scalar(text("SELECT current_user::text"))
                        if user != engine.url.username:
                            self.ledger.violation(f"the pool is scoped: {user}")
                break
            except DBAPIError as error:
                if attempt == size or not error.connection_invalidated:
                    raise
        if pool.checkedout() != 0:
            self.ledger.violation(f"{pool.checkedout()} connections did not come back")

    def verify(self) -> None:
        """The rows themselves, past all policies; all transactions have ended."""
        if "open" in self.ledger.outcomes.values():
            self.ledger.violation("a transaction has not ended")
        rows = self.database.rows("SELECT tenant, body FROM notes")
        for tenant in {tenant for tenant, _ in rows} | {*STAYING, *PASSING}:
            own = [row for row in rows if row[0] == tenant]
            self.ledger.check(tenant, own, self.ledger.snapshot(tenant))


class Threads(Round):
    """Threads that share the engines of a manager."""

    def run(self, driver: str, commits: int) -> None:
        engines = []
        for login, size in ((self.login, POOL), ("manager", ADMIN_POOL)):
            engines.append(create_engine(self.url(login), **self.pool(size)))
            self.watch.add(engines[-1], "checkout")
        manager = PostgresManager.from_engine(
            engines[0], "public", isolation=self.isolation, admin_engine=engines[1]
        )
        manager.create_tenants([*STAYING, *PASSING])

        def work(number: int) -> None:
            random = Random(f"{self.seed} {number}")
            while not self.ledger.finished:
                way, tenant, use = plan(random)
                try:
                    with getattr(manager, way)(tenant) as handle:
                        use(handle, tenant, random, self.ledger)
                except Exception as error:
                    self.ledger.tolerate(error, tenant)
                    self.ledger.up.wait(PART_LIMIT)

        workers = [
            start(lambda number=number: work(number), f"worker {number}")
            for number in range(WORKERS)
        ]
        for thread in (self.inject(commits), *workers):
            thread.join()
        self.settle_up(engines, manager)
        for engine in engines:
            engine.dispose()


class Tasks(Round):
    """Tasks of an event loop that share the engines of a manager. Some of them are
    cancelled."""

    def run(self, driver: str, commits: int) -> None:
        asyncio.run(self.run_async(driver.removesuffix("-async"), commits))

    async def run_async(self, driver: str, commits: int) -> None:
        engines = []
        for login, size in ((self.login, POOL), ("manager", ADMIN_POOL)):
            url = self.url(login, driver)
            engines.append(create_async_engine(url, **self.pool(size)))
            self.watch.add(engines[-1].sync_engine, "checkout")
        manager = aio.PostgresManager.from_engine(
            engines[0], "public", isolation=self.isolation, admin_engine=engines[1]
        )
        await manager.create_tenants([*STAYING, *PASSING])
        running: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            # all of them: the message that has passed is that of one of them
            for task in running:
                task.cancel()

        async def use_one(random: Random) -> None:
            way, tenant, use = plan(random)
            try:
                async with getattr(manager, way)(tenant) as handle:
                    await handle.run_sync(
                        lambda sync, *args: use(sync, tenant, random, self.ledger)
                    )
            except Exception as error:
                self.ledger.tolerate(error, tenant)
                await asyncio.to_thread(self.ledger.up.wait, PART_LIMIT)

        async def work(number: int) -> None:
            random = Random(f"{self.seed} {number}")
            while not self.ledger.finished:
                task = asyncio.create_task(use_one(random))
                running.add(task)
                task.add_done_callback(running.discard)
                try:
                    await task
                except asyncio.CancelledError:
                    self.ledger.count("cancelled tasks")

        injector = self.inject(commits, lambda: loop.call_soon_threadsafe(cancel))
        await asyncio.gather(*map(work, range(WORKERS)))
        injector.join()
        sync = PostgresManager.from_engine(
            engines[0].sync_engine,
            "public",
            isolation=self.isolation,
            admin_engine=engines[1].sync_engine,
        )
        sync_engines = [engine.sync_engine for engine in engines]
        await AsyncSession().run_sync(lambda _: self.settle_up(sync_engines, sync))
        for engine in engines:
            await engine.dispose()


def start(target: Callable[[], None], name: str) -> threading.Thread:
    # a daemon, so that one that hangs does not keep the tests from ending
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def run_guarded(target: Callable[[], None], limit: float = HARD_LIMIT) -> None:
    """Run a round in a thread of its own, and fail with all stacks if it hangs."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            target()
        except BaseException as error:
            errors.append(error)

    thread = start(run, "round")
    thread.join(limit)
    if thread.is_alive():
        pytest.fail(f"a round hangs:\n{stacks()}", pytrace=False)
    if errors:
        raise errors[0]


def stacks() -> str:
    """Where all threads and tasks are."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    output = StringIO()
    for ident, frame in sys._current_frames().items():
        output.write(f"--- thread {names.get(ident, ident)}\n")
        output.write("".join(traceback.format_stack(frame)))
    for each in gc.get_objects():
        if isinstance(each, asyncio.Task) and not each.done():
            each.print_stack(file=output)
    return output.getvalue()


@pytest.fixture(scope="module", name="prepared")
def prepared_fixture() -> Iterator[Database]:
    """A server of its own, because it is restarted."""
    with Server(requested_version()) as server, fresh_database(server) as database:
        migrate(database)
        grant_logins(database)
        database.execute("ALTER DATABASE test SET lock_timeout = '300ms'")
        yield database


def test_nothing_leaks_and_nothing_is_lost(
    prepared: Database,
    driver: str,
    isolation: str,
    run_seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    counts: Counter[str] = Counter()
    violations: list[str] = []
    kind = Threads if driver == "psycopg" else Tasks
    for number in range(0, TRANSACTIONS, ROUND):
        prepared.execute("TRUNCATE notes, comments")
        commits = min(ROUND, TRANSACTIONS - number)
        with Proxy(prepared.server) as proxy:
            play = kind(prepared, proxy, isolation, f"{run_seed} {number}")
            run_guarded(lambda play=play, commits=commits: play.run(driver, commits))
        counts += play.ledger.counts
        violations += play.ledger.violations
        if violations:
            break
    listed = ", ".join(f"{name} {counts[name]}" for name in sorted(counts))
    record_property("counts", f"{listed}; {len(violations)} violations")
    assert not violations, "\n".join(violations)


def test_a_hang_is_reported_with_all_stacks() -> None:
    release = threading.Event()

    def hang() -> None:
        release.wait()

    with pytest.raises(pytest.fail.Exception, match=r"(?s)round hangs.*in hang\n"):
        run_guarded(hang, 0.1)
    release.set()
