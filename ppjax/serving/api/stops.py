"""Stop strings, found wherever the borders of tokens are."""

from collections.abc import Sequence


class StopFinder:
    """Text that comes in pieces, up to the first stop string.

    What may be the start of one is held back until it is known.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ''
        self.found = ''

    def push(self, piece: str) -> str:
        """The text that can be given out now.

        After it, `found` is the stop string, if there was one; nothing more is to be
        pushed then.
        """
        text = self._held + piece
        places = [(text.find(stop), stop) for stop in self._stops]
        # Of two that begin at one place, the longer says more.
        first = min(
            ((place, -len(stop), stop) for place, stop in places if place >= 0),
            default=None,
        )
        if first is not None:
            place, _, self.found = first
            self._held = ''
            return text[:place]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self) -> str:
        """What was held back and turned out to be text."""
        held, self._held = self._held, ''
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of a text with which a stop string begins, but not all of it."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
