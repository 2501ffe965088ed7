"""Operations as data: what a migration does, and its reverse.

How is in :mod:`.toimpl`, as source in :mod:`.render`, when in :mod:`.compare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alembic.operations import MigrateOperation, Operations

from sqlalchemy_tenants.arguments import require_flag, require_name, require_names
from sqlalchemy_tenants.catalog import ObjectType
from sqlalchemy_tenants.policies import Condition, Policy, expression_text, role_set
from sqlalchemy_tenants.tenancy import Tenancy, TenantId, tenant_text

_NAMES = (
    "role_prefix",
    "tenants_role",
    "shared_role",
    "admin_role",
    "schema",
    "setting",
)


def _optional_name(what: str, name: str | None) -> str | None:
    return None if name is None else require_name(what, name)


class TenancyOp(MigrateOperation):
    """Base of all operations here."""

    #: Name of the function in ``alembic.op``.
    directive: str

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and keyword arguments of the directive, as rendered."""
        raise NotImplementedError

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what ``alembic check`` prints."""
        args, kw = self.arguments()
        return (self.directive, *args, kw)


class _TenancyNamesOp(TenancyOp):
    def __init__(self, tenancy: Tenancy) -> None:
        self.tenancy = tenancy

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [], self.tenancy.non_defaults(*_NAMES)


@Operations.register_operation("create_tenancy")
class CreateTenancyOp(_TenancyNamesOp):
    """Create the group roles, the schema and the function."""

    directive = "create_tenancy"

    @classmethod
    def create_tenancy(
        cls,
        operations: Operations,
        *,
        role_prefix: str = "tenant_",
        tenants_role: str = "tenants",
        shared_role: str = "tenants_shared",
        admin_role: str = "tenants_admin",
        schema: str = "tenancy",
        setting: str = "tenancy.tenant",
    ) -> None:
        """Create what all tables of tenants need, once in a database.

        ``CREATE ROLE`` of three group roles that the cluster may have already,
        ``GRANT tenants_admin TO CURRENT_USER``, so that migrations see all rows,
        ``CREATE SCHEMA`` and ``CREATE FUNCTION tenancy.current_tenant()``.

        The parameters are those of :class:`sqlalchemy_tenants.Tenancy`.
        """
        tenancy = Tenancy.recorded(
            role_prefix=role_prefix,
            tenants_role=tenants_role,
            shared_role=shared_role,
            admin_role=admin_role,
            schema=schema,
            setting=setting,
        )
        operations.invoke(cls(tenancy))

    def reverse(self) -> DropTenancyOp:
        return DropTenancyOp(self.tenancy)


@Operations.register_operation("drop_tenancy")
class DropTenancyOp(_TenancyNamesOp):
    """Drop the function, the schema and the group roles."""

    directive = "drop_tenancy"

    @classmethod
    def drop_tenancy(
        cls,
        operations: Operations,
        *,
        role_prefix: str = "tenant_",
        tenants_role: str = "tenants",
        shared_role: str = "tenants_shared",
        admin_role: str = "tenants_admin",
        schema: str = "tenancy",
        setting: str = "tenancy.tenant",
    ) -> None:
        """Drop what :meth:`create_tenancy` created.

        Fails while a policy asks the function. Leaves a role or schema that was there
        before, a role that another database uses, and the tenants' group role while
        it has tenants.

        The parameters are those of :class:`sqlalchemy_tenants.Tenancy`.
        """
        tenancy = Tenancy.recorded(
            role_prefix=role_prefix,
            tenants_role=tenants_role,
            shared_role=shared_role,
            admin_role=admin_role,
            schema=schema,
            setting=setting,
        )
        operations.invoke(cls(tenancy))

    def reverse(self) -> CreateTenancyOp:
        return CreateTenancyOp(self.tenancy)


class _GroupRoleOp(TenancyOp):
    def __init__(
        self, role: str, *, member_of: str | None = None, admin: bool = False
    ) -> None:
        self.role = require_name("role", role)
        self.member_of = _optional_name("member_of", member_of)
        self.admin = require_flag("admin", admin)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        kw: dict[str, Any] = {}
        if self.member_of is not None:
            kw["member_of"] = self.member_of
        if self.admin:
            kw["admin"] = True
        return [self.role], kw


@Operations.register_operation("create_group_role")
class CreateGroupRoleOp(_GroupRoleOp):
    """Create a group role that is missing, as a part of :class:`CreateTenancyOp`."""

    directive = "create_group_role"

    @classmethod
    def create_group_role(
        cls,
        operations: Operations,
        role: str,
        *,
        member_of: str | None = None,
        admin: bool = False,
    ) -> None:
        """``CREATE ROLE … NOLOGIN``, unless the cluster has the role.

        :param role: name of the role.
        :param member_of: a group role that it becomes a member of.
        :param admin: grant it to the current user, so that migrations see all rows.
        """
        operations.invoke(cls(role, member_of=member_of, admin=admin))

    def reverse(self) -> DropGroupRoleOp:
        return DropGroupRoleOp(self.role, member_of=self.member_of, admin=self.admin)


@Operations.register_operation("drop_group_role")
class DropGroupRoleOp(_GroupRoleOp):
    """Drop a group role."""

    directive = "drop_group_role"

    @classmethod
    def drop_group_role(
        cls,
        operations: Operations,
        role: str,
        *,
        member_of: str | None = None,
        admin: bool = False,
    ) -> None:
        """``DROP ROLE``, unless it was there before or another database uses it.

        :param role: name of the role.
        :param member_of: kept for the reverse.
        :param admin: likewise.
        """
        operations.invoke(cls(role, member_of=member_of, admin=admin))

    def reverse(self) -> CreateGroupRoleOp:
        return CreateGroupRoleOp(self.role, member_of=self.member_of, admin=self.admin)


#: Attributes that a group role must have, by their names in :class:`AlterGroupRoleOp`.
GROUP_ROLE_ATTRIBUTES = {
    "superuser": False,
    "bypass_rls": False,
    "login": False,
    "inherit": True,
    "create_role": False,
    "create_db": False,
    "replication": False,
}


@Operations.register_operation("alter_group_role")
class AlterGroupRoleOp(TenancyOp):
    """Alter attributes of a group role."""

    directive = "alter_group_role"

    def __init__(self, role: str, **attributes: bool) -> None:
        self.role = require_name("role", role)
        self.attributes = {
            name: require_flag(name, value) for name, value in attributes.items()
        }
        if not attributes:
            raise ValueError(f"role {role!r}: name what to alter, as in login=False")

    @classmethod
    def alter_group_role(
        cls,
        operations: Operations,
        role: str,
        *,
        superuser: bool | None = None,
        bypass_rls: bool | None = None,
        login: bool | None = None,
        inherit: bool | None = None,
        create_role: bool | None = None,
        create_db: bool | None = None,
        replication: bool | None = None,
    ) -> None:
        """``ALTER ROLE``, as in ``NOBYPASSRLS NOLOGIN``; ``None`` leaves as it is.

        :param role: name of the role.
        :raises ValueError: nothing is altered.
        """
        attributes = {
            "superuser": superuser,
            "bypass_rls": bypass_rls,
            "login": login,
            "inherit": inherit,
            "create_role": create_role,
            "create_db": create_db,
            "replication": replication,
        }
        given = {key: value for key, value in attributes.items() if value is not None}
        operations.invoke(cls(role, **given))

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [self.role], dict(self.attributes)

    def reverse(self) -> AlterGroupRoleOp:
        opposite = {key: not value for key, value in self.attributes.items()}
        return AlterGroupRoleOp(self.role, **opposite)


class _MembershipOp(TenancyOp):
    def __init__(self, group: str, member: str) -> None:
        self.group = require_name("group", group)
        self.member = require_name("member", member)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [self.group, self.member], {}


@Operations.register_operation("grant_membership")
class GrantMembershipOp(_MembershipOp):
    """Make a role a member of a group role."""

    directive = "grant_membership"

    @classmethod
    def grant_membership(cls, operations: Operations, group: str, member: str) -> None:
        """``GRANT group TO member``, whose privileges it inherits.

        :param group: the group role.
        :param member: the role that becomes its member.
        """
        operations.invoke(cls(group, member))

    def reverse(self) -> RevokeMembershipOp:
        return RevokeMembershipOp(self.group, self.member)


@Operations.register_operation("revoke_membership")
class RevokeMembershipOp(_MembershipOp):
    """End a role's membership in a group role."""

    directive = "revoke_membership"

    @classmethod
    def revoke_membership(cls, operations: Operations, group: str, member: str) -> None:
        """``REVOKE group FROM member``.

        :param group: the group role.
        :param member: the role that ceases to be its member.
        """
        operations.invoke(cls(group, member))

    def reverse(self) -> GrantMembershipOp:
        return GrantMembershipOp(self.group, self.member)


