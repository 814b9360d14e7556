/** A map of rows by columns: one focusable cell, arrow keys, a raster instead of cells above 2,000. */
import { useMemo } from 'preact/hooks';
import { diverging, inkOn } from '../colour.js';
import { html } from '../dom.js';
import { num, signed } from '../format.js';

const MOST_CELLS = 2000;

/**
 * @param {{
 *   rows: string[], columns: (string | number)[], values: import('../types').Num[], most: number, centre?: number, width: number, left: number,
 *   theme: import('../colour.js').Theme, significant?: (boolean | null)[] | null, flip?: boolean, selected: number, label: string, xlabel: string,
 *   ends: [string, string], say: (cell: number) => string, select: (cell: number) => void, preview?: (cell: number | null) => void,
 *   tall?: number, written?: (value: number) => string, strong?: boolean[], blank?: (cell: number) => boolean, slanted?: boolean,
 * }} props values: row by row; most: farthest from the centre; flip: what is above the centre is drawn as what is below
 */
export function Grid({ rows, columns, values, most, centre = 0, width, left, theme, significant, flip, selected, label, xlabel, ends, say, select, preview = () => {}, tall, written, strong, blank, slanted }) {
  const right = slanted ? 36 : 46;
  const cw = Math.min((width - left - right) / columns.length, slanted ? 64 : 40);
  const ch = Math.max(3, Math.min(tall ?? 24, Math.floor(400 / rows.length)));
  const gap = Math.min(cw, ch) >= 6 ? 1 : 0;
  const turn = cw < 52 ? -90 : -40; // upright where slanted words would meet
  const top = slanted ? 14 + 6.4 * Math.max(...columns.map((c) => String(c).length)) * Math.sin((-turn * Math.PI) / 180) : 4;
  const [high, wide] = [rows.length * ch, columns.length * cw];
  const bar = Math.min(150, Math.max(60, width - left - 150));
  const tone = (/** @type {number} */ v) => (flip ? centre - v : v - centre);
  const every = { row: [1, 2, 4, 8, 16, 32, 64].find((s) => s * ch >= 11) ?? 128, column: [1, 2, 5, 10, 20].find((s) => s * cw >= 22) ?? 50 };
  /** @param {any} event */
  const under = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const [c, r] = [Math.floor((event.clientX - box.left) / cw), Math.floor((event.clientY - box.top) / ch)];
    return c >= 0 && c < columns.length && r >= 0 && r < rows.length ? r * columns.length + c : null;
  };
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const n = columns.length;
    const [r, c] = [Math.floor(selected / n), selected % n];
    /** @type {Record<string, [number, number]>} */
    const moves = { ArrowRight: [r, c + 1], ArrowLeft: [r, c - 1], ArrowUp: [r - 1, c], ArrowDown: [r + 1, c], Home: [r, 0], End: [r, n - 1], PageUp: [0, c], PageDown: [rows.length - 1, c] };
    if (!moves[event.key]) return;
    event.preventDefault();
    const [toR, toC] = moves[event.key];
    select(Math.max(0, Math.min(rows.length - 1, toR)) * n + Math.max(0, Math.min(n - 1, toC)));
  };
  const cells = useMemo(() => draw(), [values, significant, most, theme, cw, ch]);
  function draw() {
    const colour = diverging(most, theme);
    const raster = values.length > MOST_CELLS ? document.createElement('canvas') : null;
    if (raster) [raster.width, raster.height] = [columns.length, rows.length];
    const pen = raster?.getContext('2d');
    let [missing, marks] = ['', /** @type {Record<string, string>} */ ({ '#000': '', '#fff': '' })];
    /** @type {any[]} */
    const inside = [];
    const drawn = values.map((v, i) => {
      const [r, c] = [Math.floor(i / columns.length), i % columns.length];
      const [x, y] = [left + c * cw, top + r * ch];
      if (blank?.(i)) return;
      if (v === null) return void (missing += `M${x},${y}h${cw - gap}v${ch - gap}h${gap - cw}z`);
      const fill = colour(tone(v));
      if (significant?.[i]) {
        const [cx, cy, size] = [x + (cw - gap) / 2, y + (ch - gap) / 2, Math.max(1, Math.min(cw, ch, 14) / 2 - 2.5)];
        marks[inkOn(fill)] += `M${cx - size},${cy}h${2 * size}${tone(v) < 0 ? '' : `M${cx},${cy - size}v${2 * size}`}`;
      }
      if (written && cw >= 30) inside.push(html`<text class=${strong?.[i] ? 'strong' : ''} x=${x + (cw - gap) / 2} y=${y + ch / 2 + 3.5} text-anchor="middle" style=${`fill:${inkOn(fill)}`}>${written(v)}</text>`);
      if (!pen) return html`<rect x=${x} y=${y} width=${cw - gap} height=${ch - gap} fill=${fill} />`;
      pen.fillStyle = fill;
      pen.fillRect(c, r, 1, 1);
    });
    return html`<g class="cells" aria-hidden="true">
      ${raster ? html`<image href=${raster.toDataURL()} x=${left} y=${top} width=${wide} height=${high} preserveAspectRatio="none" />` : drawn}
      <path class="missing" d=${missing} fill="url(#hatch)" />
      ${Object.entries(marks).map(([ink, d]) => d && html`<path class="glyph" d=${d} stroke=${ink} stroke-width="1.5" fill="none" />`)}</g>
      <g aria-hidden="true">${inside}</g>`;
  }
  const [r, c] = [Math.floor(selected / columns.length), selected % columns.length];
  const [x, y] = [left + c * cw, top + r * ch];
  const id = `scale-${label.replace(/\W+/g, '-')}`;
  const colour = diverging(1, theme);
  const under0 = top + high + (slanted ? 12 : 30);
  return html`<svg data-figure width=${width} height=${under0 + 26}>
    <defs><linearGradient id=${id}>${[...Array(9).keys()].map((i) => html`<stop offset=${i / 8} stop-color=${colour((flip ? -1 : 1) * (i / 4 - 1))} />`)}</linearGradient></defs>
    <g role="grid" aria-label=${label} aria-rowcount=${rows.length} aria-colcount=${columns.length}>
      <g aria-hidden="true">${rows.map((name, i) => i % every.row === 0 && html`<text x=${left - 7} y=${top + (i + 0.5) * ch + 3.5} text-anchor="end">${name}</text>`)}
        ${columns.map((name, i) => i % every.column === 0 && (slanted
          ? html`<text transform=${`translate(${left + (i + 0.5) * cw + (turn === -90 ? 3.5 : 0)} ${top - 6}) rotate(${turn})`}>${name}</text>`
          : html`<text x=${left + (i + 0.5) * cw} y=${top + high + 14} text-anchor="middle">${name}</text>`))}
        ${!slanted && html`<text x=${left + wide + 8} y=${top + high + 14}>${xlabel}</text>`}</g>
      ${cells}
      <g role="row" aria-rowindex=${r + 1}><g role="gridcell" tabindex="0" aria-colindex=${c + 1} aria-selected="true" aria-label=${say(selected)} onKeyDown=${key}>
        <rect class="halo" x=${x - 2.5} y=${y - 2.5} width=${cw - gap + 5} height=${ch - gap + 5} /><rect class="selected" x=${x - 1} y=${y - 1} width=${cw - gap + 2} height=${ch - gap + 2} />
      </g></g>
      <rect data-live class="hit" x=${left} y=${top} width=${wide} height=${high} aria-hidden="true" onPointerMove=${(/** @type {any} */ e) => preview(under(e))}
        onPointerLeave=${() => preview(null)} onClick=${(/** @type {any} */ e) => select(under(e) ?? selected)} />
    </g>
    <g aria-hidden="true">
      <text x=${left - 7} y=${under0 + 8.5} text-anchor="end">${ends[0]}</text><rect x=${left} y=${under0} width=${bar} height="9" fill=${`url(#${id})`} /><text x=${left + bar + 7} y=${under0 + 8.5}>${ends[1]}</text>
      <text x=${left} y=${under0 + 22}>${num(centre - most)}</text><text x=${left + bar / 2} y=${under0 + 22} text-anchor="middle">${num(centre)}</text>
      <text x=${left + bar} y=${under0 + 22} text-anchor="end">${centre ? num(centre + most) : signed(most)}</text>
    </g>
  </svg>`;
}
