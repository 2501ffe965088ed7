"""ORM statements that name their tenant: tenant_criteria=True."""

from __future__ import annotations

import asyncio
import pickle
import re
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Integer,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    delete,
    event,
    func,
    insert,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    aliased,
    joinedload,
    mapped_column,
    registry,
    relationship,
    selectinload,
    subqueryload,
    with_polymorphic,
)
from sqlalchemy.orm import join as orm_join
from sqlalchemy.orm import outerjoin as orm_outerjoin
from sqlalchemy.types import TypeDecorator

from servers import Database
from sqlalchemy_tenants import AdminSession, TenantSession, shared_table, with_rls
from sqlalchemy_tenants.aio import AsyncTenantSession
from tenancy import (  # noqa: F401
    Note,
    World,
    driver_fixture,
    migrate,
    on_each_driver,
)


class Code(TypeDecorator[str]):
    """What the application sees is not what the database has."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value if value is None else value.removeprefix("code ")

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return f"code {value}"


class Base(DeclarativeBase):
    pass


@with_rls(tenant_column="org")
class Project(Base):
    """The attribute has another name than its column."""

    __tablename__ = "projects"
    __table_args__ = (UniqueConstraint("org", "id"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    organisation: Mapped[str] = mapped_column("org", Text)
    tasks: Mapped[list[Task]] = relationship(back_populates="project")


@with_rls(tenant_column="account")
class Task(Base):
    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    account: Mapped[int] = mapped_column(Integer)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    project: Mapped[Project] = relationship(back_populates="tasks")


@with_rls
class Vehicle(Base):
    __tablename__ = "vehicles"
    __table_args__ = (UniqueConstraint("tenant", "id"),)
    __mapper_args__: ClassVar = {
        "polymorphic_on": "kind",
        "polymorphic_identity": "vehicle",
    }

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(20))
    kind: Mapped[str]


@with_rls
class Car(Vehicle):
    """Joined inheritance: each table has its tenant."""

    __tablename__ = "cars"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "id"], ["vehicles.tenant", "vehicles.id"]),
    )
    __mapper_args__: ClassVar = {"polymorphic_identity": "car"}

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(20))


class Boat(Vehicle):
    """Single-table inheritance."""

    __mapper_args__: ClassVar = {"polymorphic_identity": "boat"}


@shared_table
class Country(Base):
    __tablename__ = "countries"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")
    projects: Mapped[list[Project]] = relationship(
        primaryjoin="foreign(Project.id) >= Country.id", viewonly=True
    )


class Unmarked(Base):
    __tablename__ = "unmarked"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]


TYPES: dict[str, Any] = {
    "text": Text(),
    "varchar": String(20),
    "smallint": SmallInteger(),
    "integer": Integer(),
    "bigint": BigInteger(),
    "uuid": Uuid(),
    "uuid-as-text": Uuid(as_uuid=False),
    "text-domain": DOMAIN("code", Text(), create_type=False),
    "integer-domain": DOMAIN("number", Integer(), create_type=False),
    "decorated": Code(),
}

# A registry of its own, without a base class.
others = registry(metadata=Base.metadata)


def _model(name: str, type_: Any) -> Any:
    table = Table(
        f"each_{name.replace('-', '_')}",
        others.metadata,
        Column("id", Integer, Identity(), primary_key=True),
        Column("whose", type_, nullable=False),
    )
    model = type(name, (), {})
    others.map_imperatively(model, table)
    return with_rls(model, tenant_column="whose")


EACH = {name: _model(name, type_) for name, type_ in TYPES.items()}

ONE, TWO = "1", "2"
UUIDS = (str(uuid.UUID(int=1)), str(uuid.UUID(int=2)))


@pytest.fixture(name="filled")
def filled_fixture(database: Database) -> Database:
    database.execute(
        "CREATE DOMAIN code AS text; CREATE DOMAIN number AS integer", login="owner"
    )
    migrate(database, Base.metadata)
    database.execute("GRANT SELECT ON unmarked, countries TO tenants")
    database.execute("INSERT INTO countries VALUES (1, ''); ")
    for tenant, number in ((ONE, 1), (TWO, 2), *((each, None) for each in UUIDS)):
        database.execute(
            f'CREATE ROLE "tenant_{tenant}" IN ROLE tenants;'
            f'GRANT "tenant_{tenant}" TO app'
        )
        if number is None:
            continue
        database.execute(
            f"INSERT INTO projects VALUES (DEFAULT, '{tenant}');"
            f"INSERT INTO tasks VALUES (DEFAULT, {number}, {number});"
            f"INSERT INTO vehicles VALUES (DEFAULT, '{tenant}', 'boat'),"
            f" (DEFAULT, '{tenant}', 'car');"
            f"INSERT INTO cars SELECT id, tenant FROM vehicles"
            f" WHERE kind = 'car' AND tenant = '{tenant}'"
        )
    for name in TYPES:
        for tenant in UUIDS if "uuid" in name else (ONE, TWO):
            table = EACH[name].__table__
            database.execute(f"INSERT INTO {table} VALUES (DEFAULT, '{tenant}')")
    return database


@pytest.fixture(name="world")
def own_world_fixture(filled: Database, driver: str) -> World:
    return World(filled, driver, "role")


class Sent:
    """What an engine sends: texts and parameters."""

    def __init__(self, engine: Engine) -> None:
        self.statements: list[tuple[str, tuple[Any, ...]]] = []

        @event.listens_for(engine, "before_cursor_execute")
        def record(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            parameters = rest[0]
            if isinstance(parameters, dict):
                parameters = parameters.values()
            line = " ".join(statement.split())
            self.statements.append((line, tuple(parameters)))

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        taken, self.statements = self.statements, []
        ours = ("SELECT", "UPDATE", "DELETE", "WITH")
        return [each for each in taken if each[0].startswith(ours)]


def named(statement: str) -> int:
    """How often a statement compares a tenant column with a parameter."""
    columns = r"(org|account|tenant|whose) = [$%]"
    return len(re.findall(columns, statement))


@on_each_driver
def test_each_type_gets_its_value(world: World) -> None:
    engine = world.engine()
    sent = Sent(engine)
    for _ in range(2):  # in turns: what is kept of a statement keeps no tenant
        for index, tenants in ((0, (ONE, UUIDS[0])), (1, (TWO, UUIDS[1]))):
            for name, model in EACH.items():
                tenant = tenants["uuid" in name]
                with world.session(tenant, engine, tenant_criteria=True) as session:
                    (row,) = session.scalars(select(model))
                    assert str(row.whose).removeprefix("code ") == tenant
                ((statement, parameters),) = sent.take()
                assert named(statement) == 1
                kind = type(parameters[0])
                assert len(parameters) == 1
                expected: Any = tenant
                if name in ("smallint", "integer", "bigint", "integer-domain"):
                    expected = index + 1
                assert kind is uuid.UUID or parameters[0] == expected, parameters
                assert str(parameters[0]) == tenant


@on_each_driver
def test_what_names_its_tenant(world: World) -> None:
    engine = world.engine()
    sent = Sent(engine)
    alias = aliased(Task)
    vehicles = with_polymorphic(Vehicle, "*")
    cte = select(Task).cte()
    # with how many conditions of a tenant each of its statements has
    each: list[tuple[Any, list[int]]] = [
        (select(Project), [1]),
        (select(Project.id).where(Project.id > 0), [1]),
        (select(alias), [1]),
        (select(Project, alias).join(Project.tasks.of_type(alias)), [2]),
        (select(Project).join(Task, Task.project_id == Project.id), [2]),
        (select(Project).outerjoin(Project.tasks), [2]),
        (select(Project).where(Project.id.in_(select(Task.project_id))), [2]),
        (select(cte.c.id), [1]),
        (union_all(select(Project.id), select(Task.id)), [2]),
        (select(Project).options(joinedload(Project.tasks)), [1]),
        (select(Project).options(selectinload(Project.tasks)), [1, 1]),
        (select(Project).options(subqueryload(Project.tasks)), [1, 2]),
        (select(func.count()).select_from(Task), [1]),
        (select(Vehicle), [1]),
        (select(vehicles), [1]),
        (select(Car), [1]),
        (select(Boat), [1]),
        (update(Task).values(project_id=Task.project_id), [1]),
        (delete(Task), [1]),
        (select(Country), [0]),
        (select(Unmarked), [0]),
        (select(Country, Project).join(Project, Project.id > 0), [1]),
        (select(Project.__table__), [0]),  # Core
        (text("SELECT id FROM projects"), [0]),
    ]
    for tenant in (ONE, TWO, ONE):
        with world.session(tenant, engine, tenant_criteria=True) as session:
            for statement, counts in each:
                session.connection()
                sent.take()
                result = session.execute(statement)
                if getattr(result, "returns_rows", True):
                    result.unique().all()
                taken = sent.take()
                assert [named(line) for line, _ in taken] == counts, taken
                for line, parameters in taken:
                    if named(line):
                        assert {str(p) for p in parameters} >= {tenant}, taken
                        other = TWO if tenant == ONE else ONE
                        assert other not in map(str, parameters) or "id" in line
                session.rollback()


@on_each_driver
def test_loads_of_one_object(world: World) -> None:
    engine = world.engine()
    sent = Sent(engine)
    for tenant, id_, other in ((ONE, 1, 2), (TWO, 2, 1), (ONE, 1, 2)):
        with world.session(tenant, engine, tenant_criteria=True) as session:
            project = session.get(Project, id_)
            assert project is not None
            assert session.get(Project, other) is None
            assert [named(line) for line, _ in sent.take()] == [1, 1]
            (task,) = project.tasks  # lazy
            assert task.account == id_
            assert [named(line) for line, _ in sent.take()] == [1]
            session.expunge(project)
            session.expire(task)
            assert task.project.organisation == tenant
            assert session.get(Task, task.id, populate_existing=True) is task
            session.refresh(task)
            (car,) = session.scalars(select(Car))
            assert (car.tenant, car.kind) == (tenant, "car")
            assert {type(each) for each in session.scalars(select(Vehicle))} == {
                Car,
                Boat,
            }
            assert session.query(Task).count() == 1
            sent.take()


nothing = Task.project_id == Project.id + 100
first, second = aliased(Task), aliased(Task)
unowned = aliased(Task, select(Task.id, Task.project_id).subquery())
everything = with_polymorphic(Vehicle, "*")
outer = select(Task, Project.id.label("of"))
outer = outer.select_from(orm_outerjoin(Project, Task, nothing))

#: What outer joins keep, and what subqueries do not have.
OPTIONAL: dict[str, Any] = {
    "outerjoin()": select(Project.id, Task.id).outerjoin(Task, nothing),
    "full join()": select(Project.id, Task.id).join(Task, nothing, full=True),
    "join after full": select(Project.id, Task.id, Country.id)
    .join(Task, nothing, full=True)
    .join(Country, Country.id == Project.id + 100, full=True),
    "orm.outerjoin": select(Project.id, Task.id).select_from(
        orm_outerjoin(Project, Task, nothing)
    ),
    "objects": select(Project, Task).select_from(orm_outerjoin(Project, Task, nothing)),
    "tables": select(Project.id, Task.id).select_from(
        Project.__table__.outerjoin(Task.__table__, nothing)
    ),
    "full, of aliases": select(first.id, second.id).select_from(
        orm_outerjoin(first, second, first.id == second.id + 100, full=True)
    ),
    "a join on the right": select(Country.id, Project.id, Task.id).select_from(
        orm_outerjoin(Country, orm_join(Project, Task, Project.tasks), Project.id > 100)
    ),
    "in a subquery": select(func.count()).select_from(outer.subquery()),
    "of a subquery": select(aliased(Task, subquery := outer.subquery()), subquery.c.of),
    "around a subquery": select(
        Project.id, select(func.coalesce(Task.id, -1)).correlate(Task).scalar_subquery()
    ).outerjoin(Task, nothing),
    "subclasses": select(everything.id, everything.Car.tenant),
    "joined subclass": select(Project.id, Car.id).outerjoin(Car, Car.id > 100),
    "alias of a subquery": select(unowned.id),
    "join to one": select(Project.id, unowned.id).outerjoin(
        unowned, unowned.project_id == Project.id
    ),
}


@pytest.mark.parametrize("driver", ["psycopg"])
@on_each_driver
def test_no_result_changes(world: World) -> None:
    """What may be NULL beside a row that an outer join keeps is not compared."""
    engine = world.engine()
    sent = Sent(engine)

    def results(tenant: str, **kw: Any) -> dict[str, list[str]]:
        found = {}
        with world.session(tenant, engine, **kw) as session:
            for name, statement in OPTIONAL.items():
                rows = [
                    [getattr(each, "id", each) for each in row]
                    for row in session.execute(statement)
                ]
                assert rows
                found[name] = sorted(map(str, rows))
        return found

    for tenant in (ONE, TWO, ONE):
        without = results(tenant)
        sent.take()
        assert results(tenant, tenant_criteria=True) == without
        counts = dict(
            zip(OPTIONAL, (named(each) for each, _ in sent.take()), strict=True)
        )
        assert counts["outerjoin()"] == 2  # where a join has its own ON
        assert counts["full join()"] == counts["orm.outerjoin"] == 1
        assert counts["full, of aliases"] == 0
        assert counts["alias of a subquery"] == 1  # within


@pytest.mark.parametrize("driver", ["psycopg"])
@on_each_driver
def test_objects_keep_no_condition(world: World) -> None:
    """Of shared tables they may go on in another session, or in a cache."""
    world.database.execute("GRANT tenants_admin TO manager")
    engine = world.engine()
    with world.session(ONE, engine, tenant_criteria=True) as session:
        country = session.scalars(select(Country)).one()
        session.expunge_all()
    country = pickle.loads(pickle.dumps(country))
    for tenant in (TWO, ONE):
        with world.session(tenant, engine, tenant_criteria=True) as session:
            session.add(country)
            assert [each.organisation for each in country.projects] == [tenant]
            session.expire(country)
            assert country.name == ""
            session.expunge_all()
    with AdminSession(world.engine("manager"), schema="public") as admin:
        admin.add(country)
        admin.expire(country, ["projects"])
        assert {each.organisation for each in country.projects} == {ONE, TWO}


@on_each_driver
def test_bulk_statements(world: World) -> None:
    with world.session(ONE, world.engine(), tenant_criteria=True) as session:
        session.execute(insert(Project), [{"organisation": ONE}, {"organisation": ONE}])
        ids = session.scalars(select(Project.id).order_by(Project.id)).all()
        assert len(ids) == 3
        rows = [{"id": each, "organisation": ONE} for each in ids]
        session.execute(update(Project), rows)
        returned = session.scalars(
            update(Project).values(organisation=ONE).returning(Project)
        ).all()
        assert len(returned) == 3
        session.execute(delete(Project).where(Project.id == ids[-1]))
        assert session.query(Project).update({"organisation": ONE}) == 2


@on_each_driver
def test_the_policies_hold_all_the_same(world: World) -> None:
    """The criteria add to the policies, and to the statement's own conditions."""
    with world.session(ONE, world.engine(), tenant_criteria=True) as session:
        other = select(Project).where(Project.organisation == TWO)
        assert session.scalars(other).all() == []
        assert len(session.execute(text("TABLE projects")).all()) == 1


