// The lists: failures, running jobs, names, the drain. Each renders one scheduler's view.
import { $, cell, cut, emptyBox, h, head, keyed, once, placed, s, set, table, text } from './dom.js';
import { ago, brief, clock, day, dur, forecast, int, label, matches, plural, safe, sortNames } from './model.js';

const NB = '\u202f';
export const small = matchMedia('(max-width: 760px)');

/** What the user has chosen to see; it belongs to the scheduler that is shown. */
export const newChoice = () => ({ allRunning: false, allNames: false, allFailures: false, held: null, order: null, floors: {}, drainFloor: 0 });

/** Keeps the room of a list, and makes it for half of its rows at once: short jobs come and go, the page below stays. */
function reserve(box, choice, rows, most, isFree) {
  const row = box.querySelector('tbody').firstElementChild, step = most / 2, missing = Math.ceil(rows / step) * step - rows;
  const height = [...box.children].reduce((sum, child) => sum + child.offsetHeight, missing * row.offsetHeight);
  const floor = (choice.floors[box.id] = Math.max(choice.floors[box.id] || 0, height));
  box.style.minHeight = isFree ? '' : floor + 'px';
}

const more = () => h('div', { class: 'more' }, h('button', { class: 'button', type: 'button' }), h('span', { class: 'dim small' }));

/* ---------- failures ---------- */
function failureRow(group) {
  const facts = ['Job', 'Request', 'Key', 'Spawned at', 'Queued, ran', 'First, last'].map(name => [h('dt', null, name), h('dd')]);
  const summary = h('summary', null, h('span', { class: 'clamp' }, h('span', { class: 'tag' }, label(group.outcome)), ' ', h('bdi')));
  const full = h('div', { class: 'full' }, h('pre', { tabindex: 0, role: 'group', 'aria-label': 'Full error text' }), h('dl', null, facts));
  return h('tr', { role: 'row' },
    cell('', h('span', { class: 'cut' }), h('span', { class: 'sub' })),
    cell('', h('bdi', { class: 'name cut' }), h('span', { class: 'sub' }, h('bdi', { class: 'cut' }))),
    cell('', h('details', { class: 'err' }, summary, full)),
    cell('num', h('b', { class: 'c1' }), h('span', { class: 'dim small cut c2' })));
}

function fillFailure(row, group, now) {
  const [when, job, error, times] = row.children, { last } = group, shown = safe(group.error);
  text(when.children[0], ago(Math.max(0, now - group.last_at)));
  text(when.children[1], clock(group.last_at));
  cut(job.children[0], group.name);
  cut(job.children[1].firstChild, last.request || last.location);
  text(error.querySelector('.clamp bdi'), shown);
  set(error.querySelector('summary'), { title: shown.slice(0, 600) });
  text(error.querySelector('pre'), shown);
  const facts = [last.id + ' ' + safe(group.name), safe(last.request || 'none'), safe(last.key || 'none'), safe(last.location),
    dur(last.queued_s) + ', ' + dur(last.ran_s), clock(group.first_at) + ', ' + clock(group.last_at)];
  error.querySelectorAll('dd').forEach((fact, i) => text(fact, facts[i]));
  const often = group.count > 1;
  text(times.children[0], often ? '\u00d7' + int(group.count) : 'once');
  text(times.children[1], often ? 'since ' + clock(group.first_at, false) : '');
  times.children[0].className = 'c1' + (often ? '' : ' dim');
}

const sameSet = (ids, groups) => ids.length === groups.length && groups.every(group => ids.includes(group.id));

