"""Readers of tables and images."""

from energyppl.data.images import Images, images_from_array, read_images
from energyppl.data.tables import Table, dequantize, read_table, requantize, table_from_array

__all__ = [
    "Images",
    "Table",
    "dequantize",
    "images_from_array",
    "read_images",
    "read_table",
    "requantize",
    "table_from_array",
]
