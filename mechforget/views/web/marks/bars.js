/** One bar per layer on the map's own columns, with intervals; pale where not significant. */
import { html } from '../dom.js';
import { num } from '../format.js';
import { LEFT } from './heat.js';

export const BAR_HEIGHT = 34;

/**
 * @param {{
 *   label: string, values: import('../types').Num[], low?: import('../types').Num[] | null, high?: import('../types').Num[] | null,
 *   significant?: (boolean | null)[] | null, at: import('./heat.js').Geometry, y: number,
 * }} props
 */
export function Bars({ label, values, low, high, significant, at: { cw, right, gap }, y }) {
  const ends = values.flatMap((v, i) => [v ?? 0, low?.[i] ?? 0, high?.[i] ?? 0]);
  const [least, most] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const inner = BAR_HEIGHT - 8;
  /** @param {number} v */
  const Y = (v) => y + 4 + ((most - v) / (most - least || 1)) * inner;
  const largest = values.reduce((a, b) => (Math.abs(b ?? 0) > Math.abs(a ?? 0) ? b : a), 0);
  return html`<g aria-hidden="true">
    <text x="0" y=${y + BAR_HEIGHT / 2 + 4}>${label}</text>
    ${values.map((v, l) => {
      if (v === null) return html`<rect x=${LEFT + l * cw} y=${y + 4} width=${cw - gap} height=${inner} fill="url(#hatch)" />`;
      const x = LEFT + l * cw;
      const sure = !significant || significant[l];
      return html`<rect class=${v < 0 ? 'neg' : 'pos'} opacity=${sure ? 1 : 0.4} x=${x} y=${Math.min(Y(0), Y(v))} width=${cw - gap} height=${Math.max(0.5, Math.abs(Y(v) - Y(0)))} />
        ${low?.[l] != null && high?.[l] != null && html`<line class="whisker" x1=${x + (cw - gap) / 2} x2=${x + (cw - gap) / 2} y1=${Y(/** @type {number} */ (low[l]))} y2=${Y(/** @type {number} */ (high[l]))} />`}`;
    })}
    <line class="zero" x1=${LEFT} x2=${right} y1=${Y(0)} y2=${Y(0)} />
    <text x=${right + 8} y=${y + BAR_HEIGHT / 2 + 4}>peak ${num(largest)}</text>
  </g>`;
}
