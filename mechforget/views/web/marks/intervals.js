/** Estimates with their intervals on one axis, over the noise band; filled where significant. */
import { scaleLinear } from 'd3-scale';
import { html } from '../dom.js';
import { aligned, range } from '../format.js';

const ROW = 19;

/**
 * @typedef {{key: string | number, label: string, value: number, low?: import('../types').Num, high?: import('../types').Num,
 *   significant?: boolean | null, selected?: boolean, chance?: import('../types').Num[], tone?: 'pos' | 'neg' | 'mute' | 'ink'}} Estimate
 * @param {{rows: Estimate[], width: number, left: number, floor?: number | null, label: string, unit: string, signs?: boolean, ends?: number[],
 *   choose?: (row: Estimate) => void, preview?: (row: Estimate | null) => void}} props
 * floor: a band around zero for all rows; a row's `chance`: low and high of its own band
 */
export function Intervals({ rows, width, left, floor, label, unit, signs = true, ends: also = [], choose, preview = () => {} }) {
  const wide = width > 380;
  const right = wide ? 178 : 58;
  const ends = rows.flatMap((r) => [r.value, r.low ?? r.value, r.high ?? r.value]);
  const axis = [...ends, ...also, ...rows.flatMap((r) => r.chance ?? []).map((v) => v ?? 0)];
  const written = aligned(Math.max(...ends.map(Math.abs)));
  /** @param {number} value */
  const say = (value) => (signs && value > 0 ? '+' : '') + written(value);
  const ticks = Math.max(2, Math.min(6, Math.floor((width - left - right) / 55)));
  const X = scaleLinear().domain([Math.min(0, ...axis, -(floor ?? 0)), Math.max(0, ...axis, floor ?? 0)]).nice(5).range([left, width - right - 8]);
  const height = rows.length * ROW;
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const step = event.key === 'ArrowDown' ? 1 : event.key === 'ArrowUp' ? -1 : 0;
    const to = rows[rows.findIndex((r) => r.selected) + step];
    if (!step || !to || !choose) return;
    event.preventDefault();
    choose(to);
    /** @type {SVGElement} */ (/** @type {Element} */ (/** @type {Element} */ (event.currentTarget).parentNode).children[rows.indexOf(to)]).focus();
  };
  const marks = rows.map((row, i) => html`
    <g key=${row.key} class=${`estimate ${row.selected && choose ? 'on' : ''}`} role=${choose ? 'option' : null} aria-selected=${choose ? String(Boolean(row.selected)) : null}
      aria-label=${choose ? `${row.label} ${say(row.value)} ${range(row.low, row.high, written)} ${unit}${row.significant ? ', significant' : ''}` : null} tabindex=${choose ? (row.selected || (i === 0 && !rows.some((r) => r.selected)) ? 0 : -1) : null} onKeyDown=${choose && key}
      onClick=${choose && (() => choose(row))} onPointerEnter=${() => preview(row)} onPointerLeave=${() => preview(null)}>
      <rect class="row" x="0" y=${i * ROW} width=${width} height=${ROW} />
      ${row.chance?.[0] != null && row.chance[1] != null && html`<rect class="band" x=${X(row.chance[0])} y=${i * ROW + 2} width=${X(row.chance[1]) - X(row.chance[0])} height=${ROW - 4} />`}
      <text class="ink" x="4" y=${i * ROW + 13.5}>${row.label} </text>
      <g class=${row.tone ?? (row.value < 0 ? 'neg' : 'pos')}>
        ${row.low != null && row.high != null && html`<line x1=${X(row.low)} x2=${X(row.high)} y1=${(i + 0.5) * ROW} y2=${(i + 0.5) * ROW} stroke-width="2" />`}
        <circle class=${row.significant ? 'sure' : 'unsure'} cx=${X(row.value)} cy=${(i + 0.5) * ROW} r="3.6" />
      </g>
      <text class="ink value" x=${width - right + 50} y=${i * ROW + 13.5} text-anchor="end">${say(row.value)} </text>
      ${wide && html`<text class="value" x=${width - right + 58} y=${i * ROW + 13.5}>${range(row.low, row.high, written)}</text>`}
    </g>`);
  return html`<svg data-figure width=${width} height=${height + 22} role=${choose ? null : 'img'} aria-label=${choose ? null : label}>
    ${floor != null && html`<rect class="band" x=${X(-floor)} y="0" width=${X(floor) - X(-floor)} height=${height} />`}
    <line class="zero" x1=${X(0)} x2=${X(0)} y1="0" y2=${height} />
    ${choose ? html`<g role="listbox" aria-label=${label}>${marks}</g>` : marks}
    <g aria-hidden="true">
      <line class="axis" x1=${X.range()[0]} x2=${X.range()[1]} y1=${height} y2=${height} />
      ${X.ticks(ticks).map((/** @type {number} */ t) => html`<text x=${X(t)} y=${height + 14} text-anchor="middle">${X.tickFormat(ticks)(t)}</text>`)}
      <text x=${width - right + 50} y=${height + 14} text-anchor="end">${unit}</text>
    </g>
  </svg>`;
}
