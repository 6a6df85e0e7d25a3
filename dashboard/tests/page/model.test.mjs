// The page's model, without a browser: `node --test dashboard/tests/page/`.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as m from '../../src/page/model.js';

const plain = text => text.replaceAll('\u202f', ' ');
const AT = 1_800_000_000;

const overview = changes => ({
  name: 'mail', state: 'open', stuck: 0, failed_15m: 0, refused_15m: 0, drain: null, report: null, oldest_pending: null, longest_running: null,
  settings: { limit: 20, pending_limit: 10000, deferred_limit: 100, limit_per_key: null, wait_timeout_s: 60, close_timeout_s: 0.1, paused: false },
  gauges: { running: 0, outside_limit: 0, pending: 0, deferred: 0, waiting_callers: 0 },
  totals: { accepted: 1, completed: 1 }, ...changes,
});
const job = changes => ({ id: '1-aaaaa', name: 'send', key: null, request: null, location: 'src/main.rs:1:1', kind: 'plain', state: 'active', accepted_s: 3, state_s: 2, queued_s: 1, timeout_s: null, left_s: null, progress: null, p95_s: null, stuck: false, forecast: null, ...changes });
const group = (id, last_at, changes) => ({ id, count: 1, outcome: 'failed', name: 'send', error: 'no', first_at: AT, last_at, last: { id: '1-aaaaa', key: null, request: null, location: '', queued_s: 0, ran_s: 0 }, ...changes });

function filled(changes, part) {
  const model = m.newModel();
  const data = { overview: { now_at: AT, process: { actions: false }, schedulers: [overview(changes)] }, schedulers: [{ name: 'mail', jobs: { total: 0, jobs: [] }, ...part }] };
  m.apply(model, 'hello', data, 100);
  return model;
}

test('durations are shown in two or three figures', () => {
  const shown = [[0, '0 s'], [0.0004, '<1 ms'], [0.0342, '34 ms'], [0.9996, '1.0 s'], [0.999, '990 ms'], [4.24, '4.2 s'], [59.9, '59 s'], [247, '4 min 07 s'], [2820, '47 min'], [8040, '2 h 14 min'], [273600, '3 d 04 h'], [null, '\u2013']];
  for (const [seconds, text] of shown) assert.equal(plain(m.dur(seconds)), text);
  assert.equal(plain(m.brief(754)), '13 min');
  assert.deepEqual([60, 0.1, 3600].map(s => plain(m.setting(s))), ['60 s', '100 ms', '1 h 00 min']);
  assert.equal(plain(m.ago(5.9)), '5 s ago');
  assert.equal(plain(m.int(1224960)), '1 224 960');
  assert.equal(m.clock(AT + 61), '08:01:01');
});

test('hostile characters are shown and not obeyed', () => {
  assert.equal(m.safe('a\u202egpj.exe\n\t\u0000\u{e0041}<b>'), 'a\\u{202e}gpj.exe\\n\\t\\u{0}\\u{e0041}<b>');
});

test('a second is added to its step once', () => {
  const found = { steps: [], until: AT };
  const point = (from_at, ended, pending) => ({ from_at, started: 0, ended, failed: 0, refused: 0, running: 0, pending, deferred: 0, waiting_callers: 0, oldest_pending_s: 0 });
  for (const second of [point(AT - 1, 9, 9), point(AT, 1, 4), point(AT + 1, 2, 3), point(AT + 1, 2, 3), point(AT + 7, 5, 1)]) m.addPoint(found, second);
  assert.deepEqual(found.steps.map(step => [step.at - AT, step.ended, step.pending]), [[0, 3, 4], [5, 5, 1]]);
  m.addPoint(found, point(AT + 20, 1, 0));
  assert.deepEqual(found.steps.map(step => [step.at - AT, step.none]), [[0, false], [5, false], [10, true], [15, true], [20, false]]);
  for (let at = AT + 25; at < AT + 4000; at += 5) m.addPoint(found, point(at, 1, 0));
  assert.equal(found.steps.length, 180);
});

test('the window of a chart has a place for each step', () => {
  const steps = m.window([{ at: AT - 5, ended: 3 }, { at: AT - 905, ended: 8 }, { at: AT, ended: 9 }], AT + 3);
  assert.equal(steps.length, 180);
  assert.deepEqual([steps.at(-1).ended, steps[0].none, steps.filter(step => step.none).length], [3, true, 179]);
});

test('columns become steps', () => {
  const columns = { from_at: AT, step_s: 5, started: [null, 2] };
  for (const key of ['ended', 'failed', 'refused', 'running', 'pending', 'deferred', 'waiting_callers', 'oldest_pending_s']) columns[key] = [null, 1];
  assert.deepEqual(m.stepsOf(columns).map(step => [step.at, step.none, step.started]), [[AT, true, 0], [AT + 5, false, 2]]);
});

