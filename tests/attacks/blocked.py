"""Attacks that fail, as a list to read."""

from __future__ import annotations

import warnings
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.exc import InvalidRequestError, SAWarning
from sqlalchemy.orm import Session, make_transient_to_detached
from sqlalchemy.orm.exc import StaleDataError

from attacks import (
    NO_EFFECT,
    OWN,
    SECRET,
    Blocked,
    Comment,
    Note,
    Scene,
    execute,
    execute_on,
)
from sqlalchemy_tenants import TenantSession

# --- reading -------------------------------------------------------------------------

_LEAKY = (
    "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql"
    " COST 0.0000001 AS $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$"
)

BY_HAND = "CREATE POLICY by_hand ON notes USING (true)"

READING = [
    Blocked("`SELECT`", "SELECT * FROM notes", OWN),
    Blocked(
        "a condition for the other tenant", "SELECT * FROM notes WHERE id > 99", []
    ),
    Blocked(
        "the same by the tenant column",
        "SELECT * FROM notes WHERE tenant = 'globex'",
        [],
    ),
    Blocked(
        "a condition that is always true",
        "SELECT * FROM notes WHERE tenant = 'acme' OR true",
        OWN,
    ),
    Blocked("`TABLE`", "TABLE notes", OWN),
    Blocked("`ONLY`", "SELECT * FROM ONLY notes", OWN),
    Blocked("a row as JSON", "SELECT row_to_json(n) FROM notes n", OWN),
    Blocked("an aggregate", "SELECT string_agg(body, ',') FROM notes", OWN),
    Blocked("`count(*)`", "SELECT count(*) FROM notes", [(2,)]),
    Blocked(
        "grouping by tenant",
        "SELECT tenant, count(*) FROM notes GROUP BY ROLLUP (tenant)",
        [("acme", 2), (None, 2)],
    ),
    Blocked(
        "a window function",
        "SELECT body, lead(body) OVER (ORDER BY id DESC) FROM notes",
        OWN,
    ),
    Blocked(
        "a join",
        "SELECT n.body, m.body FROM notes n FULL JOIN notes m USING (id)",
        OWN,
    ),
    Blocked(
        "a lateral join",
        "SELECT x.* FROM comments c, LATERAL (SELECT * FROM notes n"
        " WHERE n.id = c.note_id OR n.id > 99) x",
        OWN,
    ),
    Blocked("a subselect", "SELECT (SELECT min(body) FROM notes WHERE id < 999)", OWN),
    Blocked("`EXISTS`", "SELECT 1 WHERE EXISTS (SELECT FROM notes WHERE id > 99)", []),
    Blocked("a CTE", "WITH n AS MATERIALIZED (SELECT * FROM notes) TABLE n", OWN),
    Blocked(
        "a recursive CTE",
        "WITH RECURSIVE n AS (SELECT id, body FROM notes WHERE id = 1 UNION"
        " SELECT m.id, m.body FROM n JOIN notes m ON m.id <> n.id) TABLE n",
        OWN,
    ),
    Blocked(
        "set operations", "TABLE notes UNION ALL (TABLE notes EXCEPT TABLE notes)", OWN
    ),
    Blocked(
        "the physical place of a row",
        "SELECT * FROM notes WHERE ctid = ANY (ARRAY(SELECT format('(%s,%s)', p, i)"
        "::tid FROM generate_series(0, 99) p, generate_series(1, 300) i))",
        OWN,
    ),
    Blocked("`TABLESAMPLE`", "SELECT * FROM notes TABLESAMPLE BERNOULLI (100)", OWN),
    Blocked("`FOR UPDATE`", "SELECT * FROM notes FOR UPDATE", OWN),
    Blocked(
        "locking the other's rows", "SELECT * FROM notes WHERE id > 99 FOR SHARE", []
    ),
    Blocked(
        "a cursor",
        (
            "DECLARE c SCROLL CURSOR WITH HOLD FOR TABLE notes",
            "MOVE LAST FROM c",
            "FETCH BACKWARD ALL FROM c",
        ),
        OWN,
    ),
    Blocked(
        "a prepared statement",
        ("PREPARE q AS TABLE notes", "EXECUTE q", "EXECUTE q"),
        OWN,
    ),
    Blocked(
        "a parallel query",
        (
            "DO $$ BEGIN PERFORM set_config(name, 'on', true) FROM pg_settings"
            " WHERE name IN ('debug_parallel_query', 'force_parallel_mode'); END $$",
            "SELECT * FROM notes",
        ),
        OWN,
    ),
    Blocked(
        "a `DO` block",
        "DO $$ DECLARE n record; BEGIN FOR n IN SELECT * FROM public.notes LOOP"
        " RAISE NOTICE '%', n.body; END LOOP; END $$",
        OWN,
    ),
    Blocked(
        "a function of one's own, `SECURITY DEFINER`",
        (
            "CREATE FUNCTION pg_temp.f() RETURNS SETOF text LANGUAGE sql"
            " SECURITY DEFINER AS 'SELECT body FROM public.notes'",
            "SELECT pg_temp.f()",
        ),
        OWN,
    ),
    Blocked(
        "a function that the application has", "SELECT body FROM bodies() AS body", OWN
    ),
    Blocked("a view with `security_invoker`", "SELECT * FROM notes_view", OWN),
    Blocked(
        "a view of one's own",
        ("CREATE TEMP VIEW v AS TABLE notes", "TABLE v"),
        OWN,
    ),
    Blocked(
        "functions that run a query",
        "SELECT * FROM ts_stat('SELECT to_tsvector(''simple'', body) FROM notes')",
        [("acme", 2, 2), ("of", 2, 2), ("row", 2, 2)],
    ),
    Blocked(
        "a table as XML",
        "SELECT table_to_xml('notes', true, false, '')",
        (OWN, "0A000"),
    ),
    Blocked(
        "a view of the owner, who is no superuser: its table is `FORCE`d",
        "TABLE v",
        OWN,
        setup="SET ROLE owner; CREATE VIEW v AS TABLE notes;"
        "GRANT SELECT ON v TO tenants",
    ),
    Blocked(
        "a table with a permissive policy that was added by hand",
        "TABLE notes",
        OWN,
        setup=BY_HAND,
    ),
    Blocked(
        "`SET ROLE` by a function that runs a query",
        "SELECT query_to_xml('SET ROLE tenant_globex', true, false, '')",
        "0A000",
    ),
    Blocked("a partitioned table", "SELECT * FROM events", OWN),
    Blocked("a partition", "SELECT * FROM events_1", "42501"),
    Blocked("a table with heirs", "SELECT * FROM animals", OWN),
    Blocked("an heir", "SELECT * FROM dogs", "42501"),
    Blocked("a table that is neither marked nor shared", "TABLE internals", "42501"),
    Blocked("`COPY TO`", lambda s, _: copy_to(s, "COPY notes TO STDOUT"), OWN),
    Blocked(
        "`COPY` of a query",
        lambda s, _: copy_to(s, "COPY (TABLE notes) TO STDOUT"),
        OWN,
    ),
    Blocked("`COPY TO` a file", "COPY notes TO '/tmp/notes'", "42501"),
    Blocked("`COPY TO` a program", "COPY notes TO PROGRAM 'cat'", "42501"),
]


