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
export interface Bundle {
  version: number;
  meta: {
    title: string; pre: string; post: string; task: string; new_task: string | null; n_prompts: number;
    n_clusters: number; created: string; command: string; seed: number; dtype: string; backend: string;
    versions: Record<string, string>; digests: Record<string, string>; commit: string | null; notes: string[];
  };
  model: { name: string; layers: number; heads: number; kv_heads: number; d_model: number; experts: number };
  verdict: { sentence: string; lines: string[]; warnings: string[]; forgetting: boolean; figures: Figure[] };
  forgetting: Forgetting[];
  floor: { source: string; values: { metric: string; site: string; direction: string; value: Num }[] };
  patching: Record<string, Site>;
  grafting: Record<string, Site>;
  sets: Curve[];
  heads: { columns: Record<string, { unit: string; label: string; values: Num[] }> };
  prompts: Prompt[];
  attention: Attention | null;
  checks: { name: string; pass: boolean; detail: string }[];
  empty: Record<string, string>;
}

/** Where the views run: `run` is null unless a model can be asked now. */
export interface Host { data: Bundle; run: null | ((request: unknown) => Promise<unknown>) }
