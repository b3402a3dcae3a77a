// The page of a cast. What people and models write is only ever set as text.
'use strict';

const ROLEPLAY = /^You are roleplaying as a user with this persona:\s*/;
const EVERY_MS = 10000;  // How often the cast is asked for.
const KEY = 'ppjax.key';
const $ = (id) => document.getElementById(id);

const state = {
  base: '',
  members: new Map(),
  shown: '',       // The cast as it was last drawn.
  id: '',          // Who is talked to.
  turns: [],       // {role: 'user', text} or {role: 'assistant', answers: [...]}.
  running: null,   // AbortController while an answer comes.
  cleared: null,   // Turns that can be brought back.
  pictures: new Map(),
};

// --- What is kept here ---------------------------------------------------------

function kept(store, name, fallback) {
  try {
    return JSON.parse(store.getItem(name)) ?? fallback;
  } catch {
    return fallback;  // Forbidden, or not ours.
  }
}

function keep(store, name, value) {
  try {
    if (value === null) store.removeItem(name);
    else store.setItem(name, JSON.stringify(value));
  } catch { /* Forbidden or full: the conversation lives as long as the page. */ }
}

const chatName = (id) => `ppjax.chat.${state.base}.${id}`;

function isTurn(turn) {
  if (turn?.role === 'user') return typeof turn.text === 'string';
  return turn?.role === 'assistant' && Array.isArray(turn.answers) && turn.answers.length > 0
    && turn.answers.every((answer) => typeof answer?.text === 'string');
}

function keptTurns(id) {
  const found = kept(localStorage, chatName(id), []);
  return Array.isArray(found) && found.every(isTurn) ? found : [];
}

function keepTurns() {
  keep(localStorage, chatName(state.id), state.turns.length ? state.turns : null);
}

// --- Asking the server ---------------------------------------------------------

class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function headers(more = {}) {
  const key = kept(sessionStorage, KEY, '');
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function refusal(response) {
  let said = '';
  try {
    const body = await response.json();
    said = body?.error?.message ?? body?.detail ?? '';
  } catch { /* No JSON: the status says enough. */ }
  if (response.status === 401) return new Refusal(401, 'The server asks for its API key.');
  if (response.status === 404) return new Refusal(404, 'This persona has left the cast.');
  if (response.status === 429) {
    const wait = Number(response.headers.get('Retry-After'));
    const when = wait > 0 ? `in ${wait} s` : 'in a moment';
    return new Refusal(429, `The server is busy: too many answers wait. Try again ${when}.`);
  }
  if (response.status === 503) return new Refusal(503, 'The server is shutting down, or not ready yet.');
  if (response.status === 413) return new Refusal(413, 'The conversation is longer than the server takes.');
  return new Refusal(response.status, said ? String(said) : `The server answered with status ${response.status}.`);
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refusal(0, 'The server cannot be reached.');
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new Refusal(0, 'The connection broke off.');
    }
    rest += decoder.decode(part.value ?? new Uint8Array(), { stream: !part.done });
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith('data:'))
        .map((line) => line.slice(5).trimStart()).join('\n');
      if (data === '[DONE]') return;
      if (data) yield JSON.parse(data);
    }
    if (part.done) throw new Refusal(0, 'The connection ended before the answer did.');
  }
}

// Streams one answer; `show` is called as its text and its figures grow.
async function stream(answer, body, signal, show) {
  const began = performance.now();
  let first = 0;
  let last = 0;
  let pieces = 0;
  let tokens = 0;
  const response = await ask('v1/chat/completions', {
    method: 'POST',
    headers: headers({ 'Content-Type': 'application/json' }),
    body: JSON.stringify(body),
    signal,
  });
  for await (const event of events(response)) {
    if (event.error) throw new Refusal(0, String(event.error.message ?? 'The server failed.'));
    const choice = event.choices?.[0];
    if (choice?.delta?.content) {
      answer.text += choice.delta.content;
      pieces += 1;
      last = performance.now();
      first ||= last;
    }
    if (choice?.finish_reason) answer.finish = choice.finish_reason;
    tokens = event.usage?.completion_tokens ?? tokens;
    answer.stats = { first: first ? first - began : null, tokens: tokens || pieces, seconds: (last - first) / 1000 };
    show();
  }
}