def copy_to(session: TenantSession, statement: str) -> list[tuple[Any, ...]]:
    raw: Any = session.connection().connection.driver_connection
    with raw.cursor() as cursor, cursor.copy(statement) as copy:
        return [(bytes(data).decode(),) for data in copy]


# --- leaky functions and errors ------------------------------------------------------

LEAKING = [
    Blocked(
        "a cheap function that tells its argument, in the condition",
        (_LEAKY, "SELECT body FROM notes WHERE pg_temp.leak(body)"),
        OWN,
    ),
    Blocked(
        "the same in a join",
        (_LEAKY, "SELECT 1 FROM notes n JOIN plans ON pg_temp.leak(n.body || name)"),
        OWN,
    ),
    Blocked(
        "the same through a view",
        (_LEAKY, "SELECT 1 FROM notes_view WHERE pg_temp.leak(body)"),
        OWN,
    ),
    Blocked(
        "the same in `UPDATE`",
        (_LEAKY, "UPDATE notes SET body = body WHERE pg_temp.leak(body)"),
        OWN,
    ),
    Blocked(
        "an operator that tells its operand",
        (
            _LEAKY,
            "CREATE OPERATOR pg_temp.!!! (RIGHTARG = text, FUNCTION = pg_temp.leak)",
            "SELECT 1 FROM notes WHERE OPERATOR(pg_temp.!!!) body",
        ),
        OWN,
    ),
    Blocked(
        "an error for each row of the other tenant",
        "SELECT body FROM notes WHERE 1 / (CASE WHEN id > 99 THEN 0 ELSE 1 END) = 1",
        OWN,
    ),
    Blocked(
        "an error message with the value",
        "SELECT body FROM notes WHERE"
        " CASE WHEN id > 99 THEN body::integer ELSE 1 END = 1",
        OWN,
    ),
    Blocked(
        "declaring a function leakproof",
        "CREATE FUNCTION pg_temp.f() RETURNS integer LANGUAGE sql LEAKPROOF RETURN 1",
        "42501",
    ),
    Blocked(
        "statistics of the planner",
        "SELECT most_common_vals, histogram_bounds FROM pg_stats"
        " WHERE tablename IN ('notes', 'events', 'events_1', 'dogs', 'internals')",
        [],
    ),
    Blocked("the same in `pg_statistic`", "TABLE pg_statistic", "42501"),
    Blocked(
        "the queries of others in `pg_stat_activity`",
        lambda session, scene: while_victim_works(
            session, scene, "SELECT query FROM pg_stat_activity WHERE query ~ 'victim'"
        ),
        [],
    ),
    Blocked(
        "the last value of an identity column",
        "SELECT last_value FROM pg_sequences WHERE sequencename = 'comments_id_seq'",
        [(None,)],
    ),
    Blocked(
        "`nextval` of an identity column", "SELECT nextval('comments_id_seq')", "42501"
    ),
    Blocked("`setval`", "SELECT setval('comments_id_seq', 1)", "42501"),
    Blocked(
        "a foreign key with the tenant, to the other's row",
        "INSERT INTO comments (note_id) VALUES (101)",
        "23503",
    ),
    Blocked(
        "the same, deferred",
        ("SET CONSTRAINTS ALL DEFERRED", "INSERT INTO comments (note_id) VALUES (101)"),
        "23503",
    ),
    Blocked(
        "a key with the tenant that the other has, too",
        "INSERT INTO notes (id, body) VALUES (101, 'row of acme') RETURNING body",
        OWN,
    ),
]


