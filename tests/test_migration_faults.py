"""Migrations under fire: killed at each statement, or committed one by one; run twice
at once; kept waiting for a lock; and amid the traffic of two tenants."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import alembic.command
import psycopg
import pytest
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from psycopg.errors import InsufficientPrivilege, UndefinedColumn
from sqlalchemy import Connection, Engine, event, pool, text
from sqlalchemy.exc import DBAPIError

from alembic_ext import ops
from alembic_ext.ops import OWNED_COMMENT
from projects import Project, snapshot
from servers import Database, requested_version
from sqlalchemy_tenants import Tenancy, TenantSession
from sqlalchemy_tenants.managers import PostgresManager
from sqlalchemy_tenants.scope import sqlstate
from tenancy import DRIVERS, World, grant_logins

# A test's own engine, and options of a run, come with the Config.
ENV = """
import runpy
from alembic import context
from sqlalchemy import create_engine

attributes = context.config.attributes
engine = attributes.get("engine") or create_engine({url!r})
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=runpy.run_path({models!r})["Base"].metadata,
        **attributes.get("options", {{}}),
    )
    with context.begin_transaction():
        context.run_migrations()
"""

ORDERS = """
@with_rls{mark}
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant = mapped_column({type}, nullable=False)
    item: Mapped[str | None]
"""
ORDER = ORDERS.format(mark="", type="Text")
UNMARKED = ORDER.replace("@with_rls", "").replace(
    "nullable=False", "nullable=False, index=True"
)
SHARED = UNMARKED.replace("\nclass", "\n@shared_table\nclass")
INVOICE = """
@with_rls
class Invoice(TenantMixin, Base):
    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    item: Mapped[str | None]
"""
COUNTRY = """
@shared_table
class Country(Base):
    __tablename__ = "countries"
    id: Mapped[int] = mapped_column(primary_key=True)
"""


def orders(*policies: str, type: str = "Text") -> str:
    return ORDERS.format(mark=f"(policies=[{', '.join(policies)}])", type=type)


EVERYONE = "Policy('everyone', using='true', command='SELECT')"
# it mentions another table, so that it is created after all tables
NOT_HIDDEN = (
    "Policy('not_hidden', using=\"item IS DISTINCT FROM 'hidden' AND "
    'NOT EXISTS (SELECT FROM countries WHERE id < 0)", permissive=False)'
)


class Fire(Project):
    """A project whose migrations run on the connections of an engine of the test."""

    def __init__(
        self, path: Path, database: Database, *models: str, by_hand: str = ""
    ) -> None:
        """Write a revision for each of ``models``, and leave the database as it is.

        :param by_hand: SQL that runs before the last one.
        """
        super().__init__(path, database, models[0])
        for each in models:
            if by_hand and each is models[-1]:
                database.execute(by_hand)
            self.write_models(each)
            self.migrate()
        self.must("downgrade", "base")
        self.write_env(env=ENV.format(models=str(path / "models.py"), url=self.url))

    def command(self, engine: Engine, name: str, *args: str, **options: Any) -> None:
        """Run an ``alembic`` command."""
        config = Config(
            self.path / "alembic.ini",
            stdout=StringIO(),
            output_buffer=StringIO(),
            attributes={"engine": engine, "options": options},
        )
        getattr(alembic.command, name)(config, *args)

    @property
    def version(self) -> str | None:
        """The revision that the database is at."""
        exists = "SELECT to_regclass('alembic_version')"
        if self.database.rows(exists) == [(None,)]:
            return None
        rows = self.database.rows("SELECT version_num FROM alembic_version")
        return rows[0][0] if rows else None


@pytest.fixture(name="engine")
def engine_fixture(make_engine: Callable[..., Engine], database: Database) -> Engine:
    """The owner's engine, each of whose connections is new."""
    return make_engine(database.owner_url, poolclass=pool.NullPool)


# --- killed --------------------------------------------------------------------------


