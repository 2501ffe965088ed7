"""Suspending: a tenant whose role nobody may act as until it is resumed.

Memberships in the role are revoked. What they were is kept in the comment on the role,
where everybody can read it and nobody can write it that does not administer the role;
``pg_dumpall`` keeps it, too. Plain functions on a connection, as in
:mod:`sqlalchemy_tenants.roles`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from json import dumps, loads
from typing import NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from .exceptions import ScopeError, TenantNotFound
from .policies import quote_literal, quote_name
from .roles import SERVER_16, find_roles, not_a_tenant
from .scope import INSUFFICIENT_PRIVILEGE, SUSPENDED, execute_text, sqlstate
from .tenancy import Tenancy, TenantId

_log = logging.getLogger("sqlalchemy_tenants")

_COMMENT = text(
    """
    SELECT pg_catalog.shobj_description(oid, 'pg_authid')
    FROM pg_catalog.pg_roles WHERE rolname = :role
    """
)
# Before 16 there is one membership, and it lets the member act whatever its options.
_MEMBERSHIPS = text(
    f"""
    SELECT pg_catalog.pg_get_userbyid(m.member), pg_catalog.pg_get_userbyid(m.grantor),
        m.admin_option,
        coalesce((pg_catalog.to_jsonb(m) ->> 'inherit_option')::boolean, false),
        coalesce((pg_catalog.to_jsonb(m) ->> 'set_option')::boolean, false)
    FROM pg_catalog.pg_auth_members m
    JOIN pg_catalog.pg_roles role ON role.oid = m.roleid
    WHERE role.rolname = :role AND (NOT {SERVER_16}
        OR (pg_catalog.to_jsonb(m) ->> 'inherit_option')::boolean
        OR (pg_catalog.to_jsonb(m) ->> 'set_option')::boolean)
    ORDER BY 1, 2
    """
)
_MAY_ACT = text(
    f"""
    SELECT pg_catalog.pg_has_role(CAST(:login AS name), CAST(:role AS name),
        CASE WHEN {SERVER_16} THEN 'SET' ELSE 'MEMBER' END)
    """
)
_ROLE_NAMES = text("SELECT rolname FROM pg_catalog.pg_roles")
_IS_16 = text(f"SELECT {SERVER_16}")


class _Membership(NamedTuple):
    """A membership in a tenant's role."""

    member: str
    grantor: str
    admin: bool
    inherits: bool
    sets_role: bool

    def revoke(self, role: str, is_16: bool) -> Iterator[str]:
        """Yield what ends it; who administers the role still does, from 16 on."""
        of = f"{quote_name(role)} FROM {quote_name(self.member)}"
        if not is_16:
            yield f"REVOKE {of}"
            return
        # REVOKE by another role than the grantor only warns
        by = f"GRANTED BY {quote_name(self.grantor)}"
        if self.admin:
            yield f"REVOKE INHERIT OPTION FOR {of} {by}"
            yield f"REVOKE SET OPTION FOR {of} {by}"
        else:
            yield f"REVOKE {of} {by}"

    def grant(self, role: str, is_16: bool, roles: set[str]) -> str:
        """Return what makes it as it was.

        :param roles: those that exist; one that is gone granted nothing.
        """
        statement = f"GRANT {quote_name(role)} TO {quote_name(self.member)}"
        if not is_16:
            return statement + (" WITH ADMIN OPTION" if self.admin else "")
        statement += f" WITH INHERIT {self.inherits}, SET {self.sets_role}"
        if self.grantor in roles:
            statement += f" GRANTED BY {quote_name(self.grantor)}"
        return statement


