"""Errors: one base class, each keeps the tenant it was about."""

from __future__ import annotations

from typing import Any


class TenancyError(Exception):
    """Base of every error that this package raises on its own account.

    Errors of the database itself stay SQLAlchemy's
    :class:`~sqlalchemy.exc.DBAPIError`.

    :param message: what happened, and what to do next.
    :param tenant: the tenant in question, ``None`` where there is none.
    """

    def __init__(self, message: str, *, tenant: Any = None) -> None:
        super().__init__(message)
        #: The tenant as the caller gave it.
        self.tenant = tenant


class InvalidTenant(TenancyError, ValueError):
    """The value cannot identify a tenant: wrong type, empty, NUL, too long, another
    spelling of a tenant, or no value of the models' tenant columns."""


class TenantNotFound(TenancyError, LookupError):
    """No role exists for the tenant."""


class TenantAlreadyExists(TenancyError):
    """The tenant's role exists already."""


class ScopeError(TenancyError):
    """A transaction cannot be confined to its tenant, so it is refused."""


class TenantSuspended(ScopeError):
    """The tenant was suspended: ``resume_tenant()`` opens it again.

    Not a :class:`TenantNotFound`, so that nothing creates the tenant instead.
    """
