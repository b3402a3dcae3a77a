"""Local rewriting against transformers' generate, prompt by prompt."""

from typing import Any

import jax.numpy as jnp

from ppjax.base import progress as progress_lib
from ppjax.benchmarking import config, inputs, torch_model
from ppjax.data import stop_tokens
from ppjax.evaluation import timing
from ppjax.models import base_model, loading
from ppjax.synthesis import rewrite_local, rewriting


def compare(cfg: config.BenchConfig) -> dict[str, Any]:
    """Times greedy replies of both and compares their texts.

    Returns:
        Seconds, their ratio, and the query_ids whose texts differ, for batches of
        all requests, of 4, and of one.
    """
    base = base_model.open_base_model(cfg.base_model)
    renderer = inputs.renderer(cfg, base)
    requests = rewriting.requests_for(
        inputs.personas(cfg)[0], inputs.queries(cfg), with_reference=True
    )
    import torch
    import transformers

    hf = torch_model.load(base)
    stops = sorted(stop_tokens.stop_ids(base.generation_config(), renderer.tokenizer))
    settings = transformers.GenerationConfig(
        max_new_tokens=cfg.max_tokens,
        do_sample=False,
        pad_token_id=stops[0],
        eos_token_id=stops,
    )

    def plain(request: rewriting.Request) -> str:
        prompt = renderer.prompt(request.messages)
        with torch.no_grad():
            out = hf.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                generation_config=settings,
            )[0, len(prompt) :].tolist()
        words = out[:-1] if out and out[-1] in stops else out
        return renderer.tokenizer.decode(words)

    plain_seconds, texts = timing.timed(
        lambda: {
            request.query_id: plain(request)
            for request in progress_lib.over(requests, 'PyTorch')
        }
    )
    model = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)

    def ours(batch_size: int) -> list[rewriting.Reply]:
        rewriter = rewrite_local.LocalRewriter(
            base,
            renderer,
            max_tokens=cfg.max_tokens,
            temperature=0.0,
            batch_size=batch_size,
            seed=0,
            model=model,
        )
        return list(rewriter.rewrite(requests))

    found: dict[str, Any] = {
        'prompts': len(requests),
        'max_tokens': cfg.max_tokens,
        'pytorch_seconds': plain_seconds,
        'batches': {},
    }
    for size in dict.fromkeys((len(requests), 4, 1)):
        # The first time compiles.
        (first, _), (second, replies) = (timing.timed(ours, size) for _ in range(2))
        found['batches'][size] = {
            'ppjax_seconds': second,
            'ppjax_first_seconds': first,
            'ratio_to_reference': plain_seconds / second,
            'differing': [
                reply.query_id
                for reply in replies
                if reply.text != texts[reply.query_id]
            ],
        }
    return found
