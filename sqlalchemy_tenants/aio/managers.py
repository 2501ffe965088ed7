"""The async manager: an async shell around the sync one.

Every decision is taken in :mod:`sqlalchemy_tenants.managers`, which runs here through
``run_sync`` as SQLAlchemy's own asyncio extension does it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from .. import managers as sync
from ..session import AdminSession, TenantSession
from ..tenancy import Isolation, Tenancy, TenantId

if TYPE_CHECKING:
    from ..database.findings import Finding

_S = TypeVar("_S", bound=AsyncSession)
_T = TypeVar("_T")


class _AsyncScopedSession(AsyncSession):
    async def __aexit__(self, *exc_info: Any) -> None:
        own_close = (type(self).close, type(self.sync_session).close)
        if self.in_transaction() or own_close != (AsyncSession.close, Session.close):
            # finishes even if the task is cancelled, which close() does not
            await super().__aexit__(*exc_info)
        else:
            self.sync_session.close()  # there is nothing to wait for


class AsyncTenantSession(_AsyncScopedSession):
    """An :class:`~sqlalchemy.ext.asyncio.AsyncSession` that sees one tenant's rows.

    Takes the arguments of :class:`.TenantSession`; usable alone, too::

        Sessions = async_sessionmaker(engine, class_=AsyncTenantSession)
        async with Sessions(tenant="acme") as session:
            ...
    """

    sync_session_class: type[Session] = TenantSession

    @property
    def tenant(self) -> TenantId:
        """The tenant, as it was given."""
        tenant: TenantId = self.sync_session.tenant  # type: ignore[attr-defined]
        return tenant


class AsyncAdminSession(_AsyncScopedSession):
    """An :class:`~sqlalchemy.ext.asyncio.AsyncSession` across tenants, or narrowed to
    one. Takes the arguments of :class:`.AdminSession`."""

    sync_session_class: type[Session] = AdminSession

    @property
    def tenant(self) -> TenantId | None:
        """The tenant that the session is narrowed to, or ``None``."""
        tenant: TenantId | None = self.sync_session.tenant  # type: ignore[attr-defined]
        return tenant


class DBManager(ABC):
    """What an async manager of tenants offers, whatever the database."""

    @abstractmethod
    def new_session(
        self, tenant: TenantId, *, create_if_missing: bool = True
    ) -> AbstractAsyncContextManager[AsyncTenantSession]:
        """Open a session of one tenant."""

    @abstractmethod
    def new_tenant_session(
        self, tenant: TenantId, *, create_if_missing: bool = True
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
    async def delete_tenant(self, tenant: TenantId) -> None:
        """Delete a tenant, never its rows."""

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
        self, engine: AsyncEngine, manager: sync.PostgresManager, admin: AsyncEngine
    ) -> None:
        self._engine = engine
        self._manager = manager
        self._admin_engine = admin

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
    ) -> Self:
        """Return a manager; the parameters are those of the sync one, with async
        engines.

        :raises ScopeError: for an engine of another database than PostgreSQL.
        :raises TypeError: for an argument of another type, as a sync engine.
        """
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
        )
        return cls(engine, manager, engine if admin_engine is None else admin_engine)

    def new_session(
        self, tenant: TenantId, *, create_if_missing: bool = True
    ) -> AbstractAsyncContextManager[AsyncTenantSession]:
        """Open a session that sees one tenant's rows, in every transaction of it."""
        return _Opening(
            self._manager,
            partial(
                AsyncTenantSession, self._engine, **self._manager.tenant_kw(tenant)
            ),
            create_if_missing,
        )

    def new_tenant_session(
        self, tenant: TenantId, *, create_if_missing: bool = True
    ) -> AbstractAsyncContextManager[AsyncTenantSession]:
        """The same as :meth:`new_session`."""
        return self.new_session(tenant, create_if_missing=create_if_missing)

    def admin_session(
        self, tenant: TenantId | None = None
    ) -> AbstractAsyncContextManager[AsyncAdminSession]:
        """Open a session across tenants, or narrowed to one."""
        return _Opening(
            self._manager,
            partial(
                AsyncAdminSession, self._admin_engine, **self._manager.admin_kw(tenant)
            ),
        )

    @asynccontextmanager
    async def connect(self, tenant: TenantId) -> AsyncIterator[AsyncConnection]:
        """Open a Core connection that sees one tenant's rows, in every transaction."""
        scope = self._manager.tenant_scope(tenant)
        async with self._engine.connect() as connection:
            await connection.run_sync(self._manager.start_connection, scope)
            yield connection

    @asynccontextmanager
    async def begin(self, tenant: TenantId) -> AsyncIterator[AsyncConnection]:
        """Open a Core connection as :meth:`connect` does, and commit at the end."""
        async with self.connect(tenant) as connection:
            yield connection
            await connection.commit()

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

    async def delete_tenant(self, tenant: TenantId) -> None:
        """Delete a tenant, never its rows."""
        await _run(lambda: self._manager.delete_tenant(tenant))

    async def list_tenants(self) -> list[str]:
        """Return all tenants in the order of their names, in their text form."""
        return await _run(self._manager.list_tenants)

    async def check(self, *, strict: bool = False) -> list[Finding]:
        """Report what makes the isolation void, as the application's login sees it."""
        return await _run(lambda: self._manager.check(strict=strict))


class _Opening(AbstractAsyncContextManager[_S], Generic[_S]):
    """Opens a session on entering, begins its first transaction, and closes it.

    A class, because a generator would take longer, and every session comes by here.
    """

    __slots__ = ("_create_if_missing", "_manager", "_open", "_session")

    def __init__(
        self,
        manager: sync.PostgresManager,
        open_: Callable[[], _S],
        create_if_missing: bool = False,
    ) -> None:
        self._manager = manager
        self._open = open_
        self._create_if_missing = create_if_missing
        self._session: _S | None = None

    async def __aenter__(self) -> _S:
        if self._session is not None:
            raise RuntimeError("this session is open; ask the manager for another one")
        session = self._open()
        try:
            await session.run_sync(
                self._manager.start_session,  # type: ignore[arg-type]
                create_if_missing=self._create_if_missing,
            )
        except BaseException as error:
            await session.__aexit__(type(error), error, error.__traceback__)
            raise
        self._session = session
        return session

    async def __aexit__(self, *exc_info: Any) -> None:
        assert self._session is not None
        session, self._session = self._session, None
        await session.__aexit__(*exc_info)


async def _run(function: Callable[[], _T]) -> _T:
    """Run code of the sync manager, whose engines belong to async ones.

    A session without a bind opens no connection; it is the documented way to
    ``run_sync`` without one.
    """
    return await AsyncSession().run_sync(lambda session: function())
