"""Read and write texts and tables: plain text, CSV, TSV, JSON lines and Parquet.

Inputs of any size are read lazily, row by row. Every command uses these functions; docs/tables.md
describes the formats.
"""

from gpt2c.tables.formats import Layout
from gpt2c.tables.frames import to_frame
from gpt2c.tables.reading import open_table
from gpt2c.tables.table import Cell, Columns, ColumnType, Extent, Row, Table, with_added
from gpt2c.tables.texts import Item, TextOrIds, Texts, open_texts
from gpt2c.tables.writing import TableWriter, create_table

__all__ = [
    "Cell",
    "ColumnType",
    "Columns",
    "Extent",
    "Item",
    "Layout",
    "Row",
    "Table",
    "TableWriter",
    "TextOrIds",
    "Texts",
    "create_table",
    "open_table",
    "open_texts",
    "to_frame",
    "with_added",
]
