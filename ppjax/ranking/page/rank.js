'use strict';

// Three lists that are put in order and sent together. The item that is moved stays
// where it is in the document and its neighbours change sides: so it keeps the focus,
// and the pointer that drags it.

const form = document.getElementById('ranking');
const problem = document.getElementById('problem');
const said = document.getElementById('said');
const save = document.getElementById('save');
const lists = [...form.querySelectorAll('ol')];
const draftName = `ppjax-rank ${form.dataset.study} ${location.pathname}`;

const titleOf = (list) => list.closest('fieldset').dataset.title;
const orderOf = (list) => [...list.children].map((item) => item.dataset.letter);
const isSettled = (list) => list.dataset.settled === 'true';

function label(list) {
  const items = [...list.children];
  items.forEach((item, index) => {
    const letter = item.dataset.letter;
    const title = titleOf(list);
    item.querySelector('.rank').textContent = index + 1;
    item.querySelector('.grip').setAttribute(
      'aria-label',
      `${title}: answer ${letter}, place ${index + 1} of ${items.length}. ` +
        'The arrow keys move it.',
    );
    const ends = { up: index === 0, down: index === items.length - 1 };
    for (const [way, end] of Object.entries(ends)) {
      const button = item.querySelector(`.${way}`);
      button.setAttribute('aria-label', `${title}: move answer ${letter} ${way}`);
      // Not `disabled`, which would take the focus away.
      button.setAttribute('aria-disabled', end);
    }
  });
}

function settle(list) {
  list.dataset.settled = 'true';
  problem.textContent = '';
  keepDraft();
}

// --- A draft in this browser, for a page that is loaded again -----------------

function keepDraft() {
  const draft = lists.map((list) => [orderOf(list), isSettled(list)]);
  try {
    localStorage.setItem(draftName, JSON.stringify(draft));
  } catch {
    // A browser that stores nothing; only a reload would miss it.
  }
}

function takeDraft() {
  let draft;
  try {
    draft = JSON.parse(localStorage.getItem(draftName));
  } catch {
    return;
  }
  if (!Array.isArray(draft) || draft.length !== lists.length) return;
  lists.forEach((list, index) => {
    const [order, settled] = draft[index];
    const items = new Map([...list.children].map((x) => [x.dataset.letter, x]));
    if (order.length !== items.size || !order.every((x) => items.has(x))) return;
    list.append(...order.map((letter) => items.get(letter)));
    list.dataset.settled = settled;
  });
}

function dropDraft() {
  try {
    localStorage.removeItem(draftName);
  } catch {
    // There is none then.
  }
}

// --- Moving -------------------------------------------------------------------

function up(item) {
  if (!item.previousElementSibling) return false;
  item.after(item.previousElementSibling);
  return true;
}

function down(item) {
  if (!item.nextElementSibling) return false;
  item.before(item.nextElementSibling);
  return true;
}

function moved(item) {
  const list = item.parentElement;
  label(list);
  settle(list);
  const place = orderOf(list).indexOf(item.dataset.letter) + 1;
  said.textContent =
    `${titleOf(list)}: answer ${item.dataset.letter} is now ${place} of ` +
    `${list.children.length}.`;
}

function move(item, step, all = false) {
  let any = false;
  while (step(item)) {
    any = true;
    if (!all) break;
  }
  if (any) moved(item);
}

const KEYS = {
  ArrowUp: [up, false],
  ArrowDown: [down, false],
  Home: [up, true],
  End: [down, true],
};

function middle(item) {
  const box = item.getBoundingClientRect();
  return box.top + box.height / 2;
}

function drag(item, pointer) {
  const before = orderOf(item.parentElement).join();
  item.classList.add('dragged');
  item.setPointerCapture(pointer);
  const follow = (event) => {
    const { previousElementSibling: above, nextElementSibling: below } = item;
    if (above && event.clientY < middle(above)) {
      up(item);
    } else if (below && event.clientY > middle(below)) {
      down(item);
    } else {
      return;
    }
    follow(event);
  };
  const end = () => {
    item.removeEventListener('pointermove', follow);
    item.removeEventListener('lostpointercapture', end);
    item.classList.remove('dragged');
    if (orderOf(item.parentElement).join() !== before) moved(item);
  };
  item.addEventListener('pointermove', follow);
  item.addEventListener('lostpointercapture', end);
}

function listen(item) {
  const grip = item.querySelector('.grip');
  grip.addEventListener('keydown', (event) => {
    if (!(event.key in KEYS)) return;
    event.preventDefault();
    move(item, ...KEYS[event.key]);
  });
  item.addEventListener('pointerdown', (event) => {
    const onGrip = event.target === grip;
    const onOther = event.target.closest('a, button') !== null && !onGrip;
    // A finger beside the handle scrolls the page.
    if (event.button !== 0 || onOther || (event.pointerType !== 'mouse' && !onGrip)) {
      return;
    }
    event.preventDefault();
    grip.focus({ preventScroll: true });
    drag(item, event.pointerId);
  });
  item.querySelector('.up').addEventListener('click', () => move(item, up));
  item.querySelector('.down').addEventListener('click', () => move(item, down));
}

// --- Sending ------------------------------------------------------------------

async function send() {
  const orders = Object.fromEntries(
    lists.map((list) => [list.dataset.dimension, orderOf(list)]),
  );
  let response;
  try {
    response = await fetch(location.pathname, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ study: form.dataset.study, orders }),
    });
  } catch {
    throw new Error(
      'Not saved: the server does not answer. Your orders are kept on this page; ' +
        'try again in a moment.',
    );
  }
  const told = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Error(`Not saved: ${told.error ?? `the server said ${response.status}`}`);
  }
  return told.next;
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  const open = lists.filter((list) => !isSettled(list));
  if (open.length) {
    problem.textContent = `Not in order yet: ${open.map(titleOf).join(', ')}.`;
    open[0].closest('fieldset').scrollIntoView({ block: 'nearest' });
    return;
  }
  save.disabled = true;
  problem.textContent = '';
  try {
    const next = await send();
    dropDraft();
    location.assign(next);
  } catch (error) {
    problem.textContent = error.message;
    save.disabled = false;
  }
});

// --- Long answers -------------------------------------------------------------

// A box that scrolls by itself would hide from a finger that there is more.
function fold(article) {
  const text = article.querySelector('.text');
  const more = article.querySelector('.more');
  const check = () => {
    if (!article.classList.contains('open')) {
      more.hidden = text.scrollHeight <= text.clientHeight + 1;
      article.classList.toggle('cut', !more.hidden);
    }
  };
  more.addEventListener('click', () => {
    article.classList.replace('cut', 'open');
    more.hidden = true;
  });
  addEventListener('resize', check);
  check();
}

// A page that the browser kept shows what was, not what is saved.
addEventListener('pageshow', (event) => {
  if (event.persisted) location.reload();
});

document.querySelectorAll('article').forEach(fold);
takeDraft();
for (const list of lists) {
  label(list);
  for (const item of list.children) listen(item);
  const keep = list.closest('fieldset').querySelector('.keep');
  keep.addEventListener('click', () => {
    settle(list);
    list.querySelector('.grip').focus({ preventScroll: true });
    said.textContent = `${titleOf(list)}: kept as it stands.`;
  });
}