@Operations.register_operation("replace_tenant_function")
class ReplaceTenantFunctionOp(TenancyOp):
    """Replace the function that was altered, or drop it where there was none."""

    directive = "replace_tenant_function"

    def __init__(
        self,
        schema: str,
        definition: str | None,
        *,
        owner: str | None = None,
        existing: str | None = None,
        existing_owner: str | None = None,
    ) -> None:
        self.schema = require_name("schema", schema)
        if definition is not None and not isinstance(definition, str):
            raise TypeError(f"definition is SQL text or None, not {definition!r}")
        self.definition = definition
        self.owner = _optional_name("owner", owner)
        self.existing = existing
        self.existing_owner = existing_owner

    @classmethod
    def replace_tenant_function(
        cls,
        operations: Operations,
        schema: str,
        definition: str | None,
        *,
        owner: str | None = None,
    ) -> None:
        """``CREATE OR REPLACE FUNCTION``, or ``DROP FUNCTION``.

        :param schema: schema of the function.
        :param definition: the whole statement, as ``pg_get_functiondef`` prints it;
            ``None`` drops the function.
        :param owner: new owner of the function, ``None`` to leave it.
        """
        operations.invoke(cls(schema, definition, owner=owner))

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        kw = {} if self.owner is None else {"owner": self.owner}
        return [self.schema, self.definition], kw

    def reverse(self) -> ReplaceTenantFunctionOp:
        return ReplaceTenantFunctionOp(
            self.schema,
            self.existing,
            owner=self.existing_owner,
            existing=self.definition,
            existing_owner=self.owner,
        )


