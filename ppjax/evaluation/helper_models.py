"""The models that help to evaluate others: a judge, a partner to talk with."""

import jax.numpy as jnp

from ppjax.base import progress as progress_lib
from ppjax.chat_api import client as client_lib
from ppjax.data import chat, stop_tokens
from ppjax.evaluation import config
from ppjax.evaluation.dialogues import speakers
from ppjax.evaluation.judges import judge_local, judge_openai, judge_scoring
from ppjax.models import base_model, loading
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.parallel import sharding

# The partner's part of a dialogue is a few sentences a turn.
PARTNER_TOKENS = 256

_Local = tuple[base_model.BaseModel, chat.ChatRenderer, decoder_lib.Decoder]


class HelperModels:
    """What `--judge*` and `--partner*` name; a model that is both is loaded once."""

    def __init__(self, cfg: config.EvaluateConfig):
        self._cfg = cfg
        self._loaded: dict[str, _Local] = {}

    def judge(self) -> judge_scoring.Judge:
        """Raises:
        InputError: if it cannot be used.
        """
        cfg = self._cfg
        assert cfg.judge_model
        if cfg.judge == 'openai':
            assert cfg.judge_url
            return judge_openai.OpenAIJudge(
                self._client(cfg.judge_url, cfg.judge_model)
            )
        base, renderer, decoder = self._local(cfg.judge_model, 'judge')
        return judge_local.LocalJudge(
            base, renderer, decoder, batch_size=cfg.batch_size
        )

    def partner(self) -> speakers.Speaker:
        """Greedy, and of the same seed, whoever it talks with.

        Raises:
            InputError: if it cannot be used.
        """
        cfg = self._cfg
        assert cfg.partner_model
        if cfg.partner == 'openai':
            url = cfg.partner_url or cfg.judge_url
            assert url
            return speakers.ServerSpeaker(
                self._client(url, cfg.partner_model),
                max_new_tokens=PARTNER_TOKENS,
                seed=cfg.seed,
            )
        base, renderer, decoder = self._local(cfg.partner_model, 'partner')
        return speakers.LocalSpeaker(
            decoder,
            masks_lib.DENSE,
            renderer,
            stop_tokens.stop_ids(base.generation_config(), renderer.tokenizer),
            weights=f'{base.fingerprint()} {cfg.dtype}',
            max_new_tokens=PARTNER_TOKENS,
            batch_size=cfg.batch_size,
            seed=cfg.seed,
        )

    def _client(self, url: str, model: str) -> client_lib.ChatClient:
        return client_lib.ChatClient(
            url, model, concurrency=self._cfg.judge_concurrency
        )

    def _local(self, name: str, role: str) -> _Local:
        if name in self._loaded:
            return self._loaded[name]
        base = base_model.open_base_model(name)
        renderer = chat.ChatRenderer(
            base.tokenizer(),
            date=self._cfg.template_date,
            vocab_size=base.config.vocab_size,
        )
        progress_lib.say(f'Loading the {role} {name} ...')
        decoder = loading.load_decoder(
            base.reader,
            base.config,
            dtype=jnp.dtype(self._cfg.dtype),
            mesh=sharding.inference_mesh(self._cfg.mesh),
        )
        self._loaded[name] = base, renderer, decoder
        return base, renderer, decoder


def fingerprint(kind: str, name: str | None) -> str | None:
    """Of a local helper's weights; None of a server's, which shows none."""
    if kind != 'local' or name is None:
        return None
    return base_model.open_base_model(name).fingerprint()
