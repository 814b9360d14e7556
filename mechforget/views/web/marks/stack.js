/** Signed parts of each layer stacked from zero, the layer's sum with its interval, and what has no layer. */
import { scaleLinear } from 'd3-scale';
import { html } from '../dom.js';

/** @typedef {import('../types').Num} Num */

/**
 * @param {{
 *   parts: string[], layers: number[], cells: Num[], sum: import('../types').Band, rest: {names: string[]} & import('../types').Band,
 *   width: number, height?: number, unit: string, at: number, choose: (layer: number) => void,
 * }} props cells: part by part, layer by layer
 */
export function Stack({ parts, layers, cells, sum, rest, width, height = 250, unit, at, choose }) {
  const [left, top, bottom] = [46, 22, height - 24];
  const apart = rest.names.length ? 26 : 0;
  const right = 8 + (rest.names.length ? 0 : 40);
  const n = rest.names.length;
  const room = width - left - right - apart;
  const cw = Math.min(30, room / (layers.length + 1.6 * n), (room - 16 * n) / layers.length);
  const pitch = Math.max(16, 1.6 * cw); // an upright name needs 16
  /** @param {number} l @param {1 | -1} sign */
  const total = (l, sign) => parts.reduce((s, _, p) => s + Math.max(0, sign * (cells[p * layers.length + l] ?? 0)), 0) * sign;
  const ends = layers.flatMap((_, l) => [total(l, 1), total(l, -1), sum.low[l] ?? 0, sum.high[l] ?? 0]);
  const all = [0, ...ends, ...[...rest.value, ...rest.low, ...rest.high].map((v) => v ?? 0)];
  const Y = scaleLinear().domain([Math.min(...all), Math.max(...all)]).nice(4).range([bottom, top]);
  const gap = cw >= 6 ? 1.5 : 0.5;
  const step = [1, 2, 5, 10, 20].find((s) => s * cw >= 22) ?? 50;
  const from = left + layers.length * cw + apart;
  /** @param {number} x @param {Num} value @param {Num} low @param {Num} high */
  const whisker = (x, value, low, high) => value !== null && html`${low !== null && high !== null && html`<line class="whisker" x1=${x} x2=${x} y1=${Y(low)} y2=${Y(high)} />`}<line class="sum" x1=${x - cw * 0.3} x2=${x + cw * 0.3} y1=${Y(value)} y2=${Y(value)} />`;
  return html`<svg data-figure width=${width} height=${height} role="img" aria-label="Share of the rise by layer, stacked by part; the same numbers are in the table">
    <rect class="column" x=${left + at * cw} y=${top - 4} width=${cw - gap} height=${bottom - top + 4} />
    ${Y.ticks(4).map((/** @type {number} */ t) => html`<line class="grid" x1=${left} x2=${width - right} y1=${Y(t)} y2=${Y(t)} /><text x=${left - 7} y=${Y(t) + 3.5} text-anchor="end">${Y.tickFormat(4)(t)}</text>`)}
    ${layers.map((_, l) => {
      let [up, down] = [0, 0];
      return parts.map((_, p) => {
        const v = cells[p * layers.length + l] ?? 0;
        const start = v < 0 ? down : up;
        if (v < 0) down += v;
        else up += v;
        return v !== 0 && html`<rect class=${`part part-${p}`} x=${left + l * cw} y=${Math.min(Y(start), Y(start + v))} width=${cw - gap} height=${Math.abs(Y(start + v) - Y(start))} />`;
      });
    })}
    ${layers.map((_, l) => whisker(left + (l + 0.5) * cw - gap / 2, sum.value[l], sum.low[l], sum.high[l]))}
    ${rest.names.map((name, i) => {
      const [x, v] = [from + i * pitch, rest.value[i] ?? 0];
      return html`<rect class="part part-rest" x=${x} y=${Math.min(Y(0), Y(v))} width=${cw - gap} height=${Math.abs(Y(v) - Y(0))} />${whisker(x + cw / 2 - gap / 2, rest.value[i], rest.low[i], rest.high[i])}
        <text transform=${`translate(${x + cw / 2 + 3.5} ${Math.min(Y(Math.max(0, v)), Y(rest.high[i] ?? 0)) - 5}) rotate(-90)`}>${name}</text>`;
    })}
    <line class="zero" x1=${left} x2=${width - right} y1=${Y(0)} y2=${Y(0)} />
    ${layers.map((l, i) => i % step === 0 && html`<text x=${left + (i + 0.5) * cw} y=${bottom + 14} text-anchor="middle">${l}</text>`)}
    <text x=${left + layers.length * cw + 4} y=${bottom + 14}>layer</text>
    <text x="0" y="10">${unit}</text>
    <rect data-live class="hit" x=${left} y=${top} width=${layers.length * cw} height=${bottom - top}
      onClick=${(/** @type {any} */ e) => choose(Math.min(layers.length - 1, Math.max(0, Math.floor((e.clientX - e.currentTarget.getBoundingClientRect().left) / cw))))} />
  </svg>`;
}
