"""The async twins of :mod:`sqlalchemy_tenants.managers`, with the same names."""

from .managers import AsyncAdminSession, AsyncTenantSession, DBManager, PostgresManager

__all__ = ["AsyncAdminSession", "AsyncTenantSession", "DBManager", "PostgresManager"]
