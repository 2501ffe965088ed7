"""check() asks what the login and the tenants can reach, not which attribute they have,
and who gets silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text

from checks import Check, Transaction, check, migrated, planted, shared
from pages import with_tables
from servers import requested_version
from sqlalchemy_tenants import Policy, with_rls
from sqlalchemy_tenants.database.findings import CODES

__all__ = ["check", "migrated", "shared"]

TENANT = "CREATE ROLE tenant_acme IN ROLE tenants;"
DEFINER = "RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT 1::bigint'"
TRIGGER = "RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN RETURN NEW; END'"
PLAIN = TRIGGER.replace("SECURITY DEFINER", "")
REPORTING = (
    "CREATE ROLE reporting; GRANT SELECT ON texts TO reporting;"
    "CREATE POLICY p ON texts FOR SELECT TO reporting USING (true);"
)

# The finding, its code and its object, and what was planted.
ERRORS = planted(
    """
# the login may act as somebody
login-superuser | app | CREATE ROLE dba SUPERUSER; GRANT dba TO app
login-superuser | app | CREATE ROLE dba SUPERUSER; CREATE ROLE ops; GRANT dba TO
    ops;GRANT ops TO app
login-bypassrls | app | CREATE ROLE etl BYPASSRLS; GRANT etl TO app
login-bypassrls | app | CREATE ROLE etl BYPASSRLS; GRANT etl TO app WITH ADMIN OPTION
login-is-admin | app | CREATE ROLE ops; GRANT tenants_admin TO ops; GRANT ops TO app
login-has-predefined-role | app | GRANT pg_execute_server_program TO app
login-replicates | app | ALTER ROLE app REPLICATION
# the login owns something, or may act as the owner
login-owns-function | app | ALTER FUNCTION tenancy.current_tenant() OWNER TO app
login-owns-schema | app | ALTER SCHEMA tenancy OWNER TO app
login-owns-schema | app | ALTER SCHEMA public OWNER TO app
login-owns-database | app | ALTER DATABASE test OWNER TO app
login-owns-schema | app | ALTER DATABASE test OWNER TO app
login-owns-tables | app | ALTER TABLE countries OWNER TO app
# a tenant's role, or that of all, may act as somebody
role-bypasses-rls | tenant_acme | {tenant}CREATE ROLE dba SUPERUSER; GRANT dba TO
    tenant_acme
role-bypasses-rls | tenant_acme | {tenant}CREATE ROLE etl BYPASSRLS; GRANT etl TO
    tenant_acme
role-bypasses-rls | tenants | CREATE ROLE etl BYPASSRLS; GRANT etl TO tenants
role-is-admin | tenants | GRANT tenants_admin TO tenants
role-is-admin | tenant_acme | {tenant}GRANT tenants_admin TO tenant_acme WITH ADMIN
    OPTION
role-acts-as-tenant | tenant_acme | {tenant}CREATE ROLE tenant_globex IN ROLE
    tenants;GRANT tenant_globex TO tenant_acme
role-acts-as-tenant | tenant_acme | {tenant}GRANT tenants_shared TO tenant_acme
role-has-predefined-role |  | GRANT pg_execute_server_program TO tenants
role-has-predefined-role | tenant_acme | {tenant}GRANT pg_read_server_files TO
    tenant_acme
role-has-predefined-role | tenants | GRANT pg_read_all_data TO tenants
role-has-predefined-role |  | GRANT pg_monitor TO tenants_shared
# a tenant owns something
role-owns-function | tenants | ALTER FUNCTION tenancy.current_tenant() OWNER TO tenants
role-owns-tables | tenant_acme | {tenant}ALTER TABLE texts OWNER TO tenant_acme
role-owns-schema | tenants | ALTER SCHEMA public OWNER TO tenants
role-owns-database |  | ALTER DATABASE test OWNER TO tenants_shared
role-owns-tables | ops | CREATE ROLE ops; GRANT ops TO tenants; ALTER TABLE texts OWNER
    TO ops
schema-open | public | GRANT CREATE ON SCHEMA public TO PUBLIC
schema-open | tenancy | GRANT CREATE ON SCHEMA tenancy TO tenants
# tables without a mark that tenants can use
table-unmarked | public.stray | CREATE TABLE stray (id int); GRANT SELECT ON stray TO
    tenants
