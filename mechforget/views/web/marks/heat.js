/** A layer x head map: one focusable cell, arrow keys, a raster instead of cells above 2,000. */
import { useMemo } from 'preact/hooks';
import { diverging, inkOn } from '../colour.js';
import { html } from '../dom.js';

export const LEFT = 66;
const RIGHT = 88; // "peak −0.340" in the widest of the fallback fonts
const MOST_CELLS = 2000;

/** Pixels of a cell for a map of this shape. @param {number} width @param {number} layers @param {number} heads */
export function geometry(width, layers, heads) {
  const cw = Math.min((width - LEFT - RIGHT) / layers, 40);
  const ch = Math.max(3, Math.min(24, Math.floor(400 / heads), Math.ceil(cw * 1.3)));
  return { cw, ch, right: LEFT + cw * layers, gap: Math.min(cw, ch) >= 6 ? 1 : 0 };
}
/** @typedef {ReturnType<typeof geometry>} Geometry */

/**
 * @param {{
 *   map: import('../maps.js').HeadMap, layers: number, heads: number, at: Geometry, theme: import('../colour.js').Theme,
 *   onlySignificant: boolean, selected: number, pinned: number[], outlined: number[], say: (head: number) => string,
 *   select: (head: number) => void, pin: (head: number) => void, preview: (head: number | null) => void,
 * }} props
 */
export function Heat({ map, layers, heads, at, theme, onlySignificant, selected, pinned, outlined, say, select, pin, preview }) {
  const { cw, ch } = at;
  const height = heads * ch;
  /** @param {PointerEvent} event */
  const under = (event) => {
    const box = /** @type {Element} */ (event.currentTarget).getBoundingClientRect();
    const layer = Math.floor((event.clientX - box.left) / cw);
    const head = Math.floor((event.clientY - box.top) / ch);
    return layer >= 0 && layer < layers && head >= 0 && head < heads ? layer * heads + head : null;
  };
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const [l, h] = [Math.floor(selected / heads), selected % heads];
    /** @type {Record<string, [number, number]>} */
    const moves = {
      ArrowRight: [l + 1, h], ArrowLeft: [l - 1, h], ArrowUp: [l, h - 1], ArrowDown: [l, h + 1],
      Home: [0, h], End: [layers - 1, h], PageUp: [l, 0], PageDown: [l, heads - 1],
    };
    if (event.key === 'Enter' || event.key === ' ') pin(selected);
    else if (moves[event.key]) {
      const [toL, toH] = moves[event.key];
      select(Math.max(0, Math.min(layers - 1, toL)) * heads + Math.max(0, Math.min(heads - 1, toH)));
    } else return;
    event.preventDefault();
  };
  // The cells do not depend on the selection: moving it must not touch thousands of nodes.
  const cells = useMemo(() => draw({ map, layers, heads, at, theme, onlySignificant }), [map, at.cw, at.ch, theme, onlySignificant]);
  /** Around the cell, never over it. @param {number} i @param {string} name @param {number} out */
  const frame = (i, name, out) => html`<rect class=${name} x=${LEFT + Math.floor(i / heads) * cw - out} y=${(i % heads) * ch - out}
    width=${cw - at.gap + 2 * out} height=${ch - at.gap + 2 * out} />`;
  return html`
    <g role="grid" aria-label=${`Heads by layer: ${layers} layers, ${heads} heads each`} aria-rowcount=${heads} aria-colcount=${layers}>
      <${Axis} layers=${layers} heads=${heads} at=${at} />
      ${cells}
      ${outlined.map((i) => frame(i, 'outlined', 0.5))}
      ${pinned.map((i) => frame(i, 'pinned', 1))}
      <g role="row" aria-rowindex=${(selected % heads) + 1}>
        <g role="gridcell" tabindex="0" aria-colindex=${Math.floor(selected / heads) + 1} aria-selected="true" aria-label=${say(selected)} onKeyDown=${key}>
          ${frame(selected, 'halo', 2.5)}${frame(selected, 'selected', 1)}
        </g>
      </g>
      <rect data-live class="hit" x=${LEFT} y="0" width=${cw * layers} height=${height} aria-hidden="true"
        onPointerMove=${(/** @type {any} */ e) => preview(under(e))} onPointerLeave=${() => preview(null)}
        onDblClick=${(/** @type {any} */ e) => pin(under(e) ?? selected)} onClick=${(/** @type {any} */ e) => select(under(e) ?? selected)} />
    </g>`;
}

