/**
 * Blue, neutral, brown: the halves of ColorBrewer's RdBu and PuOr, told apart under protan, deutan
 * and tritan loss. Zero is white on white paper; on dark paper it is the paper.
 */
import { scaleLinear } from 'd3-scale';

/** @typedef {'light' | 'dark'} Theme */

const STOPS = {
  light: ['#2166ac', '#4393c3', '#92c5de', '#d1e5f0', '#f7f7f7', '#fee0b6', '#fdb863', '#e08214', '#b35806'],
  dark: ['#8ec5ff', '#4f97dc', '#2b6cb0', '#23415f', '#20262d', '#4f3820', '#8a5a1c', '#c9802b', '#ffb55c'],
};

/**
 * A value's colour on a scale from -most to +most.
 * @param {number} most @param {Theme} theme @returns {(value: number) => string}
 */
export function diverging(most, theme) {
  const stops = STOPS[theme];
  return scaleLinear().domain(stops.map((_, i) => ((i - 4) / 4) * (most || 1))).range(stops).clamp(true);
}

/** Ink that reads on that colour: "rgb(r, g, b)" in, black or white out. @param {string} colour */
export function inkOn(colour) {
  const [r, g, b] = (colour.match(/\d+/g) ?? []).map((c) => {
    const x = +c / 255;
    return x < 0.04 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b < 0.179 ? '#fff' : '#000';
}
