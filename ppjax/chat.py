"""Talk to a model: `python -m ppjax.chat --mask=jack.pmask`.

Answers are the only thing on stdout. On a terminal this is a conversation; with
`--prompt` one answer; otherwise every line of stdin is a message of one
conversation.
"""

from ppjax.base import compile_cache, flags
from ppjax.chatting import config, terminal


def main(cfg: config.ChatConfig) -> int:
    """Answers one message, a terminal, or the lines of stdin."""
    compile_cache.enable()
    return terminal.talk(cfg)


if __name__ == '__main__':
    flags.run(config.ChatConfig, main)