class _TenantRoleOp(TenancyOp):
    def __init__(
        self,
        tenant: TenantId,
        *,
        logins: Sequence[str] = (),
        role_prefix: str = "tenant_",
        tenants_role: str = "tenants",
    ) -> None:
        self.tenant = tenant_text(tenant)
        self.logins = tuple(require_names("login", logins))
        self.tenancy = Tenancy.recorded(
            role_prefix=role_prefix, tenants_role=tenants_role
        )
        self.role = self.tenancy.role_for(tenant)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        kw = self.tenancy.non_defaults("role_prefix", "tenants_role")
        return [self.tenant], {**self._logins(), **kw}

    def _logins(self) -> dict[str, Any]:
        return {"logins": list(self.logins)} if self.logins else {}


@Operations.register_operation("create_tenant_role")
class CreateTenantRoleOp(_TenantRoleOp):
    """Create a tenant's role."""

    directive = "create_tenant_role"

    @classmethod
    def create_tenant_role(
        cls,
        operations: Operations,
        tenant: TenantId,
        *,
        logins: Sequence[str] = (),
        role_prefix: str = "tenant_",
        tenants_role: str = "tenants",
    ) -> None:
        """``CREATE ROLE "tenant_acme" NOLOGIN IN ROLE tenants``, unless it exists.

        :param tenant: str, int or UUID.
        :param logins: application logins that may act as the tenant; the current user
            unless given, which suits development.
        :param role_prefix: see :class:`sqlalchemy_tenants.Tenancy`.
        :param tenants_role: see :class:`sqlalchemy_tenants.Tenancy`.
        :raises InvalidTenant: for what cannot identify a tenant.
        """
        operations.invoke(
            cls(
                tenant,
                logins=logins,
                role_prefix=role_prefix,
                tenants_role=tenants_role,
            )
        )

    def reverse(self) -> DropTenantRoleOp:
        return DropTenantRoleOp(
            self.tenant,
            logins=self.logins,
            role_prefix=self.tenancy.role_prefix,
            tenants_role=self.tenancy.tenants_role,
        )


