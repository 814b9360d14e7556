/** The page: which panels there are, in which order, and what belongs to all of them. */
import { useSignal } from '@preact/signals';
import { render } from 'preact';
import { html } from './dom.js';
import { download } from './exports.js';
import { visible } from './format.js';
import { Attention } from './panels/attention.js';
import { Head } from './panels/head.js';
import { Heads } from './panels/heads.js';
import { Missing } from './panels/missing.js';
import { Prompts } from './panels/prompts.js';
import { Sure } from './panels/sure.js';
import { Trust } from './panels/trust.js';
import { Verdict } from './panels/verdict.js';
import { createView } from './state.js';

const PANELS = [Verdict, Heads, Head, Sure, Attention, Prompts, Trust, Missing];

/** @param {Element} root @param {import('./types').Host} host */
export function mount(root, host) {
  const view = createView(host);
  root.replaceChildren();
  render(html`<${Masthead} view=${view} /><main>${PANELS.map((P) => html`<${P} view=${view} />`)}</main>`, root);
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
