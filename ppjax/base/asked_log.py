"""What is asked of a model or a server: answered once, logged, and taken up again."""

import collections
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any, Generic, TypeVar

from ppjax.base import errors, json_lines

Item = TypeVar('Item')
Key = TypeVar('Key', bound=Hashable)
# A dataclass with a `text`, and a `failure`: why there is none, or ''.
Reply = TypeVar('Reply', bound=Any)


class AskedLog(Generic[Key, Reply]):
    """A file of JSON lines, one a reply, that is looked into before anybody is asked.

    To be closed. Failures are not logged, and asked again by the next run.

    Attributes:
        known: the replies by key.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        what: str,
        parse: Callable[[Any], tuple[Key, Reply]],
    ):
        """Reads the file.

        Args:
            path: made if absent.
            what: names the file in errors, as in 'an answer log'.
            parse: line -> (key, reply); raises one of Python's errors for another.

        Raises:
            InputError: if the file is no such log, or cannot be written.
        """
        self._log = json_lines.AppendLog(path)
        try:
            self.known = dict(self._log.rows(parse, what))
        except errors.InputError:
            self._log.close()
            raise

    def close(self) -> None:
        self._log.close()

    def ask(
        self,
        items: Sequence[Item],
        keys: Sequence[Key],
        ask: Callable[[list[Item]], Iterator[tuple[int, Reply]]],
        entry: Callable[[Key, Item, Reply], Mapping[str, Any]],
        *,
        silent: Reply,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Reply]:
        """The reply to every item, in their order.

        A reply is on disk before the next is taken.

        Args:
            items: n of them.
            keys: [n], with hashes of all that a reply rests on; of items that share
                one the first is asked.
            ask: gives (index, reply) of items that are not known, in any order.
            entry: (key, item, reply) -> the line to log.
            silent: stands where none came.
            progress: called with (items done, n), first for the logged.

        Raises:
            InputError: if the log cannot be written; what was logged stays.
        """
        alike = collections.Counter(keys)
        found = {key: self.known[key] for key in alike if key in self.known}
        done = sum(alike[key] for key in found)
        if progress is not None:
            progress(done, len(keys))
        first: dict[Key, Item] = {}
        for key, item in zip(keys, items, strict=True):
            first.setdefault(key, item)
        todo = [key for key in alike if key not in found]
        replies = ask([first[key] for key in todo]) if todo else iter(())
        try:
            for index, reply in replies:
                key = todo[index]
                if not reply.failure:
                    text = json_lines.encodable(reply.text)
                    reply = dataclasses.replace(reply, text=text)
                    self._log.append(entry(key, first[key], reply))
                    self.known[key] = reply
                found[key] = reply
                done += alike[key]
                if progress is not None:
                    progress(done, len(keys))
        finally:
            # An abandoned generator would go on asking until it is collected.
            if isinstance(replies, Generator):
                replies.close()
        return [found.get(key, silent) for key in keys]
