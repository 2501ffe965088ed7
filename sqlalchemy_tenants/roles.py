"""Tenants' roles: the SQL of one role, and how to create, delete and list them.

Plain functions on a connection; the sync and the async manager both call them. The
operations of migrations use the SQL, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import ARRAY, Connection, Text, bindparam, text
from sqlalchemy.exc import DBAPIError

from .exceptions import (
    ScopeError,
    TenantAlreadyExists,
    TenantNotFound,
    TenantSuspended,
)
from .policies import quote_dollar, quote_literal, quote_name
from .scope import (
    DEPENDENT_OBJECTS_STILL_EXIST,
    DUPLICATE_OBJECT,
    INSUFFICIENT_PRIVILEGE,
    INTERNAL_ERROR,
    UNDEFINED_OBJECT,
    UNIQUE_VIOLATION,
    execute_text,
    sqlstate,
    suspended_sql,
)
from .tenancy import Tenancy, TenantId

#: Condition of SQL: GRANT of a role has the options INHERIT and SET.
SERVER_16 = "current_setting('server_version_num')::integer >= 160000"

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
_ROLES = bindparam("roles", type_=ARRAY(Text))
# in one statement, which sees one state of the database
_FIND = text(
    f"""
    SELECT rolname, EXISTS (SELECT {_FROM_MEMBERS} AND member.oid = role.oid)
        AS is_member
    FROM pg_catalog.pg_roles role WHERE rolname = ANY (:roles)
    """
).bindparams(_ROLES)
_SUSPENDED = text(
    f"SELECT name FROM unnest(:roles) name WHERE {suspended_sql('name')}"
).bindparams(_ROLES)
_EXISTS = text(f"SELECT EXISTS (SELECT {_FROM_MEMBERS} AND member.rolname = :role)")

# How often a role is created again that was deleted meanwhile.
_ATTEMPTS = 3


def do_block(lines: Iterable[str], declare: Sequence[str] = ()) -> str:
    """Return a ``DO`` statement.

    :param lines: PL/pgSQL, the body of the block.
    :param declare: its declarations.
    """
    head = ["DECLARE", *(f"  {line}" for line in declare)] if declare else []
    text = "\n".join(["", *head, "BEGIN", *(f"  {line}" for line in lines), "END "])
    return "DO " + quote_dollar(text)


def create_role_sql(role: str, tenants_role: str) -> str:
    """Return ``CREATE ROLE`` of a tenant."""
    return f"CREATE ROLE {quote_name(role)} NOLOGIN IN ROLE {quote_name(tenants_role)}"


def grant_line(roles: str, member: str, options: str) -> str:
    """Return a line of PL/pgSQL that grants roles.

    :param roles: names, quoted.
    :param member: name, quoted.
    :param options: as in ``"INHERIT FALSE"``; PostgreSQL 15 could not parse them.
    """
    grant = quote_literal(f"GRANT {roles} TO {member}")
    options = quote_literal(f" WITH {options}")
    return f"EXECUTE {grant} || CASE WHEN {SERVER_16} THEN {options} ELSE '' END;"


def grant_tenant_lines(role: str, login: str | None) -> list[str]:
    """Return PL/pgSQL that lets a login act as a tenant without inheriting from it.

    A tenant that is suspended stays so.

    PostgreSQL 15 has no ``WITH INHERIT FALSE``. There a login that inherits is
    refused, because it would fall under the tenants' policies while it acts as itself.

    :param login: ``None`` for the current user, skipped on 15 where it inherits.
    """
    if login is None:
        grantee = name = "current_user"
        inherits = "NULL;"
    else:
        grantee, name = quote_name(login), quote_literal(login)
        message = f"login {login} inherits the privileges of its roles"
        inherits = (
            "RAISE EXCEPTION USING ERRCODE = 'invalid_grant_operation', MESSAGE = "
            + quote_literal(message)
            + ", HINT = 'PostgreSQL 15 cannot switch that off for one role: "
            "run ALTER ROLE … NOINHERIT first.';"
        )
    attributes = f"FROM pg_catalog.pg_roles WHERE rolname = {name}"
    suspended = f"tenant role {role} is suspended, and stays so"
    return [
        f"IF {suspended_sql(quote_literal(role))} THEN",
        f"  RAISE NOTICE USING MESSAGE = {quote_literal(suspended)};",
        f"ELSIF (SELECT rolsuper {attributes}) THEN",
        "  NULL;  -- a superuser acts as any role",
        f"ELSIF NOT {SERVER_16} AND (SELECT rolinherit {attributes}) THEN",
        f"  {inherits}",
        "ELSE",
        "  " + grant_line(quote_name(role), grantee, "INHERIT FALSE, SET TRUE"),
        "END IF;",
    ]


def unless_granted_lines(role: str, member: str) -> list[str]:
    """Return the end of a block that grants a role. PostgreSQL 15 refuses that where
    another transaction does so at the same time; later versions wait.

    :param role: its name, as an expression of SQL.
    :param member: likewise.
    """
    return [
        "EXCEPTION WHEN unique_violation THEN",
        f"  IF NOT pg_catalog.pg_has_role({member}, {role}, 'MEMBER') THEN",
        "    RAISE;",
        "  END IF;",
    ]


def grant_tenant_sql(role: str, login: str) -> str:
    """Return the statement that lets a login act as a tenant."""
    lines = grant_tenant_lines(role, login)
    lines += unless_granted_lines(quote_literal(role), quote_literal(login))
    return do_block(lines)


def create_tenant(
    connection: Connection, tenant: TenantId, tenancy: Tenancy, login: str
) -> None:
    """Create a tenant's role, and let ``login`` act as it.

    :raises TenantAlreadyExists: the tenant exists.
    :raises ScopeError: the role exists and is no tenant, or the connection's login
        may not create roles, or the migrations have not run.
    """
    _create_role(connection, tenant, tenancy)
    with _explain_deleted([tenant]):
        execute_text(connection, grant_tenant_sql(tenancy.role_for(tenant), login))


def _create_role(connection: Connection, tenant: TenantId, tenancy: Tenancy) -> None:
    role = tenancy.role_for(tenant)
    for remaining in reversed(range(_ATTEMPTS)):
        try:
            with connection.begin_nested():
                execute_text(connection, create_role_sql(role, tenancy.tenants_role))
            return
        except DBAPIError as error:
            if sqlstate(error) not in (DUPLICATE_OBJECT, UNIQUE_VIOLATION):
                raise _explain_create(error, tenant, role, tenancy) or error from error
            found = find_roles(connection, [role], tenancy)
            if found.get(role):
                raise TenantAlreadyExists(
                    f"tenant {tenant!r} exists: role {role!r}", tenant=tenant
                ) from error
            if role in found:
                raise not_a_tenant(role, tenant, tenancy) from error
            if not remaining:
                raise
            # deleted since, or not visible in a transaction of another isolation level


def find_roles(
    connection: Connection, roles: Sequence[str], tenancy: Tenancy
) -> dict[str, bool]:
    """Return those of the roles that exist, and whether each is a tenant's."""
    parameters = {"tenants_role": tenancy.tenants_role, "roles": list(roles)}
    found = connection.execute(_FIND, parameters)
    return {row.rolname: row.is_member for row in found}


