"""Tenants of sqlalchemy-tenants 0.2.0: creating one, and a row of one."""

from __future__ import annotations

import time
from typing import Any

from notes import Note
from serve import serve
from sqlalchemy import NullPool, create_engine, select
from sqlalchemy.exc import DBAPIError

from sqlalchemy_tenants.managers import PostgresManager

#: By URL and by what they are for.
managers: dict[tuple[str, str], PostgresManager] = {}


def _manager(url: str, purpose: str) -> PostgresManager:
    if (url, purpose) not in managers:
        pool: dict[str, Any] = {"pool_size": 1}
        if purpose == "new connections":
            pool = {"poolclass": NullPool}
        engine = create_engine(url, **pool)
        managers[url, purpose] = PostgresManager.from_engine(engine, "public")
    return managers[url, purpose]


def create(url: str, tenant: str) -> float:
    """Create a tenant, and return the seconds that it took."""
    # not on a connection that had a tenant's session: it keeps the tenant's role
    manager = _manager(url, "creating")
    started = time.perf_counter()
    manager.create_tenant(tenant)
    return time.perf_counter() - started


def create_until_refused(url: str, prefix: str, most: int) -> tuple[int, str]:
    """Create tenants until the database refuses; return how many, and why."""
    manager = _manager(url, "creating")
    for number in range(most):
        try:
            manager.create_tenant(f"{prefix}{number}")
        except DBAPIError as error:
            return number, str(error.orig).splitlines()[0]
    return most, ""


def read(url: str, tenant: str, id: int, new: bool) -> float:
    """Read a row of a tenant, and return the seconds that it took.

    :param new: on a new connection.
    """
    manager = _manager(url, "new connections" if new else "warm connections")
    started = time.perf_counter()
    with manager.new_tenant_session(tenant, create_if_missing=False) as session:
        assert session.scalar(select(Note.id).where(Note.id == id)) == id
        session.commit()
    return time.perf_counter() - started


serve(create=create, create_until_refused=create_until_refused, read=read)
