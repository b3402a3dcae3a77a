"""What the server of the ranking page answers.

/                  what it is about; a code to begin with
/begin             takes a code, or makes one
/p/CODE            the next item that is not ranked yet, or thanks
/p/CODE/NUMBER     an item: shown, and its orders taken
/p/CODE/thanks     what was done, and a way back to it
/rank.css, .js     written for this page; it loads nothing else
"""

from collections.abc import Mapping
import functools
import importlib.resources
import json
import re
import secrets
from typing import Any
import urllib.parse

from starlette import (
    applications,
    concurrency,
    exceptions,
    requests,
    responses,
    routing,
)

from ppjax.base import errors, progress
from ppjax.pages import templates
from ppjax.ranking import dimensions, study

_CODE = re.compile(r'[a-z0-9][a-z0-9-]{2,23}')
# Without those that are taken for others.
_CODE_LETTERS = 'abcdefghjkmnpqrstuvwxyz23456789'
_MOST_BYTES = 64 * 2**10
_HEADERS = {
    # Texts of models are shown here: nothing but our own file may run.
    'Content-Security-Policy': "default-src 'none'; style-src 'self'; script-src "
    "'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    'Cache-Control': 'no-store',
    # A code is part of the address.
    'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff',
}
_NOT_WRITTEN = (
    'Nothing was saved: the file of the study cannot be used. Please tell whoever runs '
    'it, and try again later.'
)
_NO_PAGE = 'There is no such page. If you have a code, enter it on the first page.'


def application(opened: study.Study) -> applications.Starlette:
    """The page of a study that has begun."""
    page = _Page(opened)
    return applications.Starlette(
        routes=[
            routing.Route('/', page.start),
            routing.Route('/begin', page.begin, methods=['POST']),
            routing.Route('/p/{code}', page.next),
            routing.Route('/p/{code}/thanks', page.thanks),
            routing.Route('/p/{code}/{number:int}', page.item),
            routing.Route('/p/{code}/{number:int}', page.take, methods=['POST']),
            routing.Route(
                '/rank.css', functools.partial(_file, 'rank.css', 'text/css')
            ),
            routing.Route(
                '/rank.js', functools.partial(_file, 'rank.js', 'text/javascript')
            ),
        ],
        exception_handlers={
            exceptions.HTTPException: _refused,
            errors.InputError: _not_written,
        },
    )


def _html(name: str, status: int = 200, **values: Any) -> responses.Response:
    text = templates.render(__package__, f'{name}.html.jinja', **values)
    return responses.HTMLResponse(text, status, headers=_HEADERS)


def _file(name: str, kind: str, request: requests.Request) -> responses.Response:
    del request
    text = importlib.resources.files(__package__).joinpath(name).read_text('utf-8')
    return responses.Response(text, media_type=kind, headers=_HEADERS)


def _said(request: requests.Request, message: str, status: int) -> responses.Response:
    """A message as the page's script reads it, or as a page."""
    if request.method == 'POST' and _is_json(request):
        return responses.JSONResponse({'error': message}, status, headers=_HEADERS)
    return _html('message', status, message=message)


def _refused(request: requests.Request, error: Exception) -> responses.Response:
    assert isinstance(error, exceptions.HTTPException)
    message = _NO_PAGE if error.status_code == 404 else error.detail
    return _said(request, message, error.status_code)


def _not_written(request: requests.Request, error: Exception) -> responses.Response:
    # Its words may hold a path, which is nothing to participants.
    progress.say(f'{request.method} {request.url.path}: {error}')
    return _said(request, _NOT_WRITTEN, 503)


def _is_json(request: requests.Request) -> bool:
    kind = request.headers.get('content-type', '')
    return kind.partition(';')[0].strip().lower() == 'application/json'


def _new_code() -> str:
    return ''.join(secrets.choice(_CODE_LETTERS) for _ in range(8))


async def _body(request: requests.Request) -> bytes:
    """Raises:
    HTTPException: if it is longer than anything the page sends.
    """
    content = b''
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MOST_BYTES:
            raise exceptions.HTTPException(413, 'That is too much at once.')
    return content


