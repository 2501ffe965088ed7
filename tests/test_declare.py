"""Declaring tables: what is accepted, what is refused, and which index results."""

from __future__ import annotations

import enum
import itertools
import re
import uuid
from typing import Any, ClassVar

import pytest
from sqlalchemy import (
    CHAR,
    BigInteger,
    Column,
    DateTime,
    Enum,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    select,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    configure_mappers,
    mapped_column,
    registry,
)

from alembic_ext.ops import CreateTenancyOp, CreateTenantRoleOp, DropTenancyOp
from sqlalchemy_tenants import (
    Policy,
    Tenancy,
    TenantMixin,
    shared_table,
    tenant_column,
    with_rls,
)
from sqlalchemy_tenants.declare import SharedTable, TenantTable, mark_of, marks


@pytest.fixture
def base() -> type[Any]:
    class Base(DeclarativeBase):
        pass

    return Base


def table_with(*columns: Any, **kw: Any) -> Table:
    id_ = Column("id", Integer, primary_key=True)
    return Table("things", MetaData(), id_, *columns, **kw)


def index_columns(table: Table) -> list[list[str]]:
    return sorted([str(c.key) for c in index.columns] for index in table.indexes)


def test_a_class_is_marked_and_returned(base: Any) -> None:
    class Order(base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant: Mapped[str]

    assert with_rls(Order) is Order
    assert mark_of(Order.__table__) == TenantTable("tenant", "")
    assert list(marks(base.metadata)) == [(Order.__table__, TenantTable("tenant", ""))]


def test_the_decorator_takes_arguments(base: Any) -> None:
    policy = Policy("read_all", using="true", command="SELECT", permissive=False)

    @with_rls(tenant_column="org_id", policies=[policy])
    class Order(base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        org: Mapped[int] = mapped_column("org_id")

    assert mark_of(Order.__table__) == TenantTable("org_id", "::integer", (policy,))


def test_a_core_table_is_marked() -> None:
    table = table_with(Column("tenant", Text))
    assert with_rls(table) is table
    assert mark_of(table) == TenantTable("tenant", "")


def test_marks_stay_out_of_what_alembic_prints() -> None:
    table = table_with(Column("tenant", Text))
    with_rls(table)
    assert not table.info
    assert not table.c.tenant.info


class Wrapped(TypeDecorator[str]):
    impl = String
    cache_ok = True


@pytest.mark.parametrize(
    ("type_", "cast"),
    [
        (String(), ""),
        (String(20), ""),
        (Text(), ""),
        (Wrapped(), ""),
        (postgresql.VARCHAR(8), ""),
        (SmallInteger(), "::smallint"),
        (Integer(), "::integer"),
        (BigInteger(), "::bigint"),
        (Uuid(), "::uuid"),
        (postgresql.UUID(as_uuid=False), "::uuid"),
    ],
    ids=str,
)
def test_types_of_tenant_columns(type_: Any, cast: str) -> None:
    table = table_with(Column("tenant", type_))
    with_rls(table)
    assert mark_of(table) == TenantTable("tenant", cast)


@pytest.mark.parametrize(
    "type_",
    [
        CHAR(8),  # 'a' = 'a '
        postgresql.CITEXT(),  # 'a' = 'A'
        Enum("a", "b", name="e"),
        Enum(enum.Enum("E", "A B"), name="e2"),
        Uuid(native_uuid=False),
        Float(),
        DateTime(),
        postgresql.JSONB(),
    ],
    ids=str,
)
def test_other_types_are_refused(type_: Any) -> None:
    with pytest.raises(TypeError, match=r"'tenant' of table 'things'.*VARCHAR or TEXT"):
        with_rls(table_with(Column("tenant", type_)))


def test_a_column_with_another_key_is_named_as_in_the_database() -> None:
    table = table_with(Column("org", Text, key="tenant"))
    with_rls(table)
    assert mark_of(table) == TenantTable("org", "")


def test_a_missing_column_is_named() -> None:
    with pytest.raises(TypeError, match=r"'things' has no tenant column 'tenant'"):
        with_rls(table_with(Column("org", Text)))


def test_an_attribute_name_is_answered_with_its_column(base: Any) -> None:
    class Order(base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        org: Mapped[str] = mapped_column("org_id")

    with pytest.raises(TypeError, match=r"the attribute's column is 'org_id'"):
        with_rls(Order, tenant_column="org")


@pytest.mark.parametrize("mark", [with_rls, shared_table])
def test_what_is_neither_mapped_nor_a_table_is_refused(mark: Any, base: Any) -> None:
    class Plain:
        tenant = "x"

    for thing in (Plain, Plain(), 1, "orders", base):
        with pytest.raises(TypeError, match="takes a mapped class or a Table"):
            mark(thing)


def test_an_abstract_class_is_refused_and_its_heirs_are_marked(base: Any) -> None:
    class Owned(base):
        __abstract__ = True
        tenant: Mapped[str]

    with pytest.raises(TypeError, match="put @with_rls on each class that has one"):
        with_rls(Owned)

    @with_rls
    class Order(Owned):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)

    assert mark_of(Order.__table__) is not None


def test_a_class_that_is_mapped_to_a_query_is_refused() -> None:
    class Recent:
        pass

    mapper_registry = registry()
    query = select(table_with(Column("tenant", Text))).subquery()
    mapper_registry.map_imperatively(Recent, query, primary_key=[query.c.id])
    with pytest.raises(TypeError, match="Recent is mapped to Subquery, not to a table"):
        with_rls(Recent)


def test_single_table_inheritance_shares_the_mark(base: Any) -> None:
    @with_rls
    class Person(base):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        tenant: Mapped[str]
        __mapper_args__: ClassVar = {"polymorphic_on": "kind"}

    @with_rls
    class Manager(Person):
        __mapper_args__: ClassVar = {"polymorphic_identity": "manager"}

    configure_mappers()
    assert len(list(marks(base.metadata))) == 1
    assert index_columns(Person.__table__) == [["tenant"]]


def joined_child(base: Any, *, tenant: bool, mark: Any = with_rls) -> type[Any]:
    class Person(base):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        tenant: Mapped[str]
        __mapper_args__: ClassVar = {"polymorphic_on": "kind"}

    mark(Person)
    attributes: dict[str, Any] = {
        "__tablename__": "managers",
        "__mapper_args__": {"polymorphic_identity": "manager"},
        "id": mapped_column(ForeignKey("people.id"), primary_key=True),
    }
    if tenant:
        attributes["tenant"] = mapped_column(Text)
        attributes["__mapper_args__"]["exclude_properties"] = []
    return type("Manager", (Person,), attributes)


def test_a_joined_child_without_tenant_column_is_refused(base: Any) -> None:
    child = joined_child(base, tenant=False)
    with pytest.raises(
        TypeError, match=r"Manager inherits column 'tenant' from Person"
    ):
        with_rls(child)
    base.registry.dispose()


@pytest.mark.parametrize("mark", [with_rls, lambda model: with_rls(model.__table__)])
def test_a_joined_child_that_was_forgotten_is_refused(base: Any, mark: Any) -> None:
    joined_child(base, tenant=False, mark=mark)
    with pytest.raises(TypeError, match=r"its own table 'managers' has no mark"):
        base.registry.configure()
    base.registry.dispose()


def test_a_forgotten_heir_is_refused_past_a_table_that_is_shared(base: Any) -> None:
    child = shared_table(joined_child(base, tenant=False))
    attributes = {
        "__tablename__": "leads",
        "__mapper_args__": {"polymorphic_identity": "lead"},
        "id": mapped_column(ForeignKey("managers.id"), primary_key=True),
    }
    type("Lead", (child,), attributes)
    with pytest.raises(TypeError, match=r"Lead inherits from Person, .* 'leads' has"):
        base.registry.configure()
    base.registry.dispose()


def test_a_joined_child_of_a_shared_table_needs_no_mark(base: Any) -> None:
    joined_child(base, tenant=False, mark=shared_table)
    base.registry.configure()


@pytest.mark.filterwarnings("ignore:Implicitly combining column")
def test_a_joined_child_with_tenant_column_is_marked(base: Any) -> None:
    child = joined_child(base, tenant=True)
    with_rls(child)
    base.registry.configure()
    assert {table.name for table, mark in marks(base.metadata)} == {
        "people",
        "managers",
    }


def test_imperative_mapping() -> None:
    table = table_with(Column("tenant", Text))

    class Thing:
        pass

    mapper_registry = registry()
    mapper_registry.map_imperatively(Thing, table)
    with_rls(Thing)
    assert mark_of(table) is not None


@pytest.mark.parametrize(
    "parts",
    [
        [Column("tenant", Text, index=True)],
        [Column("tenant", Text), Index("ix", "tenant", "id")],
        [Column("tenant", Text), UniqueConstraint("tenant", "id")],
        [Column("tenant", Text, unique=True)],
    ],
)
def test_no_second_index(parts: list[Any]) -> None:
    table = table_with(*parts)
    before = len(table.indexes)
    with_rls(table)
    assert len(table.indexes) == before


def test_no_second_index_beside_a_primary_key_that_begins_with_the_tenant() -> None:
    table = Table(
        "things",
        MetaData(),
        Column("tenant", Text, primary_key=True),
        Column("id", Integer, primary_key=True),
    )
    with_rls(table)
    assert not table.indexes


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [Index("ix", "id", "tenant")],
        [UniqueConstraint("id", "tenant")],
        [Index("ix", "tenant", postgresql_where=text("id > 0"))],
    ],
)
def test_an_index_that_does_not_help_does_not_count(parts: list[Any]) -> None:
    table = table_with(Column("tenant", Text), *parts)
    with_rls(table)
    assert ["tenant"] in index_columns(table)
    assert any(index.name == "ix_things_tenant" for index in table.indexes), (
        "named as Column(index=True) names it"
    )


