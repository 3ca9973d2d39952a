"""Options of the command line that may be given several times.

Settings also work without tyro, as in the benchmarks on a GPU image.
"""

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

_repeated: Any = None
_reward: Any = None
_dataset: Any = None
_column: Any = None
with contextlib.suppress(ImportError):
    from tyro.conf import UseAppendAction, arg

    _repeated = UseAppendAction
    _reward = arg(name="reward", metavar="NAME_OR_PATH[=WEIGHT]")
    _dataset = arg(metavar="NAME[=WEIGHT]")
    _column = arg(metavar="COLUMN")

RewardOption = Annotated[tuple[str, ...], _repeated, _reward]
ColumnOption = Annotated[tuple[str, ...], _repeated, _column]
if TYPE_CHECKING:  # a single name may be a str, in Python and in records
    DatasetOption = str | tuple[str, ...] | None
else:
    DatasetOption = Annotated[tuple[str, ...], _repeated, _dataset]
