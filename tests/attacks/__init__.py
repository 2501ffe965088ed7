"""Attacks of one tenant on another: what is protected, and what is not.

``blocked``, ``leaks`` and ``pooled`` are the lists; ``docs/security.md`` shows them as
tables, written by ``python -m attacks`` in the directory ``tests``. Each entry is run
by ``test_attacks.py``.

Tenant ``acme`` attacks tenant ``globex``, with all the SQL and ORM that it likes. It
knows everything but what globex keeps in its rows, the :data:`SECRET`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import psycopg
from psycopg import sql
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    ForeignKeyConstraint,
    Identity,
    Integer,
    Table,
    Text,
    create_engine,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from servers import Database, requested_version
from sqlalchemy_tenants import ScopeError, TenantSession, shared_table, with_rls
from sqlalchemy_tenants.declare import tenant_column
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import DRIVERS, World, grant_logins, migrate

Attacker: TypeAlias = Literal["role", "shared", "login"]

#: How the attacker reaches the database.
ATTACKERS: dict[Attacker, str] = {
    "role": 'in a session of `isolation="role"`, whose login may act as every tenant',
    "shared": 'in a session of `isolation="shared"`, whose login acts for every tenant',
    "login": "through a login of its own, which may act as this one tenant only",
}
EVERYONE: tuple[Attacker, ...] = ("role", "shared", "login")

#: A third tenant, whose name is as hard to quote and to encode as any.
TRICKY = "o'\\\"é"

#: What the victim keeps in its rows, and the attacker must not receive.
SECRET = secrets.token_hex(16)
#: What the attacker keeps in its own.
OWN = "row of acme"


class Base(DeclarativeBase):
    pass


@with_rls
class Note(Base):
    """Made as recommended: its key carries the tenant."""

    __tablename__ = "notes"

    tenant: Mapped[str] = tenant_column(primary_key=True, index=False)
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(Text)


@with_rls
class Comment(Base):
    """Refers to a note by a key that carries the tenant."""

    __tablename__ = "comments"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "note_id"], ["notes.tenant", "notes.id"], deferrable=True
        ),
    )

    tenant: Mapped[str] = tenant_column(primary_key=True, index=False)
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    note_id: Mapped[int]


def _table(name: str, **kw: Any) -> Table:
    return Table(
        name,
        Base.metadata,
        Column("tenant", Text, primary_key=True),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("body", Text),
        **kw,
    )


with_rls(_table("events", postgresql_partition_by="RANGE (id)"))
with_rls(_table("animals"))
shared_table(Table("plans", Base.metadata, Column("name", Text, primary_key=True)))
# neither marked nor shared
Table("internals", Base.metadata, Column("body", Text))

# What an application adds: the partitions, an heir, a view and a function.
_BY_OWNER = """
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (1000);
CREATE TABLE dogs () INHERITS (animals);
CREATE VIEW notes_view WITH (security_invoker) AS SELECT * FROM notes;
GRANT SELECT, INSERT, UPDATE ON notes_view TO tenants;
CREATE FUNCTION bodies() RETURNS SETOF text LANGUAGE plpgsql STABLE AS
    $$ BEGIN RETURN QUERY SELECT body FROM public.notes; END $$;
