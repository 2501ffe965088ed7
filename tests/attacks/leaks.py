"""Attacks that succeed, because row-level security is not what would block them.

Each comes with the remedy, and with how to see that the remedy works.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from attacks import SECRET, Leak, Scene, attempt, execute, security

PERMISSION_DENIED = "42501"
UNDEFINED_TABLE = "42P01"


def reads(*statements: str) -> Callable[[Scene], bool]:
    """An attack that succeeds if a statement returns what globex keeps."""

    def succeeds(scene: Scene) -> bool:
        with scene.attack() as session:
            got = attempt(session, *statements)
        assert isinstance(got, list) or got in (PERMISSION_DENIED, UNDEFINED_TABLE)
        return SECRET in str(got)

    return succeeds


def use_own_login(scene: Scene) -> None:
    """The remedy that takes the attacker away from the other tenants' roles."""
    scene.attacker = "login"


# --- becoming somebody else ----------------------------------------------------------

OWN_LOGIN = (
    "bind parameters; who may write SQL gets [a login of its own](#a-login-of-its-own)"
)

NO_SET_CONFIG = "[`REVOKE EXECUTE` on `set_config()`](#no-set_config)"
REVOKE_SET_CONFIG = security.blocks("sql")[1]

ROLES = [
    Leak(
        "`SET ROLE` to the other tenant",
        reads('SET ROLE "tenant_globex"', "TABLE notes"),
        OWN_LOGIN,
        use_own_login,
        by=("role",),
        dml=True,
    ),
    Leak(
        "the same within one `SELECT`, by `set_config()`",
        reads(
            "SELECT body FROM"
            " (SELECT set_config('role', 'tenant_globex', true) OFFSET 0) x, notes"
        ),
        NO_SET_CONFIG,
        REVOKE_SET_CONFIG,
        by=("role",),
        dml=True,
    ),
    Leak(
        "the other tenant in the setting",
        reads("SET tenancy.tenant = 'globex'", "TABLE notes"),
        OWN_LOGIN,
        use_own_login,
        by=("shared",),
        dml=True,
    ),
    Leak(
        "the same within one `SELECT`, by `set_config()`",
        reads(
            "SELECT body FROM"
            " (SELECT set_config('tenancy.tenant', 'globex', true) OFFSET 0) x, notes"
        ),
        NO_SET_CONFIG,
        REVOKE_SET_CONFIG,
        by=("shared",),
        dml=True,
    ),
]


def query_texts(scene: Scene) -> bool:
    with scene.victim() as victim, scene.attack() as session:
        execute(victim, f"SELECT '{SECRET}'")
        rows = execute(
            session,
            "RESET ROLE",
            "SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
        )
        return SECRET in str(rows)


def change_login(scene: Scene) -> bool:
    with scene.attack() as session:
        login = execute(session, "SELECT session_user")[0][0]
        execute(
            session,
            "RESET ROLE",
            f"ALTER ROLE {login} SET default_transaction_read_only = on",
        )
        session.commit()
    scene.close()
    with scene.victim() as victim:
        return attempt(victim, "UPDATE notes SET body = body") == "25006"  # read-only


def undo_change_login(scene: Scene) -> None:
    scene.database.execute("ALTER ROLE app RESET ALL; ALTER ROLE app_shared RESET ALL")
    use_own_login(scene)


ROLES += [
    Leak(
        "`RESET ROLE`, then the queries of others in `pg_stat_activity`",
        query_texts,
        OWN_LOGIN,
        use_own_login,
        by=("role", "shared"),
        dml=True,
    ),
    Leak(
        "`RESET ROLE`, then `ALTER ROLE` of the login: its settings, its password",
        change_login,
        OWN_LOGIN,
        undo_change_login,
        by=("role", "shared"),
        dml=True,
    ),
]


# --- dropping the policies -----------------------------------------------------------


