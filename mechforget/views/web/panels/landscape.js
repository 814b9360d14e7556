/** Is there a barrier between the two? Both losses along the straight line, and how sharply each end bends. */
import { useSignal } from '@preact/signals';
import { html, useWidth } from '../dom.js';
import { num, range, visible } from '../format.js';
import { Lines } from '../marks/lines.js';
import { Panel } from '../panel.js';

/** @typedef {import('../types').Landscape} Landscape */

const QUESTION = 'Is there a barrier between the two, and is the loss flatter?';

/** @param {{view: import('../state.js').View}} props */
export function LandscapePanel({ view }) {
  const data = view.data.landscape;
  const at = useSignal(0);
  const [ref, width] = useWidth();
  if (!data) return html`<${Panel} id="landscape" question=${QUESTION} help="" empty=${view.data.empty.landscape} />`;
  const { old, new: fresh } = data.lines;
  const line = old ?? fresh;
  const series = [...(old ? [{ label: 'old task', ...old.loss, tone: 'pos' }] : []), ...(fresh ? [{ label: 'new task', ...fresh.loss, tone: 'neg', dash: '6 3' }] : [])];
  const t = line?.t[at.value] ?? 0;
  return html`<${Panel} id="landscape" question=${QUESTION} figure=${Boolean(line)} table=${() => table(data)}
    help="Loss on the straight line from the weights before (0) to those after (1), nats; 95 % intervals over prompts. Drag along the path.">
    ${line && html`<div ref=${ref}>${width > 0 && html`<${Lines} x=${line.t} series=${series} width=${width} height=${230} unit="loss, nats" xlabel="path" ends=${[0]} at=${at.value}
      label="Losses along the line between the checkpoints" choose=${(/** @type {number} */ i) => (at.value = i)} name=${(/** @type {number} */ x) => (x === 0 ? 'before' : x === 1 ? 'after' : String(x))} />`}</div>
    <label class="slider">point <input type="range" min="0" max=${line.t.length - 1} step="1" value=${at.value} aria-valuetext=${`${num(t)} of the way`} onInput=${(/** @type {any} */ e) => (at.value = +e.target.value)} /><output>${num(t)}</output></label>
    <p class="readout" role="status">${said(data, at.value)}</p>`}
    <div class="scroll" tabindex="0" role="region" aria-label="Barrier and curvature"><${Bends} data=${data} /></div>
    ${data.curvature?.note && html`<p class="help">${visible(data.curvature.note)}.</p>`}
  <//>`;
}

/** @param {Landscape} data @param {number} i */
const said = ({ lines }, i) =>
  Object.entries(lines).map(([task, l]) => `${task} task ${num(l.loss.value[i])} nats (${range(l.loss.low[i], l.loss.high[i])})`).join('; ');

/** @type {Record<string, string>} */
const NAMES = { trace: 'Hessian trace', gauss_newton: 'Gauss–Newton trace', eigenvalue: 'largest Hessian eigenvalue' };

/** @param {{data: Landscape}} props */
function Bends({ data: { lines, curvature, sharpness } }) {
  const rows = curvature ? Object.entries(NAMES).map(([key, name]) => ({ name, two: curvature[/** @type {'trace'} */ (key)], ratio: curvature.flattening[key] })) : [];
  return html`<table class="bends">
    <thead><tr><td></td><th scope="col" class="n">before</th><th scope="col" class="n">after</th><th scope="col" class="n">after / before</th></tr></thead>
    <tbody>
      ${rows.map(({ name, two, ratio }) => html`<tr><th scope="row">${name}</th>${[0, 1].map((i) => html`<td class="n">${num(two.value[i])}<small>±${num(two.se[i])}</small></td>`)}<td class="n">${num(ratio[0])}<small>${range(ratio[1], ratio[2])}</small></td></tr>`)}
      ${sharpness && html`<tr><th scope="row">sharpness, nats</th>${[0, 1].map((i) => html`<td class="n">${num(sharpness.value[i])}<small>±${num(sharpness.se[i])}</small></td>`)}<td class="n">–</td></tr>`}
      ${Object.entries(lines).map(([task, l]) => html`<tr><th scope="row">barrier of the ${task} task, nats</th><td class="n" colspan="3">${l.barrier[0] === 0 ? 'none' : `${num(l.barrier[0])}, at ${num(l.barrier_at)} of the way`}<small>${range(l.barrier[1], l.barrier[2])}</small></td></tr>`)}
    </tbody></table>
    <p class="help">${curvature || sharpness ? '± one standard error of the estimate (for an eigenvalue: its residual), on these prompts. A ratio below 1 means flatter after. ' : ''}The barrier is the most that the loss rises above the straight line between its ends.</p>`;
}

/** @param {Landscape} data */
function table({ lines, curvature, sharpness }) {
  /** @type {import('../types').Row[]} */
  const rows = Object.entries(lines).flatMap(([task, l]) => [
    ...l.t.map((t, i) => [`loss, ${task} task`, t, null, l.loss.value[i], l.loss.low[i], l.loss.high[i], null, 'nats']),
    [`barrier, ${task} task`, l.barrier_at, null, ...l.barrier, null, 'nats'],
  ]);
  /** @param {string} name @param {import('../types').Two} two @param {string} unit */
  const two = (name, { value, se }, unit) => [0, 1].map((i) => [name, i, null, value[i], null, null, se[i], unit]);
  if (curvature) {
    for (const key of Object.keys(NAMES)) rows.push(...two(NAMES[key], curvature[/** @type {'trace'} */ (key)], 'nats per squared unit of weight'), [`${NAMES[key]}, after / before`, null, null, ...curvature.flattening[key], null, '']);
    const { modules } = curvature;
    rows.push(...[0, 1].flatMap((t) => modules.part.map((part, m) => [`Hessian trace of ${part}`, t, modules.layer[m], modules.value[t][m], null, null, modules.se[t][m], 'nats per squared unit of weight'])));
  }
  if (sharpness) rows.push(...two('sharpness', sharpness, 'nats'));
  return { columns: ['what', 't', 'layer', 'value', 'low', 'high', 'standard_error', 'unit'], rows };
}