@Operations.register_operation("drop_tenant_role")
class DropTenantRoleOp(_TenantRoleOp):
    """Drop a tenant's role, never rows."""

    directive = "drop_tenant_role"

    @classmethod
    def drop_tenant_role(
        cls,
        operations: Operations,
        tenant: TenantId,
        *,
        role_prefix: str = "tenant_",
        tenants_role: str = "tenants",
    ) -> None:
        """``DROP ROLE``, unless it is gone or another database depends on it.

        :param tenant: str, int or UUID.
        :param role_prefix: see :class:`sqlalchemy_tenants.Tenancy`.
        :param tenants_role: see :class:`sqlalchemy_tenants.Tenancy`.
        :raises InvalidTenant: for what cannot identify a tenant.
        """
        operations.invoke(
            cls(tenant, role_prefix=role_prefix, tenants_role=tenants_role)
        )

    def _logins(self) -> dict[str, Any]:
        return {}

    def reverse(self) -> CreateTenantRoleOp:
        return CreateTenantRoleOp(
            self.tenant,
            logins=self.logins,
            role_prefix=self.tenancy.role_prefix,
            tenants_role=self.tenancy.tenants_role,
        )


class _TableOp(TenancyOp):
    """Base of operations on a table."""

    table_name: str
    schema: str | None

    def _schema(self) -> dict[str, Any]:
        return {} if self.schema is None else {"schema": self.schema}


class RowSecurityOp(_TableOp):
    """Base of :class:`EnableRLSOp` and :class:`DisableRLSOp`: both set both flags.

    :param existing: the flags before, enabled and forced, kept for the reverse.
    """

    enable: bool

    def __init__(
        self,
        table_name: str,
        *,
        schema: str | None = None,
        force: bool,
        existing: tuple[bool, bool],
    ) -> None:
        self.table_name = require_name("table_name", table_name)
        self.schema = _optional_name("schema", schema)
        self.force = require_flag("force", force)
        self.existing = existing

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        kw = {} if self.force is self.enable else {"force": self.force}
        return [self.table_name], {**self._schema(), **kw}

    def reverse(self) -> RowSecurityOp:
        enabled, forced = self.existing
        return (EnableRLSOp if enabled else DisableRLSOp)(
            self.table_name,
            schema=self.schema,
            force=forced,
            existing=(self.enable, self.force),
        )


@Operations.register_operation("enable_rls")
class EnableRLSOp(RowSecurityOp):
    """Enable row-level security, and force it on the table's owner."""

    directive = "enable_rls"
    enable = True

    def __init__(
        self,
        table_name: str,
        *,
        schema: str | None = None,
        force: bool = True,
        existing: tuple[bool, bool] = (False, False),
    ) -> None:
        super().__init__(table_name, schema=schema, force=force, existing=existing)

    @classmethod
    def enable_rls(
        cls,
        operations: Operations,
        table_name: str,
        *,
        schema: str | None = None,
        force: bool = True,
    ) -> None:
        """``ALTER TABLE … ENABLE ROW LEVEL SECURITY`` and ``FORCE``.

        :param table_name: name of the table.
        :param schema: its schema; ``None`` for the default one.
        :param force: ``False`` for ``NO FORCE``, which exempts the table's owner.
        """
        operations.invoke(cls(table_name, schema=schema, force=force))


@Operations.register_operation("disable_rls")
class DisableRLSOp(RowSecurityOp):
    """Disable row-level security."""

    directive = "disable_rls"
    enable = False

    def __init__(
        self,
        table_name: str,
        *,
        schema: str | None = None,
        force: bool = False,
        existing: tuple[bool, bool] = (True, True),
    ) -> None:
        super().__init__(table_name, schema=schema, force=force, existing=existing)

    @classmethod
    def disable_rls(
        cls,
        operations: Operations,
        table_name: str,
        *,
        schema: str | None = None,
        force: bool = False,
    ) -> None:
        """``ALTER TABLE … DISABLE ROW LEVEL SECURITY`` and ``NO FORCE``.

        :param table_name: name of the table.
        :param schema: its schema; ``None`` for the default one.
        :param force: ``True`` leaves it forced for when it is enabled again.
        """
        operations.invoke(cls(table_name, schema=schema, force=force))