table-unmarked | public.stray | CREATE TABLE stray (id int, note text); GRANT SELECT
    (note) ON stray TO PUBLIC
table-unmarked | "old".texts | CREATE SCHEMA old; GRANT USAGE ON SCHEMA old TO
    tenants;CREATE TABLE old.texts AS TABLE texts; GRANT SELECT ON old.texts TO tenants
table-unmarked | public.stray | {tenant}CREATE TABLE stray (id int); GRANT INSERT ON
    stray TO tenant_acme
table-unmarked | public.stray | CREATE ROLE ops; GRANT ops TO tenants; CREATE TABLE
    stray (id int);GRANT SELECT ON stray TO ops
table-unmarked | public.stray | {tenant}CREATE TABLE stray (id int); ALTER TABLE stray
    OWNER TO tenant_acme
table-unmarked | public.far | CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN
    DATA WRAPPER w;CREATE FOREIGN TABLE far (id int) SERVER s;GRANT SELECT ON far TO
    tenants
# what runs with a tenant's rights
function-bypasses-rls | f() | {tenant}CREATE FUNCTION f() {definer}; ALTER FUNCTION f()
    OWNER TO tenant_acme
trigger-bypasses-rls | t on public.texts | {tenant}CREATE FUNCTION f() {trigger}; ALTER
    FUNCTION f() OWNER TO tenant_acme; CREATE TRIGGER t BEFORE INSERT ON texts FOR EACH
    ROW EXECUTE FUNCTION f()
# Citus
table-distributed | public.texts | CREATE TABLE pg_dist_partition (logicalrelid
    regclass);INSERT INTO pg_dist_partition VALUES ('texts');GRANT SELECT ON
    pg_dist_partition TO app
table-distributed | public.pg_dist_partition | CREATE TABLE pg_dist_partition
    (logicalrelid regclass)
role-bypasses-rls | tenants_admin | ALTER ROLE tenants_admin BYPASSRLS
role-bypasses-rls | tenant_acme | {tenant}ALTER ROLE tenant_acme SUPERUSER
# one tenant, or the shared role, may do what all may not
schema-open | public | GRANT CREATE ON SCHEMA public TO tenants_shared
schema-open | public | {tenant}GRANT CREATE ON SCHEMA public TO tenant_acme
schema-open | tenancy | {tenant}CREATE ROLE ops; GRANT ops TO tenant_acme;GRANT CREATE
    ON SCHEMA tenancy TO ops
table-unmarked | "old".notes | {tenant} CREATE SCHEMA old; CREATE TABLE old.notes (id
    int); GRANT USAGE ON SCHEMA old TO tenants_shared;GRANT SELECT ON old.notes TO
    tenants, PUBLIC
table-unmarked | "old".notes | {tenant} CREATE SCHEMA old; CREATE TABLE old.notes (id
    int); GRANT USAGE ON SCHEMA old TO tenant_acme;GRANT SELECT ON old.notes TO tenants,
    PUBLIC
table-unmarked | "old".notes | {tenant} CREATE SCHEMA old; CREATE TABLE old.notes (id
    int); ALTER SCHEMA old OWNER TO tenant_acme;GRANT SELECT ON old.notes TO tenants,
    PUBLIC
heir-open | public.heir | {tenant} CREATE TABLE heir () INHERITS (texts);GRANT SELECT ON
    heir TO tenants_shared
heir-open | public.heir | {tenant} CREATE TABLE heir () INHERITS (texts);GRANT SELECT ON
    heir TO tenant_acme
view-bypasses-rls | public.v | {tenant} CREATE VIEW v AS TABLE texts; GRANT SELECT ON v
    TO tenants_shared
view-bypasses-rls | public.v | {tenant} CREATE VIEW v AS TABLE texts; GRANT SELECT ON v
    TO tenant_acme
table-unmarked | public.stray | CREATE TABLE stray (id int) PARTITION BY LIST (id);GRANT
    SELECT ON stray TO tenants
table-unmarked | public.stray | CREATE TABLE stray (id int); GRANT UPDATE ON stray TO
    tenants
