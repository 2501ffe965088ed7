"""Group roles, their attributes, and memberships."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

from sqlalchemy_tenants.arguments import require_flag
from sqlalchemy_tenants.policies import quote_literal, quote_name
from sqlalchemy_tenants.roles import (
    SERVER_16,
    do_block,
    grant_line,
    unless_granted_lines,
)

from .base import Flag, Name, TenancyOp, directive
from .notes import (
    OWNED_COMMENT,
    Membership,
    Notes,
    if_lines,
    is_needed,
    is_owned,
    notice,
    unless_dropped_lines,
    unless_needed,
    unless_owned_lines,
)

# name here, PostgreSQL's keyword, and column of pg_roles
_ATTRIBUTES = {
    "superuser": ("SUPERUSER", "rolsuper"),
    "bypass_rls": ("BYPASSRLS", "rolbypassrls"),
    "login": ("LOGIN", "rolcanlogin"),
    "inherit": ("INHERIT", "rolinherit"),
    "create_role": ("CREATEROLE", "rolcreaterole"),
    "create_db": ("CREATEDB", "rolcreatedb"),
    "replication": ("REPLICATION", "rolreplication"),
}


def create_group_role_sql(role: str) -> str:
    """Return ``CREATE ROLE``, unless the cluster has the role."""
    name = quote_name(role)
    return do_block(
        [
            "BEGIN",
            f"  CREATE ROLE {name} NOLOGIN;",
            f"  COMMENT ON ROLE {name} IS {quote_literal(OWNED_COMMENT)};",
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN",
            "  " + notice(f"role {role} exists"),
            "END;",
        ]
    )


def drop_group_role_sql(
    role: str,
    *,
    keep_members: str | None = None,
    needed_by: str | None = None,
    here: bool = False,
) -> str:
    """Return ``DROP ROLE``, unless it was there before or another database needs it.

    :param keep_members: leave the role while roles with this prefix are its members:
        tenants that were created at run time, which would cease to be tenants.
    :param needed_by: leave the role while another database depends on this role, or on
        one that it is a member of. Nothing in a database depends on the role that
        sessions of isolation "shared" act as.
    :param here: or while the current database does.
    """
    lines = if_lines(
        f"NOT {is_owned(role)}",
        [notice(f"role {role} was not created by a migration, so it stays"), "RETURN;"],
    )
    if keep_members is not None:
        has_members = (
            "EXISTS (SELECT FROM pg_catalog.pg_auth_members m"
            " JOIN pg_catalog.pg_roles r ON r.oid = m.roleid"
            " JOIN pg_catalog.pg_roles t ON t.oid = m.member"
            f" WHERE r.rolname = {quote_literal(role)} AND"
            f" pg_catalog.starts_with(t.rolname, {quote_literal(keep_members)}))"
        )
        left = notice(f"role {role} has tenants, so it stays")
        lines += if_lines(has_members, [left, "RETURN;"])
    if needed_by is not None:
        left = notice(f"role {role} is in use, so it stays")
        lines += if_lines(is_needed(needed_by, here=here), [left, "RETURN;"])
    lines += [f"DROP ROLE {quote_name(role)};", *unless_dropped_lines(role)]
    return do_block(lines)


def grant_group_role_sql(
    membership: Membership, *, dropped_with: str | None = None
) -> str:
    """Return ``GRANT`` of a group role whose privileges the member inherits, unless it
    does already.

    The admin role is granted to the role that runs the migrations: under ``FORCE`` a
    table's owner who is subject to the policies would backfill 0 rows, and validate
    foreign keys over orphans, without an error.

    :param dropped_with: note nothing where an operation created this role: dropping it
        will revoke the membership, too.
    """
    group = quote_literal(membership.group)
    noted = membership.note_granted(inherits=True)
    if dropped_with is not None:
        noted = unless_owned_lines(dropped_with, noted)
    grant = grant_line(quote_name(membership.group), membership.grantee, "INHERIT TRUE")
    # a superuser, or a member that inherits
    has = f"pg_catalog.pg_has_role({membership.member}, {group}, 'USAGE')"
    lines = if_lines(f"NOT {has}", [grant, *noted])
    lines += unless_granted_lines(group, membership.member)
    return do_block(lines, membership.declare)


@dataclass(eq=False)
class _GroupRoleOp(TenancyOp):
    role: Name
    _: KW_ONLY
    member_of: Name | None = None
    admin: Flag = False

    @property
    def _memberships(self) -> list[tuple[str, str | None]]:
        granted: list[tuple[str, str | None]] = []
        if self.member_of is not None:
            granted.append((self.member_of, self.role))
        if self.admin:
            granted.append((self.role, None))
        return granted


@directive("create_group_role")
class CreateGroupRoleOp(_GroupRoleOp):
    """Create a group role, unless the cluster has it: a part of ``create_tenancy``.

    e.g.::

        op.create_group_role("tenants_shared", member_of="tenants")

    Emits ``CREATE ROLE … NOLOGIN``, and ``GRANT`` for each membership.

    :param role: name of the role.
    :param member_of: a group role that it becomes a member of.
    :param admin: grant it to the current user, so that migrations see all rows.
    :raises TypeError: for a value of another type.
    :raises ValueError: for what is not a name.
    """

    def statements(self, notes: Notes) -> Iterator[str]:
        yield create_group_role_sql(self.role)
        for group, member in self._memberships:
            membership = Membership(group, member, notes)
            yield grant_group_role_sql(membership, dropped_with=self.role)

    def reverse(self) -> DropGroupRoleOp:
        return self.converted(DropGroupRoleOp)


@directive("drop_group_role")
class DropGroupRoleOp(_GroupRoleOp):
    """Drop a group role that ``create_group_role`` created.

    e.g.::

        op.drop_group_role("tenants_shared", member_of="tenants")

    Emits ``DROP ROLE``, unless the role was there before or another database needs it,
    and ``REVOKE`` of what ``create_group_role`` granted.

    :param role: name of the role.
    :param member_of: the group role that ``create_group_role`` made it a member of.
    :param admin: whether ``create_group_role`` granted it to the current user.
    :raises TypeError: for a value of another type.
    :raises ValueError: for what is not a name.
    """

    def statements(self, notes: Notes) -> Iterator[str]:
        for group, member in self._memberships:
            membership = Membership(group, member, notes)
            yield membership.undo_grant(needed=group)
        yield drop_group_role_sql(self.role, needed_by=self.role)

    def reverse(self) -> CreateGroupRoleOp:
        return self.converted(CreateGroupRoleOp)


@directive("alter_group_role")
@dataclass(eq=False)
class AlterGroupRoleOp(TenancyOp):
    """Alter attributes of a role: a group role, a tenant's, or any other.

    e.g.::

        op.alter_group_role("tenant_acme", bypass_rls=False, login=False)

    Emits ``ALTER ROLE "tenant_acme" NOBYPASSRLS NOLOGIN``. ``None`` leaves an attribute
    as it is.

    :param role: name of the role.
    :param superuser: ``SUPERUSER`` or ``NOSUPERUSER``.
    :param bypass_rls: ``BYPASSRLS`` or ``NOBYPASSRLS``.
    :param login: ``LOGIN`` or ``NOLOGIN``.
    :param inherit: ``INHERIT`` or ``NOINHERIT``.
    :param create_role: ``CREATEROLE`` or ``NOCREATEROLE``.
    :param create_db: ``CREATEDB`` or ``NOCREATEDB``.
    :param replication: ``REPLICATION`` or ``NOREPLICATION``.
    :param undo: as in downgrades: alter back only what the upgrade altered in this
        database, and nothing while another database needs the role.
    :raises TypeError: for a value of another type.
    :raises ValueError: nothing is altered.
    """

    role: Name
    _: KW_ONLY
    superuser: bool | None = None
    bypass_rls: bool | None = None
    login: bool | None = None
    inherit: bool | None = None
    create_role: bool | None = None
    create_db: bool | None = None
    replication: bool | None = None
    undo: Flag = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.attributes.items():
            require_flag(name, value)
        if not self.attributes:
            raise ValueError(
                f"role {self.role!r}: name what to alter, as in login=False"
            )

    @property
    def attributes(self) -> dict[str, bool]:
        """The attributes that are altered, by their names."""
        values = {name: getattr(self, name) for name in _ATTRIBUTES}
        return {name: value for name, value in values.items() if value is not None}

    def statements(self, notes: Notes) -> Iterator[str]:
        lines = []
        for name, value in self.attributes.items():
            keyword, column = _ATTRIBUTES[name]
            new, old = (keyword, "NO" + keyword) if value else ("NO" + keyword, keyword)
            noted = old if self.undo else new
            note = quote_literal(f"altered {quote_name(self.role)}: {noted}. ")
            alter = f"ALTER ROLE {quote_name(self.role)} {new};"
            is_changed = (
                f"(SELECT r.{column} FROM pg_catalog.pg_roles r"
                f" WHERE r.rolname = {quote_literal(self.role)})"
                f" IS DISTINCT FROM {value}"
            )
            change = [
                "BEGIN",
                f"  {alter}",
                # XX000, "tuple concurrently updated": another database's migration did
                # it meanwhile
                "EXCEPTION WHEN internal_error THEN",
                f"  {alter}",
                "END;",
            ]
            if self.undo:
                is_noted = notes.has(note, strict=False)
                lines += if_lines(is_noted, [*change, *notes.remove(note)])
            else:
                lines += if_lines(is_changed, [*change, *notes.add(note)])
        if self.undo:
            lines = unless_needed(self.role, lines)
        yield do_block(lines, notes.declare)

    def reverse(self) -> AlterGroupRoleOp:
        opposite = {key: not value for key, value in self.attributes.items()}
        return self.converted(AlterGroupRoleOp, undo=not self.undo, **opposite)


@dataclass(eq=False)
class _MembershipOp(TenancyOp):
    group: Name
    member: Name
    _: KW_ONLY
    inherit_option: Flag = True
    set_option: Flag = True
    admin_option: Flag = False
    granted_by: Name | None = None
    undo: Flag = False


@directive("grant_membership")
class GrantMembershipOp(_MembershipOp):
    """Make a role a member of another one.

    e.g.::

        op.grant_membership("tenants_admin", "owner")

    Emits ``GRANT tenants_admin TO owner WITH INHERIT TRUE``, unless the member inherits
    its privileges already. PostgreSQL 15 has neither INHERIT nor SET for a membership.

    :param group: the role that gets a member.
    :param member: the role that becomes its member.
    :param inherit_option: whether the member has its privileges at once.
    :param set_option: whether the member may act as it.
    :param admin_option: whether the member may grant it further.
    :param granted_by: grant as this role; from PostgreSQL 16 on.
    :param undo: as in downgrades: grant only what the upgrade revoked in this
        database, and nothing while another database needs the group role.
    :raises TypeError: for a value of another type.
    :raises ValueError: for what is not a name.
    """

    @property
    def _is_plain(self) -> bool:
        options = (self.inherit_option, self.set_option, self.admin_option)
        return options == (True, True, False) and self.granted_by is None

    def _grant(self) -> str:
        """Return the line that grants it with its options."""
        grant = f"GRANT {quote_name(self.group)} TO {quote_name(self.member)}"
        options = (
            f" WITH INHERIT {self.inherit_option}, SET {self.set_option},"
            f" ADMIN {self.admin_option}"
        ).upper()
        if self.granted_by is not None:
            options += f" GRANTED BY {quote_name(self.granted_by)}"
        older = " WITH ADMIN OPTION" if self.admin_option else ""
        return (
            f"EXECUTE {quote_literal(grant)} || CASE WHEN {SERVER_16}"
            f" THEN {quote_literal(options)} ELSE {quote_literal(older)} END;"
        )

    def statements(self, notes: Notes) -> Iterator[str]:
        membership = Membership(self.group, self.member, notes)
        if self.undo:
            revoked = membership.revoked(self.granted_by)
            lines = [self._grant(), *notes.remove(revoked)]
            lines = if_lines(notes.has(revoked, strict=False), lines)
            yield do_block(unless_needed(self.group, lines), notes.declare)
        elif self._is_plain:
            yield grant_group_role_sql(membership)
        else:
            lines = [self._grant(), *membership.note_granted(inherits=False)]
            yield do_block(lines, membership.declare)

    def reverse(self) -> RevokeMembershipOp:
        return self.converted(RevokeMembershipOp, undo=not self.undo)


@directive("revoke_membership")
class RevokeMembershipOp(_MembershipOp):
    """Revoke a role's membership in another one, from every grantor.

    e.g.::

        op.revoke_membership("tenants_admin", "tenant_acme")

    Emits ``REVOKE tenants_admin FROM tenant_acme GRANTED BY …`` for each grantor, on
    PostgreSQL 15 without grantor.

    :param group: the role that loses a member.
    :param member: the role that ceases to be its member.
    :param inherit_option: what the membership had, which the reverse restores.
    :param set_option: likewise.
    :param admin_option: likewise.
    :param granted_by: revoke only what this role granted.
    :param undo: as in downgrades: revoke only what the upgrade granted in this
        database, and nothing while another database needs the group role.
    :raises TypeError: for a value of another type.
    :raises ValueError: for what is not a name.
    """

    reverse_only = ("inherit_option", "set_option", "admin_option")

    def statements(self, notes: Notes) -> Iterator[str]:
        membership = Membership(self.group, self.member, notes)
        if self.undo:
            yield membership.undo_grant(needed=self.group, strict=False)
        else:
            yield membership.revoke(self.granted_by)

    def reverse(self) -> GrantMembershipOp:
        return self.converted(GrantMembershipOp, undo=not self.undo)
