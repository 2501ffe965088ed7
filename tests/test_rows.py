"""Rows of one tenant: export, import, delete, rename."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Identity, Integer, Uuid
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rows_world import (  # noqa: F401
    TABLES,
    Base,
    checksums,
    fill,
    manager_of,
    other_database,
    plain_fixture,
    plain_manager_of,
    world_fixture,
)
from servers import Database
from sqlalchemy_tenants import (
    InvalidTenant,
    ScopeError,
    Tenancy,
    TenantAlreadyExists,
    TenantNotFound,
    with_rls,
)
from sqlalchemy_tenants.declare import tenant_column
from sqlalchemy_tenants.rows import RowsError, RowsProgress, read_file
from tenancy import (  # noqa: F401
    World,
    driver_fixture,
    grant_logins,
    isolation_fixture,
    migrate,
    on_each_driver,
)


@on_each_driver
def test_rows_go_to_another_database_and_are_the_same(
    world: World, tmp_path: Path
) -> None:
    other = other_database(world)
    for tenant in ("acme", "globex"):
        fill(world.database, tenant)
    world.create("acme", "initech")
    manager = manager_of(world)
    told: list[RowsProgress] = []
    before = checksums(world.database, "acme")
    path = tmp_path / "acme.rows"

    exported = manager.export_rows("acme", path, progress=told.append)
    assert exported == {table: before[table][0] for table in TABLES}
    assert exported.left_out == ("currencies",)
    assert exported.total == 203
    assert told[-1] == RowsProgress("events", 3, 3)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]

    assert manager.delete_rows("acme", dry_run=True) == exported
    assert checksums(world.database, "acme") == before
    assert manager.delete_rows("acme") == exported
    assert manager.delete_rows("acme").total == 0
    assert checksums(world.database, "globex")["lines"][0] == 70

    there = manager_of(other)
    assert there.import_rows("acme", path) == exported
    assert checksums(other.database, "acme") == before
    told.clear()
    there.delete_rows("acme")
    there.import_rows("acme", path, as_tenant="initech", progress=told.append)
    assert checksums(other.database, "initech") == before
    assert RowsProgress("lines", 70, 70) in told
    # the sequences are behind the highest keys
    with there.begin("initech") as connection:
        connection.exec_driver_sql('INSERT INTO lines ("order") VALUES (1)')
    assert other.database.rows("SELECT max(id) FROM lines") == [(71,)]
    assert other.database.rows("SELECT nextval('order_numbers')") == [(41,)]


def test_200_000_rows(plain: World, tmp_path: Path) -> None:
    other = other_database(plain)
    fill(plain.database, "acme", 1000)
    plain.create("acme", "initech")
    manager, there = manager_of(plain), manager_of(other)
    before = checksums(plain.database, "acme")
    manager.export_rows("acme", tmp_path / "acme.rows")
    assert manager.delete_rows("acme").total == 200_003
    there.import_rows("acme", tmp_path / "acme.rows", as_tenant="initech")
    assert checksums(other.database, "initech") == before


@on_each_driver
def test_a_tenant_is_renamed(world: World) -> None:
    fill(world.database, "acme")
    fill(world.database, "globex")
    world.create("acme", "globex")
    if world.isolation == "role":
        world.database.execute("COMMENT ON ROLE tenant_acme IS 'since 1949'")
    manager = plain_manager_of(world)
    before, others = (checksums(world.database, t) for t in ("acme", "globex"))
    told: list[RowsProgress] = []

    counts = manager.rename_tenant("acme", "initech", progress=told.append)
    assert counts == {table: before[table][0] for table in TABLES}
    assert counts.left_out == ("currencies",)
    assert told[0] == RowsProgress("regions", 40, 40)
    assert checksums(world.database, "initech") == before
    assert checksums(world.database, "globex") == others
    assert checksums(world.database, "acme")["orders"][0] == 0
    assert manager.delete_rows("initech", dry_run=True) == counts
    if world.isolation == "role":
        with pytest.raises(TenantNotFound):
            manager.delete_rows("acme")
        assert world.database.rows(
            "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles"
            " WHERE rolname = 'tenant_initech'"
        ) == [("since 1949",)]

    # another tenant's name is not free, not even without its role
    if world.isolation == "role":
        with pytest.raises(TenantAlreadyExists, match="tenant 'globex' exists"):
            manager.rename_tenant("initech", "globex")
        manager.delete_tenant("globex")
    with pytest.raises(RowsError, match="has rows of tenant 'globex'"):
        manager.rename_tenant("initech", "globex")
    assert checksums(world.database, "globex") == others
    manager.rename_tenant("initech", "acme")
    assert checksums(world.database, "acme") == before


def test_a_renaming_is_refused_as_a_whole(plain: World) -> None:
    fill(plain.database, "acme")
    plain.create("acme")
    before = checksums(plain.database, "acme")
    manager = plain_manager_of(plain)
    with pytest.raises(RowsError, match="has this name already"):
        manager.rename_tenant("acme", "acme")
    with pytest.raises(TenantNotFound, match="nothing to rename"):
        manager.rename_tenant("nobody", "initech")
    plain.database.execute("CREATE ROLE tenant_initech")
    with pytest.raises(TenantAlreadyExists, match="its role 'tenant_initech' does"):
        manager.rename_tenant("acme", "initech")
    plain.database.execute("DROP ROLE tenant_initech; CREATE ROLE tenant_own")
    # who may change all rows, and not this role
    plain.database.execute(
        "CREATE ROLE other_owner LOGIN; GRANT tenants_admin TO other_owner"
    )
    other = manager_of(plain, admin_engine=plain.engine("other_owner"))
    with pytest.raises(ScopeError, match="may not rename role 'tenant_acme'"):
        other.rename_tenant("acme", "initech")
    assert checksums(plain.database, "acme") == before


def test_a_declared_tenant_is_renamed_in_the_models_first(plain: World) -> None:
    plain.create("acme")
    for declared, allowed in (
        (["acme"], False),
        (["acme", "initech"], False),
        ([], False),
        (["initech"], True),
    ):
        manager = plain_manager_of(plain, tenancy=Tenancy(tenants=declared))
        if allowed:
            manager.rename_tenant("acme", "initech")
        else:
            with pytest.raises(RowsError, match="is the complete list of tenants"):
                manager.rename_tenant("acme", "initech")


@on_each_driver
def test_a_tenant_is_deleted_with_its_rows(world: World) -> None:
    fill(world.database, "acme")
    fill(world.database, "globex")
    world.create("acme")
    others = checksums(world.database, "globex")
    manager = plain_manager_of(world)
    if world.isolation == "role":
        # what keeps the role keeps the rows
        world.database.execute("GRANT SELECT ON currencies TO tenant_acme")
        with pytest.raises(ScopeError, match="owns objects or holds privileges"):
            manager.delete_tenant("acme", rows=True)
        assert checksums(world.database, "acme")["orders"][0] == 40
        world.database.execute("REVOKE SELECT ON currencies FROM tenant_acme")
    assert manager.delete_tenant("acme", rows=True)["orders"] == 40
    assert checksums(world.database, "acme")["orders"][0] == 0
    assert checksums(world.database, "globex") == others
    if world.isolation == "role":
        with pytest.raises(TenantNotFound, match="its rows were left alone"):
            manager.delete_tenant("globex", rows=True)
        world.create("globex")
        assert manager.delete_tenant("globex") == {}
    assert checksums(world.database, "globex") == others


# How a login may want its values printed and read.
HABITS = {
    "array_nulls": "off",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "datestyle": "German",
    "extra_float_digits": "-5",
    "intervalstyle": "sql_standard",
    "standard_conforming_strings": "off",
    "timezone": "Asia/Kolkata",
    "xmloption": "document",
}


def test_what_a_login_is_used_to_changes_no_value(plain: World, tmp_path: Path) -> None:
    fill(plain.database, "acme")
    plain.create("acme")
    before = checksums(plain.database, "acme")
    for name, value in HABITS.items():
        plain.database.execute(f"ALTER ROLE app SET {name} = '{value}'")
    manager, path = manager_of(plain), tmp_path / "acme.rows"
    manager.export_rows("acme", path)
    manager.delete_rows("acme")
    manager.import_rows("acme", path)
    assert checksums(plain.database, "acme") == before


def test_only_integers_set_a_sequence(plain: World, tmp_path: Path) -> None:
    fill(plain.database, "acme")
    plain.create("acme")
    plain.database.execute(
        "CREATE DOMAIN positive AS integer; CREATE DOMAIN number AS positive;"
        "CREATE SEQUENCE texts; CREATE SEQUENCE numbers;"
        "GRANT USAGE ON SEQUENCE texts, numbers TO tenants;"
        "ALTER TABLE payments ADD code text DEFAULT 'no ' || nextval('texts'),"
        " ADD number number DEFAULT nextval('numbers')",
        login="owner",
    )
    manager, path = manager_of(plain), tmp_path / "acme.rows"
    manager.export_rows("acme", path)
    table = next(t for t in read_file(path).tables if t.name == "payments")
    assert table.highest == {"number": 20}
    manager.delete_rows("acme")
    manager.import_rows("acme", path)


def test_an_export_needs_a_transaction_of_its_own(plain: World, tmp_path: Path) -> None:
    plain.create("acme")
    with plain.engine().connect() as connection, connection.begin():
        bound = manager_of(plain).bound_to(connection)
        with pytest.raises(RowsError, match=r"not that of bound_to\(\)"):
            bound.export_rows("acme", tmp_path / "acme.rows")
    assert list(tmp_path.iterdir()) == []


def test_a_limit_for_requests_is_none_for_all_rows(
    plain: World, tmp_path: Path
) -> None:
    fill(plain.database, "acme")
    plain.create("acme")
    path, settings = tmp_path / "acme.rows", {"statement_timeout": "5s"}
    plain.database.execute(
        "CREATE FUNCTION timeless() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " ASSERT current_setting('statement_timeout') = '0'"
        " AND coalesce(current_setting('transaction_timeout', true), '0') = '0';"
        " RETURN NULL; END $$;"
        "CREATE TRIGGER timeless AFTER INSERT OR UPDATE OR DELETE ON payments"
        " FOR EACH ROW EXECUTE FUNCTION timeless()"
    )
    if plain.database.server.version >= 17:
        settings["transaction_timeout"] = "5s"
    manager = manager_of(plain, settings=settings)
    manager.export_rows("acme", path)
    manager.delete_rows("acme")
    manager.import_rows("acme", path)
    manager = plain_manager_of(plain, settings=settings)
    manager.rename_tenant("acme", "initech")
    assert manager.delete_tenant("initech", rows=True)["payments"] == 20


def test_a_file_says_what_it_holds(plain: World, tmp_path: Path) -> None:
    fill(plain.database, "acme")
    plain.create("acme")
    manager, path = manager_of(plain), tmp_path / "acme.rows"
    manager.export_rows("acme", path)
    contents = read_file(path)
    assert (contents.tenant, contents.left_out) == ("acme", ("currencies",))
    assert contents.server_version // 10000 == plain.database.server.version
    lines = next(table for table in contents.tables if table.name == "lines")
    assert (lines.rows, lines.highest, lines.tenant_column) == (
        70,
        {"id": 70},
        "tenant",
    )
    assert lines.columns[0] == ("tenant", "text")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        manager.export_rows("acme", path)
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        manager.export_rows("acme", tmp_path / "no" / "acme.rows")
    assert manager.export_rows("acme", path, overwrite=True)["lines"] == 70
    assert list(tmp_path.iterdir()) == [path]
    nowhere = tmp_path / "link"
    device = tmp_path / "device"
    os.mkfifo(device)
    nowhere.symlink_to(tmp_path / "nowhere")
    for other in (tmp_path, nowhere, device):
        with pytest.raises(FileExistsError, match="is no file"):
            manager.export_rows("acme", other, overwrite=True)
    assert nowhere.is_symlink()


def test_the_models_are_needed(plain: World, tmp_path: Path) -> None:
    manager = plain.manager()
    path = tmp_path / "acme.rows"
    for operation in (
        lambda: manager.export_rows("acme", path),
        lambda: manager.import_rows("acme", path),
        lambda: manager.delete_rows("acme"),
        lambda: manager.delete_tenant("acme", rows=True),
        lambda: manager.rename_tenant("acme", "initech"),
    ):
        with pytest.raises(
            TypeError, match=r"needs the models.*metadata=Base\.metadata"
        ):
            operation()
    with pytest.raises(TypeError, match="progress is a function or None"):
        manager_of(plain).delete_rows("acme", progress=True)


class Numbers(DeclarativeBase):
    """The tenant is an integer."""


class Keys(DeclarativeBase):
    """The tenant is a UUID."""


class Things:
    """A table of both."""

    __tablename__ = "things"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)


@with_rls
class Number(Things, Numbers):
    tenant: Mapped[int] = tenant_column(Integer)


@with_rls
class Key(Things, Keys):
    tenant: Mapped[uuid.UUID] = tenant_column(Uuid)


@pytest.mark.parametrize(
    ("base", "old", "new", "other"),
    [(Numbers, 7, 8, "09"), (Keys, uuid.UUID(int=7), uuid.UUID(int=8), "{%s}")],
)
@pytest.mark.parametrize("isolation", ["role", "shared"])
def test_tenants_that_are_no_text(
    database: Database,
    tmp_path: Path,
    isolation: str,
    base: type[DeclarativeBase],
    old: Any,
    new: Any,
    other: str,
) -> None:
    migrate(database, base.metadata)
    grant_logins(database)
    world = World(database, "psycopg", isolation)
    manager = world.manager(metadata=base.metadata)
    owner = world.manager(metadata=base.metadata, admin_engine=world.engine("owner"))
    manager.create_tenant(old)
    manager.create_tenant(new)

    def test() -> None:
        with manager.begin(old) as connection:
            connection.exec_driver_sql("INSERT INTO things SELECT")
        path = tmp_path / "things.rows"
        manager.export_rows(old, path)
        assert read_file(path).tenant == str(old)
        assert manager.delete_rows(old) == {"things": 1}
        assert owner.import_rows(old, path, as_tenant=new) == {"things": 1}
        assert manager.delete_tenant(old, rows=True) == {"things": 0}
        with pytest.raises(InvalidTenant, match="another spelling"):
            manager.rename_tenant(new, other.replace("%s", str(old)))
        assert manager.rename_tenant(new, old) == {"things": 1}
        assert database.rows("SELECT tenant FROM things") == [(old,)]

    world.run(test)
