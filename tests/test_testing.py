"""``sqlalchemy_tenants.testing``: tables for tests, and a proof of their isolation."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import (
    Column,
    Engine,
    ForeignKeyConstraint,
    Identity,
    Integer,
    MetaData,
    Table,
    UniqueConstraint,
    select,
)
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from servers import Database
from sqlalchemy_tenants import (
    InvalidTenant,
    ScopeError,
    TenantMixin,
    TenantSession,
    shared_table,
    with_rls,
)
from sqlalchemy_tenants.aio import managers as aio
from sqlalchemy_tenants.aio import testing as aio_testing
from sqlalchemy_tenants.managers import PostgresManager
from sqlalchemy_tenants.testing import NotIsolated, assert_isolated, create_all
from tenancy import (
    World,
    driver_fixture,  # noqa: F401
    grant_logins,
    isolation_fixture,  # noqa: F401
    migrate,
    on_each_driver,
)


class Base(DeclarativeBase):
    pass


@with_rls
class Note(TenantMixin, Base):
    __tablename__ = "notes"
    __table_args__ = (UniqueConstraint("tenant", "id"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    body: Mapped[str]


@with_rls
class Comment(TenantMixin, Base):
    """Refers to a note, which can then not be deleted."""

    __tablename__ = "comments"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "note_id"], ["notes.tenant", "notes.id"]),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    note_id: Mapped[int]


@with_rls(tenant_column="owner")
class Event(Base):
    """Partitioned, and the tenant is neither called ``tenant`` nor the default."""

    __tablename__ = "events"
    __table_args__ = {"postgresql_partition_by": "LIST (kind)"}  # noqa: RUF012

    owner: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)


@shared_table
class Country(Base):
    __tablename__ = "countries"
    __table_args__ = {"schema": "reference"}  # noqa: RUF012

    code: Mapped[str] = mapped_column(primary_key=True)


# What is sound beside tables.
SOUND = """
CREATE TABLE events_read PARTITION OF events FOR VALUES IN ('read');
CREATE VIEW note_bodies WITH (security_invoker) AS
    SELECT body, count(*) FROM notes GROUP BY body;
GRANT SELECT ON note_bodies TO tenants;
CREATE FUNCTION now_and_then() RETURNS double precision LANGUAGE sql SECURITY DEFINER
    AS 'SELECT random()';
CREATE FUNCTION not_you() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
    AS 'BEGIN RAISE EXCEPTION ''no''; END';
