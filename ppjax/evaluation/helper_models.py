"""The models that help to evaluate others: a judge, a partner to talk with."""

from collections.abc import Sequence
from typing import Any

from ppjax.base import progress as progress_lib
from ppjax.chat_api import client as client_lib
from ppjax.evaluation import candidates, config
from ppjax.evaluation.dialogues import speakers
from ppjax.evaluation.judges import judge_local, judge_openai, judge_scoring
from ppjax.masking import apply
from ppjax.models import base_model
from ppjax.parallel import sharding

# The partner's part of a dialogue is a few sentences a turn.
PARTNER_TOKENS = 256
# A list of many flaws, and more than that is cut off and no JSON.
CRITIC_TOKENS = 1024


def local_speaker(
    cfg: config.EvaluateConfig,
    model: apply.LoadedModel,
    identity: str,
    max_new_tokens: int,
) -> speakers.LocalSpeaker:
    """A model on this machine as it takes part in dialogues, greedily."""
    return speakers.LocalSpeaker(
        model.decoder,
        model.masks,
        model.renderer(cfg.template_date),
        model.stop_ids(),
        weights=f'{identity} {cfg.dtype}',
        max_new_tokens=max_new_tokens,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
    )


class HelperModels:
    """What `--judge*` and `--partner*` name; a model that is both is loaded once."""

    def __init__(self, cfg: config.EvaluateConfig):
        self._cfg = cfg
        self._loaded: dict[str, apply.LoadedModel] = {}

    def judge(self) -> judge_scoring.Judge:
        """Raises:
        InputError: if it cannot be used.
        """
        cfg = self._cfg
        if cfg.judge == 'openai':
            return judge_openai.OpenAIJudge(self._client('judge'))
        local = self._local('judge')
        return judge_local.LocalJudge(
            local.base,
            local.renderer(cfg.template_date),
            local.decoder,
            batch_size=cfg.batch_size,
        )

    def critic(self) -> speakers.Speaker:
        """The judge where it is asked for words instead of a number; as `partner`."""
        return self._speaker('judge', CRITIC_TOKENS)

    def partner(self) -> speakers.Speaker:
        """Greedy, and of the same seed, whoever it talks with.

        Raises:
            InputError: if it cannot be used.
        """
        return self._speaker('partner', PARTNER_TOKENS)

    def _speaker(self, role: str, max_new_tokens: int) -> speakers.Speaker:
        cfg = self._cfg
        if getattr(cfg, role) == 'openai':
            return speakers.ServerSpeaker(
                self._client(role), max_new_tokens=max_new_tokens, seed=cfg.seed
            )
        local = self._local(role)
        return local_speaker(cfg, local, local.base.fingerprint(), max_new_tokens)

    def _client(self, role: str) -> client_lib.ChatClient:
        cfg = self._cfg
        url = getattr(cfg, f'{role}_url') or cfg.judge_url
        assert url
        name = getattr(cfg, f'{role}_model')
        return client_lib.ChatClient(url, name, concurrency=cfg.judge_concurrency)

    def _local(self, role: str) -> apply.LoadedModel:
        name = getattr(self._cfg, f'{role}_model')
        if name not in self._loaded:
            progress_lib.say(f'Loading the {role} {name} ...')
            self._loaded[name] = apply.load_masked(
                base_model=name,
                dtype=self._cfg.dtype,
                mesh=sharding.inference_mesh(self._cfg.mesh),
            )
        return self._loaded[name]


def settings(
    cfg: config.EvaluateConfig,
    models: candidates.Candidates,
    roles: Sequence[str],
) -> dict[str, Any]:
    """What figures rest on that models give and helpers judge.

    Args:
        cfg: of the evaluation.
        models: that are evaluated.
        roles: of the helpers, as in their flags: 'judge', 'partner'.
    """
    found: dict[str, Any] = {
        'models': {model.name: model.identity for model in models.models},
        'dtype': cfg.dtype,
        'date': cfg.template_date,
        'max_new_tokens': cfg.max_new_tokens,
    }
    for role in roles:
        kind, name = getattr(cfg, role), getattr(cfg, f'{role}_model')
        found |= {role: kind, f'{role}_model': name, f'{role}_fingerprint': None}
        # A server shows nothing of its weights.
        if kind == 'local' and name is not None:
            base = base_model.open_base_model(name)
            found[f'{role}_fingerprint'] = base.fingerprint()
    return found