def drop_policies(scene: Scene) -> bool:
    with scene.attack() as session:
        got = attempt(session, "DROP OWNED BY tenants")
        assert got in ([], PERMISSION_DENIED)
        if got == []:
            session.commit()
        session.rollback()
        rows = str(execute(session, "TABLE notes"))
    with scene.victim() as victim:
        lost = execute(victim, "SELECT FROM notes WHERE tenant = 'globex'") == []
    return lost or SECRET in rows


_RESTORE = """
CREATE POLICY tenant_isolation ON notes TO tenants
    USING (tenant = (SELECT tenancy.current_tenant()));
CREATE POLICY tenant_floor ON notes AS RESTRICTIVE TO tenants
    USING (tenant = (SELECT tenancy.current_tenant()));
"""


# The releases of 12 November 2026. Seen on 15.18 and 15.20, 16.14 and 18.4; the others
# came out together with 15.20.
_OWNERSHIP_IS_ASKED_FOR = {15: 20, 16: 16, 17: 12, 18: 6}


def refuse_drop_owned(scene: Scene) -> None:
    scene.database.execute(_RESTORE + security.blocks("sql")[2])


POLICIES = [
    Leak(
        "`DROP OWNED BY tenants` drops every policy of that role, the floor included:"
        " all tenants lose all rows",
        drop_policies,
        "update PostgreSQL; [an event trigger](#an-event-trigger-against-drop-owned);"
        " `check()` reports `policy-missing` afterwards",
        refuse_drop_owned,
        fixed=_OWNERSHIP_IS_ASKED_FOR,
        dml=True,
    ),
    Leak(
        "the same, where a permissive policy for `PUBLIC` had been added by hand:"
        " the table is open",
        drop_policies,
        "the same, and drop that policy",
        refuse_drop_owned,
        setup="CREATE POLICY by_hand ON notes USING (true)",
        finding="policy-for-public",
        fixed=_OWNERSHIP_IS_ASKED_FOR,
        dml=True,
    ),
]


# --- what else the database holds ----------------------------------------------------

_GRANT = "GRANT SELECT ON {} TO tenants"

OBJECTS = [
    Leak(
        "a view of a superuser without `security_invoker`",
        reads("TABLE v"),
        "`ALTER VIEW … SET (security_invoker = true)`",
        "ALTER VIEW v SET (security_invoker = true)",
        setup="CREATE VIEW v AS TABLE notes; " + _GRANT.format("v"),
        finding="view-bypasses-rls",
    ),
    Leak(
        "a view of the owner without `security_invoker`, after `SET ROLE tenants`",
        reads("SET ROLE tenants", "TABLE v"),
        "the same",
        "ALTER VIEW v SET (security_invoker = true)",
        setup="SET ROLE owner; CREATE VIEW v AS TABLE notes; " + _GRANT.format("v"),
        finding="view-bypasses-rls",
        dml=True,
    ),
    Leak(
        "a materialized view",
        reads("TABLE v"),
        "grant it to no tenant",
        "DROP MATERIALIZED VIEW v",
        setup="CREATE MATERIALIZED VIEW v AS TABLE notes; " + _GRANT.format("v"),
        finding="view-bypasses-rls",
    ),
    Leak(
        "a `SECURITY DEFINER` function of the tables' owner",
        reads("SELECT f()"),
        "`SECURITY INVOKER`, or `REVOKE EXECUTE … FROM PUBLIC`",
        "ALTER FUNCTION f SECURITY INVOKER",
        setup="SET ROLE owner; SET search_path = public; CREATE FUNCTION f() RETURNS"
        " SETOF text LANGUAGE sql SECURITY DEFINER AS 'SELECT body FROM public.notes'",
        finding="function-bypasses-rls",
    ),
    Leak(
        "a partition that tenants have privileges on",
        reads("TABLE events_1"),
        "grant on the parent only, as the migrations do",
        "REVOKE ALL ON events_1 FROM tenants",
        setup=_GRANT.format("events_1"),
        finding="heir-open",
    ),
    Leak(
        "an heir that tenants have privileges on",
        reads("TABLE dogs"),
        "grant on the parent only, as the migrations do",
        "REVOKE ALL ON dogs FROM tenants",
        setup=_GRANT.format("dogs"),
        finding="heir-open",
    ),
]