// --- The cast ------------------------------------------------------------------

async function loadCast() {
  let found;
  try {
    found = await (await ask('cast', { headers: headers() })).json();
  } catch (error) {
    $('key-form').hidden = error.status !== 401;
    if (error.status === 401) return;
    notice(error.message ?? String(error));
    return;
  }
  $('key-form').hidden = true;
  notice('');
  const drawn = JSON.stringify(found);
  if (drawn === state.shown) return;
  state.shown = drawn;
  state.base = String(found.base);
  state.members = new Map(found.members.map((member) => [String(member.id), member]));
  drawCast();
  route();
}

function notice(text) {
  $('notice').textContent = text;
  $('notice').hidden = !text;
}

function hue(id) {
  let sum = 0;
  for (const c of id) sum = (sum * 31 + c.codePointAt(0)) % 997;
  return sum % 8;
}

function initials(title) {
  const words = title.match(/[\p{L}\p{N}]+/gu) ?? ['?'];
  const letters = words.length > 1 ? [...words[0]][0] + [...words.at(-1)][0] : [...words[0]].slice(0, 2).join('');
  return letters.toUpperCase();
}

function face(member) {
  const made = element('span', member.dense ? 'face' : `face hue-${hue(member.id)}`, initials(member.title));
  made.setAttribute('aria-hidden', 'true');
  if (!member.picture) return made;
  const image = document.createElement('img');
  image.alt = '';
  image.loading = 'lazy';
  image.decoding = 'async';
  image.onload = () => made.classList.add('seen');
  image.onerror = () => image.remove();
  made.append(image);
  const path = `cast/${encodeURIComponent(member.id)}/picture`;
  if (kept(sessionStorage, KEY, '')) {
    image.dataset.path = path;
    inSight.observe(image);
  } else {
    image.src = path;
  }
  return made;
}

// Pictures that want a key, which an address cannot have, are fetched once in sight.
const inSight = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    inSight.unobserve(target);
    picture(target.dataset.path).then((url) => { if (url) target.src = url; });
  }
});

