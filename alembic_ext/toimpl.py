"""Operations as DDL: each executes elements of :mod:`sqlalchemy_tenants.ddl` only, so
that ``--sql`` works everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from alembic.operations import Operations
from sqlalchemy import MetaData

from sqlalchemy_tenants import ddl
from sqlalchemy_tenants.declare import require_tenant_of
from sqlalchemy_tenants.tenancy import TenantId

from . import ops


def _execute(operations: Operations, *elements: ddl.TenancyDDL) -> None:
    for element in elements:
        operations.migration_context.impl.execute(element)


@Operations.implementation_for(ops.CreateTenancyOp)
def create_tenancy(operations: Operations, operation: ops.CreateTenancyOp) -> None:
    tenancy = operation.tenancy
    schema = tenancy.schema
    readers = [tenancy.tenants_role, tenancy.admin_role]
    _execute(
        operations,
        ddl.CreateTenancySchema(schema),
        ddl.CreateTenantFunction(tenancy),
        *map(ddl.CreateGroupRole, tenancy.group_roles),
        ddl.GrantGroupRole(tenancy.tenants_role, tenancy.shared_role, schema=schema),
        ddl.GrantGroupRole(tenancy.admin_role, schema=schema),
        _usage(schema, readers, grant=True),
        ddl.GrantExecute(schema, readers),
    )


@Operations.implementation_for(ops.DropTenancyOp)
def drop_tenancy(operations: Operations, operation: ops.DropTenancyOp) -> None:
    tenancy = operation.tenancy
    schema, tenants = tenancy.schema, tenancy.tenants_role
    _execute(
        operations,
        ddl.RevokeGroupRole(tenancy.admin_role, schema=schema),
        ddl.RevokeGroupRole(tenants, tenancy.shared_role, schema=schema),
        ddl.DropTenantFunction(schema),
        _usage(schema, [tenants, tenancy.admin_role], grant=False),
        ddl.DropTenancySchema(schema),
        ddl.DropGroupRole(tenancy.admin_role),
        ddl.DropGroupRole(tenancy.shared_role, needed_by=tenants),
        ddl.DropGroupRole(tenants, keep_members=tenancy.role_prefix),
    )


def _usage(schema: str, roles: Sequence[str], *, grant: bool) -> ddl.ChangePrivileges:
    return ddl.ChangePrivileges(
        schema, grant=grant, privileges=["USAGE"], roles=roles, object_type="SCHEMA"
    )


@Operations.implementation_for(ops.CreateGroupRoleOp)
def create_group_role(operations: Operations, operation: ops.CreateGroupRoleOp) -> None:
    _execute(operations, ddl.CreateGroupRole(operation.role))
    if operation.member_of is not None:
        _execute(operations, ddl.GrantGroupRole(operation.member_of, operation.role))
    if operation.admin:
        _execute(operations, ddl.GrantGroupRole(operation.role))


@Operations.implementation_for(ops.DropGroupRoleOp)
def drop_group_role(operations: Operations, operation: ops.DropGroupRoleOp) -> None:
    _execute(operations, ddl.DropGroupRole(operation.role))


@Operations.implementation_for(ops.AlterGroupRoleOp)
def alter_group_role(operations: Operations, operation: ops.AlterGroupRoleOp) -> None:
    _execute(operations, ddl.AlterGroupRole(operation.role, operation.attributes))


@Operations.implementation_for(ops.GrantMembershipOp)
def grant_membership(operations: Operations, operation: ops.GrantMembershipOp) -> None:
    _execute(operations, ddl.GrantGroupRole(operation.group, operation.member))


@Operations.implementation_for(ops.RevokeMembershipOp)
def revoke_membership(
    operations: Operations, operation: ops.RevokeMembershipOp
) -> None:
    _execute(operations, ddl.RevokeGroupRole(operation.group, operation.member))


@Operations.implementation_for(ops.ReplaceTenantFunctionOp)
def replace_tenant_function(
    operations: Operations, operation: ops.ReplaceTenantFunctionOp
) -> None:
    if operation.definition is None:
        _execute(operations, ddl.DropTenantFunction(operation.schema))
    else:
        _execute(operations, ddl.ReplaceTenantFunction(operation.definition))
        if operation.owner is not None:
            _execute(
                operations, ddl.AlterFunctionOwner(operation.schema, operation.owner)
            )


@Operations.implementation_for(ops.CreateTenantRoleOp)
def create_tenant_role(
    operations: Operations, operation: ops.CreateTenantRoleOp
) -> None:
    role = operation.role
    _require_canonical(operations, operation.tenant)
    _execute(
        operations,
        ddl.CreateTenantRole(
            role, tenants_role=operation.tenancy.tenants_role, tolerant=True
        ),
        *(ddl.GrantTenantRole(role, login) for login in operation.logins or (None,)),
    )


def _require_canonical(operations: Operations, tenant: TenantId) -> None:
    """Refuse another spelling of a tenant, where the context knows the models.

    Not a tenant that they cannot hold: they may have changed since the revision.
    """
    metadata = operations.migration_context.opts.get("target_metadata")
    collections = [metadata] if isinstance(metadata, MetaData) else metadata or ()
    for each in collections:
        require_tenant_of(tenant, each, held=False)


@Operations.implementation_for(ops.DropTenantRoleOp)
def drop_tenant_role(operations: Operations, operation: ops.DropTenantRoleOp) -> None:
    _execute(operations, ddl.DropTenantRole(operation.role, tolerant=True))


@Operations.implementation_for(ops.RowSecurityOp)
def row_security(operations: Operations, operation: ops.RowSecurityOp) -> None:
    table, schema = operation.table_name, operation.schema
    enable = ddl.EnableRLS(table, schema, enable=operation.enable)
    force = ddl.ForceRLS(table, schema, force=operation.force)
    _execute(operations, enable, force)


@Operations.implementation_for(ops.CreatePolicyOp)
def create_policy(operations: Operations, operation: ops.CreatePolicyOp) -> None:
    _execute(
        operations,
        ddl.CreatePolicy(operation.policy, operation.table_name, operation.schema),
    )


@Operations.implementation_for(ops.DropPolicyOp)
def drop_policy(operations: Operations, operation: ops.DropPolicyOp) -> None:
    _execute(
        operations,
        ddl.DropPolicy(operation.policy.name, operation.table_name, operation.schema),
    )


@Operations.implementation_for(ops.AlterPolicyOp)
def alter_policy(operations: Operations, operation: ops.AlterPolicyOp) -> None:
    _execute(
        operations,
        ddl.AlterPolicy(
            operation.policy_name,
            operation.table_name,
            operation.schema,
            using=operation.using,
            with_check=operation.with_check,
            roles=operation.roles,
        ),
    )


@Operations.implementation_for(ops.GrantPrivilegesOp)
@Operations.implementation_for(ops.RevokePrivilegesOp)
def change_privileges(
    operations: Operations,
    operation: ops.GrantPrivilegesOp | ops.RevokePrivilegesOp,
) -> None:
    _execute(
        operations,
        ddl.ChangePrivileges(
            operation.name,
            operation.schema,
            grant=operation.grant,
            privileges=operation.privileges,
            roles=operation.roles,
            object_type=operation.object_type,
            columns=operation.columns,
            grant_option=operation.grant_option,
            granted_by=operation.granted_by,
        ),
    )