"""

_TENANT_TABLES = ("notes", "comments", "events", "animals", "dogs")
# acme has ids from 1, globex from 101
_FILL = "".join(
    [
        "BEGIN;",
        *(f"DELETE FROM {name};" for name in reversed(_TENANT_TABLES)),
        "DELETE FROM internals; DELETE FROM plans;",
        *(
            f"INSERT INTO {name} (tenant, id, body) VALUES"
            f" ('acme', 1, '{OWN}'), ('acme', 2, '{OWN}'),"
            f" ('globex', 101, '{SECRET}'), ('globex', 102, '{SECRET}');"
            for name in ("notes", "events", "dogs")
        ),
        "INSERT INTO comments VALUES ('acme', 9001, 1), ('globex', 9101, 101);"
        f"INSERT INTO internals VALUES ('{SECRET}');"
        "INSERT INTO plans VALUES ('free');"
        "COMMIT",
    ]
)

# Whatever an attack must not change: rows of globex, and all that protects them.
_STATE = """
SELECT json_build_object(
    'rows', (SELECT json_agg(r ORDER BY r::text) FROM (
        SELECT 'notes', tenant, id, body FROM notes WHERE tenant <> 'acme'
        UNION ALL SELECT 'events', tenant, id, body FROM events WHERE tenant <> 'acme'
        UNION ALL SELECT 'dogs', tenant, id, body FROM animals WHERE tenant <> 'acme'
        UNION ALL SELECT 'comments', tenant, id, note_id::text FROM comments
            WHERE tenant <> 'acme'
        UNION ALL SELECT 'plans', '', 0, name FROM plans
        UNION ALL SELECT 'internals', '', 0, body FROM internals) r),
    'policies', (SELECT json_agg(p ORDER BY p.oid) FROM pg_policy p),
    'relations', (SELECT json_agg(r ORDER BY r.oid) FROM (
        SELECT oid, relname, relnamespace, relowner, relacl, relkind, relrowsecurity,
            relforcerowsecurity, reloptions, relhastriggers, relhasrules,
            obj_description(oid, 'pg_class')
        FROM pg_class
        WHERE relnamespace IN ('public'::regnamespace, 'tenancy'::regnamespace)) r),
    'schemas', (SELECT json_agg(n ORDER BY n.oid) FROM pg_namespace n
        WHERE nspname !~ '^pg_'),
    'functions', (SELECT json_agg(p ORDER BY p.oid) FROM pg_proc p
        WHERE pronamespace IN ('public'::regnamespace, 'tenancy'::regnamespace)),
    'roles', (SELECT json_agg(r ORDER BY r.oid) FROM pg_roles r),
    'members', (SELECT json_agg(m ORDER BY m.roleid, m.member, m.grantor)
        FROM pg_auth_members m),
    'settings', (SELECT json_agg(s) FROM pg_db_role_setting s),
    'triggers', (SELECT json_agg(t ORDER BY t.oid) FROM pg_trigger t),
    'event triggers', (SELECT json_agg(e) FROM pg_event_trigger e)
)::text
"""


class _NothingNew:
    def __repr__(self) -> str:
        return "NO_EFFECT"


#: What an attack gets: the statement is accepted, and has no effect on anybody else.
NO_EFFECT = _NothingNew()

#: :data:`OWN`: the attacker's own rows and no others. ``[]``: no rows, of no tenant. A
#: list: exactly these rows. Five characters: an error with this SQLSTATE.
Gets: TypeAlias = "str | list[tuple[Any, ...]] | _NothingNew"


@dataclass(frozen=True)
class Blocked:
    """An attack that fails.

    :param name: what is tried, as Markdown.
    :param how: statements, in one transaction; or a function of a session that returns
        rows.
    :param gets: what comes of it; a tuple for alternatives.
    :param by: which attackers fail.
    :param since: the first major version that has the statement.
    :param setup: what the database holds before, as SQL of a superuser.
    """

    name: str
    how: str | Sequence[str] | Callable[[TenantSession, Scene], Any]
    gets: Gets | tuple[Gets, ...]
    by: tuple[Attacker, ...] = EVERYONE
    since: int = 15
    setup: str = ""


@dataclass(frozen=True)
class Leak:
    """An attack that succeeds, because row-level security cannot block it.

    :param name: what is done, as Markdown.
    :param succeeds: whether it succeeds; called again after the remedy.
    :param remedy: what to do, as Markdown.
    :param fix: the remedy as SQL of a superuser, or a function; ``None`` where there is
        nothing to run.
    :param by: which attackers succeed.
    :param setup: what the database holds before, as SQL of a superuser.
    :param finding: code of what ``manager.check()`` reports, before the remedy only.
    :param dml: whether it fails where sessions allow DML only, in a hardened database.
    :param fixed: the minor releases of PostgreSQL from which on it fails, by major
        version.
    """

    name: str
    succeeds: Callable[[Scene], bool]
    remedy: str
    fix: str | Callable[[Scene], None] | None = None
    by: tuple[Attacker, ...] = EVERYONE
    setup: str = ""
    finding: str | None = None
    fixed: Mapping[int, int] = field(default_factory=dict)
    dml: bool = False


Next: TypeAlias = Callable[[World, Engine], bool]


@dataclass(frozen=True)
class Leftover:
    """Something left behind.

    :param name: what it is, as Markdown.
    :param leave: statements of acme, ``{role}`` is what its session acts as.
    :param affects: whether the next user of the connection is affected; false for all
        entries without a remedy.
    :param remedy: what to do; ``None`` where nobody is affected.
    :param forgotten: whether a reset of the connection is a remedy.
    """

    name: str
    leave: Sequence[str]
    affects: Next
    remedy: str | None = None
    isolations: tuple[str, ...] = ("role", "shared")
    drivers: tuple[str, ...] = DRIVERS
    forgotten: bool = True


@dataclass
class Scene:
    """A migrated database with rows of both tenants, and the ways into it."""

    database: Database
    attacker: Attacker = "role"
    words: frozenset[str] | None = None
    engines: dict[str, Engine] = field(default_factory=dict)

    def set_up(self) -> None:
        """Migrate, and create what an installation has."""
        migrate(self.database, Base.metadata)
        self.database.execute(_BY_OWNER, login="owner")
        grant_logins(self.database)
        self.database.execute("CREATE ROLE acme_login LOGIN NOINHERIT")
        options = "WITH INHERIT FALSE, SET TRUE" if requested_version() > 15 else ""
        for tenant, logins in (
            ("acme", "app, acme_login"),
            ("globex", "app"),
            (TRICKY, "app"),
        ):
            role = sql.Identifier(f"tenant_{tenant}").as_string()
            self.database.execute(
                f"CREATE ROLE {role} IN ROLE tenants;"
                f"GRANT {role} TO {logins} {options}",
                login="manager",
            )

    def fill(self, superuser: psycopg.Connection[Any]) -> None:
        """Write the rows that everything begins with."""
        superuser.execute(_FILL)

    def state(self, superuser: psycopg.Connection[Any]) -> str:
        """What no attack may change."""
        row = superuser.execute(_STATE).fetchone()
        assert row is not None
        return str(row[0])

    def engine(self, attacker: Attacker, name: str = "") -> Engine:
        """A pool with one connection, of the login that the attacker comes by."""
        key = attacker + name
        if key not in self.engines:
            login = {"role": "app", "shared": "app_shared", "login": "acme_login"}
            self.engines[key] = create_engine(
                self.database.url(login[attacker]), pool_size=1, max_overflow=0
            )
        return self.engines[key]

    def manager(
        self, attacker: Attacker, name: str = "", words: frozenset[str] | None = None
    ) -> PostgresManager:
        return PostgresManager.from_engine(
            self.engine(attacker, name),
            schema="public",
            isolation="shared" if attacker == "shared" else "role",
            metadata=Base.metadata,
            allow_statements=words,
        )

    @contextmanager
    def attack(self) -> Iterator[TenantSession]:
        """A session of acme."""
        manager = self.manager(self.attacker, words=self.words)
        with manager.new_session("acme", create_if_missing=False) as session:
            yield session

    @contextmanager
    def victim(self) -> Iterator[TenantSession]:
        """A session of globex, on a connection of its own."""
        manager = self.manager("shared" if self.attacker == "shared" else "role", "2")
        with manager.new_session("globex", create_if_missing=False) as session:
            yield session

    def close(self) -> None:
        """Close all connections."""
        for engine in self.engines.values():
            engine.dispose()


def execute(session: Session, *statements: str) -> list[tuple[Any, ...]]:
    """Execute statements as they are, and return the rows of the last one."""
    return execute_on(session.connection(), *statements)


def execute_on(connection: Connection, *statements: str) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for statement in statements:
        result = connection.exec_driver_sql(
            statement, execution_options={"no_parameters": True}
        )
        rows = [tuple(row) for row in result] if result.returns_rows else []
    return rows


def attempt(session: Session, *statements: str) -> list[tuple[Any, ...]] | str:
    """Return the rows of the last statement, or the SQLSTATE of the first error."""
    try:
        return execute(session, *statements)
    except ScopeError:
        return "42501"  # not sent
    except DBAPIError as error:
        return refused(error)


def refused(error: DBAPIError) -> str:
    """The SQLSTATE."""
    return str(getattr(error.orig, "sqlstate", None))