@on_each_driver
def test_a_tenant_that_no_column_holds(world: World) -> None:
    """As the policy would, it finds nothing, or an error: never another tenant."""
    world.database.execute("CREATE ROLE tenant_acme IN ROLE tenants")
    world.database.execute("GRANT tenant_acme TO app")
    with world.session("acme", world.engine(), tenant_criteria=True) as session:
        assert session.scalars(select(Project)).all() == []
        with suppress(DBAPIError):
            assert session.scalars(select(Task)).all() == []


@on_each_driver
def test_without_it_statements_stay_as_they_are(world: World) -> None:
    engine = world.engine()
    sent = Sent(engine)
    with world.session(ONE, engine) as session:
        session.execute(select(Project.id))
    assert sent.take() == [("SELECT projects.id FROM projects", ())]


@on_each_driver
def test_admin_sessions(world: World) -> None:
    world.database.execute("GRANT tenants_admin TO manager")
    engine = world.engine("manager")
    sent = Sent(engine)
    count = select(func.count()).select_from(Task)
    for tenant, rows in ((None, 2), (2, 1), (None, 2), (1, 1)):
        with AdminSession(engine, tenant=tenant, tenant_criteria=True) as session:
            assert session.scalar(count) == rows
            assert [named(line) for line, _ in sent.take()] == [int(rows == 1)]


