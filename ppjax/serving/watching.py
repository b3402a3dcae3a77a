"""A cast that is kept up to date while it is served."""

from collections.abc import Callable
import threading

from ppjax.base import errors, progress
from ppjax.serving import cast as cast_lib

_SECONDS = 1.0


class Watcher:
    """Looks at a cast's folders every second, until it is stopped.

    What goes wrong is said once, and again only after a look that went well.
    """

    def __init__(
        self,
        cast: cast_lib.Cast,
        *,
        seconds: float = _SECONDS,
        say: Callable[[str], None] = progress.say,
    ):
        self._cast, self._seconds, self._say = cast, seconds, say
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name='ppjax-cast', daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ends it, after the look that it is at."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        said = ''
        while not self._stopped.wait(self._seconds):
            try:
                self._cast.refresh()
                said = ''
            except Exception as error:  # noqa: BLE001  The next may go well.
                reason = errors.one_line(f'{error or type(error).__name__}')
                if reason != said:
                    self._say(f'The cast stays as it is: {reason}')
                said = reason
