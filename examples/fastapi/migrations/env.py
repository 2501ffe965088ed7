"""Alembic's async env.py: nothing here is about tenants.

Alembic's own table has a schema of its own, which tenants cannot reach.
"""

import asyncio
import os
from logging.config import fileConfig

from alembic import context
from models import Base
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

OPTIONS = {
    "target_metadata": Base.metadata,
    "version_table_schema": "alembic",
    "include_schemas": True,
    "include_name": lambda name, type_, parent: (
        type_ != "schema" or name in (None, "reference")
    ),
}


def run_migrations() -> None:
    with context.begin_transaction():
        context.execute("CREATE SCHEMA IF NOT EXISTS alembic")
        context.execute("CREATE SCHEMA IF NOT EXISTS reference")
        context.run_migrations()


def run_migrations_on(connection: Connection) -> None:
    context.configure(connection=connection, **OPTIONS)
    run_migrations()


async def run_migrations_online() -> None:
    engine = create_async_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run_migrations_on)
    await engine.dispose()


if context.is_offline_mode():
    context.configure(
        dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, **OPTIONS
    )
    run_migrations()
else:
    asyncio.run(run_migrations_online())
