"""A repair gives nobody more than the models say, and what cannot be repaired is
refused by name."""

from __future__ import annotations

import logging
from pathlib import Path

import psycopg
import pytest

from projects import Project, assert_migrates, upgrade_of
from servers import Database

ORDER = """
@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    __table_args__ = (UniqueConstraint("tenant", "id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(String(20), default="")
"""
COUNTRY = """
@shared_table
class Country(Base):
    __tablename__ = "countries"
    code: Mapped[str] = mapped_column(primary_key=True)
"""
LOGGER = "alembic.autogenerate.tenants"


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Project:
    project = Project(tmp_path, database, ORDER + COUNTRY)
    project.migrate()
    assert project.is_up_to_date()
    return project


def refusal(project: Project, caplog: pytest.LogCaptureFixture) -> str:
    """Autogenerate, which has to fail and to write nothing; return why."""
    versions = project.path / "migrations" / "versions"
    before = set(versions.glob("*.py"))
    caplog.clear()
    assert project.run("check").status != 0
    assert project.run("revision", "--autogenerate").status != 0
    assert set(versions.glob("*.py")) == before
    errors = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert errors
    return errors[-1]


# --- owners ---------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["app", "tenants", "tenant_acme", "landlord"])
def test_an_owner_by_hand_becomes_no_admin(
    project: Project, caplog: pytest.LogCaptureFixture, owner: str
) -> None:
    database = project.database
    database.execute("CREATE ROLE tenant_acme IN ROLE tenants; CREATE ROLE landlord")
    database.execute(f"ALTER TABLE orders OWNER TO {owner}")
    message = refusal(project, caplog)
    assert f"table public.orders belongs to {owner}" in message
    assert "ALTER TABLE public.orders OWNER TO owner" in message
    if owner != "tenants":  # whose privileges became those of the owner
        database.execute("ALTER TABLE orders OWNER TO owner")
        assert project.is_up_to_date()


def test_an_owner_that_the_models_name_becomes_an_admin(project: Project) -> None:
    database = project.database
    database.execute("CREATE ROLE landlord; ALTER TABLE orders OWNER TO landlord")
    named = '\nBase.metadata.info["tenancy"] = Tenancy(owners=["landlord"])\n'
    project.write_models(ORDER + COUNTRY + named)
    project.url = database.url("superuser")
    project.write_env()
    source = project.autogenerate()
    assert "op.grant_membership('tenants_admin', 'landlord')" in source


def test_an_owner_without_force_needs_no_admin(
    database: Database, tmp_path: Path
) -> None:
    lenient = '\nBase.metadata.info["tenancy"] = Tenancy(force=False)\n'
    project = Project(tmp_path, database, ORDER + lenient)
    project.migrate()
    database.execute("ALTER TABLE orders OWNER TO app")
    assert project.is_up_to_date()


@pytest.mark.parametrize("login", ["owner", "superuser"])
def test_the_function_of_somebody_else(
    project: Project, caplog: pytest.LogCaptureFixture, login: str
) -> None:
    database = project.database
    database.execute("ALTER FUNCTION tenancy.current_tenant() OWNER TO app")
    if login == "owner":
        message = refusal(project, caplog)
        assert "function tenancy.current_tenant() belongs to app" in message
        assert "ALTER FUNCTION tenancy.current_tenant() OWNER TO owner" in message
        return
    project.url = database.url(login)
    project.write_env()
    assert "owner='superuser'" in upgrade_of(project.autogenerate())
    project.must("upgrade", "head")
    assert project.is_up_to_date()


def test_an_administrator_who_checks_finds_nothing(project: Project) -> None:
    project.url = project.database.url("superuser")
    project.write_env()
    assert project.is_up_to_date()


# --- grants that this role cannot give ------------------------------------------------


