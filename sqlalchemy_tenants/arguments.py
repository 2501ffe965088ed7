"""Arguments of public functions: what is refused at once, by name, before anything is
done with it."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.sql.elements import quoted_name

#: Bytes of a PostgreSQL identifier (``NAMEDATALEN - 1``); the server cuts longer
#: names without an error, and two tenants would share a role.
MAX_IDENTIFIER_BYTES = 63


def require_name(what: str, name: object) -> str:
    """Return ``name`` if PostgreSQL takes it as a name, all of it.

    :param what: what it is the name of, as in ``"schema"``.
    :raises TypeError: not a string.
    :raises ValueError: empty, too long, with NUL, or not encodable as UTF-8.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"{what} {name!r} is not a PostgreSQL name: it is no str but "
            f"{type(name).__name__}"
        )
    if not name:
        raise ValueError(f"{what} '' is not a PostgreSQL name: it is empty")
    require_text(what, name, "is not a PostgreSQL name")
    if len(name.encode()) > MAX_IDENTIFIER_BYTES:
        raise ValueError(
            f"{what} {name!r} has more than {MAX_IDENTIFIER_BYTES} bytes; PostgreSQL "
            f"would cut it"
        )
    # the unbound method, because a (str, Enum) member formats as "Class.member"
    return name if isinstance(name, quoted_name) else str.__str__(name)


def require_names(what: str, names: str | Iterable[str]) -> list[str]:
    """Return one or several names as a list; see :func:`require_name`.

    :raises TypeError: neither a string nor a collection of strings.
    """
    if isinstance(names, str):
        return [require_name(what, names)]
    if not isinstance(names, Iterable):
        raise TypeError(f"{what}: {names!r} is neither a name nor a list of names")
    return [require_name(what, name) for name in names]


def require_text(what: str, text: str, problem: str) -> None:
    """Refuse a text that the server could not read.

    :raises ValueError: it has a NUL character, or is not encodable as UTF-8.
    """
    if "\0" in text:
        raise ValueError(f"{what} {text!r} {problem}: it has a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} {text!r} {problem}: it cannot be encoded as UTF-8"
        ) from error


def require_progress(progress: object) -> None:
    """Refuse what cannot be called.

    :raises TypeError: it is neither a function nor ``None``.
    """
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is a function or None, not {progress!r}")


def require_flag(what: str, value: object) -> bool:
    """Return ``value`` if it is a bool: ``"no"`` would be true.

    :raises TypeError: it is none.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{what} is True or False, not {value!r}")
    return value
