/** Do the mechanisms point at the same heads? Rank correlations over heads of every two measures. */
import { useSignal } from '@preact/signals';
import { html, useWidth } from '../dom.js';
import { num, range, signed, visible, words } from '../format.js';
import { Grid } from '../marks/grid.js';
import { Hatch } from '../marks/heat.js';
import { Panel } from '../panel.js';

const QUESTION = 'Do the mechanisms point at the same heads?';

/** @param {{view: import('../state.js').View}} props */
export function AgreementPanel({ view }) {
  const data = view.data.agreement;
  const [ref, width] = useWidth();
  const chosen = useSignal(0);
  const over = useSignal(/** @type {number | null} */ (null));
  if (!data) return html`<${Panel} id="agreement" question=${QUESTION} help="" empty=${view.data.empty.agreement} />`;
  const { names, pairs } = data;
  const n = names.length;
  /** @param {number} i */
  const pair = (i) => {
    const [a, b] = [names[Math.floor(i / n)], names[i % n]];
    return pairs.find((p) => (p.a === a && p.b === b) || (p.a === b && p.b === a));
  };
  const all = Array.from({ length: n * n }, (_, i) => pair(i));
  const sure = all.map((p) => p != null && p.low != null && p.high != null && (p.low > 0 || p.high < 0));
  const first = all.findIndex(Boolean);
  const selected = chosen.value || Math.max(0, first);
  /** @param {number} i */
  const say = (i) => {
    const [a, b] = [names[Math.floor(i / n)], names[i % n]].map((name) => visible(`${words(name)} (${data.means[name]})`).replace(' ()', ''));
    const p = all[i];
    if (a === b) return a;
    return p ? `${a} and ${b}: ${signed(p.spearman)} (${range(p.low, p.high)}) over ${p.n} heads` : `${a} and ${b}: not both measured`;
  };
  return html`<${Panel} id="agreement" question=${QUESTION} figure table=${() => ({ columns: ['a', 'b', 'spearman', 'low', 'high', 'n'], rows: pairs.map((p) => [p.a, p.b, p.spearman, p.low, p.high, p.n]) })}
    help="Spearman’s rank correlation, over heads, of the absolute values of every two measures; 1 means the same order. Bold: the 95 % interval excludes 0.">
    <div ref=${ref}>${width > 0 && html`<svg width="0" height="0" aria-hidden="true"><${Hatch} /></svg><${Grid} rows=${names.map((x) => visible(words(x)))} columns=${names.map((x) => visible(words(x)))} values=${all.map((p) => p?.spearman ?? null)} most=${1} width=${width} left=${84}
      theme=${view.theme.value} strong=${sure} blank=${(/** @type {number} */ i) => Math.floor(i / n) === i % n} selected=${selected} label="Rank correlation of measures over heads" xlabel="" ends=${['opposed', 'the same']} slanted tall=${30}
      written=${(/** @type {number} */ v) => (v < 0 ? '−' : '') + Math.abs(v).toFixed(2).replace(/^0/, '')} say=${say} select=${(/** @type {number} */ i) => (chosen.value = i)} preview=${(/** @type {number | null} */ i) => (over.value = i)} />`}</div>
    <p class="readout" role="status">${say(over.value ?? selected)}</p>
  <//>`;
}
