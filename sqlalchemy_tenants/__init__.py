"""Multi-tenancy for SQLAlchemy on PostgreSQL row-level security.

Mark models with :func:`with_rls`, let Alembic write the migration, and open sessions
that see one tenant's rows with :class:`.managers.PostgresManager`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .declare import TenantMixin, shared_table, tenant_column, with_rls
from .exceptions import (
    InvalidTenant,
    ScopeError,
    TenancyError,
    TenantAlreadyExists,
    TenantNotFound,
    TenantSuspended,
)
from .policies import Policy
from .session import AdminSession, TenantSession
from .tenancy import Isolation, Tenancy, TenantId

if TYPE_CHECKING:
    from alembic_ext.directives import get_process_revision_directives

    from .database.findings import Finding

__all__ = [
    "AdminSession",
    "Finding",
    "InvalidTenant",
    "Isolation",
    "Policy",
    "ScopeError",
    "Tenancy",
    "TenancyError",
    "TenantAlreadyExists",
    "TenantId",
    "TenantMixin",
    "TenantNotFound",
    "TenantSession",
    "TenantSuspended",
    "get_process_revision_directives",
    "shared_table",
    "tenant_column",
    "with_rls",
]


def __getattr__(name: str) -> Any:
    # what an application does not load: the check, and what needs Alembic
    if name == "Finding":
        from .database.findings import Finding

        return Finding
    if name == "get_process_revision_directives":
        from alembic_ext.directives import get_process_revision_directives

        return get_process_revision_directives
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
