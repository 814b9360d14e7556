/** The top k heads together against k random heads of the same layers, with intervals. */
import { scaleLinear, scalePoint } from 'd3-scale';
import { html } from '../dom.js';

/** @param {{curve: import('../types').Curve, k: number, width: number, unit: string, height?: number, share: boolean}} props share: the forgetting is significant, so it may be a reference */
export function CurveMark({ curve, k, width, unit, height = 240, share }) {
  const [left, right, bottom, top] = [44, 74, height - 22, 22];
  const { top: best, random, forgetting } = curve;
  const ends = [0, share ? forgetting : 0, ...[best.effect, best.low, best.high, random.mean, random.low, random.high].flat().map((v) => v ?? 0)];
  const X = scalePoint().domain(curve.k).range([left, width - right]).padding(0.3);
  const Y = scaleLinear().domain([Math.min(...ends), Math.max(...ends)]).nice(4).range([bottom, top]);
  /** @param {import('../types').Num[]} values @returns {string[]} points that exist */
  const points = (values) => values.flatMap((v, i) => (v == null ? [] : [`${X(curve.k[i])},${Y(v)}`]));
  /** @param {import('../types').Num[]} low @param {import('../types').Num[]} high */
  const band = (low, high) => `M${[...points(high), ...points(low).reverse()].join('L')}Z`;
  /** @param {import('../types').Num[]} values */
  const path = (values) => `M${points(values).join('L')}`;
  const end = X(curve.k[curve.k.length - 1]) + 8;
  /** @param {import('../types').Num[]} values */
  const last = (values) => Y(values[values.length - 1] ?? 0);
  const [at, other] = apart(last(best.effect), last(random.mean));
  const clear = Math.abs(Y(forgetting) - at) > 13 ? Y(forgetting) - 5 : Y(forgetting) + 13;
  return html`<svg data-figure width=${width} height=${height} role="img" aria-label="Effect of the top k heads together and of k random heads; the same numbers are in the table">
    ${Y.ticks(4).map((/** @type {number} */ t) => html`<line class="grid" x1=${left} x2=${width - right} y1=${Y(t)} y2=${Y(t)} /><text x=${left - 7} y=${Y(t) + 3.5} text-anchor="end">${Y.tickFormat(4)(t)}</text>`)}
    <line class="zero" x1=${left} x2=${width - right} y1=${Y(0)} y2=${Y(0)} />
    ${share && html`<line class="reference" x1=${left} x2=${width - right} y1=${Y(forgetting)} y2=${Y(forgetting)} />
    <text class="over" x=${left + 5} y=${clear}>all of the forgetting</text>`}
    ${k > 0 && curve.k.includes(k) && html`<line class="cursor" x1=${X(k)} x2=${X(k)} y1=${top} y2=${bottom} />`}
    <path class="pos range" d=${band(best.low, best.high)} /><path class="mute range" d=${band(random.low, random.high)} />
    <path class="mute curve" d=${path(random.mean)} stroke-dasharray="4 3" /><path class="pos curve" d=${path(best.effect)} />
    ${curve.k.map((n, i) => html`${random.mean[i] != null && html`<circle class="mute unsure" cx=${X(n)} cy=${Y(random.mean[i])} r="2.6" />`}
      ${best.effect[i] != null && html`<circle class=${`pos sure ${n === k ? 'at' : ''}`} cx=${X(n)} cy=${Y(best.effect[i])} r=${n === k ? 5 : 3.4} />`}`)}
    <text class="pos label" x=${end} y=${at + 3.5}>top k</text><text x=${end} y=${other + 3.5}>random k</text>
    <line class="axis" x1=${left} x2=${width - right} y1=${bottom} y2=${bottom} />
    ${curve.k.map((n) => html`<text x=${X(n)} y=${bottom + 14} text-anchor="middle">${n}</text>`)}
    <text x=${width - right + 8} y=${bottom + 14}>heads</text>
    <text x=${left} y="10">${unit}</text>
  </svg>`;
}

/** Two labels that must not overlap. @param {number} a @param {number} b */
function apart(a, b) {
  const middle = (a + b) / 2;
  if (Math.abs(a - b) >= 14) return [a, b];
  return a <= b ? [middle - 7, middle + 7] : [middle + 7, middle - 7];
}
