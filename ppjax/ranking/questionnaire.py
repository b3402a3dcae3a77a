"""What is shown to whoever ranks: some questions, and answers without their names."""

from collections.abc import Mapping, Sequence
import dataclasses
import string

from ppjax.base import errors, json_lines
from ppjax.personas import inputs
from ppjax.ranking import answer_files

# Of the answers on a page; nobody ranks more.
LETTERS = string.ascii_uppercase


@dataclasses.dataclass(frozen=True)
class Item:
    """A question to a persona.

    Attributes:
        persona: its text P.
        question: the user's turn.
        answers: of every model.
    """

    persona: str
    question: str
    answers: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Questionnaire:
    """The items of a study, numbered from 1 on.

    Attributes:
        models: whose answers are ranked, two at least.
        items: the same for everyone.
        seed: of the orders in which answers are shown.
    """

    models: tuple[str, ...]
    items: tuple[Item, ...]
    seed: int

    @property
    def digest(self) -> str:
        """Differs where anything does but the order of the models."""
        items = [(x.persona, x.question, sorted(x.answers.items())) for x in self.items]
        return json_lines.digest([sorted(self.models), items, self.seed])

    @property
    def letters(self) -> str:
        """One a model."""
        return LETTERS[: len(self.models)]

    def shown(self, participant: str, number: int) -> list[str]:
        """The models in the order in which a participant sees their answers.

        Every order is equally likely, whatever others see. It follows from hashes
        alone, so that no version of a library changes it.
        """
        return sorted(
            self.models,
            key=lambda model: _place(self.seed, participant, number, model),
        )


def _place(seed: int, *of: object) -> str:
    """Where something stands in an order that the seed fixes."""
    return json_lines.digest([seed, *of])


def draw(
    given: Mapping[str, answer_files.Answers],
    *,
    count: int,
    seed: int,
    notes: inputs.Notes = inputs.no_notes,
) -> Questionnaire:
    """A sample of the questions that all models answer, in an order of its own.

    Args:
        given: model -> its answers.
        count: of items; all that there are if fewer.
        seed: of the sample, and of the orders in which answers are shown.
        notes: told what is left out.

    Raises:
        InputError: if there are fewer than two models, too many, or no question that
            all of them answer.
    """
    if not 2 <= len(given) <= len(LETTERS):
        raise errors.InputError(
            f'--answers names {len(given)} model{"s" * (len(given) != 1)}; wanted 2 to '
            f'{len(LETTERS)}.'
        )
    asked = {one for own in given.values() for one in own}
    common = [one for one in asked if all(one in own for own in given.values())]
    if lacking := _lacking(given, asked):
        notes(
            f'Left out: {len(asked) - len(common)} of {len(asked)} questions, which not '
            f'all models answer ({lacking}).'
        )
    if not common:
        raise errors.InputError(
            '--answers: there is no question, of one and the same persona, that all '
            f'models answer; {lacking}.'
        )
    drawn = sorted(common, key=lambda one: _place(seed, *one))[:count]
    if len(drawn) < count:
        notes(f'All models answer {len(common)} questions, fewer than --items={count}.')
    elif len(drawn) < len(common):
        notes(
            f'{len(drawn)} of {len(common)} questions that all models answer are drawn '
            f'with --seed={seed}.'
        )
    items = [
        Item(*one, {name: own[one] for name, own in given.items()}) for one in drawn
    ]
    return Questionnaire(tuple(given), tuple(items), seed)


def _lacking(
    given: Mapping[str, answer_files.Answers], asked: set[answer_files.Asked]
) -> str:
    counts = {name: len(asked) - len(own) for name, own in given.items()}
    parts = [f'{name} lacks {count}' for name, count in counts.items() if count]
    return ', '.join(parts)


def differences(there: Questionnaire, now: Questionnaire) -> list[str]:
    """What two questionnaires differ in, for people; nothing if they are one."""
    if there.digest == now.digest:
        return []
    if set(there.models) != set(now.models):
        return [
            f'the models ({", ".join(there.models)} there, {", ".join(now.models)} now)'
        ]
    if there.seed != now.seed:
        return [f'--seed ({there.seed} there, {now.seed} now)']
    found = []
    if len(there.items) != len(now.items):
        found.append(f'--items ({len(there.items)} there, {len(now.items)} now)')
    elif _asked(there.items) != _asked(now.items):
        found.append('the questions, or their personas')
    ours, theirs = (
        {(x.persona, x.question): x.answers for x in items}
        for items in (there.items, now.items)
    )
    changed = [
        model
        for model in there.models
        if any(ours[x][model] != theirs[x][model] for x in ours.keys() & theirs.keys())
    ]
    if changed:
        found.append(f'the answers of {", ".join(changed)}')
    return found


def _asked(items: Sequence[Item]) -> list[tuple[str, str]]:
    return [(item.persona, item.question) for item in items]
