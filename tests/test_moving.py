"""Moving from sqlalchemy-tenants 0.2, as ``docs/moving-from-0.2.md`` says."""

from __future__ import annotations

import re
from pathlib import Path

from projects import Project, downgrade_of, snapshot, upgrade_of
from servers import Database

MODELS = """
@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)

class Plan(Base):
    __tablename__ = "plans"
    id: Mapped[int] = mapped_column(primary_key=True)
"""

# What 0.2.0 executes, and its TenantMixin's column: core.py and managers.py.
BUILT = """
CREATE TABLE orders (id serial PRIMARY KEY, tenant varchar NOT NULL);
CREATE TABLE plans (id serial PRIMARY KEY);
CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
INSERT INTO orders (tenant) VALUES ('acme'), ('globex');
CREATE OR REPLACE FUNCTION sqlalchemy_tenants_get_tenant()
    RETURNS text LANGUAGE sql SECURITY INVOKER STABLE
AS $$ SELECT replace(current_user, 'tenant_', '') $$;
ALTER TABLE "orders" ENABLE ROW LEVEL SECURITY;
CREATE POLICY sqlalchemy_tenants_all ON "orders" AS PERMISSIVE FOR ALL
USING ( tenant = ( select sqlalchemy_tenants_get_tenant()::varchar ) )
WITH CHECK ( tenant = ( select sqlalchemy_tenants_get_tenant()::varchar ) );
"""
TENANT = """
CREATE ROLE {0};
GRANT {0} TO owner;
GRANT USAGE ON SCHEMA public TO {0};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {0};
ALTER DEFAULT PRIVILEGES IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {0};
"""


def test_a_database_of_0_2(database: Database, tmp_path: Path) -> None:
    if database.server.version == 15:
        database.execute("ALTER ROLE app NOINHERIT")
    database.execute(BUILT, login="owner")
    for role in ("tenant_acme", "tenant_globex"):
        # on 16 and later the creator administers the role, and can grant it to itself
        database.execute(TENANT.format(role), login="owner")
    before = snapshot(database)
    project = Project(tmp_path, database, MODELS)
    assert project.run("check").status != 0
    source = project.autogenerate()
    assert "op.drop_policy('sqlalchemy_tenants_all', 'orders')" in upgrade_of(source)
    assert "op.create_policy" in downgrade_of(source)
    project.must("upgrade", "head")
    assert project.is_up_to_date()
    project.must("downgrade", "base")
    assert snapshot(database) == before

    # the lines that the page adds
    page = Path(__file__).parent.parent / "docs" / "moving-from-0.2.md"
    ((head, body),) = re.findall(
        r"```python\n(.*?)\n\n\ndef upgrade.*?end Alembic commands ###\n(.*?)```",
        page.read_text(),
        re.DOTALL,
    )
    (path,) = (tmp_path / "migrations" / "versions").glob("r001*")
    text = path.read_text()
    end = "    # ### end Alembic commands ###\n"
    path.write_text(head + "\n" + text.replace(end, end + body, 1))
    project.must("upgrade", "head")
    assert project.is_up_to_date()
    assert database.rows(
        "SELECT array_agg(member::regrole::text ORDER BY member::regrole::text)"
        " FROM pg_auth_members"
        " WHERE roleid = 'tenants'::regrole AND member::regrole::text ~ '^tenant_'"
    ) == [(["tenant_acme", "tenant_globex"],)]
    with database.server.connect(database.name, "app") as connection:
        connection.execute("SET ROLE tenant_acme")
        assert connection.execute("SELECT tenant FROM orders").fetchall() == [("acme",)]
    # a tenant can be deleted: nothing was granted to its role
    database.execute("DROP ROLE tenant_acme", login="owner")