def test_the_index_can_be_left_out() -> None:
    table = table_with(Column("tenant", Text))
    with_rls(table, index=False)
    assert not table.indexes


def test_marking_twice_replaces_the_mark() -> None:
    table = table_with(Column("tenant", Text), Column("org", Text))
    with_rls(table)
    with_rls(table, tenant_column="org")
    assert mark_of(table) == TenantTable("org", "")


def test_a_shared_table() -> None:
    table = table_with()
    assert shared_table(table) is table
    assert mark_of(table) == SharedTable(("SELECT",))
    shared_table(table, privileges=["insert", "select"])
    assert mark_of(table) == SharedTable(("SELECT", "INSERT"))


@pytest.mark.parametrize("privileges", [[], ["TRUNCATE"], ["SELECT", "ALL"]])
def test_other_privileges_are_refused(privileges: list[str]) -> None:
    with pytest.raises(ValueError, match="privileges of a shared table are some of"):
        shared_table(table_with(), privileges=privileges)


def test_a_table_is_either_shared_or_of_tenants() -> None:
    table = shared_table(table_with(Column("tenant", Text)))
    with pytest.raises(TypeError, match="choose one"):
        with_rls(table)


def test_two_policies_of_one_name_are_refused() -> None:
    table = table_with(Column("tenant", Text))
    for name in ("mine", "tenant_floor"):
        policy = Policy(name, using="true")
        with pytest.raises(ValueError, match=f"two policies '{name}'"):
            with_rls(table, policies=[policy, Policy("mine", using="false")])


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"command": "TRUNCATE"}, "command 'TRUNCATE'"),
        ({"using": "true", "command": "INSERT"}, "takes with_check"),
        ({"with_check": "true", "command": "SELECT"}, "takes using"),
        ({"using": "true", "roles": []}, "roles is empty"),
    ],
)
def test_policies_that_postgresql_would_refuse(kw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy("p", **kw)


@pytest.mark.parametrize("name", ["", "p" * 64, "\u00e4" * 32])
def test_names_of_policies(name: str) -> None:
    with pytest.raises(ValueError, match=r"it is empty|more than 63 bytes"):
        Policy(name, using="true")


def test_a_policy_is_for_tenants_unless_it_says_otherwise() -> None:
    policies = (Policy("p", using="true"), Policy("q", using="true", roles="app"))
    mark = TenantTable("tenant", "", policies)
    own = {policy.name: policy.roles for policy in mark.policies(Tenancy())[-2:]}
    assert own == {"p": ("tenants",), "q": ("app",)}


def test_policies_take_sqlalchemy_expressions() -> None:
    table = table_with(Column("tenant", Text), Column("note", Text))
    policy = Policy("p", using=(table.c.note != "100%") & table.c.tenant.is_not(None))
    assert policy.using == "things.note != '100%' AND things.tenant IS NOT NULL"


def test_the_mixin_declares_the_column(base: Any) -> None:
    @with_rls
    class Order(TenantMixin, base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)

    column = Order.__table__.c.tenant
    assert not column.nullable
    assert str(column.server_default.arg) == "tenancy.current_tenant()"
    assert index_columns(Order.__table__) == [["tenant"]]


def test_the_mixin_follows_the_configuration() -> None:
    class Base(DeclarativeBase):
        metadata = MetaData(info={"tenancy": Tenancy(schema="my own")})

    class Order(TenantMixin, Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)

    default = Order.__table__.c.tenant.server_default.arg
    assert str(default) == '"my own".current_tenant()'


def test_tenant_columns_of_other_types(base: Any) -> None:
    class Order(base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant: Mapped[uuid.UUID] = tenant_column(Uuid)

    default = Order.__table__.c.tenant.server_default.arg
    assert str(default) == "(tenancy.current_tenant())::uuid"


def test_a_tenant_column_is_not_null_without_annotation_too(base: Any) -> None:
    class Order(base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant = tenant_column()

    assert not Order.__table__.c.tenant.nullable


def test_each_metadata_has_its_own_configuration() -> None:
    mine, other = Tenancy(schema="mine"), MetaData()
    metadata = mine.bind(MetaData())
    assert Tenancy.of(metadata) is mine
    assert Tenancy.of(other) == Tenancy()
    with pytest.raises(TypeError, match="is a str, not a Tenancy"):
        Tenancy.of(MetaData(info={"tenancy": "mine"}))


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"role_prefix": ""}, "not a PostgreSQL name"),
        ({"schema": "a\0b"}, "not a PostgreSQL name"),
        ({"tenants_role": "x" * 64}, "more than 63 bytes"),
        ({"schema": "pg_mine"}, "reserves the prefix"),
        ({"shared_role": "tenants"}, "distinct names"),
        ({"admin_role": "tenant_admin"}, "begins with the prefix of tenant roles"),
        ({"setting": "tenant"}, "joined by a dot"),
        ({"setting": "a.b; DROP"}, "joined by a dot"),
        ({"tenants": "acme"}, "collections"),
        ({"logins": "app"}, "collections"),
        ({"tenants": [""]}, "cannot be empty"),
    ],
)
def test_configurations_that_cannot_work(kw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tenancy(**kw)


def test_one_name_names_everything() -> None:
    tenancy = Tenancy.named("shop", tenants=["acme"], force=False)
    assert tenancy.role_for("acme") == "shop_tenant_acme"
    assert tenancy.group_roles == (
        "shop_tenants",
        "shop_tenants_shared",
        "shop_tenants_admin",
    )
    assert (tenancy.schema, tenancy.setting) == ("shop_tenancy", "shop_tenancy.tenant")
    assert (tenancy.tenants, tenancy.force) == (("acme",), False)
    assert Tenancy.named("shop", schema="mine").schema == "mine"


@pytest.mark.parametrize("name", ["Shop", "my shop", "1", "x" * 63, "pg", "tenant"])
def test_names_that_name_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=r"lower-case|63 bytes|reserves|in common"):
        Tenancy.named(name)