table-unmarked | public.stray | CREATE TABLE stray (id int); GRANT DELETE ON stray TO
    tenants
table-unmarked | public.stray | CREATE TABLE stray (id int); GRANT TRUNCATE ON stray TO
    tenants
privilege-bypasses-rls | public.texts | CREATE ROLE ops; GRANT ops TO tenants; GRANT
    TRUNCATE ON texts TO ops
privilege-bypasses-rls | public. | GRANT TRUNCATE ON texts TO tenants_admin
# what a tenant owns decides what the others execute
role-owns-function | tenant_acme | {tenant}CREATE FUNCTION f() {plain};CREATE TRIGGER t
    AFTER INSERT ON texts FOR EACH ROW EXECUTE FUNCTION f();ALTER FUNCTION f() OWNER TO
    tenant_acme
role-owns-function | tenants | {tenant}CREATE FUNCTION f() RETURNS int LANGUAGE sql AS
    'SELECT 1';ALTER TABLE texts ADD n int DEFAULT f(); ALTER FUNCTION f() OWNER TO
    tenants
login-owns-function | app | CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT
    1';ALTER FUNCTION f() OWNER TO app
role-owns-tables | tenant_acme | {tenant}CREATE VIEW v WITH (security_invoker) AS TABLE
    texts;GRANT SELECT ON v TO tenants; ALTER VIEW v OWNER TO tenant_acme
# a tenant's role streams as well as a login
role-replicates | tenant_acme | {tenant}ALTER ROLE tenant_acme LOGIN REPLICATION
role-replicates | tenant_acme | {tenant}CREATE ROLE ops REPLICATION; GRANT ops TO
    tenant_acme
# the floor is for tenants, and not for other roles that they may act as
policy-reachable | public.texts | {reporting}GRANT reporting TO tenants
policy-reachable | public.texts | {tenant}{reporting}GRANT reporting TO tenant_acme
policy-reachable | public.texts | {reporting}GRANT reporting TO app
policy-reachable | public.texts | GRANT SELECT ON texts TO app;CREATE POLICY p ON texts
    FOR SELECT TO app USING (true)
policy-altered | public.texts | CREATE POLICY p ON texts TO tenants_admin USING (true)
# a copy in another schema, which tenants read by a view
table-unmarked | "old".texts | CREATE SCHEMA old; CREATE TABLE old.texts AS TABLE
    texts;CREATE VIEW v AS TABLE old.texts; GRANT SELECT ON v TO tenants
# shared tables
privilege-bypasses-rls | public.countries | GRANT INSERT ON countries TO tenants
privilege-bypasses-rls | public.countries | GRANT TRUNCATE ON countries TO PUBLIC
""",
    tenant=TENANT,
    reporting=REPORTING,
    definer=DEFINER,
    trigger=TRIGGER,
    plain=PLAIN,
)

WARNINGS = planted(
    """
trigger-bypasses-rls | t on public.texts | CREATE FUNCTION f() {trigger};CREATE TRIGGER
    t AFTER INSERT ON texts FOR EACH ROW EXECUTE FUNCTION f()
trigger-bypasses-rls | t on public.countries | CREATE FUNCTION f() {trigger};CREATE
    TRIGGER t AFTER INSERT ON countries FOR EACH ROW EXECUTE FUNCTION f()
rule-bypasses-rls | r on public.texts | CREATE TABLE log (id int);CREATE RULE r AS ON
    INSERT TO texts DO ALSO INSERT INTO log VALUES (NEW.id)
login-has-predefined-role | app | GRANT pg_monitor TO app
reads-nothing | reporting | CREATE ROLE reporting; GRANT SELECT ON texts, ints TO
    reporting
reads-nothing | reporting | CREATE ROLE reporting; GRANT SELECT (id) ON texts TO
    reporting
reads-nothing | dumps | CREATE ROLE dumps LOGIN; GRANT pg_read_all_data TO dumps
reads-nothing | public.m | CREATE MATERIALIZED VIEW m AS TABLE texts; CREATE ROLE
    dull;ALTER MATERIALIZED VIEW m OWNER TO dull
