// The model of the page: figures from the server, and the texts that show them. It knows no document, so that it is
// tested without a browser.

export const STEP = 5, SPAN = 900;
const NB = '\u202f';

/* ---------- texts ---------- */
export const int = n => String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, NB);
export const rate = n => (n === 0 ? '0' : n < 10 ? n.toFixed(1) : int(n));
const two = n => String(n).padStart(2, '0');
const none = value => value === null || value === undefined;
export const unit = (n, name) => n + NB + name;

/** A duration: <1 ms, 34 ms, 4.2 s, 42 s, 4 min 07 s, 2 h 14 min, 3 d 04 h. */
export function dur(s) {
  if (none(s)) return '\u2013';
  if (s === 0) return '0' + NB + 's';
  if (s < 0.00095) return '<1' + NB + 'ms';
  if (s < 0.0995) return Number((s * 1000).toPrecision(s < 0.00995 ? 1 : 2)) + NB + 'ms';
  if (s < 0.9995) return Math.min(Math.round(s * 100) * 10, 990) + NB + 'ms';
  if (s < 9.95) return s.toFixed(1) + NB + 's';
  if (s < 60) return Math.floor(s) + NB + 's';
  const m = Math.floor(s / 60);
  if (m < 60) return m + NB + 'min' + (m < 20 ? NB + two(Math.floor(s % 60)) + NB + 's' : '');
  const h = Math.floor(m / 60);
  if (h < 48) return h + NB + 'h' + NB + two(m % 60) + NB + 'min';
  return Math.floor(h / 24) + NB + 'd' + NB + two(h % 24) + NB + 'h';
}

/** A quantile is an estimate: two digits. */
export function brief(s) {
  if (none(s) || s < 60) return dur(s);
  return s < 5940 ? Number((s / 60).toPrecision(2)) + NB + 'min' : Number((s / 3600).toPrecision(2)) + NB + 'h';
}

/** A setting, as it was set: 60 s, not 1 min 00 s. */
export const setting = s => (s >= 60 && s < 600 && Number.isInteger(s) ? s + NB + 's' : dur(s));

export function ago(s) {
  if (s < 1) return 'now';
  if (s < 60) return Math.floor(s) + NB + 's ago';
  return (s < 3600 ? Math.floor(s / 60) + NB + 'min' : dur(s)) + ' ago';
}

export function clock(at, seconds = true) {
  const date = new Date(at * 1000);
  return two(date.getUTCHours()) + ':' + two(date.getUTCMinutes()) + (seconds ? ':' + two(date.getUTCSeconds()) : '');
}

const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];
export function day(at) {
  const date = new Date(at * 1000);
  return date.getUTCDate() + ' ' + MONTHS[date.getUTCMonth()] + ' ' + clock(at, false);
}

/** Control, invisible and direction-changing characters are shown, not obeyed. */
export const safe = value => String(value).replace(
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu,
  c => (c === '\n' ? '\\n' : c === '\t' ? '\\t' : '\\u{' + c.codePointAt(0).toString(16) + '}'));

export const plural = (n, one, more) => int(n) + ' ' + (n === 1 ? one : more || one + 's');
export const label = outcome => ({ failed: 'error', panicked: 'panic', timed_out: 'timeout' })[outcome] || outcome;
const short = name => { const shown = safe(name); return shown.length > 40 ? shown.slice(0, 39) + '…' : shown; };

/* ---------- figures from the server ---------- */
export const newModel = () => ({ ready: false, process: null, schedulers: new Map(), nowAt: 0, local: 0 });

function sched(model, name) {
  let found = model.schedulers.get(name);
  if (!found) {
    found = { name, steps: [], until: 0, marks: [], names: [], window: 0, failures: new Map(), kept: 0, jobs: { total: 0, jobs: [] } };
    model.schedulers.set(name, found);
  }
  return found;
}

const COUNTS = ['started', 'ended', 'failed', 'refused'], GAUGES = ['running', 'pending', 'deferred', 'waiting_callers', 'oldest_pending_s'];

