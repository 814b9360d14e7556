/**
 * Where the data come from, and whether a model can be asked. Views see only the host that this
 * module returns, so an app (`fromApp`) or a widget (`fromWidget`) joins by adding a function here.
 * @typedef {import('./types').Host} Host
 */

/** The report: one file, data inlined as JSON or as base64 of gzip. @returns {Promise<Host>} */
export async function fromFile() {
  const inlined = /** @type {HTMLScriptElement} */ (document.getElementById('bundle'));
  const text = inlined.text;
  const data = inlined.type === 'application/json' ? JSON.parse(text) : JSON.parse(new TextDecoder().decode(await gunzip(text)));
  return { data, run: null };
}

/** @param {string} base64 @returns {Promise<Uint8Array>} */
export async function gunzip(base64) {
  const packed = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
