"""The async twin of :mod:`sqlalchemy_tenants.testing`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ..tenancy import TenantId
from ..testing import (
    Leak,
    NotIsolated,
    begin_trial,
    missing_tenants,
    raise_leaks,
    require_arguments,
)
from ..values import Context
from .managers import PostgresManager, _run

__all__ = ["Leak", "NotIsolated", "assert_isolated"]


async def assert_isolated(
    manager: PostgresManager,
    fill: Callable[[Any], Awaitable[object]],
    tenants: Sequence[TenantId] = ("a", "b"),
    *,
    known: Collection[str] = (),
    context: Context | None = None,
) -> None:
    """Do what :func:`sqlalchemy_tenants.testing.assert_isolated` does::

        async def fill(session):
            session.add(Order(item="anvil"))

        await assert_isolated(manager, fill)

    It raises the same; ``fill`` is a coroutine function.
    """
    sync: Any = getattr(manager, "_manager", manager)
    require_arguments(sync, tenants)
    async with _existing(manager, tenants), _connected(manager) as connection:
        trial = await connection.run_sync(begin_trial, sync, tenants, context)
        bound = manager.bound_to(connection)
        try:
            for tenant in tenants:
                await _run(lambda: trial.before(tenant))  # noqa: B023
                async with bound.new_session(tenant, context=context) as session:
                    await fill(session)
                    await session.commit()
                await _run(lambda: trial.after(tenant))  # noqa: B023
            await _run(trial.attack)
        finally:
            await _run(trial.end)
    raise_leaks(trial, known)


@asynccontextmanager
async def _connected(manager: PostgresManager) -> AsyncIterator[AsyncConnection]:
    engine: AsyncEngine | AsyncConnection = manager._engine
    if isinstance(engine, AsyncConnection):
        yield engine  # the manager is bound to it
    else:
        async with engine.connect() as connection:
            yield connection


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
