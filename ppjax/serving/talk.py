"""A chat request's messages as they go to the chat template.

Whoever talks sends the whole conversation each time, as OpenAI's API has it. What is
added here is what the persona brings along, used as SillyTavern uses it:

    system message      the persona's own, between the book's entries that stand before
                        the character and those that stand behind it
    conversation        as sent; a character's first message is the client's to show and
                        to send back (it is in /cast), and is never put in here
    post-history        a last system message

Where a client sends a system message in place of the persona's, the client leads: book
and post-history, which SillyTavern then has put into its own messages, are left out.

Not every template takes system messages behind the first turn. Where one refuses, drops
or moves them, what they say becomes part of a user's turn: of the one before, or else of
the next; the post-history goes to the end of the last. Nor does every template take an
answer before the first question, as a character's first message is: a word of the user's
is put before it there.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Literal

from ppjax.base import errors
from ppjax.data import chat
from ppjax.personas import lore_search
from ppjax.serving import members

ClientSystem = Literal['replace', 'follow']

Message = dict[str, str]

# 'developer' is OpenAI's newer word.
_SYSTEM = ('system', 'developer')
# Roughly, of English.
_CHARACTERS_PER_TOKEN = 4
_PROBES = ('first-note', 'a-question', 'an-answer', 'another-question', 'last-note')
_BEGINNING = '(The conversation begins.)'


def _estimate(text: str) -> int:
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


@dataclasses.dataclass(frozen=True)
class Template:
    """What of a model's template and tokenizer matters here.

    Attributes:
        late_system: whether a system message behind the first turn stays in its place.
        early_answer: whether an answer may come before the first question.
        count: tokens of a text, which the budget of a book is in.
        spaced: takes the model's own markup out of a card's text, which would have
            the template refuse every conversation that it comes into.
    """

    late_system: bool = False
    early_answer: bool = True
    count: Callable[[str], int] = _estimate
    spaced: Callable[[str], str] = str

    @classmethod
    def of(cls, renderer: chat.ChatRenderer) -> 'Template':
        """Tries the template, once."""
        tokenizer = renderer.tokenizer

        def takes(*roles: str) -> bool:
            messages = [
                {'role': role, 'content': content}
                for role, content in zip(roles, _PROBES, strict=False)
            ]
            try:
                text = tokenizer.decode(renderer.prompt(messages))
            except errors.InputError:
                return False
            places = [text.find(message['content']) for message in messages]
            return -1 not in places and places == sorted(places)

        def count(content: str) -> int:
            return len(tokenizer.encode(content, add_special_tokens=False))

        return cls(
            takes('system', 'user', 'assistant', 'user', 'system'),
            # Templates without any system message are asked without.
            takes('system', 'assistant', 'user') or takes('assistant', 'user'),
            count,
            renderer.spaced,
        )


PLAIN = Template()


def conversation(
    member: members.Member,
    messages: Sequence[Mapping[str, str]],
    *,
    client_system: ClientSystem,
    template: Template = PLAIN,
) -> list[Message]:
    """What goes to the chat template.

    Args:
        member: who answers.
        messages: of the request, each with a role and a content, both text.
        client_system: whether system messages before the client's first turn replace
            the persona's, or follow it. An empty one replaces it by none.
        template: of the model; by default one that takes system messages only first.
    """
    sent = [
        {
            'role': 'system' if message['role'] in _SYSTEM else message['role'],
            'content': message['content'],
        }
        for message in messages
    ]
    turns = list(sent)
    leading = []
    while turns and turns[0]['role'] == 'system':
        leading.append(turns.pop(0)['content'])
    own = '\n\n'.join(text for text in leading if text.strip())
    if leading and client_system == 'replace':
        return _whole(own, turns, template)
    before, behind = _brought_up(member, turns, template)
    parts = [*before, template.spaced(member.system_prompt), *behind, own]
    system = '\n\n'.join(part for part in parts if part.strip())
    if (post := member.persona.post_history if member.persona else '') and turns:
        turns.append({'role': 'system', 'content': template.spaced(post)})
    return _whole(system, turns, template)


def _brought_up(
    member: members.Member, turns: Sequence[Message], template: Template
) -> tuple[list[str], list[str]]:
    """The book's entries, before the character and behind it."""
    book = member.persona.book if member.persona else None
    if book is None:
        return [], []
    said = [turn['content'] for turn in turns if turn['role'] != 'system']
    found = lore_search.found(book, said, template.count)
    return (
        [template.spaced(entry.content) for entry in found if entry.before],
        [template.spaced(entry.content) for entry in found if not entry.before],
    )


def _whole(system: str, turns: list[Message], template: Template) -> list[Message]:
    if not template.late_system:
        turns = _folded(turns)
    if not template.early_answer and turns and turns[0]['role'] == 'assistant':
        turns = [{'role': 'user', 'content': _BEGINNING}, *turns]
    return [{'role': 'system', 'content': system}, *turns] if system else turns


def _folded(turns: Sequence[Message]) -> list[Message]:
    """Turns whose system messages are part of users' turns."""
    folded: list[Message] = []
    waiting: list[str] = []
    for number, turn in enumerate(turns):
        own = turn
        if turn['role'] == 'system':
            last = all(later['role'] == 'system' for later in turns[number:])
            place = _last_user(folded) if last else len(folded) - 1
            if place < 0 or folded[place]['role'] != 'user':
                waiting.append(turn['content'])
                continue
            said = folded[place]['content']
            folded[place] = folded[place] | {'content': f'{said}\n\n{turn["content"]}'}
            continue
        if waiting and turn['role'] == 'user':
            own = turn | {'content': '\n\n'.join([*waiting, turn['content']])}
            waiting = []
        folded.append(own)
    if waiting:
        folded.append({'role': 'user', 'content': '\n\n'.join(waiting)})
    return folded


def _last_user(turns: Sequence[Message]) -> int:
    """Where the last user's turn is; -1 for nowhere."""
    places = [number for number, turn in enumerate(turns) if turn['role'] == 'user']
    return places[-1] if places else -1
