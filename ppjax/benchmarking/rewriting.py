"""Local rewriting against transformers' generate, prompt by prompt."""

from collections.abc import Sequence
import time
from typing import Any

import jax.numpy as jnp

from ppjax.base import progress as progress_lib
from ppjax.benchmarking import torch_model
from ppjax.data import chat, stop_tokens
from ppjax.models import base_model, loading
from ppjax.synthesis import rewrite_local, rewriting


def compare(
    base: base_model.BaseModel,
    renderer: chat.ChatRenderer,
    requests: Sequence[rewriting.Request],
    *,
    max_tokens: int,
) -> dict[str, Any]:
    """Times greedy replies of both and compares their texts.

    Args:
        base: the model.
        renderer: its chat template.
        requests: what is asked.
        max_tokens: the limit of one reply.

    Returns:
        Seconds, their ratio, and the query_ids whose texts differ, for batches of
        all requests, of 4, and of one.
    """
    import torch
    import transformers

    hf = torch_model.load(base)
    stops = sorted(stop_tokens.stop_ids(base.generation_config(), renderer.tokenizer))
    settings = transformers.GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=stops[0],
        eos_token_id=stops,
    )
    texts: dict[str, str] = {}
    began = time.perf_counter()
    for request in progress_lib.over(requests, 'PyTorch'):
        prompt = renderer.prompt(request.messages)
        with torch.no_grad():
            out = hf.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                generation_config=settings,
            )[0, len(prompt) :].tolist()
        words = out[:-1] if out and out[-1] in stops else out
        texts[request.query_id] = renderer.tokenizer.decode(words)
    plain_seconds = time.perf_counter() - began

    model = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    found: dict[str, Any] = {
        'prompts': len(requests),
        'max_tokens': max_tokens,
        'pytorch_seconds': plain_seconds,
        'batches': {},
    }
    for size in dict.fromkeys((len(requests), 4, 1)):
        seconds, differing = [], list[str]()
        for _ in range(2):  # The first time compiles.
            rewriter = rewrite_local.LocalRewriter(
                base,
                renderer,
                max_tokens=max_tokens,
                temperature=0.0,
                batch_size=size,
                seed=0,
                model=model,
            )
            began = time.perf_counter()
            replies = list(rewriter.rewrite(requests))
            seconds.append(time.perf_counter() - began)
            differing = [
                reply.query_id
                for reply in replies
                if reply.text != texts[reply.query_id]
            ]
        found['batches'][size] = {
            'ppjax_seconds': seconds[1],
            'ppjax_first_seconds': seconds[0],
            'ratio_to_reference': plain_seconds / seconds[1],
            'differing': differing,
        }
    return found