class _Page:
    """The answers to requests; what touches the file runs in threads."""

    def __init__(self, opened: study.Study):
        assert opened.questionnaire is not None
        self._study = opened
        self._asked = opened.questionnaire
        # A page of an earlier study, still open somewhere, is not of this one.
        self._digest = opened.questionnaire.digest[:16]

    def _start(
        self, *, code: str = '', done: int = 0, problem: str = ''
    ) -> responses.Response:
        """The first page; with a code, it asks whose the rankings under it are."""
        return _html(
            'start',
            items=len(self._asked.items),
            letters=self._asked.letters,
            dimensions=dimensions.DIMENSIONS,
            code=code,
            done=done,
            problem=problem,
        )

    def start(self, request: requests.Request) -> responses.Response:
        del request
        return self._start()

    async def begin(self, request: requests.Request) -> responses.Response:
        """Begins with the code of a form, or a new one where that is empty.

        A code that has rankings already is asked about: two people may think of one.
        """
        text = (await _body(request)).decode('utf-8', 'replace')
        form = dict(urllib.parse.parse_qsl(text))
        code = form.get('code', '').strip().lower()
        return await concurrency.run_in_threadpool(self._begin, code, 'known' in form)

    def _begin(self, code: str, known: bool) -> responses.Response:
        if not code:
            while not self._add(code := _new_code()):
                pass
        elif not _CODE.fullmatch(code):
            return self._start(
                problem='A code is 3 to 24 letters from a to z, digits and hyphens.'
            )
        elif not (self._add(code) or known) and (done := len(self._study.done(code))):
            return self._start(code=code, done=done)
        return self._to(self._next(code))

    def _add(self, code: str) -> bool:
        return self._study.add(study.Participant(code, study.PERSON, code))

    def _to(self, path: str) -> responses.Response:
        return responses.RedirectResponse(path, 303, headers=_HEADERS)

    def _next(self, code: str) -> str:
        """Where a participant goes on."""
        done = self._study.done(code)
        numbers = range(1, len(self._asked.items) + 1)
        number = next((number for number in numbers if number not in done), None)
        return f'/p/{code}/thanks' if number is None else f'/p/{code}/{number}'

    def _participant(self, request: requests.Request) -> str:
        code = request.path_params['code']
        if not self._study.has(code):
            raise exceptions.HTTPException(404)
        return code

    def _number(self, request: requests.Request) -> int:
        number = request.path_params['number']
        if not 1 <= number <= len(self._asked.items):
            raise exceptions.HTTPException(404)
        return number

    def next(self, request: requests.Request) -> responses.Response:
        return self._to(self._next(self._participant(request)))

    def thanks(self, request: requests.Request) -> responses.Response:
        code = self._participant(request)
        return _html(
            'thanks',
            code=code,
            items=len(self._asked.items),
            done=sorted(self._study.done(code)),
        )

    def item(self, request: requests.Request) -> responses.Response:
        """An item, with the orders that the participant gave it, if any."""
        code, number = self._participant(request), self._number(request)
        item, shown = self._asked.items[number - 1], self._asked.shown(code, number)
        answers = {
            letter: item.answers[model]
            for letter, model in zip(self._asked.letters, shown, strict=True)
        }
        letter_of = dict(zip(shown, answers, strict=True))
        orders = self._study.orders(code, number)
        return _html(
            'item',
            code=code,
            digest=self._digest,
            number=number,
            items=len(self._asked.items),
            done=len(self._study.done(code)),
            persona=item.persona,
            question=item.question,
            answers=answers,
            rankings=[
                (
                    dimension,
                    [letter_of[model] for model in orders.get(dimension.name, shown)],
                    dimension.name in orders,
                )
                for dimension in dimensions.DIMENSIONS
            ],
        )

    async def take(self, request: requests.Request) -> responses.Response:
        """Takes an item's three orders, as letters; what was there is replaced."""
        if not _is_json(request):
            raise exceptions.HTTPException(415, 'Orders come as JSON.')
        body = await _body(request)
        return await concurrency.run_in_threadpool(self._take, request, body)

    def _take(self, request: requests.Request, body: bytes) -> responses.Response:
        code, number = self._participant(request), self._number(request)
        try:
            sent = json.loads(body)
        except (ValueError, RecursionError):
            sent = None
        if not isinstance(sent, dict):
            raise exceptions.HTTPException(400, 'That is no JSON object.')
        if sent.get('study') != self._digest:
            raise exceptions.HTTPException(
                409, 'This page is of another study; load it again.'
            )
        orders = self._orders(sent.get('orders'))
        models = dict(
            zip(self._asked.letters, self._asked.shown(code, number), strict=True)
        )
        replaced = self._study.rank(
            code,
            number,
            {name: [models[x] for x in letters] for name, letters in orders.items()},
        )
        return responses.JSONResponse(
            {'next': self._next(code), 'replaced': replaced}, headers=_HEADERS
        )

    def _orders(self, sent: Any) -> Mapping[str, list[str]]:
        """Raises:
        HTTPException: if it is not an order of all answers in every dimension.
        """
        letters = sorted(self._asked.letters)
        if isinstance(sent, dict) and set(sent) == set(dimensions.NAMES):
            whole = [
                isinstance(order, list)
                and all(isinstance(x, str) for x in order)
                and sorted(order) == letters
                for order in sent.values()
            ]
            if all(whole):
                return sent
        raise exceptions.HTTPException(
            400, 'Wanted an order of all answers in every respect.'
        )