export function renderFailures(v, page) {
  const box = $('failures-body'), note = $('failures-note'), { choice, find } = page;
  const list = v.failures.filter(group => matches(find, group.name, group.error, group.last.key, group.last.request, group.last.location));
  const kinds = v.found.kept;
  text(note, kinds ? `${int(v.overview.failed_15m)} in 15${NB}min, ${plural(kinds, 'different one')} kept` : '');
  if (!list.length) {
    const { totals } = v.overview, kind = find ? 'find' : totals.accepted ? 'none' : 'new';
    const example = 'Errors, panics, timeouts and abandoned jobs appear here, with the request and the line of code that spawned them.';
    const ages = `No failure since the start, ${day(page.startedAt)}`;
    once(box, kind + find, () => (find ? emptyBox('No failure matches the filter', plural(kinds, 'group') + ' without it.') : totals.accepted ? emptyBox(ages, example) : emptyBox('No job has run yet', example)));
    return;
  }
  once(box, 'table', () => [table('failures', 'Failures, latest first', ['c-when', 'c-job', '', 'c-count'], [head('When'), head('Job'), head('Error'), head('Times', 'num')]), more()]);
  const body = box.querySelector('tbody'), most = choice.allFailures ? 200 : small.matches ? 4 : 6;
  // Nothing moves under the pointer or under an open detail: new groups wait.
  const busy = body.contains(document.activeElement) || body.matches(':hover') || body.querySelector('details[open]');
  let rows = list, late = 0;
  if (busy && choice.held && !find) {
    const position = new Map(choice.held.map((id, i) => [id, i]));
    rows = list.filter(group => position.has(group.id)).sort((a, b) => position.get(a.id) - position.get(b.id));
    late = list.length - rows.length;
  } else if (choice.held && !find && v.now - choice.heldAt < 30 && sameSet(choice.held, list)) {
    // Groups that fail all the time would else change places every second.
    const position = new Map(choice.held.map((id, i) => [id, i]));
    rows = [...list].sort((a, b) => position.get(a.id) - position.get(b.id));
  } else {
    choice.held = list.map(group => group.id);
    choice.heldAt = v.now;
  }
  keyed(body, rows.slice(0, most), placed('id'), failureRow, (row, group) => fillFailure(row, group, v.now), group => v.now - group.first_at < 3);
  const foot = box.querySelector('.more'), button = foot.firstChild;
  foot.hidden = rows.length <= most && !late && !choice.allFailures;
  text(button, late ? `Show ${late} new` : choice.allFailures ? 'Show the latest only' : `Show all ${rows.length}`);
  text(foot.lastChild, late ? 'The list holds still while it is in use.' : '');
  button.onclick = () => {
    if (late) { choice.held = null; button.blur(); body.querySelectorAll('details[open]').forEach(open => { open.open = false; }); } else choice.allFailures = !choice.allFailures;
    page.render();
  };
  reserve(box, choice, Math.min(rows.length, most), most, find || choice.allFailures);
}

/* ---------- running and pending jobs ---------- */
const tagOf = job => (job.kind === 'shielded' ? 'shielded' : job.key ? safe(job.key) : job.kind === 'blocking' ? 'blocking' : '');
const placeCell = () => cell('', h('div', { class: 'named' }, h('bdi', { class: 'cut dim' }), h('span', { class: 'tag plain' })));

function fillPlace(node, job) {
  const tag = tagOf(job), [place, mark] = node.firstChild.children;
  cut(place, job.place);
  mark.hidden = !tag;
  text(mark, tag);
}

function runningRow(job, page) {
  const cancel = h('button', { class: 'button', type: 'button' }, 'Cancel');
  cancel.onclick = () => page.act(`jobs/${encodeURIComponent(job.id)}/cancel`, `Cancel ${safe(job.name)}?`);
  set(cancel, { 'aria-label': 'Cancel ' + safe(job.name) });
  return h('tr', { role: 'row' },
    cell('', h('div', { class: 'named' }, h('bdi', { class: 'name cut' }), h('span', { class: 'tag solid' }))),
    placeCell(), cell('num', h('b')),
    cell('', h('div', { class: 'timeleft' }, h('span', { class: 'meter', 'aria-hidden': 'true' }, h('i')), h('span', { class: 'num small' }))),
    page.actions ? cell('num act', cancel) : null);
}