class Killer:
    """Kills the backend of an engine's connection before its nth statement; ``COMMIT``
    is one, too."""

    def __init__(self, engine: Engine, superuser: psycopg.Connection[Any]) -> None:
        self.remaining = 0
        self.superuser = superuser
        event.listen(engine, "before_cursor_execute", self.count)
        event.listen(engine, "commit", self.count)

    def count(self, connection: Any, *args: Any) -> None:
        self.remaining -= 1
        if self.remaining == 0:
            pid = connection.connection.driver_connection.info.backend_pid
            self.superuser.execute("SELECT pg_terminate_backend(%s)", [pid])
            # its own wait for the end would take 100 ms each time
            alive = "SELECT FROM pg_stat_get_activity(%s)"
            while self.superuser.execute(alive, [pid]).rowcount:
                pass

    def kills(self, number: int, run: Callable[[], object]) -> bool:
        """Whether something was killed by the time when it had run."""
        self.remaining = number
        try:
            run()
        except DBAPIError as error:
            # no SQLSTATE: the server was gone before psycopg had read its last words
            if self.remaining > 0 or sqlstate(error) not in ("57P01", None):
                raise
            return True
        assert self.remaining > 0
        self.remaining = 0
        return False


@pytest.mark.parametrize(
    "options",
    [{}, {"transaction_per_migration": True}],
    ids=["one transaction", "transaction per migration"],
)
def test_killed_at_any_statement(
    database: Database, tmp_path: Path, engine: Engine, options: dict[str, Any]
) -> None:
    """The database then is as before or as after a migration, and the next run does
    what is left."""
    tenants = (
        "\nBase.metadata.info['tenancy'] = Tenancy(tenants=['acme'], logins=['app'])\n"
    )
    if requested_version() < 16:
        tenants = ""  # its owner has to inherit, and cannot create tenants
    first = UNMARKED + COUNTRY
    second = ORDER + COUNTRY
    if not options:  # a large one, where each run is faster
        second = orders(EVERYONE, NOT_HIDDEN) + INVOICE + COUNTRY + tenants
    project = Fire(tmp_path, database, first, second)
    states: dict[str | None, list[str]] = {None: snapshot(database)}
    for _ in range(2):
        project.command(engine, "upgrade", "+1")
        states[project.version] = snapshot(database)
    assert list(states) == [None, "r001", "r002"]
    project.command(engine, "downgrade", "base")
    assert snapshot(database) == states[None]

    def run(command: str, target: str) -> None:
        project.command(engine, command, target, **options)

    up, down = ("upgrade", "head"), ("downgrade", "base")
    with database.server.connect() as superuser:
        killer = Killer(engine, superuser)
        for way, back, end in ((up, down, "r002"), (down, up, None)):
            start = project.version
            number = 1
            while killer.kills(number, partial(run, *way)):
                version = project.version
                assert snapshot(database) == states[version], number
                if not options:
                    assert version == start
                elif version != start:
                    run(*way)
                    assert project.version == end
                    run(*back)
                number += 1
            assert number > 20
            assert project.version == end
            assert snapshot(database) == states[end]
            if end is not None:
                project.command(engine, "check")


# --- committed one by one ------------------------------------------------------------


# What tenant 1 tries on rows of tenant 2, and on what a policy hides from tenant 1.
ATTEMPTS = {
    "reads": "SELECT FROM {table} WHERE {is_theirs}",
    "inserts": "INSERT INTO {table} (id, {tenant}) VALUES (-9, {theirs})",
    "updates": "UPDATE {table} SET id = id - 90 WHERE {is_theirs}",
    "gives away": "UPDATE {table} SET ({tenant}) = ROW({theirs}) WHERE id = -3",
    "deletes": "DELETE FROM {table} WHERE {is_theirs}",
    "reads hidden": "SELECT FROM {table} WHERE id = -2",
}

# a table without floor whose tenants see anything, and may use it
WITHOUT_FLOOR = """
SELECT c.relname FROM pg_class c, pg_roles tenants
WHERE c.relkind = 'r' AND c.relrowsecurity AND tenants.rolname = 'tenants'
AND has_any_column_privilege(tenants.oid, c.oid, 'SELECT, INSERT, UPDATE')
AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polpermissive
    AND p.polroles && ARRAY[0, tenants.oid])
AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid
    AND p.polname = 'tenant_floor' AND NOT p.polpermissive)
"""

