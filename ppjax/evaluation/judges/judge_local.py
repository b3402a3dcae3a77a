"""Judging by a local model, exactly: the probability of every reply there may be."""

from collections.abc import Generator, Iterator, Mapping, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors, json_lines
from ppjax.data import chat, stop_tokens
from ppjax.evaluation.judges import judge_scoring, token_trie
from ppjax.models import (
    attention,
    base_model,
    generation,
    prompt_batches,
    shared_prefix,
)
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.parallel import execution, sharding

REPLIES = (*map(str, range(judge_scoring.NUM_SCORES)), judge_scoring.REFUSAL)

# Nodes of the tree whose logits over the whole vocabulary exist at a time.
_UNEMBED_NODES = 16


class LocalJudge:
    """Scores the 102 replies that a judge may give, each with the turn's end.

    P(reply) = prod_i P(token_i | prompt, tokens before) * P(end of turn | all that),
    the end being any of the model's stop tokens: without it '8' would hold all that
    begins with it. A reply's tokens are those that the tokenizer gives it right
    after the generation prompt, so digits may be tokens of their own or not.

    One pass a prompt: the replies are a tree of tokens behind it, in which a token
    attends to the prompt and to its own beginnings. What all prompts of a group start
    with is computed once.
    """

    def __init__(
        self,
        base: base_model.BaseModel,
        renderer: chat.ChatRenderer,
        decoder: decoder_lib.Decoder,
        masks: masks_lib.Masks = masks_lib.DENSE,
        *,
        batch_size: int = 8,
    ):
        """Args:
            base: the judge.
            renderer: its chat template.
            decoder: its weights.
            masks: what of it is masked.
            batch_size: prompts judged at a time.

        Raises:
            InputError: if the model's tokenizer cannot tell the replies apart, or
                nothing ends its answers.
            ValueError: if the batch size is below 1.
            AssertionError: if a mask has another shape.
        """
        masks.check(base.config)
        if batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {batch_size}.')
        self._base, self._renderer = base, renderer
        self._decoder, self._masks = decoder, masks
        self._batch_size = batch_size
        stops = stop_tokens.stop_ids(base.generation_config(), renderer.tokenizer)
        if not stops:
            raise errors.InputError(
                f'{base.name} names no token that ends an answer, so it cannot judge; '
                'give eos_token_id in its generation_config.json.'
            )
        self._opening, replies = _after_prompt(renderer, base.name)
        self._trie = token_trie.build(replies)
        # The tokens whose probability is looked up, and where each is among them.
        used = [set(self._trie.tokens[1:].tolist()), set(stops)]
        self._wanted = np.array(sorted(used[0] | used[1]), np.int32)
        if not 0 <= self._wanted[0] <= self._wanted[-1] < base.config.vocab_size:
            raise errors.InputError(
                f'{base.name}: its tokenizer has token {self._wanted[-1]}, the model '
                f'embeds {base.config.vocab_size}: it belongs to another model.'
            )
        self._columns = np.searchsorted(self._wanted, self._trie.tokens)
        self._stop_columns = np.searchsorted(self._wanted, sorted(stops))

    @functools.cached_property
    def identity(self) -> str:
        """By the weights, the mask, and how prompt and replies become tokens."""
        digest = self._masks.digest()
        mask = f'mask {digest}' if digest else 'dense'
        seen = [
            _prompt(self._renderer, 'Which number?'),
            self._trie.tokens.tolist(),
            self._trie.parents.tolist(),
            self._wanted[self._stop_columns].tolist(),
        ]
        digest = json_lines.digest(seen)
        dtype = self._decoder.embedding.get_value().dtype
        return f'local {self._base.fingerprint()} {dtype} {mask} tokens {digest}'

    def judge(
        self, requests: Sequence[judge_scoring.JudgeRequest]
    ) -> Generator[judge_scoring.Verdict, None, None]:
        """See `judge_scoring.Judge`; group by group, of each short prompts first."""
        for group in dict.fromkeys(request.group for request in requests):
            yield from self._judge_group(
                [request for request in requests if request.group == group]
            )

    def _judge_group(
        self, requests: Sequence[judge_scoring.JudgeRequest]
    ) -> Iterator[judge_scoring.Verdict]:
        prompts = {}
        for number, request in enumerate(requests):
            try:
                prompts[number] = self._tokens(request.prompt)
            except errors.InputError as error:
                yield judge_scoring.failed(request.key, str(error))
        for number, found, likeliest in self.measured(prompts):
            request = requests[number]
            verdict = judge_scoring.from_number_probabilities(
                request.key, found[:-1], float(found[-1]), request.numbers
            )
            if not (verdict.failure or verdict.understood):
                text = self._renderer.tokenizer.decode([likeliest])
                verdict = dataclasses.replace(verdict, text=text)
            yield verdict

    def measured(
        self, prompts: Mapping[int, Sequence[int]]
    ) -> Iterator[tuple[int, np.ndarray, int]]:
        """P(reply) of all `REPLIES`.

        Args:
            prompts: rendered, up to where the judge's turn starts, by any numbers.

        Yields:
            (number of the prompt, float64 [102], the likeliest first token of all there
            are), once a prompt.
        """
        if not prompts:
            return
        on = prompt_batches.behind(self._decoder, self._masks, [*prompts.values()])
        for rows, padded in prompt_batches.batches(prompts, self._batch_size, on.mesh):
            # The last token of every prompt is the root of the tree.
            tokens, lengths = self._pack([prompts[row][on.shared :] for row in padded])
            found = execution.call(
                on.mesh,
                _log_probs,
                on.model,
                on.masks,
                on.prefix,
                sharding.shard_rows(tokens, on.mesh),
                sharding.shard_rows(lengths, on.mesh),
                self._trie.depths,
                self._trie.ancestors(),
                self._wanted,
            )
            found, likeliest = map(np.asarray, jax.device_get(found))
            yield from zip(rows, self._replies(found), likeliest.tolist(), strict=False)

    def _tokens(self, prompt: str) -> list[int]:
        """A rendered prompt.

        Raises:
            InputError: if it holds the model's markup, is too long, or ends unlike
                the prompt behind which the replies were tokenised.
        """
        # An answer's markers would end the judge's turn for it.
        tokens = _prompt(self._renderer, self._renderer.spaced(prompt))
        needed = len(tokens) + int(self._trie.depths.max())
        if needed > self._base.config.max_position:
            raise errors.InputError(
                f'the judge has {self._base.config.max_position} positions, the prompt '
                f'and a reply take {needed}'
            )
        if tuple(tokens[-len(self._opening) :]) != self._opening:
            raise errors.InputError(
                "the judge's chat template opens its turn differently after this prompt"
            )
        return tokens

    def _pack(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """What follows the prefix -> (tokens [B, R + N], lengths [B] of the R)."""
        lengths = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
        room = generation.bucket(int(lengths.max()))
        tokens = np.zeros((len(prompts), room + self._trie.num_nodes), np.int32)
        tokens[:, room:] = self._trie.tokens
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt) - 1] = prompt[:-1]
            row[room] = prompt[-1]
        return tokens, lengths

    def _replies(self, log_probs: np.ndarray) -> np.ndarray:
        """[B, N, U] of the wanted tokens after each node -> [B, 102] of the replies."""
        trie = self._trie
        steps = log_probs[:, trie.parents, self._columns].astype(np.float64)
        steps[:, 0] = 0.0
        stops = log_probs[:, trie.ends][..., self._stop_columns].astype(np.float64)
        ended = trie.along_paths(steps)[:, trie.ends]
        return np.exp(ended + np.logaddexp.reduce(stops, axis=-1))