@contextmanager
def _explain_deleted(tenants: Sequence[TenantId]) -> Iterator[None]:
    """Say that a tenant was deleted between finding its role and granting it."""
    try:
        yield
    except DBAPIError as error:
        if sqlstate(error) not in (UNDEFINED_OBJECT, INTERNAL_ERROR):
            raise
        raise TenantNotFound(
            f"a tenant was deleted while it was to be created: {error.orig}; call this "
            f"again",
            tenant=tenants[0],
        ) from error


def not_a_tenant(role: str, tenant: TenantId, tenancy: Tenancy) -> ScopeError:
    return ScopeError(
        f"role {role!r} exists but is not a member of {tenancy.tenants_role!r}, so it "
        f"is not tenant {tenant!r}; drop or rename that role, or choose another "
        f"Tenancy(role_prefix=...)",
        tenant=tenant,
    )


def _explain_create(
    error: DBAPIError, tenant: TenantId, role: str, tenancy: Tenancy
) -> ScopeError | None:
    state = sqlstate(error)
    if state == UNDEFINED_OBJECT:
        return ScopeError(
            f"group role {tenancy.tenants_role!r} does not exist; run the migrations "
            f"(alembic upgrade head) first",
            tenant=tenant,
        )
    if state == INSUFFICIENT_PRIVILEGE:
        return ScopeError(
            f"this login may not create role {role!r}: {error.orig}; pass "
            f"admin_engine=..., an engine whose login has CREATEROLE and the ADMIN "
            f"option on {tenancy.tenants_role!r}",
            tenant=tenant,
        )
    return None


