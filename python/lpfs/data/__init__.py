"""Click logs: generate them, read them, encode them, and serve them in batches.

>>> from lpfs.data import ClickLog, InOrder, Recipe, load
>>> data = load(ClickLog(Recipe(rows=2_000)), label="click", split=InOrder(test=0.2))
>>> len(data.fields), len(data.train), len(data.validation), len(data.test)
(27, 1440, 160, 400)
"""

from lpfs.data.encode import (
    BinEncoder,
    CategoryEncoder,
    Encoder,
    HashEncoder,
    ListEncoder,
    NumberEncoder,
    TimeEncoder,
)
from lpfs.data.error import DataError
from lpfs.data.formats import write_avazu, write_days
from lpfs.data.generate import ClickLog, FieldTruth
from lpfs.data.load import Data, load
from lpfs.data.part import Batch, Part
from lpfs.data.recipes import RECIPES, Recipe
from lpfs.data.schema import Field, Progress
from lpfs.data.source import Reading
from lpfs.data.split import ByColumn, ByFraction, InOrder, LastFiles, Split
from lpfs.data.stream import stream

__all__ = [
    "RECIPES",
    "Batch",
    "BinEncoder",
    "ByColumn",
    "ByFraction",
    "CategoryEncoder",
    "ClickLog",
    "Data",
    "DataError",
    "Encoder",
    "Field",
    "FieldTruth",
    "HashEncoder",
    "InOrder",
    "LastFiles",
    "ListEncoder",
    "NumberEncoder",
    "Part",
    "Progress",
    "Reading",
    "Recipe",
    "Split",
    "TimeEncoder",
    "load",
    "stream",
    "write_avazu",
    "write_days",
]