class _PolicyOp(_TableOp):
    def __init__(
        self, policy: Policy, table_name: str, *, schema: str | None = None
    ) -> None:
        self.policy = policy
        self.table_name = require_name("table_name", table_name)
        self.schema = _optional_name("schema", schema)


@Operations.register_operation("create_policy")
class CreatePolicyOp(_PolicyOp):
    """Create a policy."""

    directive = "create_policy"

    @classmethod
    def create_policy(
        cls,
        operations: Operations,
        policy_name: str,
        table_name: str,
        *,
        schema: str | None = None,
        using: Any = None,
        with_check: Any = None,
        command: str = "ALL",
        permissive: bool = True,
        roles: str | Sequence[str] | None = None,
    ) -> None:
        """``CREATE POLICY``.

        :param policy_name: name of the policy.
        :param table_name: name of the table.
        :param schema: the table's schema; ``None`` for the default one.
        :param using: condition for rows that are read, updated or deleted, as SQL
            text or SQLAlchemy expression.
        :param with_check: condition for rows that are written.
        :param command: ``"ALL"``, ``"SELECT"``, ``"INSERT"``, ``"UPDATE"`` or
            ``"DELETE"``.
        :param permissive: ``False`` for ``AS RESTRICTIVE``.
        :param roles: roles it applies to; everyone unless given, as in SQL.
        :raises ValueError: for a definition that PostgreSQL would refuse.
        """
        policy = Policy(
            policy_name,
            using=using,
            with_check=with_check,
            command=command,
            permissive=permissive,
            roles=roles,
        )
        operations.invoke(cls(policy, table_name, schema=schema))

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        policy = self.policy
        kw = self._schema()
        if not policy.permissive:
            kw["permissive"] = False
        if policy.command != "ALL":
            kw["command"] = policy.command
        if policy.roles is not None:
            kw["roles"] = list(policy.roles)
        if policy.using is not None:
            kw["using"] = policy.using
        if policy.with_check is not None:
            kw["with_check"] = policy.with_check
        return [policy.name, self.table_name], kw

    def reverse(self) -> DropPolicyOp:
        return DropPolicyOp(self.policy, self.table_name, schema=self.schema)


@Operations.register_operation("drop_policy")
class DropPolicyOp(_PolicyOp):
    """Drop a policy; keeps its definition for the reverse."""

    directive = "drop_policy"

    @classmethod
    def drop_policy(
        cls,
        operations: Operations,
        policy_name: str,
        table_name: str,
        *,
        schema: str | None = None,
    ) -> None:
        """``DROP POLICY``.

        :param policy_name: name of the policy.
        :param table_name: name of the table.
        :param schema: the table's schema; ``None`` for the default one.
        """
        operations.invoke(cls(Policy(policy_name), table_name, schema=schema))

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [self.policy.name, self.table_name], self._schema()

    def reverse(self) -> CreatePolicyOp:
        return CreatePolicyOp(self.policy, self.table_name, schema=self.schema)


