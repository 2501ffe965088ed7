"""The SQL of ``setup``: logins, database, and what each login is granted.

It is for psql, whose commands begin with a backslash, and can run any number of times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..arguments import require_name
from ..database.hardening import hardening_sql
from ..policies import quote_literal, quote_name
from ..roles import do_block
from ..tenancy import Isolation, Tenancy

#: Major versions of PostgreSQL that it is printed for.
SERVERS = (15, 16, 17, 18)


@dataclass(frozen=True, kw_only=True)
class Installation:
    """What the SQL is for.

    :param server: major version of PostgreSQL.
    :param owner: the login that owns database and tables, and migrates.
    :param app: the application's login.
    :param manager: the login of the manager's ``admin_engine``.
    :raises ValueError: names that PostgreSQL or psql would refuse, or that collide.
    """

    server: int
    isolation: Isolation
    database: str
    owner: str
    app: str
    manager: str
    tenancy: Tenancy

    def __post_init__(self) -> None:
        for what in ("database", "owner", "app", "manager"):
            name = require_name(what, getattr(self, what))
            if not name.isprintable():
                raise ValueError(
                    f"{what} {name!r} has characters that cannot be printed"
                )
            if what != "database" and name.startswith("pg_"):
                raise ValueError(
                    f"{what} {name!r}: PostgreSQL reserves the prefix 'pg_'"
                )
        if len(set(self.logins)) < len(self.logins):
            raise ValueError(
                f"owner, app and manager are three logins, so that none has more than "
                f"it needs, not {', '.join(map(repr, self.logins))}"
            )
        # refuses logins that are roles of ours
        replace(self.tenancy, owners=[self.owner], logins=[self.app, self.manager])

    @property
    def logins(self) -> tuple[str, str, str]:
        return (self.owner, self.app, self.manager)


def setup_sql(installation: Installation, *, hardened: bool = False) -> str:
    """Return the script.

    :param hardened: with what only a superuser can do against injected SQL.
    """
    parts = [
        _HEAD.format(installation, hardened=" --hardened" if hardened else ""),
        _section("Stop where it is not meant for.", _require_server(installation)),
        "BEGIN;\n",
        _section("The logins.", *_logins(installation)),
        _section(
            "The roles that tenants share. The migrations would create them, too.",
            *_group_roles(installation),
        ),
        _section("What the logins may act as.", *_memberships(installation)),
        "COMMIT;\n",
        _section("The database.", *_database(installation)),
    ]
    if hardened:
        parts.append(_section(_HARDENED, *_hardened(installation)))
    parts.append(_passwords(installation))
    return "\n".join(parts)


_HEAD = """\
-- Logins and privileges of sqlalchemy-tenants
-- (setup --server {0.server} --isolation {0.isolation}{hardened}).
-- A superuser runs it before the first migration, and again as often as need be:
--     psql -d postgres -f setup.sql -v passwords=1
-- With passwords=1, psql asks for the passwords of the logins, and sends hashes.
\\set ON_ERROR_STOP on
"""

_HARDENED = """\
Against injected SQL, in this database: tenants can neither change settings within a
-- statement, nor create temporary objects, nor execute text through a function of
-- PostgreSQL or of an extension. Run it again after CREATE EXTENSION. The owner keeps
-- what migrations and pg_dump need."""


def _section(title: str, *statements: str) -> str:
    return "\n".join([f"-- {title}", *statements, ""])


def _require_server(installation: Installation) -> str:
    server = installation.server
    return _do(
        "IF pg_catalog.current_setting('server_version_num')::integer / 10000"
        f" <> {server} THEN",
        f"  RAISE EXCEPTION 'this was printed for PostgreSQL {server}'",
        "    USING HINT = 'Print it for this server: setup --server …';",
        "END IF;",
        "IF NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)"
        " THEN",
        "  RAISE EXCEPTION 'a superuser has to run this';",
        "END IF;",
    )


def _do(*lines: str, declare: str = "") -> str:
    return do_block(lines, [declare] if declare else []) + ";"


def _array(names: tuple[str, ...]) -> str:
    return f"ARRAY[{', '.join(map(quote_literal, names))}]"


def _logins(installation: Installation) -> Iterator[str]:
    yield _do(
        f"FOREACH login IN ARRAY {_array(installation.logins)} LOOP",
        "  IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = login) THEN",
        "    RAISE EXCEPTION '% is a superuser, to whom policies do not apply', login;",
        "  END IF;",
        "  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = login) THEN",
        "    EXECUTE pg_catalog.format('CREATE ROLE %I', login);",
        "  END IF;",
        "END LOOP;",
        declare="login text;",
    )
    owner, app, manager = map(quote_name, installation.logins)
    creates = " CREATEROLE" if installation.isolation == "role" else ""
    yield "-- owns the tables and runs the migrations"
    yield f"ALTER ROLE {owner} LOGIN CREATEROLE INHERIT;"
    yield "-- serves requests; owns nothing"
    yield (
        f"ALTER ROLE {app} LOGIN NOINHERIT"
        " NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS;"
    )
    yield "-- creates tenants, runs admin sessions"
    yield f"ALTER ROLE {manager} LOGIN{creates} NOINHERIT;"


def _group_roles(installation: Installation) -> Iterator[str]:
    lines = [
        f"FOREACH role IN ARRAY {_array(installation.tenancy.group_roles)} LOOP",
        "  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role) THEN",
        "    EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role);",
        "  END IF;",
    ]
    if installation.server >= 16:
        # what CREATE ROLE would have given the owner; what it has already stays
        owner = quote_literal(installation.owner)
        lines += [
            "  IF NOT pg_catalog.pg_has_role(",
            f"      {owner}, role, 'MEMBER WITH ADMIN OPTION') THEN",
            "    EXECUTE pg_catalog.format('GRANT %I TO %I WITH ADMIN TRUE'",
            f"      || CASE WHEN pg_catalog.pg_has_role({owner}, role, 'MEMBER')",
            f"        THEN '' ELSE ', INHERIT FALSE, SET FALSE' END, role, {owner});",
            "  END IF;",
        ]
    yield _do(*lines, "END LOOP;", declare="role text;")


def _memberships(installation: Installation) -> Iterator[str]:
    owner, app, manager = map(quote_name, installation.logins)
    tenants, shared, admin = map(quote_name, installation.tenancy.group_roles)
    # Before 16, only NOINHERIT keeps a login from having its roles' privileges all the
    # time, and CREATEROLE alone lets the manager add tenants to their group.
    has_options = installation.server >= 16
    options = " WITH INHERIT FALSE, SET TRUE" if has_options else ""
    yield f"SET LOCAL ROLE {owner};"
    if has_options and installation.isolation == "role":
        yield f"GRANT {tenants} TO {manager} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;"
    yield f"GRANT {admin} TO {manager}{options};"
    if installation.isolation == "shared":
        yield f"GRANT {shared} TO {app}{options};"
    yield "RESET ROLE;"


def _database(installation: Installation) -> Iterator[str]:
    database, owner = installation.database, quote_name(installation.owner)
    name, literal = quote_name(database), quote_literal(database)
    yield (
        f"SELECT {quote_literal(f'CREATE DATABASE {name} OWNER {owner}')}\n"
        "  WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_database"
        f" WHERE datname = {literal}) \\gexec"
    )
    yield _do(
        "IF (SELECT pg_catalog.pg_get_userbyid(datdba) FROM pg_catalog.pg_database",
        f"    WHERE datname = {literal}) <> {quote_literal(installation.owner)} THEN",
        "  RAISE EXCEPTION USING",
        f"    MESSAGE = {quote_literal(f'database {database} has another owner')},",
        "    HINT = 'If it is meant: ' ||",
        f"      {quote_literal(f'ALTER DATABASE {name} OWNER TO {owner}')};",
        "END IF;",
    )
    yield f"\\connect -reuse-previous=on {_psql_name(_conninfo(database))}"
    yield "-- as it is in new clusters, but not in those that were upgraded"
    yield "REVOKE CREATE ON SCHEMA public FROM PUBLIC;"


def _conninfo(database: str) -> str:
    value = database.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{value}'"


def _psql_name(name: str) -> str:
    """Return an argument of one of psql's own commands, which reads it as SQL reads a
    name, but always in quotes."""
    return '"' + name.replace('"', '""') + '"'


def _hardened(installation: Installation) -> Iterator[str]:
    yield "BEGIN;"
    for statement in hardening_sql(installation.database, [installation.owner]):
        yield f"{statement};"
    yield "COMMIT;"


def _passwords(installation: Installation) -> str:
    asked = (f"\\password {_psql_name(login)}" for login in installation.logins)
    return "\n".join(["\\if :{?passwords}", *asked, "\\endif", ""])
