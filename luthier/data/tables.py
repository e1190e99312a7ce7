"""Parquet and arrow: typed columns stay as they are; a typed column where text is needed is an error.

`str(date)` would train on `2024-01-01 00:00:00` where the author wrote `2024-01-01`: no such
conversion is ever made here.

A column of nested records cannot leave a key out, it can only say null. So a null inside a record means
"not there" (or every message would have `tool_calls: null`); a null cell of a column stays null.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from luthier.data.files import DataFile
from luthier.data.layout import Layout
from luthier.data.rows import Row
from luthier.data.types import RowRef
from luthier.runtime.errors import DataError, EnvironmentProblem, Problem

if TYPE_CHECKING:
    import pyarrow

__all__ = ["count_table_rows", "read_table", "table_schema", "typed_problems"]

_BATCH_ROWS = 1_000


def read_table(file: DataFile, *, source: int, notes: Counter[str]) -> Iterator[Row | Problem]:
    """Yield the rows of a parquet or arrow file; `ref.line` is the 1-based row."""
    number = 0
    with _table_errors(file), _batches(file) as (_, batches):
        for batch in batches:
            for value in batch.to_pylist(maps_as_pydicts="strict"):
                number += 1
                kept = {name: _without_nulls(item, notes) for name, item in value.items()}
                yield Row(value=kept, ref=RowRef(file.shown, number, source))


def table_schema(file: DataFile) -> pyarrow.Schema:
    """Names and types of the columns of a parquet or arrow file."""
    with _table_errors(file), _batches(file) as (schema, _):
        return schema


def count_table_rows(file: DataFile) -> int:
    """Number of rows; no value is converted."""
    if file.kind == "parquet":
        with _table_errors(file):
            return int(_parquet().ParquetFile(file.path).metadata.num_rows)
    with _table_errors(file), _batches(file) as (_, batches):
        return sum(batch.num_rows for batch in batches)


def typed_problems(schema: pyarrow.Schema, layout: Layout, *, file: str) -> list[Problem]:
    """Columns of a layout whose type is not text, or that hold dates and the like: one problem a column."""
    problems = []
    for name in layout.fields():
        found = _column(schema, layout.column(name))
        if found is None:
            continue
        column, kind = found
        bad = _not_text(kind) if layout.holds_text(name) else _not_json(kind)
        if layout.may_hold_messages(name) and (_is_list(kind) or hasattr(kind, "fields")):
            bad = _not_json(kind)
        if bad:
            message = (
                f"column `{column}` is of type {bad}, but text is needed; converting it would choose a spelling for you"
            )
            hint = f'write it as text, for instance in pandas: df["{column}"] = df["{column}"].astype(str)'
            problems.append(Problem(code="D212", message=message, file=file, hint=hint))
    return problems


def _column(schema: pyarrow.Schema, name: str) -> tuple[str, pyarrow.DataType] | None:
    """Type behind a column name or a dotted path."""
    if name in schema.names:
        return name, schema.field(name).type
    head, *rest = name.split(".")
    if head not in schema.names:
        return None
    kind = schema.field(head).type
    for step in rest:
        if not hasattr(kind, "fields") or kind.get_field_index(step) < 0:
            return None
        kind = kind.field(step).type
    return name, kind


def _is_list(kind: pyarrow.DataType) -> bool:
    types = _pyarrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _not_text(kind: pyarrow.DataType) -> str | None:
    """Name of a type that is not text; None for text and for a column without any value."""
    types = _pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)
    return None if text else str(kind)


def _not_json(kind: pyarrow.DataType) -> str | None:
    """Name of the first type inside a nested one that JSON does not have; None if all are plain."""
    types = _pyarrow().types
    if types.is_dictionary(kind):
        return _not_json(kind.value_type)
    if types.is_nested(kind):
        children = [kind.field(index).type for index in range(kind.num_fields)]
        return next((bad for child in children if (bad := _not_json(child))), None)
    plain = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return None if plain else _not_text(kind)


def _without_nulls(value: Any, notes: Counter[str]) -> Any:
    if isinstance(value, list):
        return [_without_nulls(item, notes) for item in value]
    if isinstance(value, dict):
        nulls = sum(item is None for item in value.values())
        if nulls:
            notes["nulls inside records of a table read as `not there`"] += nulls
        return {key: _without_nulls(item, notes) for key, item in value.items() if item is not None}
    return value


@contextmanager
def _batches(file: DataFile) -> Iterator[tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]]:
    """Schema and record batches of a file, read piece by piece."""
    arrow = _pyarrow()
    if file.kind == "parquet":
        with _parquet().ParquetFile(file.path) as table:
            yield table.schema_arrow, table.iter_batches(batch_size=_BATCH_ROWS)
        return
    with file.path.open("rb") as probe:
        is_file_format = probe.read(6) == b"ARROW1"
    with arrow.memory_map(str(file.path)) as source:
        if is_file_format:
            table = arrow.ipc.open_file(source)
            pieces = (table.get_batch(index) for index in range(table.num_record_batches))
        else:
            table = arrow.ipc.open_stream(source)
            pieces = iter(table)
        yield (
            table.schema,
            (piece.slice(start, _BATCH_ROWS) for piece in pieces for start in range(0, piece.num_rows, _BATCH_ROWS)),
        )


@contextmanager
def _table_errors(file: DataFile) -> Iterator[None]:
    arrow = _pyarrow()
    try:
        yield
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        message = f"not a readable {file.kind} file: {str(error).splitlines()[0]}"
        hint = "download or write it again"
        raise DataError(problems=[Problem(code="D214", message=message, file=file.shown, hint=hint)]) from error


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise EnvironmentProblem(
            code="R720", message="parquet and arrow files need pyarrow", hint='pip install "luthier[train]"'
        ) from error
    return pyarrow


def _parquet() -> Any:
    _pyarrow()
    import pyarrow.parquet

    return pyarrow.parquet
