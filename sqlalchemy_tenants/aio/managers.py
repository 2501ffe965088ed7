"""The async manager: an async shell around the sync one.

Every decision is taken in :mod:`sqlalchemy_tenants.managers`, which runs here through
``run_sync`` as SQLAlchemy's own asyncio extension does it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from operator import attrgetter
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Never,
    NoReturn,
    Self,
    TypeVar,
)

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from .. import managers as sync
from ..exceptions import ScopeError
from ..refusals import noting
from ..session import AdminSession, ScopedSession, TenantSession
from ..tenancy import Isolation, Tenancy, TenantId

if TYPE_CHECKING:
    from ..database.findings import Finding

_S = TypeVar("_S", bound=AsyncSession)
_T = TypeVar("_T")


class _AsyncScopedSession(AsyncSession):
    # what the session inside must be
    required_class: ClassVar[type[ScopedSession]] = ScopedSession

    def __init__(self, *args: Any, **kw: Any) -> None:
        # before it is called: another class takes none of our arguments, and its error
        # would not say why
        chosen = kw.get("sync_session_class") or self.sync_session_class
        chosen = getattr(chosen, "class_", chosen)  # of a sessionmaker
        if isinstance(chosen, type) and not issubclass(chosen, self.required_class):
            raise self._error(chosen)
        super().__init__(*args, **kw)

    def _set_sync_session(self, session: Session) -> None:
        # whoever sets it: a class or a function that was given, a subclass whose
        # __init__() calls that of AsyncSession
        if not isinstance(session, self.required_class):
            raise self._error(type(session))
        self._sync_session = session

    # attrgetter: every method of AsyncSession comes by here
    sync_session = property(attrgetter("_sync_session"), _set_sync_session)

    def _error(self, found: type[Any]) -> ScopeError:
        name, required = type(self).__name__, self.required_class.__name__
        return ScopeError(
            f"sync_session_class={found.__name__} would open a session without a "
            f"tenant inside {name}; pass sync_session_class={required}, or a subclass "
            f"of it. Advanced Alchemy passes its own whatever you say: give its config "
            f"session_maker=async_sessionmaker(engine, class_={name}, tenant=...)"
        )

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
    required_class = TenantSession

    @property
    def tenant(self) -> TenantId:
        """The tenant, as it was given."""
        tenant: TenantId = self.sync_session.tenant
        return tenant


class AsyncAdminSession(_AsyncScopedSession):
    """An :class:`~sqlalchemy.ext.asyncio.AsyncSession` across tenants, or narrowed to
    one. Takes the arguments of :class:`.AdminSession`."""

    sync_session_class: type[Session] = AdminSession
    required_class = AdminSession

    @property
    def tenant(self) -> TenantId | None:
        """The tenant that the session is narrowed to, or ``None``."""
        tenant: TenantId | None = self.sync_session.tenant
        return tenant


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
        sync.require_known(unknown)
        sync.require_session_class(session_class, AsyncTenantSession)
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
        return _Opening(
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
        return _Opening(
            self._manager,
            partial(
                AsyncAdminSession, self._admin_engine, **self._manager.admin_kw(tenant)
            ),
        )

    def connect(self, tenant: TenantId) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a Core connection that sees one tenant's rows, in every transaction."""
        return _Connecting(self._connect(tenant))

    def begin(self, tenant: TenantId) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a Core connection as :meth:`connect` does, and commit at the end."""
        return _Connecting(self._begin(tenant))

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


class _Block:
    """What says how to use it where it is used without ``async with``."""

    __slots__ = ()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"{name!r}: this opens a session or a connection, and is none itself; "
            f"write: async with manager.new_session(...) as session, likewise "
            f"admin_session(), connect() and begin()"
        )

    def __await__(self) -> NoReturn:
        raise TypeError(
            "this cannot be awaited; write: async with manager.new_session(...) as "
            "session"
        )

    def __enter__(self) -> NoReturn:
        raise TypeError(
            "this manager is async; write 'async with' instead of 'with', or take the "
            "manager from sqlalchemy_tenants.managers, with an Engine"
        )

    def __exit__(self, *exc_info: object) -> None: ...


class _Connecting(_Block, AbstractAsyncContextManager[AsyncConnection]):
    """Opens a connection on entering, and closes it."""

    def __init__(self, block: AbstractAsyncContextManager[AsyncConnection]) -> None:
        self._block = block

    async def __aenter__(self) -> AsyncConnection:
        return await self._block.__aenter__()

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        return await self._block.__aexit__(*exc_info)


class _Opening(_Block, AbstractAsyncContextManager[_S], Generic[_S]):
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
