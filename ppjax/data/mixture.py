"""The instruction mixture: several sources without repeats or evaluation questions."""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import heapq
import unicodedata

from ppjax.base import errors
from ppjax.data import instructions, row_sources


@dataclasses.dataclass
class SourceCounts:
    """What became of the rows of one source.

    From `unusable` to `kept` they add up to `read`.

    Attributes:
        source: its label.
        wanted: the count asked for; None is all.
        read: rows that the source has.
        cut: of longer conversations, whose first question and answer were taken.
        unusable: left out, as they are no question and answer in words.
        reason: what is wrong with the first of those.
        empty: dropped, as they ask nothing.
        unanswered: dropped, as they have no answer.
        duplicates: dropped; the same query came before.
        near_duplicates: dropped; it came before but for case, spaces, punctuation.
        excluded: dropped; they are evaluation questions.
        not_sampled: left out by the count.
        kept: in the mixture.
    """

    source: str
    wanted: int | None = None
    read: int = 0
    cut: int = 0
    unusable: int = 0
    reason: str = ''
    empty: int = 0
    unanswered: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    excluded: int = 0
    not_sampled: int = 0
    kept: int = 0

    @property
    def summary(self) -> str:
        """One line for people."""
        dropped = [
            (self.cut, 'cut after the first answer'),
            (self.unusable, 'unusable'),
            (self.empty, 'empty'),
            (self.unanswered, 'unanswered'),
            (self.duplicates, 'duplicates'),
            (self.near_duplicates, 'near-duplicates'),
            (self.excluded, 'asked elsewhere'),
            (self.not_sampled, 'not sampled'),
        ]
        said = ''.join(f'{number:,} {what}, ' for number, what in dropped if number)
        short = self.wanted is not None and self.kept < self.wanted
        of = f' of {self.wanted:,} asked for' if short else ''
        why = f' (first unusable: {self.reason.rstrip(".")})' if self.reason else ''
        return f'{self.source}: {self.read:,} read, {said}{self.kept:,} kept{of}{why}'


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Instructions to select from.

    Attributes:
        rows: in the order of the sources, and of the rows in each.
        counts: one a source, in the same order.
    """

    rows: tuple[instructions.Instruction, ...]
    counts: tuple[SourceCounts, ...]

    @property
    def summary(self) -> str:
        """One line a source."""
        return '\n'.join(counts.summary for counts in self.counts)


# Punctuation that tells questions apart: C# from C, 6*3 from 6/3, 5% from 5.
_TELLING = frozenset('#%&*/@')


class _Folding(dict[int, str]):
    """A table for `str.translate` that fills itself as characters are met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        folded = character
        if category == 'Cf':  # Zero-width spaces and joiners, direction marks.
            folded = ''
        elif category[0] in 'ZC' or (category[0] == 'P' and character not in _TELLING):
            folded = ' '
        self[code] = folded
        return folded


_FOLDING = _Folding()
_FOLDING[ord('`')] = ' '


def normal_form(text: str) -> str:
    """What two texts share that differ in case, spaces and punctuation only.

    Unicode NFKC, casefolded; runs of spaces and punctuation are one space. Symbols
    stay, and the signs of `_TELLING`. A text of punctuation alone is itself.
    """
    folded = unicodedata.normalize('NFKC', text).casefold()
    return ' '.join(folded.translate(_FOLDING).split()) or folded.strip()


def _digest(text: str, person: bytes = b'') -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16, person=person).digest()


def _whole(instruction: str, given: str) -> bytes:
    """Of a query, whatever stands between its instruction and its input."""
    return _digest(normal_form(f'{instruction}\n{given}'))


def query_key(query: str) -> bytes:
    """Equal for queries that are one question, but for form; see `normal_form`."""
    return _whole(*instructions.split_input(query))


class Exclusions:
    """Evaluation questions, to be kept out of what a model learns from.

    A query is one of them if both have the same normal form (the '### Input:' line
    and placeholders such as '<noinput>' aside), or if one has no input and is the
    instruction of the other. The same instruction with two different inputs is two
    questions.
    """

    def __init__(self, questions: Sequence[str]):
        self._wholes: set[bytes] = set()
        self._instructions: set[bytes] = set()  # Of questions that have an input.
        for question in questions:
            instruction, given = instructions.split_input(question)
            if instruction or given:
                self._wholes.add(_whole(instruction, given))
            if instruction and given:
                self._instructions.add(_whole(instruction, ''))

    def __contains__(self, query: str) -> bool:
        instruction, given = instructions.split_input(query)
        if _whole(instruction, given) in self._wholes:
            return True
        alone = _whole(instruction, '')
        return alone in (self._wholes if given else self._instructions)


