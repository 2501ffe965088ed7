"""Row-level security on the tables of ``orders.py``, as a package's documentation has
it: ``isolate.py ours``, ``isolate.py earlier``, ``isolate.py rls``."""

from __future__ import annotations

import sys

from migrate import migrate
from orders import Base, Customer, Order
from serve import serve
from sqlalchemy import String, column, create_engine


def create(url: str) -> None:
    """Create the tables, without row-level security."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()


def ours(url: str, tenants: list[str]) -> None:
    from sqlalchemy_tenants import Tenancy, with_rls

    Base.metadata.info["tenancy"] = Tenancy.named("shop")
    with_rls(Customer)
    with_rls(Order)
    engine = create_engine(url)
    with engine.begin() as connection:
        migrate(connection, Base.metadata)
    engine.dispose()


def earlier(url: str, tenants: list[str]) -> None:
    from sqlalchemy_tenants import get_process_revision_directives, with_rls
    from sqlalchemy_tenants.managers import PostgresManager

    with_rls(Customer)
    with_rls(Order)
    engine = create_engine(url)
    with engine.begin() as connection:
        directives = get_process_revision_directives(Base.metadata)
        migrate(connection, Base.metadata, directives)
    manager = PostgresManager.from_engine(engine, "public")
    for tenant in tenants:
        manager.create_tenant(tenant)
    engine.dispose()


def rls(url: str, tenants: list[str]) -> None:
    from rls.alembic_rls import set_metadata_info
    from rls.schemas import Command, ConditionArg, Permissive

    policy = Permissive(
        condition_args=[ConditionArg(comparator_name="tenant", type=String)],
        cmd=[Command.all],
        custom_expr=lambda tenant: column("tenant") == tenant,
        custom_policy_name="tenant",
    )
    for model in (Customer, Order):
        model.__rls_policies__ = [policy.model_copy()]
    engine = create_engine(url)
    with engine.begin() as connection:
        migrate(connection, set_metadata_info(Base).metadata)
    engine.dispose()


ISOLATE = {"ours": ours, "earlier": earlier, "rls": rls}

serve(create=create, isolate=ISOLATE[sys.argv[1]])
