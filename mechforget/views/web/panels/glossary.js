/** What do the words mean? The project's glossary, built into the page. */
import text from '../../../../docs/glossary.md';
import { html, Prose } from '../dom.js';
import { Panel } from '../panel.js';

/** @typedef {{title: string, terms: [string, string][]}} Section */

export function Glossary() {
  return html`
    <${Panel} id="glossary" question="What do the words mean?" help="Every term of this report, in a sentence or two and a formula.">
      <details>
        <summary>Show the glossary</summary>
        <div class="glossary">${sections(text).map(({ title, terms }) => html`
          <h3>${title}</h3>
          <dl class="missing">${terms.map(([term, meaning]) => html`<dt>${term}</dt><dd><${Prose} text=${meaning} /></dd>`)}</dl>`)}
        </div>
      </details>
    <//>`;
}

/** Headings, and under each a list of `- **term**: meaning`. @param {string} markdown @returns {Section[]} */
function sections(markdown) {
  return markdown.split(/^## /m).slice(1).map((part) => {
    const [title, ...lines] = part.split('\n');
    const items = lines.join('\n').split(/^- /m).slice(1).map((item) => item.replace(/\s+/g, ' ').trim());
    return { title, terms: items.map((item) => /** @type {[string, string]} */ (parted(item))) };
  });
}

/** @param {string} item */
function parted(item) {
  const [, term, meaning] = /^\*\*(.+?)\*\*:? *(.*)$/.exec(item) ?? ['', '', item];
  return [term, meaning.replaceAll('*', '').replace(/^: /, '')];
}
