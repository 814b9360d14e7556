/** Which heads? A layer x head map of effects, with the layer-wise sites on the same columns below. */
import { useSignal } from '@preact/signals';
import { diverging } from '../colour.js';
import { Choice, html, useWidth } from '../dom.js';
import { num, percent, range, signed, words } from '../format.js';
import { layerSites, mapName } from '../maps.js';
import { BAR_HEIGHT, Bars } from '../marks/bars.js';
import { geometry, Hatch, Heat, LayerAxis, LEFT } from '../marks/heat.js';
import { Panel } from '../panel.js';

/** @typedef {import('../state.js').View} View */
/** @typedef {import('../maps.js').HeadMap} HeadMap */

/** @param {{view: View}} props */
export function Heads({ view }) {
  const map = view.map.value;
  const [ref, width] = useWidth();
  const over = useSignal(/** @type {number | null} */ (null));
  if (!map) return html`<${Panel} id="heads" question="Which heads carry the change?" help="" empty=${view.data.empty.heads ?? view.data.empty.patching ?? NONE} />`;
  return html`
    <${Panel} id="heads" question="Which heads carry the change?" figure help=${`${MEANING[map.kind]}${screened(view, map)} Arrow keys move, Enter pins.`}
      table=${() => table(view)} about=${() => about(view, map)}>
      <${Controls} view=${view} map=${map} />
      <div ref=${ref}>${width > 0 && html`<${Figure} view=${view} map=${map} width=${width} preview=${(/** @type {number | null} */ i) => (over.value = i)} />`}</div>
      <p class="readout" role="status">${say(view, map, over.value ?? view.head.value)}</p>
    <//>`;
}

const NONE = 'Patching was not part of this run: `mechforget compare PRE POST --task TASK --measures patching` fills this.';
const MEANING = {
  expressed: 'Expressed: one head’s activations come from the other checkpoint.',
  estimated: 'Estimated: what patching would do, to first order (attribution patching).',
  written: 'Written: one head’s weights come from the other checkpoint.',
};

/** Where only some heads were patched. @param {View} view @param {HeadMap} map */
const screened = (view, map) =>
  view.data.meta.screen && map.kind === 'expressed' ? ` ${map.order.length} of ${map.stats.effect.length} heads are exact, those that attribution ranks first; the rest, hatched, were not run.` : '';

/** One head in words, with interval, share, q, rank and n. @param {View} view @param {HeadMap} map @param {number} i */
export function say(view, map, i) {
  const { stats, unit, rank, order } = map;
  if (stats.effect[i] === null) return `${view.name(i)}: not run for ${mapName(map)}.`;
  const share = stats.share?.[i] == null ? '' : `; ${percent(stats.share[i])} of the forgetting (${range(stats.share_low?.[i], stats.share_high?.[i], percent)})`;
  const sure = stats.significant?.[i] ? ', significant' : ', not significant';
  return `${view.name(i)}: ${signed(stats.effect[i])} ${unit} (${range(stats.low?.[i], stats.high?.[i])})${share}; q ${num(stats.q?.[i])}${sure}; rank ${rank.get(i)} of ${order.length}; n\u00a0=\u00a0${view.data.meta.n_clusters}`;
}

/** @param {{view: View, map: HeadMap}} props */
function Controls({ view, map }) {
  /** @param {string} kind */
  const options = (kind) => view.maps.filter((m) => m.kind === kind).map((m) => ({ value: m.key, label: m.name }));
  /** @param {string} site */
  const choose = (site) => (view.site.value = site);
  const metrics = [...new Set(view.maps.flatMap((m) => Object.keys(m.metrics)))];
  const directions = ['restore', 'break'].map((value) => ({ value, disabled: !map.metrics[map.metric][value] }));
  return html`<div class="controls">
    ${['expressed', 'estimated', 'written'].map((kind) => options(kind).length > 0 && html`<${Choice} label=${kind} options=${options(kind)} value=${map.key} choose=${choose} />`)}
    <${Choice} label="metric" value=${map.metric} choose=${(/** @type {string} */ m) => (view.metric.value = m)}
      options=${metrics.map((value) => ({ value, label: words(value), disabled: !map.metrics[value] }))} />
    <${Choice} label="direction" value=${map.direction} options=${directions} choose=${(/** @type {string} */ d) => (view.direction.value = d)} />
    <label><input type="checkbox" checked=${view.significant.value} onChange=${(/** @type {any} */ e) => (view.significant.value = e.target.checked)} /> significant only</label>
  </div>`;
}

