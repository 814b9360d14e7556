/** Which prompts were forgotten? Before against after, and a sortable table that selects the prompt everywhere. */
import { useSignal } from '@preact/signals';
import { scaleLinear } from 'd3-scale';
import { html, useWidth } from '../dom.js';
import { num, signed, token, visible, words } from '../format.js';
import { Panel } from '../panel.js';

/** @typedef {import('../state.js').View} View */
/** @typedef {ReturnType<typeof read>[number]} Line */

const FLIPS = { lost: '×', gained: '+', kept: '●', never: '○', '–': '' };

/** @param {{view: View}} props */
export function Prompts({ view }) {
  const { data } = view;
  const metric = view.map.value?.metric === 'logit_diff' ? 'logit_diff' : 'log_prob';
  const lines = read(view, metric);
  const count = (/** @type {string} */ flip) => lines.filter((l) => l.flip === flip).length;
  const help = `${words(metric)} of the right answer${metric === 'logit_diff' ? ' minus the wrong one' : ''}, nats. × lost ${count('lost')}, + gained ${count('gained')}, ● kept ${count('kept')}, ○ never right ${count('never')}; n = ${lines.length}.`;
  if (!lines.length) return html`<${Panel} id="prompts" question="Which prompts were forgotten?" help="" empty=${data.empty.prompts ?? 'No prompts are stored in this run.'} />`;
  return html`<${Panel} id="prompts" question="Which prompts were forgotten?" help=${help} figure table=${() => table(data)}>
    <div class="two uneven"><${Scatter} view=${view} lines=${lines} metric=${metric} /><${Sortable} view=${view} lines=${lines} /></div>
  <//>`;
}

/** @param {View} view @param {'log_prob' | 'logit_diff'} metric */
const read = (view, metric) =>
  view.data.prompts.map((p, i) => {
    const [before, after] = p[metric] ?? [null, null];
    const [was, is] = p.correct ?? [null, null];
    return {
      i, text: p.text, answer: p.answer, before, after,
      change: before === null || after === null ? null : after - before,
      flip: /** @type {keyof typeof FLIPS} */ (was === null || is === null ? '–' : was ? (is ? 'kept' : 'lost') : is ? 'gained' : 'never'),
      top: p.top_head,
    };
  });

/** @param {{view: View, lines: Line[], metric: string}} props */
function Scatter({ view, lines, metric }) {
  const [ref, width] = useWidth();
  const size = Math.min(width, 380);
  const known = lines.filter((l) => l.change !== null);
  const ends = known.flatMap((l) => [l.before ?? 0, l.after ?? 0]);
  const [x0, y1] = [46, size - 36];
  const X = scaleLinear().domain([Math.min(...ends), Math.max(...ends)]).nice(4).range([x0, size - 10]);
  const Y = X.copy().range([y1, 8]);
  const [least, most] = X.domain();
  return html`<div ref=${ref}>${size > 80 && html`
    <svg data-figure width=${size} height=${size} role="img" aria-label=${`${words(metric)} of every prompt, before against after; the same numbers are in the table`}>
      ${X.ticks(4).map((/** @type {number} */ t) => html`<line class="grid" x1=${X(t)} x2=${X(t)} y1="8" y2=${y1} /><line class="grid" x1=${x0} x2=${size - 10} y1=${Y(t)} y2=${Y(t)} />
        <text x=${X(t)} y=${y1 + 14} text-anchor="middle">${X.tickFormat(4)(t)}</text><text x=${x0 - 6} y=${Y(t) + 3.5} text-anchor="end">${X.tickFormat(4)(t)}</text>`)}
      <line class="zero" x1=${X(least)} y1=${Y(least)} x2=${X(most)} y2=${Y(most)} />
      ${known.map((l) => html`<path class=${`dot ${l.flip} ${l.i === view.prompt.value ? 'at' : ''}`} transform=${`translate(${X(l.before)} ${Y(l.after)})`} d=${GLYPH[l.flip]} onClick=${() => view.choosePrompt(l.i)} />`)}
      <text x=${(x0 + size - 10) / 2} y=${size - 6} text-anchor="middle">${words(metric)} before; below the line: worse after</text>
      <text transform=${`translate(11 ${y1 / 2}) rotate(-90)`} text-anchor="middle">after</text>
    </svg>`}</div>`;
}

