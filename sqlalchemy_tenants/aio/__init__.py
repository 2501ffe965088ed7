"""The async twins of :mod:`sqlalchemy_tenants.managers`, with the same names."""

from .managers import DBManager, PostgresManager
from .session import AsyncAdminSession, AsyncTenantSession

__all__ = ["AsyncAdminSession", "AsyncTenantSession", "DBManager", "PostgresManager"]