/** @param {{view: View, map: HeadMap, width: number, preview: (head: number | null) => void}} props */
function Figure({ view, map, width, preview }) {
  const { layers, heads } = view.data.model;
  const at = geometry(width, layers, heads);
  const bottom = heads * at.ch + 6;
  const bars = strips(view.data, map);
  const height = bottom + bars.length * BAR_HEIGHT + 24;
  const layer = Math.floor(view.head.value / heads);
  const below = height + (wide(width) ? 36 : 97);
  const top = 4; // for the frame of a selected head in the first row
  return html`
    <svg data-figure width=${width} height=${top + below} viewBox=${`0 ${-top} ${width} ${top + below}`}>
      <${Hatch} />
      <rect class="column" x=${LEFT + layer * at.cw} y="0" width=${at.cw - at.gap} height=${height - 18} />
      <${Heat} map=${map} layers=${layers} heads=${heads} at=${at} theme=${view.theme.value} onlySignificant=${view.significant.value}
        selected=${view.head.value} pinned=${view.pinned.value} outlined=${view.outlined.value} say=${(/** @type {number} */ i) => say(view, map, i)}
        select=${(/** @type {number} */ i) => (view.head.value = i)} pin=${view.togglePin} preview=${preview} />
      ${bars.map((b, i) => html`<${Bars} ...${b} at=${at} y=${bottom + i * BAR_HEIGHT} />`)}
      <${LayerAxis} layers=${layers} at=${at} y=${height - 6} />
      <${Legend} map=${map} theme=${view.theme.value} width=${width} y=${height + 10} />
    </svg>`;
}

/** Sums over heads, then the sites without heads, for the map's metric and direction. @param {View['data']} data @param {HeadMap} map */
function strips(data, map) {
  const { layers, heads } = data.model;
  const sums = [...Array(layers).keys()].map((l) => {
    const run = map.stats.effect.slice(l * heads, (l + 1) * heads).filter((e) => e !== null);
    return run.length ? run.reduce((a, b) => a + /** @type {number} */ (b), 0) : null;
  });
  const sites = layerSites(data).filter((s) => s.kind === map.kind).flatMap((s) => {
    const stats = s.metrics[map.metric]?.[map.direction];
    return stats ? [{ label: s.name, values: stats.effect, low: stats.low, high: stats.high, significant: stats.significant }] : [];
  });
  return [{ label: 'Σ heads', values: sums }, ...sites];
}

/** Room for the legend's words beside its colours. @param {number} width */
const wide = (width) => width > 720;

/** @param {{map: HeadMap, theme: import('../colour.js').Theme, width: number, y: number}} props */
function Legend({ map, theme, width, y }) {
  const colour = diverging(map.most, theme);
  const bar = Math.min(190, width - 130);
  const unit = map.unit && ` ${map.unit}`;
  const [less, more] = map.direction === 'break' ? ['helps', 'breaks'] : ['worsens', 'restores'];
  const [x, dy] = wide(width) ? [LEFT + bar + 110, 8.5] : [0, 42];
  const floor = `and above the floor${map.floor == null ? '' : ` of ${num(map.floor)}${unit}`}`;
  const [sure, rest, frames] = ['+ − in a cell: significant, FDR 5 %', 'hatched: not run · pale bar: not significant', 'frames: selected, pinned, top k'];
  const lines = wide(width) ? [`${sure} ${floor}`, `${rest} · ${frames}`] : [sure, floor, rest, frames];
  return html`<g aria-hidden="true">
    <defs><linearGradient id="scale">${[...Array(9).keys()].map((i) => html`<stop offset=${i / 8} stop-color=${colour((i / 4 - 1) * map.most)} />`)}</linearGradient></defs>
    <rect x=${LEFT} y=${y} width=${bar} height="9" fill="url(#scale)" />
    <text x=${LEFT - 7} y=${y + 8.5} text-anchor="end">${less}</text>
    <text x=${LEFT + bar + 7} y=${y + 8.5}>${more}${unit && `,${unit}`}</text>
    <text x=${LEFT} y=${y + 22}>${num(-map.most)}</text>
    <text x=${LEFT + bar / 2} y=${y + 22} text-anchor="middle">0</text>
    <text x=${LEFT + bar} y=${y + 22} text-anchor="end">${signed(map.most)}</text>
    ${lines.map((line, i) => html`<text x=${x} y=${y + dy + 13.5 * i}>${line}</text>`)}
  </g>`;
}

/** @param {View} view @param {HeadMap} map */
const about = (view, map) => `${view.data.meta.title} ${mapName(map)}, ${map.metric}, ${map.direction}, n = ${view.data.meta.n_clusters}. ${view.data.meta.command}`;

/** Every head of the shown map, then the layer-wise sites. @param {View} view */
function table(view) {
  const { data } = view;
  const map = /** @type {HeadMap} */ (view.map.value);
  const { metric, direction } = map;
  /** @param {string} site @param {import('../types').Stats} s @param {(i: number) => [number, number | null]} place */
  const rows = (site, s, place) =>
    s.effect.map((e, i) => [site, metric, direction, ...place(i), e, s.low?.[i], s.high?.[i], s.share?.[i], s.share_low?.[i], s.share_high?.[i], s.p?.[i], s.q?.[i], s.significant?.[i]]);
  const layers = layerSites(data).filter((s) => s.kind === map.kind && s.metrics[metric]?.[direction]);
  return {
    columns: ['site', 'metric', 'direction', 'layer', 'head', 'effect', 'effect_low', 'effect_high', 'share', 'share_low', 'share_high', 'p', 'q', 'significant'],
    rows: [
      ...rows(mapName(map), map.stats, (i) => [Math.floor(i / data.model.heads), i % data.model.heads]),
      ...layers.flatMap((s) => rows(mapName(s), s.metrics[metric][direction], (i) => [i, null])),
    ],
  };
}
