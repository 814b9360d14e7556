/** The page: which panels there are, in which order, and what belongs to all of them. */
import { useSignal } from '@preact/signals';
import { render } from 'preact';
import { html } from './dom.js';
import { download } from './exports.js';
import { visible } from './format.js';
import { AgreementPanel } from './panels/agreement.js';
import { Attention } from './panels/attention.js';
import { ClaimsPanel } from './panels/claims.js';
import { DriftPanel } from './panels/drift.js';
import { Glossary } from './panels/glossary.js';
import { Head } from './panels/head.js';
import { Heads } from './panels/heads.js';
import { InterferencePanel } from './panels/interference.js';
import { LandscapePanel } from './panels/landscape.js';
import { LedgerPanel } from './panels/ledger.js';
import { Missing } from './panels/missing.js';
import { PlainTables } from './panels/plain.js';
import { Prompts } from './panels/prompts.js';
import { ReadoutPanel } from './panels/readout.js';
import { RoutingPanel } from './panels/routing.js';
import { Sure } from './panels/sure.js';
import { Trust } from './panels/trust.js';
import { Verdict } from './panels/verdict.js';
import { createView } from './state.js';

/** @type {[keyof import('./types').Bundle, any][]} those that were measured come first, the empty ones are small */
const MECHANISMS = [
  ['drift', DriftPanel], ['interference', InterferencePanel], ['landscape', LandscapePanel], ['ledger', LedgerPanel],
  ['readout', ReadoutPanel], ['agreement', AgreementPanel], ['routing', RoutingPanel], ['claims', ClaimsPanel],
];

/** @param {import('./types').Bundle} data */
function panels(data) {
  const there = MECHANISMS.filter(([key]) => data[key]);
  const rest = MECHANISMS.filter(([key]) => !data[key]);
  return [Verdict, Heads, Head, Sure, Attention, Prompts, ...[...there, ...rest].map(([, P]) => P), PlainTables, Trust, Missing, Glossary];
}

/** @param {Element} root @param {import('./types').Host} host */
export function mount(root, host) {
  const view = createView(host);
  root.replaceChildren();
  render(html`<${Masthead} view=${view} /><main>${panels(host.data).map((P) => html`<${P} view=${view} />`)}</main>`, root);
}

/** @param {{view: import('./state.js').View}} props */
function Masthead({ view }) {
  const { data, theme } = view;
  const { meta, model } = data;
  const copied = useSignal('');
  const copy = async () => {
    const write = navigator.clipboard?.writeText(location.href) ?? Promise.reject();
    copied.value = await write.then(() => 'Copied.', () => 'The address bar has it.');
  };
  const dark = theme.value === 'dark';
  return html`<header class="masthead">
    <div>
      <h1>${visible(meta.title)}</h1>
      <p class="help"><b>${visible(meta.pre)}</b> → <b>${visible(meta.post)}</b> · old task ${visible(meta.task)}${meta.new_task && `, new task ${visible(meta.new_task)}`} · ${meta.n_prompts} prompts · ${model.name}, ${model.layers} × ${model.heads} heads</p>
    </div>
    <nav aria-label="Report">
      <span role="status">${copied.value}</span>
      <button onClick=${copy}>Copy link to this view</button>
      <button onClick=${() => download('mechforget.json', JSON.stringify(data), 'application/json')}>Data (JSON)</button>
      <button aria-pressed=${dark} onClick=${() => (theme.value = dark ? 'light' : 'dark')}>Dark</button>
    </nav>
  </header>`;
}
