/** The frame of every panel: question, one line of reading help, exports, table twin, empty state. */
import { useSignal } from '@preact/signals';
import { useRef } from 'preact/hooks';
import { html, Prose } from './dom.js';
import { csv, download, png, svg } from './exports.js';
import { num, visible } from './format.js';

/**
 * @typedef {import('./types').Table} Table
 * @param {{
 *   id: string, question: any, help: any, children?: any, empty?: string | null, figure?: boolean,
 *   table?: () => Table, about?: () => string,
 * }} props figure: there is an SVG to export; table: the same numbers as rows
 */
export function Panel({ id, question, help, children, empty, figure = false, table, about = () => '' }) {
  const ref = useRef(/** @type {HTMLElement | null} */ (null));
  const twin = useSignal(false);
  const drawn = () => svg(/** @type {HTMLElement} */ (ref.current), /** @type {HTMLElement} */ (ref.current?.querySelector('h2')).innerText, about());
  const tools = !empty && html`
    <div class="tools" role="group" aria-label="Table and exports">
      ${figure && table && html`<button aria-pressed=${twin.value} onClick=${() => (twin.value = !twin.value)}>Table</button>`}
      ${figure && html`<button disabled=${twin.value} onClick=${() => download(`${id}.svg`, drawn(), 'image/svg+xml')}>SVG</button>`}
      ${figure && html`<button disabled=${twin.value} onClick=${async () => download(`${id}.png`, await png(drawn()), 'image/png')}>PNG</button>`}
      ${table && html`<button onClick=${() => download(`${id}.csv`, csv(table()), 'text/csv')}>CSV</button>`}
    </div>`;
  return html`
    <section ref=${ref} id=${`panel-${id}`} class=${`panel ${empty ? 'vacant' : ''}`} aria-labelledby=${`title-${id}`}>
      <header>
        <h2 id=${`title-${id}`} tabindex="-1">${question}</h2>
        ${tools}
        ${help && html`<p class="help">${help}</p>`}
      </header>
      ${empty ? html`<p class="empty"><${Prose} text=${empty} /></p>` : twin.value && table ? html`<${Twin} table=${table()} label=${id} />` : children}
    </section>`;
}

const LONGEST = 500;

/** The numbers behind a figure. @param {{table: Table, label: string}} props */
export function Twin({ table: { columns, rows }, label }) {
  const numeric = columns.map((_, c) => rows.some((r) => typeof r[c] === 'number'));
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label=${`Table: ${label}`}>
      <table>
        <thead><tr>${columns.map((c, i) => html`<th scope="col" class=${numeric[i] ? 'n' : ''}>${c.replaceAll('_', ' ')}</th>`)}</tr></thead>
        <tbody>${rows.slice(0, LONGEST).map((r) => html`<tr>${r.map((x, i) => html`<td class=${numeric[i] ? 'n' : ''}>${show(x)}</td>`)}</tr>`)}</tbody>
      </table>
      ${rows.length > LONGEST && html`<p class="help">The first ${LONGEST} of ${num(rows.length)} rows; the CSV has all.</p>`}
    </div>`;
}

/** @param {import('./types').Row[number]} value */
function show(value) {
  if (typeof value === 'number') return Number.isInteger(value) ? String(value).replace('-', '−') : num(value);
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  return value === null || value === undefined ? '–' : visible(value);
}