/** Columns of the series as a list of steps. A step before the start has `none`. */
export function stepsOf(columns) {
  return columns.started.map((started, i) => {
    const step = { at: columns.from_at + i * columns.step_s, none: started === null };
    for (const key of [...COUNTS, ...GAUGES]) step[key] = columns[key][i] ?? 0;
    return step;
  });
}

/** Adds one second to the steps; seconds that are known already change nothing. */
export function addPoint(found, point) {
  if (point.from_at < found.until) return;
  found.until = point.from_at + 1;
  const at = Math.floor(point.from_at / STEP) * STEP;
  let step = found.steps.find(step => step.at === at);
  if (!step) {
    for (let next = found.steps.length ? found.steps.at(-1).at + STEP : at; next <= at; next += STEP) {
      step = { at: next, none: next < at };
      for (const key of [...COUNTS, ...GAUGES]) step[key] = 0;
      found.steps.push(step);
    }
    found.steps.splice(0, Math.max(0, found.steps.length - SPAN / STEP));
  }
  step.none = false;
  for (const key of COUNTS) step[key] += point[key];
  for (const key of GAUGES) step[key] = Math.max(step[key], point[key]);
}

function takeFailures(found, failures, isWhole) {
  if (isWhole) found.failures.clear();
  for (const group of failures.groups) found.failures.set(group.id, group);
  found.kept = failures.kept;
  // Groups that the server has pushed out.
  const oldest = [...found.failures.values()].sort((a, b) => a.last_at - b.last_at);
  for (const group of oldest.slice(0, Math.max(0, oldest.length - failures.kept))) found.failures.delete(group.id);
}

/** Takes the data of one event. `local` is the browser's clock in seconds at its receipt. */
export function apply(model, event, data, local) {
  if (event === 'hello') model.schedulers.clear();
  if (data.overview) {
    model.process = data.overview.process;
    model.nowAt = data.overview.now_at;
    model.local = local;
    for (const overview of data.overview.schedulers) {
      const found = sched(model, overview.name), was = found.overview;
      found.overview = overview;
      if (overview.drain && !(was && was.drain)) found.before = overview.totals;
    }
    model.ready = true;
  }
  for (const part of data.schedulers) {
    const found = sched(model, part.name);
    if (part.series) {
      found.steps = stepsOf(part.series);
      found.until = part.series.until_at;
      found.marks = part.series.marks;
    }
    for (const point of part.points || []) addPoint(found, point);
    if (part.names) { found.names = part.names.names; found.window = part.names.window_s; }
    if (part.failures) takeFailures(found, part.failures, event === 'hello');
    if (part.jobs) found.jobs = part.jobs;
    if (event === 'drain' && part.drain && found.overview) {
      found.overview.drain = part.drain;
      if (!found.marks.some(mark => mark.kind === 'drain')) found.marks.push({ at: part.drain.since_at, kind: 'drain' });
    }
    if (part.report && found.overview) found.overview.report = part.report;
  }
}

export const isClosed = model => model.ready && [...model.schedulers.values()].every(found => found.overview.state === 'closed');
export const isDraining = model => model.ready && [...model.schedulers.values()].some(found => found.overview.drain !== null);

/* ---------- one scheduler, as it is shown ---------- */

/** A job, `later` seconds after the server has listed it. */
export function aged(job, later) {
  return {
    ...job,
    ran: job.state_s + later,
    left: job.left_s === null ? null : Math.max(0, job.left_s - (job.state === 'active' ? later : 0)),
    place: job.request || job.location,
  };
}

/** The figures of a scheduler, `later` seconds after the last event. The countdown goes on for `silent` seconds more. */
export function view(model, name, later, silent = 0) {
  const found = model.schedulers.get(name), { overview } = found, now = model.nowAt + later;
  const jobs = found.jobs.jobs.map(job => aged(job, later));
  const running = [...jobs.filter(job => job.stuck), ...jobs.filter(job => !job.stuck)];
  const failures = [...found.failures.values()].sort((a, b) => b.last_at - a.last_at || b.id - a.id);
  const worst = found.names.reduce((best, row) => (row.failed > (best ? best.failed : 0) ? row : best), null);
  const { drain } = overview, state = overview.state === 'announced' ? 'draining' : overview.state;
  const left = drain && drain.deadline_at !== null ? Math.max(0, drain.deadline_at - now - silent) : null;
  const oldest = overview.oldest_pending && { ...overview.oldest_pending, wait: overview.oldest_pending.wait_s + later };
  const longest = overview.longest_running && { ...overview.longest_running, ran: overview.longest_running.running_s + later };
  return { name, found, overview, now, state, running, failures, worst, drain, left, oldest, longest, since: drain && now + silent - drain.since_at };
}