@jax.jit
def _log_probs(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    prefix: shared_prefix.SharedPrefix,
    tokens: jax.Array,
    lengths: jax.Array,
    depths: jax.Array,
    ancestors: jax.Array,
    wanted: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of U tokens after every node of a tree behind B prompts.

    Args:
        model: the decoder.
        masks: what of it is masked.
        prefix: what all prompts start with.
        tokens: [B, R + N], the prompts' own tokens padded to R, but for the last, which
            is the tree's root; then the tree.
        lengths: [B], own tokens before the root.
        depths: [N], of the nodes.
        ancestors: bool [N, N].
        wanted: [U] token ids.

    Returns:
        float32 [B, N, U]; the likeliest token of all after the root, int32 [B].
    """
    batch, length = tokens.shape
    nodes = len(depths)
    room = length - nodes
    own = jnp.arange(room)
    positions = jnp.concatenate(
        [
            jnp.broadcast_to(own[None], (batch, room)),
            lengths[:, None] + depths[None],
        ],
        axis=1,
    )
    text = jnp.tril(jnp.ones((room, room), bool))
    text = jnp.pad(text, ((0, 0), (0, nodes)))
    text = jnp.broadcast_to(text[None], (batch, room, length))
    real = own[None] < lengths[:, None]  # [B, R]
    real = jnp.broadcast_to(real[:, None], (batch, nodes, room))
    tree = jnp.broadcast_to(ancestors[None], (batch, nodes, nodes))
    tree = jnp.concatenate([real, tree], axis=-1)
    attend = attention.Branched(prefix.length, jnp.concatenate([text, tree], axis=1))
    hidden, _, _ = model(
        tokens, prefix.length + positions, masks, attend, cache=prefix.cache
    )

    # [B, C, D] -> [B, C, U], and the likeliest tokens [B, C].
    def log_probs(states: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.unembed(states)
        total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        return jnp.take(logits, wanted, axis=-1) - total, jnp.argmax(logits, axis=-1)

    chunks = -(-nodes // _UNEMBED_NODES)
    states = hidden[:, room:]
    states = jnp.pad(states, ((0, 0), (0, chunks * _UNEMBED_NODES - nodes), (0, 0)))
    states = states.reshape(batch, chunks, _UNEMBED_NODES, -1).swapaxes(0, 1)
    found, likeliest = jax.lax.map(log_probs, states)  # [chunks, B, C, U]
    found = found.swapaxes(0, 1).reshape(batch, chunks * _UNEMBED_NODES, -1)
    return execution.whole(found[:, :nodes]), execution.whole(likeliest[0, :, 0])


def _prompt(renderer: chat.ChatRenderer, text: str) -> list[int]:
    return renderer.prompt([{'role': 'user', 'content': text}])


def _after_prompt(
    renderer: chat.ChatRenderer, name: str
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """How the judge's turn opens, and each of `REPLIES` right after that, in tokens.

    Raises:
        InputError: if a reply changes the tokens before it, or two are alike.
    """
    prompts = [_prompt(renderer, text) for text in ('Which number?', 'One, please!')]
    # The tokens that prompts end with whatever they ask.
    opening = 0
    for ours, theirs in zip(*map(reversed, prompts), strict=False):
        if ours != theirs:
            break
        opening += 1
    tokenizer, prompt = renderer.tokenizer, prompts[0]
    text = tokenizer.decode(
        prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    replies = []
    for reply in REPLIES:
        tokens = tokenizer.encode(text + reply, add_special_tokens=False)
        if tokens[: len(prompt)] != prompt:
            raise errors.InputError(
                f'{name} cannot judge: in its tokenizer the reply {reply!r} changes the '
                'tokens of the prompt before it.'
            )
        replies.append(tuple(tokens[len(prompt) :]))
    if not opening or not all(replies) or len(set(replies)) != len(replies):
        raise errors.InputError(
            f'{name} cannot judge: its tokenizer does not tell the numbers 0 to 100 '
            'apart, or its chat template does not open its turn.'
        )
    return tuple(prompt[-opening:]), replies
