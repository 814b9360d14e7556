/** The bundle as `mechforget.views.report.write` inlines it; arrays over heads are layer-major. */
export type Num = number | null;
export type Row = (string | number | boolean | null | undefined)[];
export type Table = { columns: string[]; rows: Row[] };

export interface Stats {
  effect: Num[]; low: Num[] | null; high: Num[] | null;
  share: Num[] | null; share_low: Num[] | null; share_high: Num[] | null;
  p: Num[] | null; q: Num[] | null; significant: (boolean | null)[] | null;
}
/** metric -> direction -> numbers of one site (patching) or one matrix (grafting) */
export interface Site { heads: boolean; metrics?: Metrics }
export type Metrics = Record<string, Record<string, Stats>>;

export interface Prompt {
  text: string; answer: string; wrong: string | null; cluster: number;
  log_prob: [Num, Num]; logit_diff: [Num, Num] | null; correct: [Num, Num] | null;
  top_head: [number, number] | null;
}
export interface Attention {
  prompts: number[]; tokens: string[][]; layers_heads: 'all' | [number, number][];
  scale: number; pre: string[]; post: string[];
}
export interface Curve {
  site: string; direction: string; metric: string; k: number[]; forgetting: number;
  top: { effect: Num[]; low: Num[]; high: Num[] };
  random: { mean: Num[]; low: Num[]; high: Num[] };
  heads: [number, number][][];
}
export interface Forgetting {
  metric: string; unit: string; pre: Num; post: Num; change: Num; low: Num; high: Num; p: Num;
  n: number; significant: boolean; task?: string;
}
export interface Figure {
  value: string; label: string; interval?: string | null; control?: string | null; panel?: string | null;
}
/** Estimates with their 95 % intervals, in the order of whatever they are of. */
export interface Band { value: Num[]; low: Num[]; high: Num[] }
export interface Depths {
  depth: number[]; cka: Band; procrustes: Num[]; angle_median: Num[]; angle_largest: Num[]; k: Num[];
  rank_pre: Num[]; rank_post: Num[]; shift: Band;
}
export interface Drift extends Depths {
  n: number; caveat: string; twin: Depths | null;
  heads: Record<string, { cka: Band; angle_median: Num[]; angle_largest: Num[]; rank_pre: Num[]; rank_post: Num[]; shift: Num[] }>;
}
export interface Ends { low: Num[]; high: Num[] }
/** By name, or (map) by name and layer, name after name. `q`: over the names, or over the map. */
export interface Opposition {
  names: string[]; cosine: Band; corrected: Band; conflict: Band; dot: Band; null_cosine: Ends; null_conflict: Ends; p: Num[]; q: Num[];
}
export interface Interference {
  minibatches: { old: number; new: number }; layers: number[]; points: { at: number; parts: Opposition; map: Opposition }[];
}
/** Before and after, with a standard error (of an eigenvalue: what its residual allows). */
export interface Two { value: [Num, Num]; se: [Num, Num] }
export interface Line { t: number[]; loss: Band; barrier: [Num, Num, Num]; barrier_at: number }
export interface Landscape {
  lines: { old?: Line; new?: Line };
  curvature: null | {
    note: string; prompts: number; trace: Two; gauss_newton: Two; eigenvalue: Two; flattening: Record<string, [Num, Num, Num]>;
    modules: { part: string[]; layer: (number | null)[]; value: [Num[], Num[]]; se: [Num[], Num[]] };
  };
  sharpness: null | Two;
}
/** `cells`: part by part, layer by layer; `heads`: layer-major. */
export interface Ledger {
  n: number; parts: string[]; layers: number[]; cells: Band; by_layer: Band; by_part: Band; heads: Band; nodes: number;
  rest: { names: string[] } & Band; whole: { names: string[] } & Band; origins?: Origins | null;
}
/** The largest changes of weights that reach one head's output; `change`: of all of them. */
export interface Origins extends Band { of: [number, number]; change: number; cells: string[] }
export interface Readout {
  n: number; caveat: string; candidates: number; tokens: number; depth: number[]; probes: Record<string, Band>; verdict: string[];
}
/** `load_*` and `angle`: layer by layer, expert by expert. */
export interface Routing {
  rule: string; layers: number[]; experts: number; overlap: Band; js: Band; load_pre: Num[]; load_post: Num[]; load_change: Num[]; load_js: Num[];
  load_entropy_pre: Num[]; load_entropy_post: Num[]; angle: Num[]; restored: null | Record<string, { layer: Band; every: Band }>;
}
export interface Claim {
  claim: number; text: string; paper: string; value: Num; low: Num; high: Num; n: Num; unit: string | null; verdict: string; why: string; how: string;
}
export interface Agreement { names: string[]; means: Record<string, string>; pairs: { a: string; b: string; spearman: Num; low: Num; high: Num; n: Num }[] }
/** A measure that no panel draws: the first rows of its table, and how many there are. */
export interface PlainTable extends Table { name: string; question: string; total: number }

export interface Bundle {
  version: number;
  meta: {
    title: string; pre: string; post: string; task: string; new_task: string | null; n_prompts: number;
    n_clusters: number; created: string; command: string; seed: number; dtype: string; backend: string;
    versions: Record<string, string>; digests: Record<string, string>; commit: string | null; notes: string[]; screen?: number | null;
  };
  model: { name: string; layers: number; heads: number; kv_heads: number; d_model: number; experts: number };
  verdict: { sentence: string; lines: string[]; warnings: string[]; forgetting: boolean; figures: Figure[] };
  forgetting: Forgetting[];
  floor: { source: string; values: { metric: string; site: string; direction: string; value: Num }[] };
  patching: Record<string, Site>;
  estimated: Record<string, Site>;
  grafting: Record<string, Site>;
  sets: Curve[];
  heads: { columns: Record<string, { unit: string; label: string; values: Num[] }> };
  prompts: Prompt[];
  attention: Attention | null;
  limits: { name: string; detail: string }[];
  checks: { name: string; pass: boolean; detail: string }[];
  drift: Drift | null;
  interference: Interference | null;
  landscape: Landscape | null;
  ledger: Ledger | null;
  readout: Readout | null;
  routing: Routing | null;
  agreement: Agreement | null;
  claims: Claim[] | null;
  tables: PlainTable[];
  empty: Record<string, string>;
}

/** Where the views run: `run` is null unless a model can be asked now. */
export interface Host { data: Bundle; run: null | ((request: unknown) => Promise<unknown>) }
