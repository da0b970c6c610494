"""Readers of tables and images."""

from energyppl.data.grids import requantize
from energyppl.data.images import Images, images_from_array, read_images
from energyppl.data.reading import read_frame
from energyppl.data.tables import Table, dequantize, read_table, table_from_array, table_from_frame, table_from_rows
from energyppl.data.transforms import TableTransform

__all__ = [
    "Images",
    "Table",
    "TableTransform",
    "dequantize",
    "images_from_array",
    "read_frame",
    "read_images",
    "read_table",
    "requantize",
    "table_from_array",
    "table_from_frame",
    "table_from_rows",
]