def trojan(scene: Scene) -> bool:
    """A function that takes the place of lower(varchar) in the victim's query."""
    with scene.attack() as session:
        got = attempt(
            session,
            "CREATE TABLE public.loot (body text)",
            "GRANT INSERT ON public.loot TO PUBLIC",
            "CREATE FUNCTION public.lower(varchar) RETURNS text LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO public.loot VALUES ($1); RETURN $1; END $$",
        )
        if got == PERMISSION_DENIED:
            return False
        session.commit()
        with scene.victim() as victim:
            execute(victim, "SELECT lower(body::varchar) FROM notes")
            victim.commit()
        return SECRET in str(execute(session, "TABLE public.loot"))


OBJECTS += [
    Leak(
        "a function in place of another: in a database from before PostgreSQL 15"
        " anybody may create one in `public`",
        trojan,
        "`REVOKE CREATE ON SCHEMA public FROM PUBLIC`",
        "DROP TABLE loot; DROP FUNCTION lower(varchar);"
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        setup="GRANT CREATE ON SCHEMA public TO PUBLIC",
        dml=True,
    ),
]


# --- what somebody may act as, or owns -----------------------------------------------

_LOG = """
CREATE TABLE log (body text);
GRANT SELECT ON log TO tenants;
CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
    $$ BEGIN INSERT INTO public.log VALUES (NEW.body); RETURN NEW; END $$;
CREATE TRIGGER log AFTER UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION log();
UPDATE notes SET body = body;
"""

REACHABLE = [
    Leak(
        "tenants may act as a superuser, or as a role with `BYPASSRLS`",
        reads("SET ROLE dba", "TABLE notes"),
        "`REVOKE` that role",
        "REVOKE dba FROM tenants",
        setup="DROP ROLE IF EXISTS dba; CREATE ROLE dba BYPASSRLS;"
        "GRANT SELECT ON notes TO dba; GRANT USAGE ON SCHEMA public TO dba;"
        "GRANT dba TO tenants",
        finding="role-bypasses-rls",
        dml=True,
    ),
    Leak(
        "tenants may act as the admin role",
        reads("SET ROLE tenants_admin", "SET tenancy.tenant = ''", "TABLE notes"),
        "`REVOKE tenants_admin FROM tenants`; autogenerate writes it",
        "REVOKE tenants_admin FROM tenants",
        setup="GRANT tenants_admin TO tenants",
        finding="role-is-admin",
        dml=True,
    ),
    Leak(
        "a tenant may act as another",
        reads("SET ROLE tenant_globex", "TABLE notes"),
        "`REVOKE` that role; autogenerate writes it",
        "REVOKE tenant_globex FROM tenant_acme",
        setup="GRANT tenant_globex TO tenant_acme",
        finding="role-acts-as-tenant",
        by=("login",),
    ),
    Leak(
        "tenants own `current_tenant()`",
        reads(
            "CREATE OR REPLACE FUNCTION tenancy.current_tenant() RETURNS text"
            " LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN 'globex'; END $$",
            "TABLE notes",
        ),
        "give it back to the role that migrates; autogenerate refuses to go on",
        "ALTER FUNCTION tenancy.current_tenant() OWNER TO owner;"
        "REVOKE CREATE ON SCHEMA tenancy FROM tenants",
        setup="GRANT CREATE ON SCHEMA tenancy TO tenants;"
        "ALTER FUNCTION tenancy.current_tenant() OWNER TO tenants",
        finding="role-owns-function",
        dml=True,
    ),
    Leak(
        "a table without a mark that tenants may use",
        reads("TABLE old"),
        "mark it, or `REVOKE` the privileges",
        "REVOKE ALL ON old FROM tenants",
        setup="CREATE TABLE old AS SELECT body FROM notes; " + _GRANT.format("old"),
        finding="table-unmarked",
    ),
    Leak(
        "a `SECURITY DEFINER` function of another tenant",
        reads("SELECT f()"),
        "another owner, or `REVOKE EXECUTE … FROM PUBLIC`",
        "REVOKE EXECUTE ON FUNCTION f() FROM PUBLIC",
        setup="CREATE FUNCTION f() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER"
        " AS 'SELECT body FROM public.notes'; ALTER FUNCTION f() OWNER TO"
        " tenant_globex",
        finding="function-bypasses-rls",
    ),
    Leak(
        "a trigger with a `SECURITY DEFINER` function that copies rows",
        reads("TABLE log"),
        "let it write into a table with a mark",
        "DROP TRIGGER log ON notes; REVOKE ALL ON log FROM tenants",
        setup=_LOG,
        finding="trigger-bypasses-rls",
    ),
]


