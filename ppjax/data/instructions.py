"""General instruction data D_base: rows of (query, answer) in the field's formats.

Of a conversation the first question and its answer are taken. A row that is no use (it
begins with an answer, calls tools, shows pictures, has fields that nobody knows) is for
the caller to leave out and count.
"""

import dataclasses
import re
from typing import Any, NamedTuple

from ppjax.base import errors
from ppjax.personas import inputs


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One general query with its plain answer.

    Attributes:
        query: what a user asks, its input or context included.
        answer: the reference answer; '' where the source has none.
        query_id: unique within the mixture and the same on every machine, as in
            'alpaca_9k:17'.
        source: the name of the file or data set it comes from.
    """

    query: str
    answer: str
    query_id: str
    source: str


# Fields of (query, answer) -> what belongs to the query, where it is given. The first
# that fits wins. A row may have other fields besides. OpenOrca's system prompt is among
# those: the persona prompt takes its place.
_FORMATS: dict[tuple[str, str], tuple[str, ...]] = {
    ('instruction', 'output'): ('input', 'context'),  # Alpaca.
    ('instruction', 'response'): ('input', 'context'),  # Dolly.
    ('question', 'response'): (),  # OpenOrca.
    ('query', 'answer'): (),
    ('prompt', 'response'): (),
    ('prompt', 'completion'): (),
    ('question', 'answer'): (),
}
_KNOWN = (
    'Alpaca (instruction, input, output), Dolly (instruction, context, response), '
    'OpenOrca (question, response), plain (query, answer), prompt (prompt, response or '
    'completion), chat (messages) or ShareGPT (conversations)'
)
_CHATS = ('messages', 'conversations', 'conversation')
# What speakers are called in chats and by ShareGPT.
_ROLES = {
    'human': 'user',
    'gpt': 'assistant',
    'chatgpt': 'assistant',
    'bot': 'assistant',
    'model': 'assistant',
    'developer': 'system',
}
_TEXT_PARTS = ('text', 'input_text', 'output_text')

_INPUT_HEADER = re.compile(
    r'^[ \t]*###[ \t]*input[ \t]*:[ \t]*$', re.IGNORECASE | re.MULTILINE
)

# How rows say that there is no input, outer punctuation and inner spaces dropped:
# Alpaca has '<noinput>', 'No input required.', '(no input)', 'N/A' and more.
_PLACEHOLDERS = frozenset(
    (
        'noinput',
        'noinputs',
        'noinputneeded',
        'noinputnecessary',
        'noinputprovided',
        'noinputrequired',
        'none',
        'n/a',
    )
)
_LONGEST_PLACEHOLDER = 40


def is_placeholder(text: str) -> bool:
    """Whether an input only says that there is none, as '<noinput>' does."""
    if len(text) > _LONGEST_PLACEHOLDER:
        return False
    bare = text.casefold().strip('<>()[]{}\\`\'"*., \t\r\n')
    return re.sub(r'[\s_-]+', '', bare) in _PLACEHOLDERS


def with_input(instruction: str, given: str) -> str:
    """An instruction and its input as one query, as the paper's questions have them.

    Either may be empty; an input that is a placeholder is.
    """
    instruction, given = instruction.strip(), given.strip()
    if not given or is_placeholder(given):
        return instruction
    return f'{instruction}\n\n### Input:\n{given}' if instruction else given


def split_input(query: str) -> tuple[str, str]:
    """A query as its (instruction, input), undoing `with_input`.

    The paper's own questions still have placeholders as inputs: they are '' here.
    """
    parts = _INPUT_HEADER.split(query, maxsplit=1)
    instruction, given = (*parts, '')[:2]
    given = given.strip()
    return instruction.strip(), '' if is_placeholder(given) else given


def _shown(fields: Any) -> str:
    names = [repr(name)[:40] for name in fields]
    more = f' and {len(names) - 10} more' if len(names) > 10 else ''
    return ', '.join(names[:10]) + more


def _text(row: dict[Any, Any], field: str, where: str) -> str:
    """One field's text; null, as Parquet files have it, is ''."""
    value = row.get(field)
    if value is None:
        return ''
    if not isinstance(value, str):
        raise errors.InputError(
            f'{where}: field {field!r} is not text but {type(value).__name__}.'
        )
    if not inputs.is_text(value):
        raise errors.InputError(
            f'{where}: field {field!r} has half of a surrogate pair (\\ud800 to '
            '\\udfff), which is no text; repair or remove the row.'
        )
    return value.strip()


