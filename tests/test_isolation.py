"""What one tenant can do to another one's rows: nothing."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.orm import Session, make_transient_to_detached
from sqlalchemy.orm.exc import StaleDataError

from servers import Database
from sqlalchemy_tenants import InvalidTenant
from sqlalchemy_tenants.scope import tenant_scope
from sqlalchemy_tenants.tenancy import Tenancy
from tenancy import (  # noqa: F401
    MODELS,
    Note,
    World,
    driver_fixture,
    isolation_fixture,
    migrated_fixture,
    on_each_driver,
    world_fixture,
)


def rows(world: World, model: Any) -> list[tuple[Any, ...]]:
    return world.database.rows(
        f"SELECT tenant::text, id, body FROM {model.__tablename__} ORDER BY 1, 2"
    )


@pytest.fixture(name="seeded", params=MODELS)
def seeded_fixture(world: World, request: pytest.FixtureRequest) -> tuple[Any, ...]:
    """A model, two tenants, and the keys of their rows."""
    model, mine, theirs = MODELS[request.param]
    world.create(mine, theirs)
    world.fill(model, mine, theirs)
    query = f"SELECT id FROM {model.__tablename__} WHERE tenant::text = %s"
    ((own,),) = world.database.rows(query, [str(mine)])
    ((foreign,),) = world.database.rows(query, [str(theirs)])
    return model, mine, theirs, own, foreign


@on_each_driver
def test_rows_of_another_tenant_cannot_be_read(
    seeded: tuple[Any, ...], world: World
) -> None:
    model, mine, theirs, own, foreign = seeded
    with world.session(mine, world.engine()) as session:
        assert session.scalars(select(model.id)).all() == [own]
        assert session.get(model, foreign) is None
        for condition in (
            model.tenant == theirs,
            model.id == foreign,
            text("true OR tenant IS NOT NULL"),
        ):
            found = session.scalars(select(model.id).where(condition)).all()
            assert foreign not in found
        table = model.__tablename__
        count = session.scalar(
            text(f"SELECT count(*) FROM {table} a, {table} b WHERE a.id <> b.id")
        )
        assert count == 0


@on_each_driver
def test_rows_of_another_tenant_cannot_be_written(
    seeded: tuple[Any, ...], world: World
) -> None:
    model, mine, theirs, own, foreign = seeded
    before = rows(world, model)
    with world.session(mine, world.engine()) as session:
        for touches_nothing in (
            update(model).where(model.id == foreign).values(body="smuggled"),
            update(model).where(model.tenant == theirs).values(body="smuggled"),
            delete(model).where(model.id == foreign),
            delete(model).where(model.tenant == theirs),
        ):
            result: Any = session.execute(touches_nothing)
            assert result.rowcount == 0
        session.commit()
        conflict = upsert(model).values(id=foreign, body="smuggled")
        overriding = conflict.on_conflict_do_update(
            index_elements=[model.id], set_={"body": "smuggled"}
        )
        for fails in (
            insert(model).values(tenant=theirs),
            update(model).values(tenant=theirs),
            overriding,
            insert(model).values(tenant=None),
        ):
            with pytest.raises(DBAPIError):
                session.execute(fails)
            session.rollback()
        for command in ("TRUNCATE {}", "ALTER TABLE {} DISABLE ROW LEVEL SECURITY"):
            with pytest.raises(ProgrammingError):
                session.execute(text(command.format(model.__tablename__)))
            session.rollback()
        assert session.scalars(select(model.id)).all() == [own]
    assert rows(world, model) == before


@on_each_driver
def test_objects_of_another_tenant_cannot_be_flushed(
    seeded: tuple[Any, ...], world: World
) -> None:
    model, mine, theirs, own, foreign = seeded
    before = rows(world, model)
    with world.session(mine, world.engine()) as session:
        session.add(model(tenant=theirs))
        with pytest.raises(ProgrammingError) as raised:
            session.flush()
        assert getattr(raised.value.orig, "sqlstate", None) == "42501"
        session.rollback()
        # moved to the other tenant
        session.get_one(model, own).tenant = theirs
        with pytest.raises(ProgrammingError):
            session.commit()
        session.rollback()
        # believed to be in the database: it is, but not for this tenant
        believed = model(id=foreign, tenant=theirs)
        make_transient_to_detached(believed)
        session.add(believed)
        believed.body = "smuggled"
        with pytest.raises(StaleDataError):
            session.flush()
        session.rollback()
        # the session is as good as before
        assert session.scalars(select(model.id)).all() == [own]
        session.add(model(body="new"))
        session.commit()
    assert len(rows(world, model)) == len(before) + 1


# the isolation policy and the floor say the same
ONE_POLICY_LESS = {
    "floor dropped": "DROP POLICY tenant_floor ON notes",
    "permissive policy added": "CREATE POLICY by_hand ON notes USING (true)",
}


@pytest.mark.parametrize("driver", ["psycopg"])
@pytest.mark.parametrize("change", ONE_POLICY_LESS)
@on_each_driver
def test_each_of_the_two_policies_suffices(change: str, world: World) -> None:
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    world.database.execute(ONE_POLICY_LESS[change], login="owner")
    _, foreign = rows(world, Note)
    with world.session("acme", world.engine()) as session:
        assert session.scalars(select(Note.body)).all() == ["row of acme"]
        for fails in (
            insert(Note).values(tenant="globex"),
            update(Note).values(tenant="globex"),
        ):
            with pytest.raises(ProgrammingError, match="row-level security"):
                session.execute(fails)
            session.rollback()
        session.execute(update(Note).values(body="changed"))
        session.execute(delete(Note))
        session.commit()
    assert rows(world, Note) == [foreign]


def test_tenants_have_no_other_privileges(migrated: Database) -> None:
    found = migrated.rows(
        "SELECT grantee, string_agg(DISTINCT privilege_type, ' ')"
        " FROM information_schema.role_table_grants"
        " WHERE table_schema = 'public' AND grantee <> grantor GROUP BY 1 ORDER BY 1"
    )
    privileges = "DELETE INSERT SELECT UPDATE"
    assert found == [("tenants", privileges), ("tenants_admin", privileges)]


def test_the_function_is_evaluated_once_a_query(migrated: Database) -> None:
    with migrated.server.connect(migrated.name) as connection:
        connection.execute("SET ROLE tenants_shared")
        plan = connection.execute("EXPLAIN SELECT * FROM notes").fetchall()
    assert "InitPlan" in str(plan)


NO_TENANT = {
    "prefix": 'CREATE ROLE "tenant_" IN ROLE tenants; SET ROLE "tenant_"',
    "shared": "SET ROLE tenants_shared; SET tenancy.tenant = ''",
    "shared, unset": "SET ROLE tenants_shared",
    "group": "SET ROLE tenants",
}


@pytest.mark.parametrize("how", NO_TENANT)
def test_no_tenant_has_no_rows_not_even_those_of_an_empty_one(
    how: str, migrated: Database
) -> None:
    migrated.execute("INSERT INTO notes (tenant, body) VALUES ('', ''), ('acme', '')")
    with migrated.server.connect(migrated.name) as connection:
        connection.execute(NO_TENANT[how])
        assert connection.execute("SELECT * FROM notes").fetchall() == []
        with pytest.raises(InsufficientPrivilege):
            connection.execute("INSERT INTO notes (tenant, body) VALUES ('', '')")


NO_COPY = "COPY FROM not supported"


def test_copy_is_refused_or_sees_own_rows_only(world: World) -> None:
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")

    def run() -> None:
        with world.session("acme", world.engine()) as session:
            connection = session.connection().connection
            raw: Any = connection.driver_connection
            adapter: Any = connection.dbapi_connection
            if world.driver == "psycopg":
                with raw.cursor().copy("COPY notes (body) TO STDOUT") as copy:
                    assert b"".join(copy) == b"row of acme\n"
                copying = raw.cursor().copy("COPY notes (body) FROM STDIN")
                with pytest.raises(Exception, match=NO_COPY), copying as copy:
                    copy.write("smuggled\n")
            elif world.driver == "psycopg-async":

                async def use(raw: Any) -> None:
                    async with raw.cursor().copy("COPY notes (body) TO STDOUT") as c:
                        assert [bytes(row) async for row in c] == [b"row of acme\n"]
                    with pytest.raises(Exception, match=NO_COPY):
                        async with raw.cursor().copy("COPY notes FROM STDIN") as c:
                            await c.write("smuggled\n")

                adapter.run_async(use)
            else:

                async def use(raw: Any) -> None:
                    copied: list[bytes] = []

                    async def output(data: bytes) -> None:
                        copied.append(data)

                    await raw.copy_from_table("notes", columns=["body"], output=output)
                    assert copied == [b"row of acme\n"]
                    with pytest.raises(Exception, match=NO_COPY):
                        await raw.copy_records_to_table(
                            "notes", records=[("smuggled",)], columns=["body"]
                        )

                adapter.run_async(use)
            session.rollback()
            assert session.scalars(select(Note.body)).all() == ["row of acme"]

    world.run(run)


@on_each_driver
def test_a_foreign_key_cannot_reach_into_another_tenant(world: World) -> None:
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    ((foreign,),) = world.database.rows("SELECT id FROM notes WHERE tenant = 'globex'")
    with world.session("acme", world.engine()) as session:
        with pytest.raises(DBAPIError) as raised:
            session.execute(
                text("INSERT INTO comments (note_id) VALUES (:id)"), {"id": foreign}
            )
        assert getattr(raised.value.orig, "sqlstate", None) == "23503"


@on_each_driver
def test_without_a_scope_there_is_an_error_and_not_rows(world: World) -> None:
    world.create("acme")
    world.fill(Note, "acme")
    with Session(world.engine()) as session:
        for statement in (select(Note), insert(Note), delete(Note)):
            with pytest.raises(ProgrammingError, match="permission denied"):
                session.execute(statement)
            session.rollback()


def test_the_setting_cannot_override_a_tenants_role(world: World) -> None:
    """And what it can do under isolation="shared" is what README warns of."""
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")

    def run() -> None:
        with world.session("acme", world.engine()) as session:
            session.execute(text("SET LOCAL tenancy.tenant = 'globex'"))
            seen = set(session.scalars(select(Note.body)))
            if world.isolation == "role":
                assert seen == {"row of acme"}
            else:
                assert seen == {"row of globex"}

    world.run(run)


@pytest.mark.parametrize("isolation", ["shared"])
@on_each_driver
def test_the_shared_login_cannot_act_as_a_tenant_or_as_admin(world: World) -> None:
    world.database.execute("CREATE ROLE tenant_acme NOLOGIN IN ROLE tenants")
    world.fill(Note, "acme")
    with world.engine("app_shared").connect() as connection:
        for role in ("tenant_acme", "tenants_admin"):
            with pytest.raises(ProgrammingError, match="permission denied to set role"):
                connection.execute(text(f"SET ROLE {role}"))
            connection.rollback()
        # the group of all is not to be trusted with the setting
        connection.execute(text("SET LOCAL ROLE tenants"))
        connection.execute(text("SET LOCAL tenancy.tenant = 'acme'"))
        assert connection.scalars(select(Note.body)).all() == []


# --- identifiers ---------------------------------------------------------------------

NAMES = [
    "a_tenant_b",
    "a_b",
    "b",
    "A",
    "a",
    "1",
    "01",
    "tenant_x",
    "x",
    "tenant_tenant_x",
    "it's",
    'say "hi"',
    '"',
    "'",
    "''",
    "two words",
    " x",
    "x ",
    "tab\there",
    "line\nbreak",
    "drop; table notes;--",
    ";--",
    "/* */",
    "%",
    "%s",
    "%%",
    "%(name)s",
    ":name",
    "$1",
    "$$",
    "$tenancy$",
    "{}",
    "\\",
    "\\'",
    "\\x27",
    "E'\\n'",
    "none",
    "NONE",
    "public",
    "s",
    "shared",
    "\U0001f600",
    "\U0001f601",
    "é",
    "e\u0301",
    "ß",
    "ss",
    "ﬁ",
    "fi",
    "İ",
    "i̇",
    "\u200b",
    "x\u200b",
    "m" * 56,
    "m" * 55 + "n",
    "é" * 28,
    "é" * 27 + "ee",
    "\U0001f600" * 14,
]


@on_each_driver
def test_names_are_kept_apart(world: World) -> None:
    assert len(set(NAMES)) == len(NAMES)
    engine = world.engine()
    manager = world.manager(engine)
    for name in NAMES:
        with manager.new_session(name) as session:
            session.add(Note(body=name))
            session.commit()
    for name in NAMES:
        with manager.new_session(name, create_if_missing=False) as session:
            (note,) = session.scalars(select(Note))
            assert (note.tenant, note.body) == (name, name)
        with manager.admin_session(name) as session:
            (note,) = session.scalars(select(Note))
            assert (note.tenant, note.body) == (name, name)
    if world.isolation == "role":
        assert sorted(manager.list_tenants()) == sorted(NAMES)
        for name in NAMES:
            manager.delete_tenant(name)
        assert manager.list_tenants() == []


@on_each_driver
def test_names_are_created_in_bulk_as_one_by_one(world: World) -> None:
    manager = world.manager()
    progress: list[int] = []
    created = manager.create_tenants(NAMES, progress=progress.append)
    assert progress == [len(NAMES)]
    if world.isolation == "shared":
        assert created == 0
        return
    assert created == len(NAMES)
    assert sorted(manager.list_tenants()) == sorted(NAMES)
    for name in NAMES:
        with manager.new_session(name, create_if_missing=False) as session:
            query = text("SELECT tenancy.current_tenant()")
            assert session.scalar(query) == name


TOO_LONG = ["x" * 57, "é" * 29, "é" * 28 + "e", "\U0001f600" * 14 + "x"]


@pytest.mark.parametrize("tenant", TOO_LONG)
def test_a_name_of_57_bytes_is_refused_with_the_limit(tenant: str) -> None:
    with pytest.raises(InvalidTenant, match=r"at most 56.*63 bytes") as raised:
        tenant_scope(tenant, "role", Tenancy(), None)
    assert raised.value.tenant == tenant
    tenant_scope(tenant * 100, "shared", Tenancy(), None)


@pytest.mark.parametrize(
    "tenant",
    ["", "\0", "a\0b", "\ud800", None, True, False, 1.0, b"acme", ["acme"], object()],
)
@pytest.mark.parametrize("mode", ["role", "shared"])
def test_what_is_no_tenant_is_refused(tenant: Any, mode: Any) -> None:
    with pytest.raises(InvalidTenant) as raised:
        tenant_scope(tenant, mode, Tenancy(), None)
    assert raised.value.tenant is tenant


class Folded(str):
    """A string that calls itself equal to others."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and str.lower(self) == str.lower(other)

    def __hash__(self) -> int:
        return hash(str.lower(self))