# while the tenant column is replaced, there are two
TENANT_COLUMNS = """
SELECT c.relname, array_agg(a.attname ORDER BY a.attname)
    FILTER (WHERE a.attname <> 'item'), bool_or(a.attname = 'item')
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
AND a.attname IN ('tenant', 'account', 'item')
GROUP BY c.relname
"""


class Prober:
    """Tells what is open to tenant 1, whatever state the tables are in.

    It leaves no trace: a superuser's transaction, rolled back, adds rows and a role.
    """

    def __init__(self, superuser: psycopg.Connection[Any]) -> None:
        superuser.autocommit = False
        self.superuser = superuser

    def open(self) -> set[tuple[str, str]]:
        """Return pairs of a table and what succeeds there."""
        execute = self.superuser.execute
        try:
            exists = execute("SELECT FROM pg_roles WHERE rolname = 'tenants'").rowcount
            group = "IN ROLE tenants" if exists else ""
            execute("CREATE ROLE tenant_1 " + group)
            found = {(name, "no floor") for (name,) in execute(WITHOUT_FLOOR)}
            for table, tenant, has_item in execute(TENANT_COLUMNS).fetchall():
                names = {
                    "table": table,
                    "tenant": ", ".join(tenant),
                    "theirs": ", ".join("'2'" for _ in tenant),
                    "is_theirs": " AND ".join(f"{each}::text = '2'" for each in tenant),
                }
                for number, whose in ((-1, "2"), (-2, "1"), (-3, "1")):
                    values = f"{number}" + f", '{whose}'" * len(tenant)
                    add = "INSERT INTO {table} (id, {tenant}) VALUES "
                    execute(f"{add.format(**names)} ({values})")
                if has_item:
                    execute(f"UPDATE {table} SET item = 'hidden' WHERE id = -2")
                for name, attempt in ATTEMPTS.items():
                    if self._succeeds(attempt.format(**names)):
                        found.add((table, name))
            return found
        finally:
            self.superuser.rollback()

    def _succeeds(self, statement: str) -> bool:
        execute = self.superuser.execute
        execute("SAVEPOINT attempt; SET LOCAL ROLE tenant_1")
        try:
            return execute(statement).rowcount > 0
        except (InsufficientPrivilege, UndefinedColumn):
            return False
        finally:
            execute("ROLLBACK TO attempt")


PREFIXES = {
    "first": ("", orders(EVERYONE, NOT_HIDDEN) + INVOICE + COUNTRY),
    "marked": (UNMARKED + COUNTRY, orders(EVERYONE, NOT_HIDDEN) + COUNTRY),
    "marked, beside others": (UNMARKED + INVOICE, ORDER + INVOICE),
    "table added": (INVOICE, ORDER + INVOICE),
    "shared to marked": (SHARED, orders(EVERYONE)),
    "marked to shared": (orders(EVERYONE), SHARED),
    "last mark removed": (orders(EVERYONE), UNMARKED),
    "table dropped": (orders(EVERYONE) + INVOICE, INVOICE),
    "policies": (
        orders(EVERYONE, "Policy('old', using='true')"),
        orders("Policy('new', using='true', roles='public')"),
    ),
    "policy's command": (orders(EVERYONE), orders(EVERYONE.replace("SELECT", "ALL"))),
    "column": (
        orders(EVERYONE),
        orders(EVERYONE)
        .replace("tenant =", "account =")
        .replace("@with_rls(", "@with_rls(tenant_column='account', "),
    ),
    "type": (
        orders(EVERYONE, NOT_HIDDEN, type="Integer") + COUNTRY,
        orders(EVERYONE, NOT_HIDDEN, type="BigInteger") + COUNTRY,
    ),
    "a floor made by hand": (orders(EVERYONE), orders(EVERYONE) + COUNTRY),
}

# as good as ours, but not the same, so that it is dropped and created
FLOOR_BY_HAND = (
    "DROP POLICY tenant_floor ON orders; CREATE POLICY tenant_floor ON orders"
    " AS RESTRICTIVE TO tenants USING (tenant = (SELECT tenancy.current_tenant()))"
)


