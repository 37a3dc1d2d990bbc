"""The atlas: settings that papers of the field use, each solved, verified and certified, as grids and one record.

`fem-hjb atlas` makes it; `docs/atlas.md` is its table. Costs of the literature are -v, -J here.
"""

from fem_hjb.atlas.collection import RECORDS, collect, read
from fem_hjb.atlas.pictures import sheet
from fem_hjb.atlas.settings import QUICK, SETTINGS, Published, Setting, chosen, names
from fem_hjb.atlas.tables import HEAD, beside, for_ever, notes_of, page, row

__all__ = [
    "HEAD",
    "QUICK",
    "RECORDS",
    "SETTINGS",
    "Published",
    "Setting",
    "beside",
    "chosen",
    "collect",
    "for_ever",
    "names",
    "notes_of",
    "page",
    "read",
    "row",
    "sheet",
]
