"""PL/pgSQL for roles, which belong to the cluster and not to the migrated database.

An operation accepts a role that is there and a membership that was granted before. So
that its reverse takes back no more than it did itself, it leaves notes: in the comment
on Alembic's version table, and ``create_tenancy`` in that on our function. The reverse
also asks whether another database of the cluster depends on the role.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy_tenants.policies import quote_literal, quote_name
from sqlalchemy_tenants.roles import SERVER_16, do_block
from sqlalchemy_tenants.scope import SUSPENDED

#: Comment on roles and schemas that operations created: their reverses drop no others.
OWNED_COMMENT = "created by sqlalchemy-tenants"


def notice(message: str) -> str:
    """Return a line that tells something."""
    # MESSAGE, because a percent sign in a format would need to be doubled
    return f"RAISE NOTICE USING MESSAGE = {quote_literal(message)};"


def indented(lines: Iterable[str]) -> list[str]:
    """Return lines that stand within others."""
    return [f"  {line}" for line in lines]


def if_lines(
    condition: str | None, lines: Iterable[str], otherwise: Iterable[str] = ()
) -> list[str]:
    """Return lines that run on a condition, ``None`` for always."""
    if condition is None:
        return list(lines)
    otherwise = indented(otherwise)
    if otherwise:
        otherwise.insert(0, "ELSE")
    return [f"IF {condition} THEN", *indented(lines), *otherwise, "END IF;"]


def is_owned(role: str) -> str:
    """Return the condition that a role was created by an operation."""
    return (
        "EXISTS (SELECT FROM pg_catalog.pg_roles r"
        f" WHERE r.rolname = {quote_literal(role)}"
        # what follows says that a tenant is suspended
        " AND pg_catalog.split_part(pg_catalog.shobj_description(r.oid, 'pg_authid'),"
        f" {quote_literal(SUSPENDED)}, 1) = {quote_literal(OWNED_COMMENT)})"
    )


def unless_owned_lines(role: str, lines: Iterable[str]) -> list[str]:
    """Return lines that run unless :func:`is_owned`."""
    return if_lines(f"NOT {is_owned(role)}", lines)


def is_needed(role: str, *, here: bool = False) -> str:
    """Return the condition that another database of the cluster depends on a role, or
    on one that it is a member of: that has policies or privileges there.

    :param here: or that the current database does.
    """
    others = (
        ""
        if here
        else " AND d.dbid <> (SELECT b.oid FROM pg_catalog.pg_database b"
        " WHERE b.datname = pg_catalog.current_database())"
    )
    return (
        "EXISTS (SELECT FROM pg_catalog.pg_shdepend d"
        " JOIN pg_catalog.pg_roles r ON r.oid = d.refobjid"
        " JOIN pg_catalog.pg_roles o ON pg_catalog.pg_has_role(o.oid, r.oid, 'MEMBER')"
        " WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass"
        f" AND o.rolname = {quote_literal(role)} AND d.dbid <> 0{others})"
    )


def unless_needed(role: str, lines: Iterable[str]) -> list[str]:
    """Return lines that run unless :func:`is_needed`."""
    left = notice(f"another database needs role {role}, so nothing changes")
    return if_lines(is_needed(role), [left], lines)


def unless_dropped_lines(role: str) -> list[str]:
    """Return the end of a block that drops a role, which others may use or drop."""
    return [
        "EXCEPTION WHEN dependent_objects_still_exist THEN",
        "  " + notice(f"role {role} is in use, so it stays"),
        # XX000, "tuple concurrently deleted" or "could not find tuple"
        "WHEN internal_error THEN",
        "  IF EXISTS (SELECT FROM pg_catalog.pg_roles"
        f" WHERE rolname = {quote_literal(role)}) THEN",
        "    RAISE;",
        "  END IF;",
    ]


class Notes:
    """Notes in the comment on an object of the database.

    Where it is somebody else's, nothing is noted, and a reverse takes nothing back.

    :param kind: ``"TABLE"`` or ``"FUNCTION"``.
    :param name: name of the object, quoted.
    """

    def __init__(self, kind: str, name: str) -> None:
        self._comment = quote_literal(f"COMMENT ON {kind} {name} IS ")
        if kind == "TABLE":
            catalog, owner, to_oid = "pg_class", "relowner", "to_regclass"
        else:
            catalog, owner, to_oid = "pg_proc", "proowner", "to_regprocedure"
        #: Declarations of a block that reads or writes notes.
        self.declare = (
            f"noted_in oid := pg_catalog.{to_oid}({quote_literal(name)});",
            "notes text :="
            f" coalesce(pg_catalog.obj_description(noted_in, '{catalog}'), '');",
            f"may_note boolean := EXISTS (SELECT FROM pg_catalog.{catalog} o WHERE"
            f" o.oid = noted_in AND pg_catalog.pg_has_role(o.{owner}, 'USAGE'));",
        )

    def has(self, note: str, *, strict: bool = True) -> str:
        """Return the condition that there is a note.

        :param note: an expression of SQL, as in the other methods.
        :param strict: ``False`` takes it as noted where there is no object: operations
            that are invoked without Alembic's version table.
        """
        found = f"pg_catalog.strpos(notes, {note}) > 0"
        return found if strict else f"(noted_in IS NULL OR {found})"

    def add(self, note: str) -> list[str]:
        """Return lines that add a note."""
        return self._write(f"may_note AND NOT {self.has(note)}", f"notes || {note}")

    def remove(self, note: str) -> list[str]:
        """Return lines that remove a note."""
        return self._write("may_note", f"pg_catalog.replace(notes, {note}, '')")

    def _write(self, condition: str, text: str) -> list[str]:
        comment = f"EXECUTE {self._comment} || pg_catalog.quote_literal(notes);"
        return if_lines(condition, [f"notes := {text};", comment])


class Membership:
    """The membership of one role in another, granted and revoked with notes.

    From PostgreSQL 16 on there can be several, each with a grantor of its own, and
    ``REVOKE`` without the right ``GRANTED BY`` only warns.

    :param group: the role that has members.
    :param member: ``None`` for the current user.
    :param notes: where to note what was done.
    """

    def __init__(self, group: str, member: str | None, notes: Notes) -> None:
        self.group = group
        self.member = "current_user" if member is None else quote_literal(member)
        self.grantee = "CURRENT_USER" if member is None else quote_name(member)
        self.notes = notes
        self._both = f"{self.member}, {quote_literal(group)}, 'MEMBER'"
        self._all = (
            "FROM pg_catalog.pg_auth_members m"
            " JOIN pg_catalog.pg_roles g ON g.oid = m.roleid"
            " JOIN pg_catalog.pg_roles u ON u.oid = m.member"
            f" WHERE g.rolname = {quote_literal(group)}"
        )
        # who creates a role gets ADMIN from the bootstrap superuser, and cannot lose it
        self._revocable = (
            " AND NOT (u.rolname = current_user AND NOT"
            " pg_catalog.pg_has_role(m.grantor, 'USAGE'))"
        )
        self._own = f"{self._all} AND u.rolname = {self.member}"
        #: Declarations of a block that grants or revokes it.
        self.declare = (
            *notes.declare,
            f"before oid[] := ARRAY(SELECT m.grantor {self._own});",
            "each record;",
        )

    def _note(self, what: str, member: str, grantor: str = "") -> str:
        note = f"{quote_literal(what)} || pg_catalog.quote_ident({member})"
        if grantor:
            note += f" || ' by ' || pg_catalog.quote_ident({grantor})"
        return f"{note} || '. '"

    def _granted(self, member: str) -> str:
        what = f"granted {quote_name(self.group)} to "
        return self._note(what, member, "each.grantor")

    def _inherited(self, member: str) -> str:
        what = f"WITH INHERIT TRUE {quote_name(self.group)} to "
        return self._note(what, member, "each.grantor")

    def revoked(self, granted_by: str | None = None) -> str:
        """Return the note that it was revoked.

        :param granted_by: only what this role granted.
        """
        what = f"revoked {quote_name(self.group)} from "
        grantor = "" if granted_by is None else quote_literal(granted_by)
        return self._note(what, self.member, grantor)

    def _revoke(self, member: str, option: str = "") -> str:
        revoke = quote_literal(f"REVOKE {option}{quote_name(self.group)} FROM ")
        by = "' GRANTED BY ' || pg_catalog.quote_ident(each.grantor)"
        return (
            f"EXECUTE {revoke} || pg_catalog.quote_ident({member})"
            f" || CASE WHEN {SERVER_16} THEN {by} ELSE '' END;"
        )

    def note_granted(self, *, inherits: bool) -> list[str]:
        """Return lines that note what was granted since the block began.

        :param inherits: note also that a membership from before has got INHERIT.
        """
        noted = self.notes.add(self._granted(self.member))
        changed = "m.grantor <> ALL (before)"
        if inherits:  # a column since PostgreSQL 16
            changed += " OR pg_catalog.to_jsonb(m) ->> 'inherit_option' = 'true'"
            inherited = self.notes.add(self._inherited(self.member))
            noted = if_lines("each.is_old", inherited, noted)
        return [
            "FOR each IN SELECT pg_catalog.pg_get_userbyid(m.grantor) AS grantor,"
            f" m.grantor = ANY (before) AS is_old {self._own} AND ({changed}) LOOP",
            *indented(noted),
            "END LOOP;",
        ]

    def undo_grant(
        self, *, needed: str, strict: bool = True, every_member: bool = False
    ) -> str:
        """Return the statement that revokes what was noted as granted.

        :param needed: leave it while another database depends on this role.
        :param strict: see :meth:`Notes.has`.
        :param every_member: whoever the member is.
        """
        rows = (self._all if every_member else self._own) + self._revocable
        granted = self._granted("each.member")
        inherited = self._inherited("each.member")
        revoke = if_lines(
            self.notes.has(granted, strict=strict),
            [self._revoke("each.member"), *self.notes.remove(granted)],
        )
        revoke_inherit = [
            self._revoke("each.member", "INHERIT OPTION FOR "),
            *self.notes.remove(inherited),
        ]
        lines = [
            "FOR each IN SELECT u.rolname AS member,"
            f" pg_catalog.pg_get_userbyid(m.grantor) AS grantor {rows} LOOP",
            *indented(if_lines(self.notes.has(inherited), revoke_inherit, revoke)),
            "END LOOP;",
        ]
        return do_block(unless_needed(needed, lines), self.declare)

    def revoke(self, granted_by: str | None = None, *, tolerant: bool = False) -> str:
        """Return the statement that revokes it, and notes that it did.

        :param granted_by: only what this role granted, instead of all grantors.
        :param tolerant: a role that is gone is no error.
        """
        rows = self._own + self._revocable
        if granted_by is not None:
            by = quote_literal(granted_by)
            rows += f" AND pg_catalog.pg_get_userbyid(m.grantor) = {by}"
        grantor = "pg_catalog.pg_get_userbyid(m.grantor) AS grantor"
        lines = [
            *([] if tolerant else [f"PERFORM pg_catalog.pg_has_role({self._both});"]),
            f"FOR each IN SELECT {grantor} {rows} LOOP",
            "  " + self._revoke(self.member),
            *indented(self.notes.add(self.revoked(granted_by))),
            "END LOOP;",
        ]
        return do_block(lines, self.declare)