owner-confined | public.texts | CREATE ROLE landlord; ALTER TABLE texts OWNER TO
    landlord
owner-without-set-config | owner | REVOKE EXECUTE ON FUNCTION set_config(text, text,
    boolean) FROM PUBLIC
function-bypasses-rls | f() | CREATE ROLE robot IN ROLE tenants_admin; CREATE FUNCTION
    f() {definer};ALTER FUNCTION f() OWNER TO robot
view-bypasses-rls | public.v | CREATE VIEW v WITH (security_invoker = 'off') AS TABLE
    texts
function-bypasses-rls | f() | {tenant} CREATE FUNCTION f() {definer};REVOKE EXECUTE ON
    FUNCTION f() FROM PUBLIC;GRANT EXECUTE ON FUNCTION f() TO tenants_shared
function-bypasses-rls | f() | {tenant} CREATE FUNCTION f() {definer};REVOKE EXECUTE ON
    FUNCTION f() FROM PUBLIC;GRANT EXECUTE ON FUNCTION f() TO tenant_acme
function-bypasses-rls | f() | CREATE FUNCTION pg_catalog.f() {definer}
role-altered | tenants | ALTER ROLE tenants LOGIN
role-altered | tenants_shared | ALTER ROLE tenants_shared NOINHERIT
role-altered | tenants_admin | ALTER ROLE tenants_admin CREATEDB
# what comes by the parent runs the triggers and rules of partitions
trigger-bypasses-rls | t on public.heir | CREATE FUNCTION f() {trigger}; CREATE TABLE
    heir () INHERITS (texts);CREATE TRIGGER t AFTER INSERT ON heir FOR EACH ROW EXECUTE
    FUNCTION f()