@Operations.register_operation("alter_policy")
class AlterPolicyOp(_TableOp):
    """Alter a policy's roles or expressions; ``None`` leaves each as it is."""

    directive = "alter_policy"

    def __init__(
        self,
        policy_name: str,
        table_name: str,
        *,
        schema: str | None = None,
        using: Condition | None = None,
        with_check: Condition | None = None,
        roles: str | Sequence[str] | None = None,
        existing_using: str | None = None,
        existing_with_check: str | None = None,
        existing_roles: Sequence[str] | None = None,
    ) -> None:
        self.policy_name = require_name("policy", policy_name)
        self.table_name = require_name("table_name", table_name)
        self.schema = _optional_name("schema", schema)
        self.using = expression_text(using, f"policy {policy_name!r}: using")
        self.with_check = expression_text(
            with_check, f"policy {policy_name!r}: with_check"
        )
        self.roles = None if roles is None else role_set(roles)
        if self.roles == ():
            raise ValueError(f"policy {policy_name!r}: roles is empty")
        if not (self.using or self.with_check or self.roles):
            raise ValueError(
                f"policy {policy_name!r}: name what to alter: using, with_check or "
                f"roles"
            )
        self.existing_using = existing_using
        self.existing_with_check = existing_with_check
        self.existing_roles = (
            None if existing_roles is None else role_set(existing_roles)
        )

    @classmethod
    def alter_policy(
        cls,
        operations: Operations,
        policy_name: str,
        table_name: str,
        *,
        schema: str | None = None,
        using: Condition | None = None,
        with_check: Condition | None = None,
        roles: str | Sequence[str] | None = None,
        existing_using: str | None = None,
        existing_with_check: str | None = None,
        existing_roles: Sequence[str] | None = None,
    ) -> None:
        """``ALTER POLICY``.

        Its command, and whether it is permissive, cannot be altered: drop and create.

        :param policy_name: name of the policy.
        :param table_name: name of the table.
        :param schema: the table's schema; ``None`` for the default one.
        :param using: new condition for rows that are read, updated or deleted, as SQL
            text or SQLAlchemy expression.
        :param with_check: new condition for rows that are written.
        :param roles: new roles.
        :param existing_using: the condition before, which the reverse restores.
        :param existing_with_check: likewise.
        :param existing_roles: likewise.
        :raises ValueError: nothing is altered.
        """
        operations.invoke(
            cls(
                policy_name,
                table_name,
                schema=schema,
                using=using,
                with_check=with_check,
                roles=roles,
                existing_using=existing_using,
                existing_with_check=existing_with_check,
                existing_roles=existing_roles,
            )
        )

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        values = {
            "roles": self.roles and list(self.roles),
            "existing_roles": self.existing_roles and list(self.existing_roles),
            "using": self.using,
            "existing_using": self.existing_using,
            "with_check": self.with_check,
            "existing_with_check": self.existing_with_check,
        }
        kw = {key: value for key, value in values.items() if value is not None}
        return [self.policy_name, self.table_name], {**self._schema(), **kw}

    def reverse(self) -> AlterPolicyOp:
        return AlterPolicyOp(
            self.policy_name,
            self.table_name,
            schema=self.schema,
            using=self.existing_using,
            with_check=self.existing_with_check,
            roles=self.existing_roles,
            existing_using=self.using,
            existing_with_check=self.with_check,
            existing_roles=self.roles,
        )


OBJECT_TYPES: tuple[ObjectType, ...] = (
    "TABLE",
    "SEQUENCE",
    "SCHEMA",
    "FUNCTION",
    "DEFAULT TABLES",
)

PRIVILEGES = (
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "TRUNCATE",
    "REFERENCES",
    "TRIGGER",
    "MAINTAIN",
    "USAGE",
    "CREATE",
    "EXECUTE",
    "ALL",
)


class _PrivilegesOp(_TableOp):
    """Base of :class:`GrantPrivilegesOp` and :class:`RevokePrivilegesOp`.

    :param grant_option: ``WITH GRANT OPTION``, or ``GRANT OPTION FOR``.
    :param before: whether the privileges that are revoked had the grant option, kept
        for the reverse.
    """

    grant: bool

    def __init__(
        self,
        table_name: str | None,
        privileges: str | Sequence[str],
        roles: str | Sequence[str],
        *,
        schema: str | None = None,
        object_type: ObjectType = "TABLE",
        columns: Sequence[str] = (),
        grant_option: bool = False,
        granted_by: str | None = None,
        before: bool = False,
    ) -> None:
        if object_type not in OBJECT_TYPES:
            raise ValueError(
                f"object_type {object_type!r} is none of {', '.join(OBJECT_TYPES)}"
            )
        self.name = _optional_name(object_type.lower(), table_name)
        self.schema = _optional_name("schema", schema)
        self.privileges = [
            privilege.upper() for privilege in require_names("privilege", privileges)
        ]
        self.roles = require_names("role", roles)
        self.columns = require_names("column", columns)
        self.grant_option = require_flag("grant option", grant_option)
        self.granted_by = _optional_name("granted_by", granted_by)
        for privilege in self.privileges:
            # a keyword, printed as it is
            if privilege not in PRIVILEGES:
                raise ValueError(
                    f"privilege {privilege!r} is none of {', '.join(PRIVILEGES)}"
                )
        if not self.privileges or not self.roles:
            raise ValueError(f"{table_name!r}: name privileges and roles")
        if table_name is None and object_type != "DEFAULT TABLES":
            raise ValueError(f"name the {object_type}")
        self.table_name = self.name or ""
        self.object_type: ObjectType = object_type
        self.before = before

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        kw = self._schema()
        if self.object_type != "TABLE":
            kw["object_type"] = self.object_type
        if self.columns:
            kw["columns"] = self.columns
        if self.grant_option:
            kw["with_grant_option" if self.grant else "grant_option_for"] = True
        if self.granted_by is not None:
            kw["granted_by"] = self.granted_by
        return [self.name, self.privileges, self.roles], kw

    def _reversed(self, cls: type[Any], *, grant_option: bool, before: bool) -> Any:
        return cls(
            self.name,
            self.privileges,
            self.roles,
            schema=self.schema,
            object_type=self.object_type,
            columns=self.columns,
            grant_option=grant_option,
            granted_by=self.granted_by,
            before=before,
        )