CREATE TABLE private_notes AS SELECT * FROM notes;
INSERT INTO reference.countries VALUES ('NL');
"""


def fill(session: TenantSession) -> None:
    note = Note(body="a note")
    session.add_all([note, Event(owner=str(session.tenant), kind="read")])
    session.flush()
    session.add(Comment(note_id=note.id))


async def fill_async(session: aio.AsyncTenantSession) -> None:
    note = Note(body="a note")
    session.add_all([note, Event(owner=str(session.tenant), kind="read")])
    await session.commit()
    session.add(Comment(note_id=note.id))


EVERYTHING = [
    "shows rows of another tenant",
    "updates rows of another tenant",
    "deletes rows of another tenant",
    "gives rows to another tenant",
    "inserts rows of another tenant",
]
EVERYTHING_OF_EVENTS = {f"public.events: {what} (1 row)" for what in EVERYTHING}


@pytest.fixture(name="created")
def created_fixture(database: Database) -> Database:
    """A sound database."""
    database.execute("CREATE SCHEMA reference", login="owner")
    migrate(database, Base.metadata)
    database.execute(SOUND)
    grant_logins(database)
    return database


@pytest.fixture(name="world")
def world_fixture(created: Database, driver: str, isolation: str) -> World:
    """See :class:`World`; over all drivers and both isolations."""
    return World(created, driver, isolation)


@pytest.fixture(name="psycopg_world")
def psycopg_world_fixture(created: Database) -> Iterator[World]:
    world = World(created, "psycopg", "role")
    yield world
    for engine in world.engines:
        engine.dispose()


def rows(database: Database) -> list[tuple[Any, ...]]:
    """What a trial must leave as it was."""
    return database.rows(
        "SELECT (SELECT count(*) FROM notes), (SELECT count(*) FROM events),"
        " ARRAY(SELECT rolname FROM pg_roles WHERE rolname LIKE 'tenant\\_%'"
        "  ORDER BY 1)::text"
    )


def leaks(manager: PostgresManager, **kw: Any) -> set[str]:
    with pytest.raises(NotIsolated) as caught:
        assert_isolated(manager, fill, **kw)
    lines = str(caught.value).splitlines()
    assert lines[0] == "tenants are not isolated:"
    assert lines[1:] == list(map(str, caught.value.leaks))
    return set(lines[1:])


# --- create_all ---


@pytest.mark.parametrize("login", ["owner", "superuser"])
def test_create_all(
    database: Database, make_engine: Callable[..., Engine], login: str
) -> None:
    engine = make_engine(database.url(login))
    for _ in range(2):
        with engine.begin() as connection:
            create_all(connection, Base.metadata)
            context = MigrationContext.configure(
                connection,
                opts={
                    "include_schemas": True,
                    "include_name": lambda name, type_, parents: (
                        type_ != "schema" or name in (None, "reference")
                    ),
                },
            )
            assert compare_metadata(context, Base.metadata) == []
    manager = PostgresManager.from_engine(
        make_engine(database.app_url),
        schema="public",
        admin_engine=engine,
        metadata=Base.metadata,
    )
    assert manager.check(strict=True) == []
    with manager.new_session("acme") as session:
        session.add(Note(body="mine"))
        session.commit()
        assert session.scalars(select(Note.tenant)).all() == ["acme"]
    with manager.admin_session() as session:
        assert session.scalars(select(Note.tenant)).all() == ["acme"]


def test_nothing_is_committed(
    database: Database, make_engine: Callable[..., Engine]
) -> None:
    with make_engine(database.owner_url).connect() as connection:
        create_all(connection, Base.metadata)
        connection.rollback()
    assert database.rows("SELECT to_regclass('notes'), to_regrole('tenants')") == [
        (None, None)
    ]


async def test_create_all_of_an_async_engine(
    database: Database, make_async_engine: Callable[..., AsyncEngine]
) -> None:
    engine = make_async_engine(database.url("owner", "asyncpg"))
    async with engine.begin() as connection:
        with pytest.raises(TypeError, match=r"run_sync\(create_all, metadata\)"):
            create_all(connection, Base.metadata)  # type: ignore[arg-type]
        await connection.run_sync(create_all, Base.metadata)
    found = database.rows(
        "SELECT relforcerowsecurity FROM pg_class WHERE relname='notes'"
    )
    assert found == [(True,)]


def test_what_is_there_is_completed(
    database: Database, make_engine: Callable[..., Engine]
) -> None:
    """Tables without policies, and models that have nothing to do with these."""

    class Other(DeclarativeBase):
        pass

    @with_rls
    class Thing(TenantMixin, Other):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)

    engine = make_engine(database.owner_url)
    with engine.begin() as connection:
        create_all(connection, Other.metadata)
        Base.metadata.tables["notes"].create(connection)
        connection.exec_driver_sql("CREATE TABLE unknown (id int)")
        create_all(connection, Base.metadata)
    assert database.rows(
        "SELECT relname::text, relrowsecurity FROM pg_class"
        " WHERE relname IN ('things', 'notes', 'unknown') ORDER BY 1"
    ) == [("notes", True), ("things", True), ("unknown", False)]
    policies = "SELECT count(*) FROM pg_policies WHERE tablename = 'things'"
    assert database.rows(policies) == [(3,)]


def test_metadata_without_tenants(
    database: Database, make_engine: Callable[..., Engine]
) -> None:
    class Plain(DeclarativeBase):
        pass

    class Thing(Plain):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)

    database.execute("GRANT CREATE ON SCHEMA public TO app")
    with make_engine(database.app_url).begin() as connection:
        create_all(connection, Plain.metadata)
    assert database.rows(
        "SELECT to_regrole('tenants'), to_regclass('things')::text"
    ) == [(None, "things")]


def test_a_login_that_may_not_create_roles(
    database: Database, make_engine: Callable[..., Engine]
) -> None:
    database.execute("GRANT CREATE ON SCHEMA public TO app")
    with (
        make_engine(database.app_url).begin() as connection,
        pytest.raises(ScopeError, match='ALTER ROLE "app" CREATEROLE'),
    ):
        create_all(connection, Base.metadata)


def test_a_login_that_lacks_a_right(
    database: Database, make_engine: Callable[..., Engine]
) -> None:
    with (
        make_engine(database.admin_url).begin() as connection,
        pytest.raises(ScopeError, match="permission denied for database"),
    ):
        create_all(connection, Base.metadata)


def test_another_database(make_engine: Callable[..., Engine]) -> None:
    with (
        make_engine("sqlite://").connect() as connection,
        pytest.raises(ScopeError, match="sqlite"),
    ):
        create_all(connection, Base.metadata)


# --- assert_isolated ---


@on_each_driver
def test_a_sound_database(world: World) -> None:
    manager = world.manager(metadata=Base.metadata)
    before = rows(world.database)
    assert_isolated(manager, fill)
    assert rows(world.database) == before
    manager.create_tenant("a")
    with manager.new_session("a") as session:
        fill(session)
        session.commit()
    before = rows(world.database)
    assert_isolated(manager, fill)
    assert rows(world.database) == before


OWN = """
CREATE POLICY own ON notes AS RESTRICTIVE TO tenants
    USING (body = (SELECT tenancy.context_value('word')))
