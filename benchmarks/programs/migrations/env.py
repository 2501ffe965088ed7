"""As ``alembic init`` writes it; what differs between the peers is in ``checks``."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, pool

config = context.config
connectable = create_engine(config.attributes["url"], poolclass=pool.NullPool)

with connectable.connect() as connection:
    context.configure(connection=connection, **config.attributes["options"])
    with context.begin_transaction():
        context.run_migrations()
