/** Stored attention of one prompt: lower triangles of 8-bit weights, unpacked when they are asked for. */
import { gunzip } from './hosts.js';

/** @typedef {{tokens: string[], pre: Uint8Array, post: Uint8Array, scale: number}} Pattern */

/** Which stored pattern belongs to a head, or -1. @param {import('./types').Attention} attention @param {number} head @param {number} heads */
export const stored = (attention, head, heads) =>
  attention.layers_heads === 'all' ? head : attention.layers_heads.findIndex(([l, h]) => l * heads + h === head);

/** All heads of a prompt, before and after. @param {import('./types').Attention} attention @param {number} at @returns {Promise<Pattern>} */
export async function unpack(attention, at) {
  const [pre, post] = await Promise.all([gunzip(attention.pre[at]), gunzip(attention.post[at])]);
  return { tokens: attention.tokens[at], pre, post, scale: attention.scale };
}

/** One head's weights as functions of query and key. @param {Pattern} pattern @param {number} slot */
export function head({ tokens, pre, post, scale }, slot) {
  const start = (slot * tokens.length * (tokens.length + 1)) / 2;
  /** @param {Uint8Array} from @returns {(query: number, key: number) => number} */
  const of = (from) => (query, key) => from[start + (query * (query + 1)) / 2 + key] / scale;
  const [before, after] = [of(pre), of(post)];
  return { before, after, change: (/** @type {number} */ q, /** @type {number} */ k) => after(q, k) - before(q, k) };
}
