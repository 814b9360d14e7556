/** Three attention patterns side by side, drawn on canvas, one scale from -1 to 1. */
import { useMemo } from 'preact/hooks';
import { diverging } from '../colour.js';
import { html } from '../dom.js';
import { token } from '../format.js';

/** @typedef {(query: number, key: number) => number} Read */

/**
 * @param {{read: {before: Read, after: Read, change: Read}, tokens: string[], query: number, width: number, theme: import('../colour.js').Theme,
 *   choose: (query: number) => void, preview: (cell: [number, number] | null) => void}} props
 */
export function Triangles({ read, tokens, query, width, theme, choose, preview }) {
  const n = tokens.length;
  const gap = 14;
  const named = width > 480 && n <= 40;
  const left = named ? 76 : 4;
  const side = Math.min(300, Math.floor((width - left - 2 * gap - 4) / 3));
  const cell = side / n;
  const step = Math.ceil(11 / cell);
  const bottom = named ? 70 : 4;
  const top = 20;
  const images = useMemo(() => [read.before, read.after, read.change].map((f) => raster(f, n, theme)), [read, theme]);
  /** @param {any} event @returns {[number, number] | null} */
  const under = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const [q, k] = [Math.floor((event.clientY - box.top) / cell), Math.floor((event.clientX - box.left) / cell)];
    return k <= q && q < n && k >= 0 ? [q, k] : null;
  };
  const scale = diverging(1, theme);
  /** @param {number} i */
  const label = (i) => clip(token(tokens[i]));
  const ticks = [...tokens.keys()].filter((i) => i % step === 0);
  const height = top + side + bottom + 28;
  return html`<svg data-figure width=${width} height=${height} role="img" aria-label="Attention before, after and its change; the same numbers are in the table">
    <defs><linearGradient id="attention-scale">${[...Array(9).keys()].map((i) => html`<stop offset=${i / 8} stop-color=${scale(i / 4 - 1)} />`)}</linearGradient></defs>
    ${named && ticks.map((i) => html`<text class=${i === query ? 'ink' : ''} x=${left - 6} y=${top + (i + 0.5) * cell + 3.5} text-anchor="end">${label(i)}</text>`)}
    ${['before', 'after', 'after − before'].map((title, t) => {
      const x = left + t * (side + gap);
      return html`<g transform=${`translate(${x} ${top})`}>
        <text class="ink" x="0" y="-7">${title}</text>
        <path class="outline" d=${`M0,0V${side}H${side}z`} />
        <image href=${images[t]} width=${side} height=${side} preserveAspectRatio="none" />
        <rect class="selected" x="0" y=${query * cell} width=${(query + 1) * cell} height=${cell} />
        ${named && ticks.map((i) => html`<text transform=${`translate(${(i + 0.5) * cell + 3.5} ${side + 6}) rotate(-90)`} text-anchor="end">${label(i)}</text>`)}
        <rect data-live class="hit" width=${side} height=${side} onPointerMove=${(/** @type {any} */ e) => preview(under(e))} onPointerLeave=${() => preview(null)}
          onClick=${(/** @type {any} */ e) => choose(under(e)?.[0] ?? query)} />
      </g>`;
    })}
    <g transform=${`translate(${left} ${height - 22})`}>
      <text x="0" y="8.5">−1</text><rect x="18" y="0" width="140" height="9" fill="url(#attention-scale)" /><text x="88" y="19" text-anchor="middle">0</text><text x="163" y="8.5">+1</text>
      <text x="190" y="8.5">share of a row’s attention</text>
    </g>
  </svg>`;
}

/** @param {string} text */
const clip = (text) => ([...text].length > 10 ? `${[...text].slice(0, 9).join('')}…` : text);

/** Eight pixels a cell, so that a print program that smooths images keeps the edges. @param {Read} read @param {number} n @param {import('../colour.js').Theme} theme */
function raster(read, n, theme) {
  const colour = diverging(1, theme);
  const canvas = document.createElement('canvas');
  const size = Math.max(1, Math.min(8, Math.floor(1024 / n)));
  canvas.width = canvas.height = n * size;
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
  for (let q = 0; q < n; q++) {
    for (let k = 0; k <= q; k++) {
      pen.fillStyle = colour(read(q, k));
      pen.fillRect(k * size, q * size, size, size);
    }
  }
  return canvas.toDataURL();
}
