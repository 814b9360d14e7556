/** Where do the tasks' gradients oppose each other? Intervals by matrix type against chance, then matrix by layer. */
import { useSignal } from '@preact/signals';
import { Choice, html, useWidth } from '../dom.js';
import { num, range } from '../format.js';
import { Grid } from '../marks/grid.js';
import { Hatch } from '../marks/heat.js';
import { Intervals } from '../marks/intervals.js';
import { Panel } from '../panel.js';

/** @typedef {import('../state.js').View} View */
/** @typedef {import('../types').Opposition} Opposition */
/** @typedef {'cosine' | 'corrected' | 'conflict'} Quantity */

const QUESTION = 'Where do the tasks’ gradients oppose each other?';
/** @type {Record<Quantity, string>} */
const NUMBERS = { cosine: 'cosine', corrected: 'cosine, noise-corrected', conflict: 'conflict rate' };
/** @type {Record<string, string>} */
const HELP = {
  cosine: 'Below 0: a step for the new task harms the old one.', corrected: 'Below 0: a step for the new task harms the old one; minibatch noise divided out.',
  conflict: 'Share of minibatch pairs whose product is negative; above one half is harm.',
};

/** @param {{view: View}} props */
export function InterferencePanel({ view }) {
  const data = view.data.interference;
  const number = useSignal(/** @type {Quantity} */ ('corrected'));
  const where = useSignal(0);
  if (!data) return html`<${Panel} id="interference" question=${QUESTION} help="" empty=${view.data.empty.interference} />`;
  const point = data.points[where.value];
  const { old, new: fresh } = data.minibatches;
  const band = number.value === 'corrected' ? 'Filled: significant against' : 'Grey: the central 95 % of';
  return html`<${Panel} id="interference" question=${QUESTION} figure table=${() => table(data)}
    help=${`${HELP[number.value]} 95 % intervals over ${old} × ${fresh} minibatches. ${band} unrelated gradients (signs flipped)${number.value === 'corrected' ? ', FDR 5 %' : '; filled: significant, FDR 5 %'}.`}>
    <div class="controls">
      <${Choice} label="number" value=${number.value} options=${Object.entries(NUMBERS).map(([value, label]) => ({ value, label }))} choose=${(/** @type {Quantity} */ v) => (number.value = v)} />
      ${data.points.length > 1 && html`<${Choice} label="at" value=${String(where.value)} options=${data.points.map((p, i) => ({ value: String(i), label: place(p.at) }))} choose=${(/** @type {string} */ i) => (where.value = +i)} />`}
    </div>
    <div class="two uneven opposed"><${ByMatrix} found=${point.parts} number=${number.value} /><${ByLayer} view=${view} found=${point.map} layers=${data.layers} number=${number.value} /></div>
  <//>`;
}

/** @param {number} t */
const place = (t) => (t === 0 ? 'before' : t === 1 ? 'after' : `${num(t)} of the way`);

/** @param {{found: Opposition, number: Quantity}} props */
function ByMatrix({ found, number }) {
  const [ref, width] = useWidth();
  const chance = number === 'corrected' ? null : found[/** @type {'null_cosine'} */ (`null_${number}`)];
  const rows = found.names.flatMap((label, i) => {
    const value = found[number].value[i];
    return value === null ? [] : [{
      key: label, label, value, low: found[number].low[i], high: found[number].high[i], significant: (found.q[i] ?? 1) <= 0.05,
      tone: harm(value, number) ? 'neg' : 'pos', ...(chance && { chance: [chance.low[i], chance.high[i]] }),
    }];
  });
  return html`<div ref=${ref}><h3>By kind of matrix, all layers together</h3>
    ${width > 0 && html`<${Intervals} rows=${rows} width=${width} left=${64} unit="" signs=${number !== 'conflict'} label=${`${NUMBERS[number]} by kind of matrix; the same numbers are in the table`} />`}</div>`;
}

/** @param {number} value @param {Quantity} number */
const harm = (value, number) => (number === 'conflict' ? value > 0.5 : value < 0);

/** @param {{view: View, found: Opposition, layers: number[], number: Quantity}} props */
function ByLayer({ view, found, layers, number }) {
  const [ref, width] = useWidth();
  const row = useSignal(0);
  const over = useSignal(/** @type {number | null} */ (null));
  const values = found[number].value;
  const centre = number === 'conflict' ? 0.5 : 0;
  const most = number === 'conflict' ? 0.5 : Math.max(...values.map((v) => Math.abs(v ?? 0)));
  const column = Math.max(0, layers.indexOf(view.layer.value));
  const selected = row.value * layers.length + column;
  /** @param {number} i */
  const say = (i) => {
    const [r, l] = [Math.floor(i / layers.length), layers[i % layers.length]];
    const chance = number === 'corrected' ? '' : `; unrelated gradients: ${range(found[/** @type {'null_cosine'} */ (`null_${number}`)].low[i], found[/** @type {'null_cosine'} */ (`null_${number}`)].high[i])}`;
    return `${found.names[r]} of layer ${l}: ${NUMBERS[number]} ${num(values[i])} (${range(found[number].low[i], found[number].high[i])})${chance}; p ${num(found.p[i])}, q ${num(found.q[i])}`;
  };
  return html`<div ref=${ref}><h3>By matrix and layer</h3>
    ${width > 0 && html`<svg width="0" height="0" aria-hidden="true"><${Hatch} /></svg><${Grid} rows=${found.names} columns=${layers} values=${values} most=${most} centre=${centre} flip=${number === 'conflict'} width=${width} left=${58}
      theme=${view.theme.value} significant=${found.q.map((q) => (q ?? 1) <= 0.05)} selected=${selected} label=${`${NUMBERS[number]} by matrix and layer`} xlabel="layer"
      ends=${number === 'conflict' ? ['agree', 'oppose'] : ['oppose', 'agree']} say=${say} preview=${(/** @type {number | null} */ i) => (over.value = i)}
      select=${(/** @type {number} */ i) => ((row.value = Math.floor(i / layers.length)), view.chooseLayer(layers[i % layers.length]))} />`}
    <p class="readout" role="status">${say(over.value ?? selected)}. A glyph: significant, FDR 5 % over the map; hatched: cannot be told.</p></div>`;
}

/** @param {import('../types').Interference} data */
function table(data) {
  /** @param {number} at @param {Opposition} f @param {(i: number) => [string, number | null]} name */
  const rows = (at, f, name) => f.p.map((p, i) => [at, ...name(i), ...['cosine', 'corrected', 'conflict', 'dot', 'null_cosine', 'null_conflict'].flatMap((k) => {
    const b = f[/** @type {Quantity} */ (k)];
    return k.startsWith('null') ? [b.low[i], b.high[i]] : [b.value[i], b.low[i], b.high[i]];
  }), p, f.q[i]]);
  const n = data.layers.length;
  return {
    columns: ['at', 'matrix', 'layer', ...['cosine', 'corrected', 'conflict', 'dot'].flatMap((k) => [k, `${k}_low`, `${k}_high`]), 'chance_cosine_low', 'chance_cosine_high', 'chance_conflict_low', 'chance_conflict_high', 'p', 'q'],
    rows: data.points.flatMap(({ at, parts, map }) => [...rows(at, parts, (i) => [parts.names[i], null]), ...rows(at, map, (i) => [map.names[Math.floor(i / n)], data.layers[i % n]])]),
  };
}
