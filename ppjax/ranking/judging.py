"""A judge's rankings: every dimension of every item, in an order and in its reverse.

Judges like what stands first, or last. So each ranking is asked for twice, with the
answers in the shuffled order and in the reverse of it, and the ranks are averaged; how
often both agree is reported. A reply that is not exactly a list of the letters is no
ranking: it is kept and counted, and nothing is guessed from it.
"""

from collections.abc import Callable, Generator, Sequence
import dataclasses

from ppjax.base import json_lines
from ppjax.chat_api import replies as replies_lib
from ppjax.evaluation.dialogues import speakers
from ppjax.personas import prompts
from ppjax.ranking import dimensions, questionnaire, study

_PROMPT = """\
You are comparing answers that several writers gave in the name of the same person. \
You do not know the writers, and the order in which their answers stand here says \
nothing. Neither does their length.

The person:
[PERSON START]
{persona}
[PERSON END]

What the person was asked:
[QUESTION START]
{question}
[QUESTION END]

{answers}

Compare the answers in one respect only, {dimension}: {criterion}

Put all {count} answers in order, the best in this respect first, no two on one place. \
Respond with a JSON list of their letters, each once, and with nothing else: the list \
begins with the letter of the best answer and ends with that of the worst."""

_ANSWER = """\
[ANSWER {letter} START]
{answer}
[ANSWER {letter} END]"""


@dataclasses.dataclass(frozen=True)
class Request:
    """One ranking that a judge is asked for.

    Attributes:
        item: number.
        dimension: in which.
        backwards: whether the answers stand in the reversed order.
    """

    item: int
    dimension: dimensions.Dimension
    backwards: bool


def prompt(
    item: questionnaire.Item,
    shown: Sequence[str],
    dimension: dimensions.Dimension,
) -> str:
    """Asks for the order of an item's answers.

    Args:
        item: whose answers.
        shown: the models in the order in which their answers stand.
        dimension: what counts.

    Source: the task is that of Persona-Pruner, arXiv:2606.14695, appendix C, whose
        prompt is not published; the words are ours.
    """
    listed = [
        prompts.fill(_ANSWER, letter=letter, answer=item.answers[model])
        for letter, model in zip(questionnaire.LETTERS, shown, strict=False)
    ]
    return prompts.fill(
        _PROMPT,
        persona=item.persona,
        question=item.question,
        answers='\n\n'.join(listed),
        dimension=dimension.title.lower(),
        criterion=dimension.question,
        count=str(len(shown)),
    )


def parse(reply: str, letters: str) -> list[str] | None:
    """The letters of a reply, the best first; None if it is anything but their list.

    The list may stand in a fenced block of Markdown, and nothing beside it.
    """
    found = replies_lib.json_in(reply)
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        return None
    return found if sorted(found) == sorted(letters) else None


def participant(model: str, speaker: speakers.Speaker) -> study.Participant:
    """A judge: by its name, and by all that its words depend on.

    With another setting it is another participant, so that no study mixes the two.
    """
    digest = json_lines.digest(speaker.identity)[:8]
    return study.Participant(f'judge:{model}:{digest}', study.JUDGE, model)


def judge(
    opened: study.Study,
    model: str,
    speaker: speakers.Speaker,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Asks for all rankings that the study does not have.

    Every reply is on disk before the next is taken: a run that is killed loses those
    on their way, and the same command goes on.

    Args:
        opened: a study that has begun.
        model: the judge's name.
        speaker: the judge.
        progress: called with (replies, all), first for those that are there.

    Returns:
        Why replies are lacking, one text each; they are asked for again next time.

    Raises:
        InputError: if the judge cannot be used, or nothing can be written.
    """
    asked = opened.questionnaire
    assert asked is not None
    own = participant(model, speaker)
    opened.add(own)
    known = {
        (reply.item, reply.dimension, reply.backwards)
        for reply in opened.replies(own.code)
    }
    requests = [
        Request(number, dimension, backwards)
        for number in range(1, len(asked.items) + 1)
        for dimension in dimensions.DIMENSIONS
        for backwards in (False, True)
    ]
    todo = [
        request
        for request in requests
        if (request.item, request.dimension.name, request.backwards) not in known
    ]

    def shown(request: Request) -> list[str]:
        models = asked.shown(own.code, request.item)
        return models[::-1] if request.backwards else models

    conversations = [
        [
            {
                'role': 'user',
                'content': prompt(
                    asked.items[request.item - 1], shown(request), request.dimension
                ),
            }
        ]
        for request in todo
    ]
    done = len(known)
    if progress is not None:
        progress(done, len(requests))
    failures = []
    replies = speaker.speak(conversations) if todo else iter(())
    try:
        for index, said in replies:
            request = todo[index]
            done += 1
            if said.failure:
                failures.append(said.failure)
            else:
                opened.hear(
                    own.code, _read(request, said.text, asked.letters, shown(request))
                )
            if progress is not None:
                progress(done, len(requests))
    finally:
        # An abandoned generator would go on asking until it is collected.
        if isinstance(replies, Generator):
            replies.close()
    return failures


def _read(
    request: Request, text: str, letters: str, shown: Sequence[str]
) -> study.Reply:
    """A reply, with its ranking if it is one."""
    order = parse(text, letters)
    models = dict(zip(letters, shown, strict=True))
    return study.Reply(
        request.item,
        request.dimension.name,
        request.backwards,
        json_lines.encodable(text),
        None if order is None else tuple(models[letter] for letter in order),
    )
