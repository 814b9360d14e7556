/** What did this head look at? Attention before, after and the change, on one scale. */
import { useSignal } from '@preact/signals';
import { useEffect, useMemo } from 'preact/hooks';
import { head as patterns, stored, unpack } from '../attention.js';
import { diverging, inkOn } from '../colour.js';
import { html, useWidth } from '../dom.js';
import { num, signed, token } from '../format.js';
import { Triangles } from '../marks/triangles.js';
import { Panel } from '../panel.js';

/** @typedef {import('../state.js').View} View */

/** @param {{view: View}} props */
export function Attention({ view }) {
  const { data } = view;
  const attention = data.attention;
  const head = view.head.value;
  const prompt = view.prompt.value;
  const pattern = useSignal(/** @type {(import('../attention.js').Pattern & {prompt: number}) | null} */ (null));
  const at = attention?.prompts.indexOf(prompt) ?? -1;
  useEffect(() => {
    let current = true; // a slower, older prompt must not overwrite a newer one
    if (attention && at >= 0) unpack(attention, at).then((p) => current && (pattern.value = { ...p, prompt }));
    return () => void (current = false);
  }, [at]);
  const question = html`What did head <span class="name">${view.name(head)}</span> look at?`;
  if (!attention) return html`<${Panel} id="attention" question="What did this head look at?" help="" empty=${data.empty.attention ?? 'Attention was not part of this run: `--measures attention_change` fills this.'} />`;
  const slot = stored(attention, head, data.model.heads);
  const ready = at >= 0 && slot >= 0 && pattern.value?.prompt === prompt;
  return html`
    <${Panel} id="attention" question=${question} figure=${ready} table=${ready ? () => table(view, /** @type {any} */ (pattern.value), slot) : undefined}
      help="Each row of a triangle is a token that reads, each column a token that is read. One scale for all three."
      about=${() => `${view.name(head)}, prompt ${prompt}. ${data.meta.command}`}>
      <div class="controls"><label>prompt <select value=${at < 0 ? '' : prompt} onChange=${(/** @type {any} */ e) => view.choosePrompt(+e.target.value)}>
        ${at < 0 && html`<option value="">${prompt}: not stored</option>`}
        ${attention.prompts.map((p, i) => html`<option value=${p}>${p}: ${attention.tokens[i].map(token).join('').replaceAll('␣', ' ').trim()}</option>`)}</select></label></div>
      ${at < 0 && html`<p class="empty">Attention of prompt ${prompt} is not in this file; ${attention.prompts.length} prompts are: choose one above.</p>`}
      ${slot < 0 && html`<p class="empty">Attention of ${view.name(head)} is not in this file. Stored: ${/** @type {[number, number][]} */ (attention.layers_heads).map(([l, h]) =>
        html`<button class="plain" onClick=${() => (view.head.value = l * data.model.heads + h)}>L${l}H${h}</button> `)}</p>`}
      ${ready && html`<${Figure} view=${view} pattern=${pattern.value} slot=${slot} />`}
    <//>`;
}

/** @param {{view: View, pattern: import('../attention.js').Pattern, slot: number}} props */
function Figure({ view, pattern, slot }) {
  const [ref, width] = useWidth();
  const { tokens } = pattern;
  const query = Math.min(view.token.value ?? tokens.length - 1, tokens.length - 1);
  const over = useSignal(/** @type {[number, number] | null} */ (null));
  const read = useMemo(() => patterns(pattern, slot), [pattern, slot]);
  /** @param {number} q @param {number} k */
  const say = (q, k) => `${token(tokens[q])} [${q}] reads ${token(tokens[k])} [${k}]: ${num(read.before(q, k))} → ${num(read.after(q, k))} (${signed(read.change(q, k))})`;
  const largest = [...Array(query + 1).keys()].sort((a, b) => Math.abs(read.change(query, b)) - Math.abs(read.change(query, a))).slice(0, 4);
  return html`<div class="attend">
    <div ref=${ref}>${width > 0 && html`<${Triangles} read=${read} tokens=${tokens} query=${query} width=${width} theme=${view.theme.value}
      choose=${(/** @type {number} */ q) => (view.token.value = q)} preview=${(/** @type {[number, number] | null} */ cell) => (over.value = cell)} />`}</div>
    <div>
    <h3>Token that reads</h3>
    <${Strip} tokens=${tokens} query=${query} change=${read.change} theme=${view.theme.value} choose=${(/** @type {number} */ q) => (view.token.value = q)} />
    <h3>Its largest changes</h3>
    <ol class="changes">${largest.map((k) => html`<li>${say(query, k)}</li>`)}</ol>
    <p class="readout" role="status">${over.value && say(...over.value)}</p>
    </div></div>`;
}

/** The prompt's tokens: the chosen one reads, the others carry the change of its attention. */
/** @param {{tokens: string[], query: number, change: (q: number, k: number) => number, theme: import('../colour.js').Theme, choose: (q: number) => void}} props */
function Strip({ tokens, query, change, theme, choose }) {
  const colour = diverging(1, theme);
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const to = query + (event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0);
    if (to === query || to < 0 || to >= tokens.length) return;
    event.preventDefault();
    choose(to);
    /** @type {HTMLElement} */ (/** @type {HTMLElement} */ (event.currentTarget).children[to]).focus();
  };
  return html`<div class="strip" role="radiogroup" aria-label="Token that reads" onKeyDown=${key}>
    ${tokens.map((t, i) => {
      const value = i <= query ? change(query, i) : 0;
      const fill = colour(value);
      const mark = Math.abs(value) < 0.01 ? '' : value > 0 ? '+' : '−';
      return html`<button role="radio" aria-checked=${i === query} tabindex=${i === query ? 0 : -1} style=${{ background: fill, color: inkOn(fill) }} onClick=${() => choose(i)}>
        <bdi>${token(t)}</bdi><sup>${mark}</sup></button>`;
    })}</div>`;
}

/** Every weight of the shown head and prompt. @param {View} view @param {import('../attention.js').Pattern} pattern @param {number} slot */
function table(view, pattern, slot) {
  const { before, after, change } = patterns(pattern, slot);
  const rows = pattern.tokens.flatMap((q, i) => pattern.tokens.slice(0, i + 1).map((k, j) => [view.name(view.head.value), view.prompt.value, i, q, j, k, before(i, j), after(i, j), change(i, j)]));
  return { columns: ['head', 'prompt', 'query', 'query_token', 'key', 'key_token', 'before', 'after', 'change'], rows };
}
