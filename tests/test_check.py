"""Each fault that makes the isolation void is found by the application's login."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    create_engine,
    event,
)

from servers import Database
from sqlalchemy_tenants import Finding, ScopeError, shared_table, with_rls
from sqlalchemy_tenants.managers import PostgresManager

METADATA = MetaData()
for name, type_ in {
    "texts": Text,
    "varchars": String(20),
    "ints": Integer,
    "uuids": Uuid,
}.items():
    with_rls(
        Table(
            name,
            METADATA,
            Column("id", Integer, primary_key=True),
            Column("tenant", type_, nullable=False),
        )
    )
shared_table(Table("countries", METADATA, Column("code", Text, primary_key=True)))


@pytest.fixture
def migrated(database: Database) -> Database:
    engine = create_engine(database.owner_url)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection)
        script = produce_migrations(context, METADATA)
        operations = Operations(context)

        def invoke(container: Any) -> None:
            for op in container.ops:
                if hasattr(op, "ops"):
                    invoke(op)
                else:
                    operations.invoke(op)

        invoke(script.upgrade_ops)
    engine.dispose()
    return database


@pytest.fixture
def check(
    migrated: Database, make_engine: Callable[..., Engine]
) -> Callable[..., list[Finding]]:
    def check(
        login: str = "app",
        metadata: MetaData | None = METADATA,
        schema: str = "public",
        **kw: Any,
    ) -> list[Finding]:
        manager = PostgresManager.from_engine(
            make_engine(migrated.url(login)), schema, metadata=metadata, **kw
        )
        return manager.check()

    return check


@pytest.mark.parametrize("metadata", [METADATA, None], ids=["models", "catalog"])
@pytest.mark.parametrize("isolation", ["role", "shared"])
def test_a_sound_database_has_no_findings(
    check: Any, migrated: Database, metadata: MetaData | None, isolation: str
) -> None:
    login = "app" if isolation == "role" else "app_shared"
    migrated.execute(f"GRANT tenants_shared TO {login}")
    if isolation == "role":
        migrated.execute(f"REVOKE tenants_shared FROM {login}")
    assert check(login, metadata, isolation=isolation) == []


FAULTS: list[tuple[str, str, str]] = [
    ("ALTER ROLE app SUPERUSER", "login-superuser", "app"),
    ("ALTER ROLE app BYPASSRLS", "login-bypassrls", "app"),
    ("ALTER TABLE texts OWNER TO app", "login-owns-tables", "app"),
    ("GRANT tenants_admin TO app", "login-is-admin", "app"),
    ("DROP FUNCTION tenancy.current_tenant() CASCADE", "function-missing", "tenancy"),
    (
        "ALTER FUNCTION tenancy.current_tenant() SECURITY DEFINER",
        "function-altered",
        "tenancy.current_tenant()",
    ),
    (
        "CREATE OR REPLACE FUNCTION tenancy.current_tenant() RETURNS text"
        " LANGUAGE sql STABLE RETURN 'acme'",
        "function-altered",
        "tenancy.current_tenant()",
    ),
    ("ALTER ROLE tenants BYPASSRLS", "role-bypasses-rls", "tenants"),
    ("DROP ROLE tenants_shared", "role-missing", "tenants_shared"),
    ("ALTER TABLE texts DISABLE ROW LEVEL SECURITY", "rls-disabled", "public.texts"),
    ("ALTER TABLE uuids NO FORCE ROW LEVEL SECURITY", "rls-not-forced", "public.uuids"),
    ("DROP POLICY tenant_floor ON ints", "policy-missing", "public.ints"),
    ("DROP POLICY tenants_admin ON uuids", "policy-missing", "public.uuids"),
    (
        "ALTER POLICY tenant_isolation ON varchars USING (true)",
        "policy-altered",
        "public.varchars",
    ),
    (
        "ALTER POLICY tenant_floor ON ints WITH CHECK (true)",
        "policy-altered",
        "public.ints",
    ),
    ("ALTER POLICY tenant_floor ON texts TO app", "policy-altered", "public.texts"),
    ("CREATE POLICY p ON texts USING (true)", "policy-for-public", "public.texts"),
    (
        "CREATE TABLE stray (tenant text); GRANT SELECT ON stray TO tenants",
        "table-unmarked",
        "public.stray",
    ),
    ("CREATE TABLE stray (tenant text)", "table-unmarked", "public.stray"),
    ("CREATE VIEW v AS SELECT * FROM texts", "view-bypasses-rls", "public.v"),
    (
        "CREATE MATERIALIZED VIEW v AS SELECT * FROM ints",
        "view-bypasses-rls",
        "public.v",
    ),
    (
        "CREATE VIEW inner_view WITH (security_invoker) AS SELECT * FROM texts;"
        "CREATE VIEW v AS SELECT * FROM inner_view",
        "view-bypasses-rls",
        "public.v",
    ),
    (
        "CREATE TABLE heir () INHERITS (texts); GRANT INSERT ON heir TO tenants",
        "heir-open",
        "public.heir",
    ),
    (
        "CREATE TABLE heir () INHERITS (texts);"
        "CREATE TABLE heirs_heir () INHERITS (heir);"
        "GRANT SELECT (id) ON heirs_heir TO PUBLIC",
        "heir-open",
        "public.heirs_heir",
    ),
    ("GRANT TRUNCATE ON ints TO tenants", "privilege-bypasses-rls", "public.ints"),
    ("GRANT TRIGGER ON ints TO PUBLIC", "privilege-bypasses-rls", "public.ints"),
    (
        "CREATE ROLE tenant_acme BYPASSRLS IN ROLE tenants",
        "role-bypasses-rls",
        "tenant_acme",
    ),
    (
        "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql SECURITY DEFINER"
        " AS 'SELECT count(*) FROM public.texts'",
        "function-bypasses-rls",
        "f()",
    ),
    (
        "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql SECURITY DEFINER"
        " AS 'SELECT count(*) FROM public.texts'; ALTER FUNCTION f() OWNER TO owner",
        "function-bypasses-rls",
        "f()",
    ),
    (
        "CREATE ROLE robot BYPASSRLS; CREATE FUNCTION f() RETURNS int LANGUAGE sql"
        " SECURITY DEFINER AS 'SELECT 1'; ALTER FUNCTION f() OWNER TO robot",
        "function-bypasses-rls",
        "f()",
    ),
    ("DROP INDEX ix_texts_tenant", "index-missing", "public.texts"),
]


CASES = [
    pytest.param(metadata, *fault, id=f"{fault[1]}-{source}-{fault[0][:30]}")
    for metadata, source in ((METADATA, "models"), (None, "catalog"))
    for fault in FAULTS
    # CASCADE drops all policies, and without models nothing is left to check
    if metadata is not None or fault[1] != "function-missing"
]


@pytest.mark.parametrize(("metadata", "fault", "code", "object_"), CASES)
def test_a_planted_fault_is_found(
    check: Any,
    migrated: Database,
    metadata: MetaData | None,
    fault: str,
    code: str,
    object_: str,
) -> None:
    migrated.execute(fault)
    found = [finding for finding in check(metadata=metadata) if finding.code == code]
    assert found, check(metadata=metadata)
    assert found[0].object.startswith(object_)
    assert found[0].message
    assert found[0].remedy


def test_a_login_that_inherits_is_found(check: Any, migrated: Database) -> None:
    migrated.execute("CREATE ROLE tenant_acme IN ROLE tenants")
    migrated.execute("ALTER ROLE app INHERIT")
    migrated.execute("GRANT tenant_acme TO app")
    assert [finding.code for finding in check()] == ["login-inherits-tenants"]


def test_a_login_that_may_act_as_the_owner_is_found(
    check: Any, migrated: Database
) -> None:
    migrated.execute("GRANT owner TO app")
    assert "login-owns-tables" in {finding.code for finding in check()}


FLOOR = "tenant = (SELECT tenancy.current_tenant())"


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("", id="permissive"),
        pytest.param("AS RESTRICTIVE FOR UPDATE", id="one command"),
    ],
)
def test_a_floor_of_another_kind_is_found(
    check: Any, migrated: Database, kind: str
) -> None:
    migrated.execute(
        "DROP POLICY tenant_floor ON texts;"
        f"CREATE POLICY tenant_floor ON texts {kind} TO tenants"
        f" USING ({FLOOR}) WITH CHECK ({FLOOR})"
    )
    assert [finding.code for finding in check()] == ["policy-altered"]


def test_policies_that_compare_nothing_are_found_in_the_catalog(
    check: Any, migrated: Database
) -> None:
    for policy in ("tenant_isolation", "tenant_floor"):
        migrated.execute(f"ALTER POLICY {policy} ON texts USING (true)")
    findings = check(metadata=None)
    assert [(finding.code, finding.object) for finding in findings] == [
        ("policy-altered", "public.texts")
    ]


@pytest.mark.parametrize(
    ("statement", "severity"),
    [
        ("SELECT 1", "warning"),
        ("GRANT SELECT ON stray TO tenants", "error"),
        ("GRANT SELECT ON stray TO tenant_acme", "error"),
        ("GRANT SELECT ON stray TO PUBLIC", "error"),
        ("GRANT SELECT ON stray TO reporting", "warning"),
        (
            "GRANT SELECT ON stray TO tenants;"
            "ALTER TABLE stray ENABLE ROW LEVEL SECURITY",
            "warning",
        ),
    ],
)
def test_an_unmarked_table_is_an_error_where_tenants_may_use_it(
    check: Any, migrated: Database, statement: str, severity: str
) -> None:
    migrated.execute("CREATE ROLE reporting; CREATE ROLE tenant_acme IN ROLE tenants")
    migrated.execute("CREATE TABLE stray (tenant text)")
    migrated.execute(statement)
    found = [(finding.code, finding.severity) for finding in check()]
    assert found == [("table-unmarked", severity)]


def test_a_partial_index_does_not_count(check: Any, migrated: Database) -> None:
    migrated.execute("DROP INDEX ix_texts_tenant")
    migrated.execute("CREATE INDEX ON texts (tenant) WHERE id > 0")
    assert [finding.code for finding in check()] == ["index-missing"]


@pytest.mark.parametrize("by", ["app_shared", "between"])
def test_the_shared_login_must_not_act_as_tenants(
    check: Any, migrated: Database, by: str
) -> None:
    migrated.execute("CREATE ROLE tenant_acme IN ROLE tenants; CREATE ROLE between")
    migrated.execute("ALTER ROLE between NOINHERIT; GRANT between TO app_shared")
    migrated.execute(f"GRANT tenants_shared TO app_shared; GRANT tenant_acme TO {by}")
    findings = check("app_shared", isolation="shared")
    assert [finding.code for finding in findings] == ["login-acts-as-tenants"]


def test_the_tables_are_those_in_the_schema_of_sessions(
    check: Any, migrated: Database
) -> None:
    migrated.execute("CREATE SCHEMA shop AUTHORIZATION owner")
    for table in METADATA.tables:
        migrated.execute(f"ALTER TABLE {table} SET SCHEMA shop")
    assert check(schema="shop") == []
    assert {finding.code for finding in check()} == {"table-missing"}


def test_a_schema_that_does_not_exist_is_found(check: Any) -> None:
    found = [each for each in check(schema="shop") if each.code == "schema-missing"]
    assert [each.object for each in found] == ["shop"]
    assert check(schema="shop", metadata=None) == found


def test_a_marked_table_that_the_database_does_not_have(check: Any) -> None:
    metadata = MetaData()
    with_rls(
        Table(
            "later",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("tenant", Text),
        )
    )
    assert [f.code for f in check(metadata=metadata) if f.object == "public.later"] == [
        "table-missing"
    ]


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
def test_a_view_that_tenants_may_use_is_an_error(
    check: Any, migrated: Database, kind: str
) -> None:
    migrated.execute(f"CREATE {kind} v AS SELECT * FROM texts")
    assert [finding.severity for finding in check()] == ["warning"]
    migrated.execute("GRANT SELECT ON v TO PUBLIC")
    assert [finding.severity for finding in check()] == ["error"]


def test_what_tenants_cannot_use_is_sound(check: Any, migrated: Database) -> None:
    migrated.execute(
        "CREATE SCHEMA heirs; CREATE TABLE heirs.heir () INHERITS (texts);"
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';"
        "REVOKE EXECUTE ON FUNCTION f() FROM PUBLIC;"
        "CREATE FUNCTION g() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        " AS 'BEGIN RETURN NEW; END';"
        "CREATE FUNCTION h() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';"
        "ALTER FUNCTION h() OWNER TO app_shared;"
        "GRANT TRUNCATE ON texts TO app_shared"
    )
    assert check() == []


def test_a_view_with_security_invoker_is_sound(check: Any, migrated: Database) -> None:
    migrated.execute("CREATE VIEW v WITH (security_invoker) AS SELECT * FROM texts")
    assert check() == []


def test_strict_raises_with_all_findings(
    migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    migrated.execute("ALTER TABLE texts DISABLE ROW LEVEL SECURITY")
    migrated.execute("DROP INDEX ix_ints_tenant")
    manager = PostgresManager.from_engine(
        make_engine(migrated.app_url), "public", metadata=METADATA
    )
    with pytest.raises(ScopeError) as caught:
        manager.check(strict=True)
    assert "public.texts" in str(caught.value)
    assert "public.ints" in str(caught.value)


def test_warnings_alone_do_not_raise(
    migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    migrated.execute("DROP INDEX ix_ints_tenant")
    manager = PostgresManager.from_engine(
        make_engine(migrated.app_url), "public", metadata=METADATA
    )
    assert [finding.severity for finding in manager.check(strict=True)] == ["warning"]


@pytest.mark.parametrize("tables", [1, 50])
def test_the_number_of_queries_is_constant(
    migrated: Database, make_engine: Callable[..., Engine], tables: int
) -> None:
    for number in range(tables):
        migrated.execute(f"CREATE TABLE t{number} (id integer)")
    engine = make_engine(migrated.app_url)
    statements: list[str] = []
    with engine.connect():  # the dialect asks for the server's version and the like
        pass

    @event.listens_for(engine, "before_cursor_execute")
    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    PostgresManager.from_engine(engine, "public", metadata=METADATA).check()
    assert len(statements) == 15