function fillRunning(row, job) {
  const [name, place, ran, left] = row.children, [title, tag] = name.firstChild.children;
  row.classList.toggle('stuck', job.stuck);
  cut(title, job.name);
  set(title, { title: `${safe(job.name)}\njob ${job.id}, ${safe(job.location)}\nqueued ${dur(job.queued_s)}` });
  tag.hidden = !job.stuck;
  text(tag, 'stuck');
  set(tag, { title: job.p95_s === null ? 'no run of this name to compare with' : `p95 of this name: ${dur(job.p95_s)}` });
  fillPlace(place, job);
  text(ran.firstChild, dur(job.ran));
  const [meter, words] = left.firstChild.children, part = job.left === null ? job.progress : job.left / job.timeout_s;
  const low = job.left === null ? '' : part < 0.1 ? ' bad' : part < 0.3 ? ' warn' : '';
  meter.className = 'meter' + (part === null ? ' none' : low);
  meter.firstChild.style.width = (part || 0) * 100 + '%';
  const rest = job.left === null ? '' : (job.left < 60 ? Math.ceil(job.left) + NB + 's' : dur(job.left)) + (job.timeout_s < 100 ? ' of ' + Number(job.timeout_s.toPrecision(3)) : '');
  text(words, rest || (job.progress === null ? 'no timeout' : Math.floor(job.progress * 100) + NB + '% done'));
}

export function renderRunning(v, page) {
  const box = $('running-body'), note = $('running-note'), { choice, find } = page;
  $('running').hidden = v.state !== 'open';
  const { jobs, total } = v.found.jobs;
  const list = find && page.found ? page.found.active : v.running.filter(job => matches(find, job.name, job.key, job.request));
  text(note, total ? `${int(total)}, stuck first, then longest first` : '');
  if (!list.length) {
    once(box, 'none' + find, () => (find ? emptyBox('No running job matches the filter', plural(total, 'job') + ' without it.') : emptyBox('Nothing runs', 'Jobs appear here from their start to their end.')));
    return;
  }
  const heads = [head('Job'), head('Request'), head('Running for', 'num'), head('Timeout left'), page.actions ? head('Action', 'num') : null];
  once(box, 'table', () => [table('running', 'Running jobs, stuck ones first', ['', 'c-req', 'c-for', 'c-left', ...(page.actions ? ['c-act'] : [])], heads.filter(Boolean)), more()]);
  const most = choice.allRunning ? 200 : Math.max(small.matches ? 6 : 10, Math.min(v.overview.stuck, 20));
  keyed(box.querySelector('tbody'), list.slice(0, most), placed('id'), job => runningRow(job, page), fillRunning);
  const foot = box.querySelector('.more'), hidden = Math.max(0, list.length - most), beyond = find ? 0 : Math.max(0, total - jobs.length);
  foot.hidden = !hidden && !choice.allRunning && !beyond;
  foot.firstChild.hidden = !hidden && !choice.allRunning;
  text(foot.firstChild, choice.allRunning ? 'Show fewer' : `Show ${beyond ? 'the longest' : 'all'} ${list.length}`);
  foot.firstChild.onclick = () => { choice.allRunning = !choice.allRunning; page.render(); };
  const rest = hidden + beyond;
  text(foot.lastChild, rest && list[most] ? `${int(rest)} more, each running ${dur(list[most].ran)} or less` : rest ? `${int(rest)} more: the filter finds them` : '');
  reserve(box, choice, Math.min(list.length, most), most, find || choice.allRunning);
}

/** Pending jobs that match the filter: only the server can find them. */
export function renderFound(v, page) {
  const pending = page.find && page.found ? page.found.pending : [];
  $('found').hidden = !pending.length;
  if (!pending.length) return;
  text($('found-note'), `longest waiting first${page.found.partial ? ', among the first 10' + NB + '000' : ''}`);
  const box = $('found-body');
  once(box, 'table', () => table('running', 'Pending jobs that match the filter', ['', 'c-req', 'c-for'], [head('Job'), head('Request'), head('Waiting for', 'num')]));
  keyed(box.querySelector('tbody'), pending, placed('id'), () => h('tr', { role: 'row' }, cell('', h('bdi', { class: 'name cut' })), placeCell(), cell('num', h('b'))), (row, job) => {
    cut(row.children[0].firstChild, job.name);
    fillPlace(row.children[1], job);
    text(row.children[2].firstChild, dur(job.ran));
  });
}

