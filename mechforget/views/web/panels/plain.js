/** A measure without a figure of its own: its question, and its table. */
import { html } from '../dom.js';
import { num, visible } from '../format.js';
import { Panel, Twin } from '../panel.js';

/** @param {{view: import('../state.js').View}} props */
export function PlainTables({ view }) {
  return view.data.tables.map(({ name, question, total, ...table }) => html`
    <${Panel} key=${name} id=${`table-${name}`} question=${visible(question)} table=${() => table}
      help=${`${visible(name)}, as mechforget export gives it${total > table.rows.length ? `: the first ${num(table.rows.length)} of ${num(total)} rows` : ''}.`}>
      <${Twin} table=${table} label=${visible(name)} />
    <//>`);
}