# --- keys and what is not a row ------------------------------------------------------


def conflicts(statement: str, state: str) -> Callable[[Scene], bool]:
    """An attack that learns that globex has something, from an error."""

    def succeeds(scene: Scene) -> bool:
        with scene.attack() as session:
            got = attempt(session, statement)
        assert got in ([], state)
        return got == state

    return succeeds


def skips(statement: str) -> Callable[[Scene], bool]:
    """The same, from the rows that were not written."""

    def succeeds(scene: Scene) -> bool:
        with scene.attack() as session:
            return execute(session, statement) == []

    return succeeds


def refers(scene: Scene) -> bool:
    """Whether a row of acme refers to one of globex, which globex cannot delete now."""
    with scene.attack() as session:
        got = attempt(session, "INSERT INTO replies VALUES ('acme', 501)")
        assert got in ([], "23503")
        if got == []:
            session.commit()
    with scene.victim() as victim:
        return attempt(victim, "DELETE FROM users WHERE id = 501") == "23503"


_USERS = """
CREATE TABLE users (tenant text NOT NULL DEFAULT tenancy.current_tenant(),
    id integer PRIMARY KEY, email text UNIQUE);
ALTER TABLE users ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON users TO tenants
    USING (tenant = (SELECT tenancy.current_tenant()));
CREATE POLICY tenant_floor ON users AS RESTRICTIVE TO tenants
    USING (tenant = (SELECT tenancy.current_tenant()));
GRANT SELECT, INSERT, UPDATE, DELETE ON users TO tenants;
INSERT INTO users VALUES ('acme', 1, 'me@acme'), ('globex', 501, 'you@globex');
"""
_REPLIES = """
CREATE TABLE replies (tenant text, id integer REFERENCES users);
GRANT SELECT, INSERT ON replies TO tenants;
"""

KEYS = [
    Leak(
        "an error: the unique or primary key exists",
        conflicts("INSERT INTO users (id, email) VALUES (2, 'you@globex')", "23505"),
        "`UNIQUE (tenant, email)`",
        "ALTER TABLE users DROP CONSTRAINT users_email_key, ADD UNIQUE (tenant, email)",
        setup=_USERS,
    ),
    Leak(
        "the same, asked by `UPDATE`",
        conflicts("UPDATE users SET id = 501", "23505"),
        "`PRIMARY KEY (tenant, id)`, or an identifier that cannot be guessed",
        "ALTER TABLE users DROP CONSTRAINT users_pkey, ADD PRIMARY KEY (tenant, id)",
        setup=_USERS,
    ),
    Leak(
        "the same, asked by `ON CONFLICT DO NOTHING`",
        skips(
            "INSERT INTO users (id, email) VALUES (2, 'you@globex')"
            " ON CONFLICT DO NOTHING RETURNING id"
        ),
        "the same",
        "ALTER TABLE users DROP CONSTRAINT users_email_key, ADD UNIQUE (tenant, email)",
        setup=_USERS,
    ),
    Leak(
        "referring to a row of the other tenant, which then cannot delete it",
        refers,
        "`FOREIGN KEY (tenant, user_id)`",
        "DELETE FROM replies; ALTER TABLE users ADD UNIQUE (tenant, id);"
        "ALTER TABLE replies DROP CONSTRAINT replies_id_fkey,"
        " ADD FOREIGN KEY (tenant, id) REFERENCES users (tenant, id)",
        setup=_USERS + _REPLIES,
    ),
]


