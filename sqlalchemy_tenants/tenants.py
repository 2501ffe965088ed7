"""Tenants in the database: create, delete and list their roles.

Plain functions on a connection; the sync and the async manager both call them.
"""

from __future__ import annotations

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from .ddl import CreateTenantRole, DropTenantRole, GrantTenantRole
from .exceptions import ScopeError, TenantAlreadyExists, TenantNotFound
from .scope import (
    DEPENDENT_OBJECTS_STILL_EXIST,
    DUPLICATE_OBJECT,
    INSUFFICIENT_PRIVILEGE,
    UNDEFINED_OBJECT,
    UNIQUE_VIOLATION,
    sqlstate,
)
from .tenancy import Tenancy, TenantId

_FROM_MEMBERS = """
    FROM pg_catalog.pg_auth_members m
    JOIN pg_catalog.pg_roles tenants ON tenants.oid = m.roleid
    JOIN pg_catalog.pg_roles member ON member.oid = m.member
    WHERE tenants.rolname = :tenants_role
"""
_LIST = text(
    f"""
    SELECT DISTINCT member.rolname {_FROM_MEMBERS}
    AND pg_catalog.starts_with(member.rolname, :role_prefix)
    ORDER BY member.rolname
    """
)
_EXISTS = text(f"SELECT EXISTS (SELECT {_FROM_MEMBERS} AND member.rolname = :role)")


def create_tenant(
    connection: Connection, tenant: TenantId, tenancy: Tenancy, login: str
) -> None:
    """Create a tenant's role, and let ``login`` act as it.

    :raises TenantAlreadyExists: the tenant exists.
    :raises ScopeError: the role exists and is no tenant, or the connection's login
        may not create roles, or the migrations have not run.
    """
    role = tenancy.role_for(tenant)
    element = CreateTenantRole(role, tenants_role=tenancy.tenants_role, tolerant=False)
    try:
        with connection.begin_nested():
            connection.execute(element)
    except DBAPIError as error:
        state = sqlstate(error)
        if state in (DUPLICATE_OBJECT, UNIQUE_VIOLATION):
            if is_tenant(connection, tenant, tenancy):
                raise TenantAlreadyExists(
                    f"tenant {tenant!r} exists: role {role!r}", tenant=tenant
                ) from error
            raise ScopeError(
                f"role {role!r} exists but is not a member of "
                f"{tenancy.tenants_role!r}, so it is not tenant {tenant!r}; drop or "
                f"rename that role, or choose another Tenancy(role_prefix=...)",
                tenant=tenant,
            ) from error
        if state == UNDEFINED_OBJECT:
            raise ScopeError(
                f"group role {tenancy.tenants_role!r} does not exist; run the "
                f"migrations (alembic upgrade head) first",
                tenant=tenant,
            ) from error
        if state == INSUFFICIENT_PRIVILEGE:
            raise ScopeError(
                f"this login may not create role {role!r}: {error.orig}; pass "
                f"admin_engine=..., an engine whose login has CREATEROLE and the "
                f"ADMIN option on {tenancy.tenants_role!r}",
                tenant=tenant,
            ) from error
        raise
    connection.execute(GrantTenantRole(role, login))


def admit_login(
    connection: Connection, tenant: TenantId, tenancy: Tenancy, login: str
) -> None:
    """Let ``login`` act as an existing tenant."""
    connection.execute(GrantTenantRole(tenancy.role_for(tenant), login))


def delete_tenant(connection: Connection, tenant: TenantId, tenancy: Tenancy) -> None:
    """Drop a tenant's role, never rows.

    :raises TenantNotFound: there is no such tenant.
    :raises ScopeError: the role owns something or was granted something itself.
    """
    role = tenancy.role_for(tenant)
    if not is_tenant(connection, tenant, tenancy):
        raise TenantNotFound(
            f"tenant {tenant!r} has no role {role!r}, nothing to delete", tenant=tenant
        )
    try:
        connection.execute(DropTenantRole(role, tolerant=False))
    except DBAPIError as error:
        state = sqlstate(error)
        if state == UNDEFINED_OBJECT:  # deleted meanwhile
            raise TenantNotFound(
                f"tenant {tenant!r} has no role {role!r}, nothing to delete",
                tenant=tenant,
            ) from error
        if state == DEPENDENT_OBJECTS_STILL_EXIST:
            raise ScopeError(
                f"role {role!r} owns objects or holds privileges of its own, which "
                f"are not deleted: {error.orig}; reassign or revoke them first",
                tenant=tenant,
            ) from error
        if state == INSUFFICIENT_PRIVILEGE:
            raise ScopeError(
                f"this login may not drop role {role!r}: {error.orig}; pass "
                f"admin_engine=..., an engine whose login created the role",
                tenant=tenant,
            ) from error
        raise


def list_tenants(connection: Connection, tenancy: Tenancy) -> list[str]:
    """Return the tenants, in the order of their names."""
    roles = connection.scalars(
        _LIST,
        {"tenants_role": tenancy.tenants_role, "role_prefix": tenancy.role_prefix},
    )
    return [tenancy.tenant_of(role) for role in roles]


def is_tenant(connection: Connection, tenant: TenantId, tenancy: Tenancy) -> bool:
    """Whether the tenant's role is a member of the tenants' group role."""
    role = tenancy.role_for(tenant)
    found: bool = connection.execute(
        _EXISTS, {"tenants_role": tenancy.tenants_role, "role": role}
    ).scalar_one()
    return found


def session_login(connection: Connection) -> str:
    """Return the login that ``connection`` was opened with, whatever it acts as."""
    login: str = connection.scalar(text("SELECT session_user"))
    return login
