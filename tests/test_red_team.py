"""Attacks from outside the tests' own lists: one test for each kind that was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from projects import Project
from servers import Database
from sqlalchemy_tenants import Tenancy

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
