"""What leads past policies, repairs and refusals: kinds that no other list has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from checks import METADATA
from projects import Project
from servers import Database, requested_version
from sqlalchemy_tenants import ScopeError, Tenancy
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import migrate

NOTE = """
@with_rls
class Note(TenantMixin, Base):
    __tablename__ = "notes"
    __table_args__ = (UniqueConstraint("tenant", "id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
"""


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Project:
    project = Project(tmp_path, database, NOTE)
    project.migrate()
    return project


# --- repairs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        {"owners": ["tenants"]},
        {"owners": ["tenant_acme"]},
        {"owners": ["tenants_shared"]},
        {"logins": ["tenants"]},
        {"logins": ["tenant_globex"], "tenants": ["acme"]},
        {"logins": ["tenants_admin"]},
        {"owners": ["app"], "logins": ["app"]},
    ],
    ids=str,
)
def test_no_tenant_becomes_a_login_or_an_owner(names: dict[str, Any]) -> None:
    """An owner becomes an admin, and a login acts as every tenant."""
    with pytest.raises(ValueError, match=r"owner|login"):
        Tenancy(**names)


@pytest.mark.parametrize("owner", ["tenants", "tenants_shared", "tenant_acme"])
def test_no_remedy_makes_tenants_admins(
    project: Project, caplog: pytest.LogCaptureFixture, owner: str
) -> None:
    project.database.execute(
        "CREATE ROLE tenant_acme IN ROLE tenants;"
        f"ALTER TABLE notes OWNER TO {owner}; GRANT INSERT ON notes TO PUBLIC"
    )
    assert project.run("check").status != 0
    assert "OWNER TO owner" in caplog.text
    assert "Tenancy(owners=" not in caplog.text
    assert f"GRANT {owner} TO" not in caplog.text


def test_what_the_admin_role_owns_needs_no_grants(project: Project) -> None:
    """It has all privileges on that, and grants to it would be written for ever."""
    project.database.execute(
        "GRANT CREATE ON SCHEMA public TO tenants_admin;"
        "ALTER TABLE notes OWNER TO tenants_admin;"
        "ALTER FUNCTION tenancy.current_tenant() OWNER TO tenants_admin;"
        "REVOKE ALL ON FUNCTION tenancy.current_tenant() FROM PUBLIC;"
        "GRANT EXECUTE ON FUNCTION tenancy.current_tenant() TO tenants;"
        "REVOKE CREATE ON SCHEMA public FROM tenants_admin"
    )
    assert project.is_up_to_date()


DECLARED = NOTE + (
    '\nBase.metadata.info["tenancy"] = Tenancy(tenants=["acme"], logins={!r})\n'
)


@pytest.mark.parametrize("logins", [[], ["superuser"]], ids=str)
@pytest.mark.parametrize("login", ["owner", "superuser"])
def test_logins_that_need_no_membership_are_not_missed(
    database: Database, tmp_path: Path, logins: list[str], login: str
) -> None:
    """A superuser acts as any role, and on 15 the owner must not inherit a tenant's."""
    project = Project(tmp_path, database, DECLARED.format(logins), login=login)
    project.migrate()
    assert project.is_up_to_date()


def test_a_removed_login_with_the_admin_option_is_seen(
    database: Database, tmp_path: Path
) -> None:
    project = Project(tmp_path, database, DECLARED.format(["app"]))
    project.migrate()
    database.execute("GRANT tenant_acme TO manager WITH ADMIN OPTION", login="owner")
    assert "op.revoke_tenant_role('acme', ['manager'])" in project.migrate()
    assert project.is_up_to_date()
    assert not database.rows(
        "SELECT WHERE pg_has_role('manager', 'tenant_acme', 'SET')"
        if requested_version() > 15
        else "SELECT WHERE pg_has_role('manager', 'tenant_acme', 'MEMBER')"
    )


# --- what check() sees ----------------------------------------------------------------


@pytest.fixture
def migrated(database: Database) -> Database:
    migrate(database, METADATA)
    return database


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


TENANTS = """
CREATE ROLE tenant_acme IN ROLE tenants;
"""
REPORTING = (
    "CREATE ROLE reporting; GRANT SELECT ON texts TO reporting;"
    "CREATE POLICY p ON texts FOR SELECT TO reporting USING (true);"
)


def test_a_tenant_that_reads_as_another_role_reads_all(migrated: Database) -> None:
    """Why ``policy-reachable`` is an error."""
    migrated.execute(
        TENANTS + REPORTING + "GRANT reporting TO tenant_acme;"
        "GRANT USAGE ON SCHEMA public TO reporting;"
        "INSERT INTO texts VALUES (1, 'acme'), (2, 'globex');"
        "CREATE ROLE acme_login LOGIN NOINHERIT; GRANT tenant_acme TO acme_login"
    )
    with migrated.server.connect(migrated.name, "acme_login") as connection:
        connection.execute("SET ROLE reporting")
        assert len(connection.execute("SELECT FROM texts").fetchall()) == 2


def test_an_owner_that_does_not_inherit_is_confined(
    migrated: Database,
    make_engine: Callable[..., Engine],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On 15 a role inherits from all of its roles or from none."""
    migrated.execute("INSERT INTO texts VALUES (1, 'acme'); ALTER ROLE owner NOINHERIT")
    with migrated.server.connect(migrated.name, "owner") as connection:
        updated = connection.execute("UPDATE texts SET tenant = tenant").rowcount
    manager = PostgresManager.from_engine(
        make_engine(migrated.app_url), "public", metadata=METADATA
    )
    confined = {each.code for each in manager.check()} == {"owner-confined"}
    assert confined is (updated == 0)
    if confined:
        migrated.execute("GRANT ALL ON SCHEMA public TO owner")
        project = Project(tmp_path, migrated, NOTE.replace("notes", "texts"))
        assert project.run("check").status != 0
        assert "ALTER ROLE owner INHERIT" in caplog.text
