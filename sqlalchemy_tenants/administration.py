"""Administration: what a manager does with tenants as a whole, and with their rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, cast

from sqlalchemy import Engine, MetaData

from . import roles
from .arguments import require_flag, require_progress
from .declare import require_tenant_of
from .exceptions import ScopeError
from .scope import tenant_scope
from .tenancy import Isolation, Tenancy, TenantId

if TYPE_CHECKING:
    from .managers import PostgresManager
    from .rows.results import Progress, RowCounts

_log = logging.getLogger("sqlalchemy_tenants")

# Tenants in one transaction of create_tenants(): a few hundred round trips less, and
# far from the server's limit of locks in one transaction.
_BATCH = 250


class TenantAdministration:
    """The part of :class:`.PostgresManager` that creates, suspends, moves and deletes
    tenants."""

    _engine: Engine
    _admin_engine: Engine
    _isolation: Isolation
    _metadata: MetaData | None
    _schema: str | None
    _tenancy: Tenancy
    _login_name: str | None

    @property
    def _manager(self) -> PostgresManager:
        # no other class inherits from this one
        return cast("PostgresManager", self)

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
        require_progress(progress)
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

            return delete_tenant_and_rows(self._manager, tenant, progress)
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
        as_admin: bool = False,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Write all rows of a tenant into a file, as they are at one moment::

            manager.export_rows("acme", "acme.rows")

        The tenant itself reads them, by ``COPY``, in a transaction that is REPEATABLE
        READ and READ ONLY. The file is there when it is complete, or not at all; only
        its owner may read it. Tables that all tenants share are left out.

        :param path: where the file is to be.
        :param overwrite: replace a file that is there.
        :param as_admin: let the admin role do it, narrowed to the tenant, as where the
            tenant is suspended, or where policies hide rows from it.
        :param progress: called with a :class:`.RowsProgress` now and then.
        :return: rows by table; ``left_out`` has the tables that were.
        :raises FileExistsError: there is a file.
        :raises TenantNotFound: the tenant does not exist.
        :raises TypeError: the manager has no ``metadata``.
        :raises sqlalchemy_tenants.rows.RowsError: a table cannot be read as a whole.
        """
        from .rows.exporting import export_rows

        return export_rows(
            self._manager,
            tenant,
            path,
            overwrite=overwrite,
            as_admin=as_admin,
            progress=progress,
        )

    def import_rows(
        self,
        tenant: TenantId,
        path: str | os.PathLike[str],
        *,
        as_tenant: TenantId | None = None,
        as_admin: bool = False,
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
        :param as_admin: let the admin role do it, narrowed to the tenant, as where the
            tenant is suspended, or where policies hide rows from it.
        :param progress: called with a :class:`.RowsProgress` now and then.
        :return: rows by table; ``left_out`` has the tables that all tenants share.
        :raises TenantNotFound: the tenant does not exist.
        :raises TypeError: the manager has no ``metadata``.
        :raises sqlalchemy_tenants.rows.RowsError: the file is damaged or another
            tenant's, does not fit the database, or has rows that are there already.
        """
        from .rows.importing import import_rows

        return import_rows(
            self._manager,
            tenant,
            path,
            as_tenant=as_tenant,
            as_admin=as_admin,
            progress=progress,
        )

    def delete_rows(
        self,
        tenant: TenantId,
        *,
        dry_run: bool = False,
        as_admin: bool = False,
        progress: Progress | None = None,
    ) -> RowCounts:
        """Delete all rows of a tenant, in one statement. The tenant stays::

            manager.delete_rows("acme", dry_run=True)   # {"orders": 12, "lines": 40}

        The tenant itself deletes them. Tables that all tenants share are left out.

        :param dry_run: only count them.
        :param as_admin: let the admin role do it, narrowed to the tenant, as where the
            tenant is suspended, or where policies hide rows from it.
        :param progress: called with a :class:`.RowsProgress` for each table.
        :return: rows by table; ``left_out`` has the tables that were.
        :raises TenantNotFound: the tenant does not exist.
        :raises TypeError: the manager has no ``metadata``.
        :raises sqlalchemy_tenants.rows.RowsError: a policy hides rows, or other tables
            reference some.
        """
        from .rows.removing import delete_rows

        return delete_rows(
            self._manager, tenant, dry_run=dry_run, as_admin=as_admin, progress=progress
        )

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

        return rename_tenant(self._manager, old, new, progress=progress)

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

    def _keeps(self, operation: str, *tenant_ids: TenantId) -> bool:
        """Validate the tenants; return whether they have roles to manage."""
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
        if self._isolation != "role":
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
