"""What answers are ranked by.

The three dimensions are CoSER's (Wang et al., arXiv:2502.09082) as far as the paper uses
them: the fourth, storyline consistency, compares an answer with what happened in the
book that a character is from, and a persona that is a description has no book. The
words are ours.

Source: Persona-Pruner, arXiv:2606.14695, appendix C.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One thing that answers are compared in.

    Attributes:
        name: its key in files.
        title: for people.
        question: what makes an answer come first, for people and judges alike.
    """

    name: str
    title: str
    question: str


DIMENSIONS = (
    Dimension(
        'anthropomorphism',
        'Anthropomorphism',
        'Which answer sounds most like this very person talking, and least like an '
        'assistant program that could be talking to anyone?',
    ),
    Dimension(
        'character_fidelity',
        'Character fidelity',
        'Which answer is truest to the description: what this person values and '
        'likes, and the way this person speaks?',
    ),
    Dimension(
        'storyline_quality',
        'Storyline quality',
        'Which answer holds together best: can it be followed from its first word to '
        'its last, and would it be said in this situation?',
    ),
)
NAMES = tuple(dimension.name for dimension in DIMENSIONS)
