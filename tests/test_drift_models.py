"""Changes of the models: the migration is exact in both directions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from projects import Project, assert_migrates, snapshot, upgrade_of
from servers import Database

ORDERS = """
@with_rls{mark}
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant = mapped_column({type}, nullable=False)
    item: Mapped[str] = mapped_column(String(20))
"""
INVOICES = """
@with_rls
class Invoice(TenantMixin, Base):
    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
"""
ORDER = ORDERS.format(mark="", type="Text")
UNMARKED = ORDER.replace("@with_rls", "").replace(
    "nullable=False", "nullable=False, index=True"
)
NOTHING = "class Base(DeclarativeBase): pass"


def orders(*policies: str, type: str = "Text") -> str:
    return ORDERS.format(mark=f"(policies=[{', '.join(policies)}])", type=type)


CHANGES = {
    "first": ("", ORDER + INVOICES),
    "one of several marks removed": (ORDER + INVOICES, UNMARKED + INVOICES),
    "last mark removed": (ORDER, UNMARKED),
    "last mark removed, default stays": (
        INVOICES,
        INVOICES.replace("@with_rls", ""),
    ),
    "last table dropped": (INVOICES, ""),
    "one of several tables dropped": (ORDER + INVOICES, INVOICES),
    "table renamed": (ORDER, ORDER.replace('"orders"', '"purchases"')),
    "marked to shared": (ORDER, UNMARKED.replace("\nclass", "\n@shared_table\nclass")),
    "shared to marked": (UNMARKED.replace("\nclass", "\n@shared_table\nclass"), ORDER),
    "shared privileges": (
        UNMARKED.replace("\nclass", "\n@shared_table\nclass"),
        UNMARKED.replace(
            "\nclass", "\n@shared_table(privileges=['INSERT', 'UPDATE'])\nclass"
        ),
    ),
    "policy added": (ORDER, orders("Policy('p', using='id > 5')")),
    "policy removed": (orders("Policy('p', using='id > 5')"), ORDER),
    "policy changed": (
        orders("Policy('p', using='id > 5')"),
        orders("Policy('p', using='id > 6', with_check='id > 7', roles='public')"),
    ),
    "policy's roles changed": (
        orders("Policy('p', using='id > 5')"),
        orders("Policy('p', using='id > 5', roles=['tenants_admin', 'app'])"),
    ),
    "policy's command changed": (
        orders("Policy('p', using='id > 5')"),
        orders("Policy('p', using='id > 5', command='DELETE', permissive=False)"),
    ),
    "policy's expression taken away": (
        orders("Policy('p', using='id > 5', with_check='id > 6')"),
        orders("Policy('p', with_check='id > 6')"),
    ),
    "tenant column renamed": (
        ORDER,
        ORDER.replace("tenant =", "account =").replace(
            "@with_rls", "@with_rls(tenant_column='account')"
        ),
    ),
    "tenant column replaced by another type": (
        ORDER,
        ORDER.replace("tenant =", "account =")
        .replace("@with_rls", "@with_rls(tenant_column='account')")
        .replace("Text", "BigInteger"),
    ),
    "text to varchar": (ORDER, ORDER.replace("Text", "String(30)")),
    "varchar to text": (ORDER.replace("Text", "String(30)"), ORDER),
    "int to bigint": (
        ORDER.replace("Text", "Integer"),
        ORDER.replace("Text", "BigInteger"),
    ),
    "bigint to smallint": (
        ORDER.replace("Text", "BigInteger"),
        ORDER.replace("Text", "SmallInteger"),
    ),
    "type of a column in a user's policy": (
        orders("Policy('p', using=\"item = 'x'\")"),
        orders("Policy('p', using=\"item = 'x'\")").replace("String(20)", "Text"),
    ),
    "type and policy at once": (
        orders("Policy('p', using=\"item = 'x'\")"),
        orders("Policy('p', using=\"item = 'y'\")").replace("String(20)", "Text"),
    ),
    "column dropped with its policy": (
        orders("Policy('p', using=\"item = 'x'\")"),
        re.sub(".*item:.*", "", ORDER),
    ),
    "column added with a policy": (
        re.sub(".*item:.*", "", ORDER),
        orders("Policy('p', using=\"item = 'x'\")"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_models(database: Database, tmp_path: Path, change: str) -> None:
    before, after = CHANGES[change]
    project = Project(tmp_path, database, before)
    if before:
        project.migrate()
        assert project.is_up_to_date()
    source = assert_migrates(project, after)
    created_tenancy = "op.create_tenancy" in upgrade_of(source)
    dropped_tenancy = "op.drop_tenancy" in upgrade_of(source)
    assert created_tenancy is (change == "first")
    assert dropped_tenancy is (change in ("last mark removed", "last table dropped"))


def test_dropped_table_comes_back_with_all_that_it_had(
    database: Database, tmp_path: Path
) -> None:
    project = Project(tmp_path, database, ORDER + INVOICES)
    project.migrate()
    database.execute(
        """
        CREATE ROLE reporting; CREATE ROLE tenant_acme;
        GRANT SELECT, UPDATE (item) ON orders TO reporting WITH GRANT OPTION;
        GRANT USAGE, SELECT ON SEQUENCE orders_id_seq TO reporting, PUBLIC;
        GRANT TRUNCATE ON orders TO tenant_acme;
        CREATE POLICY by_hand ON orders FOR SELECT TO reporting USING (id > 5);
        ALTER TABLE orders NO FORCE ROW LEVEL SECURITY;
        """
    )
    assert_migrates(project, INVOICES)


def test_table_without_tenants_is_dropped_as_ever(
    database: Database, tmp_path: Path
) -> None:
    project = Project(tmp_path, database, UNMARKED + INVOICES)
    project.migrate()
    database.execute(
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY p ON orders TO PUBLIC USING (true);"
        "GRANT SELECT ON orders TO app"
    )
    project.write_models(INVOICES)
    assert "policy" not in project.autogenerate()


MEMBERS = """
class Member(Base):
    __tablename__ = "{name}"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[int] = mapped_column({type})