/* ---------- names ---------- */
const COLUMNS = [['running', 'Running'], ['pending', 'Pending'], ['ended', 'Ended'], ['failed', 'Failed'], ['q50', 'p50', 'Queue '], ['q95', 'p95', 'Queue '], ['r50', 'p50', 'Run '], ['r95', 'p95', 'Run ']];
const sorting = { by: 'failed', isDown: true };

function sortBy(column, page, isDown) {
  sorting.isDown = isDown ?? (sorting.by === column ? !sorting.isDown : column !== 'name');
  sorting.by = column;
  page.choice.order = null;
  page.render();
}

function sparkline() {
  const svg = s('svg', { class: 'spark', viewBox: '0 0 146 24', preserveAspectRatio: 'none', role: 'img' });
  for (let i = 0; i < 15; i++) svg.append(s('rect', { class: 'sp' }), s('rect', { class: 'sf' }));
  return svg;
}

function fillSparkline(svg, name) {
  const most = Math.max(1, ...name.per_min), step = 146 / 15;
  const bar = (rect, i, count, least) => {
    const height = count ? Math.max(least, 21 * count / most) : 0;
    set(rect, { x: (i * step + 1).toFixed(1), width: (step - 2).toFixed(1), y: (23 - height).toFixed(1), height: height.toFixed(1) });
  };
  name.per_min.forEach((ended, i) => {
    bar(svg.children[2 * i], i, ended, 1.5);
    bar(svg.children[2 * i + 1], i, name.failed_per_min[i], 3);
  });
  set(svg, { 'aria-label': `ended per minute: ${name.per_min[13]} in the last full one, at most ${most}` });
}

function fillName(row, name) {
  cut(row.children[0].firstChild, name.name);
  COLUMNS.forEach(([key, , group], i) => {
    const value = group ? name[group === 'Queue ' ? 'queue_s' : 'run_s'][key.endsWith('50') ? 'p50' : 'p95'] : name[key], td = row.children[i + 1];
    text(td, group ? brief(value) : int(value));
    td.className = 'num' + (key === 'failed' && value ? ' hot' : !group && !value ? ' zero' : (key === 'q95' && value > 5) || (key === 'r95' && value > 60) ? ' slow' : '');
    if (key === 'failed') set(td, { title: value ? (100 * value / name.ended).toFixed(1) + ' % of those that ended' : null });
  });
  fillSparkline(row.children[9].firstChild, name);
}

function namesTable(page) {
  const sortHead = (key, title, group) => {
    const button = h('button', { type: 'button' }, group ? h('span', null, group) : null, title), th = head(button, key === 'name' ? null : 'num');
    button.onclick = () => sortBy(key, page);
    th.column = key;
    return th;
  };
  const select = $('sort');
  select.replaceChildren(...[['name', 'Name'], ...COLUMNS].map(([key, title, group]) => h('option', { value: key }, (group || '') + title)));
  select.onchange = () => sortBy(select.value, page, select.value !== 'name');
  const cols = ['', 'c-n', 'c-n', 'c-n', 'c-n', 'c-t', 'c-t', 'c-t', 'c-t', 'c-spark'];
  const heads = [sortHead('name', 'Name'), ...COLUMNS.map(column => sortHead(...column)), head('Ended per min', 'num')];
  return [table('names', 'Job names: counts, queue time and run time of the last 15 minutes', cols, heads), more()];
}