function picture(path) {
  if (!state.pictures.has(path)) {
    state.pictures.set(path, ask(path, { headers: headers() })
      .then((response) => response.blob()).then((blob) => URL.createObjectURL(blob)).catch(() => ''));
  }
  return state.pictures.get(path);
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const percent = (share) => `${Math.round(100 * share)}%`;

function tag(member) {
  return member.dense ? 'Dense base model' : `${percent(member.sparsity)} pruned`;
}

function firstLine(member) {
  const text = member.greeting || (member.system ?? '').replace(ROLEPLAY, '');
  return text.replace(/\*/g, '').replace(/\s+/g, ' ').trim().slice(0, 240);
}

function drawCast() {
  const list = $('members');
  list.replaceChildren();
  for (const member of state.members.values()) {
    const link = element('a', 'member');
    link.href = `#${encodeURIComponent(member.id)}`;
    link.dataset.id = member.id;
    link.append(
      face(member),
      element('span', 'name', member.title),
      element('span', 'line', firstLine(member) || (member.dense ? 'As it is, without a persona.' : member.id)),
      element('span', member.dense ? 'tag of-dense' : 'tag', tag(member)),
    );
    const item = document.createElement('li');
    item.append(link);
    list.append(item);
  }
  filterCast();
}

function filterCast() {
  const words = $('search').value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const link of document.querySelectorAll('.member')) {
    const member = state.members.get(link.dataset.id);
    const text = `${member.title} ${member.id} ${firstLine(member)}`.toLowerCase();
    const found = words.every((word) => text.includes(word));
    link.parentElement.hidden = !found;
    count += found;
    if (member.id === state.id) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  const personas = [...state.members.values()].filter((member) => !member.dense).length;
  $('count').textContent = `${personas} persona${personas === 1 ? '' : 's'} on ${state.base}`;
  $('nobody').hidden = count > 0;
  $('nobody').textContent = words.length ? 'Nobody in the cast is called so.' : 'Nobody is here yet.';
}

// --- A conversation ------------------------------------------------------------

function route() {
  let id = '';
  try {
    id = decodeURIComponent(location.hash.slice(1));
  } catch { /* Not an address of this page. */ }
  const member = state.members.get(id);
  if (!member) {
    stop();
    state.id = '';
    document.body.dataset.view = 'cast';
    $('chat').hidden = true;
    document.title = 'The cast';
    if (id) notice(`${id} is not in the cast.`);
    filterCast();
    return;
  }
  const other = state.id !== id;
  if (other) {
    stop();
    state.id = id;
    state.turns = keptTurns(id);
    state.cleared = null;
    problem('');
    notice('');
  }
  document.body.dataset.view = 'chat';
  document.title = member.title;
  $('chat').hidden = false;
  $('title').textContent = member.title;
  $('facts').textContent = `${tag(member)}${member.title === member.id ? '' : ` · ${member.id}`}`;
  $('face').replaceChildren(face(member));
  $('message').placeholder = `Message ${member.title}`;
  $('compare-label').hidden = member.dense;
  filterCast();
  if (other) {
    drawTurns();
    $('log').scrollTop = $('log').scrollHeight;
    if (!matchMedia('(pointer: coarse)').matches) $('message').focus();
  }
}

const comparing = () => $('compare').checked && !state.members.get(state.id)?.dense;

// *Actions*, as role-players write them, stand out; all of it stays text.
function setText(node, text) {
  node.replaceChildren(...text.split(/(\*[^*\n]+\*)/).filter(Boolean).map((part) => (
    part.length > 2 && part.startsWith('*') && part.endsWith('*')
      ? element('em', '', part.slice(1, -1)) : document.createTextNode(part))));
}

function figures(answer) {
  const parts = [];
  const { first = null, tokens = 0, seconds = 0 } = answer.stats ?? {};
  if (first !== null) parts.push(`${Math.round(first)} ms to first token`);
  if (tokens > 1 && seconds > 0) parts.push(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`);
  if (tokens) parts.push(`${tokens} token${tokens === 1 ? '' : 's'}`);
  if (answer.finish === 'length') parts.push('cut off at the longest answer');
  if (answer.finish === 'stopped') parts.push('stopped');
  if (answer.error) parts.push(answer.error);
  return parts.join(' · ');
}

function drawAnswer(node, answer) {
  setText(node.querySelector('.text'), answer.text);
  const stats = node.querySelector('.stats');
  stats.textContent = answer.running ? '' : figures(answer);
  stats.classList.toggle('bad', Boolean(answer.error));
  node.classList.toggle('waiting', Boolean(answer.running));
}

function answerNode(answer, named) {
  const node = element('section', `answer of-${answer.of}`);
  if (named) {
    const member = state.members.get(state.id);
    node.append(element('h3', '', answer.of === 'dense' ? 'Dense' : `Pruned, ${percent(member.sparsity)}`));
  }
  node.append(element('div', 'text'), element('div', 'stats'));
  drawAnswer(node, answer);
  return node;
}

function drawTurns() {
  const member = state.members.get(state.id);
  const made = [];
  if (member.greeting) {
    const turn = element('article', 'turn assistant');
    turn.append(answerNode({ of: 'card', text: member.greeting }, false));
    made.push(turn);
  } else if (!state.turns.length) {
    made.push(element('p', 'empty', `Say something to ${member.title}.`));
  }
  for (const turn of state.turns) {
    if (turn.role === 'user') {
      const node = element('article', 'turn user');
      const text = element('div', 'text');
      setText(text, turn.text);
      node.append(text);
      made.push(node);
      continue;
    }
    const pair = turn.answers.length > 1;
    const node = element('article', pair ? 'turn assistant pair' : 'turn assistant');
    node.append(...turn.answers.map((answer) => answerNode(answer, pair)));
    made.push(node);
  }
  $('turns').replaceChildren(...made);
  const last = state.turns.at(-1);
  if (last?.role === 'assistant' && !state.running) {
    const again = element('button', 'again', 'Regenerate');
    again.type = 'button';
    again.id = 'regenerate';
    again.addEventListener('click', regenerate);
    $('turns').lastElementChild.append(again);
  }
  const wide = comparing() || state.turns.some((turn) => turn.answers?.length > 1);
  $('chat').classList.toggle('wide', wide);
}

// The conversation as both models are sent it: the persona's own answers.
function messages(member) {
  const said = member.greeting ? [{ role: 'assistant', content: member.greeting }] : [];
  for (const turn of state.turns) {
    if (turn.role === 'user') said.push({ role: 'user', content: turn.text });
    else if (!turn.answers[0].running) said.push({ role: 'assistant', content: turn.answers[0].text });
  }
  return said;
}

function request(of, member, seed) {
  const said = messages(member);
  const dense = of === 'dense' && !member.dense;
  if (dense && member.system) said.unshift({ role: 'system', content: member.system });
  return {
    model: dense ? state.base : member.id,
    messages: said,
    stream: true,
    stream_options: { include_usage: true },
    max_tokens: Math.max(1, Math.floor(Number($('max-tokens').value)) || 256),
    temperature: Number($('temperature').value),
    seed,
  };
}

function follow(change) {
  const log = $('log');
  const near = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  change();
  if (near) log.scrollTop = log.scrollHeight;
}

async function answer() {
  const member = state.members.get(state.id);
  const id = state.id;
  const turns = state.turns;
  const seed = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
  const own = member.dense ? 'dense' : 'pruned';
  const answers = (comparing() ? ['pruned', 'dense'] : [own]).map((of) => ({ of, text: '', running: true }));
  const bodies = answers.map(({ of }) => request(of, member, seed));
  turns.push({ role: 'assistant', answers });
  const running = new AbortController();
  state.running = running;
  busy(true);
  problem('');
  drawTurns();
  $('log').scrollTop = $('log').scrollHeight;
  const nodes = $('turns').lastElementChild.querySelectorAll('.answer');
  const failed = await Promise.all(answers.map(async (one, place) => {
    let error = null;
    const show = () => follow(() => drawAnswer(nodes[place], one));
    try {
      await stream(one, bodies[place], running.signal, show);
    } catch (caught) {
      if (caught.name === 'AbortError') one.finish = 'stopped';
      else error = caught instanceof Refusal ? caught : new Refusal(0, `The page failed: ${caught.message}`);
    }
    delete one.running;
    if (error && one.text) one.error = error.message;
    if (error && !one.text) one.error = answers.length > 1 ? error.message : '';
    show();
    return error;
  }));
  // Where nothing was said there is no turn; the question stays to be asked again.
  if (!answers[0].text && answers[0].finish !== 'stop') turns.pop();
  if (state.running === running) {
    state.running = null;
    busy(false);
  }
  if (state.turns !== turns) {  // It was left, or cleared.
    if (state.id !== id) keep(localStorage, chatName(id), turns.length ? turns : null);
    return;
  }
  keepTurns();
  follow(drawTurns);
  const error = failed.find(Boolean);
  if (error?.status === 401) $('key-form').hidden = false;
  if (error) problem(error.message, 'Try again', retry);
  else if (turns.at(-1)?.role === 'user') problem('Stopped before the first word.', 'Try again', retry, true);
  else $('said').textContent = `${member.title} has answered.`;
}

function retry() {
  if (state.running) return;
  if (state.turns.at(-1)?.role === 'assistant') regenerate();
  else if (state.turns.length) answer();
}

function regenerate() {
  if (state.running || state.turns.at(-1)?.role !== 'assistant') return;
  state.turns.pop();
  answer();
}

function send() {
  const text = $('message').value.trim();
  if (!text || state.running || !state.id) return;
  // A question that was never answered is replaced by the next.
  if (state.turns.at(-1)?.role === 'user') state.turns.pop();
  state.turns.push({ role: 'user', text });
  state.cleared = null;
  $('message').value = '';
  resize();
  keepTurns();
  answer();
}

function stop() {
  state.running?.abort();
}

function newChat() {
  stop();
  if (!state.turns.length) return;
  state.cleared = state.turns.filter((turn) => turn.role === 'user' || turn.answers.some((one) => one.text));
  state.turns = [];
  keepTurns();
  drawTurns();
  problem('The conversation was cleared.', 'Undo', () => {
    if (state.cleared) state.turns = state.cleared;
    state.cleared = null;
    keepTurns();
    problem('');
    drawTurns();
  }, true);
  $('message').focus();
}

function problem(text, label = '', action = null, mild = false) {
  const [said, button] = $('problem').children;
  $('problem').hidden = !text;
  $('problem').classList.toggle('mild', mild);
  said.textContent = text;
  button.hidden = !action;
  button.textContent = label;
  button.onclick = action;
}

function busy(on) {
  $('send').hidden = on;
  $('stop').hidden = !on;
  $('log').setAttribute('aria-busy', String(on));
  ready();
}

function ready() {
  $('send').disabled = !$('message').value.trim();
}

function resize() {
  const box = $('message');
  box.style.height = 'auto';
  box.style.height = `${box.scrollHeight}px`;
  ready();
}

// --- What people do ------------------------------------------------------------

const SETTINGS = ['compare', 'temperature', 'max-tokens'];

function loadSettings() {
  const found = kept(localStorage, 'ppjax.settings', {});
  for (const id of SETTINGS) {
    if (typeof found[id] === 'boolean') $(id).checked = found[id];
    else if (typeof found[id] === 'string') $(id).value = found[id];
  }
  $('temperature-said').textContent = $('temperature').value;
}

function saveSettings() {
  $('temperature-said').textContent = $('temperature').value;
  keep(localStorage, 'ppjax.settings', Object.fromEntries(SETTINGS.map((id) => (
    [id, $(id).type === 'checkbox' ? $(id).checked : $(id).value]))));
}

function moveInCast(event) {
  const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
  if (!(event.key in steps)) return;
  const links = [...document.querySelectorAll('.member')].filter((link) => !link.parentElement.hidden);
  const next = links[links.indexOf(event.target.closest('.member')) + steps[event.key]];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

function typed(event) {
  if (event.key === 'Escape' && state.running) stop();
  if (event.key === 'Escape') $('settings').open = false;
  const writing = /^(INPUT|TEXTAREA)$/.test(document.activeElement?.tagName);
  if (event.key === '/' && !writing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    $('search').focus();
  }
}

function begin() {
  loadSettings();
  ready();
  $('search').addEventListener('input', filterCast);
  $('search').addEventListener('keydown', (event) => {
    const first = [...document.querySelectorAll('.member')].find((link) => !link.parentElement.hidden);
    if (first && (event.key === 'ArrowDown' || event.key === 'Enter')) {
      event.preventDefault();
      if (event.key === 'Enter') first.click();
      else first.focus();
    }
  });
  $('members').addEventListener('keydown', moveInCast);
  $('composer').addEventListener('submit', (event) => { event.preventDefault(); send(); });
  $('message').addEventListener('input', resize);
  $('message').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  $('stop').addEventListener('click', stop);
  $('new').addEventListener('click', newChat);
  for (const id of SETTINGS) $(id).addEventListener('input', saveSettings);
  $('compare').addEventListener('change', () => { if (state.id && !state.running) drawTurns(); });
  $('key-form').addEventListener('submit', (event) => {
    event.preventDefault();
    keep(sessionStorage, KEY, $('key').value.trim() || null);
    state.pictures.clear();
    state.shown = '';
    problem('');
    loadCast();
  });
  document.addEventListener('keydown', typed);
  document.addEventListener('click', (event) => {
    if (!event.target.closest('#settings')) $('settings').open = false;
  });
  addEventListener('hashchange', route);
  loadCast();
  setInterval(() => { if (!document.hidden) loadCast(); }, EVERY_MS);
}

begin();
