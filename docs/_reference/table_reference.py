"""The result tables in Markdown: what a row is, and every column, from where the code declares them."""

from __future__ import annotations

from collections.abc import Iterator

from raysweep.report.columns import TABLES, Column, Table


def markdown() -> str:
    """A section for every table, in the order in which runs write them."""
    return "\n".join(line for name, table in TABLES.items() for line in table_lines(name, table))


def table_lines(name: str, table: Table) -> Iterator[str]:
    """One table."""
    yield from [f"## `{name}` {{ #{name} }}", "", f"A row is {table.row}. Written by `{table.study}`.", ""]
    yield from ["| column | type, unit | meaning |", "| --- | --- | --- |"]
    for key, column in table.columns.items():
        yield f"| `{key}` | {column.type}{f', {column.unit}' if column.unit else ''} | {_cell(column)} |"
    yield ""


def _cell(column: Column) -> str:
    values = "".join(f"<br>`{value}`: {meaning}" for value, meaning in column.values.items())
    return (column.meaning + values).replace("|", "\\|")
