/** Every panel as SVG, PNG and CSV; the data as JSON. Full precision, and the panel as it is seen. */

/** @param {import('./types').Table} table RFC 4180, empty where nothing was measured */
export function csv({ columns, rows }) {
  /** @param {unknown} value */
  const cell = (value) => {
    const text = value === null || value === undefined ? '' : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(',')).join('\r\n') + '\r\n';
}

// What the page's style sheet gives to a mark, and a file of its own must say itself.
const STYLES = [
  'fill', 'fill-opacity', 'stroke', 'stroke-width', 'stroke-dasharray', 'stroke-linecap', 'stroke-opacity', 'opacity',
  'font-family', 'font-size', 'font-style', 'font-weight', 'text-anchor', 'dominant-baseline', 'image-rendering', 'paint-order',
];
const SVG = 'http://www.w3.org/2000/svg';

/**
 * All figures of a panel in one standalone SVG, in their places, without what only the pointer needs.
 * @param {HTMLElement} panel @param {string} title @param {string} about
 */
export function svg(panel, title, about) {
  const figures = /** @type {SVGSVGElement[]} */ ([...panel.querySelectorAll('svg[data-figure]')]);
  const boxes = figures.map((f) => f.getBoundingClientRect());
  const left = Math.min(...boxes.map((b) => b.left));
  const top = Math.min(...boxes.map((b) => b.top));
  const pad = 12;
  const size = {
    width: Math.ceil(Math.max(...boxes.map((b) => b.right)) - left + 2 * pad),
    height: Math.ceil(Math.max(...boxes.map((b) => b.bottom)) - top + 2 * pad),
  };
  const sheet = make('svg', { xmlns: SVG, ...size, viewBox: `0 0 ${size.width} ${size.height}` });
  sheet.append(make('title', {}, title), make('desc', {}, about));
  sheet.append(make('rect', { ...size, fill: getComputedStyle(document.body).backgroundColor }));
  figures.forEach((figure, i) => {
    const copy = /** @type {SVGSVGElement} */ (figure.cloneNode(true));
    const originals = [figure, ...figure.querySelectorAll('*')];
    [copy, ...copy.querySelectorAll('*')].forEach((node, j) => freeze(node, originals[j]));
    copy.querySelectorAll('[data-live]').forEach((node) => node.remove());
    const { width, height } = boxes[i];
    const place = { x: boxes[i].left - left + pad, y: boxes[i].top - top + pad, width, height };
    for (const [key, value] of Object.entries(place)) copy.setAttribute(key, String(value));
    sheet.append(copy);
  });
  return new XMLSerializer().serializeToString(sheet);
}

/** @param {Element} node @param {Element} original */
function freeze(node, original) {
  const style = getComputedStyle(original);
  for (const key of STYLES) if (style.getPropertyValue(key)) node.setAttribute(key, style.getPropertyValue(key));
  for (const { name } of [...node.attributes]) if (/^(class|role|tabindex|style|aria-.*)$/.test(name)) node.removeAttribute(name);
}

/** @param {string} name @param {Record<string, string | number>} attributes */
function make(name, attributes, text = '') {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) if (key !== 'xmlns') node.setAttribute(key, String(value));
  node.textContent = text;
  return node;
}

/** At three times the size on screen: about 300 dpi in print. @param {string} text @returns {Promise<Blob>} */
export async function png(text) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = document.createElement('canvas');
  canvas.width = 3 * image.naturalWidth;
  canvas.height = 3 * image.naturalHeight;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob((blob) => done(/** @type {Blob} */ (blob))));
}

/** @param {string} name @param {Blob | string} content @param {string} type */
export function download(name, content, type) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
