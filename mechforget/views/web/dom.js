/** What every view shares: templates, and the width it has to draw in. */
import htm from 'htm';
import { h } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { visible } from './format.js';

export const html = htm.bind(h);

/** Marks are drawn at their real size, so that text keeps its size on every screen. */
export function useWidth() {
  const ref = useRef(/** @type {HTMLElement | null} */ (null));
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const measure = () => ref.current && setWidth(Math.floor(ref.current.clientWidth));
    const watch = new ResizeObserver(measure);
    if (ref.current) watch.observe(ref.current);
    measure();
    return () => watch.disconnect();
  }, []);
  return /** @type {const} */ ([ref, width]);
}

/**
 * Choices of which one is on.
 * @param {{label: string, options: {value: string, label?: string, disabled?: boolean}[], value: string, choose: (value: string) => void}} props
 */
export const Choice = ({ label, options, value, choose }) => html`
  <span class="choice" role="group" aria-label=${label}>
    <span class="of" aria-hidden="true">${label}</span>
    ${options.map(
      (o) => html`<button aria-pressed=${o.value === value} disabled=${o.disabled} onClick=${() => choose(o.value)}>${o.label ?? o.value}</button>`,
    )}
  </span>`;

/**
 * The layer that every view shows, by a slider.
 * @param {{view: {layer: {value: number}, chooseLayer: (layer: number) => void, data: import('./types').Bundle}, after?: boolean}} props
 */
export const LayerSlider = ({ view, after = false }) => html`
  <label class="slider">${after ? 'after layer' : 'layer'} <input type="range" min="0" max=${view.data.model.layers - 1} step="1" value=${view.layer.value} aria-valuetext=${`layer ${view.layer.value}`}
    onInput=${(/** @type {any} */ e) => view.chooseLayer(+e.target.value)} /><output>${view.layer.value}</output></label>`;

/** Prose of others in which `backticks` mark commands. @param {{text: string}} props */
export const Prose = ({ text }) => visible(text).split('`').map((part, i) => (i % 2 ? html`<code>${part}</code>` : part));
