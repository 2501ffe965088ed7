"""The manager: opens sessions and connections of one tenant, and keeps tenants."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from sqlalchemy import Connection, Engine, MetaData, RootTransaction, event
from sqlalchemy.exc import DBAPIError

from . import roles
from .arguments import require_name
from .declare import require_tenant_of
from .drivers import driver_of
from .exceptions import ScopeError, TenantAlreadyExists, TenantNotFound
from .scope import Scope, enter_scope, explain, tenant_scope, two_phase_error
from .session import AdminSession, ScopedSession, TenantSession
from .tenancy import Isolation, Tenancy, TenantId

if TYPE_CHECKING:
    from .database.findings import Finding

_log = logging.getLogger("sqlalchemy_tenants")

_S = TypeVar("_S", bound=ScopedSession)

# Tenants in one transaction of create_tenants(): a few hundred round trips less, and
# far from the server's limit of locks in one transaction.
_BATCH = 250


class DBManager(ABC):
    """What a manager of tenants offers, whatever the database."""

    @abstractmethod
    def new_session(
        self, tenant: TenantId, *, create_if_missing: bool = True
    ) -> AbstractContextManager[TenantSession]:
        """Open a session of one tenant."""

    @abstractmethod
    def new_tenant_session(
        self, tenant: TenantId, *, create_if_missing: bool = True
    ) -> AbstractContextManager[TenantSession]:
        """The same as :meth:`new_session`."""

    @abstractmethod
    def admin_session(
        self, tenant: TenantId | None = None
    ) -> AbstractContextManager[AdminSession]:
        """Open a session across tenants, or narrowed to one."""

    @abstractmethod
    def connect(self, tenant: TenantId) -> AbstractContextManager[Connection]:
        """Open a Core connection of one tenant."""

    @abstractmethod
    def begin(self, tenant: TenantId) -> AbstractContextManager[Connection]:
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
    def delete_tenant(self, tenant: TenantId) -> None:
        """Delete a tenant, never its rows."""

    @abstractmethod
    def list_tenants(self) -> list[str]:
        """Return all tenants."""

    @abstractmethod
    def check(self, *, strict: bool = False) -> list[Finding]:
        """Report what makes the isolation void."""


class PostgresManager(DBManager):
    """Sessions and connections of tenants that share a PostgreSQL database.

    Safe to share between threads, as an engine is. See :meth:`from_engine`.
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
    ) -> None:
        self._engine = engine
        self._schema = schema
        self._isolation: Isolation = isolation
        self._admin_engine = admin_engine
        self._metadata = metadata
        self._tenancy = tenancy
        self._session_options = session_options
        self._login_name: str | None = None

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
    ) -> Self:
        """Return a manager.

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
        :raises ScopeError: for an engine of another database than PostgreSQL.
        :raises TypeError: for an argument of another type, as an async engine.
        """
        if isolation not in ("role", "shared"):
            raise ValueError(f'isolation is "role" or "shared", not {isolation!r}')
        if schema is not None:
            require_name("schema", schema)
        if admin_engine is None:
            admin_engine = engine
        for what, each in (("engine", engine), ("admin_engine", admin_engine)):
            if not isinstance(each, Engine):
                raise TypeError(
                    f"{what} is an Engine, as create_engine() makes it, not {each!r}; "
                    f"for an AsyncEngine import the manager from "
                    f"sqlalchemy_tenants.aio.managers"
                )
            if each.dialect.name != "postgresql":
                raise ScopeError(
                    f"tenants need PostgreSQL; this engine's dialect is "
                    f"{each.dialect.name!r}"
                )
            driver_of(each.dialect).register(each.dialect)
        configured = None if metadata is None else Tenancy.of(metadata)
        options = _session_options(session_options)
        return cls(
            engine,
            schema=schema,
            isolation=isolation,
            admin_engine=admin_engine,
            metadata=metadata,
            tenancy=Tenancy.given(configured if tenancy is None else tenancy),
            session_options=options,
        )

    def new_session(
        self, tenant: TenantId, *, create_if_missing: bool = True
    ) -> AbstractContextManager[TenantSession]:
        """Open a session that sees one tenant's rows, in every transaction of it.

        It begins its first transaction at once. Leaving the block closes it and rolls
        back what was not committed.

        :param create_if_missing: create the tenant where it does not exist.
        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: the login may not act as the tenant.
        """
        return _Opening(
            self,
            partial(TenantSession, self._engine, **self.tenant_kw(tenant)),
            create_if_missing,
        )

    def new_tenant_session(
        self, tenant: TenantId, *, create_if_missing: bool = True
    ) -> AbstractContextManager[TenantSession]:
        """The same as :meth:`new_session`."""
        return self.new_session(tenant, create_if_missing=create_if_missing)

    def admin_session(
        self, tenant: TenantId | None = None
    ) -> AbstractContextManager[AdminSession]:
        """Open a session across tenants, or narrowed to one.

        It runs on ``admin_engine``, as the admin role.

        :param tenant: ``None`` for the rows of all tenants.
        :raises InvalidTenant: for what cannot identify a tenant; an empty string is
            not "all".
        :raises ScopeError: the login may not act as the admin role.
        """
        return _Opening(
            self, partial(AdminSession, self._admin_engine, **self.admin_kw(tenant))
        )

    @contextmanager
    def connect(self, tenant: TenantId) -> Iterator[Connection]:
        """Open a Core connection that sees one tenant's rows, in every transaction.

        It begins its first transaction at once.

        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: the login may not act as the tenant.
        """
        scope = self.tenant_scope(tenant)
        with self._engine.connect() as connection:
            self.start_connection(connection, scope)
            yield connection

    @contextmanager
    def begin(self, tenant: TenantId) -> Iterator[Connection]:
        """Open a Core connection as :meth:`connect` does, and commit at the end.

        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: the login may not act as the tenant.
        """
        scope = self.tenant_scope(tenant)
        with (
            self._engine.connect() as connection,
            self.start_connection(connection, scope),
        ):
            yield connection

    def create_tenant(self, tenant: TenantId) -> None:
        """Create a tenant: ``CREATE ROLE "tenant_acme" NOLOGIN IN ROLE tenants``, and
        let the application's login act as it.

        Under ``isolation="shared"`` there is nothing to create, and the tenant is only
        checked: the database keeps rows of tenants but no tenants.

        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantAlreadyExists: the tenant exists.
        :raises ScopeError: the admin engine's login may not create roles.
        """
        require_tenant_of(tenant, self._metadata)
        if self._keeps("create_tenant", tenant):
            login = self._login()
            with self._admin_engine.begin() as connection:
                roles.create_tenant(connection, tenant, self._tenancy, login)

    def create_tenants(
        self,
        tenant_ids: Iterable[TenantId],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Create many tenants, those that exist aside.

        It commits every so often, so that it can be interrupted and run again. Under
        ``isolation="shared"`` there is nothing to create, and the tenants are only
        checked.

        :param tenant_ids: the tenants.
        :param progress: called after each commit with how many tenants exist so far.
        :return: how many were created.
        :raises InvalidTenant: for what cannot identify a tenant.
        :raises ScopeError: see :meth:`create_tenant`.
        :raises TypeError: one tenant instead of several, or ``progress`` is not
            callable.
        """
        if isinstance(tenant_ids, str | bytes) or not isinstance(tenant_ids, Iterable):
            raise TypeError(
                f"create_tenants takes several tenants, as in ['acme', 'globex'], not "
                f"{tenant_ids!r}; for one use create_tenant()"
            )
        if progress is not None and not callable(progress):
            raise TypeError(f"progress is a function or None, not {progress!r}")
        created = done = 0
        remaining = iter(tenant_ids)
        while batch := list(islice(remaining, _BATCH)):
            for tenant in batch:
                require_tenant_of(tenant, self._metadata)
            if self._keeps("create_tenants", *batch):
                login = self._login()
                with self._admin_engine.begin() as connection:
                    created += roles.create_tenants(
                        connection, batch, self._tenancy, login
                    )
            done += len(batch)
            if progress is not None:
                progress(done)
        return created

    def delete_tenant(self, tenant: TenantId) -> None:
        """Delete a tenant: ``DROP ROLE``. Its rows stay.

        Also one whose text is not the canonical form, that an older version created.

        Under ``isolation="shared"`` there is nothing to delete.

        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: the role owns something, or may not be dropped.
        """
        if self._keeps("delete_tenant", tenant):
            with self._admin_engine.begin() as connection:
                roles.delete_tenant(connection, tenant, self._tenancy)

    def list_tenants(self) -> list[str]:
        """Return all tenants in the order of their names, in their text form.

        :raises ScopeError: under ``isolation="shared"``, where only the application
            knows its tenants.
        """
        if self._isolation == "shared":
            raise ScopeError(
                "under isolation='shared' the database keeps no tenants, only their "
                "rows; keep a table of tenants in the application and read that"
            )
        with self._engine.connect() as connection:
            return roles.list_tenants(connection, self._tenancy)

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
            )
        if strict:
            require_no_errors(findings)
        return findings

    # The rest is not for applications; the async manager calls it, too.

    def tenant_kw(self, tenant: TenantId) -> dict[str, Any]:
        """Return the arguments of a :class:`TenantSession`."""
        require_tenant_of(tenant, self._metadata)
        return {
            **self._session_options,
            "tenant": tenant,
            "isolation": self._isolation,
            "schema": self._schema,
            "tenancy": self._tenancy,
        }

    def admin_kw(self, tenant: TenantId | None) -> dict[str, Any]:
        """Return the arguments of an :class:`AdminSession`."""
        if tenant is not None:
            require_tenant_of(tenant, self._metadata)
        return {
            **self._session_options,
            "tenant": tenant,
            "schema": self._schema,
            "tenancy": self._tenancy,
        }

    def tenant_scope(self, tenant: TenantId) -> Scope:
        """Return the scope of a tenant."""
        require_tenant_of(tenant, self._metadata)
        return tenant_scope(tenant, self._isolation, self._tenancy, self._schema)

    def start_session(
        self, session: ScopedSession, *, create_if_missing: bool = False
    ) -> None:
        """Begin the first transaction of a session, creating its tenant if need be."""
        try:
            session.connection()
            return
        except DBAPIError as error:
            session.rollback()
            refused = explain(error, session.scope, self._login_name)
            if refused is None:
                raise
            # a tenant that exists but is closed to this login stays closed
            if not create_if_missing or not isinstance(refused, TenantNotFound):
                raise refused from error
        with suppress(TenantAlreadyExists):  # somebody else was faster
            self.create_tenant(refused.tenant)
        try:
            session.connection()
        except DBAPIError as error:  # deleted meanwhile
            session.rollback()
            raise explain(error, session.scope, self._login_name) or error from error

    def start_connection(self, connection: Connection, scope: Scope) -> RootTransaction:
        """Confine a connection to ``scope``, and begin its first transaction."""
        confine(connection, scope)
        try:
            return connection.begin()
        except DBAPIError as error:
            raise explain(error, scope, self._login_name) or error from error

    def _keeps(self, operation: str, *tenant_ids: TenantId) -> bool:
        """Whether the database keeps tenants; a tenant that is none is refused."""
        for tenant in tenant_ids:
            tenant_scope(tenant, self._isolation, self._tenancy, self._schema)
        if self._isolation == "shared":
            _log.info(
                "%s: nothing to do, under isolation='shared' the database keeps rows "
                "of tenants but no tenants; the application's own table does",
                operation,
            )
        return self._isolation == "role"

    def _login(self) -> str:
        """Return the login of the application's engine, asked once."""
        if self._login_name is None:
            with self._engine.connect() as connection:
                self._login_name = roles.session_login(connection)
        return self._login_name


class _Opening(AbstractContextManager[_S], Generic[_S]):
    """Opens a session on entering, begins its first transaction, and closes it.

    A class, because a generator would take longer, and every session comes by here.
    """

    __slots__ = ("_create_if_missing", "_manager", "_open", "_session")

    def __init__(
        self,
        manager: PostgresManager,
        open_: Callable[[], _S],
        create_if_missing: bool = False,
    ) -> None:
        self._manager = manager
        self._open = open_
        self._create_if_missing = create_if_missing
        self._session: _S | None = None

    def __enter__(self) -> _S:
        if self._session is not None:
            raise RuntimeError("this session is open; ask the manager for another one")
        session = self._open()
        try:
            self._manager.start_session(
                session, create_if_missing=self._create_if_missing
            )
        except BaseException:
            session.close()
            raise
        self._session = session
        return session

    def __exit__(self, *exc_info: object) -> None:
        assert self._session is not None
        session, self._session = self._session, None
        session.close()


# Arguments of sessions that are the manager's own.
_OWN_OPTIONS = frozenset({"bind", "scope", "tenant", "isolation", "schema", "tenancy"})


def _session_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(
            f"session_options are arguments of a session, as in "
            f"{{'expire_on_commit': False}}, not {options!r}"
        )
    for name in options:
        if not isinstance(name, str) or name in _OWN_OPTIONS:
            raise ValueError(
                f"session_options cannot have {name!r}, only further arguments of "
                f"sqlalchemy.orm.Session"
            )
    return dict(options)


def confine(connection: Connection, scope: Scope) -> None:
    """Enter ``scope`` at each BEGIN of ``connection``, from now on.

    An error closes the connection: SQLAlchemy would execute its next statement without
    coming here again.
    """

    @event.listens_for(connection, "begin")
    def begin(connection: Connection) -> None:
        try:
            enter_scope(connection, scope)
        except BaseException as error:
            if not isinstance(error, DBAPIError | ScopeError):
                connection.invalidate()  # interrupted: nobody knows its state
            connection.close()
            raise

    @event.listens_for(connection, "begin_twophase")
    def begin_twophase(connection: Connection, xid: Any) -> None:
        raise two_phase_error(scope)
