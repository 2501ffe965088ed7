"""What ``setup`` prints, executed by psql on real servers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

from commands import MODELS, Run, psql, run_fixture  # noqa: F401
from projects import Project
from servers import SUPERUSER, Database, bin_dir, requested_version
from sqlalchemy_tenants import DML
from sqlalchemy_tenants.managers import PostgresManager
from sqlalchemy_tenants.tenancy import Isolation
from tenancy import migrate

ROOT = Path(__file__).parent.parent
SERVER = str(requested_version())


@pytest.fixture
def bare(database: Database) -> Database:
    """A server without logins, and the database that is to be there afterwards."""
    server = database.server
    database.execute(f"ALTER DATABASE {database.name} OWNER TO {SUPERUSER}")
    database.execute("DROP ROLE owner, app, app_shared, manager")
    return Database("shop", server)


def set_up(run: Run, database: Database, *arguments: str) -> None:
    script = run(
        "setup", "--server", SERVER, "--database", database.name, *arguments
    ).output
    done = psql(database, script)
    assert done.stderr == ""
    assert (done.returncode, done.stdout) == (0, "")


CLUSTER = """
SELECT rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin,
    rolreplication, rolbypassrls, rolconfig::text
FROM pg_roles WHERE rolname !~ '^pg_'
UNION ALL
SELECT m.roleid::regrole || ' to ' || m.member::regrole, admin_option,
    (to_jsonb(m) ->> 'inherit_option')::boolean,
    (to_jsonb(m) ->> 'set_option')::boolean,
    null, null, null, null, m.grantor::regrole::text
