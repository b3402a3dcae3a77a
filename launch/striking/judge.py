"""A judge for the commands that ask one: it ranks the same answers always alike."""

from collections.abc import Iterator
import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import subprocess
import sys
import threading
import time
from typing import Any

from ppjax.base import atomic

# So that what is asked in a moment lasts long enough to be struck.
_SECONDS = 0.03
_ANSWER = re.compile(r'\[ANSWER (\w) START\]\n(.*?)\n\[ANSWER \1 END\]', re.DOTALL)


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers['content-length'])))
        answers = _ANSWER.findall(body['messages'][-1]['content'])
        # By the answer alone, wherever it stands.
        answers.sort(key=lambda one: hashlib.sha256(one[1].encode()).hexdigest())
        text = json.dumps([letter for letter, _ in answers])
        message = {'role': 'assistant', 'content': text}
        choice = {'message': message, 'finish_reason': 'stop'}
        data = json.dumps({'choices': [choice]}).encode()
        time.sleep(_SECONDS)
        self.send_response(200)
        self.send_header('content-length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def serving(file: pathlib.Path) -> Iterator[None]:
    """Answers while inside, as a program of its own.

    Args:
        file: where its address is left.
    """
    program = [sys.executable, __file__]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout is not None
            atomic.write_text(file, running.stdout.readline().strip())
            yield
        finally:
            running.kill()


if __name__ == '__main__':
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
    print(f'http://127.0.0.1:{server.server_address[1]}', flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # It ends with the campaign, however that ends.
    sys.stdin.read()
