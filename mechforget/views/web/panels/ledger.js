/** Which weights wrote the loss? Its rise shared out by layer and part, or by head. */
import { useSignal } from '@preact/signals';
import { html, LayerSlider, useWidth } from '../dom.js';
import { num, range, signed, visible } from '../format.js';
import { geometry, Hatch, Heat, LayerAxis } from '../marks/heat.js';
import { Stack } from '../marks/stack.js';
import { Panel } from '../panel.js';

/** @typedef {import('../state.js').View} View */
/** @typedef {import('../types').Ledger} Ledger */

const QUESTION = 'Which weights wrote the loss?';

/** @param {{view: View}} props */
export function LedgerPanel({ view }) {
  const data = view.data.ledger;
  if (!data) return html`<${Panel} id="ledger" question=${QUESTION} help="" empty=${view.data.empty.ledger} />`;
  const [change, gap] = [data.whole.names.indexOf('change'), data.whole.names.indexOf('gap')];
  return html`<${Panel} id="ledger" question=${QUESTION} figure table=${() => table(view, data)}
    help=${`Integrated gradients over the weights (the forgetting ledger): the old task’s loss rose by ${num(data.whole.value[change])} nats (${range(data.whole.low[change], data.whole.high[change])}), and each change of weights has its share; above 0 is harm. The shares sum to the rise up to an error of ${num(data.whole.value[gap])}. 95 % intervals of each layer’s sum, n = ${data.n}.`}>
    <div class="controls"><${Key} data=${data} /></div>
    <${ByLayer} view=${view} data=${data} />
    <h3>The same, of each head’s weights</h3>
    <${ByHead} view=${view} data=${data} />
    ${data.origins && html`<${Reach} view=${view} found=${data.origins} />`}
  <//>`;
}

/** From written to expressed. @param {{view: View, found: import('../types').Origins}} props */
function Reach({ view, found }) {
  const head = view.name(found.of[0] * view.data.model.heads + found.of[1]);
  return html`<h3>Which changes of weights reach ${head}, the head that restores most?</h3>
    <p class="help">The same for what ${head} writes, which costs ${num(found.change)} nats to first order: the ${found.cells.length} largest shares, above 0 is harm.</p>
    <div class="scroll" tabindex="0" role="region" aria-label="Changes of weights that reach ${head}"><table class="metrics reach">
      <thead><tr><th scope="col">weights</th><th scope="col" class="n">nats</th><th scope="col" class="n">95 % interval</th></tr></thead>
      <tbody>${found.cells.map((cell, i) => html`<tr><td>${visible(cell)}</td><td class="n">${signed(found.value[i])}</td><td class="n">${range(found.low[i], found.high[i])}</td></tr>`)}</tbody>
    </table></div>`;
}

/** Colours and totals of the parts. @param {{data: Ledger}} props */
const Key = ({ data }) => html`<span class="key">${data.parts.map((name, p) => html`<span><svg width="10" height="10" aria-hidden="true"><rect class=${`part part-${p}`} width="10" height="10" /></svg> ${name} <b>${signed(data.by_part.value[p])}</b></span>`)}</span>`;

/** @param {{view: View, data: Ledger}} props */
function ByLayer({ view, data }) {
  const [ref, width] = useWidth();
  const l = view.layer.value;
  const n = data.layers.length;
  const parts = data.parts.map((name, p) => `${name} ${signed(data.cells.value[p * n + l])}`).join(', ');
  return html`<div ref=${ref}>${width > 0 && html`<${Stack} parts=${data.parts} layers=${data.layers} cells=${data.cells.value} sum=${data.by_layer} rest=${data.rest} width=${width} unit="nats" at=${l} choose=${view.chooseLayer} />`}</div>
    <${LayerSlider} view=${view} />
    <p class="readout" role="status">Layer ${l}: ${signed(data.by_layer.value[l])} nats (${range(data.by_layer.low[l], data.by_layer.high[l])}): ${parts}</p>`;
}

/** @param {{view: View, data: Ledger}} props */
function ByHead({ view, data: { heads: found } }) {
  const [ref, width] = useWidth();
  const over = useSignal(/** @type {number | null} */ (null));
  const { layers, heads } = view.data.model;
  const at = geometry(width, layers, heads);
  const map = { stats: { effect: found.value, significant: found.value.map((_, i) => (found.low[i] ?? 0) > 0 || (found.high[i] ?? 0) < 0) }, most: Math.max(...found.value.map((v) => Math.abs(v ?? 0))) };
  /** @param {number} i */
  const say = (i) => `${view.name(i)}: ${signed(found.value[i])} nats (${range(found.low[i], found.high[i])})`;
  return html`<div ref=${ref}>${width > 0 && html`<svg data-figure width=${width} height=${heads * at.ch + 30} viewBox=${`0 -4 ${width} ${heads * at.ch + 30}`}><${Hatch} />
      <${Heat} map=${map} layers=${layers} heads=${heads} at=${at} theme=${view.theme.value} onlySignificant=${false} selected=${view.head.value} pinned=${view.pinned.value}
        outlined=${[]} say=${say} select=${(/** @type {number} */ i) => (view.head.value = i)} pin=${view.togglePin} preview=${(/** @type {number | null} */ i) => (over.value = i)} />
      <${LayerAxis} layers=${layers} at=${at} y=${heads * at.ch + 16} /></svg>`}</div>
    <p class="readout" role="status">${say(over.value ?? view.head.value)}. Its W_Q and W_O, and its part of its group’s W_K and W_V. + −: the interval leaves out 0, not corrected for many heads; strongest colour ${signed(map.most)}.</p>`;
}

/** @param {View} view @param {Ledger} data */
function table(view, data) {
  const n = data.layers.length;
  const { heads } = view.data.model;
  /** @param {string} what @param {import('../types').Band} b @param {(i: number) => [string | null, number | null, number | null]} place */
  const rows = (what, b, place) => b.value.map((v, i) => [what, ...place(i), v, b.low[i], b.high[i]]);
  return {
    columns: ['what', 'part', 'layer', 'head', 'nats', 'low', 'high'],
    rows: [
      ...rows('whole', data.whole, (i) => [data.whole.names[i], null, null]),
      ...rows('part', data.by_part, (i) => [data.parts[i], null, null]),
      ...rows('no layer', data.rest, (i) => [data.rest.names[i], null, null]),
      ...rows('layer', data.by_layer, (i) => [null, data.layers[i], null]),
      ...rows('layer and part', data.cells, (i) => [data.parts[Math.floor(i / n)], data.layers[i % n], null]),
      ...(data.origins ? rows(`reaches ${view.name(data.origins.of[0] * heads + data.origins.of[1])}`, data.origins, (i) => [data.origins?.cells[i] ?? null, null, null]) : []),
      ...rows('head', data.heads, (i) => [null, Math.floor(i / heads), i % heads]),
    ],
  };
}
