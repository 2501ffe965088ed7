"""docs/rows.md: every block in it is run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, ForeignKeyConstraint, PrimaryKeyConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from servers import Database
from sqlalchemy_tenants import TenantMixin, shared_table, with_rls
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import grant_logins, migrate

PAGE = (Path(__file__).parent.parent / "docs" / "rows.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Base(DeclarativeBase):
    pass


@shared_table
class Currency(Base):
    __tablename__ = "currencies"

    code: Mapped[str] = mapped_column(primary_key=True)


@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    __table_args__ = (PrimaryKeyConstraint("tenant", "id"),)

    id: Mapped[int]


@with_rls
class Line(TenantMixin, Base):
    __tablename__ = "lines"
    __table_args__ = (
        PrimaryKeyConstraint("tenant", "id"),
        ForeignKeyConstraint(["tenant", "order"], ["orders.tenant", "orders.id"]),
    )

    id: Mapped[int]
    order: Mapped[int]


def test_the_page(
    database: Database,
    make_engine: Callable[..., Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    migrate(database, Base.metadata)
    grant_logins(database)
    database.execute("CREATE DATABASE other TEMPLATE test OWNER owner")
    other = Database("other", database.server)
    counts, archive, move, owner, copy, delete, rename = BLOCKS
    engines = {
        name: make_engine(url)
        for name, url in (
            ("engine", other.app_url),
            ("owner_engine", other.owner_url),
            ("app", database.app_url),
            ("admin", database.admin_url),
        )
    }
    manager = PostgresManager.from_engine(
        engines["app"], "public", admin_engine=engines["admin"], metadata=Base.metadata
    )
    names = {"manager": manager, "PostgresManager": PostgresManager, "Base": Base}
    names |= {"engine": engines["engine"], "owner_engine": engines["owner_engine"]}
    for tenant in ("acme", "globex"):
        manager.create_tenant(tenant)
        with manager.begin(tenant) as connection:
            connection.exec_driver_sql(
                "INSERT INTO orders (id) VALUES (1), (2), (3);"
                'INSERT INTO lines (id, "order") SELECT n, 1 + mod(n, 3)'
                " FROM generate_series(1, 6) n"
            )

    exec(counts, names)
    printed = counts.partition("#")[2].strip()
    assert capsys.readouterr().out == f"{printed}\n"
    exec(archive, names)
    assert "lines 6 (('tenant', 'text'), ('id', 'integer')" in capsys.readouterr().out
    exec(copy, names)
    exec(owner, names)
    # roles belong to the cluster, which two databases of this test share
    exec(move.partition("\n")[2], names)
    assert other.rows("SELECT tenant, count(*) FROM lines GROUP BY 1") == [("acme", 6)]
    exec(rename, names)
    rows = "SELECT tenant, count(*) FROM lines GROUP BY 1 ORDER BY 1"
    assert database.rows(rows) == [("acme-test", 6), ("initech", 6)]
    exec(delete.replace("acme", "acme-test"), names)
    assert database.rows(rows) == [("initech", 6)]
    assert manager.list_tenants() == ["initech"]
