// A chart of the last 15 minutes, with a cursor for pointer and keyboard, and the same figures as a table.
import { h, s, set, text } from './dom.js';
import { SPAN, STEP, clock, int, rate, ticks, window as windowOf } from './model.js';

const GUTTER = 40, COUNT = SPAN / STEP, NB = '\u202f';
const KEYS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 12, PageDown: -12 };
const axis = v => (v >= 10000 ? int(v / 1000) + 'k' : v >= 1000 ? v / 1000 + 'k' : String(Number(v.toFixed(2))));

export class Chart {
  /** `panels` are drawn one below the other: `{ title, height, least, stacked, series: [{ id, label, kind, how, show, skip }] }`. */
  constructor(root, label, panels, readable) {
    Object.assign(this, { panels, readable, cursor: null, values: new Map(), series: panels.flatMap(panel => panel.series) });
    this.when = root.parentNode.querySelector('header .end');
    this.legend = h('ul', { class: 'legend', 'aria-hidden': 'true' });
    for (const one of this.series) {
      const value = h('b');
      this.values.set(one.id, value);
      const swatch = one.kind === 'bar' ? s('rect', { x: 5, y: 0, width: 8, height: 10, class: 'b-' + one.id }) : s('path', { d: 'M0 5H18', class: 's-' + one.id });
      this.legend.append(h('li', null, h('span', null, s('svg', { width: 18, height: 10, 'aria-hidden': 'true' }, swatch), one.label), value));
    }
    this.plot = h('div', { class: 'plot', tabindex: 0, role: 'slider', 'aria-label': label, 'aria-valuemin': 1 - COUNT, 'aria-valuemax': 0, 'aria-valuenow': 0, 'aria-orientation': 'horizontal' });
    this.svg = s('svg', { 'aria-hidden': 'true', focusable: 'false' });
    this.plot.append(this.svg);
    this.data = h('details', { class: 'asdata' }, h('summary', null, 'As a table, per minute'),
      h('table', null, h('thead', null, h('tr', null, h('th', { scope: 'col' }, 'Minute'), this.series.map(one => h('th', { scope: 'col' }, one.label)))), h('tbody')));
    root.replaceChildren(this.legend, this.plot, this.data);
    this.listen();
    this.update([], 0, []);
  }

  listen() {
    const { plot } = this;
    const move = event => {
      const box = this.svg.getBoundingClientRect(), x = (event.clientX - box.left - GUTTER) / (box.width - GUTTER - 4);
      this.cursor = Math.max(0, Math.min(COUNT - 1, Math.round(x * (COUNT - 1)))) - (COUNT - 1);
      this.draw();
    };
    const leave = () => { this.cursor = null; this.draw(); };
    plot.addEventListener('pointermove', move);
    plot.addEventListener('pointerdown', move);
    plot.addEventListener('pointerleave', () => document.activeElement !== plot && leave());
    plot.addEventListener('blur', leave);
    plot.addEventListener('keydown', event => {
      const step = KEYS[event.key];
      if (step) this.cursor = Math.max(1 - COUNT, Math.min(0, (this.cursor ?? 0) + step));
      else if (event.key === 'Home') this.cursor = 1 - COUNT;
      else if (event.key === 'End') this.cursor = 0;
      else if (event.key === 'Escape') this.cursor = null;
      else return;
      event.preventDefault();
      this.draw();
    });
    this.data.addEventListener('toggle', () => this.fillTable());
    new ResizeObserver(() => this.draw()).observe(plot);
  }

  update(steps, now, marks) {
    Object.assign(this, { steps, now, marks, points: windowOf(steps, now) });
    // Rates are for each second.
    for (const one of this.series) if (one.how === 'rate') this.points = this.points.map(point => ({ ...point, [one.id]: point[one.id] / STEP }));
    this.draw();
    if (this.data.open) this.fillTable();
  }

  fillTable() {
    const last = Math.floor(this.now / 60), rows = [];
    for (let minute = last - 1; minute >= last - 15; minute--) {
      const steps = this.steps.filter(step => !step.none && Math.floor(step.at / 60) === minute);
      const value = one => (one.how === 'max' ? (one.show || int)(Math.max(0, ...steps.map(step => step[one.id]))) : int(steps.reduce((sum, step) => sum + step[one.id], 0)));
      rows.push(h('tr', null, h('th', { scope: 'row' }, clock(minute * 60, false)), this.series.map(one => h('td', null, steps.length ? value(one) : '\u2013'))));
    }
    this.data.querySelector('tbody').replaceChildren(...rows);
  }