def removed_by_filter(scene: Scene) -> bool:
    """Whether EXPLAIN tells an address that globex has from one that nobody has."""
    plans = []
    with scene.attack() as session:
        for email in ("you@globex", "nobody@globex"):
            rows = execute(
                session,
                "SET LOCAL enable_seqscan = off",
                "SET LOCAL enable_bitmapscan = off",
                "EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off)"
                f" SELECT FROM users WHERE email = '{email}'",
            )
            plan = "\n".join(row[0] for row in rows).replace(email, "")
            plans.append([li for li in plan.splitlines() if "Removed" in li])
    return plans[0] != plans[1]


def estimated(scene: Scene) -> bool:
    """Whether the planner's estimate tells a value that globex has from others."""
    scene.database.execute("ANALYZE users")
    with scene.attack() as session:
        plans = [
            execute(session, f"EXPLAIN SELECT FROM users WHERE email = '{email}'")
            for email in ("you@globex", "nobody@globex")
        ]
    return str(plans[0]).split("Filter")[0] != str(plans[1]).split("Filter")[0]


def counts(statement: str, expected: int) -> Callable[[Scene], bool]:
    """An attack that learns how many rows there are of all tenants."""

    def succeeds(scene: Scene) -> bool:
        with scene.attack() as session:
            got = attempt(session, statement)
        return got != PERMISSION_DENIED and got == [(expected,)]

    return succeeds


def own_counters(scene: Scene) -> bool:
    """Whether the counters of one's own transaction count rows of globex."""
    with scene.attack() as session:
        got = attempt(
            session,
            # without an index, whatever the planner would like
            "SELECT * FROM events TABLESAMPLE SYSTEM (100)",
            "SELECT seq_tup_read FROM pg_stat_xact_user_tables"
            " WHERE relname = 'events_1'",
        )
    assert got in ([(4,)], PERMISSION_DENIED)
    return got != PERMISSION_DENIED


def updated(scene: Scene) -> bool:
    """Whether currtid2() tells that globex updated a row."""
    with scene.victim() as victim:
        ((place,),) = execute(victim, "SELECT ctid::text FROM notes WHERE id = 101")
        execute(victim, "UPDATE notes SET body = body WHERE id = 101")
        victim.commit()
    with scene.attack() as session:
        got = attempt(session, f"SELECT currtid2('notes', '{place}')::text")
    assert got != [(place,)]
    return got != PERMISSION_DENIED


def gaps(column: str) -> Callable[[Scene], bool]:
    """Whether what the database gives to rows tells how many globex has written."""

    def succeeds(scene: Scene) -> bool:
        seen: list[Any] = []
        statement = f"INSERT INTO comments (note_id) VALUES (1) RETURNING {column}"
        for _ in range(2):
            with scene.attack() as session:
                seen += execute(session, statement)[0]
                session.commit()
            with scene.victim() as victim:
                execute(victim, "INSERT INTO comments (note_id) VALUES (101), (101)")
                victim.commit()
        return bool(seen[1] - seen[0] > 1)

    return succeeds


def role_names(scene: Scene) -> bool:
    with scene.attack() as session:
        return "tenant_globex" in str(execute(session, "SELECT rolname FROM pg_roles"))