WHOLE = {
    "role_prefix": "shop_",
    "tenants_role": "all shops",
    "shared_role": "any shop",
    "admin_role": "every shop",
}
TAKEN = {
    "role_prefix": ["tenant_", "tenant_shop_", "tenant"],
    "tenants_role": ["tenants", "tenants_shared", "tenants_admin", "tenant_group"],
    "shared_role": ["tenants_shared", "tenants", "tenant_any"],
    "admin_role": ["tenants_admin", "tenant_admin"],
}


def test_roles_are_renamed_as_a_whole() -> None:
    Tenancy(**WHOLE)
    for count in range(1, len(WHOLE)):
        for names in itertools.combinations(WHOLE, count):
            half = {name: WHOLE[name] for name in names}
            with pytest.raises(
                ValueError, match=r"as Tenancy\.named\('shop'\) does"
            ) as e:
                Tenancy(**half)
            # what it says to write is taken, and keeps what was renamed
            advice = re.search(r"goes on with (Tenancy\(.*?\)), and", str(e.value))
            assert advice is not None
            whole = eval(advice[1])
            assert {name: getattr(whole, name) for name in names} == half


@pytest.mark.parametrize("name", WHOLE)
def test_no_role_is_common_with_the_default_names(name: str) -> None:
    for taken in TAKEN[name]:
        with pytest.raises(ValueError, match=f"{name}='{taken}'"):
            Tenancy(**{**WHOLE, name: taken})