FROM pg_auth_members m ORDER BY 1, 9
"""

PROJECT = """
@with_rls(policies=[
    Policy("recent", using="lower(note) <> 'x' AND id > 5", permissive=False)
])
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    note: Mapped[str]
"""


@pytest.mark.parametrize(
    ("isolation", "hardened"),
    [("role", []), ("role", ["--hardened"]), ("shared", ["--hardened"])],
    ids=["plain", "role", "shared"],
)
def test_setup_and_migrations_give_a_sound_database(
    run: Run, bare: Database, isolation: Isolation, hardened: list[str]
) -> None:
    arguments = ("--isolation", isolation, *hardened)
    set_up(run, bare, *arguments)
    project = Project(Path.cwd() / "project", bare, PROJECT)
    project.migrate()
    assert project.is_up_to_date()
    (project.path / "models.py").rename("ordering.py")
    check = ("check", bare.app_url, "ordering:Base", "--isolation", isolation)
    result = run(*check, "--schema", "public")
    # The application's login may not ask the server how a condition is printed.
    expected = "0 errors, 1 warnings" if hardened else "0 errors, 0 warnings"
    assert expected in result.output
    assert ("policy-unknown" in result.output) is bool(hardened)
    # again, with tables in place
    migrated = bare.rows(CLUSTER)
    set_up(run, bare, *arguments)
    assert bare.rows(CLUSTER) == migrated
    assert run(*check, "--schema", "public").output == result.output
    found = found_with_dml_only(bare, isolation) & HARDENING
    assert found == (set() if hardened else HARDENING - {"executes-text"})
    if hardened:
        bare.execute("INSERT INTO orders VALUES (7, 'acme', 'in the dump')")
        assert "in the dump" in dump(bare)


HARDENING = {"executes-text", "set-config-open", "temporary-open"}


def found_with_dml_only(database: Database, isolation: Isolation) -> set[str]:
    engine = create_engine(database.app_url)
    manager = PostgresManager.from_engine(
        engine, "public", isolation=isolation, allow_statements=DML
    )
    codes = {each.code for each in manager.check()}
    engine.dispose()
    return codes


def dump(database: Database) -> str:
    """What pg_dump prints for the owner."""
    directory = bin_dir(database.server.version)
    assert directory is not None
    done = subprocess.run(
        [
            *(directory / "pg_dump", "--enable-row-security", "-U", "owner"),
            *("-h", database.server.host, "-p", str(database.server.port)),
            database.name,
        ],
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_setup_is_what_the_readme_says(run: Run, bare: Database) -> None:
    text = (ROOT / "README.md").read_text()
    superuser_sql, owner_sql, owner_sql_15, shared_sql = re.findall(
        r"^```sql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )
    by_hand = Database("postgres", bare.server)
    for statement in superuser_sql.splitlines():
        by_hand.execute(statement)
    by_hand.execute(shared_sql.partition("\n")[0])
    migrate(bare)
    grants = owner_sql_15 if requested_version() == 15 else owner_sql
    bare.execute(grants + shared_sql.partition("\n")[2], login="owner")
    expected = bare.rows(CLUSTER)
    by_hand.execute("DROP DATABASE shop")
    by_hand.execute(
        "DROP ROLE owner, app, app_shared, manager, tenants, tenants_admin,"
        " tenants_shared"
    )
    set_up(run, bare, "--app", "app")
    set_up(run, bare, "--app", "app_shared", "--isolation", "shared")
    migrate(bare)
    assert bare.rows(CLUSTER) == expected


def test_a_setup_by_migrations_is_repaired(run: Run, bare: Database) -> None:
    """What was installed by hand goes on working; what a login must not have goes."""
    by_hand = Database("postgres", bare.server)
    by_hand.execute(
        "CREATE ROLE owner LOGIN CREATEROLE; CREATE ROLE app LOGIN CREATEROLE;"
        "CREATE ROLE manager LOGIN"
    )
    by_hand.execute("CREATE DATABASE shop OWNER owner")
    migrate(bare)
    set_up(run, bare)
    attributes = "SELECT rolinherit, rolcreaterole FROM pg_roles WHERE rolname = %s"
    assert bare.rows(attributes, ["app"]) == [(False, False)]
    assert bare.rows(attributes, ["manager"]) == [(False, True)]
    # as the owner, who has to see the rows of all tenants
    bare.execute("INSERT INTO notes (tenant, body) VALUES ('acme', '')", login="owner")
    assert bare.rows("SELECT tenant FROM notes", login="owner") == [("acme",)]
    tenants = ("--url", bare.app_url, "--admin-url", bare.admin_url, "--models", MODELS)
    run("tenants", "create", "acme", *tenants)
    assert run("tenants", "list", *tenants).output == "acme\n"


def test_what_the_owner_inherits_stays(run: Run, bare: Database) -> None:
    """Without it, migrations would see no row."""
    postgres = Database("postgres", bare.server)
    postgres.execute(
        "CREATE ROLE owner LOGIN CREATEROLE; CREATE ROLE tenants_admin;"
        "GRANT tenants_admin TO owner"
    )
    set_up(run, bare)
    query = "SELECT pg_has_role('owner', %s, 'USAGE')"
    assert postgres.rows(query, ["tenants_admin"]) == [(True,)]
    assert postgres.rows(query, ["tenants"]) == [(False,)]


NAMES = {
    "database": 'Sh\'o\\p "x"',
    "owner": "o'w\\ner",
    "app": 'a"pp:x',
    "manager": ":'mana$tenancy$ger' -- x",
}


def test_names_that_need_quotes(run: Run, bare: Database) -> None:
    shop = Database(NAMES["database"], bare.server)
    options = [f"--{what}={name}" for what, name in NAMES.items() if what != "database"]
    for _ in range(2):
        set_up(run, shop, *options, "--hardened")
    migrate(shop, login=NAMES["owner"])
    (owner,) = shop.rows(
        "SELECT datdba::regrole = quote_ident(%s)::regrole FROM pg_database"
        " WHERE datname = current_database()",
        [NAMES["owner"]],
    )
    assert owner == (True,)
    url = make_url(shop.url(NAMES["app"])).render_as_string(hide_password=False)
    result = run("check", url, MODELS)
    assert "0 errors, 0 warnings" in result.output
    run(
        *("tenants", "create", "acme", "--models", MODELS),
        *("--url", url, "--admin-url", shop.url(NAMES["manager"])),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--app", "owner"], "three logins"),
        (["--app", "manager"], "three logins"),
        (["--app", "tenants"], "group role"),
        (["--manager", "tenant_x"], "group role or a tenant's"),
        (["--owner", "tenants_admin"], "group role"),
        (["--owner", "pg_owner"], "reserves"),
        (["--app", "a\nb"], "cannot be printed"),
        (["--app", "a\x1b[2J"], "cannot be printed"),
        (["--database", "x" * 64], "63 bytes"),
        (["--app", ""], "empty"),
        (["--server", "14"], "14"),
    ],
)
def test_names_that_are_refused(run: Run, options: list[str], message: str) -> None:
    result = run("setup", "--database", "shop", *options, status=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_names_of_a_tenancy(run: Run) -> None:
    Path("named_shop.py").write_text(
        "from sqlalchemy import MetaData\n"
        "from sqlalchemy_tenants import Tenancy\n"
        "metadata = MetaData(info={'tenancy': Tenancy.named('shop')})\n"
    )
    options = ("--database", "shop", "--models", "named_shop:metadata")
    script = run("setup", *options).output
    assert "GRANT shop_tenants_admin TO manager" in script
    assert not re.search(r"\btenants_admin", script)


def test_the_script_stops_where_it_is_not_meant_for(run: Run, bare: Database) -> None:
    postgres = Database("postgres", bare.server)

    def refused(script: str) -> str:
        before = postgres.rows(CLUSTER)
        done = psql(bare, script)
        assert done.returncode == 3
        assert postgres.rows(CLUSTER) == before
        return done.stderr

    other = "17" if SERVER != "17" else "16"
    script = run("setup", "--database", "shop", "--server", other).output
    assert f"this was printed for PostgreSQL {other}" in refused(script)
    script = run("setup", "--database", "shop", "--server", SERVER).output
    postgres.execute("CREATE ROLE somebody LOGIN CREATEROLE")
    script_of_somebody = f"SET SESSION AUTHORIZATION somebody;\n{script}"
    assert "a superuser has to run this" in refused(script_of_somebody)
    with_superuser = ("--server", SERVER, "--app", SUPERUSER)
    script = run("setup", "--database", "shop", *with_superuser).output
    assert f"{SUPERUSER} is a superuser" in refused(script)
    # logins are harmless, but another's database is not taken
    script = run("setup", "--database", "test", "--server", SERVER).output
    done = psql(bare, script)
    assert done.returncode == 3
    assert "database test has another owner" in done.stderr
    assert "ALTER DATABASE test OWNER TO owner" in done.stderr


def test_passwords_are_asked_for(run: Run) -> None:
    script = run("setup", "--database", "shop", "--app", "App").output
    assert script.endswith(
        '\\if :{?passwords}\n\\password "owner"\n\\password "App"\n'
        '\\password "manager"\n\\endif\n'
    )
