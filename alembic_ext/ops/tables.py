"""Row-level security, policies and owner of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Self

from sqlalchemy_tenants.arguments import require_text
from sqlalchemy_tenants.policies import (
    Condition,
    Policy,
    expression_text,
    quote_grantee,
    quote_literal,
    quote_name,
    quote_qualified,
    role_set,
)

from .base import Flag, Name, TenancyOp, directive
from .notes import Notes


@dataclass(eq=False)
class RowSecurityOp(TenancyOp):
    """Base of :class:`EnableRLSOp` and :class:`DisableRLSOp`: both set both flags."""

    reverse_only = ("existing",)
    enable: ClassVar[bool]

    table_name: Name
    _: KW_ONLY
    schema: Name | None = None
    force: Flag = True
    existing: tuple[bool, bool] = (False, False)

    def statements(self, notes: Notes) -> Iterator[str]:
        alter = f"ALTER TABLE {quote_qualified(self.schema, self.table_name)}"
        verb = "ENABLE" if self.enable else "DISABLE"
        yield f"{alter} {verb} ROW LEVEL SECURITY"
        verb = "FORCE" if self.force else "NO FORCE"
        yield f"{alter} {verb} ROW LEVEL SECURITY"

    def reverse(self) -> RowSecurityOp:
        enabled, forced = self.existing
        cls = EnableRLSOp if enabled else DisableRLSOp
        return self.converted(cls, force=forced, existing=(self.enable, self.force))


@directive("enable_rls")
class EnableRLSOp(RowSecurityOp):
    """Enable row-level security, and force it on the table's owner.

    e.g.::

        op.enable_rls("orders")

    Emits ``ALTER TABLE … ENABLE ROW LEVEL SECURITY`` and ``FORCE``.

    :param table_name: name of the table.
    :param schema: its schema; ``None`` for the default one.
    :param force: ``False`` for ``NO FORCE``, which exempts the table's owner.
    :param existing: the flags before, enabled and forced, which the reverse restores.
    :raises TypeError: for a value of another type.
    :raises ValueError: for what is not a name.
    """

    enable = True


@directive("disable_rls")
@dataclass(eq=False)
class DisableRLSOp(RowSecurityOp):
    """Disable row-level security.

    e.g.::

        op.disable_rls("orders")

    Emits ``ALTER TABLE … DISABLE ROW LEVEL SECURITY`` and ``NO FORCE``.

    :param table_name: name of the table.
    :param schema: its schema; ``None`` for the default one.
    :param force: ``True`` leaves it forced for when it is enabled again.
    :param existing: the flags before, enabled and forced, which the reverse restores.
    :raises TypeError: for a value of another type.
    :raises ValueError: for what is not a name.
    """

    enable = False

    _: KW_ONLY
    force: Flag = False
    existing: tuple[bool, bool] = (True, True)


@directive("create_policy")
@dataclass(eq=False)
class CreatePolicyOp(TenancyOp):
    """Create a policy.

    e.g.::

        op.create_policy("recent", "orders", using="year > 2020", permissive=False)

    Emits ``CREATE POLICY recent ON orders AS RESTRICTIVE FOR ALL USING (year > 2020)``.

    :param policy_name: name of the policy.
    :param table_name: name of the table.
    :param schema: the table's schema; ``None`` for the default one.
    :param using: condition for rows that are read, updated or deleted, as SQL text or
        SQLAlchemy expression.
    :param with_check: condition for rows that are written.
    :param command: ``"ALL"``, ``"SELECT"``, ``"INSERT"``, ``"UPDATE"`` or ``"DELETE"``.
    :param permissive: ``False`` for ``AS RESTRICTIVE``.
    :param roles: roles it applies to; everyone unless given, as in SQL.
    :param comment: text of ``COMMENT ON POLICY``.
    :raises TypeError: for a value of another type.
    :raises ValueError: for a definition that PostgreSQL would refuse.
    """

    policy: Policy
    table_name: Name
    _: KW_ONLY
    schema: Name | None = None
    comment: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.comment is not None:
            if not isinstance(self.comment, str):
                raise TypeError(f"comment is a text or None, not {self.comment!r}")
            require_text("comment", self.comment, "is not a text")

    @classmethod
    def from_directive(
        cls,
        policy_name: str,
        table_name: str,
        *,
        schema: str | None = None,
        using: Condition | None = None,
        with_check: Condition | None = None,
        command: str = "ALL",
        permissive: bool = True,
        roles: str | Sequence[str] | None = None,
        comment: str | None = None,
    ) -> Self:
        policy = Policy(
            policy_name,
            using=using,
            with_check=with_check,
            command=command,
            permissive=permissive,
            roles=roles,
        )
        return cls(policy, table_name, schema=schema, comment=comment)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        policy = self.policy
        values = {
            "schema": self.schema,
            "permissive": None if policy.permissive else False,
            "command": None if policy.command == "ALL" else policy.command,
            "roles": policy.roles and list(policy.roles),
            "using": policy.using,
            "with_check": policy.with_check,
            "comment": self.comment,
        }
        kw = {key: value for key, value in values.items() if value is not None}
        return [policy.name, self.table_name], kw

    def statements(self, notes: Notes) -> Iterator[str]:
        policy = self.policy
        target = _policy_on_table(policy.name, self.schema, self.table_name)
        text = f"CREATE POLICY {target}"
        if not policy.permissive:
            text += " AS RESTRICTIVE"
        text += f" FOR {policy.command}"
        yield text + _clauses(policy.roles, policy.using, policy.with_check)
        if self.comment is not None:
            yield f"COMMENT ON POLICY {target} IS {quote_literal(self.comment)}"

    def reverse(self) -> DropPolicyOp:
        return self.converted(DropPolicyOp)


@directive("drop_policy")
@dataclass(eq=False)
class DropPolicyOp(TenancyOp):
    """Drop a policy; autogenerate keeps its definition for the reverse.

    e.g.::

        op.drop_policy("recent", "orders")

    Emits ``DROP POLICY recent ON orders``.

    :param policy_name: name of the policy.
    :param table_name: name of the table.
    :param schema: the table's schema; ``None`` for the default one.
    :raises TypeError: for a value of another type.
    :raises ValueError: for what is not a name.
    """

    policy: Policy
    table_name: Name
    _: KW_ONLY
    schema: Name | None = None
    comment: str | None = None

    @classmethod
    def from_directive(
        cls, policy_name: str, table_name: str, *, schema: str | None = None
    ) -> Self:
        return cls(Policy(policy_name), table_name, schema=schema)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        kw = {} if self.schema is None else {"schema": self.schema}
        return [self.policy.name, self.table_name], kw

    def statements(self, notes: Notes) -> Iterator[str]:
        target = _policy_on_table(self.policy.name, self.schema, self.table_name)
        yield f"DROP POLICY {target}"

    def reverse(self) -> CreatePolicyOp:
        return self.converted(CreatePolicyOp)


@directive("alter_policy")
@dataclass(eq=False)
class AlterPolicyOp(TenancyOp):
    """Alter a policy's roles or expressions; ``None`` leaves each as it is.

    e.g.::

        op.alter_policy("recent", "orders", using="year > 2021")

    Emits ``ALTER POLICY recent ON orders USING (year > 2021)``. The command, and
    whether a policy is permissive, cannot be altered: drop and create it.

    :param policy_name: name of the policy.
    :param table_name: name of the table.
    :param schema: the table's schema; ``None`` for the default one.
    :param roles: new roles.
    :param existing_roles: the roles before, which the reverse restores.
    :param using: new condition for rows that are read, updated or deleted, as SQL text
        or SQLAlchemy expression.
    :param existing_using: the condition before, which the reverse restores.
    :param with_check: new condition for rows that are written.
    :param existing_with_check: the condition before, which the reverse restores.
    :raises TypeError: for a value of another type.
    :raises ValueError: nothing is altered.
    """

    labels: ClassVar[dict[str, str]] = {"policy_name": "policy"}

    policy_name: Name
    table_name: Name
    _: KW_ONLY
    schema: Name | None = None
    roles: str | Sequence[str] | None = None
    existing_roles: Sequence[str] | None = None
    using: Condition | None = None
    existing_using: Condition | None = None
    with_check: Condition | None = None
    existing_with_check: Condition | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        what = f"policy {self.policy_name!r}"
        self.using = expression_text(self.using, f"{what}: using")
        self.with_check = expression_text(self.with_check, f"{what}: with_check")
        if self.roles is not None:
            self.roles = role_set(self.roles)
            if not self.roles:
                raise ValueError(f"{what}: roles is empty")
        if self.using is None and self.with_check is None and self.roles is None:
            raise ValueError(f"{what}: name what to alter: using, with_check or roles")
        if self.existing_roles is not None:
            self.existing_roles = role_set(self.existing_roles)

    def statements(self, notes: Notes) -> Iterator[str]:
        target = _policy_on_table(self.policy_name, self.schema, self.table_name)
        clauses = _clauses(self.roles, self.using, self.with_check)
        yield f"ALTER POLICY {target}{clauses}"

    def reverse(self) -> AlterPolicyOp:
        parts = ("using", "with_check", "roles")
        new = {part: getattr(self, f"existing_{part}") for part in parts}
        old = {f"existing_{part}": getattr(self, part) for part in parts}
        return self.converted(AlterPolicyOp, **new, **old)


def _policy_on_table(policy: str, schema: str | None, table: str) -> str:
    return f"{quote_name(policy)} ON {quote_qualified(schema, table)}"


def _clauses(
    roles: Sequence[str] | None, using: Any | None, with_check: Any | None
) -> str:
    text = ""
    if roles is not None:
        text += f" TO {', '.join(map(quote_grantee, roles))}"
    if using is not None:
        text += f" USING {_in_parentheses(using)}"
    if with_check is not None:
        text += f" WITH CHECK {_in_parentheses(with_check)}"
    return text


def _in_parentheses(condition: str) -> str:
    # a comment in its last line would swallow the parenthesis
    end = "\n" if "--" in condition.rpartition("\n")[2] else ""
    return f"({condition}{end})"


@directive("alter_table_owner")
@dataclass(eq=False)
class AlterTableOwnerOp(TenancyOp):
    """Give a table to another role.

    e.g.::

        op.alter_table_owner("orders", "owner", existing_owner="app")

    Emits ``ALTER TABLE orders OWNER TO owner``.

    :param table_name: name of the table.
    :param owner: its new owner.
    :param schema: its schema; ``None`` for the default one.
    :param existing_owner: the owner before, whom the reverse gives it back to.
    :raises TypeError: for a value of another type.
    :raises ValueError: for what is not a name.
    """

    table_name: Name
    owner: Name
    _: KW_ONLY
    schema: Name | None = None
    existing_owner: Name | None = None

    def statements(self, notes: Notes) -> Iterator[str]:
        table = quote_qualified(self.schema, self.table_name)
        yield f"ALTER TABLE {table} OWNER TO {quote_name(self.owner)}"

    def reverse(self) -> AlterTableOwnerOp:
        if self.existing_owner is None:
            raise ValueError(
                f"alter_table_owner({self.table_name!r}) has no reverse without "
                f"existing_owner"
            )
        owner, existing = self.existing_owner, self.owner
        return self.converted(AlterTableOwnerOp, owner=owner, existing_owner=existing)
