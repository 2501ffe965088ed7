"""A job for cron, or the body of a Celery task: something for each tenant in turn.

Each tenant has a session and a transaction of its own, so that one that fails neither
stops nor changes the others. Environment: DATABASE_URL of the login that serves
requests.
"""

import logging
import os
import sys

from models import Base, Order
from sqlalchemy import create_engine, func, select

from sqlalchemy_tenants.managers import PostgresManager


def main() -> int:
    engine = create_engine(os.environ["DATABASE_URL"])
    manager = PostgresManager.from_engine(
        engine, schema="public", metadata=Base.metadata, create_if_missing=False
    )
    failed = 0
    for tenant in manager.list_tenants():
        try:
            with manager.new_session(tenant) as session:
                count = session.scalar(select(func.count()).select_from(Order))
                print(f"{tenant}: {count} orders")
        except Exception:
            logging.exception("tenant %r", tenant)
            failed += 1
    engine.dispose()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
