/** Estimates along layers or a path, with their bands; a cursor that follows a click or a drag. */
import { scaleLinear } from 'd3-scale';
import { html } from '../dom.js';

/** @typedef {import('../types').Num} Num */
/**
 * @typedef {{label: string, value: Num[], low?: Num[] | null, high?: Num[] | null, tone: 'pos' | 'neg' | 'mute' | 'ink', dash?: string}} Series
 * A series without interval is its line alone. `between`: a grey band behind everything, with its name.
 * @param {{
 *   x: number[], series: Series[], width: number, height?: number, unit: string, label: string, xlabel: string, at?: number,
 *   choose?: (index: number) => void, between?: {label: string, low: Num[], high: Num[]} | null, ends?: number[], name?: (x: number) => string, inlet?: boolean,
 * }} props inlet: the first x is before the first layer
 */
export function Lines({ x, series, width, height = 210, unit, label, xlabel, at, choose, between, ends = [], name = String, inlet = false }) {
  const wordy = Math.max(...series.map((s) => s.label.length), between?.label.length ?? 0);
  const [left, right, top, bottom] = [46, Math.max(54, Math.min(width * 0.34, 14 + 6.2 * wordy)), 22, height - 24];
  const all = [...ends, ...series.flatMap((s) => [...s.value, ...(s.low ?? []), ...(s.high ?? [])]), ...(between ? [...between.low, ...between.high] : [])];
  const known = /** @type {number[]} */ (all.filter((v) => v !== null));
  const X = scaleLinear().domain([x[0], x[x.length - 1] === x[0] ? x[0] + 1 : x[x.length - 1]]).range([left, width - right]);
  const Y = scaleLinear().domain(known.length ? [Math.min(...known), Math.max(...known)] : [0, 1]).nice(4).range([bottom, top]);
  /** @param {Num[]} values @returns {string[][]} runs of neighbours that exist */
  const runs = (values) => values.reduce((found, v, i) => {
    if (v === null) found.push([]);
    else found[found.length - 1].push(`${X(x[i]).toFixed(1)},${Y(v).toFixed(1)}`);
    return found;
  }, /** @type {string[][]} */ ([[]])).filter((run) => run.length);
  /** @param {Num[]} values */
  const path = (values) => runs(values).map((run) => `M${run.join('L')}${run.length === 1 ? 'h0.1' : ''}`).join('');
  /** @param {Num[] | null | undefined} low @param {Num[] | null | undefined} high */
  const area = (low, high) => {
    if (!low || !high) return '';
    const both = low.map((v, i) => (v === null ? null : high[i]));
    const [up, down] = [runs(both), runs(low.map((v, i) => (both[i] === null ? null : v)))];
    return up.map((run, i) => (run.length > 1 ? `M${[...run, ...[...down[i]].reverse()].join('L')}Z` : '')).join('');
  };
  const named = apart([
    ...series.map((s) => ({ text: s.label, tone: s.tone, y: Y(last(s.value) ?? 0) })),
    ...(between ? [{ text: between.label, tone: 'mute', y: Y(((last(between.low) ?? 0) + (last(between.high) ?? 0)) / 2) }] : []),
  ], top + 4, bottom - 2);
  const step = [1, 2, 5, 10, 20, 50].find((s) => (s * (width - left - right)) / Math.max(1, x.length - 1) >= 26) ?? 100;
  /** @param {any} event */
  const nearest = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const to = X.invert(event.clientX - box.left + left - 6);
    choose?.(x.reduce((best, v, i) => (Math.abs(v - to) < Math.abs(x[best] - to) ? i : best), 0));
  };
  return html`<svg data-figure width=${width} height=${height} role="img" aria-label=${`${label}; the same numbers are in the table`}>
    ${Y.ticks(4).map((/** @type {number} */ t) => html`<line class="grid" x1=${left} x2=${width - right} y1=${Y(t)} y2=${Y(t)} /><text x=${left - 7} y=${Y(t) + 3.5} text-anchor="end">${Y.tickFormat(4)(t)}</text>`)}
    ${between && html`<path class="band" d=${area(between.low, between.high)} />`}
    ${Y.domain()[0] <= 0 && Y.domain()[1] >= 0 && html`<line class="zero" x1=${left} x2=${width - right} y1=${Y(0)} y2=${Y(0)} />`}
    ${at !== undefined && at >= 0 && html`<line class="cursor" x1=${X(x[at])} x2=${X(x[at])} y1=${top - 4} y2=${bottom} />`}
    ${series.map((s) => html`<path class=${`${s.tone} range`} d=${area(s.low, s.high)} />`)}
    ${series.map((s) => html`<path class=${`${s.tone} curve`} d=${path(s.value)} stroke-dasharray=${s.dash} />
      ${at !== undefined && at >= 0 && s.value[at] !== null && html`<circle class=${s.tone} cx=${X(x[at])} cy=${Y(s.value[at])} r="3.6" />`}`)}
    ${named.map((n) => html`<text class=${`label ${n.tone}`} x=${width - right + 7} y=${n.y + 3.5}>${n.text}</text>`)}
    <line class="axis" x1=${left} x2=${width - right} y1=${bottom} y2=${bottom} />
    ${x.map((v, i) => (inlet ? i === 0 || (i > 1 && (i - 1) % step === 0) : i % step === 0) && html`<text x=${X(v)} y=${bottom + 14} text-anchor="middle">${name(v)}</text>`)}
    <text x=${width - right + 22} y=${bottom + 14}>${xlabel}</text>
    <text x="0" y="10">${unit}</text>
    ${choose && html`<rect data-live class="hit" x=${left - 6} y=${top - 4} width=${width - left - right + 12} height=${bottom - top + 8}
      onPointerDown=${(/** @type {any} */ e) => (e.currentTarget.setPointerCapture(e.pointerId), nearest(e))} onPointerMove=${(/** @type {any} */ e) => e.buttons && nearest(e)} />`}
  </svg>`;
}

/** @param {Num[]} values */
const last = (values) => values.findLast((v) => v !== null) ?? null;

/** Labels at the ends of lines, moved no further than they must be. @template {{y: number}} T @param {T[]} labels @param {number} top @param {number} bottom @returns {T[]} */
function apart(labels, top, bottom) {
  const sorted = [...labels].sort((a, b) => a.y - b.y);
  const gap = 13;
  for (let i = 1; i < sorted.length; i++) sorted[i].y = Math.max(sorted[i].y, sorted[i - 1].y + gap);
  let below = bottom;
  for (let i = sorted.length - 1; i >= 0; i--) {
    sorted[i].y = Math.max(top, Math.min(sorted[i].y, below));
    below = sorted[i].y - gap;
  }
  return sorted;
}
