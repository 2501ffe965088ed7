"""An async manager on one connection; see :mod:`sqlalchemy_tenants.bound`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from .. import bound as sync
from ..refusals import noting
from ..tenancy import TenantId
from .managers import PostgresManager
from .opening import Connecting

_M = TypeVar("_M", bound=PostgresManager)


class _Bound(PostgresManager):
    """What a manager does otherwise on one connection."""

    def connect(self, tenant: TenantId, **kw: Any) -> Connecting:
        return Connecting(self._on_savepoint(tenant, kw, commit=False))

    def begin(self, tenant: TenantId, **kw: Any) -> Connecting:
        return Connecting(self._on_savepoint(tenant, kw, commit=True))

    @asynccontextmanager
    async def _on_savepoint(
        self, tenant: TenantId, kw: dict[str, Any], *, commit: bool
    ) -> AsyncIterator[AsyncConnection]:
        kw["create_if_missing"] = False
        async with self.new_session(tenant, **kw) as session:
            with noting(session.sync_session.scope):
                yield await session.connection()
            if commit:
                await session.commit()


def bind(manager: _M, connection: AsyncConnection) -> _M:
    """Return a copy of a manager that works on one connection."""
    inner = None
    if isinstance(connection, AsyncConnection):
        inner = connection.sync_connection
    if inner is None:
        raise TypeError(
            f"bound_to() takes an open AsyncConnection, as in async with "
            f"async_engine.connect() as connection, not {connection!r}"
        )
    bound = sync.copy_as(manager, _Bound)
    engine: Any = connection
    bound._engine = bound._admin_engine = engine
    bound._manager = sync.bind(manager._manager, inner)
    return bound
