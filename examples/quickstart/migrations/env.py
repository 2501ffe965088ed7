"""An ordinary env.py: nothing here is about tenants.

Alembic's own table has a schema of its own, which tenants cannot reach.
"""

import os
from logging.config import fileConfig

from alembic import context
from models import Base
from sqlalchemy import create_engine, pool

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

OPTIONS = {"target_metadata": Base.metadata, "version_table_schema": "alembic"}


def run_migrations() -> None:
    with context.begin_transaction():
        context.execute("CREATE SCHEMA IF NOT EXISTS alembic")
        context.run_migrations()


if context.is_offline_mode():
    context.configure(
        dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, **OPTIONS
    )
    run_migrations()
else:
    engine = create_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, **OPTIONS)
        run_migrations()
