"""What all operations have in common: registration, rendering's data, and execution.

An operation is a dataclass. Its fields are the parameters of its directive, in the
order in which they are rendered, and its docstring is the directive's. What it does is
the statements that it returns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import MetaData
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sqlalchemy_tenants.arguments import require_flag, require_name
from sqlalchemy_tenants.policies import quote_qualified
from sqlalchemy_tenants.tenancy import FUNCTION_NAME, FUNCTIONS

from .notes import Notes

_Op = TypeVar("_Op", bound="type[TenancyOp]")
_Other = TypeVar("_Other", bound="TenancyOp")

#: A field that is checked as a name of PostgreSQL.
Name: TypeAlias = str
#: A field that is checked as True or False.
Flag: TypeAlias = bool


class TenancyOp(MigrateOperation):
    """Base of all operations here."""

    #: Name of the function in ``alembic.op``.
    directive: ClassVar[str]
    #: Fields that only the reverse needs: the directive has no such parameter.
    reverse_only: ClassVar[tuple[str, ...]] = ()
    #: Fields that have another name in the directive.
    renamed: ClassVar[dict[str, str]] = {}
    #: What messages call a field, where that is not its name.
    labels: ClassVar[dict[str, str]] = {}

    @classmethod
    def from_directive(cls, *args: Any, **kw: Any) -> Self:
        """Return the operation, from the arguments of its directive.

        A class overrides it where it keeps these arguments as one object.
        """
        return cls(*args, **kw)

    def __post_init__(self) -> None:
        """Check names and flags, which are annotated as such."""
        for each in fields(self):  # type: ignore[arg-type]
            check = _CHECKS.get(str(each.type))
            if check is not None:
                what = self.labels.get(each.name, each.name)
                setattr(self, each.name, check(what, getattr(self, each.name)))

    def statements(self, notes: Notes) -> Iterable[str]:
        """Return the SQL, one statement each: asyncpg prepares them one by one.

        Nothing is asked of the database first, so that ``--sql`` works. Where something
        depends on its state, the server decides, in a ``DO`` block.

        :param notes: where to note what an operation did to roles.
        """
        raise NotImplementedError

    def require_fit(self, collections: Iterable[MetaData] | None) -> None:
        """Refuse what the models of ``env.py`` show to be wrong.

        :param collections: ``None`` where they are not known.
        """

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and keyword arguments of the directive, as rendered."""
        args: list[Any] = []
        kw: dict[str, Any] = {}
        for each in fields(self):  # type: ignore[arg-type]
            if each.name in self.reverse_only:
                continue
            value = _listed(getattr(self, each.name))
            if not each.kw_only:
                args.append(value)
            elif value != _listed(each.default):
                kw[self.renamed.get(each.name, each.name)] = value
        return args, kw

    def converted(self, cls: type[_Other], **changes: Any) -> _Other:
        """Return an operation with the fields of this one, but for ``changes``."""
        values = {
            each.name: getattr(self, each.name)
            for each in fields(self)  # type: ignore[arg-type]
        }
        return cls(**{**values, **changes})

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what ``alembic check`` prints."""
        args, kw = self.arguments()
        return (self.directive, *args, kw)


def optional_name(what: str, name: str | None) -> str | None:
    """Return ``name`` if it is ``None`` or PostgreSQL takes it as a name."""
    return None if name is None else require_name(what, name)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "Name": require_name,
    "Name | None": optional_name,
    "Flag": require_flag,
}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class Statement(ExecutableDDLElement):
    """A statement of an operation; other dialects than PostgreSQL refuse it."""

    def __init__(self, text: str, directive: str) -> None:
        self.text = text
        self.directive = directive


@compiles(Statement)
def _refuse(element: Statement, compiler: DDLCompiler, **kw: Any) -> str:
    raise CompileError(
        f"op.{element.directive}() needs PostgreSQL; {compiler.dialect.name} has no "
        f"row-level security"
    )


@compiles(Statement, "postgresql")
def _compile(element: Statement, compiler: DDLCompiler, **kw: Any) -> str:
    # doubles percent signs where the driver's paramstyle needs it
    text: str = compiler.sql_compiler.post_process_text(  # type: ignore[no-untyped-call]
        element.text
    )
    return text


@Operations.implementation_for(TenancyOp)
def execute(operations: Operations, operation: TenancyOp) -> None:
    """Execute an operation, whichever it is: Alembic looks base classes up, too."""
    context = operations.migration_context
    metadata = context.opts.get("target_metadata")
    operation.require_fit([metadata] if isinstance(metadata, MetaData) else metadata)
    version_table = quote_qualified(context.version_table_schema, context.version_table)
    for text in operation.statements(Notes("TABLE", version_table)):
        context.impl.execute(Statement(text, operation.directive))


_directives: dict[str, Any] = {}


def taken_directives() -> set[str]:
    """Return the names of directives that another package has registered since."""
    return {
        name
        for name, function in _directives.items()
        if getattr(Operations, name) is not function
    }


def directive(name: str) -> Callable[[_Op], _Op]:
    """Register an operation as ``op.name()``, with its parameters and docstring."""

    def register(cls: _Op) -> _Op:
        signature = _signature(cls)
        names = {new: old for old, new in cls.renamed.items()}

        # Alembic asks for these two names, and repeats the rest in its own function
        def invoke(cls: type[TenancyOp], operations: Operations, *args, **kw):  # type: ignore[no-untyped-def]
            signature.bind(*args, **kw)
            kw = {names.get(key, key): value for key, value in kw.items()}
            operations.invoke(cls.from_directive(*args, **kw))

        invoke.__name__, invoke.__doc__ = name, cls.__doc__
        cls.directive = name
        setattr(cls, name, classmethod(invoke))
        Operations.register_operation(name)(cls)
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [this, *signature.parameters.values()]
        function = getattr(Operations, name)
        function.__signature__ = signature.replace(parameters=parameters)
        _directives[name] = function
        return cls

    return register


def _signature(cls: type[TenancyOp]) -> inspect.Signature:
    is_overridden = "from_directive" in {
        each
        for base in cls.__mro__[:-1]
        if base is not TenancyOp
        for each in vars(base)
    }
    signature = inspect.signature(cls.from_directive if is_overridden else cls)
    parameters = [
        parameter.replace(name=cls.renamed.get(name, name))
        for name, parameter in signature.parameters.items()
        if name not in cls.reverse_only
    ]
    return signature.replace(parameters=parameters, return_annotation=None)


def function_name(schema: str, name: str = FUNCTION_NAME) -> str:
    """Return one of our functions as DDL names it."""
    return f"{quote_qualified(schema, name)}({FUNCTIONS[name]})"


def signature(name: str) -> str:
    """Return one of our functions as ``grant_privileges`` names it."""
    return f"{name}({FUNCTIONS[name]})" if FUNCTIONS[name] else name
