// DOM helpers. Texts become text nodes only, never markup.
import { safe } from './model.js';

export const $ = id => document.getElementById(id);
const SVG = 'http://www.w3.org/2000/svg';

/** Sets attributes, and touches only those that change. `null` and `false` remove one. */
export function set(node, attrs) {
  for (const [key, value] of Object.entries(attrs)) {
    const aria = key.startsWith('aria-');
    if (value === null || value === undefined || (value === false && !aria)) node.removeAttribute(key);
    else {
      const wanted = value === true && !aria ? '' : String(value);
      if (node.getAttribute(key) !== wanted) node.setAttribute(key, wanted);
    }
  }
  return node;
}

export function h(tag, attrs, ...kids) {
  const node = set(document.createElement(tag), attrs || {});
  node.append(...kids.flat(9).filter(kid => kid !== null && kid !== undefined));
  return node;
}

export function s(tag, attrs, ...kids) {
  const node = set(document.createElementNS(SVG, tag), attrs || {});
  node.append(...kids);
  return node;
}

export function text(node, value) {
  value = String(value);
  if (node.textContent !== value) node.textContent = value;
}

/** Shows a text of the application, whole in its title. */
export function cut(node, value) {
  value = safe(value);
  text(node, value);
  set(node, { title: value });
}

/**
 * Updates the rows of a list in place, so that open details, focus and selection survive. `isNew` tells the rows that
 * flash.
 */
export function keyed(parent, items, key, make, update, isNew) {
  const old = (parent.byKey ||= new Map()), keys = items.map(key), seen = new Set(keys);
  for (const [k, node] of old) {
    if (!seen.has(k)) {
      node.remove();
      old.delete(k);
    }
  }
  let at = parent.firstElementChild;
  items.forEach((item, i) => {
    let node = old.get(keys[i]);
    if (!node) {
      node = make(item);
      old.set(keys[i], node);
      if (isNew && parent.filled && isNew(item)) {
        node.classList.add('new');
        node.addEventListener('animationend', () => node.classList.remove('new'), { once: true });
      }
    }
    update(node, item);
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
  });
  parent.filled = true;
}

/** The key of a row that is made anew when it gets another place: no row moves under the eye. */
export const placed = id => (item, i) => i + ' ' + item[id];

/** Makes the content of a box anew only when its kind changes. */
export function once(box, kind, make) {
  if (box.kind !== kind) {
    box.kind = kind;
    box.replaceChildren(...[make()].flat());
  }
  return box.firstElementChild;
}

export const cell = (cls, ...kids) => h('td', { class: cls || null, role: 'cell' }, kids);
export const head = (label, cls) => h('th', { scope: 'col', role: 'columnheader', class: cls }, label);

// The roles are written out, since rows become blocks on a phone.
export function table(cls, caption, cols, heads) {
  return h('table', { class: cls + ' stacked', role: 'table' },
    h('caption', { class: 'vh' }, caption),
    h('colgroup', null, cols.map(col => h('col', { class: col || null }))),
    h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, heads)),
    h('tbody', { role: 'rowgroup' }));
}

const ICONS = {
  ok: () => s('path', { d: 'M2.5 8.5l3.5 3.5 7.5-8', fill: 'none', stroke: 'currentColor', 'stroke-width': 2 }),
  bad: () => s('path', { d: 'M8 1l7.5 14H.5zM7.2 6v4.4h1.6V6zM7.2 11.6v1.7h1.6v-1.7z', fill: 'currentColor', 'fill-rule': 'evenodd' }),
  warn: () => s('circle', { cx: 8, cy: 8, r: 5, fill: 'currentColor' }),
};
export const icon = kind =>
  s('svg', { width: 15, height: 15, viewBox: '0 0 16 16', class: 'i-' + kind, 'aria-hidden': 'true' }, ICONS[kind]());

export const emptyBox = (strong, rest) => h('p', { class: 'empty' }, h('b', null, strong), rest);