# A row that may be kept, behind two digests of its query, 16 bytes each and not texts:
# of it as it is, and of its normal form.
_Candidate = tuple[bytes, bytes, instructions.Instruction]


def _survivors(
    source: row_sources.Source,
    stem: str,
    counts: SourceCounts,
    before: set[bytes],
    excluded: Exclusions,
    require_answer: bool,
) -> Iterator[_Candidate]:
    """What is not dropped; fills `counts`."""
    here: set[bytes] = set()
    for number, where, value in row_sources.read(source):
        counts.read += 1
        try:
            query, answer, cut = instructions.parse_row(
                value, where, require_answer=require_answer
            )
        except errors.InputError as error:
            counts.unusable += 1
            counts.reason = counts.reason or str(error)
            continue
        counts.cut += cut
        if not query:
            counts.empty += 1
            continue
        if require_answer and not answer:
            counts.unanswered += 1
            continue
        exact, normal = _digest(query, b'exact'), query_key(query)
        if exact in here or exact in before:
            counts.duplicates += 1
            continue
        if normal in here or normal in before:
            counts.near_duplicates += 1
            continue
        here |= {exact, normal}
        if query in excluded:
            counts.excluded += 1
            continue
        counts.kept += 1
        row = instructions.Instruction(query, answer, f'{stem}:{number}', source.label)
        yield exact, normal, row


def _sample(
    rows: Iterator[_Candidate], count: int | None, seed: int
) -> list[_Candidate]:
    """The `count` rows whose seeded hash is smallest, in their own order.

    Which they are depends on the seed and the queries, not on file names or order,
    and no more than `count` texts are ever held.
    """
    if count is None:
        return list(rows)
    salt = b'%d' % (seed % 10**15)

    def drawn(numbered: tuple[int, _Candidate]) -> bytes:
        _, (_, normal, _) = numbered
        return hashlib.blake2b(normal, digest_size=16, salt=salt).digest()

    smallest = heapq.nsmallest(count, enumerate(rows), key=drawn)
    return [row for _, row in sorted(smallest, key=lambda numbered: numbered[0])]


def _stems(sources: Sequence[row_sources.Source]) -> list[str]:
    """One stem a source, all different: the second 'a' becomes 'a-2'."""
    stems: list[str] = []
    own = {source.stem for source in sources}
    for source in sources:
        stem, number = source.stem, 1
        while stem in stems or (number > 1 and stem in own):
            number += 1
            stem = f'{source.stem}-{number}'
        stems.append(stem)
    return stems


def mix(
    spec: str,
    *,
    seed: int = 0,
    exclude_queries: Sequence[str] = (),
    require_answer: bool = True,
) -> Mixture:
    """Reads instruction sources and drops what must not or need not be learned.

    Dropped and counted, in this order: rows of no use, without a query, without an answer,
    with a query that came before (here or in an earlier source), and evaluation
    questions. Of the rest a source with a count gives a sample of that size.

    Args:
        spec: the value of `--instructions`; see `row_sources.parse_spec`.
        seed: of the samples; the same seed and data give the same rows.
        exclude_queries: evaluation questions; see `Exclusions`.
        require_answer: whether rows without an answer are dropped; otherwise their
            answer is ''.

    Raises:
        InputError: if a source holds no usable row, naming its first one, or
            nothing is left.
    """
    sources = row_sources.parse_spec(spec)
    excluded, seen = Exclusions(exclude_queries), set[bytes]()
    rows: list[instructions.Instruction] = []
    all_counts = []
    for source, stem in zip(sources, _stems(sources), strict=True):
        counts = SourceCounts(source.label, source.count)
        survivors = _survivors(source, stem, counts, seen, excluded, require_answer)
        sample = _sample(survivors, source.count, seed)
        counts.not_sampled, counts.kept = counts.kept - len(sample), len(sample)
        for exact, normal, row in sample:
            seen |= {exact, normal}
            rows.append(row)
        if not counts.read:
            raise errors.InputError(f'Instruction source {source.name} holds no rows.')
        if counts.unusable == counts.read:
            more = f' (so are all {counts.read:,} rows)' if counts.read > 1 else ''
            raise errors.InputError(f'{counts.reason.rstrip(".")}{more}.')
        all_counts.append(counts)
    mixture = Mixture(tuple(rows), tuple(all_counts))
    if not rows:
        raise errors.InputError(
            f'No instructions are left: {"; ".join(mixture.summary.splitlines())}.'
        )
    return mixture
