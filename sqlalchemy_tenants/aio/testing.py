"""The async twin of :mod:`sqlalchemy_tenants.testing`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from ..tenancy import TenantId
from ..testing import (
    Leak,
    NotIsolated,
    begin_trial,
    joining_kw,
    missing_tenants,
    raise_leaks,
    require_arguments,
)
from .managers import PostgresManager, _run
from .session import AsyncTenantSession

__all__ = ["Leak", "NotIsolated", "assert_isolated"]


async def assert_isolated(
    manager: PostgresManager,
    fill: Callable[[Any], Awaitable[object]],
    tenants: Sequence[TenantId] = ("a", "b"),
    *,
    known: Collection[str] = (),
) -> None:
    """Do what :func:`sqlalchemy_tenants.testing.assert_isolated` does::

        async def fill(session):
            session.add(Order(item="anvil"))

        await assert_isolated(manager, fill)

    It raises the same; ``fill`` is a coroutine function.
    """
    sync: Any = getattr(manager, "_manager", manager)
    require_arguments(sync, tenants)
    async with _existing(manager, tenants), manager._engine.connect() as connection:
        trial = await connection.run_sync(begin_trial, sync, tenants)
        for tenant in tenants:
            await _run(lambda: trial.before(tenant))  # noqa: B023
            session: AsyncTenantSession = manager._session_class(
                connection, **joining_kw(sync, tenant)
            )
            async with session:
                await fill(session)
                await session.commit()
            await _run(lambda: trial.after(tenant))  # noqa: B023
        await _run(trial.attack)
        await connection.rollback()
    raise_leaks(trial, known)


@asynccontextmanager
async def _existing(
    manager: PostgresManager, tenants: Sequence[TenantId]
) -> AsyncIterator[None]:
    missing = await _run(lambda: missing_tenants(manager._manager, tenants))
    async with AsyncExitStack() as stack:
        for tenant in missing:
            await manager.create_tenant(tenant)
            stack.push_async_callback(manager.delete_tenant, tenant)
        yield
