"""Each fault that makes the isolation void is found by the application's login."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, event

from checks import METADATA, Check, Transaction, check, migrated, planted, shared
from sqlalchemy_tenants import with_rls

__all__ = ["check", "migrated", "shared"]


@pytest.mark.parametrize("metadata", [METADATA, None], ids=["models", "catalog"])
@pytest.mark.parametrize("isolation", ["role", "shared"])
def test_a_sound_database_has_no_findings(
    check: Check, migrated: Transaction, metadata: MetaData | None, isolation: str
) -> None:
    login = "app" if isolation == "role" else "app_shared"
    migrated.execute(f"GRANT tenants_shared TO {login}")
    if isolation == "role":
        migrated.execute(f"REVOKE tenants_shared FROM {login}")
    assert check(login, metadata, isolation=isolation) == []


FAULTS = planted(
    """
login-superuser | app | ALTER ROLE app SUPERUSER
login-bypassrls | app | ALTER ROLE app BYPASSRLS
login-owns-tables | app | ALTER TABLE texts OWNER TO app
login-is-admin | app | GRANT tenants_admin TO app
function-missing | tenancy | DROP FUNCTION tenancy.current_tenant() CASCADE
function-altered | tenancy.current_tenant() | ALTER FUNCTION tenancy.current_tenant()
    SECURITY DEFINER
function-altered | tenancy.current_tenant() | CREATE OR REPLACE FUNCTION
    tenancy.current_tenant() RETURNS text LANGUAGE sql STABLE RETURN 'acme'
role-bypasses-rls | tenants | ALTER ROLE tenants BYPASSRLS
role-missing | tenants_shared | DROP ROLE tenants_shared
rls-disabled | public.texts | ALTER TABLE texts DISABLE ROW LEVEL SECURITY
rls-not-forced | public.uuids | ALTER TABLE uuids NO FORCE ROW LEVEL SECURITY
policy-missing | public.ints | DROP POLICY tenant_floor ON ints
policy-missing | public.uuids | DROP POLICY tenants_admin ON uuids
policy-altered | public.varchars | ALTER POLICY tenant_isolation ON varchars USING
    (true)
policy-altered | public.ints | ALTER POLICY tenant_floor ON ints WITH CHECK (true)
policy-altered | public.texts | ALTER POLICY tenant_floor ON texts TO app
policy-for-public | public.texts | CREATE POLICY p ON texts USING (true)
table-unmarked | public.stray | CREATE TABLE stray (tenant text); GRANT SELECT ON stray
    TO tenants
table-unmarked | public.stray | CREATE TABLE stray (tenant text)
view-bypasses-rls | public.v | CREATE VIEW v AS SELECT * FROM texts
view-bypasses-rls | public.v | CREATE MATERIALIZED VIEW v AS SELECT * FROM ints
view-bypasses-rls | public.v | CREATE VIEW inner_view WITH (security_invoker) AS SELECT
    * FROM texts;CREATE VIEW v AS SELECT * FROM inner_view
heir-open | public.heir | CREATE TABLE heir () INHERITS (texts); GRANT INSERT ON heir TO
    tenants
heir-open | public.heirs_heir | CREATE TABLE heir () INHERITS (texts);CREATE TABLE
    heirs_heir () INHERITS (heir);GRANT SELECT (id) ON heirs_heir TO PUBLIC
privilege-bypasses-rls | public.ints | GRANT TRUNCATE ON ints TO tenants
privilege-bypasses-rls | public.ints | GRANT TRIGGER ON ints TO PUBLIC
role-bypasses-rls | tenant_acme | CREATE ROLE tenant_acme BYPASSRLS IN ROLE tenants
function-bypasses-rls | f() | CREATE FUNCTION f() RETURNS bigint LANGUAGE sql SECURITY
    DEFINER AS 'SELECT count(*) FROM public.texts'
function-bypasses-rls | f() | CREATE FUNCTION f() RETURNS bigint LANGUAGE sql SECURITY
    DEFINER AS 'SELECT count(*) FROM public.texts'; ALTER FUNCTION f() OWNER TO owner
function-bypasses-rls | f() | CREATE ROLE robot BYPASSRLS; CREATE FUNCTION f() RETURNS
    int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'; ALTER FUNCTION f() OWNER TO robot
