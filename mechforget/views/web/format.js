/** Numbers and tokens as text: 3 significant digits, a true minus, nothing invisible. */

const SUPERSCRIPT = '⁰¹²³⁴⁵⁶⁷⁸⁹';

/** @param {number | null | undefined} x */
export function num(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return '–';
  if (x === 0) return '0';
  const size = Math.abs(x);
  return (x < 0 ? '−' : '') + magnitude(size);
}

/** @param {number} size */
function magnitude(size) {
  if (size >= 1e-4 && size < 999.5) return size.toPrecision(3);
  if (size >= 999.5 && size < 1e6) return Math.round(size).toLocaleString('en-US');
  const [digits, power] = size.toExponential(2).split('e');
  const raised = power.replace('+', '').replace('-', '⁻').replace(/\d/g, (d) => SUPERSCRIPT[+d]);
  return `${digits}×10${raised}`;
}

/**
 * All numbers of one axis with the same decimals, as many as its largest can use: a column that reads as one.
 * @param {number} most @returns {(x: number | null | undefined) => string}
 */
export function aligned(most) {
  const decimals = most > 0 ? Math.max(0, Math.min(6, 4 - Math.ceil(Math.log10(most)))) : 0;
  return (x) => (x === null || x === undefined ? '–' : `${x < 0 ? '−' : ''}${Math.abs(x).toFixed(decimals)}`.replace(/^−(0\.?0*)$/, '$1'));
}

/** With its sign, for effects and changes. @param {number | null | undefined} x */
export const signed = (x) => (x !== null && x !== undefined && x > 0 ? '+' : '') + num(x);

/** @param {number | null | undefined} x */
export const percent = (x) => (x === null || x === undefined ? '–' : `${num(100 * x)}\u00a0%`);

/**
 * @param {number | null | undefined} low
 * @param {number | null | undefined} high
 */
export const range = (low, high, write = num) =>
  low === null || low === undefined || high === null || high === undefined ? 'no interval' : `${write(low)} to ${write(high)}`;

/** Text that others wrote with ASCII hyphens for minus signs. @param {string} text */
export const minus = (text) => text.replace(/(^|[\s(])-(?=[\d.])/g, '$1−');

/** @param {string} metric */
export const words = (metric) => metric.replaceAll('_', ' ');

const NAMED = new Map([['\n', '⏎'], ['\t', '⇥'], ['\r', '␍'], ['\x7f', '␡']]);
// Cc, bidirectional and zero-width controls, BOM, specials: a reader must see that they are there.
const INVISIBLE = /[\p{Cc}\p{Cf}\u2028\u2029\ufff9-\ufffb]/gu;

/** A token or prompt with every invisible character shown as a glyph. @param {string} text */
export function visible(text) {
  return text.toWellFormed().replace(INVISIBLE, (c) => {
    const code = /** @type {number} */ (c.codePointAt(0));
    return NAMED.get(c) ?? (code < 32 ? String.fromCharCode(0x2400 + code) : `⟨U+${code.toString(16).toUpperCase().padStart(4, '0')}⟩`);
  });
}

/** A single token: spaces at its ends are part of it. @param {string} text */
export const token = (text) => visible(text).replace(/^ +| +$/g, (s) => '␣'.repeat(s.length)) || '∅';
