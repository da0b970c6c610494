"""Loaders of tables and images."""

from energyppl.data.images import Images, images_from_array, read_images
from energyppl.data.tables import Table, dequantise, read_table, requantise, table_from_array

__all__ = [
    "Images",
    "Table",
    "dequantise",
    "images_from_array",
    "read_images",
    "read_table",
    "requantise",
    "table_from_array",
]