def while_victim_works(
    session: TenantSession, scene: Scene, statement: str
) -> list[tuple[Any, ...]]:
    with scene.victim() as victim:
        execute(victim, f"SELECT 'victim', '{SECRET}'")
        return execute(session, statement)


# --- writing -------------------------------------------------------------------------

WRITING = [
    Blocked(
        "`INSERT` where a permissive policy was added by hand",
        "INSERT INTO notes VALUES ('globex', 7, 'x')",
        "42501",
        setup=BY_HAND,
    ),
    Blocked(
        "`UPDATE` and `DELETE` there",
        (
            "UPDATE notes SET body = 'x' WHERE id = 101",
            "DELETE FROM notes WHERE id > 101",
        ),
        NO_EFFECT,
        setup=BY_HAND,
    ),
    Blocked(
        "`INSERT` for the other tenant",
        "INSERT INTO notes VALUES ('globex', 7, 'x')",
        "42501",
    ),
    Blocked(
        "the same through a view",
        "INSERT INTO notes_view VALUES ('globex', 7, 'x')",
        "42501",
    ),
    Blocked(
        "the same into a partitioned table",
        "INSERT INTO events VALUES ('globex', 7, 'x')",
        "42501",
    ),
    Blocked(
        "`INSERT` into a partition", "INSERT INTO events_1 VALUES ('acme', 7)", "42501"
    ),
    Blocked("`INSERT` for no tenant", "INSERT INTO notes VALUES (NULL, 7)", "42501"),
    Blocked(
        "`INSERT … SELECT`",
        "INSERT INTO notes SELECT 'globex', id, body FROM notes",
        "42501",
    ),
    Blocked(
        "`ON CONFLICT DO UPDATE` of the other's row",
        "INSERT INTO notes VALUES ('globex', 101, 'x')"
        " ON CONFLICT (tenant, id) DO UPDATE SET body = 'x'",
        "42501",
    ),
    Blocked(
        "`ON CONFLICT DO NOTHING` as a question",
        "INSERT INTO notes VALUES ('globex', 101, 'x') ON CONFLICT DO NOTHING",
        "42501",
    ),
    Blocked("`UPDATE` of all rows", "UPDATE notes SET body = 'x'", NO_EFFECT),
    Blocked(
        "`UPDATE` of the other's rows",
        "UPDATE notes SET body = 'x' WHERE id > 99 RETURNING id",
        [],
    ),
    Blocked("`UPDATE` through a view", "UPDATE notes_view SET body = 'x'", NO_EFFECT),
    Blocked(
        "`UPDATE … FROM`",
        "UPDATE notes n SET body = m.body FROM notes m WHERE n.id <> m.id",
        NO_EFFECT,
    ),
    Blocked(
        "giving a row to the other tenant",
        "UPDATE notes SET tenant = 'globex'",
        "42501",
    ),
    Blocked(
        "the same with an upsert",
        "INSERT INTO notes VALUES ('acme', 1, 'x')"
        " ON CONFLICT (tenant, id) DO UPDATE SET tenant = 'globex'",
        "42501",
    ),
    Blocked(
        "`DELETE` of all rows", ("DELETE FROM comments", "DELETE FROM notes"), NO_EFFECT
    ),
    Blocked("`DELETE … RETURNING`", "DELETE FROM notes WHERE id > 99 RETURNING *", []),
    Blocked(
        "`DELETE … USING`",
        "DELETE FROM comments USING notes WHERE notes.id > 99",
        NO_EFFECT,
    ),
    Blocked(
        "`MERGE`",
        "MERGE INTO notes n USING (VALUES (101)) v (id) ON n.id = v.id"
        " WHEN MATCHED THEN UPDATE SET body = 'x'",
        NO_EFFECT,
    ),
    Blocked(
        "`MERGE` for the other tenant",
        "MERGE INTO notes n USING (VALUES (101)) v (id) ON n.id = v.id"
        " WHEN NOT MATCHED THEN INSERT VALUES ('globex', 7, 'x')",
        "42501",
    ),
    Blocked(
        "`MERGE … NOT MATCHED BY SOURCE`",
        "MERGE INTO events n USING (VALUES (0)) v (id) ON n.id = v.id"
        " WHEN NOT MATCHED BY SOURCE THEN DELETE",
        NO_EFFECT,
        since=17,
    ),
    Blocked(
        "a CTE that writes",
        "WITH d AS (DELETE FROM events RETURNING *) INSERT INTO notes"
        " SELECT 'globex', id, body FROM d",
        "42501",
    ),
    Blocked("`TRUNCATE`", "TRUNCATE notes, comments", "42501"),
    Blocked("`COPY FROM`", "COPY notes FROM PROGRAM 'cat'", "42501"),
    Blocked("the same from the client", "COPY notes FROM STDIN", "0A000"),
    Blocked("writing into a shared table", "INSERT INTO plans VALUES ('x')", "42501"),
    Blocked("writing into an heir", "DELETE FROM dogs", "42501"),
]


