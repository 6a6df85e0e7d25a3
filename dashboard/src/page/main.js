// The page: its connection to the server, and the parts around the lists.
import { Chart } from './chart.js';
import { $, cut, h, icon, keyed, set, text } from './dom.js';
import { newChoice, renderDrain, renderFailures, renderFound, renderNames, renderRunning } from './lists.js';
import { aged, apply, clock, day, dur, gauges, int, isClosed, isDraining, label, newModel, plural, rate, safe, setting, verdict, view } from './model.js';

const NB = '\u202f', BASE = new URL('..', import.meta.url), RETRY = 3, POLL = 5;
const EVENTS = ['hello', 'tick', 'failures', 'names', 'drain', 'closed'];
const api = path => new URL('api/v1/' + path, BASE);
const local = () => performance.now() / 1000;

const model = newModel();
const page = { choice: newChoice(), find: '', found: null, actions: false, startedAt: 0, render, act };
let chosen = decodeURIComponent(location.hash.slice(1)), isLive = true, source = null;
let lostAt = null, nextTry = null, isEnded = false, isPolling = false, said = {};

/* ---------- connection ---------- */
function take(event, data) {
  apply(model, event, data, local());
  if (model.process) { page.actions = model.process.actions; page.startedAt = model.process.started_at; }
  if (event !== 'hello' && event !== 'tick') return;
  lostAt = nextTry = null;
  if (isClosed(model)) { isEnded = true; disconnect(); }
  render();
}

function disconnect() {
  if (source) source.close();
  source = null;
  nextTry = null;
}

const wantsEvents = () => isLive && !document.hidden && !isEnded;

function connect() {
  disconnect();
  if (!wantsEvents()) return;
  const mine = (source = new EventSource(api('events')));
  let has = false;
  for (const event of EVENTS) mine.addEventListener(event, message => {
    has = true;
    isPolling = false;
    take(event, JSON.parse(message.data));
  });
  mine.onerror = () => {
    const isRefused = mine.readyState === EventSource.CLOSED;
    mine.close();
    if (mine !== source) return;
    source = null;
    if (isEnded) return;
    // A server that drains ends its streams, and may take new ones until it stops.
    if (has && isDraining(model)) { nextTry = local() + 1; return; }
    if (isRefused) poll();
    else lose();
  };
}

function lose() {
  if (lostAt === null) lostAt = model.ready ? model.local : local();
  nextTry = local() + RETRY;
  render();
}

/** All streams are in use: the same figures from the other routes, less often. */
async function poll() {
  try {
    const get = async path => {
      const response = await fetch(api(path));
      if (!response.ok) throw new Error(response.statusText);
      return response.json();
    };
    const overview = await get('overview');
    const schedulers = await Promise.all(overview.schedulers.map(async ({ name }) => {
      const query = '?scheduler=' + encodeURIComponent(name);
      const [series, names, failures, jobs] = await Promise.all([get(`series${query}&step=5`), get('names' + query), get(`failures${query}&limit=200`), get('jobs' + query)]);
      return { name, series, names, failures, jobs };
    }));
    if (!wantsEvents()) return;
    isPolling = true;
    take('hello', { overview, schedulers });
    if (!isEnded) nextTry = local() + POLL;
  } catch (error) {
    console.warn(error);
    if (wantsEvents()) lose();
  }
}

/** Asks the server for jobs beyond those that it sends. */
async function search() {
  const { find } = page;
  if (!find || !model.ready || lostAt !== null) { page.found = null; return; }
  try {
    const ask = async state => (await fetch(api(`jobs?state=${state}&scheduler=${encodeURIComponent(chosen)}&q=${encodeURIComponent(find)}`))).json();
    const [active, pending] = await Promise.all([ask('active'), ask('pending')]);
    if (find !== page.find || !active.jobs || !pending.jobs) return;
    const age = jobs => jobs.map(job => aged(job, 0));
    page.found = { active: age(active.jobs), pending: age(pending.jobs), partial: pending.partial };
    render();
  } catch (error) {
    console.warn(error);
    page.found = null;
  }
}

async function act(path, question) {
  if (question && !confirm(question)) return;
  let answer;
  try {
    const response = await fetch(api(`${path}?scheduler=${encodeURIComponent(chosen)}`), { method: 'POST' });
    answer = response.ok ? 'Done.' : (await response.json()).error;
  } catch (error) {
    answer = 'Failed: ' + error;
  }
  text($('say'), answer);
}