export function renderNames(v, page) {
  const box = $('names-body'), note = $('names-note'), { choice, find } = page, all = v.found.names.filter(name => name.ended || name.running || name.pending);
  document.querySelector('.sort').hidden = all.length < 2;
  const list = all.filter(name => matches(find, name.name));
  text(note, all.length ? `${plural(all.length, 'name')}, last ${dur(Math.max(v.found.window, 1))}${all.some(name => name.other) ? '; further names are counted as \u201cother\u201d' : ''}` : '');
  if (!list.length) {
    once(box, 'none' + find, () => (find ? emptyBox('No name matches the filter', plural(all.length, 'name') + ' without it.') : emptyBox('No name yet', h('span', null, 'Give jobs a name to tell them apart: ', h('code', null, 'jobs.job("send_invoice").spawn(..)'), '. A job without one is listed by the line that spawned it.'))));
    return;
  }
  once(box, 'table', () => namesTable(page));
  for (const th of box.querySelectorAll('thead th')) if (th.column) set(th, { 'aria-sort': th.column === sorting.by ? (sorting.isDown ? 'descending' : 'ascending') : null });
  $('sort').value = sorting.by;
  // The order is made anew only when figures come, every 10 s, so that rows hold still.
  if (!choice.order || choice.orderOf !== v.found.names) {
    choice.order = new Map(sortNames(all, sorting.by, sorting.isDown).map((name, i) => [name.name, i]));
    choice.orderOf = v.found.names;
  }
  const rows = list.sort((a, b) => choice.order.get(a.name) - choice.order.get(b.name)), few = small.matches ? 6 : 14;
  const newRow = () => h('tr', { role: 'row' }, cell('', h('bdi', { class: 'name cut' })), COLUMNS.map(([, title, group]) => set(cell('num'), { 'data-l': (group || '') + title })), cell('num', sparkline()));
  keyed(box.querySelector('tbody'), rows.slice(0, choice.allNames ? 101 : few), placed('name'), newRow, fillName);
  const foot = box.querySelector('.more');
  foot.hidden = rows.length <= few;
  text(foot.firstChild, choice.allNames ? `Show the first ${few}` : `Show all ${rows.length} names`);
  text(foot.lastChild, choice.allNames ? '' : `${rows.length - few} more`);
  foot.firstChild.onclick = () => { choice.allNames = !choice.allNames; page.render(); };
}

/* ---------- drain ---------- */
const OUTCOMES = [['Completed', 'completed'], ['Failed', 'failed'], ['Panicked', 'panicked'], ['Timed out', 'timed_out'], ['Cancelled', 'cancelled'], ['Skipped', 'skipped'], ['Never started', 'never_started'], ['Abandoned', 'abandoned']];

function reportOf(report) {
  const isLost = report.abandoned || report.never_started || report.cancelled;
  const sentence = isLost ? 'Some jobs did not end. Those that never started or were cancelled were dropped; an abandoned one may still run until the process exits.' : 'Every accepted job ended.';
  const count = ([name, key]) => h('div', null, h('dt', null, name), h('dd', { class: 'num' + (report[key] && key !== 'completed' && key !== 'skipped' ? ' hot' : '') }, int(report[key])));
  const lost = report.lost.map(job => h('li', null, h('span', { class: 'tag' }, safe(job.outcome.replace('_', ' '))), ' ', h('bdi', { class: 'name' }, safe(job.name)), ' ', h('bdi', { class: 'dim' }, safe(job.request || ''))));
  return h('div', { class: 'report' }, h('h2', { id: 'h-drain' }, `Closed at ${clock(report.closed_at)}: drained in ${dur(report.elapsed_s)}`),
    h('p', { class: 'dim' }, sentence), h('dl', { class: 'totals' }, OUTCOMES.map(count)), lost.length ? h('ul', { class: 'lostjobs' }, lost) : null);
}

function drainBox() {
  const three = ['Still running', 'Still pending', 'Likely lost'].map(name => h('div', null, h('dt', null, name), h('dd', null, h('b'), h('span'))));
  const left = h('div', null, h('h2', { id: 'h-drain' }, 'Draining'), h('div', { class: 'count' }, h('b'), h('span')), h('div', { class: 'meter', 'aria-hidden': 'true' }, h('i')), h('p', { class: 'dim small' }));
  return [h('div', { class: 'drain-top' }, left, h('dl', { class: 'tri' }, three)),
    table('draintable', 'Jobs still running, those likely to be cut off first', ['', 'c-req', 'c-for', 'c-exp', 'c-end'], [head('Still running'), head('Request'), head('Running for', 'num'), head('Expected to need'), head('At the deadline')]),
    h('p', { class: 'more dim small' })];
}

