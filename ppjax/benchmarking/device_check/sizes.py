"""How large the parts of a check are: for an accelerator, and tiny for a CPU."""

import dataclasses

from ppjax.benchmarking.device_check import shapes
from ppjax.planning import step_shape


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of all parts.

    Attributes:
        name: 'full' or 'tiny'.
        dtype: of weights and activations where speed is measured.
        prompt, answer: tokens that examples share, and of every answer.
        batch, large_batch: examples of a step, and of the largest model's.
        steps: that are timed, after two that are not.
        personas: of scoring, the target included.
        queries, query: of scoring, and the tokens of each.
        call_tokens: query tokens that a call of scoring runs, one after the other.
        generated: rows at a time.
        generated_prompt, generated_answer: tokens.
        rounds: of scoring and generation, after one that is not counted.
    """

    name: str
    dtype: str
    prompt: int
    answer: int
    batch: int
    large_batch: int
    steps: int
    personas: int
    queries: int
    query: int
    call_tokens: tuple[int, ...]
    generated: tuple[int, ...]
    generated_prompt: int
    generated_answer: int
    rounds: int

    @property
    def is_tiny(self) -> bool:
        return self.name == 'tiny'

    def shaped(self, name: str) -> shapes.Shaped:
        """A model at this size."""
        return shapes.shaped(name, tiny=self.is_tiny)

    def batch_of(self, name: str) -> int:
        """Examples of a step of this model."""
        return self.large_batch if name == shapes.QWEN_32B else self.batch

    def step(self, name: str) -> step_shape.Shape:
        """Of a step of this model."""
        layers = self.shaped(name).config.num_layers
        return step_shape.Shape(self.prompt, self.answer, self.batch_of(name), layers)


FULL = Sizes(
    name='full',
    dtype='bfloat16',
    prompt=256,
    answer=256,
    batch=16,
    large_batch=8,
    steps=8,
    personas=5,
    queries=512,
    query=48,
    call_tokens=(2048, 16_384),
    generated=(1, 8, 64),
    generated_prompt=128,
    generated_answer=64,
    rounds=2,
)
TINY = Sizes(
    name='tiny',
    dtype='bfloat16',
    prompt=24,
    answer=16,
    batch=3,
    large_batch=2,
    steps=2,
    personas=3,
    queries=6,
    query=8,
    call_tokens=(64,),
    generated=(1, 3),
    generated_prompt=8,
    generated_answer=4,
    rounds=1,
)
