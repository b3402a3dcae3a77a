"""`python -m ppjax.evaluate`: how good a model is, dense against pruned.

python -m ppjax.evaluate --output_dir=runs/bram \\
    --tasks=likelihood,piqa,efficiency --piqa=piqa_valid.jsonl
python -m ppjax.evaluate --output_dir=runs/bram --tasks=judge,failures \\
    --eval_sets=sets/ --judge_url=http://localhost:8000 --judge_model=NAME

Results go to the run directory, results/*.json, and into its report. A task that is
there already, of the same settings, is not measured again; one that was interrupted
goes on.
"""

from ppjax.base import compile_cache, flags, processes, run_directory
from ppjax.base import progress as progress_lib
from ppjax.evaluation import config, pipeline
from ppjax.evaluation.page import report, terminal


def main(cfg: config.EvaluateConfig) -> int:
    """Measures and prints, task by task."""
    compile_cache.enable()
    with run_directory.visiting(cfg.run, makes=pipeline.MAKES):
        for task, result in pipeline.Evaluation(cfg).run():
            if processes.is_first():
                print(f'{terminal.result_text(task, result)}\n', flush=True)
    if cfg.is_run and processes.is_first():
        progress_lib.say(f'Report: {report.write_report(cfg.run)}')
    progress_lib.say(f'Results: {cfg.run / "results"}')
    return 0


if __name__ == '__main__':
    flags.run(config.EvaluateConfig, main, joined=True)