/* ---------- head ---------- */
function choose(name, focus) {
  chosen = name;
  page.choice = newChoice();
  page.found = null;
  history.replaceState(null, '', location.search + '#' + encodeURIComponent(name));
  for (const id of ['failures-body', 'running-body', 'names-body', 'drain']) { $(id).kind = null; $(id).style.minHeight = ''; }
  $('verdict').firstElementChild.style.minHeight = '';
  render();
  search();
  if (focus) $('tabs').byKey.get(name).focus();
}

function tabOf(name) {
  const button = h('button', { class: 'tab', type: 'button', role: 'tab', 'aria-controls': 'panel' },
    h('span', { class: 'dot', 'aria-hidden': 'true' }), h('bdi', null, safe(name)), h('span', { class: 'n' }), h('span', { class: 'badge' }), h('span', { class: 'vh' }));
  button.onclick = () => choose(name);
  button.onkeydown = event => {
    const names = [...model.schedulers.keys()], at = names.indexOf(chosen);
    const to = { ArrowRight: (at + 1) % names.length, ArrowLeft: (at + names.length - 1) % names.length, Home: 0, End: names.length - 1 }[event.key];
    if (to !== undefined) { event.preventDefault(); choose(names[to], true); }
  };
  return button;
}

function renderTabs() {
  $('tabs').hidden = !model.ready;
  keyed($('tabs'), [...model.schedulers.values()], found => found.name, found => tabOf(found.name), (tab, { name, overview }) => {
    const [dot, , count, badge, state] = tab.children, isChosen = name === chosen;
    set(tab, { 'aria-selected': isChosen, tabindex: isChosen ? 0 : -1 });
    dot.className = 'dot ' + (overview.state === 'announced' ? 'draining' : overview.state);
    const { gauges: { running }, settings: { limit } } = overview;
    text(count, int(running) + (limit === null ? '' : '/' + int(limit)));
    badge.hidden = !overview.stuck;
    text(badge, overview.stuck + ' stuck');
    text(state, ' ' + overview.state);
  });
}

function renderHead(v) {
  const pill = $('pill'), paused = v && v.overview.settings.paused && v.state === 'open', state = !v ? 'closed' : paused ? 'paused' : v.state;
  pill.className = 'pill ' + state;
  pill.children[0].className = 'dot ' + (paused ? 'draining' : state);
  const closed = () => (v.overview.report ? 'Closed at ' + clock(v.overview.report.closed_at) : 'Closed');
  const draining = () => 'Draining, ' + (v.left === null ? dur(Math.floor(v.since)) : String(Math.ceil(v.left)).padStart(2, '\u2007') + NB + 's left');
  text(pill.children[1], !v ? 'Connecting' : { open: () => 'Open', paused: () => 'Paused', draining, closed }[state]());
  const at = v && v.overview.settings, limit = value => (value === null ? 'none' : int(value));
  const facts = v ? [['limit', limit(at.limit)], ['pending limit', limit(at.pending_limit)], ...(at.limit_per_key === null ? [] : [['per key', int(at.limit_per_key)]]), ['wait timeout', setting(at.wait_timeout_s)], ['close timeout', setting(at.close_timeout_s)]] : [];
  keyed($('facts'), facts, fact => fact[0], fact => h('span', null, fact[0] + ' ', h('b')), (node, fact) => text(node.lastChild, fact[1]));
  const { process } = model;
  cut($('meta'), process && v ? `up ${dur(Math.max(0, Math.floor(v.now - process.started_at)))} since ${day(process.started_at)}, process ${process.pid}${process.host ? ' on ' + process.host : ''}` : 'connecting');
  $('live-box').hidden = false;
  const reason = lostAt !== null ? 'last ' : isEnded ? 'ended ' : isLive ? '' : 'paused ';
  text($('clock'), v ? reason + clock(v.now) + (reason ? '' : ' UTC') : '');
  $('acts').hidden = !page.actions || !v || v.state === 'closed';
  text($('pause'), at && at.paused ? 'Resume' : 'Pause');
}

function renderVerdict(v) {
  const items = verdict(v);
  const has = kind => items.some(item => item.kind === kind);
  $('verdict').className = 'verdict ' + (has('bad') ? 'bad' : has('warn') ? 'warn' : '');
  const make = item => h('li', null, icon(item.kind), h('span', null, item.href ? h('a', { href: item.href }, h('b')) : h('b'), h('span')));
  const list = $('verdict').firstElementChild;
  keyed(list, items, item => item.id + item.kind, make, (node, item) => {
    text(node.querySelector('b'), item.strong);
    text(node.children[1].lastChild, item.rest);
  });
  // A condition that comes and goes moves the page once.
  page.choice.floors.verdict = Math.max(page.choice.floors.verdict || 0, list.offsetHeight);
  list.style.minHeight = page.choice.floors.verdict + 'px';
}