# --- definitions ---------------------------------------------------------------------

DEFINITIONS = [
    Blocked(name or f"`{statement}`", statement, gets)
    for name, statement, gets in (
        ("", "ALTER TABLE notes DISABLE ROW LEVEL SECURITY", "42501"),
        ("", "ALTER TABLE notes NO FORCE ROW LEVEL SECURITY", "42501"),
        ("", "ALTER TABLE notes OWNER TO tenants", "42501"),
        ("", "ALTER TABLE notes ADD COLUMN x text", "42501"),
        ("", "ALTER TABLE notes RENAME TO x", "42501"),
        ("", "ALTER TABLE events DETACH PARTITION events_1", "42501"),
        ("", "DROP TABLE notes", "42501"),
        ("", "DROP POLICY tenant_floor ON notes", "42501"),
        ("", "ALTER POLICY tenant_floor ON notes USING (true)", "42501"),
        ("", "CREATE POLICY x ON notes USING (true)", "42501"),
        (
            "replacing `current_tenant()`",
            "CREATE OR REPLACE FUNCTION tenancy.current_tenant() RETURNS text"
            " LANGUAGE sql RETURN 'globex'",
            "42501",
        ),
        ("", "DROP FUNCTION tenancy.current_tenant() CASCADE", "42501"),
        ("", "ALTER VIEW notes_view RESET (security_invoker)", "42501"),
        ("", "CREATE TABLE public.x (y integer)", "42501"),
        ("", "CREATE SCHEMA x", "42501"),
        (
            "a function that others may find",
            "CREATE FUNCTION public.lower(varchar) RETURNS text LANGUAGE sql RETURN ''",
            "42501",
        ),
        ("", "CREATE INDEX ON notes (body)", "42501"),
        ("", "CREATE STATISTICS s ON id, body FROM notes", "42501"),
        ("", "CREATE RULE r AS ON INSERT TO notes DO INSTEAD NOTHING", "42501"),
        (
            "a trigger",
            "CREATE TRIGGER t BEFORE INSERT ON notes FOR EACH ROW"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "42501",
        ),
        (
            "an event trigger",
            "DO $$ BEGIN CREATE FUNCTION pg_temp.f() RETURNS event_trigger"
            " LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER e"
            " ON ddl_command_end EXECUTE FUNCTION pg_temp.f(); END $$",
            "42501",
        ),
        (
            "rows of one's own for others to see, by an heir",
            "CREATE TEMP TABLE x () INHERITS (notes)",
            "42501",
        ),
        (
            "the same by a partition",
            (
                "CREATE TEMP TABLE x (LIKE events)",
                "ALTER TABLE events ATTACH PARTITION x DEFAULT",
            ),
            "42501",
        ),
        (
            "a temporary table that refers to others' rows",
            "CREATE TEMP TABLE x (t text, i integer, FOREIGN KEY (t, i)"
            " REFERENCES notes (tenant, id))",
            "42P16",
        ),
        ("", "COMMENT ON TABLE notes IS 'x'", "42501"),
        ("", "SECURITY LABEL ON TABLE notes IS 'x'", "22023"),
        ("", "REINDEX TABLE notes", "42501"),
        ("", "ANALYZE notes", NO_EFFECT),
        ("", "GRANT SELECT ON notes TO PUBLIC", NO_EFFECT),
        ("", "REVOKE SELECT ON notes FROM tenants", NO_EFFECT),
        (
            "",
            "ALTER DEFAULT PRIVILEGES FOR ROLE owner GRANT SELECT ON TABLES TO PUBLIC",
            "42501",
        ),
        ("", "ALTER DATABASE test SET search_path = x", "42501"),
        ("", "CREATE PUBLICATION p FOR TABLE notes", "42501"),
        (
            "logical decoding",
            "SELECT pg_create_logical_replication_slot('x', 'test_decoding')",
            "42501",
        ),
        ("reading the server's files", "SELECT pg_read_file('PG_VERSION')", "42501"),
        ("the same as a large object", "SELECT lo_import('/etc/passwd')", "42501"),
        ("", "LOAD 'auto_explain'", "42501"),
        (
            "a function in C",
            "CREATE FUNCTION pg_temp.f() RETURNS integer LANGUAGE c AS 'x'",
            "42501",
        ),
    )
]


