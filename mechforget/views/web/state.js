/** One linked selection, shared by every view and mirrored in location.hash: an address is a view. */
import { batch, computed, effect, signal } from '@preact/signals';
import { allMaps, mapName, readMap } from './maps.js';

/** @typedef {ReturnType<typeof createView>} View */

const WORDS = /^[\w:]+$/;

/** @param {import('./types').Host} host */
export function createView(host) {
  const { data } = host;
  const { layers, heads } = data.model;
  const maps = allMaps(data);
  const first = maps.find((m) => m.key === 'head_out') ?? maps[0];

  /** @param {number} i */
  const name = (i) => `L${Math.floor(i / heads)}H${i % heads}`;
  /** @param {string} text */
  const index = (text) => {
    const found = /^L(\d+)H(\d+)$/.exec(text);
    return found && +found[1] < layers && +found[2] < heads ? +found[1] * heads + +found[2] : undefined;
  };
  /** @param {number} size @returns {(text: string) => number | undefined} */
  const below = (size) => (text) => (/^\d+$/.test(text) && +text < size ? +text : undefined);
  /** @param {string} text */
  const list = (text) => text.split('.').flatMap((t) => index(t) ?? []).slice(0, 3);
  /** @param {string} text */
  const word = (text) => (WORDS.test(text) ? text : undefined);

  const selection = {
    head: signal(0),
    prompt: signal(data.attention?.prompts[0] ?? 0),
    metric: signal('log_prob'),
    direction: signal('restore'),
    site: signal(first?.key ?? ''),
    pinned: signal(/** @type {number[]} */ ([])),
    k: signal(0),
    token: signal(/** @type {number | null} */ (null)),
    significant: signal(false),
  };
  /** What is drawn: the chosen map, or the nearest one that was measured. */
  const map = computed(() => readMap(data, maps, selection));
  selection.head.value = map.value?.order[0] ?? 0;
  const start = Object.fromEntries(Object.entries(selection).map(([key, s]) => [key, s.value]));

  /** How each part is read from the address; what cannot be read is left as it was at the start. */
  const read = {
    head: index, prompt: below(data.prompts.length), metric: word, direction: word, site: word,
    pinned: list, k: below(1e6), token: below(1e6), significant: (/** @type {string} */ t) => t === '1',
  };
  /** @type {Record<string, (value: any) => string>} */
  const write = { head: name, pinned: (v) => v.map(name).join('.'), significant: (v) => (v ? '1' : '0') };

  function restore() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const [key, part] of Object.entries(selection)) {
      const text = given.get(key);
      const value = text === null ? undefined : read[/** @type {keyof typeof read} */ (key)](text);
      part.value = /** @type {any} */ (value ?? start[key]);
    }
  }
  restore();
  addEventListener('hashchange', () => batch(restore));
  effect(() => {
    const now = Object.entries(selection).filter(([key, part]) => String(part.value) !== String(start[key]) || key === 'head');
    const hash = new URLSearchParams(now.map(([key, part]) => [key, write[key]?.(part.value) ?? String(part.value)]));
    history.replaceState(null, '', `#${String(hash).replaceAll('%3A', ':')}`);
  });

  const theme = signal(/** @type {import('./colour.js').Theme} */ ('light'));
  followTheme(theme);

  /** @param {number} i */
  function togglePin(i) {
    const now = selection.pinned.value;
    selection.pinned.value = now.includes(i) ? now.filter((p) => p !== i) : [...now, i].slice(-3);
  }
  /** The same head of another layer. @param {number} layer */
  function chooseLayer(layer) {
    selection.head.value = Math.max(0, Math.min(layers - 1, layer)) * heads + (selection.head.value % heads);
  }
  const layer = computed(() => Math.floor(selection.head.value / heads));
  /** @param {number} prompt */
  function choosePrompt(prompt) {
    selection.prompt.value = prompt;
    selection.token.value = null; // positions of one prompt mean nothing in another
  }

  /** The top-k set that belongs to the map, or the nearest that was measured. */
  const curve = computed(() => {
    const m = map.value;
    /** @param {import('./types').Curve} s */
    const fit = (s) => (m ? +(s.site === m.key) * 4 + +(s.metric === m.metric) * 2 + +(s.direction === m.direction) : 0);
    return [...data.sets].sort((a, b) => fit(b) - fit(a))[0] ?? null;
  });
  /** The heads that the k slider outlines. */
  const outlined = computed(() => {
    const at = curve.value?.k.indexOf(selection.k.value) ?? -1;
    return at < 0 ? [] : /** @type {import('./types').Curve} */ (curve.value).heads[at].map(([l, h]) => l * heads + h);
  });
  /** The selected and the pinned, for side by side. */
  const shown = computed(() => {
    const pins = selection.pinned.value;
    return pins.includes(selection.head.value) ? pins : [selection.head.value, ...pins];
  });

  return { host, data, maps, ...selection, map, curve, outlined, shown, theme, name, layer, togglePin, chooseLayer, choosePrompt, label: mapName };
}

/** Follows the system until the reader chooses; paper is always light. @param {import('@preact/signals').Signal<any>} theme */
function followTheme(theme) {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const follow = () => (theme.value = dark.matches ? 'dark' : 'light');
  follow();
  dark.addEventListener('change', follow);
  let before = theme.value;
  addEventListener('beforeprint', () => ((before = theme.value), (theme.value = 'light')));
  addEventListener('afterprint', () => (theme.value = before));
  effect(() => {
    document.documentElement.dataset.theme = theme.value;
  });
}
