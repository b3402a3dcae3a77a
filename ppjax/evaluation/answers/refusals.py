"""Whether an answer declines to answer, by the English phrases that models use."""

import re

from ppjax.evaluation.answers import repetition

# A refusal with so many words after it, and a "but I can", has answered after all.
_ANSWERED_WORDS = 40


def _alternatives(*patterns: str) -> str:
    return f'(?:{"|".join(patterns)})'


# "Ahoy, matey, ..." and "As a banker, ...", then words that carry no meaning.
_LEAD = (
    r'^(?:[^,.!?;:—]{1,40}[,;:—] ?){0,3}(?:(?:but|and|so|well|oh|no|yes|alas|however|'
    r'unfortunately|sadly|regrettably|honestly) )*'
)
_SORRY = _alternatives(
    r"(?:i am|i'm) (?:\w+ )?sorry",
    r'^sorry',
    r'apologi[sz]e',
    r'apologies',
    r'unfortunately',
    r'regrettably',
    r"(?:i am|i'm) afraid",
    r'i regret',
)
_AFRAID = (
    r"(?:(?:(?:i am|i'm) (?:\w+ )?(?:sorry|afraid)|i regret to (?:say|inform you)|"
    r'i apologi[sz]e) (?:but )?(?:that )?)?'
)
_ABLE = _alternatives(
    "can't",
    'cannot',
    'can not',
    "couldn't",
    'could not',
    "(?:won't|will not)(?: be able to)?",
    '(?:unable|not able|not allowed|not permitted|not going|not programmed|'
    'not designed|not qualified|not equipped|not in a position) to',
    'not comfortable(?: with)?',
    "(?:don't|do not) feel comfortable(?: with)?",
    "(?:don't|do not) think i can",
    "(?:must |have to |'ll have to )?(?:\\w+ly )?(?:decline|refuse) to",
    "(?:'d|would) (?:rather not|prefer not to)",
    'prefer not to',
)
_CANNOT = rf"(?:i|we)(?: am|'m| are|'re)?(?: (?:really|simply|just|truly))? ?{_ABLE}"
_HELP = (
    r'help(?:ing)?(?! (?:but|it|myself|thinking|feeling|wondering|laughing|smiling)\b)'
)
_VERB = _alternatives(
    _HELP,
    'assist(?:ing)?',
    'comply(?:ing)?',
    'answer(?:ing)?',
    'respond(?:ing)?',
    'provid(?:e|ing)',
    'offer(?:ing)?',
    'giv(?:e|ing)',
    'discuss(?:ing)?',
    'engag(?:e|ing)(?: in)?',
    'participat(?:e|ing)(?: in)?',
    'fulfill?(?:ing)?',
    'generat(?:e|ing)',
    'creat(?:e|ing)',
)
_LOOSE_VERB = _alternatives(
    _VERB,
    'complet(?:e|ing)',
    'continu(?:e|ing)',
    'do (?:that|this)',
    'explain(?:ing)?',
    'pretend',
    'produc(?:e|ing)',
    'shar(?:e|ing)',
    'support(?:ing)?',
    'talk(?:ing)? about',
    'writ(?:e|ing)',
)
_REQUEST = (
    r'(?:requests?|questions?|quer(?:y|ies)|prompts?|tasks?|topics?|subjects?|content|'
    r'information|instructions?)\b'
)
_OBJECT = _alternatives(
    r'(?:you )?with (?:that|this|your|the|such|any)\b',
    r'(?:on |to |about )?(?:that|this|those|these)(?=[,.;!?]|$| (?:for|to) you\b| '
    rf'(?:kind|type|sort) of|(?: \w+)? {_REQUEST})',
    rf'(?:on |to |about |in )?(?:(?:the|your|such|any) )(?:\w+ )?{_REQUEST}',
    r'(?:you )?(?:with )?(?:(?:any|specific|medical|legal|financial|personal|'
    r'professional|further|more|detailed|tax|an?|the) ){0,3}(?:information|advice|'
    r'assistance|guidance|instructions|details|recommendations?|answers?|response|'
    r'opinions?|explanation|diagnosis)\b',
)
# Without an apology it has to be said what is refused.
_REFUSED_THING = (
    rf'{_LEAD}{_AFRAID}{_CANNOT} (?:\w+ly )?{_VERB} {_OBJECT}(?!.*\bwithout\b)'
)
_REFUSED_ALL = (
    rf'{_LEAD}{_AFRAID}{_CANNOT} (?:comply|assist|answer|help|do (?:that|this))'
    r'(?: (?:here|further|you))?\W*$'
)
_NO_ROLE = rf'{_LEAD}{_AFRAID}{_CANNOT} (?:\w+ly )?(?:role-?play|impersonat)'
_MUST_DECLINE = (
    rf"{_LEAD}(?:i|we)(?: must| have to| need to| will have to|'ll have to)(?: \w+ly)? "
    r'decline(?: (?:to (?:answer|respond|comment|discuss)|that|this|your)\b|[,.!;]|$)'
)
_HAVE_NONE = (
    rf"{_LEAD}{_AFRAID}i (?:don't|do not)(?: \w+ly)? (?:have|possess) (?:(?:any|enough|"
    r'sufficient|the|an?|specific|more) ){0,2}(?:(?:access to|ability to|capability to|'
    r'capacity to) (?:(?:the|any|your|that|real-time|current|external|such) )*'
    r'(?:information|data|internet|web|records|files|news|provide|answer|assist|access|'
    r'browse|generate|experience|see|view|feel|role-?play)|information|personal '
    r'(?:experiences?|opinions?|feelings?|beliefs?|preferences?|information))\b'
)
_NOT_PROPER = (
    r"\b(?:is not|isn't|'s not|would not be|wouldn't be) (?:appropriate|ethical|"
    r'possible|right) for me to\b|\binappropriate for me to\b'
)
_AGAINST = (
    r'\b(?:against|violates?|outside(?: of)?) (?:my|our) (?:content |usage )?'
    r'(?:guidelines|programming|polic(?:y|ies)|scope|capabilities)\b'
)
_NO_SUCH_THING = (
    r"\b(?:is not|isn't|'s not) (?:something|an? (?:topic|question|request))(?: that)? "
    r"(?:i|we)(?: can| could| am able to|'m able to) "
    r'(?:help|assist|answer|discuss|provide|talk about|comment)\b'
)
_BARE = rf'^no comment\b|{_LEAD}i (?:refuse|decline)\W*$'
_DECLINES = tuple(
    re.compile(pattern)
    for pattern in (
        _REFUSED_THING,
        _REFUSED_ALL,
        _NO_ROLE,
        _MUST_DECLINE,
        _HAVE_NONE,
        _NOT_PROPER,
        _AGAINST,
        _NO_SUCH_THING,
        _BARE,
    )
)
_SORRY_DECLINE = re.compile(
    rf'{_SORRY}\b[^.!?]{{0,60}}?\b{_CANNOT} (?:\w+ly )?{_LOOSE_VERB}\b'
    r'(?!.*\bwithout\b)'
)
_MACHINE = re.compile(
    r"\b(?:as|being|i am|i'm)(?: just| only| merely| simply)? an? (?:ai|artificial "
    r'intelligence|(?:large )?language model|virtual assistant|chatbot)\b'
)
_NEGATED = re.compile(
    r"\b(?:don't|do not|can't|cannot|can not|unable|not able|not capable|"
    r"not programmed|not designed|not allowed|won't|will not|lack|no personal)\b"
)
_TURN = re.compile(
    r"\b(?:but|however|instead|that said|still)\b[^.!?]*\b(?:i can|i could|i'll|"
    r"i will|i'd|let me|here's|here is|here are|what i)\b"
)
_SENTENCE_END = re.compile(r'(?<=[.!?…])["”’)*_]*\s+|\n+')


