"""Names of a GGUF file's tensors, and which tensors a model has."""

from typing import Any

_MODEL_NAMES = {
    'token_embd': 'model.embed_tokens',
    'output_norm': 'model.norm',
    'output': 'lm_head',
}
_LAYER_NAMES = {
    'attn_norm': 'input_layernorm',
    'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj',
    'attn_v': 'self_attn.v_proj',
    'attn_q_norm': 'self_attn.q_norm',
    'attn_k_norm': 'self_attn.k_norm',
    'attn_output': 'self_attn.o_proj',
    'ffn_norm': 'post_attention_layernorm',
    'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj',
}


def hf_names(num_layers: int) -> dict[str, str]:
    """GGUF tensor name -> Hugging Face name, for every name that we know."""
    stems = dict(_MODEL_NAMES)
    for layer in range(num_layers):
        for stem, hf_stem in _LAYER_NAMES.items():
            stems[f'blk.{layer}.{stem}'] = f'model.layers.{layer}.{hf_stem}'
    return {
        f'{stem}.{part}': f'{hf_stem}.{part}'
        for stem, hf_stem in stems.items()
        for part in ('weight', 'bias')
    }


def expected_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the Hugging Face model that `config` describes."""
    d, f, h = (config[k] for k in ('hidden_size', 'intermediate_size', 'head_dim'))
    q = config['num_attention_heads'] * h
    kv = config['num_key_value_heads'] * h
    layer = {
        'input_layernorm.weight': (d,),
        'self_attn.q_proj.weight': (q, d),
        'self_attn.k_proj.weight': (kv, d),
        'self_attn.v_proj.weight': (kv, d),
        'self_attn.o_proj.weight': (d, q),
        'post_attention_layernorm.weight': (d,),
        'mlp.gate_proj.weight': (f, d),
        'mlp.up_proj.weight': (f, d),
        'mlp.down_proj.weight': (d, f),
    }
    if config['model_type'] == 'qwen3':
        layer['self_attn.q_norm.weight'] = (h,)
        layer['self_attn.k_norm.weight'] = (h,)
    biased = ''
    if config['model_type'] == 'qwen2':
        biased = 'qkv'
    elif config['attention_bias']:
        biased = 'qkvo'
    for letter in biased:
        stem = f'self_attn.{letter}_proj'
        layer[f'{stem}.bias'] = layer[f'{stem}.weight'][:1]
    if config.get('mlp_bias'):
        for stem in ('mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj'):
            layer[f'{stem}.bias'] = layer[f'{stem}.weight'][:1]

    shapes: dict[str, tuple[int, ...]] = {
        f'model.layers.{i}.{name}': shape
        for i in range(config['num_hidden_layers'])
        for name, shape in layer.items()
    }
    shapes['model.embed_tokens.weight'] = (config['vocab_size'], d)
    shapes['model.norm.weight'] = (d,)
    if not config['tie_word_embeddings']:
        shapes['lm_head.weight'] = (config['vocab_size'], d)
    return shapes