test('stuck jobs come first and get older between events', () => {
  const jobs = [job({ id: 'a', state_s: 90 }), job({ id: 'b', state_s: 80, stuck: true, timeout_s: 100, left_s: 20 })];
  const v = m.view(filled({ stuck: 1 }, { jobs: { total: 2, jobs } }), 'mail', 3);
  assert.deepEqual(v.running.map(job => [job.id, job.ran, job.left]), [['b', 83, 17], ['a', 93, null]]);
  assert.equal(plain(m.verdict(v)[0].strong + m.verdict(v)[0].rest), '1 job stuck, send for 1 min 23 s');
});

test('changed groups replace theirs and pushed out ones go', () => {
  const model = filled({}, { failures: { kept: 2, groups: [group(2, AT + 2), group(1, AT + 1)] } });
  m.apply(model, 'failures', { schedulers: [{ name: 'mail', failures: { kept: 2, groups: [group(3, AT + 3), group(2, AT + 4, { count: 7 })] } }] }, 101);
  assert.deepEqual(m.view(model, 'mail', 0).failures.map(group => [group.id, group.count]), [[2, 7], [3, 1]]);
});

test('the countdown goes on without the server', () => {
  const drain = { since_at: AT - 10, deadline_at: AT + 50, left_s: 50 };
  const model = filled({ state: 'announced', drain });
  assert.ok(m.isDraining(model) && !m.isClosed(model));
  const v = m.view(model, 'mail', 0, 20);
  assert.deepEqual([v.state, v.left, v.now, v.since], ['draining', 30, AT, 30]);
  assert.equal(m.view(model, 'mail', 0, 80).left, 0);
  const endless = m.view(filled({ state: 'draining', drain: { ...drain, deadline_at: null, left_s: null } }), 'mail', 1);
  assert.deepEqual([endless.left, endless.since], [null, 11]);
});

test('jobs that the drain loses are counted with the queue', () => {
  const drain = { since_at: AT, deadline_at: AT + 10, left_s: 10 };
  const jobs = [job({ id: 'ends', forecast: { need_s: 2, at_deadline: 'ends' } }), job({ id: 'cut', forecast: { need_s: 60, at_deadline: 'cut' } })];
  const model = filled({ state: 'draining', drain, gauges: { running: 2, outside_limit: 0, pending: 35, deferred: 0, waiting_callers: 0 } }, { jobs: { total: 2, jobs } });
  model.schedulers.get('mail').steps = [{ at: AT - 10, started: 12 }, { at: AT - 5, started: 18 }];
  const f = m.forecast(m.view(model, 'mail', 0));
  assert.deepEqual([f.judged.map(job => job.id), f.lost, f.speed, f.unstarted], [['cut', 'ends'], 1, 3, 5]);
  assert.equal(m.forecast(m.view(model, 'mail', 0, 6)).unstarted, 5, 'without the server too');
});

test('a quiet scheduler needs no attention', () => {
  const kinds = changes => m.verdict(m.view(filled(changes), 'mail', 0)).map(item => item.id);
  assert.deepEqual(kinds({}), ['ok']);
  assert.deepEqual(kinds({ failed_15m: 2, refused_15m: 1 }), ['failed', 'refused']);
  assert.deepEqual(kinds({ settings: { ...overview().settings, paused: true } }), ['paused']);
  assert.deepEqual(kinds({ oldest_pending: { wait_s: 9, id: '', name: 'a' } }), ['oldest']);
  const report = { cancelled: 1, never_started: 2, abandoned: 0 };
  assert.deepEqual(kinds({ state: 'closed', report }), ['lost', 'closed']);
});

test('gauges of unlimited schedulers have no share', () => {
  const none = { ...overview().settings, limit: null, pending_limit: null, deferred_limit: null };
  const [run, pend] = m.gauges(m.view(filled({ settings: none, gauges: { running: 9, outside_limit: 1, pending: 3, deferred: 0, waiting_callers: 0 } }), 'mail', 0));
  assert.deepEqual([run.part, run.of, run.note, pend.note], [0, 'no limit', 'unlimited (+1)', 'unlimited']);
});

test('names are sorted by a column and then by their ends', () => {
  const row = (name, ended, failed, p95) => ({ name, ended, failed, queue_s: {}, run_s: { p95 } });
  const names = [row('b', 1, 0, 3), row('A', 2, 0, null), row('c', 1, 5, 1)];
  const order = (by, isDown) => m.sortNames(names, by, isDown).map(name => name.name).join('');
  assert.deepEqual([order('failed', true), order('name', false), order('r95', true)], ['cAb', 'Abc', 'bcA']);
});

test('an axis ends at a round number above the largest value', () => {
  assert.deepEqual([m.ticks(0), m.ticks(2), m.ticks(7), m.ticks(40), m.ticks(263)], [[0, 1], [0, 1, 2], [0, 5, 10], [0, 20, 40], [0, 200, 400]]);
});