def create_tenants(
    connection: Connection, tenants: Sequence[TenantId], tenancy: Tenancy, login: str
) -> int:
    """Create the tenants that do not exist, in one statement, and let ``login`` act as
    each of them. Those that are suspended stay so.

    :return: how many were created.
    :raises ScopeError: see :func:`create_tenant`.
    """
    roles = {tenancy.role_for(tenant): tenant for tenant in tenants}
    # in order, so that two runs at the same time do not deadlock
    roles = {role: roles[role] for role in sorted(roles)}
    found = find_roles(connection, list(roles), tenancy)
    for role, is_member in found.items():
        if not is_member:
            raise not_a_tenant(role, roles[role], tenancy)
    missing = [role for role in roles if role not in found]
    if missing:
        try:
            with connection.begin_nested():
                _create_roles(connection, missing, tenancy)
        except DBAPIError as error:
            if sqlstate(error) not in (DUPLICATE_OBJECT, UNIQUE_VIOLATION):
                raise (
                    _explain_create(error, tenants[0], missing[0], tenancy) or error
                ) from error
            # somebody else creates the same tenants: one after the other
            missing = [
                role
                for role in missing
                if _create_unless_there(connection, roles[role], tenancy)
            ]
    closed = find_suspended(connection, list(roles))
    opened = [role for role in roles if role not in closed]
    if opened:
        with _explain_deleted(tenants):
            _grant_roles(connection, opened, login)
    # GRANT waits for who suspends a tenant meanwhile
    for role in find_suspended(connection, opened):
        tenant = roles[role]
        raise TenantSuspended(
            f"tenant {tenant!r} was suspended while it was to be created; call this "
            f"again, and it stays so",
            tenant=tenant,
        )
    return len(missing)


def find_suspended(connection: Connection, roles: Sequence[str]) -> set[str]:
    """Return those of the roles that are suspended."""
    return set(connection.scalars(_SUSPENDED, {"roles": list(roles)}))


def _create_roles(
    connection: Connection, roles: Sequence[str], tenancy: Tenancy
) -> None:
    # One GRANT for all, not CREATE ROLE … IN ROLE: for each GRANT, PostgreSQL collects
    # all roles that its user administers, unless that is a superuser.
    array = ", ".join(map(quote_literal, roles))
    execute_text(
        connection,
        do_block(
            [
                f"FOREACH role IN ARRAY ARRAY[{array}] LOOP",
                "  EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role);",
                "END LOOP;",
            ],
            declare=["role text;"],
        ),
    )
    names = ", ".join(map(quote_name, roles))
    execute_text(connection, f"GRANT {quote_name(tenancy.tenants_role)} TO {names}")


def _create_unless_there(
    connection: Connection, tenant: TenantId, tenancy: Tenancy
) -> bool:
    try:
        _create_role(connection, tenant, tenancy)
    except TenantAlreadyExists:
        return False
    return True


def _grant_roles(connection: Connection, roles: Sequence[str], login: str) -> None:
    # the first one by itself: that refuses a login that may not have it, and tells why
    execute_text(connection, grant_tenant_sql(roles[0], login))
    if len(roles) == 1:
        return
    names = ", ".join(map(quote_name, roles[1:]))
    block = do_block(
        [
            "IF NOT (SELECT rolsuper FROM pg_catalog.pg_roles"
            f" WHERE rolname = {quote_literal(login)}) THEN",
            "  " + grant_line(names, quote_name(login), "INHERIT FALSE, SET TRUE"),
            "END IF;",
        ]
    )
    try:
        with connection.begin_nested():
            execute_text(connection, block)
    except DBAPIError as error:
        if sqlstate(error) != UNIQUE_VIOLATION:
            raise
        # PostgreSQL 15, and somebody else grants one of them at the same time
        for role in roles[1:]:
            execute_text(connection, grant_tenant_sql(role, login))


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
        with connection.begin_nested():
            execute_text(connection, f"DROP ROLE {quote_name(role)}")
    except DBAPIError as error:
        state = sqlstate(error)
        # deleted meanwhile; XX000 where the other transaction had not ended yet
        if state == UNDEFINED_OBJECT or (
            state == INTERNAL_ERROR and not is_tenant(connection, tenant, tenancy)
        ):
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


def list_tenants(
    connection: Connection, tenancy: Tenancy, suspended: bool | None = None
) -> list[str]:
    """Return the tenants, in the order of their names.

    :param suspended: ``True`` for those that are, ``False`` for the others.
    """
    names = {"tenants_role": tenancy.tenants_role, "role_prefix": tenancy.role_prefix}
    roles = list(connection.scalars(_LIST, names))
    if suspended is not None:
        closed = find_suspended(connection, roles)
        roles = [role for role in roles if (role in closed) is suspended]
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
