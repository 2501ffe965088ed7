"""Roles of tenants that the models declare, and the logins that act as them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

from sqlalchemy import MetaData

from sqlalchemy_tenants.arguments import require_names
from sqlalchemy_tenants.declare import require_tenant_of
from sqlalchemy_tenants.policies import quote_literal, quote_name
from sqlalchemy_tenants.roles import (
    create_role_sql,
    do_block,
    grant_tenant_lines,
    unless_granted_lines,
)
from sqlalchemy_tenants.tenancy import Tenancy, TenantId, tenant_text

from .base import Flag, TenancyOp, directive
from .notes import (
    OWNED_COMMENT,
    Membership,
    Notes,
    if_lines,
    indented,
    is_owned,
    notice,
    unless_dropped_lines,
    unless_needed,
    unless_owned_lines,
)


@dataclass(eq=False)
class _TenantRoleOp(TenancyOp):
    tenant: TenantId
    _: KW_ONLY
    logins: Sequence[str] = ()
    role_prefix: str = "tenant_"
    tenants_role: str = "tenants"
    undo: Flag = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tenant = tenant_text(self.tenant)
        self.logins = tuple(require_names("login", self.logins))
        self.tenancy = Tenancy.recorded(
            role_prefix=self.role_prefix,
            tenants_role=self.tenants_role,
        )
        self.role = self.tenancy.role_for(self.tenant)

    def _dropped(self, *, created: bool) -> str:
        """Return the note that the role was dropped.

        :param created: and that an operation had created it.
        """
        what = "dropped own role" if created else "dropped role"
        return quote_literal(f"{what} {quote_name(self.role)}. ")


@directive("create_tenant_role")
class CreateTenantRoleOp(_TenantRoleOp):
    """Create a tenant's role, unless the cluster has it, and let logins act as it.

    e.g.::

        op.create_tenant_role("acme", logins=["app"])

    Emits ``CREATE ROLE "tenant_acme" NOLOGIN IN ROLE tenants``, and ``GRANT
    "tenant_acme" TO app WITH INHERIT FALSE, SET TRUE``.

    :param tenant: str, int or UUID.
    :param logins: application logins that may act as the tenant; the current user
        unless given, which suits development.
    :param role_prefix: see :class:`sqlalchemy_tenants.Tenancy`.
    :param tenants_role: see :class:`sqlalchemy_tenants.Tenancy`.
    :param undo: as in downgrades: create only what the upgrade dropped in this
        database.
    :raises InvalidTenant: for what cannot identify a tenant.
    """

    def require_fit(self, collections: Iterable[MetaData] | None) -> None:
        # not a tenant that the models cannot hold: they may have changed since
        for metadata in collections or ():
            require_tenant_of(self.tenant, metadata, held=False)

    def statements(self, notes: Notes) -> Iterator[str]:
        is_dropped = notes.has(self._dropped(created=False), strict=False)
        condition = is_dropped if self.undo else None
        yield self._create_sql(notes, condition)
        for login in self.logins or (None,):
            membership = Membership(self.role, login, notes)
            noted = unless_owned_lines(
                self.role, membership.note_granted(inherits=False)
            )
            yield grant_login_sql(
                membership, login, [] if self.undo else noted, condition
            )
        if self.undo:
            lines = notes.remove(self._dropped(created=False))
            lines += notes.remove(self._dropped(created=True))
            yield do_block(lines, notes.declare)

    def _create_sql(self, notes: Notes, condition: str | None) -> str:
        name, group = quote_name(self.role), quote_name(self.tenants_role)
        role, tenants_role = map(quote_literal, (self.role, self.tenants_role))
        as_tenant = Membership(self.tenants_role, self.role, notes)
        comment = [f"COMMENT ON ROLE {name} IS {quote_literal(OWNED_COMMENT)};"]
        if self.undo:
            was_created = notes.has(self._dropped(created=True), strict=False)
            comment = if_lines(was_created, comment)
        refusal = quote_literal(
            f"role {self.role} is no tenant: it may bypass policies"
        )
        lines = [
            f"{create_role_sql(self.role, self.tenants_role)};",
            *comment,
        ]
        lines = [
            *if_lines(condition, lines),
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN",
            # somebody's account must not become a tenant by its name
            f"  IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {role}"
            " AND (rolsuper OR rolbypassrls OR rolcreaterole)) THEN",
            "    RAISE EXCEPTION USING ERRCODE = 'duplicate_object', MESSAGE = "
            f"{refusal}, HINT = 'Rename that role, or choose another role prefix.';",
            "  END IF;",
            "  BEGIN",
            f"    GRANT {group} TO {name};",
            *indented(indented(as_tenant.note_granted(inherits=False))),
            *indented(unless_granted_lines(tenants_role, role)),
            "  END;",
        ]
        return do_block(lines, as_tenant.declare)

    def reverse(self) -> DropTenantRoleOp:
        return self.converted(DropTenantRoleOp, undo=not self.undo)


@directive("drop_tenant_role")
class DropTenantRoleOp(_TenantRoleOp):
    """Drop a tenant's role, never rows.

    e.g.::

        op.drop_tenant_role("acme")

    Emits ``DROP ROLE IF EXISTS "tenant_acme"``, which leaves the role while something
    in a database depends on it.

    :param tenant: str, int or UUID.
    :param logins: the logins that may act as the tenant, which the reverse restores.
    :param role_prefix: see :class:`sqlalchemy_tenants.Tenancy`.
    :param tenants_role: see :class:`sqlalchemy_tenants.Tenancy`.
    :param undo: as in downgrades: drop or revoke only what ``create_tenant_role``
        created or granted, and nothing while another database needs ``tenants_role``.
    :raises InvalidTenant: for what cannot identify a tenant.
    """

    reverse_only = ("logins",)

    def statements(self, notes: Notes) -> Iterator[str]:
        drop = f"DROP ROLE IF EXISTS {quote_name(self.role)};"
        if not self.undo:
            exists = f"pg_catalog.to_regrole({quote_literal(quote_name(self.role))})"
            note = notes.add(self._dropped(created=False))
            note += if_lines(
                is_owned(self.role), notes.add(self._dropped(created=True))
            )
            lines = [*if_lines(f"{exists} IS NOT NULL", note), drop]
            lines += unless_dropped_lines(self.role)
            yield do_block(lines, notes.declare)
            return
        left = notice(f"role {self.role} was not created by a migration, so it stays")
        lines = if_lines(is_owned(self.role), [drop], [left])
        lines = unless_needed(self.tenants_role, lines)
        yield do_block([*lines, *unless_dropped_lines(self.role)])
        logins = Membership(self.role, None, notes)
        yield logins.undo_grant(needed=self.tenants_role, every_member=True)
        as_tenant = Membership(self.tenants_role, self.role, notes)
        yield as_tenant.undo_grant(needed=self.tenants_role)

    def reverse(self) -> CreateTenantRoleOp:
        return self.converted(CreateTenantRoleOp, undo=not self.undo)


def grant_login_sql(
    membership: Membership,
    login: str | None,
    noted: Iterable[str],
    condition: str | None = None,
) -> str:
    """Return the statement that lets a login act as a tenant.

    :param noted: lines that note it.
    :param condition: when it does.
    """
    lines = [*grant_tenant_lines(membership.group, login), *noted]
    group = quote_literal(membership.group)
    return do_block(
        [
            *if_lines(condition, lines),
            *unless_granted_lines(group, membership.member),
        ],
        membership.declare,
    )


@dataclass(eq=False)
class _LoginsOp(_TenantRoleOp):
    logins: Sequence[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.logins:
            raise ValueError(f"tenant {self.tenant!r}: name the logins")


@directive("grant_tenant_role")
class GrantTenantRoleOp(_LoginsOp):
    """Let logins act as a tenant whose role exists.

    e.g.::

        op.grant_tenant_role("acme", ["app"])

    Emits ``GRANT "tenant_acme" TO app WITH INHERIT FALSE, SET TRUE``. PostgreSQL 15 has
    no such options: there a login that inherits is refused.

    :param tenant: str, int or UUID.
    :param logins: application logins that may act as the tenant.
    :param role_prefix: see :class:`sqlalchemy_tenants.Tenancy`.
    :param tenants_role: see :class:`sqlalchemy_tenants.Tenancy`.
    :param undo: as in downgrades: grant only what the upgrade revoked in this
        database, and nothing while another database needs ``tenants_role``.
    :raises InvalidTenant: for what cannot identify a tenant.
    :raises ValueError: for no login.
    """

    def statements(self, notes: Notes) -> Iterator[str]:
        for login in self.logins:
            membership = Membership(self.role, login, notes)
            if not self.undo:
                noted = membership.note_granted(inherits=False)
                yield grant_login_sql(membership, login, noted)
                continue
            names = [
                f"pg_catalog.to_regrole({quote_literal(quote_name(each))}) IS NOT NULL"
                for each in (self.role, login)
            ]
            lines = if_lines(" AND ".join(names), grant_tenant_lines(self.role, login))
            lines += notes.remove(membership.revoked())
            lines = if_lines(notes.has(membership.revoked(), strict=False), lines)
            yield do_block(unless_needed(self.tenants_role, lines), notes.declare)

    def reverse(self) -> RevokeTenantRoleOp:
        return self.converted(RevokeTenantRoleOp, undo=not self.undo)


@directive("revoke_tenant_role")
class RevokeTenantRoleOp(_LoginsOp):
    """Revoke logins' right to act as a tenant, from every grantor.

    e.g.::

        op.revoke_tenant_role("acme", ["app"])

    Emits ``REVOKE "tenant_acme" FROM app GRANTED BY …`` for each grantor, on PostgreSQL
    15 without grantor. It accepts that a role or a login does not exist.

    :param tenant: str, int or UUID.
    :param logins: logins that may not act as the tenant any longer.
    :param role_prefix: see :class:`sqlalchemy_tenants.Tenancy`.
    :param tenants_role: see :class:`sqlalchemy_tenants.Tenancy`.
    :param undo: as in downgrades: revoke only what the upgrade granted in this
        database, and nothing while another database needs ``tenants_role``.
    :raises InvalidTenant: for what cannot identify a tenant.
    :raises ValueError: for no login.
    """

    def statements(self, notes: Notes) -> Iterator[str]:
        for login in self.logins:
            membership = Membership(self.role, login, notes)
            if self.undo:
                yield membership.undo_grant(needed=self.tenants_role, strict=False)
            else:
                yield membership.revoke(tolerant=True)

    def reverse(self) -> GrantTenantRoleOp:
        return self.converted(GrantTenantRoleOp, undo=not self.undo)
