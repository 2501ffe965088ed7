"""The async manager: an async shell around the sync one.

Every decision is taken in :mod:`sqlalchemy_tenants.managers`, which runs here through
``run_sync`` as SQLAlchemy's own asyncio extension does it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Never, Self, TypeVar

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from .. import managers as sync
from ..options import require_known, require_session_class
from ..refusals import noting
from ..tenancy import Isolation, Tenancy, TenantId
from .opening import Connecting, Opening
from .session import AsyncAdminSession, AsyncTenantSession

if TYPE_CHECKING:
    from ..database.findings import Finding
    from ..rows.results import Progress, RowCounts

_T = TypeVar("_T")


class DBManager(ABC):
    """What an async manager of tenants offers, whatever the database."""

    @abstractmethod
    def new_session(
        self, tenant: TenantId, *, create_if_missing: bool | None = None
    ) -> AbstractAsyncContextManager[AsyncTenantSession]:
        """Open a session of one tenant."""

    @abstractmethod
    def new_tenant_session(
        self, tenant: TenantId, *, create_if_missing: bool | None = None
    ) -> AbstractAsyncContextManager[AsyncTenantSession]:
        """The same as :meth:`new_session`."""

    @abstractmethod
    def admin_session(
        self, tenant: TenantId | None = None
    ) -> AbstractAsyncContextManager[AsyncAdminSession]:
        """Open a session across tenants, or narrowed to one."""

    @abstractmethod
    def connect(self, tenant: TenantId) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a Core connection of one tenant."""

    @abstractmethod
    def begin(self, tenant: TenantId) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a Core connection of one tenant, in a transaction that is committed."""

    @abstractmethod
    async def create_tenant(self, tenant: TenantId) -> None:
        """Create a tenant."""

    @abstractmethod
    async def create_tenants(
        self,
        tenant_ids: Iterable[TenantId],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Create many tenants, those that exist aside."""

    @abstractmethod
    async def delete_tenant(
        self,
        tenant: TenantId,
        rows: bool = False,
        *,
        progress: Progress | None = None,
    ) -> dict[str, int]:
        """Delete a tenant, and its rows only where told to."""

    @abstractmethod
    async def export_rows(
        self,
        tenant: TenantId,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Write all rows of a tenant into a file."""

    @abstractmethod
    async def import_rows(
        self,
        tenant: TenantId,
        path: str | os.PathLike[str],
        *,
        as_tenant: TenantId | None = None,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Insert the rows of a file."""

    @abstractmethod
    async def delete_rows(
        self,
        tenant: TenantId,
        *,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Delete all rows of a tenant."""

    @abstractmethod
    async def rename_tenant(
        self, old: TenantId, new: TenantId, *, progress: Progress | None = None
    ) -> RowCounts:
        """Give a tenant another name."""

    @abstractmethod
    async def list_tenants(self) -> list[str]:
        """Return all tenants."""

    @abstractmethod
    async def check(self, *, strict: bool = False) -> list[Finding]:
        """Report what makes the isolation void."""


class PostgresManager(DBManager):
    """Sessions and connections of tenants that share a PostgreSQL database.

    Each method does what its namesake in
    :class:`sqlalchemy_tenants.managers.PostgresManager` does, and raises the same.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        manager: sync.PostgresManager,
        admin: AsyncEngine,
        session_class: type[AsyncTenantSession] = AsyncTenantSession,
        create_if_missing: bool = True,
    ) -> None:
        self._engine = engine
        self._manager = manager
        self._admin_engine = admin
        self._session_class = session_class
        self._create_if_missing = create_if_missing

    @classmethod
    def from_engine(
        cls,
        engine: AsyncEngine,
        schema: str | None = None,
        *,
        isolation: Isolation = "role",
        admin_engine: AsyncEngine | None = None,
        metadata: MetaData | None = None,
        tenancy: Tenancy | None = None,
        session_options: Mapping[str, Any] | None = None,
        session_class: type[AsyncTenantSession] = AsyncTenantSession,
        create_if_missing: bool = True,
        **unknown: Never,
    ) -> Self:
        """Return a manager; the parameters are those of the sync one, with async
        engines and a subclass of :class:`AsyncTenantSession`.

        :raises ScopeError: for an engine of another database than PostgreSQL.
        :raises TypeError: for an argument of another type, as a sync engine.
        """
        require_known(unknown)
        require_session_class(session_class, AsyncTenantSession)
        for what, each in (("engine", engine), ("admin_engine", admin_engine)):
            if not isinstance(each, AsyncEngine) and (what, each) != (
                "admin_engine",
                None,
            ):
                raise TypeError(
                    f"{what} is an AsyncEngine, as create_async_engine() makes it, not "
                    f"{each!r}; for an Engine import the manager from "
                    f"sqlalchemy_tenants.managers"
                )
        manager = sync.PostgresManager.from_engine(
            engine.sync_engine,
            schema,
            isolation=isolation,
            admin_engine=None if admin_engine is None else admin_engine.sync_engine,
            metadata=metadata,
            tenancy=tenancy,
            session_options=session_options,
            create_if_missing=create_if_missing,
        )
        admin = engine if admin_engine is None else admin_engine
        return cls(engine, manager, admin, session_class, create_if_missing)

    def new_session(
        self, tenant: TenantId, *, create_if_missing: bool | None = None
    ) -> AbstractAsyncContextManager[AsyncTenantSession]:
        """Open a session that sees one tenant's rows, in every transaction of it."""
        return Opening(
            self._manager,
            partial(
                self._session_class, self._engine, **self._manager.tenant_kw(tenant)
            ),
            self._create_if_missing if create_if_missing is None else create_if_missing,
        )

    def new_tenant_session(
        self, tenant: TenantId, *, create_if_missing: bool | None = None
    ) -> AbstractAsyncContextManager[AsyncTenantSession]:
        """The same as :meth:`new_session`."""
        return self.new_session(tenant, create_if_missing=create_if_missing)

    def admin_session(
        self, tenant: TenantId | None = None
    ) -> AbstractAsyncContextManager[AsyncAdminSession]:
        """Open a session across tenants, or narrowed to one."""
        return Opening(
            self._manager,
            partial(
                AsyncAdminSession, self._admin_engine, **self._manager.admin_kw(tenant)
            ),
        )

    def connect(self, tenant: TenantId) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a Core connection that sees one tenant's rows, in every transaction."""
        return Connecting(self._connect(tenant))

    def begin(self, tenant: TenantId) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a Core connection as :meth:`connect` does, and commit at the end."""
        return Connecting(self._begin(tenant))

    @asynccontextmanager
    async def _connect(self, tenant: TenantId) -> AsyncIterator[AsyncConnection]:
        scope = self._manager.tenant_scope(tenant)
        async with self._engine.connect() as connection:
            await connection.run_sync(self._manager.start_connection, scope)
            with noting(scope):
                yield connection

    @asynccontextmanager
    async def _begin(self, tenant: TenantId) -> AsyncIterator[AsyncConnection]:
        async with self._connect(tenant) as connection:
            yield connection
            await connection.commit()

    def bound_to(self, connection: AsyncConnection) -> Self:
        """Return the same manager on one connection, for tests that roll back.

        :raises TypeError: for something else, as a sync connection.
        """
        from .bound import bind  # for tests only

        return bind(self, connection)

    async def create_tenant(self, tenant: TenantId) -> None:
        """Create a tenant."""
        await _run(lambda: self._manager.create_tenant(tenant))

    async def create_tenants(
        self,
        tenant_ids: Iterable[TenantId],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Create many tenants, those that exist aside."""
        return await _run(
            lambda: self._manager.create_tenants(tenant_ids, progress=progress)
        )

    async def delete_tenant(
        self,
        tenant: TenantId,
        rows: bool = False,
        *,
        progress: Progress | None = None,
    ) -> dict[str, int]:
        """Delete a tenant, and its rows only where told to."""
        return await _run(
            lambda: self._manager.delete_tenant(tenant, rows, progress=progress)
        )

    async def export_rows(
        self,
        tenant: TenantId,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Write all rows of a tenant into a file."""
        return await _run(
            lambda: self._manager.export_rows(
                tenant, path, overwrite=overwrite, progress=progress
            )
        )

    async def import_rows(
        self,
        tenant: TenantId,
        path: str | os.PathLike[str],
        *,
        as_tenant: TenantId | None = None,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Insert the rows of a file, all of them or none."""
        return await _run(
            lambda: self._manager.import_rows(
                tenant, path, as_tenant=as_tenant, progress=progress
            )
        )

    async def delete_rows(
        self,
        tenant: TenantId,
        *,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Delete all rows of a tenant. The tenant stays."""
        return await _run(
            lambda: self._manager.delete_rows(
                tenant, dry_run=dry_run, progress=progress
            )
        )

    async def rename_tenant(
        self, old: TenantId, new: TenantId, *, progress: Progress | None = None
    ) -> RowCounts:
        """Give a tenant another name."""
        return await _run(
            lambda: self._manager.rename_tenant(old, new, progress=progress)
        )

    async def suspend_tenant(self, tenant: TenantId) -> None:
        """Let nobody act as a tenant until it is resumed."""
        await _run(lambda: self._manager.suspend_tenant(tenant))

    async def resume_tenant(self, tenant: TenantId) -> None:
        """Let those logins act as a tenant again that could before."""
        await _run(lambda: self._manager.resume_tenant(tenant))

    async def list_tenants(self, *, suspended: bool | None = None) -> list[str]:
        """Return all tenants in the order of their names, in their text form."""
        return await _run(lambda: self._manager.list_tenants(suspended=suspended))

    async def check(self, *, strict: bool = False) -> list[Finding]:
        """Report what makes the isolation void, as the application's login sees it."""
        return await _run(lambda: self._manager.check(strict=strict))


async def _run(function: Callable[[], _T]) -> _T:
    """Run code of the sync manager, whose engines belong to async ones.

    A session without a bind opens no connection; it is the documented way to
    ``run_sync`` without one.
    """
    return await AsyncSession().run_sync(lambda session: function())