"""
EXISTS = (
    "Policy('p', using='EXISTS (SELECT 1 FROM {0} m WHERE m.customer = orders.id)')"
)


@pytest.mark.parametrize("name", ["aaa", "zzz"])
@pytest.mark.parametrize(
    "change",
    [
        "created",
        "dropped",
        "policy created with the table",
        "policy moves to a new table",
        "column replaced",
        "column's type",
        "column's type and policy",
        "policy's table dropped, too",
    ],
)
def test_policy_that_mentions_another_table(
    database: Database, tmp_path: Path, name: str, change: str
) -> None:
    """The order is right whichever table's name comes first."""
    other = MEMBERS.format(name=name, type="Integer")
    policy = EXISTS.format(name)
    marked = orders(policy)
    before, after = {
        "created": ("", marked + other),
        "policy created with the table": (ORDER, marked + other),
        "dropped": (marked + other, ORDER),
        "policy moves to a new table": (
            marked + other,
            orders(policy.replace(name, "mmm")) + other.replace(name, "mmm"),
        ),
        "column replaced": (
            marked + other,
            (marked + other).replace("customer", "client"),
        ),
        "column's type": (
            marked + other,
            marked + MEMBERS.format(name=name, type="BigInteger"),
        ),
        "column's type and policy": (
            marked + other,
            orders(policy.replace("=", "<>").replace("using<>", "using="))
            + MEMBERS.format(name=name, type="BigInteger"),
        ),
        "policy's table dropped, too": (marked + other + INVOICES, INVOICES),
    }[change]
    project = Project(tmp_path, database, before)
    if before:
        project.migrate()
        assert project.is_up_to_date()
    assert_migrates(project, after)


def test_statements_beside_a_changed_tenant_column_touch_all_rows(
    database: Database, tmp_path: Path
) -> None:
    """Between the drop of all policies and their creation, FORCE hides every row."""
    project = Project(tmp_path, database, ORDER)
    project.migrate()
    database.execute(
        "SET ROLE tenants_admin; INSERT INTO orders (tenant, item) VALUES ('1', 'a')"
    )
    project.write_models(ORDER.replace("Text", "Integer"))
    source = project.autogenerate()
    path = next((project.path / "migrations" / "versions").glob("r002*"))
    text = path.read_text()
    backfill = "op.execute(\"UPDATE orders SET tenant = tenant || '2'\")"
    column = re.search(r"    op\.alter_column\(.*?nullable=False\)", text, re.DOTALL)
    assert column is not None, source
    using = column[0][:-1] + ", postgresql_using='tenant::integer')"
    path.write_text(text.replace(column[0], f"    {backfill}\n{using}", 1))
    project.must("upgrade", "head")
    assert database.rows("SELECT tenant FROM orders") == [(12,)]
    assert project.is_up_to_date()


def test_type_is_not_compared(database: Database, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        database,
        ORDER.replace("Text", "Integer"),
        options="options['compare_type'] = False",
    )
    project.migrate()
    assert project.is_up_to_date()
    source = assert_migrates(project, ORDER.replace("Text", "BigInteger"))
    assert "alter_column" not in source
    assert_migrates(project, ORDER.replace("Text", "SmallInteger"))


def test_tenants_declared_in_the_configuration(
    database: Database, tmp_path: Path
) -> None:
    models = """
Base.metadata.info["tenancy"] = Tenancy(tenants=[{0}], logins=["app"])
"""
    project = Project(tmp_path, database, models.format("") + ORDER)
    project.migrate()
    assert project.is_up_to_date()
    without = snapshot(database)
    assert_migrates(project, models.format("'acme', 'a\"b %', 7") + ORDER)
    source = assert_migrates(project, models.format("7") + ORDER)
    assert "op.drop_tenant_role('acme')" in upgrade_of(source)
    assert_migrates(project, models.format("") + ORDER)
    assert snapshot(database) == without


def test_configuration_without_marks_does_nothing(
    database: Database, tmp_path: Path
) -> None:
    configured = 'Base.metadata.info["tenancy"] = Tenancy.named("t")\n'
    project = Project(tmp_path, database, configured + UNMARKED)
    source = project.migrate()
    assert "tenancy" not in source
    assert "rls" not in source
    assert_migrates(project, configured + ORDER)
    source = assert_migrates(project, configured + UNMARKED)
    assert "op.drop_tenancy(\n" in upgrade_of(source)
    assert "role_prefix='t_tenant_'" in upgrade_of(source)