def test_a_schema_of_somebody_else(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute("CREATE SCHEMA crm; GRANT USAGE, CREATE ON SCHEMA crm TO owner")
    crm = ORDER.replace(
        'UniqueConstraint("tenant", "id"),',
        'UniqueConstraint("tenant", "id"), {"schema": "crm"},',
    )
    project = Project(tmp_path, database, crm, options="options['include_schemas'] = 1")
    message = refusal(project, caplog)
    assert "GRANT USAGE ON SCHEMA crm TO tenants, tenants_admin" in message
    database.execute("GRANT USAGE ON SCHEMA crm TO owner WITH GRANT OPTION")
    project.migrate()
    assert project.is_up_to_date()


def test_a_shared_table_of_somebody_else(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.database.execute(
        "ALTER TABLE countries OWNER TO app; REVOKE SELECT ON countries FROM tenants"
    )
    message = refusal(project, caplog)
    assert "table public.countries belongs to app" in message


# --- declared tenants -----------------------------------------------------------------


def declared(*, tenants: list[str], logins: list[str] | None) -> str:
    tenancy = f"Tenancy(tenants={tenants!r}, logins={logins!r})"
    return f'{ORDER}\nBase.metadata.info["tenancy"] = {tenancy}\n'


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (["app"], ["app", "app_shared"], ["op.grant_tenant_role", "'app_shared'"]),
        (["app", "app_shared"], ["app"], ["op.revoke_tenant_role", "'app_shared'"]),
        (["app"], ["app_shared"], ["op.grant_tenant_role", "op.revoke_tenant_role"]),
        (["app"], [], ["op.revoke_tenant_role", "'app'"]),
    ],
)
def test_logins_are_compared(
    database: Database,
    tmp_path: Path,
    before: list[str],
    after: list[str],
    expected: list[str],
) -> None:
    project = Project(tmp_path, database, declared(tenants=["acme"], logins=before))
    project.migrate()
    assert project.is_up_to_date()
    source = assert_migrates(project, declared(tenants=["acme"], logins=after))
    assert all(text in upgrade_of(source) for text in expected), source


def test_logins_that_are_not_declared_are_left_alone(
    database: Database, tmp_path: Path
) -> None:
    project = Project(tmp_path, database, declared(tenants=["acme"], logins=None))
    project.migrate()
    database.execute("GRANT tenant_acme TO app")
    assert project.is_up_to_date()


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("ALTER ROLE tenant_acme BYPASSRLS", "bypass_rls=False"),
        ("ALTER ROLE tenant_acme SUPERUSER", "superuser=False"),
        ("ALTER ROLE tenant_acme NOINHERIT", "inherit=True"),
        ("ALTER ROLE tenant_acme CREATEROLE", "create_role=False"),
        (
            "GRANT tenant_globex TO tenant_acme",
            "op.revoke_membership('tenant_globex', 'tenant_acme'",
        ),
        (
            "GRANT tenants_admin TO tenant_acme",
            "op.revoke_membership('tenants_admin', 'tenant_acme'",
        ),
        (
            "GRANT tenants_shared TO tenant_acme",
            "op.revoke_membership('tenants_shared', 'tenant_acme'",
        ),
        (
            "GRANT tenants_admin TO tenants",
            "op.revoke_membership('tenants_admin', 'tenants'",
        ),
    ],
)
def test_roles_of_tenants_are_compared(
    database: Database, tmp_path: Path, statement: str, expected: str
) -> None:
    models = declared(tenants=["acme", "globex"], logins=["app"])
    project = Project(tmp_path, database, models)
    project.migrate()
    database.execute(statement)
    project.url = database.url("superuser")
    project.write_env()
    source = assert_migrates(project, models)
    assert expected in upgrade_of(source), source


@pytest.mark.parametrize("schema", ["", " IN SCHEMA public"])
def test_default_privileges_of_every_kind(project: Project, schema: str) -> None:
    kinds = {"TABLES": "SELECT", "SEQUENCES": "USAGE", "FUNCTIONS": "EXECUTE"}
    kinds["TYPES"] = "USAGE"
    if not schema:
        kinds["SCHEMAS"] = "USAGE"
    for kind, privilege in kinds.items():
        project.database.execute(
            f"ALTER DEFAULT PRIVILEGES FOR ROLE owner{schema}"
            f" GRANT {privilege} ON {kind} TO tenants"
        )
    source = assert_migrates(project, ORDER + COUNTRY)
    for kind in kinds:
        assert f"'DEFAULT {kind}'" in upgrade_of(source)