/** @param {{layers: number, heads: number, at: Geometry}} props */
function Axis({ layers, heads, at: { cw, ch } }) {
  const step = [1, 2, 5, 10, 20].find((s) => s * ch >= 12) ?? 50;
  const rows = [...Array(heads).keys()].filter((h) => h % step === 0);
  return html`<g aria-hidden="true">
    <text x="0" y=${(heads * ch) / 2 + 4}>head</text>
    ${rows.map((h) => html`<text x=${LEFT - 7} y=${Math.max(8.5, h * ch + ch / 2 + 3.5)} text-anchor="end">${h}</text>`)}
  </g>`;
}

/** @param {{layers: number, at: Geometry, y: number}} props */
export function LayerAxis({ layers, at: { cw, right }, y }) {
  const step = [1, 2, 5, 10, 20].find((s) => s * cw >= 22) ?? 50;
  return html`<g aria-hidden="true">
    ${[...Array(layers).keys()].filter((l) => l % step === 0).map((l) => html`<text x=${LEFT + (l + 0.5) * cw} y=${y} text-anchor="middle">${l}</text>`)}
    <text x=${right + 8} y=${y}>layer</text>
  </g>`;
}

/** @param {Pick<Parameters<typeof Heat>[0], 'map' | 'layers' | 'heads' | 'at' | 'theme' | 'onlySignificant'>} props */
function draw({ map: { stats, most }, layers, heads, at: { cw, ch, gap }, theme, onlySignificant }) {
  const colour = diverging(most, theme);
  /** @type {Record<string, string>} one path per kind of mark, by ink */
  const paths = { '#000+': '', '#000−': '', '#fff+': '', '#fff−': '' };
  let missing = '';
  let hidden = '';
  const raster = layers * heads > MOST_CELLS ? document.createElement('canvas') : null;
  if (raster) [raster.width, raster.height] = [layers, heads];
  const pen = raster?.getContext('2d');
  const cells = stats.effect.map((value, i) => {
    const [l, h] = [Math.floor(i / heads), i % heads];
    const [x, y] = [LEFT + l * cw, h * ch];
    const box = `M${x},${y}h${cw - gap}v${ch - gap}h${gap - cw}z`;
    if (value === null) return void (missing += box);
    if (onlySignificant && !stats.significant?.[i]) return void (hidden += box);
    const fill = colour(value);
    if (stats.significant?.[i]) {
      const [cx, cy, r] = [x + (cw - gap) / 2, y + (ch - gap) / 2, Math.max(1, Math.min(cw, ch, 14) / 2 - 2.5)];
      paths[inkOn(fill) + (value < 0 ? '−' : '+')] += `M${cx - r},${cy}h${2 * r}${value < 0 ? '' : `M${cx},${cy - r}v${2 * r}`}`;
    }
    if (!pen) return html`<rect x=${x} y=${y} width=${cw - gap} height=${ch - gap} fill=${fill} />`;
    pen.fillStyle = fill;
    pen.fillRect(l, h, 1, 1);
  });
  return html`<g class="cells" aria-hidden="true">
    ${raster
      ? html`<image href=${raster.toDataURL()} x=${LEFT} y="0" width=${cw * layers} height=${ch * heads} preserveAspectRatio="none" />`
      : cells}
    <path class="hidden" d=${hidden} />
    <path class="missing" d=${missing} fill="url(#hatch)" />
    ${Object.entries(paths).map(([ink, d]) => d && html`<path class="glyph" d=${d} stroke=${ink.slice(0, 4)} stroke-width="1.5" fill="none" />`)}
  </g>`;
}

/** Missing is hatched. */
export const Hatch = () => html`<defs><pattern id="hatch" width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
  <line class="hatching" x1="0" y1="0" x2="0" y2="4" /></pattern></defs>`;
