"""Archive: the file that holds one tenant's rows.

A zip file with ``manifest.json``, which says what it holds, and one member a table, in
PostgreSQL's text format of COPY and in UTF-8. Nothing of it is ever unpacked to disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

from .results import RowsError

_FORMAT = "sqlalchemy-tenants rows"
_VERSION = 1
_MANIFEST = "manifest.json"

# Bytes that are compressed, read or sent at once.
_CHUNK = 1 << 18
# Bytes of a row: what is more, neither exporting nor importing holds in memory.
_MAX_ROW = 1 << 28
_MAX_MANIFEST = 1 << 24
# zlib's fastest: the database sends faster than a higher one compresses
_LEVEL = 1

_T = TypeVar("_T")


@dataclass(frozen=True)
class FileTable:
    """What a file says about one table.

    :param name: as the models call it.
    :param tenant_column: name of the column that holds the tenant.
    :param columns: names and types, in the order of the values.
    :param rows: how many there are.
    :param size: bytes of them.
    :param sha256: checksum of these bytes.
    :param highest: the highest value of each column that gets it from a sequence.
    """

    name: str
    tenant_column: str
    columns: tuple[tuple[str, str], ...]
    rows: int
    size: int
    sha256: str
    highest: dict[str, int]


@dataclass(frozen=True)
class RowsFile:
    """What a file of rows says about itself.

    :param tenant: whose rows it holds.
    :param created: when the rows were read.
    :param server_version: of PostgreSQL, as in ``180001``.
    :param tables: what it holds.
    :param left_out: tables that all tenants share, whose rows are not in it.
    """

    tenant: str
    created: datetime
    server_version: int
    tables: tuple[FileTable, ...]
    left_out: tuple[str, ...]


def read_file(path: str | os.PathLike[str]) -> RowsFile:
    """Return what a file of :meth:`.PostgresManager.export_rows` holds, without a
    database.

    :raises RowsError: it is no such file, or one of another version.
    """
    with Reader(Path(path)) as reader:
        return reader.contents


@contextmanager
def writing(path: Path, overwrite: bool) -> Iterator[Writer]:
    """Write a file that is there when the block ends, whole, or not at all.

    :raises FileExistsError: it exists, and is not to be overwritten.
    """
    require_free(path, overwrite)
    descriptor, name = tempfile.mkstemp(".part", ".rows-", path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            with ZipFile(file, "w", ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
                yield Writer(archive)
            file.flush()
            os.fsync(file.fileno())
        require_free(path, overwrite)
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _sync_directory(path.parent)


def require_free(path: Path, overwrite: bool) -> None:
    """Refuse a path where no file can be, before anything is done.

    :raises OSError: the file exists, or its directory does not.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a directory")
    # as a directory, a device, or a link that leads nowhere
    if os.path.lexists(path) and not path.is_file():
        raise FileExistsError(f"{path} exists, and is no file; choose another name")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists; choose another name, or pass overwrite=True"
        )