def test_a_login_of_the_shared_isolation_is_no_tenants_login(
    database: Database, tmp_path: Path
) -> None:
    """A role of ours among the logins is a membership too many, and no login."""
    models = declared(tenants=["acme"], logins=["app"])
    project = Project(tmp_path, database, models)
    project.migrate()
    database.execute("GRANT tenant_acme TO tenants_shared")
    source = upgrade_of(project.autogenerate())
    assert "op.revoke_membership('tenant_acme', 'tenants_shared'" in source
    assert "op.revoke_tenant_role" not in source


# --- who will see nothing -------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture, kind: str) -> list[str]:
    name = f"{LOGGER}.{kind}"
    return [record.message for record in caplog.records if record.name == name]


@pytest.mark.parametrize("shown", [True, False])
def test_readers_of_a_table_that_gets_policies(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture, shown: bool
) -> None:
    plain = ORDER.replace("@with_rls", "")
    project = Project(tmp_path, database, plain.replace("TenantMixin", "Plain"))
    project.write_models(
        "class Plain:\n    tenant: Mapped[str] = mapped_column(Text, index=True)\n"
        + plain.replace("TenantMixin", "Plain")
    )
    project.migrate()
    database.execute(
        "CREATE ROLE reporting; CREATE ROLE etl BYPASSRLS;"
        "GRANT SELECT ON orders TO reporting, etl"
    )
    mark = "@with_rls"
    if shown:
        mark += "(policies=[Policy('r', using='true', roles=['reporting'])])"
    project.write_models(
        "class Plain:\n    tenant: Mapped[str] = mapped_column(Text, index=True)\n"
        + ORDER.replace("@with_rls", mark).replace("TenantMixin", "Plain")
    )
    caplog.clear()
    project.autogenerate()
    found = warnings(caplog, "reads-nothing")
    assert len(found) == (0 if shown else 1)
    assert shown or "reporting" in found[0]
    assert shown or "etl" not in found[0]


def test_a_mixin_without_a_mark(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = Project(tmp_path, database, ORDER.replace("@with_rls", ""))
    project.run("check")
    (message,) = warnings(caplog, "table-unmarked")
    assert "table 'orders'" in message
    assert "@with_rls" in message


# --- columns --------------------------------------------------------------------------


POLICIED = ORDER.replace(
    "@with_rls", '@with_rls(policies=[Policy("p", using="item <> \'\'")])'
)
UNMARKED = ORDER.replace("@with_rls", "").replace("TenantMixin, Base", "Base")
UNMARKED = UNMARKED.replace(
    "    item:", "    tenant: Mapped[str] = mapped_column(Text, index=True)\n    item:"
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("String(20)", "Text"),
        ("(Text, index=True)", "(String(40), index=True)"),
        ("    item: Mapped[str] = mapped_column(String(20), default='')\n", ""),
        ('    __table_args__ = (UniqueConstraint("tenant", "id"),)\n', ""),
    ],
    ids=["user's column altered", "tenant column altered", "dropped", "both"],
)
@pytest.mark.parametrize("mark", ["", "@shared_table"])
def test_the_mark_goes_with_a_column_of_its_policies(
    database: Database, tmp_path: Path, old: str, new: str, mark: str
) -> None:
    project = Project(tmp_path, database, POLICIED.replace('default=""', "default=''"))
    project.migrate()
    after = UNMARKED.replace('default=""', "default=''").replace(old, new)
    if old.startswith("    __table"):
        after = after.replace(
            "    tenant: Mapped[str] = mapped_column(Text, index=True)\n", ""
        )
    assert_migrates(project, after.replace("\nclass Order", f"\n{mark}\nclass Order"))


def test_a_primary_key_with_a_sequence_of_the_models(
    database: Database, tmp_path: Path
) -> None:
    models = ORDER.replace(
        "mapped_column(primary_key=True)",
        'mapped_column(Sequence("orders_id_seq"), primary_key=True)',
    )
    project = Project(tmp_path, database, models)
    project.migrate()
    assert project.is_up_to_date()