@pytest.mark.parametrize("mode", ["role", "shared"])
def test_tenants_that_call_themselves_equal_are_kept_apart(mode: Any) -> None:
    """Scopes are kept for the next session, and each tenant has its own."""
    tenants = ("acme", Folded("ACME"), "Acme", Folded("acMe"))
    assert tenants[0] == tenants[1]
    for tenant in (*tenants, *tenants):
        scope = tenant_scope(tenant, mode, Tenancy(), "public")
        name = str.__str__(tenant)
        assert f"'{name}'" in str(scope.text) or f'_{name}"' in str(scope.text)


@pytest.mark.parametrize("isolation", ["shared"])
@on_each_driver
def test_a_shared_tenant_may_be_long(world: World) -> None:
    long = "é" * 5000
    with world.session(long, world.engine()) as session:
        assert session.scalar(text("SELECT tenancy.current_tenant()")) == long


def test_another_prefix_and_other_names() -> None:
    tenancy = Tenancy(
        role_prefix="x_",
        tenants_role="all",
        shared_role="everyone",
        admin_role="boss",
        setting="my.tenant",
    )
    path = 'SET LOCAL search_path = "public", pg_temp'
    tenant = uuid.UUID(int=1)
    role = tenant_scope(tenant, "role", tenancy, "public")
    assert role.statements() == [f'SET LOCAL ROLE "x_{tenant}"', path]
    shared = tenant_scope(tenant, "shared", tenancy, "public")
    assert shared.statements() == [
        'SET LOCAL ROLE "everyone"',
        f"SET LOCAL my.tenant = '{tenant}'",
        path,
    ]
