/** Where did representations move? CKA, rotation and effective rank along depth; each head's drift. */
import { useSignal } from '@preact/signals';
import { Choice, html, LayerSlider, useWidth } from '../dom.js';
import { num, range, signed, visible } from '../format.js';
import { geometry, Hatch, Heat, LayerAxis } from '../marks/heat.js';
import { Lines } from '../marks/lines.js';
import { Panel } from '../panel.js';

/** @typedef {import('../state.js').View} View */
/** @typedef {import('../types').Drift} Drift */

const QUESTION = 'Where did representations move?';
const SITES = { z: 'inside the head (z)', head_out: 'what the head writes' };
const NUMBERS = { cka: '1 − CKA', angle_largest: 'largest angle, °', shift: 'mean shift of its norm' };

/** @param {{view: View}} props */
export function DriftPanel({ view }) {
  const data = view.data.drift;
  if (!data) return html`<${Panel} id="drift" question=${QUESTION} help="" empty=${view.data.empty.drift} />`;
  const twin = data.twin ? ' Grey band: another training seed against this one, mere training noise.' : '';
  return html`<${Panel} id="drift" question=${QUESTION} figure table=${() => table(view, data)}
    help=${`The residual stream at each prompt’s last token, before against after; “in” is the embedding. 95 % intervals where there are any, n = ${data.n}.${twin}`}>
    <${Along} view=${view} data=${data} />
    <${LayerSlider} view=${view} after />
    <p class="readout" role="status">${said(view, data)}</p>
    <${HeadMap} view=${view} data=${data} />
    ${data.caveat && html`<p class="help">${visible(data.caveat)}.</p>`}
  <//>`;
}

/** @param {{view: View, data: Drift}} props */
function Along({ view, data }) {
  const [ref, all] = useWidth();
  const width = all > 900 ? Math.floor((all - 56) / 3) : all;
  const { twin } = data;
  const common = {
    x: data.depth, width, xlabel: 'layer', at: view.layer.value + 1, choose: (/** @type {number} */ i) => i > 0 && view.chooseLayer(i - 1),
    name: (/** @type {number} */ d) => (d === 0 ? 'in' : String(d - 1)), inlet: true,
  };
  return html`<div ref=${ref} class="three">${width > 0 && html`
    <div><h3>Geometry kept (CKA, unbiased)</h3><${Lines} ...${common} unit="1: the same geometry" label="CKA by layer" ends=${[1]}
      series=${[{ label: 'CKA', ...data.cka, tone: 'pos' }]} between=${twin && { label: 'seed twin', low: twin.cka.low, high: twin.cka.high }} /></div>
    <div><h3>Rotation (principal angles)</h3><${Lines} ...${common} unit="degrees" label="Principal angles by layer" ends=${[0]}
      series=${[{ label: 'largest', value: data.angle_largest, tone: 'pos' }, { label: 'median', value: data.angle_median, tone: 'pos', dash: '5 3' }, ...(twin ? [{ label: 'twin, largest', value: twin.angle_largest, tone: 'mute', dash: '2 3' }] : [])]} /></div>
    <div><h3>Effective rank</h3><${Lines} ...${common} unit="directions" label="Effective rank by layer, before and after"
      series=${[{ label: 'before', value: data.rank_pre, tone: 'neg', dash: '5 3' }, { label: 'after', value: data.rank_post, tone: 'pos' }, ...(twin ? [{ label: 'twin', value: twin.rank_post, tone: 'mute', dash: '2 3' }] : [])]} /></div>`}
  </div>`;
}

/** @param {View} view @param {Drift} data */
function said(view, data) {
  const i = view.layer.value + 1;
  const twin = data.twin ? `, seed twin ${num(data.twin.cka.value[i])} (${range(data.twin.cka.low[i], data.twin.cka.high[i])})` : '';
  return `After layer ${i - 1}: CKA ${num(data.cka.value[i])} (${range(data.cka.low[i], data.cka.high[i])})${twin}; ${data.k[i] ?? 0} principal angles, median ${num(data.angle_median[i])}°, largest ${num(data.angle_largest[i])}°; effective rank ${num(data.rank_pre[i])} → ${num(data.rank_post[i])}; shift ${num(data.shift.value[i])} of its norm (${range(data.shift.low[i], data.shift.high[i])})`;
}