@on_each_driver
def test_a_function_as_tenant(world: World) -> None:
    tenants = [ONE]
    engine = world.engine()
    with TenantSession(
        engine, tenant=lambda: tenants[0], schema="public", tenant_criteria=True
    ) as session:
        for tenant in (ONE, TWO, ONE):
            tenants[0] = tenant
            (task,) = session.scalars(select(Task))
            assert task.account == int(tenant)
            assert task.project.organisation == tenant
            session.commit()


def test_threads(filled: Database, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(filled.app_url)

    def work(tenant: str) -> set[str]:
        seen = set()
        for _ in range(20):
            with TenantSession(
                engine, tenant=tenant, schema="public", tenant_criteria=True
            ) as session:
                loaded = select(Project).options(joinedload(Project.tasks))
                for project in session.scalars(loaded).unique():
                    seen |= {
                        project.organisation,
                        *(str(t.account) for t in project.tasks),
                    }
                    assert project.tasks
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, [ONE, TWO] * 2)) == [{ONE}, {TWO}] * 2


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_async_tasks(
    filled: Database, driver: str, make_async_engine: Callable[..., AsyncEngine]
) -> None:
    """Interleaved, two tenants share what is kept of a statement."""
    engine = make_async_engine(filled.url("app", driver))
    sent = Sent(engine.sync_engine)

    async def work(tenant: str) -> None:
        for _ in range(10):
            async with AsyncTenantSession(
                engine, tenant=tenant, schema="public", tenant_criteria=True
            ) as session:
                loaded = select(Project).options(selectinload(Project.tasks))
                (project,) = (await session.scalars(loaded)).all()
                assert project.organisation == tenant
                assert [each.account for each in project.tasks] == [int(tenant)]

    await asyncio.gather(*(work(tenant) for tenant in [ONE, TWO] * 2))
    assert {named(line) for line, _ in sent.take()} == {1}


@on_each_driver
def test_another_metadata(world: World) -> None:
    """Marks are those of each MetaData; these tables are not even in this database."""
    engine = world.engine()
    sent = Sent(engine)
    with world.session(ONE, engine, tenant_criteria=True) as session:
        with pytest.raises(DBAPIError, match="notes"):
            session.execute(select(Note))
        assert [named(line) for line, _ in sent.take()] == [1]


def test_it_is_a_flag() -> None:
    with pytest.raises(TypeError, match="tenant_criteria is True or False"):
        TenantSession(tenant="acme", tenant_criteria="no")
