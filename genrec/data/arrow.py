"""Arrow's compute functions, as type checkers can see them: they are generated when pyarrow is imported."""

from __future__ import annotations

from typing import Any

import pyarrow.compute

pc: Any = pyarrow.compute
