/** What was not measured in this run, and what would measure it. */
import { html, Prose } from '../dom.js';
import { Panel } from '../panel.js';

const QUESTIONS = { circuit: 'What is the circuit?' };

/** @param {{view: import('../state.js').View}} props */
export function Missing({ view }) {
  const open = Object.entries(QUESTIONS).filter(([key]) => view.data.empty[key]);
  return open.length > 0 && html`
    <${Panel} id="missing" question="What was not measured in this run?" help="Each question, and what would answer it.">
      <dl class="missing">${open.map(([key, question]) => html`<dt>${question}</dt><dd><${Prose} text=${view.data.empty[key]} /></dd>`)}</dl>
    <//>`;
}