function fillDraining(row, job, v) {
  const [name, place, ran, need, end] = row.children, tag = tagOf(job), ends = job.verdict === 'ends';
  row.classList.toggle('stuck', !ends);
  cut(name.firstChild.firstChild, job.name);
  name.firstChild.lastChild.hidden = !tag;
  text(name.firstChild.lastChild, tag);
  cut(place.firstChild, job.place);
  text(ran.firstChild, dur(job.ran));
  text(need.firstChild, job.need === null ? (job.stuck ? 'unknown: stuck' : job.p95_s === null ? 'unknown' : 'unknown: past its p95') : '\u2264' + NB + dur(job.need) + ' more');
  end.firstChild.className = 'tag ' + (ends ? 'plain' : 'solid');
  text(end.firstChild, ends ? (v.left === null ? 'no deadline' : 'ends in time') : job.verdict === 'abandoned' ? 'abandoned' : 'cut off');
  const why = { cut: 'dropped at its next .await', signalled: `told to stop, has ${dur(v.overview.settings.close_timeout_s)}`, abandoned: 'blocking code cannot be stopped' };
  text(end.lastChild, ends ? '' : ' ' + why[job.verdict]);
}

export function renderDrain(v, page) {
  const box = $('drain'), { choice, find } = page;
  box.hidden = !(v.drain || v.overview.report);
  box.classList.toggle('closed', v.state === 'closed');
  if (box.hidden) return;
  if (!v.drain) {
    choice.drainFloor = 0;
    box.style.minHeight = '';
    once(box, 'closed', () => reportOf(v.overview.report));
    return;
  }
  const { judged, lost, waiting, speed, unstarted } = forecast(v), bad = lost + unstarted, { drain } = v;
  once(box, 'draining', drainBox);
  const span = drain.deadline_at === null ? null : drain.deadline_at - drain.since_at;
  text(box.querySelector('.count b'), v.left === null ? dur(Math.floor(v.since)) : Math.ceil(v.left) + NB + 's');
  text(box.querySelector('.count span'), v.left === null ? 'so far, no deadline' : `left of ${Math.round(span)}${NB}s, deadline ${clock(drain.deadline_at)}`);
  box.querySelector('.meter i').style.width = v.left === null ? '0' : Math.min(100, 100 * v.left / (span || 1)) + '%';
  const announced = v.overview.state === 'announced' ? 'Connections end first. ' : '';
  text(box.querySelector('.drain-top p'), `Since ${clock(drain.since_at)}. ${announced}New jobs are still accepted. At the deadline running jobs are dropped; those of spawn_with are told and have ${dur(v.overview.settings.close_timeout_s)}.`);
  const { gauges } = v.overview;
  const three = [[v.found.jobs.total, `${int(gauges.running)} permits in use`], [waiting, waiting ? (speed ? `about ${dur(waiting / speed)} to start all` : 'none starts') : 'queue is empty'], [bad, bad ? `${lost} running, ${unstarted} pending` : 'all should end in time']];
  box.querySelectorAll('.tri dd').forEach((dd, i) => {
    text(dd.children[0], (i === 2 && bad ? '\u2248' + NB : '') + int(three[i][0]));
    text(dd.children[1], three[i][1]);
    dd.className = i === 2 && bad ? 'bad' : '';
  });
  const list = judged.filter(job => matches(find, job.name, job.key, job.request)), shown = 8;
  const newRow = () => h('tr', { role: 'row' }, cell('', h('div', { class: 'named' }, h('bdi', { class: 'name cut' }), h('span', { class: 'tag plain' }))), cell('', h('bdi', { class: 'cut dim' })), cell('num', h('b')), cell('', h('span', { class: 'small' })), cell('', h('span', { class: 'tag' }), h('span', { class: 'small dim' })));
  keyed(box.querySelector('tbody'), list.slice(0, shown), placed('id'), newRow, (row, job) => fillDraining(row, job, v));
  // Rows only leave: the page below does not jump.
  if (!find) { choice.drainFloor = Math.max(choice.drainFloor, box.offsetHeight); box.style.minHeight = choice.drainFloor + 'px'; }
  text(box.querySelector('.more'), (list.length > shown ? `${list.length - shown} more. ` : '') + 'Estimated from the p95 of each name and its run timeout.');
}
