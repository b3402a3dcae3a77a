"""`python -m ppjax.evaluate`: how good a model is, dense against pruned.

python -m ppjax.evaluate --output_dir=runs/mine \\
    --tasks=likelihood,piqa,efficiency --piqa=hub
python -m ppjax.evaluate --output_dir=runs/mine --tasks=judge,failures \\
    --eval_sets=sets/ --judge_url=http://localhost:8000 --judge_model=NAME

Measures the dense model and the export (or the mask) of a run, prints tables
task by task, and puts the figures into results/*.json and report.html. Without
a run, name the models: --base_model=DIR --mask=FILE or --model=DIR, and a new
--output_dir; several side by side as --model=a=DIR,b=DIR. A task that is there
already, of the same settings, is not measured again; one that was interrupted
goes on where it was. configs/evaluate-paper.flags is the paper's evaluation.

likelihood   needs held-out conversations (the run's, or --heldout)
             nats per answer token, KL to the dense model, share of equal top
             tokens, with bootstrap intervals; --prompts=full,short,none: the
             same answers under --short_prompt and under none, tokens saved,
             time to the first token
plain        needs --plain=FILE (as --instructions of synthesize)
             the same of plain answers with no persona prompt: what pruning
             costs off the persona
answers      needs --eval_sets, or held-out questions
             greedy answers, how many loop, refuse or stop short by rule, and
             their lengths, with no judge
judge        needs --eval_sets (the paper's files or one's own; the held-out
             questions otherwise) and a judge
             persona score 0 to 100 (the paper's Table 21): refusals dropped
             and as zero, per persona, to the dense model; judge.csv with every
             answer
fidelity     needs what judge does; its server need send no probabilities
             character fidelity 0 to 100 (the paper's Table 13, which does not
             say how; here CoSER's formula at one reply): the judge lists the
             flaws of the answers that judge has, as JSON, and 5 points go for
             each point of severity beyond 0.3; flaws by type, replies that
             were no JSON; fidelity.csv with every answer and its flaws
failures     needs what judge does
             what is wrong with answers below 60: assistant-like, repetition,
             refusal, incomplete (Table 10), by rules
piqa, openbookqa, mmlu
             need --piqa=FILE, hub or tfds, ...
             acc and acc_norm as lm-evaluation-harness computes them
efficiency   needs nothing
             parameters, FLOPs (Table 11) and XLA's own count, bytes; prefill
             and decoding measured, models in turn
multiturn    needs --eval_sets or --persona (a card's lorebook makes probes), a
             judge and --partner_model
             consistency with the persona over 10 turns (Figure 6)

The judge is a server that sends probabilities
(--judge_url=http://localhost:8000 --judge_model=NAME: vLLM, llama.cpp, OpenAI)
or a local model (--judge=local --judge_model=DIR). A server is asked for one
token and its 20 likeliest alternatives, which is right only where a number is
one token: a model that splits "85" into digits is noticed and refused. The
local judge computes the probability of every reply from 0 to 100 and of REFUSAL
exactly, whatever its tokens are, and is the one for Qwen. For fidelity either
writes a list; a reply that is none is asked for again, twice at most, then
counted and left without a score.
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
