"""Privileges on tables, sequences, schemas and functions, and default privileges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, get_args

from sqlalchemy_tenants.arguments import require_names, require_text
from sqlalchemy_tenants.database.catalog import ObjectType
from sqlalchemy_tenants.policies import (
    quote_grantee,
    quote_literal,
    quote_name,
    quote_qualified,
)
from sqlalchemy_tenants.roles import do_block

from .base import Flag, Name, TenancyOp, directive, optional_name
from .notes import Notes

OBJECT_TYPES: tuple[ObjectType, ...] = get_args(ObjectType)

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


@dataclass(eq=False)
class _PrivilegesOp(TenancyOp):
    grant: ClassVar[bool]
    reverse_only = ("before",)
    labels: ClassVar[dict[str, str]] = {"grant_option": "grant option"}

    table_name: str | None
    privileges: str | Sequence[str]
    roles: str | Sequence[str]
    _: KW_ONLY
    schema: Name | None = None
    object_type: ObjectType = "TABLE"
    columns: Sequence[str] = ()
    grant_option: Flag = False
    granted_by: Name | None = None
    before: bool = False

    def __post_init__(self) -> None:
        if self.object_type not in OBJECT_TYPES:
            known = ", ".join(OBJECT_TYPES)
            raise ValueError(f"object_type {self.object_type!r} is not one of {known}")
        if self._has_signature:
            require_text("function", self.table_name or "", "is not a signature")
        else:
            optional_name(self.object_type.lower(), self.table_name)
        super().__post_init__()
        self.privileges = [
            each.upper() for each in require_names("privilege", self.privileges)
        ]
        self.roles = require_names("role", self.roles)
        self.columns = require_names("column", self.columns)
        for privilege in self.privileges:
            # a keyword, printed as it is
            if privilege not in PRIVILEGES:
                raise ValueError(
                    f"privilege {privilege!r} is not one of {', '.join(PRIVILEGES)}"
                )
        if not self.privileges or not self.roles:
            raise ValueError(f"{self.table_name!r}: name privileges and roles")
        if self.table_name is None and not (
            self._is_default or self.object_type == "SCHEMA"
        ):
            raise ValueError(f"name the {self.object_type}")

    @property
    def _is_default(self) -> bool:
        return self.object_type.startswith("DEFAULT ")

    @property
    def _has_signature(self) -> bool:
        return self.object_type == "FUNCTION" and (
            isinstance(self.table_name, str) and self.table_name.endswith(")")
        )

    def statements(self, notes: Notes) -> Iterator[str]:
        verb = "GRANT" if self.grant else "REVOKE"
        if self.grant_option and not self.grant:
            verb += " GRANT OPTION FOR"
        privileges = ", ".join(self.privileges)
        to = " TO " if self.grant else " FROM "
        to += ", ".join(map(quote_grantee, self.roles))
        if self.grant_option and self.grant:
            to += " WITH GRANT OPTION"
        if self._is_default:
            yield self._default_privileges(f"{verb} {privileges}", to)
            return
        if self.columns and self.object_type != "SEQUENCE":
            columns = ", ".join(map(quote_name, self.columns))
            privileges = ", ".join(f"{each} ({columns})" for each in self.privileges)
        # a procedure has a signature, too
        kind = "ROUTINE" if self._has_signature else self.object_type
        beginning = f"{verb} {privileges} ON {kind} "
        dynamic = self._found_by_server()
        if dynamic is not None:
            line = f"EXECUTE {quote_literal(beginning)} || target"
            line += f" || {quote_literal(to)};"
            yield self._acting_as(line, [f"target text := {dynamic};"])
            return
        statement = f"{beginning}{self._target()}{to}"
        if self.granted_by is None:
            yield statement
        else:
            yield self._acting_as(f"{statement};")

    def _default_privileges(self, beginning: str, to: str) -> str:
        text = "ALTER DEFAULT PRIVILEGES"
        if self.granted_by is not None:
            text += f" FOR ROLE {quote_name(self.granted_by)}"
        if self.table_name is not None:
            text += f" IN SCHEMA {quote_name(self.table_name)}"
        return f"{text} {beginning} ON {self.object_type.removeprefix('DEFAULT ')}{to}"

    def _target(self) -> str:
        assert self.table_name is not None
        if self.object_type == "SCHEMA":
            return quote_name(self.table_name)
        name = quote_qualified(self.schema, self.table_name)
        return f"{name}()" if self.object_type == "FUNCTION" else name

    def _found_by_server(self) -> str | None:
        """Return the expression whose value names the object, if only the server knows
        its name."""
        if self.object_type == "SCHEMA" and self.table_name is None:
            return "pg_catalog.quote_ident(pg_catalog.current_schema())"
        assert self.table_name is not None
        if self.object_type == "SEQUENCE" and self.columns:
            # the sequence of a serial column, whose name may have been cut
            table = quote_literal(quote_qualified(self.schema, self.table_name))
            column = quote_literal(self.columns[0])
            return f"pg_catalog.pg_get_serial_sequence({table}, {column})"
        if self._has_signature:
            prefix = "" if self.schema is None else quote_name(self.schema) + "."
            signature = quote_literal(prefix + self.table_name)
            return f"{signature}::pg_catalog.regprocedure"
        return None

    def _acting_as(self, line: str, declare: Sequence[str] = ()) -> str:
        """Return a block that runs a line as the grantor, if one is given, because
        nobody else can revoke what it granted."""
        if self.granted_by is None:
            return do_block([line], declare)
        role = quote_literal(self.granted_by)
        lines = [
            f"PERFORM pg_catalog.set_config('role', {role}, true);",
            line,
            "PERFORM pg_catalog.set_config('role', acting_as, true);",
        ]
        acting_as = "acting_as text := pg_catalog.current_setting('role');"
        return do_block(lines, [*declare, acting_as])


@directive("grant_privileges")
class GrantPrivilegesOp(_PrivilegesOp):
    """Grant privileges.

    e.g.::

        op.grant_privileges("orders", ["SELECT", "INSERT"], ["tenants"])

    Emits ``GRANT SELECT, INSERT ON TABLE orders TO tenants``, or ``ALTER DEFAULT
    PRIVILEGES … GRANT``.

    :param table_name: name of the table, the sequence, the schema or the function. A
        function or procedure with arguments is named as ``regprocedure`` prints it, as
        in ``"total(integer, text)"``. ``None`` for the session's default schema, or for
        default privileges in all schemas.
    :param privileges: as in ``["SELECT", "INSERT"]``.
    :param roles: grantees; ``"public"`` is everyone.
    :param schema: the schema of the table; ``None`` for the default one.
    :param object_type: ``"TABLE"``, ``"SEQUENCE"``, ``"SCHEMA"``, ``"FUNCTION"``, or
        ``"DEFAULT TABLES"``: tables that will be created in the schema ``table_name``;
        likewise ``SEQUENCES``, ``FUNCTIONS``, ``TYPES`` and ``SCHEMAS``.
    :param columns: columns that the privileges are restricted to. With
        ``object_type="SEQUENCE"`` the serial column, and ``table_name`` its table: the
        server knows the sequence's name.
    :param with_grant_option: let the grantees grant further.
    :param granted_by: grant as this role, whose member the current user has to be; for
        default privileges, the role that creates the objects.
    :raises TypeError: for a value of another type.
    :raises ValueError: for an unknown privilege or type of object.
    """

    grant = True
    renamed: ClassVar[dict[str, str]] = {"grant_option": "with_grant_option"}

    def reverse(self) -> RevokePrivilegesOp:
        option = self.grant_option and self.before
        return self.converted(
            RevokePrivilegesOp, grant_option=option, before=self.grant_option
        )


@directive("revoke_privileges")
class RevokePrivilegesOp(_PrivilegesOp):
    """Revoke privileges.

    e.g.::

        op.revoke_privileges("orders", ["DELETE"], ["tenants"])

    Emits ``REVOKE DELETE ON TABLE orders FROM tenants``, or ``ALTER DEFAULT PRIVILEGES
    … REVOKE``. The other parameters are those of ``grant_privileges``.

    :param table_name: name of the object.
    :param privileges: as in ``["SELECT", "INSERT"]``.
    :param roles: who loses the privileges.
    :param schema: the schema of the table; ``None`` for the default one.
    :param object_type: what the object is.
    :param columns: columns that the privileges are restricted to.
    :param grant_option_for: revoke only the grant option.
    :param granted_by: revoke what this role granted.
    :param before: whether the privileges had the grant option, which the reverse
        restores.
    :raises TypeError: for a value of another type.
    :raises ValueError: for an unknown privilege or type of object.
    """

    grant = False
    renamed: ClassVar[dict[str, str]] = {"grant_option": "grant_option_for"}

    def reverse(self) -> GrantPrivilegesOp:
        option = self.grant_option or self.before
        # before: whether the privilege itself stays when this is taken back again
        return self.converted(
            GrantPrivilegesOp, grant_option=option, before=self.grant_option
        )
