"""One of the cast: what a model id stands for."""

import dataclasses
import pathlib

import numpy as np

from ppjax.personas import persona as persona_lib


@dataclasses.dataclass(frozen=True)
class Picture:
    """A character's picture, as its card holds it."""

    media_type: str
    content: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Member:
    """A persona on the base model, or the base model itself.

    Attributes:
        name: the model id.
        digest: of what it masks, by content (`models.masks.Masks.digest`); '' where
            nothing is masked. Known prefixes are found by it.
        scale: what the channels are multiplied by, [L, F], bool or float16; None where
            nothing is masked.
        sparsity: share of channels that it does without.
        system_prompt: its persona prompt; '' for none.
        persona: what its card says beside (greeting, book, what follows the history);
            None where it came from a mask file.
        picture: of its card; None for none.
        source: its file; None for the base model.
        created: seconds since 1970.
    """

    name: str
    digest: str
    scale: np.ndarray | None = dataclasses.field(repr=False)
    sparsity: float
    system_prompt: str
    persona: persona_lib.Persona | None
    picture: Picture | None
    source: pathlib.Path | None
    created: int

    @property
    def is_dense(self) -> bool:
        """Whether it is the base model as it is."""
        return self.scale is None

    @property
    def title(self) -> str:
        """The character's name, for people."""
        return (self.persona.name if self.persona else '') or self.name