/** Jobs that the drain is likely to lose. The queue moves at the speed of the last 10 s. */
export function forecast(v) {
  const judged = v.running.map(job => ({ ...job, verdict: job.forecast ? job.forecast.at_deadline : 'ends', need: job.forecast ? job.forecast.need_s : null }))
    .sort((a, b) => (a.verdict === 'ends') - (b.verdict === 'ends') || b.ran - a.ran);
  const lost = v.left === null ? 0 : judged.filter(job => job.verdict !== 'ends').length;
  const recent = v.found.steps.slice(-2), speed = recent.reduce((sum, step) => sum + step.started, 0) / (recent.length * STEP || 1);
  const waiting = v.overview.gauges.pending + v.overview.gauges.deferred;
  // The counts are as old as the last event, and so is the time that was left for them.
  const left = v.left === null ? null : v.drain.deadline_at - v.now;
  return { judged, lost, waiting, speed, unstarted: left === null ? 0 : Math.max(0, Math.round(waiting - speed * left)) };
}

/** Sentences about all that needs attention: `{ kind, id, strong, rest, href }`. */
export function verdict(v) {
  const items = [], { overview } = v, { gauges, settings, report } = overview;
  const add = (kind, id, strong, rest, href) => items.push({ kind, id, strong, rest, href });
  if (v.state === 'closed') {
    const lost = report ? report.cancelled + report.never_started + report.abandoned : 0;
    if (lost) add('bad', 'lost', plural(lost, 'job') + ' lost', ' in the drain', '#drain');
    add('warn', 'closed', 'Closed', ': new jobs are refused', '#drain');
  }
  if (overview.stuck && v.state === 'open') {
    const first = v.running.find(job => job.stuck);
    add('bad', 'stuck', plural(overview.stuck, 'job') + ' stuck', first ? `, ${short(first.name)} for ${dur(first.ran)}` : '', '#running');
  }
  if (v.state === 'draining') {
    const { lost, unstarted } = forecast(v);
    if (lost + unstarted) add('bad', 'lost', '\u2248' + NB + plural(lost + unstarted, 'job') + ' likely lost', ' at the deadline', '#drain');
    else add('warn', 'drains', 'Draining', v.left === null ? ': it has no deadline yet' : ': all jobs should end in time', '#drain');
  }
  if (settings.paused && v.state !== 'closed') add('warn', 'paused', 'Paused', ': no job starts', null);
  if (overview.failed_15m) {
    const { worst } = v, most = worst && worst.failed > 1 ? int(worst.failed) + ' of ' : '';
    add('bad', 'failed', plural(overview.failed_15m, 'failure') + ' in 15' + NB + 'min', worst ? `, ${most}${short(worst.name)}` : '', '#failures');
  }
  if (gauges.waiting_callers) add('bad', 'waiting', plural(gauges.waiting_callers, 'caller') + ' blocked', ': the queue is full', '#gauges');
  if (overview.refused_15m) add('bad', 'refused', plural(overview.refused_15m, 'spawn') + ' refused', ' in 15' + NB + 'min', '#throughput');
  if (v.oldest && v.oldest.wait > 5) add(v.oldest.wait > 60 ? 'bad' : 'warn', 'oldest', 'Jobs wait ' + dur(v.oldest.wait), ' for a permit', '#depth');
  if (!items.length) {
    if (overview.totals.accepted) add('ok', 'ok', 'Nothing needs attention', ': no failure in 15' + NB + 'min, nothing stuck, no long queue', null);
    else add('ok', 'ok', 'No job yet', ': this scheduler is open and waits for its first job', null);
  }
  return items;
}