@pytest.mark.parametrize("change", PREFIXES)
def test_no_prefix_of_the_statements_opens_a_table(
    database: Database, tmp_path: Path, engine: Engine, change: str
) -> None:
    """Where each statement commits on its own, too: privileges come last, go first."""
    before, after = PREFIXES[change]
    by_hand = FLOOR_BY_HAND if change == "a floor made by hand" else ""
    project = Fire(tmp_path, database, before, after, by_hand=by_hand)
    project.command(engine, "upgrade", "+1")
    if by_hand:
        database.execute(by_hand)
    one_by_one = engine.execution_options(isolation_level="AUTOCOMMIT")
    sent: list[tuple[str, set[tuple[str, str]]]] = []

    with database.server.connect(database.name) as superuser:
        prober = Prober(superuser)

        @event.listens_for(engine, "after_cursor_execute")
        def probe(connection: Any, cursor: Any, statement: str, *args: Any) -> None:
            if not statement.startswith("SELECT"):
                sent.append((statement, prober.open()))

        for command, target in (("upgrade", "+1"), ("downgrade", "-1")):
            start = prober.open()
            sent.clear()
            project.command(one_by_one, command, target)
            allowed = start | prober.open()
            assert len(sent) > 2
            for statement, found in sent:
                assert found <= allowed, statement


# --- at the same time ----------------------------------------------------------------


def wait_until_blocked(
    superuser: psycopg.Connection[Any], is_over: Callable[[], bool], number: int = 1
) -> None:
    """Return when as many backends wait for locks, or nobody is left who might."""
    waiting = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
    while not is_over():
        row = superuser.execute(waiting).fetchone()
        if row is not None and row[0] >= number:
            return


def invoke(connection: Connection, op: ops.TenancyOp) -> None:
    Operations(MigrationContext.configure(connection)).invoke(op)


TENANCY = ops.CreateTenancyOp(Tenancy())
GROUPS = "CREATE ROLE tenants; CREATE ROLE tenants_shared; CREATE ROLE tenants_admin;"

#: What the owner did before, and what two migrations do at the same time.
RACES: dict[str, tuple[str, ops.TenancyOp, str]] = {
    "create_tenancy": ("", TENANCY, "SELECT 'tenants_shared'::regrole"),
    "create_tenancy, roles exist": (GROUPS, TENANCY, "SELECT 'tenants'::regrole"),
    "create_group_role": (
        "CREATE ROLE g",
        ops.CreateGroupRoleOp("x", member_of="g", admin=True),
        "SELECT WHERE pg_has_role('x', 'g', 'USAGE')",
    ),
    "create_group_role, roles exist": (
        "CREATE ROLE g; CREATE ROLE x",
        ops.CreateGroupRoleOp("x", member_of="g", admin=True),
        "SELECT WHERE pg_has_role('x', 'g', 'USAGE')",
    ),
    "drop_group_role": (
        f"CREATE ROLE x; COMMENT ON ROLE x IS '{OWNED_COMMENT}'",
        ops.DropGroupRoleOp("x"),
        "SELECT WHERE to_regrole('x') IS NULL",
    ),
    "alter_group_role": (
        "CREATE ROLE x LOGIN",
        ops.AlterGroupRoleOp("x", login=False),
        "SELECT FROM pg_roles WHERE rolname = 'x' AND NOT rolcanlogin",
    ),
    "grant_membership": (
        "CREATE ROLE g; CREATE ROLE x",
        ops.GrantMembershipOp("g", "x"),
        "SELECT WHERE pg_has_role('x', 'g', 'USAGE')",
    ),
    "create_tenant_role": (
        GROUPS,
        ops.CreateTenantRoleOp("acme", logins=("app",)),
        "SELECT WHERE pg_has_role('app', 'tenant_acme', 'MEMBER')",
    ),
    "create_tenant_role, role exists": (
        GROUPS + "CREATE ROLE tenant_acme",
        ops.CreateTenantRoleOp("acme", logins=("app",)),
        "SELECT WHERE pg_has_role('tenant_acme', 'tenants', 'USAGE')"
        " AND pg_has_role('app', 'tenant_acme', 'MEMBER')",
    ),
    "drop_tenant_role": (
        GROUPS + "CREATE ROLE tenant_acme IN ROLE tenants",
        ops.DropTenantRoleOp("acme"),
        "SELECT WHERE to_regrole('tenant_acme') IS NULL",
    ),
}


