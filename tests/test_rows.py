"""Rows of one tenant: export, import, delete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    ForeignKeyConstraint,
    Identity,
    Integer,
    PrimaryKeyConstraint,
    Sequence,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from servers import Database
from sqlalchemy_tenants import (
    TenantMixin,
    shared_table,
    with_rls,
)
from sqlalchemy_tenants.declare import tenant_column
from sqlalchemy_tenants.rows import RowsProgress
from tenancy import (  # noqa: F401
    World,
    driver_fixture,
    grant_logins,
    isolation_fixture,
    migrate,
    on_each_driver,
)


class Base(DeclarativeBase):
    pass


@shared_table
class Currency(Base):
    __tablename__ = "currencies"

    code: Mapped[str] = mapped_column(primary_key=True)


@with_rls
class Region(TenantMixin, Base):
    """References itself."""

    __tablename__ = "regions"
    __table_args__ = (
        PrimaryKeyConstraint("tenant", "id"),
        ForeignKeyConstraint(["tenant", "parent"], ["regions.tenant", "regions.id"]),
    )

    id: Mapped[int]
    parent: Mapped[int | None] = mapped_column(index=True)


@with_rls
class Customer(TenantMixin, Base):
    """Its best order references it: see ``CYCLE``."""

    __tablename__ = "customers"
    __table_args__ = (
        PrimaryKeyConstraint("tenant", "id"),
        ForeignKeyConstraint(
            ["tenant", "region"],
            ["regions.tenant", "regions.id"],
            onupdate="CASCADE",
            ondelete="CASCADE",
        ),
    )

    id: Mapped[int]
    region: Mapped[int] = mapped_column(index=True)
    best: Mapped[int | None] = mapped_column(index=True)


@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    __table_args__ = (
        PrimaryKeyConstraint("tenant", "id"),
        ForeignKeyConstraint(
            ["tenant", "customer"],
            ["customers.tenant", "customers.id"],
            onupdate="RESTRICT",
            ondelete="RESTRICT",
        ),
    )

    id: Mapped[int] = mapped_column(Integer, Sequence("order_numbers"))
    customer: Mapped[int] = mapped_column(index=True)


CYCLE = (
    "ALTER TABLE customers ADD CONSTRAINT best_order FOREIGN KEY (tenant, best)"
    " REFERENCES orders (tenant, id)"
)


@with_rls
class Line(TenantMixin, Base):
    __tablename__ = "lines"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "order"],
            ["orders.tenant", "orders.id"],
            ondelete="CASCADE",
        ),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    order: Mapped[int] = mapped_column(index=True)
    body: Mapped[str | None]


@with_rls(tenant_column="account")
class Payment(Base):
    """Joined by the orders' key; its tenant column has another name."""

    __tablename__ = "payments"
    __table_args__ = (
        PrimaryKeyConstraint("account", "id"),
        ForeignKeyConstraint(["account", "id"], ["orders.tenant", "orders.id"]),
    )

    account: Mapped[str] = tenant_column()
    id: Mapped[int] = mapped_column(autoincrement=False)
    amount: Mapped[float]


TABLES = ("regions", "customers", "orders", "lines", "payments", "events")


@with_rls
class Event(TenantMixin, Base):
    """Partitioned, with columns of every kind that COPY writes: see ``KINDS``."""

    __tablename__ = "events"
    __table_args__ = (
        PrimaryKeyConstraint("tenant", "id"),
        {"postgresql_partition_by": "HASH (tenant)"},
    )

    id: Mapped[int] = mapped_column(autoincrement=False)


KINDS = """
CREATE SEQUENCE order_numbers; GRANT USAGE ON SEQUENCE order_numbers TO tenants;
CREATE TABLE events_0 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE events_1 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TYPE mood AS ENUM ('happy', 'it''s, "so"');
CREATE TYPE place AS (street text, number integer);
CREATE DOMAIN code AS varchar(3) CHECK (VALUE <> '');
ALTER TABLE events
    ADD doubled integer GENERATED ALWAYS AS (id * 2) STORED,
    ADD words text, ADD short varchar(5), ADD padded char(4), ADD bits bit(3),
    ADD amount numeric(12, 3), ADD ratio double precision, ADD at timestamptz,
    ADD day date, ADD span interval, ADD data bytea, ADD document json,
    ADD fast jsonb, ADD numbers integer[], ADD texts text[][], ADD feeling mood,
    ADD feelings mood[], ADD home place, ADD homes place[], ADD tag code,
    ADD during tstzrange, ADD "a""b:c %s" text, ADD one "char", ADD price money;
"""

FILL = """
INSERT INTO regions SELECT %(t)s, n, CASE WHEN n < %(n)s * 40 THEN n + 1 END
    FROM generate_series(1, %(n)s * 40) n;
INSERT INTO customers SELECT %(t)s, n, n FROM generate_series(1, %(n)s * 30) n;
INSERT INTO orders (tenant, id, customer)
    SELECT %(t)s, n, 1 + n %% (%(n)s * 30) FROM generate_series(1, %(n)s * 40) n;
UPDATE customers SET best = id WHERE tenant = %(t)s;
INSERT INTO lines (tenant, "order", body)
    SELECT %(t)s, 1 + n %% (%(n)s * 40), 'line ' || n
    FROM generate_series(1, %(n)s * 70) n;
INSERT INTO payments SELECT %(t)s, n, n / 7.0 FROM generate_series(1, %(n)s * 20) n;
"""

