"""Image data: real data sets and one's own pictures as one uint8 tensor.

`load` reads, `Images` is what it gives. docs/data.md says which files it wants and what is cached.
"""

from stanley_fast.data.images import DataError, Images, to_pixels, to_unit
from stanley_fast.data.sources import load

__all__ = ["DataError", "Images", "load", "to_pixels", "to_unit"]