function renderGauges(v) {
  const make = g => h('div', { class: 'gauge' }, h('dt', null, g.name), h('dd', null, h('div', { class: 'v' }, h('b'), h('span')),
    g.part === null ? h('div', { class: 'rule' }) : h('div', { class: 'meter', 'aria-hidden': 'true' }, h('i')), h('p', { class: 'note cut' })));
  keyed($('gauges'), gauges(v), g => g.id, make, (node, g) => {
    const [value, meter, note] = node.children[1].children;
    text(value.firstChild, g.value);
    text(value.lastChild, g.of);
    if (g.part !== null) { meter.className = 'meter ' + g.cls; meter.firstChild.style.width = g.part * 100 + '%'; }
    note.className = 'note cut ' + g.cls;
    cut(note, g.note);
    if (g.hint) set(note, { title: g.hint });
  });
}

const TOTALS = [['Accepted', 'accepted'], ['Completed', 'completed'], ['Failed', 'failed'], ['Panicked', 'panicked'], ['Timed out', 'timed_out'], ['Cancelled', 'cancelled'], ['Skipped', 'skipped'], ['Never started', 'never_started'], ['Abandoned', 'abandoned'], ['Refused', null]];
function renderTotals(v) {
  const refused = Object.entries(v.overview.refused).reduce((sum, [reason, count]) => sum + (reason === 'duplicate' ? 0 : count), 0);
  keyed($('totals'), TOTALS, row => row[0], row => h('div', null, h('dt', null, row[0]), h('dd', { class: 'num' })), (node, [, key]) => {
    text(node.lastChild, int(key ? v.overview.totals[key] : refused));
  });
}

/* ---------- connection lost ---------- */
function renderLost(v) {
  for (const id of ['main', 'top']) $(id).classList.toggle('stale', lostAt !== null);
  $('banner').hidden = lostAt === null;
  if (lostAt === null) return;
  const alert = (strong, rest) => { if ($('lost').textContent !== strong + rest) $('lost').replaceChildren(h('strong', null, strong), rest); };
  if (v && v.drain) {
    alert('The server shuts down', ' and takes no more connections.');
    text($('lostage'), v.left === 0 ? `The deadline passed at ${clock(v.drain.deadline_at)}. The report is in the log of the process.` : `Figures are from ${clock(v.now)}; ${v.left === null ? 'the drain has no deadline' : 'the countdown goes on'}.`);
  } else {
    const wait = nextTry === null ? 0 : Math.max(0, Math.ceil(nextTry - local()));
    alert('Connection lost.', v ? ` Figures are from ${clock(v.now)}.` : ' There are no figures yet.');
    text($('lostage'), `Last update ${Math.floor(local() - lostAt)}${NB}s ago, ${wait ? `next try in ${wait}${NB}s` : 'trying'}.`);
  }
  $('retry').hidden = Boolean(v && v.drain && v.left === 0);
}

function renderTitle(v) {
  const app = document.querySelector('h1').textContent, alerts = [];
  if (v && v.overview.stuck) alerts.push(v.overview.stuck + ' stuck');
  if (v && v.overview.failed_15m) alerts.push(v.overview.failed_15m + ' failed');
  const drain = v && v.drain ? (v.left === null ? 'draining' : Math.ceil(v.left) + ' s left') : null;
  document.title = `${drain || (lostAt !== null ? 'Connection lost' : alerts.join(', ') || 'jobs')}: ${app}`;
}

/** Few words for screen readers: changes of state and new failures, at most one in 10 s. */
function announce(v) {
  const now = { name: v.name, state: v.state, failed: v.overview.failed_15m, stuck: v.overview.stuck, at: said.at ?? -99 };
  let message = '';
  if (said.name === now.name) {
    if (now.state !== said.state) message = `Scheduler ${safe(v.name)} is ${now.state}.`;
    else if (local() - now.at > 10 && now.stuck > said.stuck) message = plural(now.stuck, 'job') + ' stuck.';
    else if (local() - now.at > 10 && now.failed > said.failed && v.failures.length) message = `New ${label(v.failures[0].outcome)}: ${safe(v.failures[0].name)}.`;
  }
  if (message) { text($('say'), message); now.at = local(); }
  said = now;
}

