/** Erased or misread? Probes for the right answer along depth, and at one depth with the verdict. */
import { html, LayerSlider, useWidth } from '../dom.js';
import { visible } from '../format.js';
import { Intervals } from '../marks/intervals.js';
import { Lines } from '../marks/lines.js';
import { Panel } from '../panel.js';

/** @typedef {import('../types').Readout} Readout */

const QUESTION = 'Is the answer erased or misread?';
/** @type {Record<string, {label: string, tone: 'pos' | 'neg' | 'mute' | 'ink', dash?: string, means: string}>} */
const PROBES = {
  pre: { label: 'before', tone: 'neg', means: 'fitted and read before' },
  as_is: { label: 'as is', tone: 'pos', means: 'fitted before, read after' },
  aligned: { label: 'aligned', tone: 'pos', dash: '5 3', means: 'fitted before, read after, turned back' },
  refit: { label: 'refit', tone: 'ink', means: 'fitted and read after' },
  shuffled: { label: 'chance', tone: 'mute', dash: '2 3', means: 'refit to exchanged answers' },
};

/** @param {{view: import('../state.js').View}} props */
export function ReadoutPanel({ view }) {
  const data = view.data.readout;
  const [ref, width] = useWidth();
  const [below, room] = useWidth();
  if (!data) return html`<${Panel} id="readout" question=${QUESTION} help="" empty=${view.data.empty.readout} />`;
  const at = view.layer.value + 1;
  const probes = Object.entries(data.probes);
  const rows = probes.map(([key, b]) => ({ key, label: PROBES[key]?.label ?? key, value: b.value[at] ?? 0, low: b.low[at], high: b.high[at], significant: true, tone: PROBES[key]?.tone ?? 'ink' }));
  return html`<${Panel} id="readout" question=${QUESTION} figure table=${() => table(data)}
    help=${`A linear probe finds the right answer among ${data.candidates} in the stream: the mean reciprocal rank is shown, and 1 means always first. 95 % intervals, n = ${data.n}.`}>
    <div ref=${ref}>${width > 0 && html`<${Lines} x=${data.depth} width=${width} unit="mean reciprocal rank" xlabel="layer" at=${at} label="Probes by layer" ends=${[0, 1]} choose=${(/** @type {number} */ i) => i > 0 && view.chooseLayer(i - 1)}
      inlet name=${(/** @type {number} */ d) => (d === 0 ? 'in' : String(d - 1))} series=${probes.map(([key, b]) => ({ ...(PROBES[key] ?? { label: key, tone: 'ink' }), ...b, ...(key === 'shuffled' || key === 'pre' || key === 'refit' ? {} : { low: null, high: null }) }))} />`}</div>
    <${LayerSlider} view=${view} after />
    <p class="word" role="status">After layer ${view.layer.value}: <b>${visible(data.verdict[at] ?? '–')}</b></p>
    <div ref=${below}>${room > 0 && html`<${Intervals} rows=${rows} width=${room} left=${64} unit="" signs=${false} ends=${[1]} label="Probes after this layer; the same numbers are in the table" />`}</div>
    <p class="help">${probes.map(([key]) => `${PROBES[key]?.label ?? key}: ${PROBES[key]?.means ?? ''}`).join('; ')}. Misread: the refitted probe finds what the old one misses. Erased: neither finds it.${data.caveat && ` ${visible(data.caveat)}.`}</p>
  <//>`;
}

/** @param {Readout} data */
const table = (data) => ({
  columns: ['layer', 'probe', 'mean_reciprocal_rank', 'low', 'high', 'verdict'],
  rows: data.depth.flatMap((d, i) => Object.entries(data.probes).map(([key, b]) => [d === 0 ? null : d - 1, key, b.value[i], b.low[i], b.high[i], data.verdict[i]])),
});
