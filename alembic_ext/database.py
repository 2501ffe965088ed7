"""What a database has once: roles, schema, function, and privileges on schemas."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from alembic.operations.ops import MigrateOperation
from sqlalchemy import text

from sqlalchemy_tenants.database import catalog
from sqlalchemy_tenants.database.catalog import Dependency, Grant, RoleState
from sqlalchemy_tenants.database.expected import (
    GROUP_ROLE_ATTRIBUTES,
    TENANT_ROLE_ATTRIBUTES,
    altered_attributes,
)
from sqlalchemy_tenants.policies import quote_name, quote_qualified
from sqlalchemy_tenants.tenancy import FUNCTION_NAME, TenantId, tenant_text

from . import ops
from .comparison import Comparison, log
from .grants import grant_ops
from .order import is_among
from .tables import TableChanges


def bootstrap(
    comparison: Comparison, admins: Collection[str], refusals: list[str]
) -> Iterator[MigrateOperation]:
    """Yield what creates or repairs group roles and function.

    :param admins: owners of tables who need the admin role.
    :param refusals: where to add what cannot be repaired.
    """
    tenancy, database = comparison.tenancy, comparison.database
    create = tenancy.schema not in database.schemas or (
        database.function is None
        and not any(map(comparison.expected.uses, database.tables.values()))
    )
    if create:
        log.info("Detected missing tenancy: group roles, schema %r", tenancy.schema)
        yield ops.CreateTenancyOp(tenancy)
    yield from _group_roles(comparison, create)
    for owner in sorted(admins):
        if create and owner == database.current_user:
            continue  # a part of create_tenancy
        if not create and tenancy.admin_role not in database.roles:
            continue  # a part of create_group_role
        log.info(
            "Detected table owner %r without membership in %r",
            owner,
            tenancy.admin_role,
        )
        if _does_not_inherit(comparison, owner):
            refusals.append(
                f"{quote_name(owner)} owns tables of tenants and does not inherit the "
                f"privileges of its roles, which PostgreSQL 15 cannot change for one "
                f"of them, so that its migrations and dumps would see no row; let a "
                f"superuser run: ALTER ROLE {quote_name(owner)} INHERIT"
            )
            continue
        yield ops.GrantMembershipOp(tenancy.admin_role, owner)
    if not create:
        yield from _function(comparison, refusals)


def _group_roles(comparison: Comparison, create: bool) -> Iterator[MigrateOperation]:
    """Yield what creates or repairs group roles and memberships of our roles.

    :param create: whether ``create_tenancy`` creates them.
    """
    tenancy, database = comparison.tenancy, comparison.database
    for role in tenancy.group_roles:
        group = comparison.expected.group_of(role)
        state = database.roles.get(role)
        if state is not None:
            yield from _altered_role(state, GROUP_ROLE_ATTRIBUTES)
            if not create and group is not None and group not in state.member_of:
                log.info("Detected role %r without membership in %r", role, group)
                yield ops.GrantMembershipOp(group, role)
        elif not create:
            log.info("Detected missing group role %r", role)
            yield ops.CreateGroupRoleOp(
                role, member_of=group, admin=role == tenancy.admin_role
            )
    for membership in comparison.expected.surplus_memberships(database):
        group, member = membership.group, membership.member
        log.info("Detected membership of role %r in %r", member, group)
        yield ops.RevokeMembershipOp(
            group,
            member,
            inherit_option=membership.inherit,
            set_option=membership.set,
            admin_option=membership.admin,
            granted_by=membership.grantor
            if database.server_version >= 160000
            else None,
        )


def _does_not_inherit(comparison: Comparison, role: str) -> bool:
    if comparison.database.server_version >= 160000:
        return False  # a membership of its own says so
    return not comparison.connection.scalar(
        text("SELECT rolinherit FROM pg_catalog.pg_roles WHERE rolname = :role"),
        {"role": role},
    )


def _altered_role(
    state: RoleState, wanted: dict[str, bool]
) -> Iterator[MigrateOperation]:
    wrong = altered_attributes(state, wanted)
    if wrong:
        log.info("Detected altered role %r: %s", state.name, ", ".join(wrong))
        yield ops.AlterGroupRoleOp(state.name, **wrong)


def _function(
    comparison: Comparison, refusals: list[str]
) -> Iterator[MigrateOperation]:
    tenancy, database = comparison.tenancy, comparison.database
    expected = comparison.expected
    owner = existing_owner = None
    if not (
        database.function_owner is None
        or database.function_owner_is_admin
        or comparison.may_own(database.function_owner)
    ):
        # whoever may act as its owner could replace the function
        owner, existing_owner = database.current_user, database.function_owner
        if not database.function_administered:
            name = quote_qualified(tenancy.schema, FUNCTION_NAME) + "()"
            refusals.append(
                f"function {name} belongs to {quote_name(existing_owner)}, who could "
                f"replace it, and {quote_name(owner)}, who migrates, may not take it; "
                f"let a superuser run: ALTER FUNCTION {name} OWNER TO "
                f"{quote_name(owner)}" + comparison.advice_to_name(existing_owner)
            )
    if database.function != expected.function or owner is not None:
        log.info("Detected altered function %s.%s()", tenancy.schema, FUNCTION_NAME)
        yield ops.ReplaceTenantFunctionOp(
            tenancy.schema,
            expected.function,
            owner=owner,
            existing=database.function,
            existing_owner=existing_owner,
        )
    if database.function is None:
        return
    # PUBLIC may execute a function unless that was revoked
    found = {g for g in database.function_grants if expected.is_ours(g.role)}
    everyone = Grant("public", "EXECUTE") in database.function_grants
    wanted = expected.each("EXECUTE")
    changes = grant_ops(
        FUNCTION_NAME,
        found,
        wanted & found if everyone else wanted,
        schema=tenancy.schema,
        object_type="FUNCTION",
        owner=database.function_owner,
    )
    if changes:
        log.info("Detected changed privileges on the function of %r", tenancy.schema)
    yield from changes


def usage(
    comparison: Comparison,
    schemas_used: set[str],
    earlier: Collection[str],
    refusals: list[str],
) -> Iterator[MigrateOperation]:
    """Yield grants of USAGE on schemas that hold tables, and on the function's.

    :param earlier: group roles of an earlier configuration, that lose it.
    :param refusals: where to add grants that this role cannot give.
    """
    database, expected = comparison.database, comparison.expected
    schemas = set(schemas_used)
    if comparison.tenancy.schema in database.schemas:
        schemas.add(comparison.tenancy.schema)  # otherwise part of create_tenancy
    for name in sorted(schemas):
        state = database.schemas.get(name)
        grants = frozenset[Grant]() if state is None else state.grants
        found = {g for g in grants if expected.is_ours(g.role) or g.role in earlier}
        owner = None if state is None else state.owner
        wanted = frozenset(g for g in expected.each("USAGE") if g.role != owner)
        if state is not None and not state.grantable:
            if Grant("public", "USAGE") in grants:
                # this role could not grant it, and everyone has it: good enough
                wanted &= found
            if wanted - found:
                schema, owner = quote_name(name), quote_name(state.owner)
                roles = ", ".join(sorted(quote_name(g.role) for g in wanted - found))
                refusals.append(
                    f"tenants need USAGE on schema {schema}, which belongs to {owner} "
                    f"and which {quote_name(database.current_user)}, who migrates, may "
                    f"not grant: PostgreSQL would only warn. Let {owner} run: GRANT "
                    f"USAGE ON SCHEMA {schema} TO {roles}"
                )
        changes = grant_ops(
            comparison.schema_name(name), found, wanted, object_type="SCHEMA"
        )
        if changes:
            log.info("Detected changed privileges on schema %r", name)
        yield from changes


def default_privileges(
    comparison: Comparison, schemas_used: set[str]
) -> Iterator[MigrateOperation]:
    """Yield what revokes privileges that roles of ours get on whatever is created."""
    database = comparison.database
    every = [(None, database.defaults)] + [
        (name, database.schemas[name].defaults)
        for name in sorted(schemas_used & set(database.schemas))
    ]
    for schema, defaults in every:
        surplus = comparison.expected.surplus_defaults(defaults)
        for (creator, kind), grants in sorted(surplus.items()):
            log.info("Detected default privileges of %r in %r", creator, schema)
            found = {grant._replace(grantor=creator) for grant in grants}
            yield from grant_ops(schema, found, (), object_type=kind)


def _declared(
    comparison: Comparison,
) -> dict[str, tuple[TenantId, tuple[str, ...] | None]]:
    """Return declared tenants and their logins, by their roles."""
    return {
        comparison.tenancy.role_for(tenant): (
            tenant,
            None if each.logins is None else tuple(each.logins),
        )
        for each in comparison.declared
        for tenant in each.tenants or ()
    }


def _never_granted(comparison: Comparison, logins: Collection[str]) -> set[str]:
    """Return the logins that :func:`.grant_tenant_lines` passes over."""
    if not logins:
        return set()
    database = comparison.database
    rows = comparison.connection.execute(
        text(
            "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY (:logins)"
            " AND (rolsuper OR (rolinherit AND rolname = current_user AND :is_older))"
        ),
        {"logins": list(logins), "is_older": database.server_version < 160000},
    )
    return {row.rolname for row in rows}


def tenants(comparison: Comparison) -> Iterator[MigrateOperation]:
    """Yield what creates or repairs the roles of tenants that are declared."""
    tenancy, existing = comparison.tenancy, comparison.database.tenants
    names: dict[str, Any] = {
        "role_prefix": tenancy.role_prefix,
        "tenants_role": tenancy.tenants_role,
    }
    for role, (tenant, logins) in sorted(_declared(comparison).items()):
        state = existing.get(role)
        if state is None:
            log.info("Detected missing tenant %r", tenant_text(tenant))
            yield ops.CreateTenantRoleOp(tenant, logins=logins or (), **names)
            continue
        yield from _altered_role(state.role, TENANT_ROLE_ATTRIBUTES)
        # a tenant that is suspended stays so
        if logins is None or state.suspended:
            continue
        wanted = set(logins) or {comparison.database.current_user}
        # our own roles among them are surplus memberships, see above
        held = {each for each in state.logins if not comparison.expected.is_ours(each)}
        missing, surplus = wanted - held, held - wanted
        missing -= _never_granted(comparison, missing)
        if missing:
            log.info("Detected missing logins of %r: %s", role, sorted(missing))
            yield ops.GrantTenantRoleOp(tenant, sorted(missing), **names)
        if surplus:
            log.info("Detected removed logins of %r: %s", role, sorted(surplus))
            yield ops.RevokeTenantRoleOp(tenant, sorted(surplus), **names)


def removed_tenants(comparison: Comparison) -> Iterator[MigrateOperation]:
    """Yield what drops the roles of tenants that are declared no more."""
    tenancy, existing = comparison.tenancy, comparison.database.tenants
    if not comparison.declared:
        return
    for role in sorted(set(existing) - set(_declared(comparison))):
        tenant = tenancy.tenant_of(role)
        log.info("Detected removed tenant %r", tenant)
        yield ops.DropTenantRoleOp(
            tenant,
            logins=existing[role].logins,
            role_prefix=tenancy.role_prefix,
            tenants_role=tenancy.tenants_role,
        )


def unused(
    comparison: Comparison,
    changes: Iterable[TableChanges],
    dropped: set[Dependency],
) -> Iterator[MigrateOperation]:
    """Yield what takes back USAGE on schemas, and after the last table all the rest.

    :param dropped: what :func:`.order.dropped` returns.
    """
    database, tenancy = comparison.database, comparison.tenancy
    changes = list(changes)
    removed = {each.key for each in changes if each.is_removed}
    if not removed:
        return
    expected = comparison.expected
    remaining = {
        key
        for key, table in database.tables.items()
        if key not in removed and expected.uses(table)
    }
    used = {each.key[0] for each in changes if each.is_marked}
    used |= {schema for schema, name in remaining}
    for name in sorted({schema for schema, table in removed} - used):
        state = database.schemas[name]
        found = {grant for grant in state.grants if expected.is_group(grant.role)}
        yield from grant_ops(
            comparison.schema_name(name), found, (), object_type="SCHEMA"
        )
    if comparison.wanted or remaining or database.function is None:
        return
    defaults_left = [
        each
        for each in catalog.read_defaults(comparison.connection, tenancy)
        if not is_among(each, dropped)
    ]
    if defaults_left:
        log.warning(
            "no table has tenants any more, but schema %r stays: its function is the "
            "default of %s",
            tenancy.schema,
            ", ".join(sorted(".".join(filter(None, each)) for each in defaults_left)),
        )
        return
    log.info("Detected unused tenancy: schema %r", tenancy.schema)
    yield ops.DropTenancyOp(tenancy)
