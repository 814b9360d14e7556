/** What was forgotten, where, how sure: the sentence, and up to four figures with interval and control. */
import { html, Prose } from '../dom.js';
import { minus, num, range, signed, visible, words } from '../format.js';
import { Panel } from '../panel.js';

/** @param {{view: import('../state.js').View}} props */
export function Verdict({ view }) {
  const { verdict, checks, forgetting, meta } = view.data;
  const failed = checks.filter((c) => !c.pass);
  const prompts = `${meta.n_prompts} prompts in ${meta.n_clusters} clusters`;
  const none = forgetting.every((f) => f.low == null);
  return html`
    <${Panel} id="verdict" question="What was forgotten, where, and how sure?" table=${() => table(view.data)}
      help=${none ? `${prompts} are too few for intervals.` : `95 % intervals from ${prompts}. They speak of prompts, not of other training seeds.`}>
      ${failed.length > 0 && html`<div class="warning strong" role="alert">
        <b>Do not trust the numbers below: ${failed.length === 1 ? 'a self-check' : `${failed.length} self-checks`} failed.</b>
        ${failed.map((c) => html`<span>${visible(c.name)}: ${visible(c.detail)}.</span>`)}
      </div>`}
      <div class="verdict" data-state=${failed.length ? 'failed' : verdict.forgetting ? 'forgetting' : 'none'}>
        <div>
          <p class="sentence">${visible(verdict.sentence)}</p>
          ${(verdict.lines ?? []).filter((l) => l !== verdict.sentence).map((l) => html`<p class="line">${visible(l)}</p>`)}
          ${(verdict.warnings ?? []).map((w) => html`<p class="warning"><${Prose} text=${w} /></p>`)}
        </div>
        <div class="figures">${verdict.figures.slice(0, 4).map((f) => html`<${Figure} ...${f} />`)}</div>
      </div>
      <div class="scroll" tabindex="0" role="region" aria-label="Forgetting by metric"><table class="metrics">
        <thead><tr><th scope="col">task</th><th scope="col">metric</th><th scope="col" class="n">before</th><th scope="col" class="n">after</th><th scope="col" class="n">change</th><th scope="col" class="n">95 % interval</th><th scope="col" class="n">p</th><th scope="col" class="n">n</th></tr></thead>
        <tbody>${forgetting.map((f) => html`<tr>
          <td>${f.task ?? 'old'}</td><td>${words(f.metric)}${f.unit && html` <span class="unit">${f.unit}</span>`}</td><td class="n">${num(f.pre)}</td><td class="n">${num(f.post)}</td>
          <td class=${f.significant ? 'n strong' : 'n'}>${signed(f.change)}</td><td class="n">${range(f.low, f.high)}</td><td class="n">${num(f.p)}</td><td class="n">${f.n}</td></tr>`)}</tbody>
      </table></div>
    <//>`;
}

/** @param {import('../types').Figure} props */
function Figure({ value, label, interval, control, panel }) {
  const body = html`<b>${minus(value)}</b><span>${visible(label)}</span>
    ${interval && html`<span>${minus(interval)}</span>`}${control && html`<span>${minus(visible(control))}</span>`}`;
  return panel ? html`<button class="figure" onClick=${() => go(panel)}>${body}</button>` : html`<div class="figure">${body}</div>`;
}

/** The address holds the selection, so a link to a panel moves the focus instead. @param {string} panel */
function go(panel) {
  const title = document.getElementById(`title-${panel}`);
  title?.scrollIntoView({ block: 'start' });
  title?.focus({ preventScroll: true });
}

/** @param {import('../types').Bundle} data */
const table = (data) => ({
  columns: ['task', 'metric', 'unit', 'pre', 'post', 'change', 'change_low', 'change_high', 'p', 'n', 'significant'],
  rows: data.forgetting.map((f) => [f.task ?? 'old', f.metric, f.unit, f.pre, f.post, f.change, f.low, f.high, f.p, f.n, f.significant]),
});
