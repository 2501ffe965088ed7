"""Users' own policies: what a revision holds of them, and what is said of them."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from projects import Project, assert_migrates, downgrade_of, snapshot
from servers import Database
from test_drift_names import psql

LOGGER = "alembic.autogenerate.tenants"
FROZEN = f"{LOGGER}.constant-frozen"

MODELS = """
metadata = MetaData()
with_rls(Table(
    "orders", metadata, Column("id", Integer, primary_key=True),
    Column("tenant", Text, nullable=False), Column("item", Text), Column("day", Date),
    Column("kind", String(20)),
), policies=[{}])
Table("members", metadata, Column("id", Integer), Column("tenant", Text))
"""


def models(*conditions: str) -> str:
    policies = (f"Policy('p{n}', using={each!r})" for n, each in enumerate(conditions))
    return MODELS.format(", ".join(policies))


# --- what a revision holds -----------------------------------------------------------

FORMS = {
    "function": "auth.uid() = tenant",
    "enum": "item = 'a'::auth.status::text",
    "table": "EXISTS (SELECT FROM auth.people WHERE people.tenant = orders.tenant)",
    "operator": "item OPERATOR(auth.===) tenant",
    "regclass": "'auth.people'::regclass IS NOT NULL",
    "collation": "item > 'x' COLLATE auth.plain",
    "cast type": "item::auth.label = 'x'",
    "regproc": "'auth.uid'::regproc IS NOT NULL",
    "row type": "ROW(item)::auth.people IS NOT NULL",
    "array of a type": "item = ANY (('{a}'::auth.label[])::text[])",
    "regtype": "'auth.label'::regtype IS NOT NULL",
    "type in a function": "pg_typeof(NULL::auth.people) IS NOT NULL",
}
OBJECTS = """
CREATE FUNCTION {0}.uid() RETURNS text LANGUAGE sql RETURN 'a';
CREATE TYPE {0}.status AS ENUM ('a');
CREATE TABLE {0}.people (tenant text);
CREATE FUNCTION {0}.equal(text, text) RETURNS bool LANGUAGE sql RETURN $1 = $2;
CREATE OPERATOR {0}.=== (FUNCTION = {0}.equal, LEFTARG = text, RIGHTARG = text);
CREATE COLLATION {0}.plain FROM "C";
CREATE DOMAIN {0}.label AS text;
"""


@pytest.mark.parametrize("change", ["dropped", "altered", "recreated", "table dropped"])
def test_a_downgrade_binds_no_namesake(
    database: Database, tmp_path: Path, change: str
) -> None:
    """What the search path led to when the revision was written stands in full."""
    database.execute("CREATE SCHEMA auth AUTHORIZATION owner")
    database.execute("ALTER ROLE owner SET search_path = public, auth")
    database.execute(OBJECTS.format("auth"), login="owner")
    project = Project(tmp_path, database, models(*FORMS.values()))
    # what else is in the database is not the models'
    project.write_env(
        "options['include_name'] = lambda name, kind, parents: "
        "kind != 'table' or name in ('orders', 'members')"
    )
    project.migrate()
    assert project.is_up_to_date()
    before = snapshot(database)
    project.write_models(
        {
            "dropped": models(),
            "altered": models(*["id = 1"] * len(FORMS)),
            "recreated": models(*["id = 1"] * len(FORMS)).replace(
                "using='id = 1'", "with_check='id = 1'"
            ),
            "table dropped": "metadata = MetaData()\nTable('members', metadata,"
            " Column('id', Integer), Column('tenant', Text))",
        }[change]
    )
    source = project.migrate()
    assert "auth.uid()" in downgrade_of(source)
    database.execute(OBJECTS.format("public"), login="owner")
    namesakes = set(snapshot(database)) - set(before)
    project.must("downgrade", "-1")
    assert set(before) - set(snapshot(database)) == set()
    assert {line for line in snapshot(database) if line.startswith("policy")} == {
        line for line in before if line.startswith("policy")
    }
    assert namesakes
    assert project.is_up_to_date() is False  # uid() would be another one now


def test_a_downgrade_fails_where_the_object_is_gone(
    database: Database, tmp_path: Path
) -> None:
    database.execute("CREATE SCHEMA auth AUTHORIZATION owner")
    database.execute("ALTER ROLE owner SET search_path = public, auth")
    database.execute(OBJECTS.format("auth"), login="owner")
    project = Project(tmp_path, database, models("uid() = tenant"))
    project.write_env("options['include_name'] = lambda name, *_: name != 'people'")
    project.migrate()
    project.write_models(models())
    project.migrate()
    database.execute("ALTER FUNCTION auth.uid() SET SCHEMA public")
    with pytest.raises(Exception, match=r"auth\.uid"):
        project.run("downgrade", "-1")


def test_another_default_schema(database: Database, tmp_path: Path) -> None:
    """An upgrade means the tables of its own schema; the text that a downgrade restores
    names the schema where the revision was written, or fails."""
    condition = "EXISTS (SELECT FROM members m WHERE m.tenant = orders.tenant)"
    database.execute("CREATE SCHEMA shop AUTHORIZATION owner")
    project = Project(tmp_path, database, models(condition))
    project.migrate()
    project.write_models(models("id = 1"))
    source = project.migrate()
    assert "FROM public.members" in downgrade_of(source).replace("\n", " ")
    database.execute("ALTER ROLE owner SET search_path = shop")
    project.must("upgrade", "r001")
    assert policies(database)["shop.orders"].count("shop.members") == 1
    project.must("upgrade", "head")
    project.must("downgrade", "-1")
    assert policies(database)["shop.orders"].count("public.members") == 1
    project.must("upgrade", "head")
    database.execute("DROP TABLE public.members")
    with pytest.raises(Exception, match=r"public\.members"):
        project.run("downgrade", "-1")


def policies(database: Database) -> dict[str, str]:
    with database.server.connect(database.name) as connection:
        connection.execute("SET search_path = ''")
        return dict(
            connection.execute(
                "SELECT polrelid::regclass::text, pg_get_expr(polqual, polrelid)"
                " FROM pg_policy WHERE polname = 'p0'"
            ).fetchall()
        )


def test_autocommit(database: Database, tmp_path: Path) -> None:
    """The session keeps its search path and its settings there, too."""
    project = Project(tmp_path, database, models("id=1"))
    project.write_env(
        "create, kind = create_engine, {'isolation_level': 'AUTOCOMMIT'}\n"
        "create_engine = lambda *a, **kw: create(*a, **kw, **kind)\n"
        "def check(context, *args):\n"
        "    show = lambda name: context.connection.exec_driver_sql("
        "f'SHOW {name}').scalar_one()\n"
        "    assert show('search_path') == '\"$user\", public'\n"
        "    assert show('lock_timeout') == '0'\n"
        "options['process_revision_directives'] = check\n"
    )
    project.migrate()
    assert_migrates(project, models("id=2"))


@pytest.mark.parametrize("condition", ["id > 5 -- few", "id > 5 --", "item = '--'"])
def test_comments(database: Database, tmp_path: Path, condition: str) -> None:
    both = models(condition).replace(")])", f", with_check={condition!r})])")
    project = Project(tmp_path, database, models())
    project.migrate()
    assert_migrates(project, both)
    assert_migrates(project, both.replace("id > 5", "id > 6").replace("'--'", "'-'"))
    psql(database, project.must("downgrade", "--sql", "r003:r001"))
    psql(database, project.must("upgrade", "--sql", "r001:r003"))
    assert project.is_up_to_date()


# --- what is left alone --------------------------------------------------------------

OWN_SCHEMA = """
class Order(Base):
    __tablename__ = "orders"
    __table_args__ = {"schema": "crm"}
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    user_id: Mapped[int]
Other = aliased(Order)
with_rls(Order, policies=[
    Policy("p", using=func.public.holds(Order.user_id, "admin")),
    Policy("q", using=select(Other.id).where(Other.user_id == Order.user_id).exists()),
    Policy("r", using="seen(orders) AND EXISTS (SELECT 1 FROM crm.orders o"
           " WHERE o.id = crm.orders.id)"),
    Policy("s", using=Order.user_id.in_([1, 2]), with_check=Order.id > 5),
])
"""


def test_conditions_that_sqlalchemy_prints(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE SCHEMA crm AUTHORIZATION owner")
    database.execute(
        "CREATE FUNCTION holds(int, text) RETURNS bool LANGUAGE sql RETURN true;"
        "CREATE TABLE crm.orders (id serial PRIMARY KEY, tenant text NOT NULL,"
        " user_id int NOT NULL);"
        "CREATE FUNCTION seen(crm.orders) RETURNS bool LANGUAGE sql RETURN true",
        login="owner",
    )
    project = Project(
        tmp_path, database, OWN_SCHEMA, options="options['include_schemas'] = True"
    )
    project.migrate()
    assert project.is_up_to_date()
    for path in ("public, auth, storage, app", "crm, public", "public, tenancy"):
        database.execute(f"ALTER ROLE owner SET search_path = {path}")
        if path != "crm, public":  # where alembic would take crm for the default
            assert project.is_up_to_date()


@pytest.mark.parametrize(
    ("base", "type_"),
    [("text", "Text"), ("varchar(9)", "Text"), ("integer", "Integer"),
     ("bigint", "BigInteger"), ("smallint", "SmallInteger"), ("uuid", "Uuid")],
)  # fmt: skip
def test_tenant_columns_of_domains(
    database: Database, tmp_path: Path, base: str, type_: str
) -> None:
    """The database may have a domain where the models have its base type."""
    source = MODELS.format("Policy('p', using='tenant IS NOT NULL')").replace(
        'Column("tenant", Text, nullable=False)',
        f'Column("tenant", {type_}, nullable=False)',
    )
    project = Project(tmp_path, database, source)
    project.write_env("options['compare_type'] = False")
    database.execute(
        f"CREATE DOMAIN account AS {base}; CREATE TABLE orders (id serial PRIMARY KEY,"
        " tenant account NOT NULL, item text, day date, kind varchar(20));",
        login="owner",
    )
    project.migrate()
    assert project.is_up_to_date()


# --- what is said --------------------------------------------------------------------


def test_one_warning_for_what_cannot_be_told(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    conditions = ["kind = 'x' AND id=1", "item LIKE 'a%'", "day = '2020-01-01'"]
    both = models(*conditions).replace("%'\")", "%'\", with_check='id%2=0')")
    project = Project(tmp_path, database, both)
    project.migrate()
    database.execute("ALTER ROLE owner SET default_transaction_read_only = on")
    caplog.clear()
    with caplog.at_level(logging.WARNING, LOGGER):
        assert project.run("check").status != 0
    (message,) = [each.getMessage() for each in caplog.records if each.name == LOGGER]
    for part in (
        "'p1'", "'orders'", "(item ~~ 'a%'::text)", "item LIKE 'a%'", "id%2=0",
        "((id % 2) = 0)", "read-only transaction",
    ):  # fmt: skip
        assert part in message


def test_a_condition_on_a_new_column_is_no_news(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = Project(tmp_path, database, models("id = 1"))
    project.migrate()
    caplog.clear()
    added = models("other = 1").replace(
        'Column("day", Date)', 'Column("day", Date), Column("other", Integer)'
    )
    with caplog.at_level(logging.WARNING, LOGGER):
        assert_migrates(project, added)
    assert [each for each in caplog.records if each.name == LOGGER] == []


@pytest.mark.parametrize(
    ("condition", "at_first", "later"),
    [
        ("day = 'today'::date", True, True),
        ("day = 'today'", False, True),
        ("item = 'today'", False, False),
        ("day = 'now'::text::date", False, False),
    ],
)
def test_constants_that_change(
    database: Database,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    condition: str,
    at_first: bool,
    later: bool,
) -> None:
    project = Project(tmp_path, database, models(condition))
    for expected in (at_first, later):
        caplog.clear()
        with caplog.at_level(logging.WARNING, LOGGER):
            project.run("check")
        found = [each.getMessage() for each in caplog.records if each.name == FROZEN]
        assert len(found) == expected
        assert all(re.search("'p0'.*'orders'.*'today'", each) for each in found)
        if not later:
            break
        if expected is at_first:
            project.migrate()


def test_statements(database: Database, tmp_path: Path) -> None:
    """The statements of a check are the same, however many policies there are."""
    counts = []
    statements: list[str] = []

    def count(
        connection: object, cursor: object, statement: str, *rest: object
    ) -> None:
        statements.append(statement)

    for number in (0, 1, 200):
        conditions = [f"id={n} OR item IN ('a', 'b')" for n in range(number)]
        (tmp_path / str(number)).mkdir()
        database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        database.execute("ALTER SCHEMA public OWNER TO owner")
        database.execute("DROP SCHEMA IF EXISTS tenancy CASCADE")
        project = Project(tmp_path / str(number), database, models(*conditions))
        project.migrate()
        statements.clear()
        event.listen(Engine, "before_cursor_execute", count)
        assert project.is_up_to_date()
        event.remove(Engine, "before_cursor_execute", count)
        counts.append(len(statements))
    assert counts[1] == counts[2] <= counts[0] + 4
