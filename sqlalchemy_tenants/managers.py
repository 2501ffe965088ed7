"""The manager: opens sessions and connections of one tenant, and keeps tenants."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, suppress
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Never, Self

from sqlalchemy import Connection, Engine, MetaData, RootTransaction

from .administration import TenantAdministration
from .arguments import require_flag, require_name
from .declare import require_tenant_of
from .drivers import driver_of
from .exceptions import TenantAlreadyExists, TenantNotFound
from .opening import Connecting, Opening, confine
from .options import (
    require_engines,
    require_known,
    require_session_class,
    require_session_options,
)
from .refusals import noting
from .scope import Scope, tenant_scope
from .session import AdminSession, ScopedSession, TenantSession
from .statements import require_words
from .tenancy import Isolation, Tenancy, TenantId

if TYPE_CHECKING:
    from .database.findings import Finding
    from .rows.results import Progress, RowCounts
    from .values import Context, Settings


class DBManager(ABC):
    """What a manager of tenants offers, whatever the database."""

    @abstractmethod
    def new_session(
        self,
        tenant: TenantId,
        *,
        context: Context | None = None,
        settings: Settings | None = None,
        create_if_missing: bool | None = None,
    ) -> AbstractContextManager[TenantSession]:
        """Open a session of one tenant."""

    @abstractmethod
    def new_tenant_session(
        self,
        tenant: TenantId,
        *,
        context: Context | None = None,
        settings: Settings | None = None,
        create_if_missing: bool | None = None,
    ) -> AbstractContextManager[TenantSession]:
        """The same as :meth:`new_session`."""

    @abstractmethod
    def admin_session(
        self,
        tenant: TenantId | None = None,
        *,
        context: Context | None = None,
        settings: Settings | None = None,
    ) -> AbstractContextManager[AdminSession]:
        """Open a session across tenants, or narrowed to one."""

    @abstractmethod
    def connect(
        self,
        tenant: TenantId,
        *,
        context: Context | None = None,
        settings: Settings | None = None,
    ) -> AbstractContextManager[Connection]:
        """Open a Core connection of one tenant."""

    @abstractmethod
    def begin(
        self,
        tenant: TenantId,
        *,
        context: Context | None = None,
        settings: Settings | None = None,
    ) -> AbstractContextManager[Connection]:
        """Open a Core connection of one tenant, in a transaction that is committed."""

    @abstractmethod
    def create_tenant(self, tenant: TenantId) -> None:
        """Create a tenant."""

    @abstractmethod
    def create_tenants(
        self,
        tenant_ids: Iterable[TenantId],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Create many tenants, those that exist aside."""

    @abstractmethod
    def delete_tenant(
        self,
        tenant: TenantId,
        rows: bool = False,
        *,
        progress: Progress | None = None,
    ) -> dict[str, int]:
        """Delete a tenant, and its rows only where told to."""

    @abstractmethod
    def export_rows(
        self,
        tenant: TenantId,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        as_admin: bool = False,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Write all rows of a tenant into a file."""

    @abstractmethod
    def import_rows(
        self,
        tenant: TenantId,
        path: str | os.PathLike[str],
        *,
        as_tenant: TenantId | None = None,
        as_admin: bool = False,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Insert the rows of a file."""

    @abstractmethod
    def delete_rows(
        self,
        tenant: TenantId,
        *,
        dry_run: bool = False,
        as_admin: bool = False,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Delete all rows of a tenant."""

    @abstractmethod
    def rename_tenant(
        self, old: TenantId, new: TenantId, *, progress: Progress | None = None
    ) -> RowCounts:
        """Give a tenant another name."""

    @abstractmethod
    def suspend_tenant(self, tenant: TenantId) -> None:
        """Refuse the transactions of a tenant from now on."""

    @abstractmethod
    def resume_tenant(self, tenant: TenantId) -> None:
        """Let a suspended tenant work again."""

    @abstractmethod
    def list_tenants(self, *, suspended: bool | None = None) -> list[str]:
        """Return all tenants."""

    @abstractmethod
    def check(self, *, strict: bool = False) -> list[Finding]:
        """Report what makes the isolation void."""


class PostgresManager(TenantAdministration, DBManager):
    """Sessions and connections of tenants that share a PostgreSQL database.

    :meth:`from_engine` makes one. It is safe to share between threads, as an engine is.

    :param engine: the application's engine. Its login should have no rights but
        to act as tenants: NOINHERIT, no tables, no membership in the admin role.
    :param schema: schema of the application's tables, the only one on the search
        path of its sessions; ``None`` keeps the login's search path.
    :param isolation: ``"role"``: a database role per tenant. ``"shared"``: one
        role, and the tenant in a setting.
    :param admin_engine: engine of a login that creates tenants and acts as the
        admin role; ``engine`` unless given, which suits development.
    :param metadata: the models, for :meth:`check` and for their configuration.
    :param tenancy: names of roles and setting, unless ``metadata`` has them.
    :param session_options: further arguments of the sessions, as in
        ``{"expire_on_commit": False}``.
    :param session_class: what :meth:`new_session` opens: a subclass of
        :class:`.TenantSession`, as one that adds methods of another library.
    :param create_if_missing: whether :meth:`new_session` creates a tenant that does
        not exist, unless it is told otherwise. Say ``False`` where requests name
        the tenant: a late request of a deleted tenant would create it again.
    :param settings: parameters of PostgreSQL for all sessions and connections, as
        in ``{"statement_timeout": "5s"}``; or a function of the tenant, which is
        ``None`` for an admin session across tenants, as in
        ``lambda tenant: {"application_name": f"shop {tenant}"}``. What a session is
        given comes on top.
    :param allow_statements: what statements of sessions and connections of tenants
        may begin with, as :data:`.DML`, against injected SQL; ``None`` for all of
        them. :meth:`check` tells what it needs of the database.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        schema: str | None,
        isolation: Isolation,
        admin_engine: Engine,
        metadata: MetaData | None,
        tenancy: Tenancy,
        session_options: Mapping[str, Any],
        session_class: type[TenantSession] = TenantSession,
        create_if_missing: bool = True,
        settings: Settings | None = None,
        allow_statements: frozenset[str] | None = None,
    ) -> None:
        self._engine = engine
        self._schema = schema
        self._isolation: Isolation = isolation
        self._admin_engine = admin_engine
        self._metadata = metadata
        self._tenancy = tenancy
        self._session_options = session_options
        self._session_class = session_class
        self._create_if_missing = create_if_missing
        self._settings = settings
        self._words = allow_statements
        self._login_name: str | None = None
        # what sessions are opened on; see bound_to()
        self._bind: Engine | Connection = engine
        self._admin_bind: Engine | Connection = admin_engine

    @classmethod
    def from_engine(
        cls,
        engine: Engine,
        schema: str | None = None,
        *,
        isolation: Isolation = "role",
        admin_engine: Engine | None = None,
        metadata: MetaData | None = None,
        tenancy: Tenancy | None = None,
        session_options: Mapping[str, Any] | None = None,
        session_class: type[TenantSession] = TenantSession,
        create_if_missing: bool = True,
        settings: Settings | None = None,
        allow_statements: Set[str] | None = None,
        **unknown: Never,
    ) -> Self:
        """Return a manager; the parameters are those of the class.

        :raises ScopeError: for an engine of another database than PostgreSQL, or of a
            driver that ``allow_statements`` cannot be held on.
        :raises TypeError: for an argument of another type, as an async engine.
        :raises ValueError: for a parameter that must not be set.
        """
        require_known(unknown)
        if isolation not in ("role", "shared"):
            raise ValueError(f'isolation is "role" or "shared", not {isolation!r}')
        if schema is not None:
            require_name("schema", schema)
        if admin_engine is None:
            admin_engine = engine
        require_engines(engine, admin_engine)
        configured = None if metadata is None else Tenancy.of(metadata)
        tenancy = Tenancy.given(configured if tenancy is None else tenancy)
        if settings is not None and not callable(settings):
            from .values import require_settings

            settings = require_settings(settings, tenancy)
        options = require_session_options(session_options)
        words = require_words(allow_statements)
        if words is not None:
            driver_of(engine.dialect).require_guard(engine.dialect)
        return cls(
            engine,
            schema=schema,
            isolation=isolation,
            admin_engine=admin_engine,
            metadata=metadata,
            tenancy=tenancy,
            session_options=options,
            session_class=require_session_class(session_class, TenantSession),
            create_if_missing=require_flag("create_if_missing", create_if_missing),
            settings=settings,
            allow_statements=words,
        )

    def new_session(
        self,
        tenant: TenantId,
        *,
        context: Context | None = None,
        settings: Settings | None = None,
        create_if_missing: bool | None = None,
    ) -> AbstractContextManager[TenantSession]:
        """Open a session that sees one tenant's rows, in every transaction of it.

        It begins its first transaction at once. Leaving the block closes it and rolls
        back what was not committed.

        :param context: see :class:`.TenantSession`; likewise ``settings``.
        :param create_if_missing: create the tenant where it does not exist; ``None``
            for what the manager was given.
        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: the login may not act as the tenant.
        """
        return Opening(
            self,
            partial(
                self._session_class,
                self._bind,
                **self.tenant_kw(tenant, context, settings),
            ),
            self._create_if_missing if create_if_missing is None else create_if_missing,
        )

    def new_tenant_session(
        self,
        tenant: TenantId,
        *,
        context: Context | None = None,
        settings: Settings | None = None,
        create_if_missing: bool | None = None,
    ) -> AbstractContextManager[TenantSession]:
        """The same as :meth:`new_session`."""
        return self.new_session(
            tenant,
            context=context,
            settings=settings,
            create_if_missing=create_if_missing,
        )

    def admin_session(
        self,
        tenant: TenantId | None = None,
        *,
        context: Context | None = None,
        settings: Settings | None = None,
    ) -> AbstractContextManager[AdminSession]:
        """Open a session across tenants, or narrowed to one.

        It runs on ``admin_engine``, as the admin role.

        :param tenant: ``None`` for the rows of all tenants.
        :raises InvalidTenant: for what cannot identify a tenant; an empty string is
            not "all".
        :raises ScopeError: the login may not act as the admin role.
        """
        return Opening(
            self,
            partial(
                AdminSession,
                self._admin_bind,
                **self.admin_kw(tenant, context, settings),
            ),
        )

    def connect(
        self,
        tenant: TenantId,
        *,
        context: Context | None = None,
        settings: Settings | None = None,
    ) -> AbstractContextManager[Connection]:
        """Open a Core connection that sees one tenant's rows, in every transaction.

        It begins its first transaction at once.

        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: the login may not act as the tenant.
        """
        return Connecting(self._connect(tenant, context, settings))

    def begin(
        self,
        tenant: TenantId,
        *,
        context: Context | None = None,
        settings: Settings | None = None,
    ) -> AbstractContextManager[Connection]:
        """Open a Core connection as :meth:`connect` does, and commit at the end.

        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: the login may not act as the tenant.
        """
        return Connecting(self._begin(tenant, context, settings))

    @contextmanager
    def _connect(
        self, tenant: TenantId, context: Context | None, settings: Settings | None
    ) -> Iterator[Connection]:
        scope = self.tenant_scope(tenant, context, settings)
        with self._engine.connect() as connection:
            self.start_connection(connection, scope)
            with noting(scope):
                yield connection

    @contextmanager
    def _begin(
        self, tenant: TenantId, context: Context | None, settings: Settings | None
    ) -> Iterator[Connection]:
        scope = self.tenant_scope(tenant, context, settings)
        with (
            self._engine.connect() as connection,
            self.start_connection(connection, scope),
            noting(scope),
        ):
            yield connection

    def bound_to(self, connection: Connection) -> Self:
        """Return the same manager on one connection, for tests that roll back::

            with engine.connect() as connection, connection.begin() as transaction:
                bound = manager.bound_to(connection)
                with bound.new_session("acme") as session:
                    session.add(Order())
                    session.commit()    # to a savepoint
                transaction.rollback()

        All that it does, tenants that it creates included, happens within savepoints of
        the transaction that the connection is in, which nobody but the caller ends. One
        scope is at work at a time, and the connection acts as its login again when a
        session ends. So the login does what those of both engines do: to create tenants
        it needs CREATEROLE, for admin sessions the admin role. A superuser is confined
        as others are, because a session acts as its tenant's role, but cannot be
        suspended.

        :param connection: in a transaction whenever it is used.
        :raises ScopeError: for a connection to another database than PostgreSQL. In
            use: it is in no transaction; another scope is at work on it; somebody
            commits it meanwhile.
        :raises TypeError: for something else, as an engine.
        """
        from .bound import bind  # for tests only

        return bind(self, connection)

    def check(self, *, strict: bool = False) -> list[Finding]:
        """Report what makes the isolation void, as the application's login sees it.

        :param strict: raise if there is a finding of severity ``"error"``.
        :raises ScopeError: under ``strict``, with all findings in the message.
        """
        # which an application loads only to check
        from .database.check import run_checks
        from .database.findings import require_no_errors

        with self._engine.connect() as connection:
            findings = run_checks(
                connection,
                self._tenancy,
                self._metadata,
                self._isolation,
                self._schema,
                allow_statements=self._words is not None,
            )
        if strict:
            require_no_errors(findings)
        return findings

    # The rest is not for applications; the async manager calls it, too.

    @property
    def metadata(self) -> MetaData | None:
        """The models."""
        return self._metadata

    @property
    def tenancy(self) -> Tenancy:
        """Names of roles and setting."""
        return self._tenancy

    @property
    def isolation(self) -> Isolation:
        """What tenants act as."""
        return self._isolation

    def unguarded(self) -> Self:
        """Return the same manager without ``allow_statements``, for what the package
        itself sends."""
        if self._words is None:
            return self
        unguarded = copy(self)
        unguarded._words = None
        return unguarded

    def tenant_kw(
        self, tenant: TenantId, context: Context | None, settings: Settings | None
    ) -> dict[str, Any]:
        """Return the arguments of a :class:`TenantSession`."""
        require_tenant_of(tenant, self._metadata)
        kw = {
            **self._session_options,
            "tenant": tenant,
            "isolation": self._isolation,
            "schema": self._schema,
            "tenancy": self._tenancy,
            "context": context,
            "settings": self._settings_for(tenant, settings),
        }
        if self._words is not None:
            kw["allow_statements"] = self._words
        return kw

    def admin_kw(
        self,
        tenant: TenantId | None,
        context: Context | None,
        settings: Settings | None,
    ) -> dict[str, Any]:
        """Return the arguments of an :class:`AdminSession`."""
        if tenant is not None:
            require_tenant_of(tenant, self._metadata)
        return {
            **self._session_options,
            "tenant": tenant,
            "schema": self._schema,
            "tenancy": self._tenancy,
            "context": context,
            "settings": self._settings_for(tenant, settings),
        }

    def tenant_scope(
        self,
        tenant: TenantId,
        context: Context | None = None,
        settings: Settings | None = None,
    ) -> Scope:
        """Return the scope of a tenant."""
        require_tenant_of(tenant, self._metadata)
        scope = tenant_scope(tenant, self._isolation, self._tenancy, self._schema)
        settings = self._settings_for(tenant, settings)
        if context is None and settings is None:
            return scope
        from .values import Values

        return Values(self._tenancy, context, settings).added_to(scope)

    def _settings_for(
        self, tenant: TenantId | None, settings: Settings | None
    ) -> Settings | None:
        """Return the settings of a session: the manager's, and its own on top."""
        if self._settings is None:
            return settings
        from .values import merged_settings

        return merged_settings(self._tenancy, tenant, self._settings, settings)

    def start_session(
        self, session: ScopedSession, *, create_if_missing: bool = False
    ) -> None:
        """Begin the first transaction of a session, creating its tenant if need be."""
        if self._words is not None and isinstance(session, TenantSession):
            session.require_statements(self._words)
        try:
            session.connection()
            return
        except TenantNotFound as error:
            # a tenant that exists but is closed to this login stays closed
            if not create_if_missing:
                raise
            session.rollback()
            tenant = error.tenant
        with suppress(TenantAlreadyExists):  # somebody else was faster
            self.create_tenant(tenant)
        session.connection()

    def start_connection(self, connection: Connection, scope: Scope) -> RootTransaction:
        """Confine a connection to ``scope``, and begin its first transaction."""
        confine(connection, scope, self._words)
        return connection.begin()
