/** What is known of this head? Everything measured; up to three pinned beside the selected one. */
import { html, Prose, useWidth } from '../dom.js';
import { num, percent, range, signed, words } from '../format.js';
import { floorOf, mapName, ranked, unitOf } from '../maps.js';
import { Intervals } from '../marks/intervals.js';
import { Panel } from '../panel.js';

/** @typedef {import('../state.js').View} View */

const LIVE = 'A report cannot run the model. `mechforget compare` patches every head.';
/** @type {Record<string, string>} */
const ROLES = {
  js: 'attention change (JS)', entropy: 'attention entropy', first: 'first-token mass', induction: 'induction score',
  previous: 'previous-token score', dla: 'direct logit attribution',
};

/** @param {{view: View}} props */
export function Head({ view }) {
  const [ref, width] = useWidth();
  const { data, name } = view;
  const i = view.head.value;
  const rows = effects(view, i);
  const metric = view.map.value?.metric ?? '';
  const pinned = view.pinned.value.includes(i);
  const facts = roles(data);
  if (!view.map.value && !facts.length) return html`<${Panel} id="head" question="What is known of this head?" help="" empty=${data.empty.head ?? 'No measure of single heads was part of this run: `--measures patching` fills this.'} />`;
  const compare = view.shown.value.length > 1;
  return html`
    <${Panel} id="head" question=${html`What is known of head <span class="name">${name(i)}</span>?`} figure=${!compare && rows.length > 0} table=${() => table(view)}
      help=${`Effects on ${words(metric)}, both directions, 95 % intervals, n = ${data.meta.n_clusters}. Filled: significant.`}>
      <div class="controls">
        <button aria-pressed=${pinned} onClick=${() => view.togglePin(i)}>${pinned ? 'Unpin' : 'Pin'} ${name(i)}</button>
        <button disabled=${!view.host.run} aria-describedby="live" onClick=${() => view.host.run?.({ patch: name(i) })}>Patch now</button>
        ${!view.host.run && html`<span id="live" class="help"><${Prose} text=${data.empty.live ?? LIVE} /></span>`}
      </div>
      <div class=${compare ? '' : 'two'}><div ref=${ref}>
        ${!compare && width > 0 && rows.length > 0 && html`<${Intervals} rows=${rows} width=${width} left=${112} floor=${view.map.value?.floor}
          unit=${unitOf(data, metric)} label=${`Effects of head ${name(i)} on ${words(metric)}, by map and direction`} />`}
      </div>
      <${Side} view=${view} facts=${facts} effects=${compare} /></div>
    <//>`;
}

/** One estimate per map and direction of the shown metric. @param {View} view @param {number} i */
function effects(view, i) {
  const metric = view.map.value?.metric ?? '';
  return view.maps.flatMap((m) =>
    Object.entries(m.metrics[metric] ?? {}).flatMap(([direction, s]) => {
      const value = s.effect[i];
      if (value === null) return [];
      return [{ key: `${m.key} ${direction}`, label: `${mapName(m)} ${direction}`, value, low: s.low?.[i], high: s.high?.[i], significant: s.significant?.[i] }];
    }),
  );
}

/**
 * Columns of the bundle, those of before and after in one row.
 * @param {View['data']} data
 * @returns {{label: string, unit: string, read: (i: number) => string}[]}
 */
function roles(data) {
  const columns = data.heads?.columns ?? {};
  const stems = [...new Set(Object.keys(columns).map((key) => key.replace(/_(pre|post|change)$/, '')))];
  return stems.map((stem) => {
    const parts = [stem, `${stem}_pre`, `${stem}_post`, `${stem}_change`].map((key) => columns[key]);
    const [alone, pre, post, change] = parts;
    const { label, unit } = /** @type {NonNullable<typeof pre>} */ (parts.find(Boolean));
    return {
      label: ROLES[stem] ?? label,
      unit,
      read: (i) =>
        [
          alone && num(alone.values[i]),
          pre && post && `${num(pre.values[i])} → ${num(post.values[i])}`,
          change && `(${signed(change.values[i])})`,
        ].filter(Boolean).join(' '),
    };
  });
}

/** @param {{view: View, facts: ReturnType<typeof roles>, effects: boolean}} props */
function Side({ view, facts, effects: compare }) {
  const shown = view.shown.value;
  const map = view.map.value;
  const first = compare ? effects(view, shown[0]) : [];
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Measures of the selected and pinned heads"><table class="side">
    <thead><tr><td></td>${shown.map((i) => html`<th scope="col" class="n" aria-current=${i === view.head.value ? 'true' : null}>
      <button class="plain" onClick=${() => (view.head.value = i)}>${view.name(i)}</button>
      ${view.pinned.value.includes(i) && html`<button class="plain" aria-label=${`Unpin ${view.name(i)}`} onClick=${() => view.togglePin(i)}>×</button>`}</th>`)}</tr></thead>
    <tbody>
      ${first.map((row, r) => html`<tr><th scope="row">${row.label}</th>${shown.map((i) => html`<td class="n">${cell(effects(view, i)[r])}</td>`)}</tr>`)}
      ${map && html`
        <tr><th scope="row">rank, ${mapName(map)} ${map.direction}</th>${shown.map((i) => html`<td class="n">${map.rank.get(i) ?? '–'} of ${map.order.length}</td>`)}</tr>
        <tr><th scope="row">q, FDR over heads</th>${shown.map((i) => html`<td class="n">${num(map.stats.q?.[i])}</td>`)}</tr>
        ${map.stats.share && html`<tr><th scope="row">share of the forgetting</th>${shown.map((i) => html`<td class="n">${percent(map.stats.share?.[i])}<small>${range(map.stats.share_low?.[i], map.stats.share_high?.[i], percent)}</small></td>`)}</tr>`}
        <tr><th scope="row">noise floor</th>${shown.map(() => html`<td class="n">${num(map.floor)}</td>`)}</tr>`}
      ${facts.map((f) => html`<tr><th scope="row">${f.label}${f.unit && `, ${f.unit}`}</th>${shown.map((i) => html`<td class="n">${f.read(i)}</td>`)}</tr>`)}
    </tbody></table></div>`;
}

/** @param {ReturnType<typeof effects>[number] | undefined} row */
const cell = (row) => (row ? html`<span class=${row.significant ? 'strong' : ''}>${signed(row.value)}</span><small>${range(row.low, row.high)}</small>` : '–');

/** Everything of the shown heads, in long form. @param {View} view */
function table(view) {
  const { data, name, maps } = view;
  const effect = maps.flatMap((m) => Object.entries(m.metrics).flatMap(([metric, directions]) => Object.entries(directions).flatMap(([direction, s]) => {
    const order = ranked(s.effect);
    return view.shown.value.map((i) => [name(i), mapName(m), metric, direction, unitOf(data, metric), s.effect[i], s.low?.[i], s.high?.[i], s.share?.[i], s.q?.[i], s.significant?.[i], order.indexOf(i) + 1 || null, floorOf(data, m.key, metric, direction)]);
  })));
  const columns = Object.entries(data.heads?.columns ?? {}).flatMap(([key, c]) => view.shown.value.map((i) => [name(i), key, null, null, c.unit, c.values[i], null, null, null, null, null, null, null]));
  return { columns: ['head', 'measure', 'metric', 'direction', 'unit', 'value', 'low', 'high', 'share', 'q', 'significant', 'rank', 'floor'], rows: [...effect, ...columns] };
}