  draw() {
    const width = Math.max(200, this.plot.clientWidth), right = width - 4, out = [];
    const x = i => GUTTER + (right - GUTTER) * i / (COUNT - 1);
    let y = 4;
    this.panels.forEach((panel, i) => {
      y += i ? 24 : 16;
      out.push(s('text', { x: 0, y: y - 5 }, panel.title));
      this.drawPanel(panel, x, right, y + 7, out);
      y += 13 + panel.height;
    });
    this.drawTime(x, right, width, y, out);
    const at = this.points[COUNT - 1 + (this.cursor ?? 0)];
    if (this.cursor !== null) {
      const cx = x(COUNT - 1 + this.cursor);
      out.push(s('line', { x1: cx, x2: cx, y1: 4, y2: y - 6, class: 'cursor' }));
      for (const panel of at.none ? [] : this.panels) for (const one of panel.series) if (one.kind !== 'bar') out.push(s('circle', { cx, cy: panel.y(at[one.id]), r: 3.5, class: 'pd' }));
    }
    set(this.svg, { height: y + 16, viewBox: `0 0 ${width} ${y + 16}` });
    this.svg.replaceChildren(...(this.series.some(one => one.kind === 'bar') ? [hatch()] : []), ...out);
    for (const one of this.series) text(this.values.get(one.id), at.none ? '\u2013' : one.show ? one.show(at[one.id]) : one.how === 'rate' ? rate(at[one.id]) : int(at[one.id]));
    text(this.when, this.cursor === null ? 'latest 5' + NB + 's' : clock(at.at) + ' to ' + clock(at.at + STEP).slice(3));
    set(this.plot, { 'aria-valuenow': this.cursor ?? 0, 'aria-valuetext': at.none ? 'no figures' : (this.cursor === null ? 'latest, ' : '') + clock(at.at) + ': ' + this.readable(at) });
  }

  drawPanel(panel, x, right, top, out) {
    const bottom = top + panel.height, ids = panel.series.map(one => one.id);
    const sum = (point, ids) => ids.reduce((sum, id) => sum + point[id], 0);
    const tall = point => (panel.stacked ? sum(point, ids) : Math.max(...ids.map(id => point[id])));
    const values = ticks(Math.max(panel.least, ...this.points.map(tall)));
    const y = (panel.y = v => bottom - panel.height * v / values.at(-1));
    for (const v of values) {
      const line = Math.round(y(v)) + 0.5;
      out.push(s('line', { x1: GUTTER, x2: right, y1: line, y2: line, class: v ? 'grid' : 'base' }), s('text', { x: GUTTER - 7, y: y(v) + 4, 'text-anchor': 'end' }, axis(v)));
    }
    const known = this.points.map((point, i) => [point, i]).filter(([point]) => !point.none);
    if (known.length < 2) return;
    panel.series.forEach((one, nth) => {
      if (one.kind === 'bar') {
        const wide = Math.max(1.2, (right - GUTTER) / COUNT - 0.6), under = ids.slice(0, nth);
        const bar = ([point, i]) => {
          const base = panel.stacked ? sum(point, under) : 0;
          const [from, to] = [y(base).toFixed(1), y(base + point[one.id]).toFixed(1)];
          return `M${(x(i) - wide / 2).toFixed(1)} ${from}V${to}h${wide.toFixed(1)}V${from}z`;
        };
        const d = known.filter(([point]) => point[one.id]).map(bar).join('');
        if (d) out.push(s('path', { d, class: 'b-' + one.id }));
        return;
      }
      const line = known.map(([point, i], nth) => (nth ? 'L' : 'M') + x(i).toFixed(1) + ' ' + y(point[one.id]).toFixed(1)).join('');
      if (one.kind === 'area') out.push(s('path', { d: line + `L${x(known.at(-1)[1]).toFixed(1)} ${bottom}L${x(known[0][1]).toFixed(1)} ${bottom}z`, class: 'a-' + one.id }));
      if (!one.skip || known.some(([point]) => point[one.id])) out.push(s('path', { d: line, class: 's-' + one.id }));
    });
  }

  drawTime(x, right, width, end, out) {
    const first = this.points[0].at, last = this.points.at(-1).at;
    for (let minute = Math.ceil(first / 300) * 300; minute <= last && this.now; minute += 300) {
      const at = x((minute - first) / STEP);
      if (at > GUTTER + 4 && at < right - 22) out.push(s('line', { x1: at, x2: at, y1: end - 6, y2: end - 1, class: 'base' }), s('text', { x: at, y: end + 11, 'text-anchor': 'middle' }, clock(minute, false)));
    }
    for (const mark of this.marks) {
      const i = (mark.at - first) / STEP, at = Math.min(x(i), right), isRight = at > width / 2;
      if (i < 0 || i > COUNT + 2) continue;
      out.push(s('line', { x1: at, x2: at, y1: 8, y2: end - 6, class: 'mark' }), s('text', { x: at + (isRight ? -6 : 6), y: 18, 'text-anchor': isRight ? 'end' : 'start', class: 'marktext' }, mark.kind));
    }
  }
}

function hatch() {
  return s('defs', null, s('pattern', { id: 'hatch', width: 4, height: 4, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
    s('rect', { width: 4, height: 4, class: 'hatch-bg' }), s('path', { d: 'M0 0V4', class: 'hatch-line' })));
}
