"""What a server measures, as Prometheus reads it."""

from collections.abc import Callable, Container, Iterator
import math
import time

import prometheus_client
from prometheus_client import core, registry

from ppjax.serving import jobs

MEDIA_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
# Over which the present rate is taken.
_WINDOW = 10
# How answers end; see `choices.Finish` and `running.Running.close`.
_ENDS = ('stop', 'length', 'gone', 'failed')


class _Rate:
    """Tokens a second, over the last whole seconds."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._began = time.monotonic()

    def add(self) -> None:
        second = int(time.monotonic())
        if second not in self._counts:
            old = [x for x in self._counts if x < second - _WINDOW]
            for other in old:
                del self._counts[other]
        self._counts[second] = self._counts.get(second, 0) + 1

    def value(self) -> float:
        now = time.monotonic()
        seconds = range(int(now) - _WINDOW, int(now))
        known = min(_WINDOW, max(1, math.ceil(now - self._began)))
        return sum(self._counts.get(second, 0) for second in seconds) / known


class _Engine(registry.Collector):
    """The engine's own figures."""

    def __init__(
        self,
        figures: Callable[[], jobs.Figures],
        served: Callable[[], Container[str]],
        rate: _Rate,
    ):
        self._figures, self._served, self._rate = figures, served, rate

    def collect(self) -> Iterator[core.Metric]:
        found = self._figures()
        gauges: dict[str, tuple[str, float]] = {
            'slots': ('Rows there are.', found.slots),
            'requests_running': ('Answers under way.', found.running),
            'requests_waiting': ('Answers without a row.', found.waiting),
            'cache_bytes': ('Held by known prefixes.', found.cache_bytes),
            'cache_limit_bytes': ('Most that they may.', found.cache_limit_bytes),
            'answer_tokens_per_second': (
                f'Tokens given out a second, over the last {_WINDOW} s.',
                self._rate.value(),
            ),
        }
        for name, (what, value) in gauges.items():
            yield core.GaugeMetricFamily(f'ppjax_{name}', what, value=value)
        counters: dict[str, tuple[str, float]] = {
            'cache_hits': ('Blocks of prompts that were known.', found.cache_hits),
            'cache_misses': ('Blocks that were computed.', found.cache_misses),
            'decode_steps': ('Steps of all rows together.', found.steps),
        }
        for name, (what, value) in counters.items():
            yield core.CounterMetricFamily(f'ppjax_{name}', what, value=value)
        served = self._served()
        for place, (name, what) in enumerate(
            (
                ('requests', 'Answers that had a row, and ended.'),
                ('prompt_tokens', 'Tokens of their prompts.'),
                ('cached_prompt_tokens', 'Of these, tokens that were known.'),
                ('answer_tokens', 'Tokens that were drawn.'),
            )
        ):
            family = core.CounterMetricFamily(f'ppjax_{name}', what, labels=['persona'])
            for persona, counts in found.by_persona.items():
                if persona in served:
                    family.add_metric([persona], counts[place])
            yield family


class Metrics:
    """Counts and times of requests, beside the engine's figures.

    Of personas that have left the cast nothing is told: there may be any number of them.
    """

    def __init__(
        self,
        figures: Callable[[], jobs.Figures],
        served: Callable[[], Container[str]],
    ):
        """Args:
        figures: of the engine, asked for whenever somebody looks.
        served: names of who is served; likewise.
        """
        self._served = served
        self._measured: set[str] = set()
        # Its own, not the process's: there may be several servers in one, in tests.
        self._registry = registry.CollectorRegistry()
        self._rate = _Rate()
        self._registry.register(_Engine(figures, served, self._rate))
        self._first = prometheus_client.Histogram(
            'ppjax_time_to_first_token_seconds',
            'From a request to its first token.',
            ['persona'],
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._between = prometheus_client.Histogram(
            'ppjax_time_per_token_seconds',
            'From one token of an answer to its next, its mean.',
            ['persona'],
            registry=self._registry,
            buckets=_TOKEN_SECONDS,
        )
        self._whole = prometheus_client.Histogram(
            'ppjax_answer_seconds',
            'From a request to the last token of an answer.',
            ['persona'],
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._ends = prometheus_client.Counter(
            'ppjax_answers',
            'Answers by how they ended: stop, length, gone (the client left), failed.',
            ['persona', 'end'],
            registry=self._registry,
        )
        self._refused = prometheus_client.Counter(
            'ppjax_refused_requests',
            'Requests that were refused, by status.',
            ['status'],
            registry=self._registry,
        )

    def token(self) -> None:
        """A token was given out."""
        self._rate.add()

    def ended(
        self, persona: str, end: str, tokens: int, first: float, seconds: float
    ) -> None:
        """An answer ended.

        Args:
            persona: whose it is.
            end: how.
            tokens: of it.
            first: seconds to the first.
            seconds: to the last.
        """
        self._measured.add(persona)
        self._ends.labels(persona, end).inc()
        if tokens:
            self._first.labels(persona).observe(first)
            self._whole.labels(persona).observe(seconds)
        if tokens > 1:
            self._between.labels(persona).observe((seconds - first) / (tokens - 1))

    def refused(self, status: int) -> None:
        """A request was refused."""
        self._refused.labels(str(status)).inc()

    def text(self) -> bytes:
        """All of it; may be called from any thread."""
        served = self._served()
        for gone in [name for name in list(self._measured) if name not in served]:
            self._measured.remove(gone)
            for times in (self._first, self._between, self._whole):
                times.remove(gone)
            for end in _ENDS:
                self._ends.remove(gone, end)
        return prometheus_client.generate_latest(self._registry)