""",
    tenant=TENANT,
    definer=DEFINER,
    trigger=TRIGGER,
)


def _cases() -> list[Any]:
    return [
        pytest.param(severity, *fault, id=f"{fault[1]}-{number}")
        for severity, faults in (("error", ERRORS), ("warning", WARNINGS))
        for number, fault in enumerate(faults)
    ]


@pytest.mark.parametrize(("severity", "fault", "code", "object_"), _cases())
def test_what_is_reachable_is_found(
    check: Check,
    migrated: Transaction,
    severity: str,
    fault: str,
    code: str,
    object_: str,
) -> None:
    assert check() == []
    migrated.execute(fault)
    findings = check()
    found = [
        finding
        for finding in findings
        if finding.code == code and finding.object.startswith(object_)
    ]
    assert [finding.severity for finding in found] == [severity] * len(found)
    assert found, findings
    assert {finding.code for finding in findings} <= set(CODES)


def test_a_login_that_creates_roles(check: Check, migrated: Transaction) -> None:
    """Before 16 it may make itself a member of any role, later of none that is."""
    migrated.execute("ALTER ROLE app CREATEROLE")
    expected = ["login-creates-roles"] if requested_version() < 16 else []
    assert [finding.code for finding in check()] == expected


def test_a_tenant_that_creates_roles(check: Check, migrated: Transaction) -> None:
    migrated.execute(TENANT + "ALTER ROLE tenant_acme CREATEROLE")
    severity = "error" if requested_version() < 16 else "warning"
    assert [(each.code, each.severity) for each in check()] == [
        ("role-creates-roles", severity)
    ]


@pytest.mark.parametrize("option", ["INHERIT", "SET", "ADMIN", None])
def test_each_option_of_a_membership_gives_something(
    check: Check, migrated: Transaction, option: str | None
) -> None:
    if requested_version() < 16:
        pytest.skip("before 16 a membership has no options, and gives all")
    options = (f"{each} {each == option}" for each in ("INHERIT", "SET", "ADMIN"))
    migrated.execute(
        f"CREATE ROLE dba SUPERUSER; GRANT dba TO app WITH {', '.join(options)}"
    )
    expected = [] if option is None else ["login-superuser"]
    assert [finding.code for finding in check()] == expected


#: Whether the login's membership is an error. Some roles came with 16 and 17.
PREDEFINED = {
    "pg_execute_server_program": True,
    "pg_read_server_files": True,
    "pg_write_server_files": True,
    "pg_read_all_data": False,
    "pg_write_all_data": False,
    "pg_read_all_stats": False,
    "pg_monitor": False,
    "pg_signal_backend": False,
    "pg_maintain": False,
    "pg_create_subscription": False,
}


@pytest.mark.parametrize("role", PREDEFINED)
def test_predefined_roles(check: Check, migrated: Transaction, role: str) -> None:
    if not migrated.rows("SELECT FROM pg_roles WHERE rolname = %s", [role]):
        pytest.skip("a later version of PostgreSQL has it")
    migrated.execute(f"GRANT {role} TO app, tenants")
    found = {
        (finding.code, finding.severity)
        for finding in check()
        if role in finding.message
    }
    assert found == {
        ("login-has-predefined-role", "error" if PREDEFINED[role] else "warning"),
        ("role-has-predefined-role", "error"),
    }


def test_the_schema_of_sessions_counts_without_tables(
    check: Check, migrated: Transaction
) -> None:
    migrated.execute("CREATE SCHEMA shop AUTHORIZATION app")
    found = check(metadata=None, schema="shop")
    assert [finding.code for finding in found] == ["login-owns-schema"]


@pytest.mark.parametrize(
    ("columns", "roles", "is_shared"),
    [
        ("id int", "tenants, tenants_admin", True),
        ("id int", "tenants", False),
        ("id int", "tenants, tenants_admin, tenants_shared", False),
        ("id int", "tenants, tenants_admin, PUBLIC", False),
        ("id int, tenant text", "tenants, tenants_admin", False),
    ],
)
def test_without_models_a_table_with_the_privileges_of_shared_ones_is_shared(
    check: Check, migrated: Transaction, columns: str, roles: str, is_shared: bool
) -> None:
    migrated.execute(
        f"CREATE TABLE stray ({columns}); GRANT SELECT ON stray TO {roles}"
    )
    expected = [] if is_shared else [("table-unmarked", "error")]
    found = check(metadata=None)
    assert [(finding.code, finding.severity) for finding in found] == expected


SOUND = [
    # partitions and heirs have the parent's column, and need no mark
    "CREATE TABLE heir () INHERITS (texts)",
    # who reads by a policy, or past all of them
    "CREATE ROLE reporting BYPASSRLS; GRANT SELECT ON texts TO reporting",
    "CREATE ROLE reporting; GRANT SELECT ON texts TO reporting;"
    "GRANT tenants_admin TO reporting",
    "CREATE ROLE reporting; GRANT SELECT ON texts TO reporting;"
    "CREATE POLICY r ON texts FOR SELECT TO reporting USING (true)",
    # the schema is closed to tenants
    "CREATE SCHEMA old; CREATE TABLE old.notes (id int);"
    "GRANT SELECT ON old.notes TO tenants",
    "CREATE TABLE stray (id int); GRANT SELECT ON stray TO app, tenants_admin",
    "CREATE TABLE stray (id int); GRANT SELECT ON stray TO tenants;"
    "ALTER TABLE stray ENABLE ROW LEVEL SECURITY",
    # every spelling of a boolean
    *(
        f"CREATE VIEW v WITH (security_invoker = '{value}') AS TABLE texts"
        for value in ("true", "t", "TRUE", "on", "1", "yes")
    ),
    f"CREATE FUNCTION f() {TRIGGER}; CREATE TABLE stray (id int);"
    "CREATE TRIGGER t AFTER INSERT ON stray FOR EACH ROW EXECUTE FUNCTION f()",
    # an extension's table is the extension's business
    "CREATE TABLE stray (id int); GRANT SELECT ON stray TO PUBLIC;"
    "ALTER EXTENSION plpgsql ADD TABLE stray",
    # owners of what is none of ours
    "CREATE SCHEMA app AUTHORIZATION app",
    "REVOKE EXECUTE ON FUNCTION set_config(text, text, boolean) FROM PUBLIC;"
    "GRANT EXECUTE ON FUNCTION set_config(text, text, boolean) TO owner",
]


def test_the_admin_role_may_own_and_use_what_it_likes(
    check: Check, migrated: Transaction
) -> None:
    migrated.execute(
        "GRANT CREATE ON SCHEMA public TO tenants_admin;"
        "ALTER TABLE texts OWNER TO tenants_admin;"
        "CREATE TABLE heir () INHERITS (ints); GRANT SELECT ON heir TO tenants_admin;"
        "CREATE TABLE stray (id int); ALTER TABLE stray OWNER TO tenants_admin"
    )
    assert check() == []


@pytest.mark.parametrize("statements", SOUND)
def test_what_is_sound_is_not_reported(
    check: Check, migrated: Transaction, statements: str
) -> None:
    migrated.execute(statements)
    assert check() == []
    assert check(metadata=None) == []


def test_partitions_of_a_marked_table_are_sound(
    check: Check, migrated: Transaction
) -> None:
    migrated.execute(
        "ALTER TABLE texts RENAME TO kept;"
        "CREATE TABLE texts (LIKE kept) PARTITION BY LIST (tenant);"
        "CREATE TABLE texts_1 PARTITION OF texts FOR VALUES IN ('acme');"
        "CREATE TABLE texts_2 PARTITION OF texts DEFAULT"
    )
    assert not [each for each in check() if each.object.startswith("public.texts_")]


def test_a_users_own_policies_are_held_against_the_models(
    check: Check, migrated: Transaction
) -> None:
    metadata = MetaData()
    table = Table("texts", metadata, Column("id", Integer), Column("tenant", Text))
    with_rls(
        table,
        policies=[
            Policy("strict", using="id > 0", permissive=False),
            Policy("open", using="id > 0", command="SELECT"),
        ],
    )

    def found() -> list[tuple[str, str]]:
        return [
            (finding.severity, finding.message)
            for finding in check(metadata=metadata)
            if finding.code.startswith("policy-")
        ]

    assert found() == [
        ("error", "policy strict is missing"),
        ("warning", "policy open is missing"),
    ]
    migrated.execute(
        "CREATE POLICY strict ON texts TO tenants USING (id > 0);"
        "CREATE POLICY open ON texts FOR SELECT TO tenants USING (id > 0)"
    )
    assert found() == [("error", "policy strict was altered")]
    migrated.execute(
        "DROP POLICY strict ON texts;"
        "CREATE POLICY strict ON texts AS RESTRICTIVE TO tenants USING (0 < id)"
    )
    assert found() == [("error", "policy strict was altered")]
    migrated.execute("ALTER POLICY strict ON texts USING ((id) > 0)")
    assert found() == []
    migrated.execute("ALTER POLICY open ON texts USING (true)")
    assert found() == [("warning", "policy open was altered")]
    migrated.execute("ALTER POLICY open ON texts USING (id > 0)")
    migrated.execute("REVOKE TEMPORARY ON DATABASE test FROM PUBLIC")
    assert found() == []
    migrated.execute("ALTER POLICY strict ON texts USING (id > 1 - 1)")
    (unknown,) = found()
    assert unknown[0] == "warning"
    assert unknown[1].startswith("the login cannot tell whether policy strict")


def test_a_policy_of_the_models_for_others_is_only_a_warning(
    check: Check, migrated: Transaction
) -> None:
    metadata = MetaData()
    table = Table("texts", metadata, Column("id", Integer), Column("tenant", Text))
    policy = Policy("p", using="true", command="SELECT", roles=["reporting"])
    with_rls(table, policies=[policy])
    migrated.execute(REPORTING + "REVOKE ALL ON texts FROM reporting")
    assert "policy-reachable" not in {each.code for each in check(metadata=metadata)}
    migrated.execute("GRANT reporting TO app")
    found = {each.code: each.severity for each in check(metadata=metadata)}
    assert found["policy-reachable"] == "warning"


PAGE = Path(__file__).parents[1] / "docs" / "check.md"


def test_every_code_is_documented() -> None:
    """The page is written by ``python -m test_reach`` in ``tests``."""
    assert PAGE.read_text() == documented()


def documented() -> str:
    rows = [f"| `{code}` | {meaning} |" for code, meaning in CODES.items()]
    table = "\n".join(["| code | what it says |", "| --- | --- |", *rows])
    return with_tables(PAGE.read_text(), {"Codes": table})


if __name__ == "__main__":
    PAGE.write_text(documented())