EVENTS = r"""
INSERT INTO events (tenant, id) VALUES (%(t)s, 1);
INSERT INTO events (tenant, id, words, short, padded, bits, amount, ratio, at, day,
    span, data, document, fast, numbers, texts, feeling, feelings, home, homes, tag,
    during, "a""b:c %%s", one, price) VALUES
(%(t)s, 2, '', '', '', '101', 'NaN', 'NaN', 'infinity', '-infinity', '1 mon -3 days',
    '', 'null', 'null', '{}', '{}', NULL, '{}', ROW(NULL, NULL), '{}', 'x', 'empty',
    '', 'x', 1.5),
(%(t)s, 3, (SELECT string_agg(chr(c), '') FROM generate_series(1, 700) c), E'\\N"\t',
    'a', '001', -1.005, 0.1 + 0.2, '2024-02-29 12:00:00.000001+05:30', '0044-03-15 BC',
    '-1 year', '\x00ff5c0a', '{"a" : [1, "\\n\u0001"]}', '"\\N"', '{1,NULL,-3}',
    '{{"a,b","NULL"},{NULL,"\\"}}', 'it''s, "so"', '{happy,NULL}', ROW('a,"b\', 7),
    ARRAY[ROW('', NULL), NULL]::place[], 'ü€', '[2024-01-01,)', '\.', '\', -2);
"""


def build(database: Database, rows: int = 1) -> Database:
    """Tables and logins, and rows of two tenants."""
    migrate(database, Base.metadata)
    grant_logins(database)
    database.execute(KINDS + CYCLE, login="owner")
    database.execute("INSERT INTO currencies VALUES ('EUR')")
    return database


@pytest.fixture(name="world")
def world_fixture(database: Database, driver: str, isolation: str) -> World:
    """All drivers and both isolations; ``acme`` and ``globex`` have rows."""
    return World(build(database), driver, isolation)


@pytest.fixture(name="plain")
def plain_fixture(database: Database) -> Iterator[World]:
    """psycopg and role isolation."""
    world = World(build(database), "psycopg", "role")
    yield world
    for engine in world.engines:
        engine.dispose()


def fill(database: Database, tenant: str, n: int = 1) -> None:
    with database.server.connect(database.name) as connection:
        connection.execute("SET session_replication_role = replica")  # faster
        for statement in (FILL + EVENTS).split(";\n"):
            if statement.strip():
                connection.execute(statement, {"t": tenant, "n": n})
        connection.execute("ANALYZE")  # or foreign keys are looked up by the tenant


def manager_of(world: World, **kw: Any) -> Any:
    """A manager whose admin engine is the owner's, who may set sequences."""
    return world.manager(
        metadata=Base.metadata, **{"admin_engine": world.engine("owner"), **kw}
    )


def other_database(world: World) -> World:
    """A database of the same cluster, with the same tables and no rows yet."""
    world.database.execute("CREATE DATABASE other TEMPLATE test OWNER owner")
    other = Database("other", world.database.server)
    return World(other, world.driver, world.isolation, world.engines)


def checksums(database: Database, tenant: str) -> dict[str, tuple[int, str]]:
    """Number and checksum of a tenant's rows, whatever its name, by table."""
    result = {}
    for table in TABLES:
        column = "account" if table == "payments" else "tenant"
        ((count, checksum),) = database.rows(
            f"SELECT count(*), md5(string_agg((to_jsonb(t) - '{column}')::text, ','"
            f" ORDER BY id)) FROM {table} t WHERE {column} = %s",
            [tenant],
        )
        result[table] = (count, checksum)
    return result


@on_each_driver
def test_rows_go_to_another_database_and_are_the_same(
    world: World, tmp_path: Path
) -> None:
    other = other_database(world)
    for tenant in ("acme", "globex"):
        fill(world.database, tenant)
    world.create("acme", "initech")
    manager = manager_of(world)
    told: list[RowsProgress] = []
    before = checksums(world.database, "acme")
    path = tmp_path / "acme.rows"

    exported = manager.export_rows("acme", path, progress=told.append)
    assert exported == {table: before[table][0] for table in TABLES}
    assert exported.left_out == ("currencies",)
    assert exported.total == 203
    assert told[-1] == RowsProgress("events", 3, 3)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]

    assert manager.delete_rows("acme", dry_run=True) == exported
    assert checksums(world.database, "acme") == before
    assert manager.delete_rows("acme") == exported
    assert manager.delete_rows("acme").total == 0
    assert checksums(world.database, "globex")["lines"][0] == 70

    there = manager_of(other)
    assert there.import_rows("acme", path) == exported
    assert checksums(other.database, "acme") == before
    told.clear()
    there.delete_rows("acme")
    there.import_rows("acme", path, as_tenant="initech", progress=told.append)
    assert checksums(other.database, "initech") == before
    assert RowsProgress("lines", 70, 70) in told
    # the sequences are behind the highest keys
    with there.begin("initech") as connection:
        connection.exec_driver_sql('INSERT INTO lines ("order") VALUES (1)')
    assert other.database.rows("SELECT max(id) FROM lines") == [(71,)]
    assert other.database.rows("SELECT nextval('order_numbers')") == [(41,)]


def test_200_000_rows(plain: World, tmp_path: Path) -> None:
    other = other_database(plain)
    fill(plain.database, "acme", 1000)
    plain.create("acme", "initech")
    manager, there = manager_of(plain), manager_of(other)
    before = checksums(plain.database, "acme")
    manager.export_rows("acme", tmp_path / "acme.rows")
    assert manager.delete_rows("acme").total == 200_003
    there.import_rows("acme", tmp_path / "acme.rows", as_tenant="initech")
    assert checksums(other.database, "initech") == before