# --- roles, settings and transactions ------------------------------------------------

_OTHER_LOGINS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE query ~ 'victim' OR usename IN ('app', 'app_shared') AND pid <> pg_backend_pid()
"""

# where tenants may create whatever they like
_LAB = "CREATE SCHEMA lab; GRANT CREATE, USAGE ON SCHEMA lab TO tenants"

ROLES = [
    Blocked(
        "`SET ROLE` to the other tenant",
        'SET ROLE "tenant_globex"',
        "42501",
        by=("shared", "login"),
    ),
    Blocked(
        "the same in a function",
        "DO $$ BEGIN PERFORM set_config('role', 'tenant_globex', true); END $$",
        "42501",
        by=("shared", "login"),
    ),
    Blocked(
        'the setting of `isolation="shared"`',
        ("SET tenancy.tenant = 'globex'", "TABLE notes"),
        OWN,
        by=("role", "login"),
    ),
    Blocked(
        "the same in the query",
        "SELECT body FROM"
        " (SELECT set_config('tenancy.tenant', 'globex', true) OFFSET 0) x, notes",
        OWN,
        by=("role", "login"),
    ),
    Blocked(
        "its role",
        ("SET ROLE tenants_shared", "SET tenancy.tenant = 'globex'", "TABLE notes"),
        "42501",
        by=("role", "login"),
    ),
    Blocked(
        "no tenant: the setting reset",
        ("RESET tenancy.tenant", "TABLE notes"),
        [],
        by=("shared",),
    ),
    Blocked(
        "the tenant in another spelling",
        ("SET tenancy.tenant = 'GLOBEX '", "TABLE notes"),
        [],
        by=("shared",),
    ),
    Blocked("`SET ROLE` to the group role", ("SET ROLE tenants", "TABLE notes"), []),
    Blocked(
        "the same with the setting",
        ("SET ROLE tenants", "SET tenancy.tenant = 'globex'", "TABLE notes"),
        [],
    ),
    Blocked(
        "writing as the group role",
        ("SET ROLE tenants", "INSERT INTO notes VALUES ('globex', 7, 'x')"),
        "42501",
    ),
    Blocked("`SET ROLE` to the admin role", "SET ROLE tenants_admin", "42501"),
    Blocked("`SET ROLE` to the owner", "SET ROLE owner", "42501"),
    Blocked("`SET ROLE` to a superuser", "SET ROLE superuser", "42501"),
    Blocked("`RESET ROLE`", ("RESET ROLE", "TABLE notes"), "42501"),
    Blocked("`SET ROLE NONE`", ("SET ROLE NONE", "TABLE notes"), "42501"),
    Blocked(
        "`SET SESSION AUTHORIZATION`",
        'SET SESSION AUTHORIZATION "tenant_globex"',
        "42501",
    ),
    Blocked(
        "`SET SESSION AUTHORIZATION DEFAULT`",
        ("SET SESSION AUTHORIZATION DEFAULT", "TABLE notes"),
        "42501",
    ),
    Blocked("`RESET ALL`", ("RESET ALL", "TABLE notes"), OWN, by=("role", "login")),
    Blocked("`RESET ALL`", ("RESET ALL", "TABLE notes"), [], by=("shared",)),
    Blocked("`row_security`", ("SET row_security = off", "TABLE notes"), "42501"),
    Blocked(
        "`session_replication_role`", "SET session_replication_role = replica", "42501"
    ),
    Blocked(
        "functions of one's own in place of those that the policies call",
        (
            "CREATE FUNCTION pg_temp.starts_with(text, text) RETURNS boolean"
            " LANGUAGE sql RETURN false",
            "CREATE FUNCTION pg_temp.current_setting(text, boolean) RETURNS text"
            " LANGUAGE sql RETURN 'globex'",
            "SET search_path = pg_temp, public, pg_catalog",
            "TABLE notes",
        ),
        OWN,
    ),
    Blocked(
        "the same in a schema where one may create, with operators and a type",
        (
            "CREATE FUNCTION lab.starts_with(text, text) RETURNS boolean"
            " LANGUAGE sql RETURN true",
            "CREATE FUNCTION lab.substr(text, integer) RETURNS text"
            " LANGUAGE sql RETURN 'globex'",
            "CREATE FUNCTION lab.current_setting(text, boolean) RETURNS text"
            " LANGUAGE sql RETURN 'globex'",
            "CREATE FUNCTION lab.always(text, text) RETURNS boolean"
            " LANGUAGE sql RETURN true",
            "CREATE OPERATOR lab.= (LEFTARG = text, RIGHTARG = text,"
            " FUNCTION = lab.always)",
            "CREATE OPERATOR lab.<> (LEFTARG = text, RIGHTARG = text,"
            " FUNCTION = lab.always)",
            "CREATE DOMAIN lab.text AS pg_catalog.text CHECK (false)",
            "SET search_path = lab, public, pg_catalog",
            "TABLE notes",
        ),
        OWN,
        setup=_LAB,
    ),
    Blocked(
        "the same as `tenants`, whom an operator takes for a role with a setting",
        (
            "CREATE FUNCTION lab.always(text, text) RETURNS boolean"
            " LANGUAGE sql RETURN true",
            "CREATE OPERATOR lab.= (LEFTARG = text, RIGHTARG = text,"
            " FUNCTION = lab.always)",
            "GRANT EXECUTE ON FUNCTION lab.always TO tenants",
            "SET ROLE tenants",
            "SET tenancy.tenant = 'globex'",
            "SET search_path = lab, public, pg_catalog",
            "TABLE notes",
        ),
        [],
        setup=_LAB,
    ),
    Blocked("`COMMIT` as a statement", ("COMMIT", "TABLE notes"), "42501"),
    Blocked("`COMMIT AND CHAIN`", ("COMMIT AND CHAIN", "TABLE notes"), "42501"),
    Blocked("`ROLLBACK AND CHAIN`", ("ROLLBACK AND CHAIN", "TABLE notes"), "42501"),
    Blocked(
        "savepoints",
        (
            "SAVEPOINT a",
            "SET LOCAL search_path = public",
            "ROLLBACK TO a",
            "RELEASE a",
            "TABLE notes",
        ),
        OWN,
    ),
    Blocked("`CREATE ROLE`", "CREATE ROLE x", "42501"),
    Blocked("`ALTER ROLE … BYPASSRLS`", "ALTER ROLE tenants BYPASSRLS", "42501"),
    Blocked("`DROP ROLE`", "DROP ROLE tenant_globex", "42501"),
    Blocked("`GRANT` of the admin role", "GRANT tenants_admin TO tenants", "42501"),
    Blocked(
        "`GRANT` of the other's role", "GRANT tenant_globex TO tenant_acme", "42501"
    ),
    Blocked(
        "`REASSIGN OWNED`", "REASSIGN OWNED BY tenant_globex TO tenant_acme", "42501"
    ),
    Blocked("`DROP OWNED BY` the other's role", "DROP OWNED BY tenant_globex", "42501"),
    Blocked("passwords", "TABLE pg_authid", "42501"),
    Blocked(
        "ending the other's connection",
        lambda session, scene: while_victim_works(session, scene, _OTHER_LOGINS),
        "42501",
    ),
    Blocked(
        "the other's large objects",
        lambda session, scene: read_large_object(session, scene),
        "42501",
        by=("role", "login"),
    ),
]


def read_large_object(session: TenantSession, scene: Scene) -> list[tuple[Any, ...]]:
    with scene.victim() as victim:
        [(number,)] = execute(victim, f"SELECT lo_from_bytea(0, '{SECRET}')")
        victim.commit()
    try:
        return execute(session, f"SELECT convert_from(lo_get({number}), 'UTF8')")
    finally:
        with scene.victim() as victim:
            execute(victim, f"SELECT lo_unlink({number})")
            victim.commit()


# --- the ORM -------------------------------------------------------------------------


def detached(**values: Any) -> Note:
    """The other's row, as if it had been loaded."""
    note = Note(tenant="globex", id=101, **values)
    make_transient_to_detached(note)
    return note