const share = (part, whole) => (whole ? Math.min(1, part / whole) : 0);
const percent = x => (x > 0 && x < 0.01 ? '<1' : Math.floor(x * 100)) + NB + '%';
const most = limit => (limit === null ? 'no limit' : 'of ' + int(limit));

/** The six gauges: `{ id, name, value, of, part, cls, note, hint, job }`. `part` is `null` without a meter. */
export function gauges(v) {
  const { gauges: g, settings: at } = v.overview, level = x => (x >= 1 ? 'bad' : x >= 0.8 ? 'warn' : '');
  const run = share(g.running, at.limit), pend = share(g.pending, at.pending_limit), def = share(g.deferred, at.deferred_limit);
  const more = g.outside_limit ? ` (+${int(g.outside_limit)})` : '';
  return [
    { id: 'run', name: 'Running', value: int(g.running), of: most(at.limit), part: run, cls: run >= 0.8 ? 'warn' : '', note: (at.limit === null ? 'unlimited' : run >= 1 ? 'all in use' : percent(run) + ' in use') + more, hint: more ? `${int(g.outside_limit)} more outside the limit: shielded or atomic` : null },
    { id: 'pend', name: 'Pending', value: int(g.pending), of: most(at.pending_limit), part: pend, cls: level(pend), note: at.pending_limit === null ? 'unlimited' : at.pending_limit === 0 ? 'no queue' : pend >= 1 ? 'full: callers wait' : percent(pend) + ' full' },
    { id: 'def', name: 'Deferred', value: int(g.deferred), of: '', part: def, cls: level(def), note: def >= 1 ? 'full: more are refused' : 'until responses end', hint: at.deferred_limit === null ? null : percent(def) + ' of ' + int(at.deferred_limit) },
    { id: 'wait', name: 'Waiting callers', value: int(g.waiting_callers), of: '', part: g.waiting_callers ? 1 : 0, cls: g.waiting_callers ? 'bad' : '', note: g.waiting_callers ? 'requests held up now' : 'no request held up' },
    { id: 'old', name: 'Oldest pending', value: dur(v.oldest && v.oldest.wait), of: '', part: null, cls: !v.oldest ? '' : v.oldest.wait > 60 ? 'bad' : v.oldest.wait > 5 ? 'warn' : '', note: v.oldest ? v.oldest.name : 'queue is empty' },
    { id: 'long', name: 'Longest running', value: dur(v.longest && v.longest.ran), of: '', part: null, cls: v.longest && v.longest.stuck ? 'bad' : '', note: v.longest ? v.longest.name : 'nothing runs' },
  ];
}

/** Lines of the names' table, in the order of a column. */
export function sortNames(names, by, isDown) {
  const value = row => ({ name: row.name.toLowerCase(), q50: row.queue_s.p50, q95: row.queue_s.p95, r50: row.run_s.p50, r95: row.run_s.p95 })[by] ?? row[by] ?? -1;
  return [...names].sort((a, b) => {
    const x = value(a), y = value(b);
    return (x < y ? -1 : x > y ? 1 : 0) * (isDown ? -1 : 1) || b.ended - a.ended;
  });
}

/** The steps of a chart: the last 15 minutes, up to the step before the present one. */
export function window(steps, now) {
  const end = Math.floor(now / STEP) * STEP, by = new Map(steps.map(step => [step.at, step]));
  const missing = { none: true };
  for (const key of [...COUNTS, ...GAUGES]) missing[key] = 0;
  return Array.from({ length: SPAN / STEP }, (_, i) => {
    const at = end - SPAN + i * STEP;
    return by.get(at) || { ...missing, at };
  });
}

/** Values of a chart's axis: 0, a half, and a round number that is at least `max`. */
export function ticks(max) {
  if (max <= 0) return [0, 1];
  const raw = max / 2, magnitude = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(x => x * magnitude).find(x => x >= raw * 0.999999);
  return [0, step, 2 * step];
}

export const matches = (find, ...values) => !find || values.some(value => value && value.toLowerCase().includes(find));
