"""Are tenants isolated? The test goes through the application's own manager.

Environment: that of main.py, and OWNER_DATABASE_URL of the login that runs the
migrations.
"""

import asyncio
import os

from main import admin_engine, engine, manager
from models import Base, Country, Order
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_tenants.aio import AsyncTenantSession
from sqlalchemy_tenants.aio.testing import assert_isolated
from sqlalchemy_tenants.testing import create_all


async def fill(session: AsyncTenantSession) -> None:
    """Add a row to each table of tenants."""
    session.add(Order(item="anvil", country="NL"))


async def check_isolation() -> None:
    owner = create_async_engine(os.environ["OWNER_DATABASE_URL"])
    async with owner.begin() as connection:
        await connection.run_sync(create_all, Base.metadata)
        # what all tenants share is there before
        country = insert(Country).values(code="NL").on_conflict_do_nothing()
        await connection.execute(country)
    await assert_isolated(manager, fill)
    for each in (owner, engine, admin_engine):
        await each.dispose()


def test_tenants_are_isolated() -> None:
    asyncio.run(check_isolation())
