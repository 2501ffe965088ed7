"""A database with tenants, as an installation would have it, for one benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import MigrateOperation, OpContainer
from sqlalchemy import Identity, MetaData, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from servers import CREATE_LOGINS, Database, Server
from sqlalchemy_tenants import Tenancy, TenantMixin, with_rls

#: Rows that :func:`fill` gives a tenant; the first one's id is known, see
#: :func:`first_id`.
ROWS = 10


class Base(DeclarativeBase):
    pass


@with_rls
class Note(TenantMixin, Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    amount: Mapped[int] = mapped_column(default=0)
    body: Mapped[str] = mapped_column(default="")


class PlainBase(DeclarativeBase):
    metadata = MetaData()


class PlainNote(PlainBase):
    """The same without tenants; the login ``owner`` may use it."""

    __tablename__ = "plain_notes"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[str] = mapped_column(index=True)
    amount: Mapped[int] = mapped_column(default=0)
    body: Mapped[str] = mapped_column(default="")


def tenant_name(number: int) -> str:
    """The tenant of a number, from 1."""
    return f"t{number}"


def first_id(number: int) -> int:
    """The primary key of a row of that tenant."""
    return (number - 1) * ROWS + 1


@contextmanager
def tenants_database(version: int) -> Iterator[Database]:
    """A server with one migrated database and the logins of :class:`.Database`."""
    with Server(version) as server:
        with server.connect() as connection:
            connection.execute(CREATE_LOGINS)
            connection.execute("CREATE DATABASE bench OWNER owner")
        database = Database("bench", server)
        engine = create_engine(database.owner_url)
        PlainBase.metadata.create_all(engine)
        engine.dispose()
        migrate(database, Base.metadata)
        if version >= 16:
            database.execute(
                "GRANT tenants TO manager WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;"
                "GRANT tenants_shared TO app_shared WITH INHERIT FALSE, SET TRUE"
            )
        else:
            database.execute(
                "ALTER ROLE manager NOINHERIT; GRANT tenants_shared TO app_shared"
            )
        yield database


def migrate(database: Database, metadata: MetaData) -> None:
    """Do what ``alembic upgrade head`` would after ``alembic revision``."""
    engine = create_engine(database.owner_url)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection)
        operations = Operations(context)

        def invoke(operation: MigrateOperation) -> None:
            if isinstance(operation, OpContainer):
                for each in operation.ops:
                    invoke(each)
            else:
                operations.invoke(operation)

        upgrade = produce_migrations(context, metadata).upgrade_ops
        assert upgrade is not None
        for each in upgrade.ops:
            if type(each).__name__ != "DropTableOp":  # the plain table
                invoke(each)
    engine.dispose()


def create_roles(
    database: Database, first: int, last: int, tenancy: Tenancy | None = None
) -> None:
    """Create tenants as superuser, which is faster, and leaves the catalog as
    ``create_tenant`` by the login ``manager`` would."""
    tenancy = Tenancy.given(tenancy)
    version = database.server.version
    administer = (
        "EXECUTE format('GRANT %I TO manager"
        " WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', role);"
        if version >= 16  # there who creates a role administers it
        else ""
    )
    for start in range(first, last + 1, 500):
        database.execute(
            f"""
            DO $$
            DECLARE role text;
            BEGIN
              FOR number IN {start} .. {min(start + 499, last)} LOOP
                role := '{tenancy.role_prefix}t' || number;
                EXECUTE format(
                  'CREATE ROLE %I NOLOGIN IN ROLE {tenancy.tenants_role} ROLE app',
                  role);
                {administer}
              END LOOP;
            END $$
            """
        )


def fill(
    database: Database,
    tenants: int,
    tables: Sequence[str] = ("notes", "plain_notes"),
) -> None:
    """Write ``ROWS`` rows of each tenant."""
    for name in tables:
        database.execute(
            f"""
            INSERT INTO {name} (id, tenant, amount, body)
            SELECT (t - 1) * {ROWS} + n, 't' || t, n, 'row ' || n
            FROM generate_series(1, {tenants}) t, generate_series(1, {ROWS}) n;
            SELECT setval(
                pg_get_serial_sequence('{name}', 'id'), {tenants * ROWS});
            """
        )
    database.execute("VACUUM ANALYZE")
