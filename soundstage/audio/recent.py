"""The newest part of a stream, in an array that does not grow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MARGIN_S = 3.0
"""Beyond what is kept: for a piece of a second, and for two before room is made by moving all that is kept."""


class Recent:
    """Values of a stream, addressed by how many came before them.

    Args:
        n_most: How many are kept at most.

    Attributes:
        end: How many came so far.
    """

    def __init__(self, n_most: int) -> None:
        self._values = np.empty(n_most, np.float32)
        self._start = 0  # of the array in the stream
        self._kept = 0
        self.end = 0

    def append(self, values: NDArray[np.float32]) -> None:
        """Take in the next values; where there is no room, what was forgotten makes it.

        Raises:
            ValueError: More are kept than there is room for.
        """
        if self.end + len(values) - self._start > len(self._values):
            n_kept = self.end - self._kept
            if n_kept + len(values) > len(self._values):
                raise ValueError(f"{n_kept + len(values)} values do not fit into {len(self._values)}")
            first = self._kept - self._start
            # Unlike an array's, a memoryview's copy makes no other one where both parts overlap.
            room = self._values.data
            room[:n_kept] = room[first : first + n_kept]
            self._start = self._kept
        at = self.end - self._start
        self._values[at : at + len(values)] = values
        self.end += len(values)

    def forget(self, before: int) -> None:
        """Let go of the values before a place."""
        self._kept = max(self._kept, min(before, self.end))

    def close(self) -> None:
        """Let go of all values and of the room for them; nothing follows."""
        self.forget(self.end)
        self._start = self.end
        self._values = np.empty(0, np.float32)

    def between(self, first: int, last: int) -> NDArray[np.float32]:
        """A copy of the values from a place on and before another, as far as they came.

        Raises:
            ValueError: They are gone.
        """
        if first < self._kept:
            raise ValueError(f"values before {self._kept} are gone, {first} among them")
        return self._values[first - self._start : max(first, min(last, self.end)) - self._start].copy()