def _sync_directory(path: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Writer:
    """Writes the members of a file."""

    def __init__(self, archive: ZipFile) -> None:
        self._archive = archive
        self._tables = 0

    @contextmanager
    def table(self) -> Iterator[Sink]:
        """Write the next table."""
        self._tables += 1
        with self._archive.open(_member(self._tables), "w", force_zip64=True) as member:
            sink = Sink(member)
            yield sink
            sink.flush()

    def finish(
        self,
        tenant: str,
        server_version: int,
        tables: list[FileTable],
        left_out: tuple[str, ...],
    ) -> None:
        """Write the manifest."""
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "tenant": tenant,
            "created": datetime.now(UTC).isoformat(),
            "server_version": server_version,
            "tables": [asdict(table) for table in tables],
            "left_out": left_out,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        self._archive.writestr(_MANIFEST, text.encode())


class Sink:
    """Takes the rows of one table, and counts them."""

    def __init__(self, member: IO[bytes]) -> None:
        self._member = member
        self._buffer = bytearray()
        self._meter = Meter()

    def write(self, data: Any) -> None:
        """Take a piece of the rows."""
        self._buffer += data
        if len(self._buffer) >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Compress what is there."""
        self._meter.add(bytes(self._buffer))
        self._member.write(self._buffer)
        self._buffer.clear()

    @property
    def rows(self) -> int:
        """Rows that were compressed."""
        return self._meter.rows

    @property
    def size(self) -> int:
        """Bytes of them."""
        return self._meter.size

    @property
    def sha256(self) -> str:
        """Their checksum."""
        return self._meter.hash.hexdigest()


class Meter:
    """Counts rows and bytes, and computes the checksum."""

    def __init__(self) -> None:
        self.rows = self.size = 0
        self.hash = hashlib.sha256()
        self._unfinished = 0

    def add(self, data: bytes) -> None:
        """Take a piece of the rows.

        :raises RowsError: a row is too long.
        """
        self.rows += data.count(b"\n")
        self.size += len(data)
        self.hash.update(data)
        end = data.find(b"\n")
        if self._unfinished + (len(data) if end < 0 else end) > _MAX_ROW:
            raise RowsError(
                f"row {self.rows + 1} of a table has more than {_MAX_ROW >> 20} MB; "
                f"keep such values outside of the database"
            )
        if end < 0:
            self._unfinished += len(data)
        else:
            self._unfinished = len(data) - data.rfind(b"\n") - 1

    @property
    def is_between_rows(self) -> bool:
        """Whether the last row is complete."""
        return self._unfinished == 0


def _member(number: int) -> str:
    return f"tables/{number}.copy"


class Reader:
    """Reads a file, and trusts nothing in it.

    :raises RowsError: it is no file of rows, or holds what its manifest does not name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        try:
            with self._readable():
                self._archive = ZipFile(self._file)
                self.contents = self._read_manifest()
                self._require_members()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._archive.close()
        self._file.close()

    def verify(self) -> None:
        """Compare all rows with their counts and checksums, before any is sent.

        :raises RowsError: they differ.
        """
        for number, table in enumerate(self.contents.tables, 1):
            meter = Meter()
            for data in self._chunks(number):
                meter.add(data)
            measured = (meter.rows, meter.size, meter.hash.hexdigest())
            if measured != (table.rows, table.size, table.sha256) or (
                not meter.is_between_rows
            ):
                raise self._error(
                    f"table {table.name!r} is not what the manifest says: the file is "
                    f"damaged, or was changed"
                )

    def batches(self, number: int) -> Iterator[list[str]]:
        """Yield the rows of a table, several at once, each as COPY prints it.

        :param number: of the table, from 1.
        """
        parts: list[bytes] = []
        for data in self._chunks(number):
            head, newline, tail = data.rpartition(b"\n")
            if not newline:
                parts.append(tail)
                continue
            with self._readable():
                text = b"".join((*parts, head)).decode()
            parts = [tail]
            yield text.split("\n")

    def _chunks(self, number: int) -> Iterator[bytes]:
        with self._readable():
            member = self._archive.open(_member(number))
        with member:
            while True:
                with self._readable():
                    data = member.read(_CHUNK)
                if not data:
                    return
                yield data

    def _read_manifest(self) -> RowsFile:
        info = self._archive.getinfo(_MANIFEST)
        if info.file_size > _MAX_MANIFEST:
            raise self._error("the manifest is too long")
        self._require_plain([info])
        try:
            return _contents(json.loads(self._archive.read(info)))
        except RowsError as error:
            raise self._error(str(error)) from error

    def _require_members(self) -> None:
        members = self._archive.infolist()
        tables = self.contents.tables
        expected = [_member(number) for number in range(1, len(tables) + 1)]
        if sorted(m.filename for m in members) != sorted([*expected, _MANIFEST]):
            raise self._error("it holds other members than the manifest names")
        self._require_plain(members)
        # members that overlap would be more than the file has
        if sum(m.compress_size for m in members) > self.path.stat().st_size:
            raise self._error("its members overlap")
        for name, table in zip(expected, tables, strict=True):
            if self._archive.getinfo(name).file_size != table.size:
                raise self._error(
                    f"table {table.name!r} has another size than the manifest says"
                )

    def _require_plain(self, members: Any) -> None:
        for each in members:
            if each.flag_bits & 1 or each.compress_type not in (
                ZIP_STORED,
                ZIP_DEFLATED,
            ):
                raise self._error(f"member {each.filename!r} is encrypted or unknown")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        # what zipfile, zlib, json and codecs raise for what is not theirs
        broken = (BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError)
        try:
            yield
        except (*broken, ValueError, RecursionError, OverflowError) as error:
            if isinstance(error, RowsError):
                raise
            raise self._error(str(error) or type(error).__name__) from error

    def _error(self, problem: str) -> RowsError:
        return RowsError(f"{self.path} is no sound file of rows: {problem}")


def _contents(manifest: Any) -> RowsFile:
    """Return the manifest's contents, each of the type that it must have."""
    if _take(manifest, "format", str) != _FORMAT:
        raise RowsError("its format is another one")
    version = _take(manifest, "version", int)
    if version != _VERSION:
        raise RowsError(
            f"it has version {version}, and this release reads version {_VERSION}; "
            f"import it with the release that wrote it"
        )
    tables = tuple(_file_table(each) for each in _take(manifest, "tables", list))
    names = [table.name for table in tables]
    if len(set(names)) != len(names):
        raise RowsError("a table comes twice")
    return RowsFile(
        tenant=_take(manifest, "tenant", str),
        created=datetime.fromisoformat(_take(manifest, "created", str)),
        server_version=_take(manifest, "server_version", int),
        tables=tables,
        left_out=tuple(map(str, _take(manifest, "left_out", list))),
    )


def _file_table(table: Any) -> FileTable:
    columns = []
    for column in _take(table, "columns", list):
        match column:
            case [str() as name, str() as type_]:
                columns.append((name, type_))
            case _:
                raise RowsError("a column is not a name and a type")
    highest = _take(table, "highest", dict)
    if len({name for name, _ in columns}) != len(columns):
        raise RowsError("a column comes twice")
    return FileTable(
        name=_take(table, "name", str),
        tenant_column=_take(table, "tenant_column", str),
        columns=tuple(columns),
        rows=_take(table, "rows", int),
        size=_take(table, "size", int),
        sha256=_take(table, "sha256", str),
        highest={name: _take(highest, name, int) for name in highest},
    )


def _take(mapping: Any, key: str, type_: type[_T]) -> _T:
    value = mapping.get(key) if isinstance(mapping, dict) else None
    if not isinstance(value, type_) or isinstance(value, bool):
        raise RowsError(f"the manifest has no {key!r}, or one of another type")
    return value