"""


def test_policies_that_ask_for_the_context(psycopg_world: World) -> None:
    psycopg_world.database.execute(OWN)
    manager = psycopg_world.manager(metadata=Base.metadata)
    with pytest.raises(ProgrammingError, match="row-level security"):
        assert_isolated(manager, fill)
    assert_isolated(manager, fill, context={"word": "a note"})


@pytest.mark.parametrize("driver_name", ["psycopg", "asyncpg"])
async def test_asyncio(
    created: Database, make_async_engine: Callable[..., AsyncEngine], driver_name: str
) -> None:
    manager = aio.PostgresManager.from_engine(
        make_async_engine(created.url("app", driver_name)),
        schema="public",
        admin_engine=make_async_engine(created.url("manager", driver_name)),
        metadata=Base.metadata,
        session_options={"expire_on_commit": False},
    )
    before = rows(created)
    await aio_testing.assert_isolated(manager, fill_async)
    for tenant in ("a", "b"):
        await manager.create_tenant(tenant)
    engine = make_async_engine(created.url("app", driver_name))
    async with engine.connect() as connection, connection.begin() as outer:
        await aio_testing.assert_isolated(manager.bound_to(connection), fill_async)
        assert outer.is_active
    for tenant in ("a", "b"):
        await manager.delete_tenant(tenant)
    created.execute(OWN)
    context = {"word": "a note"}
    await aio_testing.assert_isolated(manager, fill_async, context=context)
    created.execute("ALTER TABLE notes DISABLE ROW LEVEL SECURITY")
    with pytest.raises(aio_testing.NotIsolated) as caught:
        await aio_testing.assert_isolated(manager, fill_async)
    assert {leak.object for leak in caught.value.leaks} == {
        "public.note_bodies",
        "public.notes",
    }
    assert rows(created) == before
    with pytest.raises(TypeError, match=r"sqlalchemy_tenants\.aio\.testing"):
        assert_isolated(manager, fill)  # type: ignore[arg-type]


# Each group is planted into the sound database by a superuser; all of it is named.
PLANTS: dict[str, list[tuple[str, set[str]]]] = {
    "policy-true-without-floor": [
        (
            "DROP POLICY tenant_floor ON events;"
            "CREATE POLICY rogue ON events USING (true)",
            EVERYTHING_OF_EVENTS,
        ),
    ],
    "policy-of-another-column-for-public": [
        (
            "DROP POLICY tenant_floor ON events;"
            "CREATE POLICY rogue ON events TO PUBLIC USING (kind = 'read')",
            EVERYTHING_OF_EVENTS,
        ),
    ],
    "conditions": [
        (
            "ALTER POLICY tenant_isolation ON events USING (true) WITH CHECK (true);"
            "ALTER POLICY tenant_floor ON events USING (true) WITH CHECK (true)",
            EVERYTHING_OF_EVENTS,
        ),
    ],
    "rls-off": [
        ("ALTER TABLE events DISABLE ROW LEVEL SECURITY", EVERYTHING_OF_EVENTS),
        (
            # where keys stop most
            "ALTER TABLE notes DISABLE ROW LEVEL SECURITY",
            {
                "public.note_bodies: shows what another tenant writes (1 row)",
                "public.notes: deletes rows of another tenant (1 row)",
                "public.notes: gives rows to another tenant, if no constraint stops it",
                "public.notes: inserts rows of another tenant (1 row)",
                "public.notes: shows rows of another tenant (1 row)",
                "public.notes: updates rows of another tenant (1 row)",
            },
        ),
    ],
    "partition": [
        (
            "GRANT SELECT, INSERT, UPDATE, DELETE ON events_read TO tenants",
            {f"public.events_read: {what} (1 row)" for what in EVERYTHING},
        ),
        (
            "CREATE TABLE old_notes () INHERITS (notes);"
            "GRANT SELECT ON old_notes TO tenants;"
            "INSERT INTO old_notes (tenant, id, body) VALUES ('c', 1, '')",
            {"public.old_notes: shows rows of another tenant (1 row)"},
        ),
    ],
    "view": [
        (
            "CREATE VIEW all_notes AS SELECT * FROM notes;"
            "GRANT SELECT, INSERT, UPDATE, DELETE ON all_notes TO tenants",
            {
                "public.all_notes: deletes rows of another tenant (1 row)",
                "public.all_notes: gives rows to another tenant, if no constraint"
                " stops it",
                "public.all_notes: inserts rows of another tenant, if no constraint"
                " stops it",
                "public.all_notes: shows rows of another tenant (1 row)",
                "public.all_notes: updates rows of another tenant (1 row)",
            },
        ),
        (
            "CREATE VIEW counted AS SELECT count(*) FROM notes;"
            "GRANT SELECT ON counted TO PUBLIC",
            {"public.counted: shows what another tenant writes"},
        ),
        (
            "CREATE VIEW bad WITH (security_invoker) AS"
            " SELECT 1 / (count(*) - count(*)) FROM notes;"
            "GRANT SELECT ON bad TO tenants",
            {"public.bad: cannot be judged, it fails: division by zero"},
        ),
        (
            "CREATE VIEW late WITH (security_invoker) AS"
            " SELECT * FROM notes WHERE body = 'late'; GRANT SELECT ON late TO tenants",
            {
                "public.late: vacuous: the view shows tenant 'a' no row",
                "public.late: vacuous: the view shows tenant 'b' no row",
            },
        ),
    ],
    "unmarked": [
        (
            "CREATE MATERIALIZED VIEW kept AS SELECT * FROM notes;"
            "GRANT SELECT ON kept TO tenants",
            {"public.kept: no model marks it, and tenants may SELECT"},
        ),
        (
            "CREATE SCHEMA attic; GRANT USAGE ON SCHEMA attic TO PUBLIC;"
            "CREATE TABLE attic.notes AS SELECT 'c'::text AS tenant;"
            "GRANT SELECT ON attic.notes TO tenants",
            {"attic.notes: no model marks it, and tenants may SELECT (1 row)"},
        ),
        (
            "GRANT SELECT (body) ON private_notes TO tenants",
            {"public.private_notes: no model marks it, and tenants may SELECT"},
        ),
    ],
    "definer": [
        (
            "CREATE FUNCTION all_notes() RETURNS SETOF notes LANGUAGE sql"
            " SECURITY DEFINER AS 'SELECT * FROM notes'",
            {"public.all_notes(): shows what another tenant writes (1 row)"},
        ),
        (
            "CREATE FUNCTION n(x int = 0) RETURNS bigint LANGUAGE sql SECURITY DEFINER"
            " AS 'SELECT count(*) FROM notes'",
            {"public.n(): shows what another tenant writes"},
        ),
        (
            "CREATE FUNCTION wipe() RETURNS void LANGUAGE sql SECURITY DEFINER"
            " AS 'DELETE FROM comments'",
            {"public.wipe(): changes rows of another tenant (1 row)"},
        ),
        (
            "CREATE PROCEDURE purge() LANGUAGE sql SECURITY DEFINER"
            " AS 'DELETE FROM comments'",
            {"public.purge(): changes rows of another tenant (1 row)"},
        ),
    ],
    "trigger-and-rule": [
        (
            "CREATE FUNCTION sweep() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
            " AS 'BEGIN DELETE FROM comments; RETURN NULL; END';"
            "CREATE TRIGGER sweep AFTER UPDATE ON events EXECUTE FUNCTION sweep()",
            {"public.events: updates rows of another tenant (1 row)"},
        ),
        (
            "CREATE RULE sweep AS ON UPDATE TO notes DO ALSO DELETE FROM comments;"
            "ALTER TABLE notes OWNER TO superuser",
            {"public.notes: updates rows of another tenant (1 row)"},
        ),
    ],
    "trigger-that-truncates": [
        (
            "CREATE FUNCTION empty() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
            " AS 'BEGIN TRUNCATE comments; RETURN NULL; END';"
            "CREATE TRIGGER empty AFTER UPDATE ON events EXECUTE FUNCTION empty()",
            {"public.events: updates rows of another tenant (1 row)"},
        ),
    ],
    "trigger-that-drops-a-policy": [
        (
            "CREATE FUNCTION open() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
            " AS 'BEGIN DROP POLICY IF EXISTS tenant_isolation ON comments;"
            " RETURN NULL; END';"
            "CREATE TRIGGER open AFTER UPDATE ON events EXECUTE FUNCTION open()",
            {"public.events: updates rows of another tenant (1 row)"},
        ),
    ],
    "login": [
        (
            "CREATE VIEW all_notes AS SELECT * FROM notes;"
            "GRANT SELECT ON all_notes TO app",
            {"public.all_notes: shows the login what tenants write"},
        ),
        (
            "CREATE FUNCTION n() RETURNS bigint LANGUAGE sql SECURITY DEFINER"
            " AS 'SELECT count(*) FROM notes'; REVOKE ALL ON FUNCTION n() FROM PUBLIC;"
            "GRANT EXECUTE ON FUNCTION n() TO app",
            {"public.n(): shows the login what tenants write"},
        ),
    ],
    # What reads no row is confined by the policies of one command only, and a key may
    # stop it.
    "update-policy": [
        (
            "DROP POLICY tenant_floor ON notes;"
            "CREATE POLICY rogue ON notes FOR UPDATE USING (true)",
            {
                "public.notes: gives rows to another tenant, if no constraint stops it",
                "public.notes: updates rows of another tenant (1 row)",
            },
        ),
    ],
    "delete-policy": [
        (
            "DROP POLICY tenant_floor ON notes;"
            "CREATE POLICY rogue ON notes FOR DELETE USING (true)",
            {"public.notes: deletes rows of another tenant (1 row)"},
        ),
        (
            "DROP POLICY tenant_floor ON events;"
            "CREATE POLICY rogue ON events FOR INSERT WITH CHECK (true)",
            {"public.events: inserts rows of another tenant (1 row)"},
        ),
    ],
    "owner": [
        (
            "ALTER TABLE comments OWNER TO tenants",
            {
                "public.comments: belongs to a tenant, who can switch RLS off",
                "public.comments: tenants may TRUNCATE it, past all policies",
            },
        ),
        (
            "ALTER TABLE notes OWNER TO app;"
            "ALTER TABLE notes NO FORCE ROW LEVEL SECURITY",
            {
                "public.notes: belongs to the login, which can switch RLS off",
                "public.notes: the login itself reads it (2 rows)",
            },
        ),
        (
            "GRANT SELECT ON events TO app;"
            "CREATE POLICY own ON events FOR SELECT TO app USING (true)",
            {"public.events: the login itself reads it (2 rows)"},
        ),
    ],
}


@pytest.mark.parametrize("group", PLANTS)
def test_a_leak_is_found(psycopg_world: World, group: str) -> None:
    expected: set[str] = set()
    for statements, lines in PLANTS[group]:
        psycopg_world.database.execute(statements)
        expected |= lines
    before = rows(psycopg_world.database)
    assert leaks(psycopg_world.manager(metadata=Base.metadata)) == expected
    assert rows(psycopg_world.database) == before


@on_each_driver
def test_a_leak_is_found_on_each_driver(world: World) -> None:
    statements, expected = PLANTS["rls-off"][0]
    world.database.execute(statements)
    assert leaks(world.manager(metadata=Base.metadata)) == expected


def test_what_changes_by_itself_is_no_leak(psycopg_world: World) -> None:
    psycopg_world.database.execute(
        "CREATE VIEW lottery WITH (security_invoker) AS"
        " SELECT id, random() FROM notes; GRANT SELECT ON lottery TO tenants"
    )
    assert_isolated(psycopg_world.manager(metadata=Base.metadata), fill)


def test_a_table_without_rows_is_vacuous(psycopg_world: World) -> None:
    manager = psycopg_world.manager(metadata=Base.metadata)

    def fill_one(session: TenantSession) -> None:
        session.add(Note(body="a note"))
        if session.tenant == "b":
            session.add(Event(owner="b", kind="read"))

    with pytest.raises(NotIsolated) as caught:
        assert_isolated(manager, fill_one)
    assert set(map(str, caught.value.leaks)) == {
        "public.comments: vacuous: fill() left no row of tenant 'a'",
        "public.comments: vacuous: fill() left no row of tenant 'b'",
        "public.events: vacuous: fill() left no row of tenant 'a'",
    }
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.leaks, str(copy)) == (caught.value.leaks, str(caught.value))
    assert_isolated(manager, fill_one, known=["public.comments", "public.events"])


def test_a_table_that_does_not_exist_is_vacuous(psycopg_world: World) -> None:
    psycopg_world.database.execute("DROP TABLE comments")
    manager = psycopg_world.manager(metadata=Base.metadata)
    with pytest.raises(NotIsolated, match=r"comments: vacuous: it does not exist"):
        assert_isolated(
            manager, lambda session: session.add(Note(body="")), known=["public.events"]
        )


def test_what_is_known_must_be_there(psycopg_world: World) -> None:
    manager = psycopg_world.manager(metadata=Base.metadata)
    with pytest.raises(ValueError, match=r"known names public\.nothing, which"):
        assert_isolated(manager, fill, known=["public.nothing"])
    with pytest.raises(ValueError, match="list of names"):
        assert_isolated(manager, fill, known="public.notes")


def test_other_tenants(database: Database, make_engine: Callable[..., Engine]) -> None:
    """Of another type, and three of them."""
    metadata = MetaData()
    counts = Table(
        "counts", metadata, Column("id", Integer, Identity()), Column("tenant", Integer)
    )
    with_rls(counts)
    engine = make_engine(database.owner_url)
    with engine.begin() as connection:
        create_all(connection, metadata)
    manager = PostgresManager.from_engine(
        make_engine(database.app_url), "public", admin_engine=engine, metadata=metadata
    )

    def fill_counts(session: TenantSession) -> None:
        session.execute(counts.insert().values(tenant=session.tenant))

    assert_isolated(manager, fill_counts, (1, 2, 3))
    with pytest.raises(InvalidTenant):
        assert_isolated(manager, fill_counts)
    database.execute("ALTER TABLE counts DISABLE ROW LEVEL SECURITY")
    with pytest.raises(NotIsolated, match=r"counts: shows rows .* \(2 rows\)"):
        assert_isolated(manager, fill_counts, (1, 2, 3))


@pytest.mark.parametrize("grant", ["", "CREATE ROLE past BYPASSRLS; GRANT past TO app"])
def test_a_login_that_proves_nothing(psycopg_world: World, grant: str) -> None:
    login = "app" if grant else "superuser"
    if grant:
        psycopg_world.database.execute(grant)
    engine = psycopg_world.engine(login)
    manager = psycopg_world.manager(engine, metadata=Base.metadata)
    before = rows(psycopg_world.database)
    with pytest.raises(ScopeError, match=f"{login}.*nothing would be proved"):
        assert_isolated(manager, fill)
    assert rows(psycopg_world.database) == before


def test_nothing_is_left_where_fill_fails(psycopg_world: World) -> None:
    def fail(session: TenantSession) -> None:
        fill(session)
        session.commit()
        raise LookupError("of the application")

    before = rows(psycopg_world.database)
    with pytest.raises(LookupError):
        assert_isolated(psycopg_world.manager(metadata=Base.metadata), fail)
    assert rows(psycopg_world.database) == before


def test_a_session_class_with_an_engine_of_its_own(psycopg_world: World) -> None:
    class Elsewhere(TenantSession):
        def get_bind(self, *args: Any, **kw: Any) -> Any:
            return bind[0]

    engine = psycopg_world.engine()
    manager = psycopg_world.manager(metadata=Base.metadata, session_class=Elsewhere)
    bind: list[Any] = [engine]
    with pytest.raises(ScopeError, match="no transaction that could be rolled back"):
        assert_isolated(manager, fill)
    with (
        engine.begin() as bind[0],
        pytest.raises(ScopeError, match="Elsewhere chooses a connection of its own"),
    ):
        assert_isolated(manager, fill)


def test_a_bound_manager_can_be_tried(psycopg_world: World) -> None:
    before = rows(psycopg_world.database)
    manager = psycopg_world.manager(metadata=Base.metadata)
    for tenant in ("a", "b"):
        manager.create_tenant(tenant)
    with psycopg_world.engine().connect() as connection, connection.begin() as outer:
        bound = manager.bound_to(connection)
        assert_isolated(bound, fill)
        with bound.new_session("a") as session:
            assert session.scalars(select(Note)).all() == []
        outer.rollback()
    for tenant in ("a", "b"):
        manager.delete_tenant(tenant)
    assert rows(psycopg_world.database) == before


def test_arguments(psycopg_world: World) -> None:
    manager = psycopg_world.manager(metadata=Base.metadata)
    with pytest.raises(ValueError, match=r"metadata=Base\.metadata"):
        assert_isolated(psycopg_world.manager(), fill)
    for tenants in ("ab", ["a"], ["1", 1]):
        with pytest.raises(ValueError, match="two or more"):
            assert_isolated(manager, fill, tenants)
    with pytest.raises(TypeError, match=r"sqlalchemy_tenants\.aio\.testing"):
        assert_isolated(manager, fill_async)
