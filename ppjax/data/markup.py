"""A chat model's form inside a text: turn markers, marks of reasoning, added tokens.

A text that a model or a person wrote must hold none of it. The model's own would end
or open turns in the middle of a prompt; another family's is noise that would be learned
as words. Which texts are refused, cut or counted is the callers' affair; what counts as
a mark is said here alone, for all chat models.
"""

import re
import unicodedata

import transformers

from ppjax.base import errors

# ChatML, Llama 3 and 4, Phi, Harmony, Cohere, GLM, Granite: <|name|>; DeepSeek: <｜name｜>;
# EXAONE: [|name|]; Gemma, Seed-OSS, Llama 2 and Mistral as they are spelled.
_TURN = re.compile(
    r'<[|｜]/?[A-Za-z_][^\s<>|｜]{0,40}[|｜]>|\[\|/?[a-z_]{1,30}\|\]'
    r'|<(?:start|end)_of_(?:turn|image)>|<\|?/?(?:turn|channel|tool_call|'
    r'tool_response|tool)\|>|<\|(?:turn|channel|tool_call|tool_response|tool)>'
    r'|</?(?:tool_call|tool_response|function_call)>|<(?:bos|eos|pad|unk)>'
    r'|<seed:\w+>|<(?:unused|extra_id_|SPECIAL_)\d+>'
    r'|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>'
    # HTML strikes text through with <s>: only where a turn begins or ends.
    r'|\A\s*<s>|</s>(?=\s*(?:\Z|<s>|\[INST\]))'
)
# What stands before one of these is a whole answer.
_END = re.compile(
    r'<[|｜](?:im_end|eot_id|eom_id|eot|eom|end|return|endoftext|end_of_text|'
    r'end_of_turn|END_OF_TURN_TOKEN|end▁of▁sentence)[|｜]>'
    r'|\[\|endofturn\|\]|<end_of_turn>|<turn\|>|<eos>|</s>'
)
_THOUGHTS = (
    'think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad|'
    'inner_thoughts?|seed:think'
)
_OPENED = re.compile(
    rf'<(?:{_THOUGHTS})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>'
    r'|<\|channel\|>\s*(?:analysis|commentary)|<\|channel>thought|<unused94>thought'
    # Harmony's, of which a server kept the words and left out the marks.
    r'|\Aanalysis(?=.*assistantfinal)',
    re.IGNORECASE | re.DOTALL,
)
_CLOSED = re.compile(
    rf'</(?:{_THOUGHTS})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>'
    r'|<\|channel\|>\s*final\s*<\|message\|>|<channel\|>|<unused95>|assistantfinal',
    re.IGNORECASE,
)
# Added tokens of these names are how some tokenizers spell ordinary HTML.
_HTML = re.compile(
    r'a|b|blockquote|br|caption|code|d[dlt]|div|em|h[1-6]|i|img|li|ol|p|pre|s|span|'
    r'strong|su[bp]|table|tbody|tfoot|thead|t[dhr]|u|ul',
    re.IGNORECASE,
)
_NAMED = re.compile(r'[<\[◁][|｜/@]{0,2}(\w.*)[>\]▷]', re.DOTALL)


class Marked(errors.InputError):
    """A text holds marks that no text may hold."""


def turn_mark(text: str) -> str:
    """The first turn marker of any family; '' if there is none."""
    found = _TURN.search(text)
    return found.group().strip() if found else ''


def reasoning_mark(text: str) -> str:
    """The first mark of reasoning of any family; '' if there is none."""
    opened, closed = _OPENED.search(text), _CLOSED.search(text)
    # A word that only follows Harmony's "analysis".
    if closed and closed.group().lower() == 'assistantfinal' and not opened:
        closed = None
    found = min(
        (x for x in (opened, closed) if x), key=lambda x: x.start(), default=None
    )
    return found.group() if found else ''


def without_reasoning(text: str) -> tuple[str, bool]:
    """Takes off reasoning in front of the words, if it came to an end.

    The opening mark may be missing: some templates put it into the prompt.

    Returns:
        (the words, stripped; whether there was reasoning).
    """
    text = text.strip()
    mark = reasoning_mark(text)
    closed = _CLOSED.search(text) if mark else None
    opened = _OPENED.search(text)
    if closed is None or (
        # Words, then reasoning: which of them is the answer, nobody knows.
        opened
        and opened.start() < closed.start()
        and _TURN.sub('', text[: opened.start()]).strip() not in ('', 'assistant')
    ):
        return text, False
    return text[closed.end() :].strip(), True


def without_turn_end(text: str) -> tuple[str, bool]:
    """Cuts where the turn ends, if nothing but the next turn's marker follows.

    Returns:
        (the words; whether they were cut).
    """
    found = _TURN.search(text)
    if found is None or not _END.fullmatch(found.group()):
        return text, False
    before, after = text[: found.start()].rstrip(), text[found.end() :].lstrip()
    if not before or (after and not _TURN.match(after)):
        return text, False
    return before, True


def spaced(text: str) -> str:
    """Ordinary text in which every mark is still read, but none is one any more."""
    return _TURN.sub(_space, _OPENED.sub(_space, _CLOSED.sub(_space, text)))


def _space(found: re.Match[str]) -> str:
    mark = found.group()
    return f'{mark[0]} {mark[1:]}' if not mark[0].isalnum() else mark


class OwnMarks:
    """Which texts a tokenizer takes for its marks, however they are spelled.

    Its special tokens, and those added tokens that are named like one ("<think>",
    "<｜User｜>"); blanks and HTML that a tokenizer has as added tokens are text.
    """

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.special = {i: x.content for i, x in added.items() if x.special}
        named = {i: x.content for i, x in added.items() if _is_named(x.content)}
        self._all = self.special | named
        self._first = {
            _folded(content.strip())[:1] for content in self._all.values() if content
        }

    def first(self, text: str, *, special_only: bool = False) -> str:
        """A mark that stands in a text; '' if there is none.

        Args:
            text: of a turn, without its form.
            special_only: whether marks that are no special tokens may stand in it.
        """
        folded = _folded(text)
        if not any(first in folded for first in self._first):
            return ''
        marks = self.special if special_only else self._all
        literal = next((x for x in marks.values() if x.strip() and x in text), '')
        if literal:
            return literal
        # Tokenizers may normalise a text before they look for their tokens. What they
        # do not know at all is no mark.
        unknown = self._tokenizer.unk_token_id
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return next((marks[i] for i in found if i in marks and i != unknown), '')

    def spaced(self, text: str) -> str:
        """`spaced`, of this tokenizer's marks too."""
        text = spaced(text)
        marks = sorted((x for x in self._all.values() if x in text), key=len)
        for mark in reversed(marks):
            if len(mark) > 1:
                text = text.replace(mark, f'{mark[0]} {mark[1:]}')
        return text


def _folded(text: str) -> str:
    return unicodedata.normalize('NFKC', text).casefold()


def _is_named(content: str) -> bool:
    found = _NAMED.fullmatch(content.strip())
    return found is not None and not _HTML.fullmatch(found.group(1))