def get(session: TenantSession, scene: Scene) -> Any:
    assert session.get(Note, ("globex", 101)) is None
    return session.scalars(select(Note.body)).all()


def refresh(session: TenantSession, scene: Scene) -> Any:
    note = detached()
    session.add(note)
    try:
        session.refresh(note)
    except InvalidRequestError:  # could not refresh instance
        return []


def flush_change(session: TenantSession, scene: Scene) -> Any:
    note = detached(body="")
    session.add(note)
    note.body = "x"
    try:
        session.flush()
    except StaleDataError:  # 0 rows were matched
        session.rollback()
        return []


def flush_delete(session: TenantSession, scene: Scene) -> Any:
    session.delete(session.merge(detached(body=""), load=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)  # 0 rows were matched
        session.flush()
    return []


def merge(session: TenantSession, scene: Scene) -> Any:
    session.merge(Note(tenant="globex", id=101, body="x"))
    session.flush()


def add(session: TenantSession, scene: Scene) -> Any:
    session.add(Comment(tenant="globex", note_id=101))
    session.flush()


def engine_of_the_session(session: TenantSession, scene: Scene) -> Any:
    engine = session.get_bind()
    session.close()  # the pool has one connection
    with engine.connect() as connection:  # type: ignore[union-attr]
        return execute_on(connection, "TABLE notes")


def autocommit(session: TenantSession, scene: Scene) -> Any:
    engine = session.get_bind()
    session.close()
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as c:  # type: ignore[union-attr]
        return execute_on(c, "TABLE notes")


def another_session(session: TenantSession, scene: Scene) -> Any:
    with Session(session.connection()) as other:
        return other.scalars(select(Note.body)).all()


def driver(session: TenantSession, scene: Scene) -> Any:
    raw: Any = session.connection().connection.driver_connection
    return raw.execute("TABLE notes").fetchall()


def driver_after_commit(session: TenantSession, scene: Scene) -> Any:
    raw: Any = session.connection().connection.driver_connection
    raw.commit()
    return execute(session, "TABLE notes")


def after_error(session: TenantSession, scene: Scene) -> Any:
    for statement in ("SELECT 1/0", "ROLLBACK"):
        try:
            session.execute(text(statement))
        except Exception:
            session.rollback()
    return execute(session, "TABLE notes")


def other_options(session: TenantSession, scene: Scene) -> Any:
    session.rollback()
    session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
    return session.scalars(select(Note.body)).all()


ORM = [
    Blocked("`Session.get()` of the other's row", get, OWN),
    Blocked("`Session.refresh()` of it", refresh, []),
    Blocked("changing it, as if it had been loaded", flush_change, []),
    Blocked("deleting it, as if it had been loaded", flush_delete, []),
    Blocked("`Session.merge()`", merge, "42501"),
    Blocked("`Session.add()` of a row for the other tenant", add, "42501"),
    Blocked("the engine of the session", engine_of_the_session, "42501"),
    Blocked("the engine with AUTOCOMMIT", autocommit, "42501"),
    Blocked("another `Session` on the connection", another_session, OWN),
    Blocked("the driver's connection", driver, OWN),
    Blocked("the same, after its `commit()`", driver_after_commit, "42501"),
    Blocked("the session after an error", after_error, "42501"),
    Blocked("another isolation level", other_options, OWN),
]

SECTIONS: dict[str, list[Blocked]] = {
    "Reading": READING,
    "Functions and messages that tell": LEAKING,
    "Writing": WRITING,
    "Definitions": DEFINITIONS,
    "Roles, settings and transactions": ROLES,
    "The ORM": ORM,
}

ATTACKS = [attack for section in SECTIONS.values() for attack in section]
