/** How does this compare with the paper? Each claim, what was found on this pair, and the verdict. */
import { useSignal } from '@preact/signals';
import { html } from '../dom.js';
import { num, range, visible } from '../format.js';
import { Panel } from '../panel.js';

const QUESTION = 'How does this compare with the paper?';
/** @type {Record<string, [string, string]>} glyph and class; words carry the meaning, colour only repeats it */
const VERDICTS = { supported: ['✓', 'supported'], 'not supported': ['✕', 'refuted'] };

/** @param {{view: import('../state.js').View}} props */
export function ClaimsPanel({ view }) {
  const claims = view.data.claims;
  const open = useSignal(/** @type {number | null} */ (null));
  if (!claims) return html`<${Panel} id="claims" question=${QUESTION} help="" empty=${view.data.empty.claims} />`;
  const count = (/** @type {string} */ verdict) => claims.filter((c) => c.verdict === verdict).length;
  return html`<${Panel} id="claims" question=${QUESTION} table=${() => table(claims)}
    help=${`arXiv 2601.18699, each claim against this pair: ${count('supported')} supported, ${count('not supported')} not, ${claims.length - count('supported') - count('not supported')} cannot be told from these data. One pair of checkpoints does not prove a general claim.`}>
    <div class="scroll" tabindex="0" role="region" aria-label="Claims of the paper"><table class="claims" role="table">
      <thead><tr role="row"><th scope="col" class="n">#</th><th scope="col">claim</th><th scope="col">paper</th><th scope="col" class="n here">here</th><th scope="col">verdict</th><th scope="col">why</th><th scope="col"><span class="vh">how</span></th></tr></thead>
      <tbody role="rowgroup">${claims.map((c, i) => html`<tr role="row">
        <td role="cell" class="n number">${c.claim}</td><td role="cell" class="claim">${visible(c.text)}</td><td role="cell" class="paper">${visible(c.paper)}</td>
        <td role="cell" class="n here">${c.value === null ? '–' : html`${num(c.value)}${c.unit && html` <span class="unit">${visible(c.unit)}</span>`}<small>${range(c.low, c.high)}${!c.n ? '' : `, n = ${Number.isInteger(c.n) ? c.n : num(c.n)}`}</small>`}</td>
        <td role="cell" class=${`said ${VERDICTS[c.verdict]?.[1] ?? 'open'}`}><b aria-hidden="true">${VERDICTS[c.verdict]?.[0] ?? '?'}</b> ${visible(c.verdict)}</td>
        <td role="cell" class="why">${visible(c.why)}${open.value === i && html`<code class="how" id=${`how-${i}`}>${visible(c.how)}</code>`}</td>
        <td role="cell" class="more">${c.how && html`<button class="plain" aria-expanded=${open.value === i} aria-label=${`How claim ${c.claim} is tested`} onClick=${() => (open.value = open.value === i ? null : i)}>how</button>`}</td></tr>`)}</tbody>
    </table></div>
  <//>`;
}

/** @param {import('../types').Claim[]} claims */
const table = (claims) => ({
  columns: ['claim', 'text', 'paper', 'value', 'low', 'high', 'n', 'unit', 'verdict', 'why', 'how'],
  rows: claims.map((c) => [c.claim, c.text, c.paper, c.value, c.low, c.high, c.n, c.unit, c.verdict, c.why, c.how]),
});
