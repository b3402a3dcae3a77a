"""A real browser without a window, driven through the DevTools protocol."""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import time
from typing import Any

_NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
_SECONDS = 60.0
_FLAGS = (
    '--headless=new',
    # The tests may run as root, of whom the sandbox wants nothing.
    '--no-sandbox',
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--disable-extensions',
    '--disable-background-networking',
    '--no-first-run',
    '--no-proxy-server',
    '--remote-debugging-pipe',
)


def found() -> str | None:
    """The program; None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Browser:
    """One running browser. Messages are JSON ended by NUL, over two pipes."""

    def __init__(self, profile: pathlib.Path):
        reads, self._write = os.pipe()
        self._read, writes = os.pipe()
        program = found()
        assert program
        command = [program, *_FLAGS, f'--user-data-dir={profile}', 'about:blank']
        # The protocol's pipes are 3 and 4, whatever is open here.
        self._process = subprocess.Popen(
            ['bash', '-c', f'exec "$@" 3<&{reads} 4>&{writes}', 'bash', *command],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self._buffer = b''
        self._last = 0

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, session: str = '', **params: Any) -> dict[str, Any]:
        """Asks, and waits for the answer; events on the way are passed over."""
        self._last += 1
        asked: dict[str, Any] = {'id': self._last, 'method': method, 'params': params}
        if session:
            asked['sessionId'] = session
        data = json.dumps(asked).encode() + b'\0'
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            told = self._message()
            if told.get('id') == self._last:
                assert 'error' not in told, (method, told['error'])
                return told['result']

    def _message(self) -> dict[str, Any]:
        while b'\0' not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], _SECONDS)
            assert ready, 'the browser says nothing'
            more = os.read(self._read, 2**16)
            assert more, 'the browser has ended'
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b'\0')
        return json.loads(message)

    def tab(self, url: str, *, width: int = 1200, height: int = 900) -> 'Tab':
        """Opens a page."""
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        session = self.call('Target.attachToTarget', targetId=target, flatten=True)
        tab = Tab(self, session['sessionId'])
        # What is behind others is not drawn, and loads no pictures.
        tab.call('Page.bringToFront')
        tab.resize(width, height)
        tab.go(url)
        return tab


class Tab:
    """One page."""

    def __init__(self, browser: Browser, session: str):
        self._browser, self._session = browser, session
        self.call('Page.enable')

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def resize(self, width: int, height: int) -> None:
        self.call(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    def go(self, url: str) -> None:
        self.call('Page.navigate', url=url)
        self.until('document.readyState === "complete"')

    def reload(self) -> None:
        # Told apart from the page before it.
        self.run('window.before = true')
        self.call('Page.reload')
        self.until('!window.before && document.readyState === "complete"')

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call(
            'Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True
        )
        assert 'exceptionDetails' not in found, (script, found['exceptionDetails'])
        return found['result'].get('value')

    def until(self, script: str) -> None:
        """Waits until an expression is true; while a page changes, it is not."""
        limit = time.monotonic() + _SECONDS
        while True:
            with contextlib.suppress(AssertionError):
                if self.run(script):
                    return
            assert time.monotonic() < limit, (
                script,
                self.run('document.body.innerText'),
            )
            time.sleep(0.02)

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element, once it is there and in sight."""
        found = f'document.querySelector({json.dumps(selector)})'
        self.until(f'{found} !== null')
        x, y = self.run(
            f'(() => {{ const x = {found}; '
            'x.scrollIntoView({block: "center", behavior: "instant"}); '
            'const box = x.getBoundingClientRect(); '
            'return [box.x + box.width / 2, box.y + box.height / 2]; })()'
        )
        return x, y

    def mouse(self, kind: str, x: float, y: float) -> None:
        self.call(
            'Input.dispatchMouseEvent',
            type=kind,
            x=x,
            y=y,
            button='left',
            buttons=0 if kind == 'mouseReleased' else 1,
            clickCount=1,
        )

    def click(self, selector: str) -> None:
        at = self.place(selector)
        self.mouse('mousePressed', *at)
        self.mouse('mouseReleased', *at)

    def touch(self, kind: str, *at: float) -> None:
        points = [{'x': at[0], 'y': at[1]}] if at else []
        self.call('Input.dispatchTouchEvent', type=kind, touchPoints=points)

    def key(self, name: str) -> None:
        for kind in ('rawKeyDown', 'keyUp'):
            codes = {'ArrowUp': 38, 'ArrowDown': 40, 'End': 35, 'Home': 36}
            codes |= {'Enter': 13, 'Escape': 27, 'Tab': 9}
            self.call(
                'Input.dispatchKeyEvent',
                type=kind,
                key=name,
                code=name,
                windowsVirtualKeyCode=codes[name],
            )

    def write(self, text: str) -> None:
        """Puts text where the focus is, as an input method does."""
        self.call('Input.insertText', text=text)

    def picture(self, *, whole: bool = False) -> str:
        """PNG as base64, of what is in sight or of all of the page."""
        return self.call('Page.captureScreenshot', captureBeyondViewport=whole)['data']


@contextlib.contextmanager
def running(profile: pathlib.Path) -> Iterator[Browser]:
    with contextlib.closing(Browser(profile)) as browser:
        yield browser
