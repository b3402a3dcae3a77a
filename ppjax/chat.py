"""`python -m ppjax.chat`: talk to a model.

python -m ppjax.chat --model=runs/mine/hf
python -m ppjax.chat --mask=jack.pmask --base_model=DIR
python -m ppjax.chat --mask=runs/mine/card/card.png --base_model=DIR

Answers are the only thing on stdout. On a terminal this is a conversation; with
--prompt one answer; otherwise every line of stdin is a message of one
conversation. A mask, or a card that carries one, is applied as the base model
is loaded: nothing need be exported first.
"""

from ppjax.base import compile_cache, flags
from ppjax.chatting import config, terminal


def main(cfg: config.ChatConfig) -> int:
    """Answers one message, a terminal, or the lines of stdin."""
    compile_cache.enable()
    return terminal.talk(cfg)


if __name__ == '__main__':
    flags.run(config.ChatConfig, main)