const DISC = 'M-3.5,0a3.5,3.5 0 1 0 7,0a3.5,3.5 0 1 0 -7,0z';
const GLYPH = { lost: 'M-4,-4L4,4M-4,4L4,-4', gained: 'M-5,0H5M0,-5V5', kept: DISC, never: DISC, '–': DISC };

/** @type {[keyof Line, string][]} */
const COLUMNS = [['i', '#'], ['text', 'prompt'], ['answer', 'answer'], ['before', 'before'], ['after', 'after'], ['change', 'change'], ['flip', 'flip'], ['top', 'top head']];
const NUMERIC = new Set(['i', 'before', 'after', 'change']);

/** @param {{view: View, lines: Line[]}} props */
function Sortable({ view, lines }) {
  const by = useSignal(/** @type {keyof Line} */ ('change'));
  const up = useSignal(true);
  const sorted = [...lines].sort((a, b) => compare(a[by.value], b[by.value], up.value ? 1 : -1));
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const step = event.key === 'ArrowDown' ? 1 : event.key === 'ArrowUp' ? -1 : 0;
    const at = sorted.findIndex((l) => l.i === view.prompt.value) + step;
    if (!step || !sorted[at]) return;
    event.preventDefault();
    view.choosePrompt(sorted[at].i);
    /** @type {HTMLElement} */ (/** @type {HTMLElement} */ (event.currentTarget).children[at]).focus();
  };
  /** @param {keyof Line} column */
  const sort = (column) => {
    up.value = by.value === column ? !up.value : true;
    by.value = column;
  };
  return html`<div class="scroll tall"><table role="grid" aria-label="Prompts">
    <thead><tr>${COLUMNS.map(([key, label]) => html`<th scope="col" class=${NUMERIC.has(key) ? 'n' : ''} aria-sort=${by.value === key ? (up.value ? 'ascending' : 'descending') : null}>
      <button class="plain" onClick=${() => sort(key)}>${label}${by.value === key ? (up.value ? ' ↑' : ' ↓') : ''}</button></th>`)}</tr></thead>
    <tbody onKeyDown=${key}>${sorted.map((l, row) => html`<tr key=${l.i} aria-selected=${l.i === view.prompt.value} tabindex=${l.i === view.prompt.value || (row === 0 && !lines[view.prompt.value]) ? 0 : -1} onClick=${() => view.choosePrompt(l.i)}>
      <td class="n">${l.i}</td><td class="text"><bdi>${visible(l.text)}</bdi></td><td><bdi>${token(l.answer)}</bdi></td><td class="n">${num(l.before)}</td><td class="n">${num(l.after)}</td><td class="n">${signed(l.change)}</td>
      <td class="flip">${FLIPS[l.flip]} ${l.flip}</td><td>${l.top && html`<button class="plain" onClick=${() => (view.head.value = l.top ? l.top[0] * view.data.model.heads + l.top[1] : 0)}>L${l.top[0]}H${l.top[1]}</button>`}</td></tr>`)}</tbody>
  </table></div>`;
}

/** Missing values last, whichever way it runs. @param {any} a @param {any} b @param {1 | -1} way */
function compare(a, b, way) {
  if (a === null || b === null) return +(a === null) - +(b === null);
  if (Array.isArray(a)) return way * (a[0] - b[0] || a[1] - b[1]);
  return way * (a < b ? -1 : a > b ? 1 : 0);
}

/** @param {View['data']} data */
const table = (data) => ({
  columns: ['prompt', 'text', 'answer', 'wrong', 'cluster', 'log_prob_pre', 'log_prob_post', 'logit_diff_pre', 'logit_diff_post', 'correct_pre', 'correct_post', 'top_head'],
  rows: data.prompts.map((p, i) => [i, p.text, p.answer, p.wrong, p.cluster, ...p.log_prob, ...(p.logit_diff ?? [null, null]), ...(p.correct ?? [null, null]), p.top_head && `L${p.top_head[0]}H${p.top_head[1]}`]),
});