class _Record(NamedTuple):
    """The comment on a tenant's role.

    :param comment: what somebody else has written there.
    :param memberships: those that were revoked; ``None`` where the tenant is not
        suspended.
    """

    comment: str
    memberships: list[_Membership] | None

    @classmethod
    def read(cls, connection: Connection, role: str, tenant: TenantId) -> _Record:
        shown: str | None = connection.scalar(_COMMENT, {"role": role})
        comment, found, record = (shown or "").partition(SUSPENDED)
        if not found:
            return cls(comment, None)
        try:
            return cls(comment, [_Membership(*each) for each in loads(record)])
        except (ValueError, TypeError) as error:
            raise ScopeError(
                f"the comment on role {role!r} does not say any more who could act as "
                f"it: {record!r}; remove it with COMMENT ON ROLE {quote_name(role)} IS "
                f"NULL, and let create_tenants([{tenant!r}]) open the tenant",
                tenant=tenant,
            ) from error

    def write(self, connection: Connection, role: str) -> None:
        comment = self.comment
        if self.memberships is not None:
            comment += SUSPENDED + dumps(self.memberships)
        execute_text(
            connection,
            f"COMMENT ON ROLE {quote_name(role)} IS {quote_literal(comment)}",
        )

    @classmethod
    def lock(cls, connection: Connection, role: str, tenant: TenantId) -> _Record:
        """Read it, and let nobody else write it, nor grant the role from 16 on, until
        the transaction ends."""
        cls.read(connection, role, tenant).write(connection, role)
        return cls.read(connection, role, tenant)


def suspend_tenant(
    connection: Connection, tenant: TenantId, tenancy: Tenancy, login: str
) -> None:
    """Revoke each membership in a tenant's role.

    :param login: the application's, which is to be left without one.
    :raises TenantNotFound: there is no such tenant.
    :raises ScopeError: ``login`` is a superuser, or the connection's login may not
        revoke what another role has granted.
    """
    role = _require_tenant(connection, tenant, tenancy)
    with connection.begin_nested(), _explain(role, tenant):
        record = _Record.lock(connection, role, tenant)
        found = _memberships(connection, role)
        kept = [
            each
            for each in record.memberships or ()
            if each[:2] not in [other[:2] for other in found]
        ]
        _Record(record.comment, kept + found).write(connection, role)
        is_16 = bool(connection.scalar(_IS_16))
        for membership in found:
            for statement in membership.revoke(role, is_16):
                execute_text(connection, statement)
        _require_closed(connection, role, tenant, login)


def resume_tenant(connection: Connection, tenant: TenantId, tenancy: Tenancy) -> None:
    """Grant the memberships in a tenant's role that :func:`suspend_tenant` revoked.

    :raises TenantNotFound: there is no such tenant.
    :raises ScopeError: the connection's login may not grant them.
    """
    role = _require_tenant(connection, tenant, tenancy)
    with connection.begin_nested(), _explain(role, tenant):
        record = _Record.lock(connection, role, tenant)
        if record.memberships is None:
            return
        is_16 = bool(connection.scalar(_IS_16))
        roles = set(connection.scalars(_ROLE_NAMES))
        for membership in record.memberships:
            if membership.member in roles:
                execute_text(connection, membership.grant(role, is_16, roles))
            else:
                _log.warning("%s could act as %s, and is gone", membership.member, role)
        _Record(record.comment, None).write(connection, role)


def _require_tenant(connection: Connection, tenant: TenantId, tenancy: Tenancy) -> str:
    role = tenancy.role_for(tenant)
    found = find_roles(connection, [role], tenancy)
    if role not in found:
        raise TenantNotFound(f"tenant {tenant!r} has no role {role!r}", tenant=tenant)
    if not found[role]:
        raise not_a_tenant(role, tenant, tenancy)
    return role


def _memberships(connection: Connection, role: str) -> list[_Membership]:
    rows: Sequence[Sequence[object]]
    rows = connection.execute(_MEMBERSHIPS, {"role": role}).all()
    return [_Membership(*each) for each in rows]


def _require_closed(
    connection: Connection, role: str, tenant: TenantId, login: str
) -> None:
    left = _memberships(connection, role)
    if left:
        raise ScopeError(
            f"{left[0].member!r} may still act as {role!r}, granted by "
            f"{left[0].grantor!r}",
            tenant=tenant,
        )
    if connection.scalar(_MAY_ACT, {"login": login, "role": role}):
        raise ScopeError(
            f"login {login!r} is a superuser, which may act as any role, so that "
            f"nothing suspends tenant {tenant!r} for it; let the application connect "
            f"as a login without attributes",
            tenant=tenant,
        )


@contextmanager
def _explain(role: str, tenant: TenantId) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if sqlstate(error) != INSUFFICIENT_PRIVILEGE:
            raise
        raise ScopeError(
            f"this login may not grant and revoke role {role!r}: {error.orig}; pass "
            f"admin_engine=..., an engine whose login created the role, or has the "
            f"privileges of the roles that granted it",
            tenant=tenant,
        ) from error
