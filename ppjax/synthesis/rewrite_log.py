"""The run of a rewriting backend: every reply logged, judged, counted, asked once.

The log is a file of JSON lines, one a reply, kept or dropped:

    {"query_id", "request_sha256", "rewrite", "finished", "refused", "verdict"}

`rewrite` is the text as it came, `verdict` what the gates said then. The hash is over
the messages and the backend's identity, so a changed prompt or model is asked anew.
A later run takes what the log has, judges it by its own gates, and asks for the rest.
The log is itself a file that FileRewriter reads.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

from ppjax.base import asked_log, errors, json_lines
from ppjax.synthesis import rewrite_gates, rewriting

# A model whose first replies all end so will not do better, and each is paid for.
_HOPELESS = frozenset({'reasoning', 'markup', 'empty'})
_PATIENCE = 16


@dataclasses.dataclass
class RewriteCounts:
    """What became of the requests; `kept`, `dropped` and `failed` add up to them.

    Attributes:
        requests: how many there were.
        reused: how many of them the log had answered.
        kept: rewrites that passed the gates.
        dropped: how many did not, by verdict.
        failed: requests without any text; the next run asks for them again.
        failure: why the first of them failed.
        unquoted: kept ones whose surrounding quotation marks were taken off.
        reasoned: kept ones whose leading reasoning was taken off.
        cut: kept ones that were cut where a marker ended their turn.
    """

    requests: int = 0
    reused: int = 0
    kept: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    failed: int = 0
    failure: str = ''
    unquoted: int = 0
    reasoned: int = 0
    cut: int = 0

    def summary(self) -> str:
        """One line for people."""
        parts = [f'{self.kept} of {self.requests} rewrites kept']
        if self.dropped:
            total = sum(self.dropped.values())
            named = ', '.join(
                f'{self.dropped[verdict]} {verdict.replace("_", " ")}'
                for verdict in rewrite_gates.VERDICTS
                if verdict in self.dropped
            )
            parts.append(f'{total} dropped ({named})')
        for count, said in (
            (self.failed, f'{self.failed} without a reply ({self.failure})'),
            (self.reused, f'{self.reused} read from the log'),
            (self.unquoted, f'quotation marks taken off {self.unquoted}'),
            (self.reasoned, f'reasoning taken off {self.reasoned}'),
            (self.cut, f'turn markers cut off {self.cut}'),
        ):
            parts += [said] if count else []
        return '; '.join(parts) + '.'


def rewrite_all(
    rewriter: rewriting.Rewriter,
    requests: Sequence[rewriting.Request],
    log_path: str | pathlib.Path,
    *,
    gates: rewrite_gates.Gates | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, str], RewriteCounts]:
    """Rewrites everything that the log has not, and judges all of it.

    A reply is on disk before the next one is taken: a run that is killed loses at
    most the replies that were on their way.

    Args:
        rewriter: the backend.
        requests: one a query_id.
        log_path: of the log; made if absent.
        gates: what passes; the default sets no limit of length.
        progress: called with (requests done, all requests), first for the reused.

    Returns:
        The kept rewrites by query_id, in the order of the requests, and the counts.

    Raises:
        InputError: if nothing passed, the backend cannot be used, or the log is no
            log or cannot be written. What was logged stays.
        ValueError: if two requests have one query_id.
    """
    if not requests:
        raise errors.InputError('There is nothing to rewrite: no query was selected.')
    by_id = {request.query_id: request for request in requests}
    if len(by_id) != len(requests):
        raise ValueError('Two requests have the same query_id.')
    gates = gates or rewrite_gates.Gates()
    # A local model's identity is a hash of its weights: once, not once a request.
    identity = rewriter.identity
    keys = [
        (json_lines.digest([identity, request.messages]), request.query_id)
        for request in requests
    ]
    judged: dict[str, rewrite_gates.Judged] = {}
    failures: dict[str, str] = {}

    def judge(request: rewriting.Request, reply: rewriting.Reply) -> str:
        verdict = rewrite_gates.judge(reply, request.reference, gates)
        judged[request.query_id] = verdict
        return verdict.verdict

    def ask(
        todo: Sequence[rewriting.Request],
    ) -> Iterator[tuple[int, rewriting.Reply]]:
        numbers = {request.query_id: number for number, request in enumerate(todo)}
        with contextlib.closing(rewriter.rewrite(todo)) as replies:
            for reply in replies:
                if reply.failure:
                    failures[reply.query_id] = reply.failure
                yield numbers[reply.query_id], reply
                if len(judged) == _PATIENCE and all(
                    one.verdict in _HOPELESS for one in judged.values()
                ):
                    answered = [by_id[name] for name in [*judged, *failures]]
                    counts = _count(answered, judged, failures)
                    raise errors.InputError(_nothing_kept(counts, log_path))

    log = asked_log.AskedLog(log_path, 'a rewrite log', _parse)
    with contextlib.closing(log):
        for key, request in zip(keys, requests, strict=True):
            if key in log.known:
                judge(request, log.known[key])
        reused = len(judged)
        log.ask(
            requests,
            keys,
            ask,
            lambda key, request, reply: _entry(reply, key[0], judge(request, reply)),
            silent=rewriting.Reply('', '', False),
            progress=progress,
        )
    counts = _count(requests, judged, failures)
    counts.reused = reused
    if not counts.kept:
        raise errors.InputError(_nothing_kept(counts, log_path))
    kept = {
        name: judged[name].text
        for name in by_id
        if name in judged and judged[name].verdict == rewrite_gates.KEPT
    }
    return kept, counts


def _entry(reply: rewriting.Reply, digest: str, verdict: str) -> dict[str, Any]:
    return {
        'query_id': reply.query_id,
        'request_sha256': digest,
        'rewrite': reply.text,
        'finished': reply.finished,
        'refused': reply.refused,
        'verdict': verdict,
    }


def _parse(entry: Any) -> tuple[tuple[str, str], rewriting.Reply]:
    digest, *reply = json_lines.typed(
        entry,
        request_sha256=str,
        query_id=str,
        rewrite=str,
        finished=bool,
        refused=bool,
    )
    return (digest, entry['query_id']), rewriting.Reply(*reply)


def _count(
    requests: Sequence[rewriting.Request],
    judged: dict[str, rewrite_gates.Judged],
    failures: dict[str, str],
) -> RewriteCounts:
    counts = RewriteCounts(requests=len(requests))
    for request in requests:
        found = judged.get(request.query_id)
        if found is None:
            counts.failed += 1
            reason = failures.get(request.query_id, 'the backend gave none')
            counts.failure = counts.failure or reason
        elif found.verdict == rewrite_gates.KEPT:
            counts.kept += 1
            counts.unquoted += found.unquoted
            counts.reasoned += found.reasoned
            counts.cut += found.cut
        else:
            counts.dropped[found.verdict] = counts.dropped.get(found.verdict, 0) + 1
    return counts


def _nothing_kept(counts: RewriteCounts, log_path: str | pathlib.Path) -> str:
    text = f'No rewrite can be used: {counts.summary()[:-1]}.'
    most = max(counts.dropped, key=lambda x: counts.dropped[x], default=None)
    if most is None or counts.failed > counts.dropped[most]:
        return text
    return (
        f'{text} Likely cause of most: {rewrite_gates.VERDICTS[most]}. The replies are in {log_path}; '
        'delete it to ask again.'
    )