@Operations.register_operation("grant_privileges")
class GrantPrivilegesOp(_PrivilegesOp):
    """Grant privileges on a table, a sequence, a schema or a function."""

    directive = "grant_privileges"
    grant = True

    @classmethod
    def grant_privileges(
        cls,
        operations: Operations,
        table_name: str | None,
        privileges: str | Sequence[str],
        roles: str | Sequence[str],
        *,
        schema: str | None = None,
        object_type: ObjectType = "TABLE",
        columns: Sequence[str] = (),
        with_grant_option: bool = False,
        granted_by: str | None = None,
    ) -> None:
        """``GRANT``, or ``ALTER DEFAULT PRIVILEGES … GRANT``.

        :param table_name: name of the table, or of the sequence, the schema, or the
            function without arguments.
        :param privileges: as in ``["SELECT", "INSERT"]``.
        :param roles: grantees; ``"public"`` is everyone.
        :param schema: the schema of the table; ``None`` for the default one.
        :param object_type: ``"TABLE"``, ``"SEQUENCE"``, ``"SCHEMA"``, ``"FUNCTION"``,
            or ``"DEFAULT TABLES"``: tables that will be created in the schema
            ``table_name``, or in any if that is ``None``.
        :param columns: columns that the privileges are restricted to. With
            ``object_type="SEQUENCE"`` the serial column, and ``table_name`` its table:
            the server knows the sequence's name.
        :param with_grant_option: let the grantees grant further.
        :param granted_by: grant as this role, whose member the current user has to be;
            with ``"DEFAULT TABLES"``, the role that creates the tables.
        :raises ValueError: for an unknown privilege or type of object.
        """
        operations.invoke(
            cls(
                table_name,
                privileges,
                roles,
                schema=schema,
                object_type=object_type,
                columns=columns,
                grant_option=with_grant_option,
                granted_by=granted_by,
            )
        )

    def reverse(self) -> RevokePrivilegesOp:
        reversed_op: RevokePrivilegesOp = self._reversed(
            RevokePrivilegesOp,
            grant_option=self.grant_option and self.before,
            before=self.grant_option,
        )
        return reversed_op


@Operations.register_operation("revoke_privileges")
class RevokePrivilegesOp(_PrivilegesOp):
    """Revoke privileges on a table, a sequence, a schema or a function."""

    directive = "revoke_privileges"
    grant = False

    @classmethod
    def revoke_privileges(
        cls,
        operations: Operations,
        table_name: str | None,
        privileges: str | Sequence[str],
        roles: str | Sequence[str],
        *,
        schema: str | None = None,
        object_type: ObjectType = "TABLE",
        columns: Sequence[str] = (),
        grant_option_for: bool = False,
        granted_by: str | None = None,
    ) -> None:
        """``REVOKE``; the other parameters are those of :meth:`grant_privileges`.

        :param grant_option_for: revoke only the grant option.
        :raises ValueError: for an unknown privilege or type of object.
        """
        operations.invoke(
            cls(
                table_name,
                privileges,
                roles,
                schema=schema,
                object_type=object_type,
                columns=columns,
                grant_option=grant_option_for,
                granted_by=granted_by,
            )
        )

    def reverse(self) -> GrantPrivilegesOp:
        reversed_op: GrantPrivilegesOp = self._reversed(
            GrantPrivilegesOp,
            grant_option=self.grant_option or self.before,
            # whether the privilege itself stays when this is taken back again
            before=self.grant_option,
        )
        return reversed_op