/* ---------- all ---------- */
const throughput = new Chart($('chart-throughput'), 'Throughput over time; arrow keys read it', [
  { title: 'per second', height: 120, least: 2, series: [{ id: 'started', label: 'started', kind: 'area', how: 'rate' }, { id: 'ended', label: 'ended', kind: 'line', how: 'rate' }] },
  { title: 'per 5 s', height: 52, least: 2, stacked: true, series: [{ id: 'failed', label: 'failed', kind: 'bar', how: 'sum' }, { id: 'refused', label: 'refused', kind: 'bar', how: 'sum' }] },
], at => `${rate(at.started)} started and ${rate(at.ended)} ended per second, ${at.failed} failed and ${at.refused} refused in 5 seconds`);
const depth = new Chart($('chart-depth'), 'Queue depth over time; arrow keys read it', [
  { title: 'jobs', height: 112, least: 4, series: [{ id: 'pending', label: 'pending', kind: 'area', how: 'max' }, { id: 'waiting_callers', label: 'callers', kind: 'line', how: 'max', skip: true }] },
  { title: 'seconds', height: 64, least: 2, series: [{ id: 'oldest_pending_s', label: 'oldest pending', kind: 'area', how: 'max', show: dur }] },
], at => `${int(at.pending)} pending, ${int(at.waiting_callers)} callers waiting, oldest pending job ${dur(at.oldest_pending_s)}`);

/** Seconds since the figures were true, as far as the page goes on by itself. */
function render() {
  let v = null;
  if (model.ready) {
    if (!model.schedulers.has(chosen)) chosen = model.schedulers.keys().next().value;
    const since = local() - model.local, frozen = lostAt !== null || !isLive || isEnded;
    v = frozen ? view(model, chosen, 0, since) : view(model, chosen, Math.min(since, POLL + 1), 0);
  }
  set($('panel'), { 'aria-busy': v ? null : true });
  renderTabs();
  renderHead(v);
  renderLost(v);
  renderTitle(v);
  if (!v) return;
  renderVerdict(v);
  renderGauges(v);
  renderDrain(v, page);
  renderFailures(v, page);
  renderRunning(v, page);
  renderFound(v, page);
  renderNames(v, page);
  renderTotals(v);
  const marks = v.found.marks.filter(mark => mark.kind !== 'start');
  throughput.update(v.found.steps, v.now, marks);
  depth.update(v.found.steps, v.now, marks);
  announce(v);
}

$('live').onclick = () => {
  isLive = !isLive;
  set($('live'), { 'aria-checked': isLive });
  lostAt = null;
  if (isLive) connect();
  else disconnect();
  render();
};
$('retry').onclick = () => { text($('say'), 'Trying to connect.'); connect(); };
$('pause').onclick = () => {
  const isPaused = model.schedulers.get(chosen).overview.settings.paused;
  act(isPaused ? 'resume' : 'pause', isPaused ? null : 'Pause this scheduler? No job starts until it is resumed.');
};
let typing = 0;
$('find').oninput = event => {
  page.find = event.target.value.trim().toLowerCase();
  page.found = null;
  render();
  clearTimeout(typing);
  typing = setTimeout(search, 300);
};
// A hidden page asks for nothing; it begins anew when it is seen again.
document.addEventListener('visibilitychange', () => (document.hidden ? disconnect() : connect()));
addEventListener('hashchange', () => {
  const name = decodeURIComponent(location.hash.slice(1));
  if (model.schedulers.has(name) && name !== chosen) choose(name);
});

const side = document.querySelector('.right'); // a side column taller than the window sticks by its lower edge
const stick = () => side.style.setProperty('--top', Math.min(16, innerHeight - side.offsetHeight - 16) + 'px');
new ResizeObserver(stick).observe(side);
let width = innerWidth;
addEventListener('resize', () => {
  stick();
  if (innerWidth === width) return;
  width = innerWidth;
  page.choice.floors = {};
  $('verdict').firstElementChild.style.minHeight = '';
  render();
});

let second = 0;
setInterval(() => {
  if (document.hidden || isEnded) return;
  second++;
  if (!source && nextTry !== null && local() >= nextTry) connect();
  if (page.find && second % 3 === 0) search();
  if (isLive) render();
}, 1000);
render();
connect();
