"""Are tenants isolated? The first test to copy.

Environment: OWNER_DATABASE_URL of the login that runs the migrations, DATABASE_URL of
the one that serves requests.
"""

import os

from models import Base, Customer, Order
from sqlalchemy import create_engine

from sqlalchemy_tenants import TenantSession
from sqlalchemy_tenants.managers import PostgresManager
from sqlalchemy_tenants.testing import assert_isolated, create_all


def fill(session: TenantSession) -> None:
    """Add a row to each table of tenants."""
    customer = Customer(name="Wile E. Coyote")
    session.add(customer)
    session.flush()
    session.add(Order(customer_id=customer.id, item="anvil"))


def test_tenants_are_isolated() -> None:
    owner = create_engine(os.environ["OWNER_DATABASE_URL"])
    app = create_engine(os.environ["DATABASE_URL"])
    with owner.begin() as connection:
        create_all(connection, Base.metadata)
    manager = PostgresManager.from_engine(
        app, schema="public", admin_engine=owner, metadata=Base.metadata
    )
    assert_isolated(manager, fill)
    owner.dispose()
    app.dispose()
