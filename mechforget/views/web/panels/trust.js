/** Can I trust and repeat this? Self-checks, floor, digests, versions, seed, command, notes. */
import { html } from '../dom.js';
import { num, visible, words } from '../format.js';
import { Panel } from '../panel.js';

/** @param {{view: import('../state.js').View}} props */
export function Trust({ view }) {
  const { checks, limits, meta, floor, model } = view.data;
  /** @type {[string, any][]} */
  const facts = [
    ['before', html`<span>${visible(meta.pre)}</span> <code>${visible(meta.digests.pre)}</code>`],
    ['after', html`<span>${visible(meta.post)}</span> <code>${visible(meta.digests.post)}</code>`],
    ['old task', visible(meta.task)],
    ['new task', meta.new_task && visible(meta.new_task)],
    ['prompts', `${meta.n_prompts} in ${meta.n_clusters} clusters`],
    ['model', `${model.name}, ${model.layers} layers of ${model.heads} heads (${model.kv_heads} key/value), ${model.d_model} wide${model.experts ? `, ${model.experts} experts` : ''}`],
    ['arithmetic', `${meta.dtype}, ${meta.backend}, seed ${meta.seed}`],
    ['versions', Object.entries(meta.versions).map(([k, v]) => `${k} ${v}`).join(', ')],
    ['commit', meta.commit],
    ['made', meta.created],
  ];
  return html`
    <${Panel} id="trust" question="Can I trust and repeat this?" help="What was checked on this pair, and everything that is needed to make these numbers again." table=${() => table(view.data)}>
      <div class="two">
        <div>
          <h3>Self-checks</h3>
          ${checks.length === 0 && html`<p class="empty">No self-check is stored in this run.</p>`}
          <ul class="checks">${checks.map((c) => html`<li class=${c.pass ? 'pass' : 'fail'}><b>${c.pass ? '✓' : '✕'}</b><span>${visible(c.name)} <small>${c.pass ? 'pass' : 'FAILED'}: ${visible(c.detail)}</small></span></li>`)}</ul>
          ${limits.length > 0 && html`<h3>What the measures say of themselves</h3>
          <dl>${limits.map((l) => html`<dt>${visible(l.name)}</dt><dd>${visible(l.detail)}</dd>`)}</dl>`}
          <h3>Noise floor</h3>
          <p class="help">${visible(floor?.source ?? 'none')}</p>
          ${floor?.values.length > 0 && html`<${Floor} values=${floor.values} />`}
        </div>
        <div>
          <h3>Provenance</h3>
          <dl>${facts.map(([k, v]) => v && html`<dt>${k}</dt><dd>${v}</dd>`)}</dl>
          <h3>Command</h3>
          <pre tabindex="0">${visible(meta.command)}</pre>
          ${meta.notes.length > 0 && html`<h3>Notes</h3><ul class="notes">${meta.notes.map((n) => html`<li>${visible(n)}</li>`)}</ul>`}
        </div>
      </div>
    <//>`;
}

/** One row per site and direction, one column per metric. @param {{values: import('../types').Bundle['floor']['values']}} props */
function Floor({ values }) {
  const metrics = [...new Set(values.map((v) => v.metric))];
  const rows = [...new Set(values.map((v) => `${v.site} ${v.direction}`))];
  /** @param {string} row @param {string} metric */
  const at = (row, metric) => values.find((v) => v.metric === metric && row === `${v.site} ${v.direction}`)?.value;
  return html`<table class="floor">
    <thead><tr><td></td>${metrics.map((m) => html`<th scope="col" class="n">${words(m)}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr><th scope="row">${row.replace('graft:', 'graft ')}</th>${metrics.map((m) => html`<td class="n">${num(at(row, m))}</td>`)}</tr>`)}</tbody>
  </table>`;
}

/** @param {import('../types').Bundle} data @returns {import('../types').Table} */
const table = ({ checks, limits, meta, floor }) => ({
  columns: ['kind', 'name', 'value', 'detail'],
  rows: [
    ...checks.map((c) => ['check', c.name, c.pass, c.detail]),
    ...limits.map((l) => ['limit', l.name, null, l.detail]),
    ...(floor?.values ?? []).map((f) => ['floor', `${f.site} ${f.metric} ${f.direction}`, f.value, floor.source]),
    ...Object.entries(meta.digests).map(([k, v]) => ['digest', k, v, null]),
    ...Object.entries(meta.versions).map(([k, v]) => ['version', k, v, null]),
    ...Object.entries({ pre: meta.pre, post: meta.post, task: meta.task, new_task: meta.new_task, seed: meta.seed, dtype: meta.dtype, backend: meta.backend, commit: meta.commit, created: meta.created, command: meta.command }).map(([k, v]) => ['run', k, v, null]),
    ...meta.notes.map((n) => ['note', null, n, null]),
  ],
});
