/** The maps that can be shown: one number per head, where damage is expressed or where it was written. */

/** @typedef {import('./types').Bundle} Bundle */
/** @typedef {'expressed' | 'estimated' | 'written'} Kind */
/** @typedef {{key: string, kind: Kind, name: string, metrics: import('./types').Metrics}} Entry */
/** @typedef {NonNullable<ReturnType<typeof readMap>>} HeadMap */

const PREFIX = { expressed: '', estimated: 'estimate:', written: 'graft:' };
const ORDER = ['head_out', 'z', 'q', 'k', 'v', 'pattern', 'all', 'o'];

/** Sites or matrices of a run, `graft:` before a matrix, `estimate:` before a site that was attributed, not patched. @param {Bundle} data @param {boolean} heads @returns {Entry[]} */
function entries(data, heads) {
  /** @param {Record<string, import('./types').Site>} group @param {Kind} kind */
  const of = (group, kind) =>
    Object.entries(group ?? {})
      .filter(([, site]) => site && site.heads === heads)
      .map(([name, site]) => ({
        key: `${PREFIX[kind]}${name}`,
        kind,
        name,
        metrics: site.metrics ?? directMetrics(site),
      }))
      .sort((a, b) => place(a.name, kind) - place(b.name, kind));
  return [...of(data.patching, 'expressed'), ...of(data.estimated, 'estimated'), ...of(data.grafting, 'written')];
}

/** Grafting may give its metrics without the `metrics` level. @param {any} site */
const directMetrics = (site) => Object.fromEntries(Object.entries(site).filter(([key]) => key !== 'heads'));

/** @param {string} name @param {string} kind */
function place(name, kind) {
  if (kind === 'written' && name === 'all') return -1;
  const at = ORDER.indexOf(name);
  return at < 0 ? ORDER.length : at;
}

/** @param {Bundle} data */
export const allMaps = (data) => entries(data, true);
/** @param {Bundle} data */
export const layerSites = (data) => entries(data, false);

/** @param {{kind: string, name: string}} map */
export const mapName = (map) => (map.kind === 'written' ? `graft ${map.name}` : map.kind === 'estimated' ? `estimate ${map.name}`.replace(' head_out', '') : map.name);

/** @param {Bundle} data @param {string} metric */
export function unitOf(data, metric) {
  return data.forgetting.find((f) => f.metric === metric)?.unit ?? (metric === 'correct' ? '' : 'nats');
}

/** @param {Bundle} data @param {string} site @param {string} metric @param {string} direction */
export const floorOf = (data, site, metric, direction) =>
  data.floor?.values.find((f) => f.site === site.replace('estimate:', '') && f.metric === metric && f.direction === direction)?.value ?? null;

/**
 * One map of numbers over heads, or null when none was measured. A metric or direction that this
 * map lacks gives way to its first one.
 * @param {Bundle} data
 * @param {Entry[]} maps
 * @param {{site: {value: string}, metric: {value: string}, direction: {value: string}}} selection
 */
export function readMap(data, maps, selection) {
  const entry = maps.find((m) => m.key === selection.site.value) ?? maps[0];
  if (!entry) return null;
  const metric = entry.metrics[selection.metric.value] ? selection.metric.value : Object.keys(entry.metrics)[0];
  const directions = entry.metrics[metric];
  const direction = directions[selection.direction.value] ? selection.direction.value : Object.keys(directions)[0];
  const stats = directions[direction];
  const order = ranked(stats.effect);
  const floor = floorOf(data, entry.key, metric, direction);
  const rank = new Map(order.map((head, i) => [head, i + 1]));
  return {
    ...entry,
    metric,
    direction,
    stats,
    order,
    rank,
    unit: unitOf(data, metric),
    floor,
    // One scale for both directions, so that switching compares them; noise below the floor stays pale.
    most: Math.max(floor ?? 0, ...Object.values(directions).flatMap((d) => d.effect.map((e) => Math.abs(e ?? 0)))),
  };
}

/** Heads by |effect|, largest first, those not run left out. @param {import('./types').Num[]} effect */
export function ranked(effect) {
  const run = effect.flatMap((e, i) => (e === null ? [] : [i]));
  return run.sort((a, b) => Math.abs(effect[b] ?? 0) - Math.abs(effect[a] ?? 0));
}