@pytest.mark.parametrize("race", RACES)
def test_two_databases_of_a_cluster_share_roles(
    database: Database, make_engine: Callable[..., Engine], race: str
) -> None:
    """The second migration comes to the role while the first has not ended, and both
    succeed."""
    before, op, expected = RACES[race]
    other = Database("other", database.server)
    database.execute("CREATE DATABASE other OWNER owner")
    if before:
        database.execute(before, login="owner")
    first, second = (
        make_engine(each.owner_url, poolclass=pool.NullPool)
        for each in (database, other)
    )

    def run() -> None:
        with second.begin() as connection:
            invoke(connection, op)

    with (
        database.server.connect() as superuser,
        ThreadPoolExecutor(1) as executor,
        first.begin() as connection,
    ):
        invoke(connection, op)
        future = executor.submit(run)
        wait_until_blocked(superuser, future.done)
        assert not future.done()
        connection.commit()
        future.result()
    assert len(database.rows(expected)) == 1


@pytest.mark.parametrize("target", ["head", "base"])
@pytest.mark.parametrize("beginning", ["base", "r001"])
def test_two_runs_at_the_same_time(
    database: Database, tmp_path: Path, engine: Engine, beginning: str, target: str
) -> None:
    """One wins, the other has an error, and leaves nothing but what the first did."""
    project = Fire(tmp_path, database, COUNTRY, ORDER + COUNTRY)
    if beginning != "base":
        project.command(engine, "upgrade", beginning)
    before = snapshot(database)
    command = "upgrade"
    if target == "base":
        command = "downgrade"
        project.command(engine, "upgrade", "head")
    others: list[subprocess.Popen[bytes]] = []

    with database.server.connect() as superuser:

        @event.listens_for(engine, "commit", once=True)
        def start_another(connection: Any) -> None:
            arguments = [sys.executable, "-m", "alembic", command, target]
            other = subprocess.Popen(
                arguments,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            others.append(other)
            wait_until_blocked(superuser, lambda: other.poll() is not None)

        project.command(engine, command, target)
        after = snapshot(database)
        ((output, _),) = [other.communicate() for other in others]
    assert others[0].returncode == 1, output
    assert b"sqlalchemy.exc." in output
    assert snapshot(database) == after
    assert project.version == (None if target == "base" else "r002")
    project.command(engine, command, target)
    assert snapshot(database) == after
    if target == "head":
        project.command(engine, "check")
        project.command(engine, "downgrade", beginning)
        assert snapshot(database) == before


# --- waiting for a lock --------------------------------------------------------------


#: What docs/migrations.md gives: environment, by the superuser, in the migration.
TIMEOUTS = {
    "PGOPTIONS": ("-c lock_timeout=100ms", "", ""),
    "ALTER ROLE": ("", "ALTER ROLE owner SET lock_timeout = '100ms'", ""),
    "SET LOCAL": ("", "", "op.execute(\"SET LOCAL lock_timeout = '100ms'\")"),
    "none, but killed": ("", "", ""),
}
KILL = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted"


@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_a_migration_gives_up_instead_of_keeping_readers_waiting(
    database: Database,
    tmp_path: Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    timeout: str,
) -> None:
    environment, by_superuser, line = TIMEOUTS[timeout]
    project = Fire(tmp_path, database, INVOICE + UNMARKED, INVOICE + ORDER)
    (script,) = (tmp_path / "migrations" / "versions").glob("r002_*")
    body = script.read_text()
    first = "def upgrade() -> None:\n"
    assert first in body
    script.write_text(body.replace(first, f"{first}    {line}\n"))
    project.command(engine, "upgrade", "+1")
    if by_superuser:
        database.execute(by_superuser)
    before = snapshot(database)
    monkeypatch.setenv("PGOPTIONS", environment)

    def read() -> None:
        # without the timeout, which it may come with, too
        database.execute("SET lock_timeout = 0; TABLE orders")

    with (
        database.server.connect() as superuser,
        database.server.connect(database.name) as reader,
        ThreadPoolExecutor(2) as executor,
    ):
        reader.autocommit = False
        reader.execute("TABLE orders")
        migration = executor.submit(project.command, engine, "upgrade", "head")
        wait_until_blocked(superuser, migration.done)
        is_killed = timeout == "none, but killed"
        if is_killed:
            superuser.execute(KILL)
        behind = executor.submit(read)
        with pytest.raises(DBAPIError) as raised:
            migration.result()
        assert sqlstate(raised.value) == ("57P01" if is_killed else "55P03")
        # though the first reader has not come to its end
        behind.result()
        read()
        assert snapshot(database) == before
        reader.rollback()
    project.command(engine, "upgrade", "head")
    project.command(engine, "check")


# --- amid traffic --------------------------------------------------------------------

#: What a transaction of a tenant sees of orders.
ALL, OWN, NOTHING = "rows of both tenants", "own rows", "no privilege, or no table"

TENANTS = (1, 2)
ROWS = "INSERT INTO orders (id, tenant) VALUES (11, '1'), (12, '1'), (21, '2')"
IDS = {1: {11, 12}, 2: {21}}

#: Models before and after, and what tenants see.
CHANGES = {
    "marked": (UNMARKED, ORDER, NOTHING, OWN),
    "shared to marked": (SHARED, ORDER, ALL, OWN),
    "policies": (ORDER, orders(EVERYONE, NOT_HIDDEN) + COUNTRY, OWN, OWN),
    "type": (
        orders(EVERYONE, type="Integer"),
        orders(EVERYONE, type="BigInteger"),
        OWN,
        OWN,
    ),
    "another table": (ORDER, ORDER + COUNTRY, OWN, OWN),
    "unmarked": (ORDER, UNMARKED, OWN, NOTHING),
}


class Tenant:
    """The traffic of one tenant: a thread whose transactions each read twice."""

    def __init__(self, tenant: int, manager: PostgresManager) -> None:
        self.tenant = tenant
        self.manager = manager
        self.stop = threading.Event()
        self.pid = 0
        #: One for each transaction: which states had been reached when it began and
        #: when it ended, and what it saw.
        self.seen: list[tuple[int, int, str, str]] = []
        self.state = 0

    def run(self) -> None:
        with self.manager.new_session(self.tenant) as session:
            self.pid = session.scalar(text("SELECT pg_backend_pid()"))
            session.commit()
            while not self.stop.is_set():
                began = self.state
                first, second = self.look(session), NOTHING
                if first != NOTHING:
                    self.write(session)
                    second = self.look(session)
                session.rollback()
                self.seen.append((began, self.state, first, second))

    def look(self, session: TenantSession) -> str:
        try:
            found = set(session.scalars(text("SELECT id FROM orders")))
        except DBAPIError as error:
            if sqlstate(error) not in ("42501", "42P01"):
                raise
            return NOTHING
        if found == IDS[1] | IDS[2]:
            return ALL
        assert found == IDS[self.tenant]
        return OWN

    def write(self, session: TenantSession) -> None:
        other = 3 - self.tenant
        with pytest.raises(DBAPIError) as raised, session.begin_nested():
            session.execute(text(f"INSERT INTO orders VALUES (9, {other})"))
        assert sqlstate(raised.value) == "42501"


@pytest.mark.parametrize("change", CHANGES)
def test_traffic_during_a_migration(
    database: Database,
    tmp_path: Path,
    engine: Engine,
    make_engine: Callable[..., Engine],
    change: str,
) -> None:
    """A transaction sees what there was before, or what there is after: the former if
    it ended before, the latter if it began after, and nothing else, nor both."""
    before, after, sees_before, sees_after = CHANGES[change]
    project = Fire(tmp_path, database, INVOICE + before, INVOICE + after)
    project.command(engine, "upgrade", "+1")
    database.execute(ROWS)
    grant_logins(database)
    one = {"pool_size": 1, "max_overflow": 0}
    admin = make_engine(database.admin_url)
    traffic = []
    for tenant, isolation, login in ((1, "role", "app"), (2, "shared", "app_shared")):
        connect = {"prepare_threshold": 0}  # prepared when it is first executed
        own = make_engine(database.url(login), connect_args=connect, **one)
        kw: Any = {"isolation": isolation, "admin_engine": admin}
        manager = PostgresManager.from_engine(own, "public", **kw)
        traffic.append(Tenant(tenant, manager))

    with (
        database.server.connect() as superuser,
        ThreadPoolExecutor(len(traffic)) as executor,
    ):
        futures = [executor.submit(each.run) for each in traffic]

        def wait_for_traffic(*args: Any, number: int = 1) -> None:
            """Return when each thread has had another transaction, or is blocked."""
            seen = {each: len(each.seen) + number for each in traffic}
            waiting = "SELECT FROM pg_locks WHERE NOT granted AND pid = %s"
            for each, future in zip(traffic, futures, strict=True):
                while len(each.seen) < seen[each] and not future.done():
                    if superuser.execute(waiting, [each.pid]).rowcount:
                        break

        event.listen(engine, "after_cursor_execute", wait_for_traffic)
        try:
            wait_for_traffic(number=3)
            for state, command in ((1, ("upgrade", "head")), (2, ("downgrade", "-1"))):
                project.command(engine, *command)
                for each in traffic:
                    each.state = state
                wait_for_traffic(number=3)
        finally:
            for each in traffic:
                each.stop.set()
        for future in futures:
            future.result()

    states = [sees_before, sees_after, sees_before]
    for each in traffic:
        assert {began for began, *_ in each.seen} == {0, 1, 2}
        for began, ended, first, second in each.seen:
            assert first == second
            # the next one may have committed already, though nobody has said so yet
            assert first in states[began : ended + 2], (began, ended)


PREPARED = {
    "by the driver": "SELECT id FROM orders",
    "by SQL": "EXECUTE ids",
    "in a function": "SELECT read_ids()",
}


@pytest.mark.parametrize("isolation", ["role", "shared"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_plans_from_before_a_migration_see_own_rows_after_it(
    database: Database, tmp_path: Path, engine: Engine, driver: str, isolation: str
) -> None:
    looser = orders("Policy('everyone', using='true')")
    project = Fire(tmp_path, database, INVOICE + SHARED, INVOICE + ORDER, looser)
    project.command(engine, "upgrade", "+1")
    database.execute(ROWS)
    database.execute(
        "CREATE FUNCTION read_ids() RETURNS SETOF integer LANGUAGE plpgsql"
        " AS 'BEGIN RETURN QUERY SELECT id FROM orders; END'"
    )
    grant_logins(database)
    world = World(database, driver, isolation)
    world.create(*TENANTS)

    def use() -> None:
        connect = {} if driver == "asyncpg" else {"prepare_threshold": 0}
        one_connection = world.engine(connect_args=connect)
        pids = set()

        def read(tenant: int, expected: set[int]) -> None:
            with world.session(tenant, one_connection) as session:
                pids.add(session.scalar(text("SELECT pg_backend_pid()")))
                for statement in PREPARED.values():
                    # from the sixth on with a generic plan
                    for _ in range(7):
                        assert set(session.scalars(text(statement))) == expected
                # psycopg would forget what it prepared with a transaction rolled back
                session.commit()

        with world.session(1, one_connection) as session:
            session.execute(text("PREPARE ids AS SELECT id FROM orders"))
            session.commit()
        for command in (("upgrade", "+1"), ("upgrade", "+1"), ("downgrade", "-1")):
            everything = IDS[1] | IDS[2]
            is_first = project.version == "r001"
            for tenant in TENANTS:
                read(tenant, everything if is_first else IDS[tenant])
            project.command(engine, *command)
            for tenant in TENANTS:
                read(tenant, IDS[tenant])
        assert len(pids) == 1

    world.run(use)
