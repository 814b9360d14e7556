/** How sure, and how few heads are enough? Ranked intervals, and top k against random k. */
import { useSignal } from '@preact/signals';
import { html, useWidth } from '../dom.js';
import { num, percent, range, signed, words } from '../format.js';
import { mapName, unitOf } from '../maps.js';
import { CurveMark } from '../marks/curve.js';
import { Intervals } from '../marks/intervals.js';
import { Panel } from '../panel.js';
import { say } from './heads.js';

/** @typedef {import('../state.js').View} View */

const SHOWN = 15;

/** @param {{view: View}} props */
export function Sure({ view }) {
  const map = view.map.value;
  const question = 'How sure, and how few heads are enough?';
  if (!map) return html`<${Panel} id="sure" question=${question} help="" empty=${view.data.empty.sure ?? 'No heads were patched in this run, so there is nothing to rank: `--measures patching` fills this.'} />`;
  return html`
    <${Panel} id="sure" question=${question} figure table=${() => table(view)}
      help=${`${mapName(map)}, ${map.direction}, ${words(map.metric)}; 95 % intervals, n = ${view.data.meta.n_clusters} clusters. Grey band: noise floor${map.floor == null ? ' not known for this map' : ` ±${num(map.floor)}`}.`}>
      <div class="two"><${Ranked} view=${view} map=${map} /><${Few} view=${view} /></div>
    <//>`;
}

/** @param {{view: View, map: import('../maps.js').HeadMap}} props */
function Ranked({ view, map }) {
  const [ref, width] = useWidth();
  const over = useSignal(/** @type {number | null} */ (null));
  const order = view.significant.value ? map.order.filter((i) => map.stats.significant?.[i]) : map.order;
  const selected = view.head.value;
  const top = order.slice(0, SHOWN);
  if (!top.includes(selected) && map.rank.has(selected)) top.push(selected);
  const rows = top.map((i) => ({
    key: i, label: view.name(i), value: /** @type {number} */ (map.stats.effect[i]), low: map.stats.low?.[i], high: map.stats.high?.[i],
    significant: map.stats.significant?.[i], selected: i === selected,
  }));
  const about = over.value ?? selected;
  return html`<div ref=${ref}>
    <h3>The ${Math.min(SHOWN, order.length)} largest of ${order.length}</h3>
    ${width > 0 && html`<${Intervals} rows=${rows} width=${width} left=${62} floor=${map.floor} unit=${map.unit} label="Heads by size of their effect"
      choose=${(/** @type {any} */ row) => (view.head.value = row.key)} preview=${(/** @type {any} */ row) => (over.value = row?.key ?? null)} />`}
    <p class="readout">${say(view, map, about)}</p>
  </div>`;
}

/** @param {{view: View}} props */
function Few({ view }) {
  const [ref, width] = useWidth();
  const curve = view.curve.value;
  if (!curve) return html`<div><h3>The top heads together</h3><p class="empty">No sets of heads were patched together in this run.</p></div>`;
  const at = curve.k.indexOf(view.k.value);
  const unit = unitOf(view.data, curve.metric);
  const name = mapName({ kind: curve.site.startsWith('graft:') ? 'written' : 'expressed', name: curve.site.replace('graft:', '') });
  return html`<div ref=${ref}>
    <h3>The top k heads together: ${name}, ${curve.direction}, ${words(curve.metric)}</h3>
    ${width > 0 && html`<${CurveMark} curve=${curve} k=${view.k.value} width=${width} unit=${unit} share=${view.data.verdict.forgetting} />`}
    <label class="slider">top k <input type="range" min="0" max=${curve.k.length} step="1" value=${at + 1} aria-valuetext=${at < 0 ? 'none' : `${curve.k[at]} heads`}
      onInput=${(/** @type {any} */ e) => (view.k.value = curve.k[+e.target.value - 1] ?? 0)} /><output>${at < 0 ? 'none' : curve.k[at]}</output></label>
    <p class="readout">${at < 0 ? 'Choose k: those heads get a frame in the map. Ranked on one half of the clusters, scored on the other.' : together(view, curve, at, unit)}</p>
  </div>`;
}

/** @param {View} view @param {import('../types').Curve} curve @param {number} at @param {string} unit */
function together(view, curve, at, unit) {
  const { top, random, k, forgetting } = curve;
  const share = view.data.verdict.forgetting && forgetting ? `, ${percent((top.effect[at] ?? 0) / forgetting)} of ${num(forgetting)}` : '';
  return `Top ${k[at]}: ${signed(top.effect[at])} ${unit} (${range(top.low[at], top.high[at])})${share}; random ${k[at]}: ${signed(random.mean[at])} (${range(random.low[at], random.high[at])}); n\u00a0=\u00a0${view.data.meta.n_clusters}`;
}

/** @param {View} view */
function table(view) {
  const map = /** @type {import('../maps.js').HeadMap} */ (view.map.value);
  const { stats, metric, direction } = map;
  const heads = map.order.map((i) => ['head', mapName(map), metric, direction, view.name(i), map.rank.get(i), stats.effect[i], stats.low?.[i], stats.high?.[i], stats.q?.[i], stats.significant?.[i]]);
  const c = view.curve.value;
  const sets = !c ? [] : c.k.flatMap((k, i) => [
    ['top', c.site, c.metric, c.direction, c.heads[i].map(([l, h]) => `L${l}H${h}`).join(' '), k, c.top.effect[i], c.top.low[i], c.top.high[i], null, null],
    ['random', c.site, c.metric, c.direction, null, k, c.random.mean[i], c.random.low[i], c.random.high[i], null, null],
  ]);
  return { columns: ['what', 'site', 'metric', 'direction', 'heads', 'rank_or_k', 'effect', 'effect_low', 'effect_high', 'q', 'significant'], rows: [...sets, ...heads] };
}
