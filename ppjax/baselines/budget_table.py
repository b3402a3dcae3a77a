"""What every method would keep, as a table for people: `--print_budget`."""

from collections.abc import Iterator

from ppjax.baselines import budget, results
from ppjax.baselines import config as config_lib
from ppjax.models import config as model_config
from ppjax.models import costs

_HEAD = (
    'match',
    'method',
    'setting',
    'parameters',
    'with untied head',
    'blocks',
    'to the mask',
    'prefill TFLOP',
)


def amounts(
    cfg: config_lib.PruneConfig, model: model_config.ModelConfig
) -> Iterator[tuple[str, str, budget.Amount]]:
    """(Match, method, its amount): the dense model, then for each --match all."""
    yield '', 'dense', budget.of_sizes(model, 0, 'all', costs.uniform(model))
    for match, keep in cfg.keeps(model.d_ff):
        own = budget.persona_mask(model, keep)
        yield match, 'persona mask', own
        for method, settings in _settings(cfg, model).items():
            yield match, method, budget.nearest(settings, own.parameters, method)
    for method, amount in cfg.named_amounts():
        yield '', method, _of_amount(cfg, model, method, amount)


def _among(
    cfg: config_lib.PruneConfig, model: model_config.ModelConfig, method: str
) -> budget.Range:
    usual = cfg.usual_of(method)
    return budget.Range.sparing(model, usual.spare_first, usual.spare_last, method)


def _settings(
    cfg: config_lib.PruneConfig, model: model_config.ModelConfig
) -> dict[str, list[budget.Amount]]:
    """Of the methods with a knob; adapt_pruner and flap stop at a number."""
    found = {
        'depth': budget.depth_settings(model, _among(cfg, model, 'depth')),
        'slicegpt': budget.slice_settings(model),
    }
    for method in ('llm_pruner', 'wanda_sp', 'minitron'):
        found[method] = budget.narrow_settings(model, _among(cfg, model, method))
    return found


def _of_amount(
    cfg: config_lib.PruneConfig,
    model: model_config.ModelConfig,
    method: str,
    amount: float,
) -> budget.Amount:
    if method == 'depth':
        return budget.depth(model, min(int(amount), model.num_layers - 1))
    if method == 'slicegpt':
        return budget.slicegpt(model, max(1, min(int(amount), model.d_model)))
    return budget.narrow(model, min(amount, 1.0), _among(cfg, model, method))


def figures(
    cfg: config_lib.PruneConfig, model: model_config.ModelConfig
) -> list[dict[str, object]]:
    """The rows of the table, for machines."""
    return [
        {'match': match, 'method': method}
        | results.counted({'own': own}, cfg.prompt_length)['own']
        for match, method, own in amounts(cfg, model)
    ]


def markdown(cfg: config_lib.PruneConfig, model: model_config.ModelConfig) -> str:
    """The table.

    Raises:
        InputError: if a method has no setting that leaves enough.
    """
    rows = []
    target = 0
    for match, method, own in amounts(cfg, model):
        unique, untied, blocks = own.parameters
        if method == 'persona mask':
            target = blocks
        ratio = f'{blocks / target - 1:+.2%}' if target else ''
        flops = own.prefill_flops(cfg.prompt_length) / 1e12
        rows.append(
            (
                match,
                method,
                own.text,
                *(f'{count / 1e9:.3f} B' for count in (unique, untied, blocks)),
                ratio,
                f'{flops:.3f}',
            )
        )
    lines = [_HEAD, ('---',) * len(_HEAD), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
