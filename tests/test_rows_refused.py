"""Rows of one tenant: what is refused, what a file can do, and interruptions."""

from __future__ import annotations

import asyncio
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from rows_world import (  # noqa: F401
    Base,
    checksums,
    fill,
    manager_of,
    other_database,
    plain_fixture,
    plain_manager_of,
    role_world_fixture,
    world_fixture,
)
from sqlalchemy_tenants import ScopeError, TenantNotFound
from sqlalchemy_tenants.aio.managers import PostgresManager as AsyncManager
from sqlalchemy_tenants.rows import RowsError, RowsProgress, read_file
from tenancy import World, driver_fixture, isolation_fixture, on_each_driver  # noqa: F401

# --- files ---------------------------------------------------------------------------


class Forgery:
    """A file of rows, taken apart and written again with sizes and checksums that fit
    what was put into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}
        self.manifest = json.loads(self.members.pop("manifest.json"))

    def table(self, name: str) -> dict[str, Any]:
        return next(t for t in self.manifest["tables"] if t["name"] == name)

    def replace(self, name: str, old: str, new: str) -> None:
        member = self._member(name)
        text = self.members[member].decode()
        assert old in text
        self.members[member] = text.replace(old, new).encode()

    def _member(self, name: str) -> str:
        return f"tables/{self.manifest['tables'].index(self.table(name)) + 1}.copy"

    def write(self, *, sound: bool = True, **kw: Any) -> Path:
        for number, table in enumerate(self.manifest["tables"], 1):
            data = self.members.get(f"tables/{number}.copy", b"")
            if sound:
                table["rows"] = data.count(b"\n")
                table["size"] = len(data)
                table["sha256"] = hashlib.sha256(data).hexdigest()
        path = self.path.with_name("forged.rows")
        with zipfile.ZipFile(path, "w", **kw) as archive:
            for name, data in self.members.items():
                archive.writestr(name, data)
            archive.writestr("manifest.json", json.dumps(self.manifest))
        return path


@on_each_driver
def test_a_file_that_lies_about_its_tenant_is_refused_by_the_policies(
    world: World, tmp_path: Path
) -> None:
    fill(world.database, "acme")
    world.create("acme", "globex")
    manager = manager_of(world)
    path = tmp_path / "acme.rows"
    manager.export_rows("acme", path)
    manager.delete_rows("acme")
    with pytest.raises(RowsError, match="holds rows of tenant 'acme'"):
        manager.import_rows("globex", path)
    forgery = Forgery(path)
    forgery.manifest["tenant"] = "globex"
    with pytest.raises(RowsError, match="row-level security policy") as caught:
        manager.import_rows("globex", forgery.write())
    assert isinstance(caught.value.__cause__, DBAPIError)
    for tenant in ("acme", "globex"):
        assert {count for count, _ in checksums(world.database, tenant).values()} == {0}


Change = Callable[[Forgery], object]


def rename_table(name: str) -> Change:
    return lambda forgery: forgery.table("payments").update(name=name)


def rename_column(name: str, type_: str = "double precision") -> Change:
    def change(forgery: Forgery) -> None:
        forgery.table("payments")["columns"][2] = [name, type_]

    return change


def set_value(key: str, value: Any, table: str | None = None) -> Change:
    def change(forgery: Forgery) -> None:
        (forgery.table(table) if table else forgery.manifest)[key] = value

    return change


def add_member(name: str) -> Change:
    return lambda forgery: forgery.members.update({name: b"x"})


def replace(table: str, old: str, new: str) -> Change:
    return lambda forgery: forgery.replace(table, old, new)


FORGERIES: list[tuple[Change, str]] = [
    (rename_table("currencies"), "not among the models' tables"),
    (rename_table("tenancy.secrets"), "not among the models' tables"),
    (rename_table("lines"), "a table comes twice"),
    (rename_column("none"), "it does not have"),
    (rename_column('amount") SELECT 1; --'), "it does not have"),
    (rename_column("amount", "text"), "is double precision there"),
    (rename_column("id", "integer"), "a column comes twice"),
    (set_value("tenant_column", "id", "payments"), "is 'account', and in"),
    (set_value("columns", [["account", "text"]], "payments"), "column 'id'.*needs"),
    (set_value("columns", ["account"], "payments"), "not a name and a type"),
    (set_value("format", "other"), "its format is another one"),
    (set_value("version", 2), "has version 2.*reads version 1"),
    (set_value("version", True), "has no 'version'"),
    (set_value("tables", {}), "has no 'tables'"),
    (set_value("tables", []), "other members than the manifest names"),
    (set_value("created", "yesterday"), "no sound file of rows: Invalid isoformat"),
    (add_member("../../etc/passwd"), "other members than the manifest names"),
    (add_member("/tables/7.copy"), "other members than the manifest names"),
    (replace("payments", "acme\t1\t", "acme\t1\t1\t"), "has not the columns"),
    (replace("payments", "acme\t1\t", "acme\t"), "has not the columns"),
    (replace("payments", "acme\t2\t", "acme\t1\t"), "payments'.*unique"),
    (replace("payments", "acme\t2\t", "acme\t41\t"), "payments'.*foreign key"),
    (replace("payments", "acme\t2\t", "acme\ttwo\t"), "invalid input syntax"),
    (replace("payments", "acme\t2\t", "acme\t\\N\t"), "payments'.*null value"),
    (replace("payments", "acme\t2\t", "acme\t2\0\t"), "import of tenant|NUL"),
    (replace("payments", "acme\t2\t", "\\N\t2\t"), "null value|row-level security"),
    (replace("events", "acme\t2\t\t\t", "acme\t2\t\tlonger"), "too long|has not the"),
    (set_value("highest", {"id": 3}, "lines"), "higher value than the manifest says"),
    (set_value("highest", {}, "lines"), "higher value than the manifest says"),
    (set_value("highest", {"id": 1 << 30}, "lines"), "beyond half of the values"),
    (replace("lines", "acme\t1\t", "acme\t0x1\t"), "the file has another value"),
    (set_value("highest", {"id": "x"}, "lines"), "has no 'id'"),
]


def test_no_file_writes_what_its_manifest_does_not_say(
    plain: World, tmp_path: Path
) -> None:
    plain.database.execute("CREATE TABLE tenancy.secrets (id integer)", login="owner")
    fill(plain.database, "acme")
    plain.create("acme")
    manager, path = manager_of(plain), tmp_path / "acme.rows"
    manager.export_rows("acme", path)
    manager.delete_rows("acme")
    for change, problem in FORGERIES:
        forgery = Forgery(path)
        change(forgery)
        with pytest.raises(RowsError, match=f"(?s){problem}"):
            manager.import_rows("acme", forgery.write())
    counts = checksums(plain.database, "acme").values()
    assert {count for count, _ in counts} == {0}
    manager.import_rows("acme", path)


def test_a_damaged_file_is_refused_before_the_first_row(
    plain: World, tmp_path: Path
) -> None:
    fill(plain.database, "acme")
    plain.create("acme")
    manager, path = manager_of(plain), tmp_path / "acme.rows"
    manager.export_rows("acme", path)
    whole = path.read_bytes()
    told: list[RowsProgress] = []

    def refused(problem: str, file: Path = path) -> None:
        with pytest.raises(RowsError, match=problem):
            manager.import_rows("acme", file, progress=told.append)

    for data in (b"", b"no zip file", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(data)
        refused("no sound file of rows")
        with pytest.raises(RowsError, match="no sound file of rows"):
            read_file(path)
    path.write_bytes(whole.replace(b"\x00", b"\x01", 40))
    refused("no sound file of rows")
    path.write_bytes(whole)
    forgery = Forgery(path)
    forgery.replace("lines", "line 7", "LINE 7")
    refused("damaged, or was changed", forgery.write(sound=False))
    forgery.table("lines")["rows"] = 69
    forgery.replace("lines", "LINE 7", "line 7")
    refused("damaged, or was changed", forgery.write(sound=False))
    # a decompression bomb: what the manifest does not name is not even read
    forgery = Forgery(path)
    forgery.replace("lines", "line 7", "0" * 10_000_000)
    bomb = forgery.write(sound=False, compression=zipfile.ZIP_DEFLATED)
    refused("has another size than the manifest says", bomb)
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        bad = Forgery(path).write(compression=compression)
        refused("is encrypted or unknown", bad)
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("tables/1.copy", b"")
    refused("other members than the manifest names")
    assert told == []


def test_rows_that_are_there_are_named(plain: World, tmp_path: Path) -> None:
    fill(plain.database, "acme")
    plain.create("acme", "initech")
    manager, path = manager_of(plain), tmp_path / "acme.rows"
    manager.export_rows("acme", path)
    before = checksums(plain.database, "acme")
    with pytest.raises(RowsError, match=r"(?s)table 'regions'.*unique.*nothing was"):
        manager.import_rows("acme", path)
    # numbers that do not carry the tenant
    with pytest.raises(RowsError, match=r"(?s)table 'lines'.*unique.*nothing was"):
        manager.import_rows("acme", path, as_tenant="initech")
    with pytest.raises(TenantNotFound):
        manager.import_rows("acme", path, as_tenant="nobody")
    assert checksums(plain.database, "acme") == before
    assert checksums(plain.database, "initech")["regions"][0] == 0


# --- databases -----------------------------------------------------------------------

RENAMED = "ALTER TABLE lines_0 RENAME TO lines"

# what is done to a table, what undoes it, and what is said
DRIFT = [
    (
        "ALTER TABLE lines DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE lines ENABLE ROW LEVEL SECURITY",
        "'lines' does not confine",
    ),
    (
        "ALTER POLICY tenant_floor ON lines RENAME TO floor_0;"
        "ALTER POLICY tenants_admin ON lines RENAME TO admin_0",
        "ALTER POLICY floor_0 ON lines RENAME TO tenant_floor;"
        "ALTER POLICY admin_0 ON lines RENAME TO tenants_admin",
        "'lines' does not confine",
    ),
    (
        "ALTER POLICY tenant_floor ON lines USING (id > 9);"
        "ALTER POLICY tenants_admin ON lines USING (id > 9)",
        "ALTER POLICY tenant_floor ON lines USING (true) WITH CHECK (true);"
        "ALTER POLICY tenants_admin ON lines USING (true) WITH CHECK (true)",
        "'lines' does not confine",
    ),
    (
        "ALTER TABLE lines RENAME TO lines_0",
        RENAMED,
        "'lines' of the models does not exist",
    ),
    (
        "ALTER TABLE lines RENAME TO lines_0; CREATE VIEW lines AS SELECT 1",
        "DROP VIEW lines; " + RENAMED,
        "'lines' is a view",
    ),
    (
        "CREATE TABLE heirs () INHERITS (lines)",
        "DROP TABLE heirs",
        r"\(INHERITS\) from table 'lines'",
    ),
    (
        "REVOKE ALL ON lines FROM tenants, tenants_admin, tenants_shared",
        "",
        "on table 'lines'.* is not granted",
    ),
]
HIDING = "CREATE POLICY mine ON lines AS RESTRICTIVE FOR {} TO {} USING (id > 9)"


def test_a_database_that_does_not_confine_is_refused(
    plain: World, tmp_path: Path
) -> None:
    fill(plain.database, "acme")
    fill(plain.database, "globex")
    plain.create("acme")
    manager, path = plain_manager_of(plain), tmp_path / "acme.rows"
    manager.export_rows("acme", path)
    before = checksums(plain.database, "globex")
    reading: dict[str, Callable[[], object]] = {
        "export": lambda: manager.export_rows("acme", tmp_path / "new.rows"),
        "count": lambda: manager.delete_rows("acme", dry_run=True),
        "delete": lambda: manager.delete_rows("acme"),
        "delete tenant": lambda: manager.delete_tenant("acme", rows=True),
        "rename": lambda: manager.rename_tenant("acme", "initech"),
    }
    operations = [*reading.values(), lambda: manager.import_rows("acme", path)]
    plain.database.execute("DROP POLICY tenant_isolation ON lines")
    for what in ("export", "count", "delete"):
        with pytest.raises(RowsError, match="one of its policies is missing"):
            reading[what]()
    plain.database.execute(
        "CREATE POLICY tenant_isolation ON lines TO tenants"
        " USING (tenant = (SELECT tenancy.current_tenant()))"
    )
    plain.database.execute(HIDING.format("UPDATE", "PUBLIC"))
    with pytest.raises(RowsError, match=r"policies mine .* may hide rows"):
        reading["rename"]()
    plain.database.execute("DROP POLICY mine ON lines")
    for policy in ("ALL", "SELECT", "DELETE"):
        plain.database.execute(HIDING.format(policy, "PUBLIC"))
        for operation in reading.values():
            with pytest.raises(RowsError, match=r"policies mine .* may hide rows"):
                operation()
        plain.database.execute("DROP POLICY mine ON lines")
    plain.database.execute(HIDING.format("ALL", "tenants"))
    for what in ("export", "count", "delete"):
        with pytest.raises(RowsError, match=r"policies mine .* may hide rows"):
            reading[what]()
    plain.database.execute("DROP POLICY mine ON lines")
    for statement, undo, problem in DRIFT:
        plain.database.execute(statement)
        for operation in operations:
            with pytest.raises(RowsError, match=problem):
                operation()
        if undo:
            plain.database.execute(undo)
    assert checksums(plain.database, "globex") == before
    assert checksums(plain.database, "acme")["orders"][0] == 40
    assert list(tmp_path.iterdir()) == [path]


def test_the_admin_role_does_it_for_a_tenant_that_cannot(
    plain: World, tmp_path: Path
) -> None:
    for tenant in ("acme", "globex"):
        fill(plain.database, tenant)
        plain.create(tenant)
    before, others = (checksums(plain.database, t) for t in ("acme", "globex"))
    path = tmp_path / "acme.rows"
    manager = plain_manager_of(plain)
    plain.database.execute(HIDING.format("ALL", "tenants"))
    plain.database.execute("REVOKE tenant_acme FROM app", login="manager")
    with pytest.raises(ScopeError, match="may not act as 'tenant_acme'"):
        manager.export_rows("acme", path)
    counts = manager.export_rows("acme", path, as_admin=True)
    assert counts["lines"] == 70
    assert manager.delete_rows("acme", dry_run=True, as_admin=True) == counts
    assert manager.delete_rows("acme", as_admin=True) == counts
    assert checksums(plain.database, "globex") == others
    assert manager_of(plain).import_rows("acme", path, as_admin=True) == counts
    assert checksums(plain.database, "acme") == before
    manager.delete_tenant("acme", rows=True)
    for operation in (
        lambda: manager.import_rows("acme", path, as_admin=True),
        lambda: manager.export_rows("acme", tmp_path / "none", as_admin=True),
        lambda: manager.delete_rows("acme", as_admin=True),
    ):
        with pytest.raises(TenantNotFound, match="its rows were left alone"):
            operation()
    assert list(tmp_path.iterdir()) == [path]
    # the narrowed admin role writes no other tenant's rows either
    forgery = Forgery(path)
    forgery.manifest["tenant"] = "globex"
    with pytest.raises(RowsError, match="row-level security policy"):
        manager_of(plain).import_rows("globex", forgery.write(), as_admin=True)
    assert checksums(plain.database, "globex") == others


def test_a_policy_that_opens_a_table_takes_no_row_of_another_tenant(
    plain: World, tmp_path: Path
) -> None:
    """The condition of the policies stands in the statements, too."""
    fill(plain.database, "acme")
    fill(plain.database, "globex")
    plain.create("acme")
    manager, path = plain_manager_of(plain), tmp_path / "acme.rows"
    before = checksums(plain.database, "globex")
    for table in ("lines", "events"):
        plain.database.execute(
            f"ALTER POLICY tenant_floor ON {table} USING (true) WITH CHECK (true);"
            f"ALTER POLICY tenants_admin ON {table} USING (true) WITH CHECK (true);"
            f"ALTER POLICY tenant_isolation ON {table} USING (true) WITH CHECK (true)"
        )
    assert manager.export_rows("acme", path)["lines"] == 70
    assert manager.delete_rows("acme", dry_run=True)["lines"] == 70
    assert manager.delete_rows("acme")["lines"] == 70
    assert checksums(plain.database, "globex") == before
    fill(plain.database, "acme")
    assert manager.rename_tenant("acme", "initech")["lines"] == 70
    assert manager.delete_tenant("initech", rows=True)["lines"] == 70
    assert checksums(plain.database, "globex") == before


def test_what_references_itself_needs_temporary_or_deferral(
    plain: World, tmp_path: Path
) -> None:
    fill(plain.database, "acme")
    plain.create("acme")
    manager, path = manager_of(plain), tmp_path / "acme.rows"
    before = checksums(plain.database, "acme")
    manager.export_rows("acme", path)
    manager.delete_rows("acme")
    plain.database.execute("REVOKE TEMPORARY ON DATABASE test FROM PUBLIC")
    with pytest.raises(RowsError, match=r"regions_tenant_parent_fkey.*TEMPORARY"):
        manager.import_rows("acme", path)
    deferrable = "ALTER TABLE {} ALTER CONSTRAINT {} DEFERRABLE"
    plain.database.execute(deferrable.format("regions", "regions_tenant_parent_fkey"))
    with pytest.raises(RowsError, match=r"best_order.*DEFERRABLE"):
        manager.import_rows("acme", path)
    plain.database.execute(deferrable.format("customers", "best_order"))
    plain.database.execute(deferrable.format("orders", "orders_tenant_customer_fkey"))
    manager.import_rows("acme", path)
    assert checksums(plain.database, "acme") == before


def test_a_trigger_that_leaves_out_rows_is_noticed(
    plain: World, tmp_path: Path
) -> None:
    fill(plain.database, "acme")
    plain.create("acme")
    manager, path = manager_of(plain), tmp_path / "acme.rows"
    manager.export_rows("acme", path)
    manager.delete_rows("acme")
    plain.database.execute(
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN IF NEW.id = 7 THEN RETURN NULL; END IF; RETURN NEW; END'"
    )
    for table, problem in (("payments", "19 of 20"), ("regions", "39 of 40|foreign")):
        plain.database.execute(
            f"CREATE TRIGGER skip BEFORE INSERT ON {table} FOR EACH ROW"
            f" EXECUTE FUNCTION skip()"
        )
        with pytest.raises(RowsError, match=problem):
            manager.import_rows("acme", path)
        plain.database.execute(f"DROP TRIGGER skip ON {table}")
    assert checksums(plain.database, "acme")["orders"][0] == 0


TRIGGER = """
CREATE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {} END';
CREATE TRIGGER changed {} ON payments FOR EACH ROW EXECUTE FUNCTION changed();
"""
KEEPING = [
    "UPDATE payments SET amount = -1 WHERE account = OLD.account AND id = OLD.id;"
    "RETURN NULL;",
    # some of them
    "IF OLD.id = 7 THEN RETURN NULL; END IF; RETURN OLD;",
]


def test_a_trigger_that_keeps_rows_is_noticed(plain: World) -> None:
    fill(plain.database, "acme")
    plain.create("acme")
    manager = plain_manager_of(plain)
    before = checksums(plain.database, "acme")
    plain.database.execute(
        "ALTER TABLE payments DROP CONSTRAINT payments_account_id_fkey"
    )
    for body in KEEPING:
        plain.database.execute(TRIGGER.format(body, "BEFORE DELETE"))
        for operation in (
            lambda: manager.delete_rows("acme"),
            lambda: manager.delete_rows("acme", as_admin=True),
            lambda: manager.delete_tenant("acme", rows=True),
        ):
            with pytest.raises(RowsError, match=r"are left in (.*, )?payments: a trig"):
                operation()
        plain.database.execute("DROP FUNCTION changed() CASCADE")
    plain.database.execute(
        TRIGGER.format("NEW.account := OLD.account; RETURN NEW;", "BEFORE UPDATE")
    )
    with pytest.raises(RowsError, match="are left in payments: a trigger keeps"):
        manager.rename_tenant("acme", "initech")
    assert checksums(plain.database, "acme") == before


def test_rows_that_a_trigger_writes_meanwhile_go_as_well(plain: World) -> None:
    """As into a table of what has happened."""
    fill(plain.database, "acme")
    fill(plain.database, "globex")
    plain.create("acme")
    others = checksums(plain.database, "globex")
    manager = plain_manager_of(plain)
    log = (
        "INSERT INTO regions VALUES (OLD.account, 100 + nextval(''log'')); RETURN OLD;"
    )
    plain.database.execute(
        "CREATE SEQUENCE log; GRANT USAGE ON SEQUENCE log TO tenants, tenants_admin;"
        + TRIGGER.format(log, "AFTER UPDATE OR DELETE")
    )
    assert manager.rename_tenant("acme", "initech")["regions"] == 60
    assert checksums(plain.database, "acme")["regions"][0] == 0
    assert manager.delete_rows("initech")["regions"] == 80
    assert checksums(plain.database, "initech")["regions"][0] == 0
    assert checksums(plain.database, "globex") == others


def test_a_sequence_that_nobody_may_set_is_named(plain: World, tmp_path: Path) -> None:
    other = other_database(plain)
    fill(plain.database, "acme")
    plain.create("acme")
    path = tmp_path / "acme.rows"
    manager_of(plain).export_rows("acme", path)
    with pytest.raises(RowsError, match=r"setval\('public.lines_id_seq', 70\)"):
        plain_manager_of(other).import_rows("acme", path)
    assert checksums(other.database, "acme")["regions"][0] == 0
    # far ahead: set at once, by the owner
    other.database.execute("SELECT setval('order_numbers', 5)")
    forgery = Forgery(path)
    forgery.table("lines")["highest"]["id"] = 900_000_000
    manager_of(other).import_rows("acme", forgery.write())
    assert other.database.rows(
        "SELECT nextval('lines_id_seq'), nextval('order_numbers')"
    ) == [(900_000_001, 41)]


# --- interruptions -------------------------------------------------------------------


class Interrupted(BaseException):
    """As KeyboardInterrupt, but an event loop lets it pass."""


@on_each_driver
def test_an_interruption_leaves_nothing_half(role_world: World, tmp_path: Path) -> None:
    world = role_world
    fill(world.database, "acme")
    world.database.execute(  # some packets of the network, and pieces of a file
        'INSERT INTO lines (tenant, "order", body)'
        " SELECT 'acme', 1, repeat('x', 1000) FROM generate_series(1, 2000)"
    )
    world.create("acme")
    before = checksums(world.database, "acme")
    manager, path = manager_of(world), tmp_path / "acme.rows"

    def interrupt(progress: RowsProgress) -> None:
        if progress.table == "lines":
            raise Interrupted

    def kill(progress: RowsProgress) -> None:
        if progress.table == "lines":
            world.database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename IN ('app', 'app_shared')"
            )

    broken = (Interrupted, RowsError, DBAPIError)
    for stop in (interrupt, kill):
        with pytest.raises(broken):
            manager.export_rows("acme", path, progress=stop)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(broken):
            manager.delete_rows("acme", progress=stop)
        assert checksums(world.database, "acme") == before
    manager.export_rows("acme", path)
    manager.delete_rows("acme")
    for stop in (interrupt, kill):
        with pytest.raises(broken):
            manager.import_rows("acme", path, progress=stop)
        counts = checksums(world.database, "acme").values()
        assert {count for count, _ in counts} == {0}
    manager.import_rows("acme", path)
    assert checksums(world.database, "acme") == before


@pytest.mark.parametrize("name", ["psycopg", "asyncpg"])
def test_a_cancelled_task_leaves_nothing_half(
    plain: World, tmp_path: Path, name: str
) -> None:
    fill(plain.database, "acme")
    plain.create("acme")
    before = checksums(plain.database, "acme")
    path = tmp_path / "acme.rows"

    async def run() -> None:
        engine, admin = (
            create_async_engine(plain.database.url(login, name))
            for login in ("app", "owner")
        )
        manager = AsyncManager.from_engine(
            engine, "public", admin_engine=admin, metadata=Base.metadata
        )

        def cancel(progress: RowsProgress) -> None:
            if progress.table == "customers":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()

        async def cancelled(operation: Any) -> None:
            task = asyncio.create_task(operation)
            with pytest.raises(asyncio.CancelledError):
                await task

        await cancelled(manager.export_rows("acme", path, progress=cancel))
        assert list(tmp_path.iterdir()) == []
        await manager.export_rows("acme", path)
        assert (await manager.delete_rows("acme", dry_run=True))["orders"] == 40
        await manager.delete_rows("acme")
        await cancelled(manager.import_rows("acme", path, progress=cancel))
        assert checksums(plain.database, "acme")["customers"][0] == 0
        await manager.import_rows("acme", path)
        assert checksums(plain.database, "acme") == before
        for each in (engine, admin):
            await each.dispose()

        admin = create_async_engine(plain.database.url("manager", name))
        manager = AsyncManager.from_engine(
            engine, "public", admin_engine=admin, metadata=Base.metadata
        )
        assert (await manager.rename_tenant("acme", "initech"))["orders"] == 40
        assert (await manager.delete_tenant("initech", rows=True))["orders"] == 40
        for each in (engine, admin):
            await each.dispose()

    asyncio.run(run())