def _fields_of(
    row: dict[Any, Any], where: str, require_answer: bool
) -> tuple[str, str]:
    """The fields of the query and the answer."""
    whole = [fields for fields in _FORMATS if all(field in row for field in fields)]
    asking = [] if require_answer else [x for x in _FORMATS if x[0] in row]
    if found := whole + asking:
        return found[0]
    raise errors.InputError(
        f'{where}: unknown format with the fields {_shown(row) or "(none)"}; '
        f'wanted {_KNOWN}.'
    )


class Parsed(NamedTuple):
    """What a row asks and answers.

    Attributes:
        query: may be empty.
        answer: may be empty.
        cut: whether the conversation goes on after the answer.
    """

    query: str
    answer: str
    cut: bool = False


def _content(message: dict[Any, Any], where: str) -> str:
    """A message's text, which may come in parts."""
    field = 'value' if 'from' in message else 'content'
    parts = message.get(field)
    if not isinstance(parts, list):
        return _text(message, field, where)
    texts = []
    for part in parts:
        kind = part.get('type', 'text') if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS:
            raise errors.InputError(
                f'{where}: a message has parts other than text ({_shown([kind])}).'
            )
        texts.append(_text(part, 'text', where))
    return '\n'.join(text for text in texts if text)


def _role(message: dict[Any, Any], where: str) -> str:
    role = _text(message, 'from' if 'from' in message else 'role', where).lower()
    return _ROLES.get(role, role)


def _parse_chat(messages: Any, field: str, where: str) -> Parsed:
    wanted = (
        'wanted a user message and its assistant message, after a system message or '
        'none'
    )
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) for message in messages
    ):
        raise errors.InputError(
            f'{where}: field {field!r} is no list of {{"role", "content"}}; {wanted}.'
        )
    roles = [_role(message, where) for message in messages]
    start = 1 if roles[:1] == ['system'] else 0
    if roles[start : start + 2] not in (['user'], ['user', 'assistant']):
        raise errors.InputError(
            f'{where}: the roles of the messages are {_shown(roles) or "(none)"}; '
            f'{wanted}.'
        )
    turn = messages[start : start + 2]
    for name in ('tool_calls', 'function_call'):
        if turn[-1].get(name):
            raise errors.InputError(f'{where}: the answer is a call of tools.')
    texts = [_content(message, where) for message in turn]
    return Parsed(texts[0], ''.join(texts[1:]), len(messages) > start + 2)


def parse_row(row: Any, where: str, *, require_answer: bool = True) -> Parsed:
    """The query and the answer of one row, in whichever known format it is.

    System prompts are dropped, placeholders of an input ('<noinput>') too. Outer
    spaces go; either text may come out empty.

    Args:
        row: a parsed value.
        where: file and row, for errors.
        require_answer: whether a row without a field for the answer is refused.

    Raises:
        InputError: if the fields are of no known format or hold no text, or a chat
            does not begin with a question and its answer in words.
    """
    if not isinstance(row, dict):
        raise errors.InputError(
            f'{where}: the row is {type(row).__name__}, not an object with fields; '
            f'wanted {_KNOWN}.'
        )
    for field in _CHATS:
        if field in row:
            return _parse_chat(row[field], field, where)
    if isinstance(row.get('prompt'), list):
        parts = [row['prompt'], row.get('completion', row.get('response')) or []]
        if isinstance(parts[1], list):
            return _parse_chat(parts[0] + parts[1], 'prompt', where)
    fields = _fields_of(row, where, require_answer)
    given = [_text(row, field, where) for field in _FORMATS[fields]]
    given = [text for text in given if text and not is_placeholder(text)]
    query, answer = (_text(row, field, where) for field in fields)
    return Parsed(with_input(query, '\n\n'.join(given)), answer)
