"""The models that help to evaluate others: a judge, a partner to talk with."""

from ppjax.base import progress as progress_lib
from ppjax.chat_api import client as client_lib
from ppjax.evaluation import config
from ppjax.evaluation.dialogues import speakers
from ppjax.evaluation.judges import judge_local, judge_openai, judge_scoring
from ppjax.masking import apply
from ppjax.models import base_model
from ppjax.parallel import sharding

# The partner's part of a dialogue is a few sentences a turn.
PARTNER_TOKENS = 256


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
        assert cfg.judge_model
        if cfg.judge == 'openai':
            assert cfg.judge_url
            return judge_openai.OpenAIJudge(
                self._client(cfg.judge_url, cfg.judge_model)
            )
        local = self._local(cfg.judge_model, 'judge')
        return judge_local.LocalJudge(
            local.base,
            local.renderer(cfg.template_date),
            local.decoder,
            batch_size=cfg.batch_size,
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
        local = self._local(cfg.partner_model, 'partner')
        return speakers.LocalSpeaker(
            local.decoder,
            None,
            local.renderer(cfg.template_date),
            local.stop_ids(),
            weights=f'{local.base.fingerprint()} {cfg.dtype}',
            max_new_tokens=PARTNER_TOKENS,
            batch_size=cfg.batch_size,
            seed=cfg.seed,
        )

    def _client(self, url: str, model: str) -> client_lib.ChatClient:
        return client_lib.ChatClient(
            url, model, concurrency=self._cfg.judge_concurrency
        )

    def _local(self, name: str, role: str) -> apply.LoadedModel:
        if name not in self._loaded:
            progress_lib.say(f'Loading the {role} {name} ...')
            self._loaded[name] = apply.load_masked(
                base_model=name,
                dtype=self._cfg.dtype,
                mesh=sharding.inference_mesh(self._cfg.mesh),
            )
        return self._loaded[name]


def fingerprint(kind: str, name: str | None) -> str | None:
    """Of a local helper's weights; None of a server's, which shows none."""
    if kind != 'local' or name is None:
        return None
    return base_model.open_base_model(name).fingerprint()
