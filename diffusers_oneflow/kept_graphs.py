"""The graphs that are kept for one module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from .calls import Call, Open
from .entries import Entry

# A module's structure and what of a call is the same for all values of its numbers; then `Call.key`, which is so long.
Key = tuple[Any, ...]
_OF_CALL = 4


class KeptGraphs:
    """Graphs, and reasons why there is none, by key, least recently used first; and what was learned of such calls.

    Args:
        most: so many graphs are kept. Reasons take little, and are kept longer.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: OrderedDict[Key, Entry | str] = OrderedDict()
        self._most_open: dict[Key, Open] = {}
        self._seen_numbers: dict[Key, tuple[Any, ...]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._found))

    def get(self, key: Key) -> Entry | str | None:
        """What there is for a key."""
        return self._found.get(key)

    def put(self, key: Key, entry: Entry | str) -> None:
        """Keep it, as the one used last."""
        self._found[key] = entry
        self._found.move_to_end(key)

    @property
    def entries(self) -> list[Entry]:
        """The graphs."""
        return [e for e in list(self._found.values()) if isinstance(e, Entry)]

    def key_of(self, entry: Entry) -> Key | None:
        """The key of a graph that is kept."""
        return next((k for k, e in self._found.items() if e is entry), None)

    def trim(self) -> list[Key]:
        """Drop the least recently used beyond the most; their keys."""
        dropped = [k for k, e in self._found.items() if isinstance(e, Entry)][: -self._most]
        rest = [k for k in self._found if k not in dropped]
        dropped += rest[: max(0, len(rest) - 4 * self._most)]
        for key in dropped:
            self.drop(key)
        return dropped

    def drop(self, key: Key) -> None:
        """Forget one, and free its memory."""
        entry = self.pop(key)
        if isinstance(entry, Entry):
            entry.close()

    def pop(self, key: Key) -> Entry | str:
        """Forget one, and with the last of its kind what was learned of such calls."""
        entry = self._found.pop(key)
        base = key[:-_OF_CALL]
        if not any(k[:-_OF_CALL] == base for k in self._found):
            self._most_open.pop(base, None)
            self._seen_numbers.pop(base, None)
        return entry

    def clear(self) -> None:
        """Drop all."""
        for entry in self.entries:
            entry.close()
        for known in (self._found, self._most_open, self._seen_numbers):
            known.clear()

    def opened(self, base: Key, call: Call) -> Open:
        """Which numbers are to be inputs of the graph: floats at once, integers once they vary."""
        most, numbers = self._most_open.get(base, Open(True, True)), call.flat.numbers
        first = self._seen_numbers.setdefault(base, tuple(numbers)) if numbers else ()
        varies = any(type(a) is float or a != b for a, b in zip(numbers, first))
        return Open(varies and most.numbers, len(call.strengths) > 0 and most.strengths)

    def open_less(self, base: Key, opened: Open) -> Open:
        """From now on: the code needs a number itself (a branch on it, say), so there is one graph for each value."""
        self._most_open[base] = Open(False, opened.numbers and opened.strengths)
        return self._most_open[base]