CATALOG = [
    Leak(
        "the names of all tenants, in `pg_roles`",
        role_names,
        'identifiers that tell nothing, as UUIDs; `isolation="shared"`',
    ),
    Leak(
        "`EXPLAIN ANALYZE`: `Rows Removed by Filter`, where an index does not begin"
        " with the tenant",
        removed_by_filter,
        "indexes on `(tenant, email)`",
        "ALTER TABLE users DROP CONSTRAINT users_email_key, ADD UNIQUE (tenant, email)",
        setup=_USERS,
        dml=True,
    ),
    Leak(
        "`EXPLAIN`: estimates from the statistics of all tenants",
        estimated,
        "`ALTER COLUMN … SET STATISTICS 0` where values are secret",
        "ALTER TABLE users ALTER COLUMN email SET STATISTICS 0;"
        "DELETE FROM pg_statistic WHERE starelid = 'users'::regclass",
        setup=_USERS.replace("UNIQUE", "")
        + "INSERT INTO users SELECT 'globex', i, 'you@globex'"
        " FROM generate_series(1000, 2000) i",
        dml=True,
    ),
    Leak(
        "the number of rows of all tenants, in `pg_class`",
        counts("SELECT reltuples FROM pg_class WHERE relname = 'events_1'", 4),
        "none",
        setup="ANALYZE events_1",
    ),
    Leak(
        "the size of tables",
        counts("SELECT pg_relation_size('events_1')", 8192),
        "`REVOKE EXECUTE` on the size functions `FROM PUBLIC`",
        "REVOKE EXECUTE ON FUNCTION pg_relation_size(regclass),"
        " pg_relation_size(regclass, text), pg_table_size(regclass),"
        " pg_total_relation_size(regclass), pg_indexes_size(regclass) FROM PUBLIC",
    ),
    Leak(
        "counters of rows read and written, in `pg_stat_user_tables` and"
        " `pg_stat_xact_user_tables`",
        own_counters,
        "`REVOKE EXECUTE` on the functions `pg_stat_get_…` `FROM PUBLIC`",
        "REVOKE EXECUTE ON FUNCTION pg_stat_get_xact_tuples_returned(oid),"
        " pg_stat_get_tuples_returned(oid) FROM PUBLIC",
    ),
    Leak(
        "`currtid2()`: whether a row was updated, by its physical place",
        updated,
        "`REVOKE EXECUTE ON FUNCTION currtid2(text, tid) FROM PUBLIC`",
        "REVOKE EXECUTE ON FUNCTION currtid2(text, tid) FROM PUBLIC",
    ),
    Leak(
        "gaps between the numbers from a sequence",
        gaps("id"),
        "UUIDs",
    ),
    Leak(
        "gaps between transaction numbers, `xmin`",
        gaps("xmin::text::bigint"),
        "none",
    ),
]


# --- what sessions share -------------------------------------------------------------


def notified(scene: Scene) -> bool:
    with scene.attack() as session:
        execute(session, "LISTEN events")
        session.commit()
        with scene.victim() as victim:
            execute(victim, f"SELECT pg_notify('events', '{SECRET}')")
            victim.commit()
        raw: Any = session.connection().connection.driver_connection
        return any(n.payload == SECRET for n in raw.notifies(timeout=5, stop_after=1))


def blocks(lock: str, wanted: str) -> Callable[[Scene], bool]:
    """An attack that makes globex wait."""

    def succeeds(scene: Scene) -> bool:
        with scene.attack() as session, scene.victim() as victim:
            execute(session, lock)
            got = attempt(victim, "SET LOCAL lock_timeout = '50ms'", wanted)
            return got == "55P03"  # lock not available

    return succeeds


def lock_keys(scene: Scene) -> bool:
    key = uuid.uuid4().int % 2**31
    with scene.attack() as session, scene.victim() as victim:
        execute(victim, f"SELECT pg_advisory_xact_lock({key})")
        return (key,) in execute(session, "SELECT objid::bigint FROM pg_locks")


