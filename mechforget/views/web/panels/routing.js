/** Did routing change? Experts kept by layer, each expert's load before and after, gates' angles. */
import { useSignal } from '@preact/signals';
import { Choice, html, useWidth } from '../dom.js';
import { num, percent, range, signed } from '../format.js';
import { Grid } from '../marks/grid.js';
import { Hatch } from '../marks/heat.js';
import { Lines } from '../marks/lines.js';
import { Panel } from '../panel.js';

/** @typedef {import('../state.js').View} View */
/** @typedef {import('../types').Routing} Routing */

const QUESTION = 'Did routing change?';
/** @type {Record<string, string>} */
const MAPS = { load_change: 'load, change', load_pre: 'before', load_post: 'after', angle: 'gate’s angle, °' };

/** @param {{view: View}} props */
export function RoutingPanel({ view }) {
  const data = view.data.routing;
  if (!data) return html`<${Panel} id="routing" question=${QUESTION} help="" empty=${view.data.empty.routing} />`;
  const given = data.restored?.restore;
  const all = given ? ` All of it given back restores ${num(given.every.value[0])} nats (${range(given.every.low[0], given.every.high[0])}).` : '';
  return html`<${Panel} id="routing" question=${QUESTION} figure table=${() => table(data)}
    help=${`Experts that a prompt’s tokens are sent to, before against after; ${data.rule} gates, ${data.experts} experts in ${data.layers.length} layers. 95 % intervals, n = ${view.data.meta.n_clusters}.${all}`}>
    <div class="two"><${ByLayer} view=${view} data=${data} /><${Loads} view=${view} data=${data} /></div>
  <//>`;
}

/** @param {{view: View, data: Routing}} props */
function ByLayer({ view, data }) {
  const [ref, width] = useWidth();
  const at = data.layers.indexOf(view.layer.value);
  const common = { x: data.layers, width, xlabel: 'layer', at, height: 170, choose: (/** @type {number} */ i) => view.chooseLayer(data.layers[i]) };
  const given = data.restored?.restore;
  return html`<div ref=${ref}>${width > 0 && html`
    <h3>Experts kept, and how far the gates’ distributions moved</h3>
    <${Lines} ...${common} unit="share; bits" label="Overlap of the chosen experts and divergence of the gates, by layer" ends=${[0, 1]} series=${[{ label: 'kept', ...data.overlap, tone: 'neg' }, { label: 'JS, bits', ...data.js, tone: 'pos', dash: '6 3' }]} />
    ${given && html`<h3>Restored by one layer’s routing</h3><${Lines} ...${common} unit="nats" label="Log-probability restored by one layer’s routing" ends=${[0]} series=${[{ label: 'restored', ...given.layer, tone: 'pos' }]} />`}`}
    <p class="readout" role="status">${at < 0 ? `Layer ${view.layer.value} is no mixture.` : `Layer ${data.layers[at]}: ${percent(data.overlap.value[at])} of the chosen experts kept (${range(data.overlap.low[at], data.overlap.high[at], percent)}); JS ${num(data.js.value[at])} bits (${range(data.js.low[at], data.js.high[at])}); entropy of the loads ${num(data.load_entropy_pre[at])} → ${num(data.load_entropy_post[at])} bits${given ? `; its routing restores ${signed(given.layer.value[at])} nats (${range(given.layer.low[at], given.layer.high[at])})` : ''}`}</p></div>`;
}

/** @param {{view: View, data: Routing}} props */
function Loads({ view, data }) {
  const [ref, width] = useWidth();
  const shown = useSignal('load_change');
  const expert = useSignal(0);
  const over = useSignal(/** @type {number | null} */ (null));
  const [n, e] = [data.layers.length, data.experts];
  const of = data[/** @type {'angle'} */ (shown.value)];
  const values = Array.from({ length: n * e }, (_, i) => of[(i % n) * e + Math.floor(i / n)]);
  const most = shown.value === 'load_pre' || shown.value === 'load_post' ? Math.max(...[...data.load_pre, ...data.load_post].map((v) => v ?? 0)) : Math.max(...values.map((v) => Math.abs(v ?? 0)));
  const selected = expert.value * n + Math.max(0, data.layers.indexOf(view.layer.value));
  /** @param {number} i */
  const say = (i) => {
    const at = (i % n) * e + Math.floor(i / n);
    return `Expert ${Math.floor(i / n)} of layer ${data.layers[i % n]}: ${percent(data.load_pre[at])} → ${percent(data.load_post[at])} of all choices; its gate turned by ${num(data.angle[at])}°`;
  };
  return html`<div ref=${ref}><h3>Each expert</h3>
    <div class="controls"><${Choice} label="load" value=${shown.value} options=${Object.entries(MAPS).map(([value, label]) => ({ value, label }))} choose=${(/** @type {string} */ v) => (shown.value = v)} /></div>
    ${width > 0 && html`<svg width="0" height="0" aria-hidden="true"><${Hatch} /></svg><${Grid} rows=${[...Array(e).keys()].map(String)} columns=${data.layers} values=${values} most=${most} width=${width} left=${46} theme=${view.theme.value} selected=${selected}
      label=${`${MAPS[shown.value]} by expert and layer`} xlabel="layer" ends=${['less', 'more']} say=${say} preview=${(/** @type {number | null} */ i) => (over.value = i)}
      select=${(/** @type {number} */ i) => ((expert.value = Math.floor(i / n)), view.chooseLayer(data.layers[i % n]))} />`}
    <p class="readout">${say(over.value ?? selected)}</p></div>`;
}

/** @param {Routing} data */
function table(data) {
  const e = data.experts;
  const given = data.restored?.restore;
  return {
    columns: ['layer', 'expert', 'overlap', 'overlap_low', 'overlap_high', 'js', 'js_low', 'js_high', 'load_js', 'load_entropy_pre', 'load_entropy_post', 'load_pre', 'load_post', 'angle', 'restored', 'restored_low', 'restored_high'],
    rows: data.layers.flatMap((layer, l) => [
      [layer, null, data.overlap.value[l], data.overlap.low[l], data.overlap.high[l], data.js.value[l], data.js.low[l], data.js.high[l], data.load_js[l], data.load_entropy_pre[l], data.load_entropy_post[l], null, null, null, given?.layer.value[l], given?.layer.low[l], given?.layer.high[l]],
      ...[...Array(e).keys()].map((x) => [layer, x, ...Array(9).fill(null), data.load_pre[l * e + x], data.load_post[l * e + x], data.angle[l * e + x], null, null, null]),
    ]),
  };
}