def test_schema_and_setting_are_no_roles() -> None:
    Tenancy(schema="mine")
    Tenancy(setting="mine.tenant")


@pytest.mark.parametrize("role", ["tenants_role", "shared_role", "admin_role"])
def test_a_group_role_that_would_be_a_tenant_is_explained(role: str) -> None:
    names = {**WHOLE, role: "shop_shared"}
    with pytest.raises(
        ValueError, match=r"would be the role of tenant 'shared'.*as in 'shop_tenant_'"
    ):
        Tenancy(**names)
    Tenancy(**{**names, "role_prefix": "shop_tenant_"})


def test_migrations_keep_the_names_that_they_were_written_with() -> None:
    operation = CreateTenantRoleOp("x", role_prefix="t_")
    assert operation.role == "t_x"
    for cls in (CreateTenancyOp, DropTenancyOp):
        tenancy = cls(Tenancy.recorded(tenants_role="orgs")).tenancy
        assert tenancy.group_roles == ("orgs", "tenants_shared", "tenants_admin")
    with pytest.raises(ValueError, match="begins with the prefix"):
        Tenancy.recorded(role_prefix="t")


def test_roles_of_tenants_are_distinct() -> None:
    tenancy = Tenancy()
    tenants = ["a_tenant_b", "a_b", "A", "a", "1", "01", "tenant_x", "x", " x", "x "]
    roles = {tenancy.role_for(tenant) for tenant in tenants}
    assert len(roles) == len(tenants)
    assert [
        tenancy.tenant_of(tenancy.role_for(tenant)) for tenant in tenants
    ] == tenants


def test_members_of_enumerations_stand_for_their_values() -> None:
    class Name(str, enum.Enum):  # noqa: UP042 - whose str() is "Name.ACME"
        ACME = "acme"

    class Number(int, enum.Enum):
        SEVEN = 7

    assert Tenancy().role_for(Name.ACME) == "tenant_acme"
    assert Tenancy().role_for(Number.SEVEN) == "tenant_7"