def is_refusal(text: str) -> bool:
    """Whether its first two sentences decline to answer, in English.

    Greetings of up to three words are not counted. "I can't stand", "I can't help but"
    and "I cannot answer that without" are a character's way of talking.
    """
    plain = re.sub(r'[*_#`]+', '', text.casefold().replace('’', "'"))
    split = (part.strip('"“”( ') for part in _SENTENCE_END.split(plain))
    sentences = [' '.join(part.split()) for part in split if part and part.strip()]
    looked_at = 0
    for number, sentence in enumerate(sentences):
        if _declines(sentence, ' '.join(sentences[number : number + 2])):
            turn = _TURN.search(' '.join(sentences[number : number + 2])[:1000])
            after = sum(
                len(repetition.words(later)) for later in sentences[number + 1 :]
            )
            return turn is None or after < _ANSWERED_WORDS
        looked_at += len(repetition.words(sentence)) > 3
        if looked_at == 2:
            break
    return False


def _declines(sentence: str, with_next: str) -> bool:
    # A first sentence can be the whole of an endless text.
    sentence, with_next = sentence[:600], with_next[:600]
    if any(rule.search(sentence) for rule in _DECLINES):
        return True
    if _SORRY_DECLINE.search(sentence):
        return True
    return bool(_MACHINE.search(sentence) and _NEGATED.search(with_next))
