"""Async sessions: async shells around sessions of a tenant."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from ..exceptions import ScopeError
from ..session import AdminSession, ScopedSession, TenantSession
from ..tenancy import TenantId

if TYPE_CHECKING:
    from collections.abc import Callable, Set

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from ..tenancy import Isolation, Tenancy
    from ..values import Context, Settings


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

    @property
    def context(self) -> Context:
        """The context that was given, read-only."""
        context: Context = self.sync_session.context
        return context


class AsyncTenantSession(_AsyncScopedSession):
    """An :class:`~sqlalchemy.ext.asyncio.AsyncSession` that sees one tenant's rows.

    Takes the arguments of :class:`.TenantSession`; usable alone, too::

        Sessions = async_sessionmaker(engine, class_=AsyncTenantSession)
        async with Sessions(tenant="acme") as session:
            ...
    """

    sync_session_class: type[Session] = TenantSession
    required_class = TenantSession

    if TYPE_CHECKING:  # for editors: a session class inside may take others

        def __init__(
            self,
            bind: AsyncEngine | AsyncConnection | None = None,
            *,
            tenant: TenantId | Callable[[], TenantId],
            isolation: Isolation = "role",
            schema: str | None = None,
            tenancy: Tenancy | None = None,
            context: Context | None = None,
            settings: Settings | None = None,
            tenant_criteria: bool = False,
            allow_statements: Set[str] | None = None,
            sync_session_class: type[Session] | None = None,
            **kw: Any,
        ) -> None: ...

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

    if TYPE_CHECKING:  # for editors

        def __init__(
            self,
            bind: AsyncEngine | AsyncConnection | None = None,
            *,
            tenant: TenantId | None = None,
            schema: str | None = None,
            tenancy: Tenancy | None = None,
            context: Context | None = None,
            settings: Settings | None = None,
            tenant_criteria: bool = False,
            allow_statements: Set[str] | None = None,
            sync_session_class: type[Session] | None = None,
            **kw: Any,
        ) -> None: ...

    @property
    def tenant(self) -> TenantId | None:
        """The tenant that the session is narrowed to, or ``None``."""
        tenant: TenantId | None = self.sync_session.tenant
        return tenant
