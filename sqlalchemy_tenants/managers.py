"""The manager: opens sessions and connections of one tenant, and keeps tenants."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Never, Self

from sqlalchemy import Connection, Engine, MetaData, RootTransaction

from . import roles
from .arguments import require_flag, require_name
from .declare import require_tenant_of
from .exceptions import ScopeError, TenantAlreadyExists, TenantNotFound
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
from .tenancy import Isolation, Tenancy, TenantId

if TYPE_CHECKING:
    from .database.findings import Finding
    from .rows.results import Progress, RowCounts

_log = logging.getLogger("sqlalchemy_tenants")

# Tenants in one transaction of create_tenants(): a few hundred round trips less, and
# far from the server's limit of locks in one transaction.
_BATCH = 250


class DBManager(ABC):
    """What a manager of tenants offers, whatever the database."""

    @abstractmethod
    def new_session(
        self, tenant: TenantId, *, create_if_missing: bool | None = None
    ) -> AbstractContextManager[TenantSession]:
        """Open a session of one tenant."""

    @abstractmethod
    def new_tenant_session(
        self, tenant: TenantId, *, create_if_missing: bool | None = None
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
        progress: Progress | None = None,
    ) -> RowCounts:
        """Insert the rows of a file."""

    @abstractmethod
    def delete_rows(
        self,
        tenant: TenantId,
        *,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Delete all rows of a tenant."""

    @abstractmethod
    def rename_tenant(
        self, old: TenantId, new: TenantId, *, progress: Progress | None = None
    ) -> RowCounts:
        """Give a tenant another name."""

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
        session_class: type[TenantSession] = TenantSession,
        create_if_missing: bool = True,
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
        **unknown: Never,
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
        :param session_class: what :meth:`new_session` opens: a subclass of
            :class:`.TenantSession`, as one that adds methods of another library.
        :param create_if_missing: whether :meth:`new_session` creates a tenant that does
            not exist, unless it is told otherwise. Say ``False`` where requests name
            the tenant: a late request of a deleted tenant would create it again.
        :raises ScopeError: for an engine of another database than PostgreSQL.
        :raises TypeError: for an argument of another type, as an async engine.
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
        options = require_session_options(session_options)
        return cls(
            engine,
            schema=schema,
            isolation=isolation,
            admin_engine=admin_engine,
            metadata=metadata,
            tenancy=Tenancy.given(configured if tenancy is None else tenancy),
            session_options=options,
            session_class=require_session_class(session_class, TenantSession),
            create_if_missing=require_flag("create_if_missing", create_if_missing),
        )

    def new_session(
        self, tenant: TenantId, *, create_if_missing: bool | None = None
    ) -> AbstractContextManager[TenantSession]:
        """Open a session that sees one tenant's rows, in every transaction of it.

        It begins its first transaction at once. Leaving the block closes it and rolls
        back what was not committed.

        :param create_if_missing: create the tenant where it does not exist; ``None``
            for what the manager was given.
        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: the login may not act as the tenant.
        """
        return Opening(
            self,
            partial(self._session_class, self._bind, **self.tenant_kw(tenant)),
            self._create_if_missing if create_if_missing is None else create_if_missing,
        )

    def new_tenant_session(
        self, tenant: TenantId, *, create_if_missing: bool | None = None
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
        return Opening(
            self, partial(AdminSession, self._admin_bind, **self.admin_kw(tenant))
        )

    def connect(self, tenant: TenantId) -> AbstractContextManager[Connection]:
        """Open a Core connection that sees one tenant's rows, in every transaction.

        It begins its first transaction at once.

        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: the login may not act as the tenant.
        """
        return Connecting(self._connect(tenant))

    def begin(self, tenant: TenantId) -> AbstractContextManager[Connection]:
        """Open a Core connection as :meth:`connect` does, and commit at the end.

        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: the login may not act as the tenant.
        """
        return Connecting(self._begin(tenant))

    @contextmanager
    def _connect(self, tenant: TenantId) -> Iterator[Connection]:
        scope = self.tenant_scope(tenant)
        with self._engine.connect() as connection:
            self.start_connection(connection, scope)
            with noting(scope):
                yield connection

    @contextmanager
    def _begin(self, tenant: TenantId) -> Iterator[Connection]:
        scope = self.tenant_scope(tenant)
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

    def delete_tenant(
        self,
        tenant: TenantId,
        rows: bool = False,
        *,
        progress: Progress | None = None,
    ) -> dict[str, int]:
        """Delete a tenant: ``DROP ROLE``. Its rows stay, unless ``rows=True``.

        Also one whose text is not the canonical form, that an older version created.

        Whoever creates a tenant of this name later sees rows that stay. That may be a
        late request: :meth:`new_session` creates a tenant that does not exist, unless
        it, or the manager, was given ``create_if_missing=False``.

        With ``rows=True`` rows and role go in one transaction of the admin role, which
        is narrowed to the tenant. Who writes to the tables meanwhile, waits.

        Under ``isolation="shared"`` there is nothing to delete but rows.

        :param rows: delete its rows, too, as :meth:`delete_rows` does.
        :param progress: see :meth:`delete_rows`.
        :return: rows that were deleted, by table; none unless ``rows=True``.
        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: the role owns something, or may not be dropped.
        :raises sqlalchemy_tenants.rows.RowsError: see :meth:`delete_rows`.
        """
        if require_flag("rows", rows):
            from .rows.removing import delete_tenant_and_rows

            return delete_tenant_and_rows(self, tenant, progress)
        if self._keeps("delete_tenant", tenant):
            with self._admin_engine.begin() as connection:
                roles.delete_tenant(connection, tenant, self._tenancy)
        return {}

    def export_rows(
        self,
        tenant: TenantId,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Write all rows of a tenant into a file, as they are at one moment::

            manager.export_rows("acme", "acme.rows")

        The tenant itself reads them, by ``COPY``, in a transaction that is REPEATABLE
        READ and READ ONLY. The file is there when it is complete, or not at all; only
        its owner may read it. Tables that all tenants share are left out.

        :param path: where the file is to be.
        :param overwrite: replace a file that is there.
        :param progress: called with a :class:`.RowsProgress` now and then.
        :return: rows by table; ``left_out`` has the tables that were.
        :raises FileExistsError: there is a file.
        :raises TenantNotFound: the tenant does not exist.
        :raises TypeError: the manager has no ``metadata``.
        :raises sqlalchemy_tenants.rows.RowsError: a table cannot be read as a whole.
        """
        from .rows.exporting import export_rows

        return export_rows(self, tenant, path, overwrite=overwrite, progress=progress)

    def import_rows(
        self,
        tenant: TenantId,
        path: str | os.PathLike[str],
        *,
        as_tenant: TenantId | None = None,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Insert the rows of a file, all of them or none::

            manager.import_rows("acme", "acme.rows")
            manager.import_rows("acme", "acme.rows", as_tenant="globex")

        The tenant itself writes them, so that its policies refuse another one's. The
        tenant must exist. What is in the file is compared with the models and with the
        database before the first row is sent. Sequences are set behind the highest
        keys; for identity columns the admin engine's login must own the tables.

        :param tenant: whose rows the file holds.
        :param as_tenant: whose rows they become, where that is another tenant.
        :param progress: called with a :class:`.RowsProgress` now and then.
        :return: rows by table; ``left_out`` has the tables that all tenants share.
        :raises TenantNotFound: the tenant does not exist.
        :raises TypeError: the manager has no ``metadata``.
        :raises sqlalchemy_tenants.rows.RowsError: the file is damaged or another
            tenant's, does not fit the database, or has rows that are there already.
        """
        from .rows.importing import import_rows

        return import_rows(self, tenant, path, as_tenant=as_tenant, progress=progress)

    def delete_rows(
        self,
        tenant: TenantId,
        *,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Delete all rows of a tenant, in one statement. The tenant stays::

            manager.delete_rows("acme", dry_run=True)   # {"orders": 12, "lines": 40}

        The tenant itself deletes them. Tables that all tenants share are left out.

        :param dry_run: only count them.
        :param progress: called with a :class:`.RowsProgress` for each table.
        :return: rows by table; ``left_out`` has the tables that were.
        :raises TenantNotFound: the tenant does not exist.
        :raises TypeError: the manager has no ``metadata``.
        :raises sqlalchemy_tenants.rows.RowsError: a policy hides rows, or other tables
            reference some.
        """
        from .rows.removing import delete_rows

        return delete_rows(self, tenant, dry_run=dry_run, progress=progress)

    def rename_tenant(
        self, old: TenantId, new: TenantId, *, progress: Progress | None = None
    ) -> RowCounts:
        """Give a tenant another name: its rows and, under ``isolation="role"``, its
        role, in one transaction.

        The admin role does it, in one ``UPDATE`` of all tables, so that foreign keys
        that carry the tenant hold. Who writes to these tables meanwhile, waits. Role
        memberships, comments and whether the tenant is suspended stay.

        :param progress: called with a :class:`.RowsProgress` for each table.
        :return: rows by table; ``left_out`` has the tables that all tenants share.
        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantAlreadyExists: ``new`` exists.
        :raises TenantNotFound: ``old`` does not exist.
        :raises ScopeError: the admin engine's login may not rename the role.
        :raises TypeError: the manager has no ``metadata``.
        :raises sqlalchemy_tenants.rows.RowsError: there are rows of ``new``, or
            ``Tenancy(tenants=...)`` declares otherwise.
        """
        from .rows.renaming import rename_tenant

        return rename_tenant(self, old, new, progress=progress)

    def suspend_tenant(self, tenant: TenantId) -> None:
        """Suspend a tenant: ``REVOKE "tenant_acme" FROM app``, likewise from all others
        that may act as it.

        A transaction at work ends as it likes, and the next one is refused with
        :class:`.TenantSuspended`. The tenant and its rows stay. Suspending it again
        revokes what was granted since.

        Admin sessions go on. So does a login that is a superuser, and one that
        administers the role could grant it to itself.

        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: the admin engine's login may not revoke what another one has
            granted; the application's login is a superuser; or under
            ``isolation="shared"``, where the database keeps no tenants.
        """
        self._require_kept("suspend_tenant", tenant)
        from .suspension import suspend_tenant  # which an application seldom needs

        login = self._login()
        with self._admin_engine.begin() as connection:
            suspend_tenant(connection, tenant, self._tenancy, login)

    def resume_tenant(self, tenant: TenantId) -> None:
        """Let those logins act as a tenant again that could when it was suspended:
        ``GRANT "tenant_acme" TO app WITH INHERIT FALSE, SET TRUE``, with the options
        and the grantors that they had.

        Nothing happens to a tenant that is not suspended.

        :raises InvalidTenant: for what cannot identify a tenant.
        :raises TenantNotFound: the tenant does not exist.
        :raises ScopeError: as of :meth:`suspend_tenant`.
        """
        self._require_kept("resume_tenant", tenant)
        from .suspension import resume_tenant

        with self._admin_engine.begin() as connection:
            resume_tenant(connection, tenant, self._tenancy)

    def list_tenants(self, *, suspended: bool | None = None) -> list[str]:
        """Return all tenants in the order of their names, in their text form.

        :param suspended: ``True`` for those that are suspended, ``False`` for the
            others.
        :raises ScopeError: under ``isolation="shared"``, where only the application
            knows its tenants.
        """
        if self._isolation == "shared":
            raise ScopeError(
                "under isolation='shared' the database keeps no tenants, only their "
                "rows; keep a table of tenants in the application and read that"
            )
        with self._engine.connect() as connection:
            return roles.list_tenants(connection, self._tenancy, suspended)

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
        confine(connection, scope)
        return connection.begin()

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

    def _require_kept(self, operation: str, tenant: TenantId) -> None:
        tenant_scope(tenant, self._isolation, self._tenancy, self._schema)
        if self._isolation == "shared":
            raise ScopeError(
                f"{operation}: under isolation='shared' the database keeps rows of "
                f"tenants but no tenants, and every login of the application opens all "
                f"of them; refuse the tenant where the application names it for a "
                f"request, as by a column of its own table of tenants",
                tenant=tenant,
            )

    def _login(self) -> str:
        """Return the login of the application's engine, asked once."""
        if self._login_name is None:
            with self._engine.connect() as connection:
                self._login_name = roles.session_login(connection)
        return self._login_name