/** @param {{view: View, data: Drift}} props */
function HeadMap({ view, data }) {
  const [ref, width] = useWidth();
  const site = useSignal('head_out');
  const number = useSignal(/** @type {keyof typeof NUMBERS} */ ('cka'));
  const over = useSignal(/** @type {number | null} */ (null));
  const { layers, heads } = view.data.model;
  const here = data.heads[site.value];
  const effect = number.value === 'cka' ? here.cka.value.map((v) => (v === null ? null : 1 - v)) : here[number.value];
  const at = geometry(width, layers, heads);
  const map = { stats: { effect }, most: Math.max(...effect.map((v) => Math.abs(v ?? 0))) };
  /** @param {number} i */
  const say = (i) => `${view.name(i)}, ${SITES[/** @type {keyof typeof SITES} */ (site.value)]}: CKA ${num(here.cka.value[i])} (${range(here.cka.low[i], here.cka.high[i])}); largest angle ${num(here.angle_largest[i])}°, median ${num(here.angle_median[i])}°; rank ${num(here.rank_pre[i])} → ${num(here.rank_post[i])}; shift ${num(here.shift[i])} of its norm`;
  return html`<h3>Each head</h3>
    <div class="controls">
      <${Choice} label="site" value=${site.value} options=${Object.entries(SITES).map(([value, label]) => ({ value, label }))} choose=${(/** @type {string} */ v) => (site.value = v)} />
      <${Choice} label="number" value=${number.value} options=${Object.entries(NUMBERS).map(([value, label]) => ({ value, label }))} choose=${(/** @type {any} */ v) => (number.value = v)} />
    </div>
    <div ref=${ref}>${width > 0 && html`<svg data-figure width=${width} height=${heads * at.ch + 30} viewBox=${`0 -4 ${width} ${heads * at.ch + 30}`}><${Hatch} />
      <${Heat} map=${map} layers=${layers} heads=${heads} at=${at} theme=${view.theme.value} onlySignificant=${false} selected=${view.head.value} pinned=${view.pinned.value}
        outlined=${[]} say=${say} select=${(/** @type {number} */ i) => (view.head.value = i)} pin=${view.togglePin} preview=${(/** @type {number | null} */ i) => (over.value = i)} />
      <${LayerAxis} layers=${layers} at=${at} y=${heads * at.ch + 16} /></svg>`}</div>
    <p class="readout">${say(over.value ?? view.head.value)}. Palest: 0; strongest colour: ${signed(map.most)}.</p>`;
}

/** The stream, the twin's, then every head. @param {View} view @param {Drift} data */
function table(view, data) {
  /** @param {string} what @param {import('../types').Depths} d */
  const along = (what, d) => d.depth.map((depth, i) => [what, depth === 0 ? null : depth - 1, null, d.cka.value[i], d.cka.low[i], d.cka.high[i], d.angle_median[i], d.angle_largest[i], d.k[i], d.rank_pre[i], d.rank_post[i], d.shift.value[i], d.shift.low[i], d.shift.high[i], d.procrustes[i]]);
  const { heads } = view.data.model;
  return {
    columns: ['what', 'layer', 'head', 'cka', 'cka_low', 'cka_high', 'angle_median', 'angle_largest', 'angles', 'rank_pre', 'rank_post', 'shift', 'shift_low', 'shift_high', 'procrustes'],
    rows: [
      ...along('stream', data),
      ...(data.twin ? along('stream of the seed twin', data.twin) : []),
      ...Object.entries(data.heads).flatMap(([site, h]) => h.shift.map((shift, i) => [site, Math.floor(i / heads), i % heads, h.cka.value[i], h.cka.low[i], h.cka.high[i], h.angle_median[i], h.angle_largest[i], null, h.rank_pre[i], h.rank_post[i], shift, null, null, null])),
    ],
  };
}
