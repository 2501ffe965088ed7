"""What a database has once: group roles, schema and functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import product
from typing import Any, Self

from sqlalchemy_tenants.database.expected import Expected
from sqlalchemy_tenants.policies import quote_literal, quote_name
from sqlalchemy_tenants.roles import do_block
from sqlalchemy_tenants.tenancy import FUNCTION_NAME, FUNCTIONS, Tenancy

from .base import Name, TenancyOp, directive, function_name
from .notes import OWNED_COMMENT, Membership, Notes, notice
from .privileges import GrantPrivilegesOp, RevokePrivilegesOp
from .roles import create_group_role_sql, drop_group_role_sql, grant_group_role_sql


@dataclass(eq=False)
class _TenancyNamesOp(TenancyOp):
    tenancy: Tenancy

    @classmethod
    def from_directive(
        cls,
        *,
        role_prefix: str = "tenant_",
        tenants_role: str = "tenants",
        shared_role: str = "tenants_shared",
        admin_role: str = "tenants_admin",
        schema: str = "tenancy",
        setting: str = "tenancy.tenant",
    ) -> Self:
        tenancy = Tenancy.recorded(
            role_prefix=role_prefix,
            tenants_role=tenants_role,
            shared_role=shared_role,
            admin_role=admin_role,
            schema=schema,
            setting=setting,
        )
        return cls(tenancy)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        names = ("role_prefix", *_ROLES, "schema", "setting")
        return [], self.tenancy.non_defaults(*names)

    @property
    def _notes(self) -> Notes:
        return Notes("FUNCTION", function_name(self.tenancy.schema))

    @property
    def _readers(self) -> list[str]:
        return [self.tenancy.tenants_role, self.tenancy.admin_role]


_ROLES = ("tenants_role", "shared_role", "admin_role")


@directive("create_tenancy")
class CreateTenancyOp(_TenancyNamesOp):
    """Create what all tables of tenants need, once in a database.

    e.g.::

        op.create_tenancy()

    Emits ``CREATE SCHEMA``, ``CREATE FUNCTION tenancy.current_tenant()`` and
    ``tenancy.context_value(name)``, ``CREATE ROLE`` of three group roles that the
    cluster may have already, and ``GRANT tenants_admin TO CURRENT_USER``, so that
    migrations see all rows.

    The parameters are those of :class:`sqlalchemy_tenants.Tenancy`.

    :raises TypeError: for a value of another type.
    :raises ValueError: for names that PostgreSQL would refuse, or that collide.
    """

    def statements(self, notes: Notes) -> Iterator[str]:
        tenancy = self.tenancy
        schema, tenants, admin = (
            tenancy.schema,
            tenancy.tenants_role,
            tenancy.admin_role,
        )
        yield _create_schema_sql(schema)
        yield from Expected(tenancy).functions.values()
        yield from map(create_group_role_sql, tenancy.group_roles)
        for group, member in ((tenants, tenancy.shared_role), (admin, None)):
            membership = Membership(group, member, self._notes)
            yield grant_group_role_sql(membership, dropped_with=group)
        usage = GrantPrivilegesOp(schema, "USAGE", self._readers, object_type="SCHEMA")
        yield from usage.statements(notes)
        yield do_block(self._grant_execute())

    def _grant_execute(self) -> Iterator[str]:
        """Yield lines that grant EXECUTE to whom PUBLIC has not given it."""
        for name, role in product(FUNCTIONS, self._readers):
            function = function_name(self.tenancy.schema, name)
            has = f"{quote_literal(role)}, {quote_literal(function)}, 'EXECUTE'"
            yield f"IF NOT pg_catalog.has_function_privilege({has}) THEN"
            yield f"  GRANT EXECUTE ON FUNCTION {function} TO {quote_name(role)};"
            yield "END IF;"

    def reverse(self) -> DropTenancyOp:
        return self.converted(DropTenancyOp)


@directive("drop_tenancy")
class DropTenancyOp(_TenancyNamesOp):
    """Drop what ``create_tenancy`` created.

    e.g.::

        op.drop_tenancy()

    Emits ``DROP FUNCTION``, ``DROP SCHEMA`` and ``DROP ROLE``. It fails while a policy
    asks a function. It leaves a role, a schema or a membership that was there before
    or that another database needs, and the tenants' group role while it has tenants.

    The parameters are those of :class:`sqlalchemy_tenants.Tenancy`.

    :raises TypeError: for a value of another type.
    :raises ValueError: for names that PostgreSQL would refuse, or that collide.
    """

    def statements(self, notes: Notes) -> Iterator[str]:
        tenancy = self.tenancy
        schema, tenants, admin = (
            tenancy.schema,
            tenancy.tenants_role,
            tenancy.admin_role,
        )
        for group, member in ((admin, None), (tenants, tenancy.shared_role)):
            membership = Membership(group, member, self._notes)
            yield membership.undo_grant(needed=group)
        # an earlier version has created the first one only
        for name in FUNCTIONS:
            exists = "" if name == FUNCTION_NAME else "IF EXISTS "
            yield f"DROP FUNCTION {exists}{function_name(schema, name)}"
        usage = RevokePrivilegesOp(schema, "USAGE", self._readers, object_type="SCHEMA")
        yield from usage.statements(notes)
        yield _drop_schema_sql(schema)
        yield drop_group_role_sql(admin)
        yield drop_group_role_sql(tenancy.shared_role, needed_by=tenants, here=True)
        yield drop_group_role_sql(tenants, keep_members=tenancy.role_prefix)

    def reverse(self) -> CreateTenancyOp:
        return self.converted(CreateTenancyOp)


def _create_schema_sql(schema: str) -> str:
    name = quote_name(schema)
    return do_block(
        [
            f"IF pg_catalog.to_regnamespace({quote_literal(name)}) IS NULL THEN",
            f"  CREATE SCHEMA {name};",
            f"  COMMENT ON SCHEMA {name} IS {quote_literal(OWNED_COMMENT)};",
            "END IF;",
        ]
    )


def _drop_schema_sql(schema: str) -> str:
    """Return ``DROP SCHEMA``, unless it was there before or holds something else."""
    name = quote_name(schema)
    oid = f"pg_catalog.to_regnamespace({quote_literal(name)})"
    return do_block(
        [
            f"IF pg_catalog.obj_description({oid}, 'pg_namespace') ="
            f" {quote_literal(OWNED_COMMENT)} THEN",
            f"  DROP SCHEMA {name};",
            "END IF;",
            "EXCEPTION WHEN dependent_objects_still_exist THEN",
            "  " + notice(f"schema {schema} is in use, so it stays"),
        ]
    )


@directive("replace_tenant_function")
@dataclass(eq=False)
class ReplaceTenantFunctionOp(TenancyOp):
    """Create or replace a function of ours, or drop it where there was none.

    e.g.::

        op.replace_tenant_function("tenancy", "CREATE OR REPLACE FUNCTION …")

    Emits the definition, or ``DROP FUNCTION``, and ``ALTER FUNCTION … OWNER TO``.

    :param schema: schema of the function.
    :param definition: the whole statement, as ``pg_get_functiondef`` prints it;
        ``None`` drops the function.
    :param function: its name, ``"current_tenant"`` or ``"context_value"``.
    :param owner: new owner of the function, ``None`` to leave it.
    :param existing: the definition before, which the reverse restores.
    :param existing_owner: the owner before, likewise.
    :raises TypeError: for a value of another type.
    :raises ValueError: for what is not a name.
    """

    reverse_only = ("existing", "existing_owner")

    schema: Name
    definition: str | None
    _: KW_ONLY
    function: Name = FUNCTION_NAME
    owner: Name | None = None
    existing: str | None = None
    existing_owner: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.definition is not None and not isinstance(self.definition, str):
            raise TypeError(f"definition is SQL text or None, not {self.definition!r}")
        if self.function not in FUNCTIONS:
            raise ValueError(
                f"function {self.function!r} is none of {', '.join(FUNCTIONS)}"
            )

    def statements(self, notes: Notes) -> Iterator[str]:
        function = function_name(self.schema, self.function)
        if self.definition is None:
            yield f"DROP FUNCTION {function}"
            return
        yield self.definition
        if self.owner is not None:
            yield f"ALTER FUNCTION {function} OWNER TO {quote_name(self.owner)}"

    def reverse(self) -> ReplaceTenantFunctionOp:
        return self.converted(
            ReplaceTenantFunctionOp,
            definition=self.existing,
            existing=self.definition,
            owner=self.existing_owner,
            existing_owner=self.owner,
        )