@pytest.mark.parametrize("schema", [None, "keys"])
def test_a_sequence_that_the_models_name(
    database: Database,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    schema: str | None,
) -> None:
    """It is created by hand, and tenants may take values of it from the start."""
    database.execute("CREATE SCHEMA keys AUTHORIZATION owner", login="superuser")
    name = "numbers" if schema is None else "keys.numbers"
    database.execute(f"CREATE SEQUENCE {name}", login="owner")
    database.execute("GRANT CREATE ON SCHEMA public TO owner")
    models = ORDER.replace(
        "mapped_column(primary_key=True)",
        f'mapped_column(Sequence("numbers", schema={schema!r}), primary_key=True)',
    )
    project = Project(tmp_path, database, models)
    project.migrate()
    assert project.is_up_to_date()
    taken = f"SET ROLE tenants; SELECT nextval('{name}')"
    database.execute(taken)
    database.execute(f"REVOKE USAGE ON SEQUENCE {name} FROM tenants")
    source = assert_migrates(project, models)
    assert "'numbers', ['USAGE'], ['tenants']" in upgrade_of(source)
    database.execute(f"ALTER SEQUENCE {name} OWNER TO app")
    database.execute(f"REVOKE USAGE ON SEQUENCE {name} FROM tenants")
    assert "numbers belongs to app" in refusal(project, caplog)


def test_a_collation_that_takes_tenants_for_equal(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = Project(tmp_path, database, ORDER)
    project.migrate()
    try:
        database.execute(
            "CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2',"
            " deterministic = false)"
        )
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this build of PostgreSQL has no ICU")
    for policy in ("tenant_isolation", "tenant_floor", "tenants_admin"):
        database.execute(f"DROP POLICY {policy} ON orders")
    database.execute("ALTER TABLE orders ALTER tenant TYPE text COLLATE folded")
    message = refusal(project, caplog)
    assert "column tenant of table public.orders" in message


@pytest.mark.parametrize("policy", ["tenant_floor", "p"])
def test_a_recreated_policy_keeps_its_comment(
    database: Database, tmp_path: Path, policy: str
) -> None:
    project = Project(tmp_path, database, POLICIED)
    project.migrate()
    database.execute(f"COMMENT ON POLICY {policy} ON orders IS 'ask the auditors'")
    # a restrictive policy made permissive, and the opposite, is dropped and created
    kind = "PERMISSIVE" if policy == "tenant_floor" else "RESTRICTIVE"
    database.execute(
        f"DROP POLICY {policy} ON orders; CREATE POLICY {policy} ON orders AS {kind}"
        f" TO tenants USING (true);"
        f"COMMENT ON POLICY {policy} ON orders IS 'ask the auditors'"
    )
    source = assert_migrates(project, POLICIED)
    assert source.count("comment='ask the auditors'") == 2  # and the downgrade's


# --- names -------------------------------------------------------------------------


def test_names_that_changed(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The earlier group roles keep nothing, and what stays is said."""
    project = Project(tmp_path, database, ORDER)
    project.migrate()
    renamed = '\nBase.metadata.info["tenancy"] = Tenancy.named("shop")\n'
    caplog.clear()
    source = assert_migrates(project, renamed + ORDER)
    assert "'tenants'" in upgrade_of(source)
    (message,) = warnings(caplog, "names-changed")[:1]
    assert "tenants, tenants_admin" in message
    held = database.rows(
        "SELECT grantee FROM information_schema.role_table_grants"
        " WHERE table_name = 'orders' AND grantee ~ '^tenants'"
    )
    assert held == []
    (usage,) = database.rows(
        "SELECT nspacl::text FROM pg_namespace n WHERE nspname = 'public'"
    )[0]
    assert "tenants" not in usage.replace("shop_tenants", "")


def test_a_reader_named_by_one_of_our_policies_keeps_what_it_has(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    """It has not the privileges of tenants, and is none of an earlier configuration."""
    project.database.execute(
        "CREATE ROLE reporting; GRANT SELECT ON orders TO reporting;"
        "ALTER POLICY tenant_isolation ON orders TO tenants, reporting"
    )
    caplog.clear()
    source = upgrade_of(project.autogenerate())
    assert "op.alter_policy(" in source
    assert "op.revoke_privileges" not in source
    assert warnings(caplog, "names-changed") == []