index-missing | public.texts | DROP INDEX ix_texts_tenant
"""
)


CASES = [
    pytest.param(metadata, *fault, id=f"{fault[1]}-{source}-{fault[0][:30]}")
    for metadata, source in ((METADATA, "models"), (None, "catalog"))
    for fault in FAULTS
    # CASCADE drops all policies, and without models nothing is left to check
    if metadata is not None or fault[1] != "function-missing"
]


@pytest.mark.parametrize(("metadata", "fault", "code", "object_"), CASES)
def test_a_planted_fault_is_found(
    check: Check,
    migrated: Transaction,
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


def test_a_login_that_inherits_is_found(check: Check, migrated: Transaction) -> None:
    migrated.execute("CREATE ROLE tenant_acme IN ROLE tenants")
    migrated.execute("ALTER ROLE app INHERIT")
    migrated.execute("GRANT tenant_acme TO app")
    assert [finding.code for finding in check()] == ["login-inherits-tenants"]


def test_a_login_that_may_act_as_the_owner_is_found(
    check: Check, migrated: Transaction
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
    check: Check, migrated: Transaction, kind: str
) -> None:
    migrated.execute(
        "DROP POLICY tenant_floor ON texts;"
        f"CREATE POLICY tenant_floor ON texts {kind} TO tenants"
        f" USING ({FLOOR}) WITH CHECK ({FLOOR})"
    )
    assert [finding.code for finding in check()] == ["policy-altered"]


def test_policies_that_compare_nothing_are_found_in_the_catalog(
    check: Check, migrated: Transaction
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
    check: Check, migrated: Transaction, statement: str, severity: str
) -> None:
    migrated.execute("CREATE ROLE reporting; CREATE ROLE tenant_acme IN ROLE tenants")
    migrated.execute("CREATE TABLE stray (tenant text)")
    migrated.execute(statement)
    found = [(finding.code, finding.severity) for finding in check()]
    assert found == [("table-unmarked", severity)]


def test_a_partial_index_does_not_count(check: Check, migrated: Transaction) -> None:
    migrated.execute("DROP INDEX ix_texts_tenant")
    migrated.execute("CREATE INDEX ON texts (tenant) WHERE id > 0")
    assert [finding.code for finding in check()] == ["index-missing"]


@pytest.mark.parametrize("by", ["app_shared", "between"])
def test_the_shared_login_must_not_act_as_tenants(
    check: Check, migrated: Transaction, by: str
) -> None:
    migrated.execute("CREATE ROLE tenant_acme IN ROLE tenants; CREATE ROLE between")
    migrated.execute("ALTER ROLE between NOINHERIT; GRANT between TO app_shared")
    migrated.execute(f"GRANT tenants_shared TO app_shared; GRANT tenant_acme TO {by}")
    findings = check("app_shared", isolation="shared")
    assert [finding.code for finding in findings] == ["login-acts-as-tenants"]


def test_the_tables_are_those_in_the_schema_of_sessions(
    check: Check, migrated: Transaction
) -> None:
    migrated.execute("CREATE SCHEMA shop AUTHORIZATION owner")
    for table in METADATA.tables:
        migrated.execute(f"ALTER TABLE {table} SET SCHEMA shop")
    assert check(schema="shop") == []
    assert {finding.code for finding in check()} == {"table-missing"}


def test_a_schema_that_does_not_exist_is_found(check: Check) -> None:
    found = [each for each in check(schema="shop") if each.code == "schema-missing"]
    assert [each.object for each in found] == ["shop"]
    assert check(schema="shop", metadata=None) == found


def test_a_marked_table_that_the_database_does_not_have(check: Check) -> None:
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
    check: Check, migrated: Transaction, kind: str
) -> None:
    migrated.execute(f"CREATE {kind} v AS SELECT * FROM texts")
    assert [finding.severity for finding in check()] == ["warning"]
    migrated.execute("GRANT SELECT ON v TO PUBLIC")
    assert [finding.severity for finding in check()] == ["error"]


def test_what_tenants_cannot_use_is_sound(check: Check, migrated: Transaction) -> None:
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


def test_a_view_with_security_invoker_is_sound(
    check: Check, migrated: Transaction
) -> None:
    migrated.execute("CREATE VIEW v WITH (security_invoker) AS SELECT * FROM texts")
    assert check() == []


@pytest.mark.parametrize("tables", [1, 50])
def test_the_number_of_queries_is_constant(
    check: Check, migrated: Transaction, tables: int
) -> None:
    for number in range(tables):
        migrated.execute(f"CREATE TABLE t{number} (id integer)")
    statements: list[str] = []

    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    event.listen(migrated.connection, "before_cursor_execute", count)
    check()
    event.remove(migrated.connection, "before_cursor_execute", count)
    assert len(statements) == 15