def strands(scene: Scene) -> bool:
    """Whether a lock outlives the session."""
    with scene.attack() as session:
        execute(
            session, "UPDATE notes SET body = body", "PREPARE TRANSACTION 'stranded'"
        )
    scene.close()
    found = scene.database.rows("SELECT gid FROM pg_prepared_xacts")
    scene.database.execute("ROLLBACK PREPARED 'stranded'")
    return found == [("stranded",)]


def large_object(scene: Scene) -> bool:
    with scene.victim() as victim:
        [(number,)] = execute(victim, f"SELECT lo_from_bytea(0, '{SECRET}')")
        victim.commit()
    return reads(f"SELECT convert_from(lo_get({number}), 'UTF8')")(scene)


SHARED = [
    Leak(
        "`LISTEN`: what others `NOTIFY`",
        notified,
        "notify with an identifier only, and read the row",
        dml=True,
    ),
    Leak(
        "advisory locks of others, taken or in `pg_locks`",
        lock_keys,
        "keys that tell nothing",
    ),
    Leak(
        "holding an advisory lock that the other needs",
        blocks("SELECT pg_advisory_xact_lock(7)", "SELECT pg_advisory_xact_lock(7)"),
        "`lock_timeout`",
    ),
    Leak(
        "`LOCK TABLE … IN ACCESS EXCLUSIVE MODE`",
        blocks("LOCK TABLE notes IN ACCESS EXCLUSIVE MODE", "TABLE notes"),
        "`lock_timeout`, and something that ends long transactions",
        dml=True,
    ),
    Leak(
        "`PREPARE TRANSACTION`, which keeps its locks for ever",
        strands,
        "`max_prepared_transactions = 0`, the default",
        dml=True,
    ),
    Leak(
        "large objects: all belong to the one role",
        large_object,
        "`bytea` columns; `REVOKE EXECUTE` on `lo_get`, `lo_open` `FROM PUBLIC`",
        "REVOKE EXECUTE ON FUNCTION lo_get(oid), lo_get(oid, bigint, integer),"
        " lo_open(oid, integer) FROM PUBLIC",
        by=("shared",),
    ),
]


SECTIONS: dict[str, list[Leak]] = {
    "Becoming another": ROLES,
    "Dropping the policies": POLICIES,
    "Other objects": OBJECTS,
    "What tenants may act as, or own": REACHABLE,
    "Keys": KEYS,
    "Catalog and statistics": CATALOG,
    "What sessions share": SHARED,
}

LEAKS = [leak for section in SECTIONS.values() for leak in section]


# --- extensions, as far as they are installed ----------------------------------------


def statement_texts(scene: Scene) -> bool:
    with scene.victim() as victim:
        execute(victim, f"DO $$ BEGIN PERFORM '{SECRET}'; END $$")
    return reads("SELECT query FROM public.pg_stat_statements")(scene)


_FOREIGN = """
DROP SERVER IF EXISTS notes_elsewhere CASCADE;
CREATE SERVER notes_elsewhere FOREIGN DATA WRAPPER postgres_fdw
    OPTIONS (host '{host}', port '{port}', dbname 'test');
CREATE USER MAPPING FOR PUBLIC SERVER notes_elsewhere
    OPTIONS (user 'superuser', password_required 'false');
CREATE FOREIGN TABLE notes_elsewhere (tenant text, id integer, body text)
    SERVER notes_elsewhere OPTIONS (table_name 'notes');
GRANT SELECT ON notes_elsewhere TO tenants
"""

EXTENSIONS = [
    Leak(
        "`pg_stat_statements`: what others execute; all act as the one role",
        statement_texts,
        "`REVOKE SELECT ON pg_stat_statements FROM PUBLIC`",
        "REVOKE SELECT ON pg_stat_statements FROM PUBLIC",
        by=("shared",),
    ),
    Leak(
        "a foreign table: policies are those of the other server, for its login there",
        reads("TABLE notes_elsewhere"),
        "grant it to no tenant",
        "REVOKE ALL ON notes_elsewhere FROM tenants",
        setup=_FOREIGN,
    ),
]

SECTIONS["Extensions"] = EXTENSIONS
