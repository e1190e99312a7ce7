// The shapes of the studio's JSON, as the server gives them.
export type Time = string | null;
export type Status = "queued" | "validating" | "running" | "paused" | "stopping" | "finished" | "failed" | "stopped" | "cancelled";
export type Action = "stop" | "stop_now" | "pause" | "resume" | "cancel" | "save";

export type Headline = { task: string; metric: string; before: number; after: number; delta: number; low: number; high: number; confidence: number; p: number; n: number; verdict: string };
export type Score = { score: number; low: number | null; high: number | null; n?: number };

export type RunLine = {
  id: string; name: string; title: string | null; status: Status; stage: string | null; base: string; method: string; objective: string; data: string[];
  step: number | null; total_steps: number | null; loss: number | null; eval_loss: number | null;
  spark: { train: (number | null)[]; eval: [number, number][] };
  headline: Headline | null;
  score: { task: string; metric: string; value: number; low: number; high: number; n: number } | null;
  tokens_per_second: number | null; peak_bytes: number | null; seconds: number | null; processes: number | null;
  started_at: Time; finished_at: Time; updated_at: Time;
  error: { code: string; message: string } | null; warnings: string[]; job: string | null;
  pinned: boolean; tags: string[]; notes: string; actions: Action[];
};
export type RunsAnswer = { total: number; offset: number; limit: number; counts: Partial<Record<Status, number>>; tags: string[]; runs: RunLine[]; damaged: { name: string; message: string }[]; working: boolean };

export type Stage = { name: string; title: string; state: "done" | "running" | "waiting" | "failed" | "stopped"; seconds: number | null; finished_at: Time; result: unknown };
export type MetricRow = { line: number; step: number; [key: string]: number | null };
export type Event = { n: number; time: string; event: string; level: "info" | "warn" | "error"; text: string; fields: Record<string, unknown> };
export type Sample = { n: number; step: number; row: string; prompt: string; reference: string | null; completions: { text: string; rewards: Record<string, number | null> }[] };
export type Gpu = { index: number; name: string; memory_total: number; memory_used: number; utilization: number | null; temperature_c: number | null; power_w: number | null };
export type System = { time: string; cpu: { cores: number; percent: number | null; load: number[] }; memory: { total: number; used: number }; disk: { path: string; total: number; free: number }; gpus: Gpu[]; processes?: Beat[] };
/** What one of several processes said last. */
export type Beat = { rank: number; host: string | null; operation: string | null; step: number | null; idle_seconds: number | null };
/** How a run on several processes was divided. */
export type Processes = { processes: number; machines: number | null; strategy: string | null; way: string; device: string | null; tokens_per_second: number | null; planned_bytes: number | null; rows: { name: string; peak_bytes: number }[]; starts: number[] };

export type Plan = {
  fits: boolean; device: string; memory: { parts: Record<string, number>; peak: number; total: number; device: number; free: number | null };
  time: { seconds_per_step: number; tokens_per_second: number; steps: number; tokens: number; seconds: number; mfu: number | null };
  disk: Record<string, number>; parameters: number; trainable: number;
  setting: { words: string; [key: string]: unknown }; reasons: Record<string, string>;
  remedies: Record<string, unknown>[]; runners_up: { setting: string; why: string; fits: boolean; total: number; tokens_per_second: number }[]; data: string; model: string;
};
export type Resolved = { key: string; value: unknown; reason: string | null };
export type Measured = { peak_bytes: number | null; seconds_per_step: number | null; tokens_per_second: number | null; seconds_to_first_step: number | null; mfu: number | null };
export type RunView = {
  run: RunLine; folder: string; command: string | null; stages: Stage[]; recipe: string; resolved_text: string | null; resolved: Resolved[]; plan: Plan | null; measured: Measured | null; predicted: Measured | null; processes: Processes | null;
  manifest: { versions: Record<string, string>; hardware: Record<string, unknown>; code: Record<string, unknown> | null; seed: number | null; working_directory: string | null };
  data: DataSummary | null; checkpoints: { step: number; bytes: number; saved_at: Time; model: string }[]; models: { label: string; model: string }[];
  files: { name: string; bytes: number }[]; report: string | null;
};
export type Snapshot = { run: RunLine; stages: Stage[]; metrics: { rows: MetricRow[]; total: number; thinned: boolean }; events: Event[]; samples: Sample[]; system: System | null };

export type Chip = { key: string; label: string; rows: number | null; group: string; command: string | null };
export type DataSummary = {
  title: string; kind: string; rows_read: number; rows_used: number; validation_rows: number; tokens: number | null; trained_tokens: number | null; trained_fraction: number | null; max_length: number | null;
  sources: { path: string; format: string; verdict: string; rows: number; map: Record<string, string>; notes: string[] }[];
  lengths: { unit: string; min: number; p50: number; p95: number; max: number; histogram: [number, number, number][] } | null;
  truncated: number | null; loses_answer: number | null; over_max_length: number | null; dropped: Record<string, number>; packs: number | null; pack_capacity: number | null; pack_efficiency: number | null;
  duplicates: number | null; notes: Record<string, number>; has_tokens: boolean; has_packs: boolean; exact: boolean; chips: Chip[]; more_chips: "none" | "offered" | "working" | "done"; command: string;
};
export type DataLine = { row: number; ref: string; split: string; source: string; preview: string; turns: number; tokens: number | null; trained: number | null; trained_fraction: number | null; chips: string[]; why: string | null };
export type Turn = { role: string; text: string; mark: string };
export type TokenRow = { ids: number[]; texts: string[]; kinds: string[]; roles: (string | null)[]; positions: number[]; weights: number[]; documents: number[]; parts: string[] | null; refs: string[]; capacity: number | null; trained_text: string[] };
export type DataRow = { row: number; ref: string; split: string; source: string; why: string | null; tokens: number | null; trained: number | null; notes: string[]; chips: string[] } & Partial<{ turns: Turn[]; text: string; trained_text: string[] | null; texts: { prompt: string; chosen: string; rejected: string } }> & Partial<TokenRow>;
export type PackLine = { pack: number; rows: number[]; refs: string[]; tokens: number; capacity: number; trained: number };

export type Problem = { code: string; message: string; file: string | null; line: number | null; column: number | null; length: number; source: string | null; hint: string | null; path: string | null };
export type Preflight = { name: string; state: "ok" | "warn" | "fail" | "unknown"; text: string };
export type Check = { ok: boolean; problems: Problem[]; recipe: unknown; resolved: Resolved[] | null; plan: Plan | null; plan_problem: Problem | null; command: string; output_dir: string | null; exists: "no" | "same" | "other"; preflight: Preflight[] };

export type Test = { a: number; b: number; delta: number; low: number; high: number; p: number; p_holm: number; test: string; verdict: string };
export type CompareView = {
  runs: RunLine[]; config: { key: string; values: unknown[]; reasons: (string | null)[] }[]; curves: { run: string; rows: MetricRow[] }[];
  table: { task: string; metric: string; n: number | null; cells: (Score | null)[]; base: Score | null; tests: Test[] }[];
  facts: { name: string; values: (number | null)[] }[]; tasks: string[]; problems: Problem[]; command: string;
};
export type Message = { role: string; content: string };
export type CompareRow = { row: number; ref: string; prompt: string; messages: Message[]; reference: string | null; answers: ({ output: string; extracted: string | null; score: number; reason: string | null } | null)[] };

export type Comparison = { delta: number; low: number; high: number; p: number; before: number; after: number; test: string; verdict: string; wins: number; losses: number; ties: number };
export type EvalTask = { name: string; metric: string; higher_is_better: boolean; n: number; confidence: number; columns: { label: string; score: number; low: number | null; high: number | null; tokens_per_second: number | null; secondary: Record<string, number> }[]; comparison: Comparison | null; judge: Record<string, unknown> | null; has_rows: boolean; kind: string };
export type Measure = { name: string; what: string; before: number; after: number; low: number; high: number; delta?: number | null; delta_low?: number | null; delta_high?: number | null; p_value?: number | null; verdict?: string | null };
export type EvalsView = { tasks: EvalTask[]; regressions: string[]; preferences: { kind: string; objective: string; n: number; confidence: number; measures: Measure[] } | null; judge: Record<string, unknown> | null; report: string | null; command: string };
export type EvalAnswer = { label: string; output: string; extracted: string | null; score: number; secondary: Record<string, number>; finish_reason: string; new_tokens: number; reason: string | null };
export type EvalRow = { row: number; ref: string; messages: Message[]; prompt: string; reference: string | null; change: number | null; answers: EvalAnswer[]; judge: { verdict: string; reason: string | null } | null };

export type Model = { model: string; label: string; kind: string; run: string | null; step: number | null; loaded: boolean };
export type Rendered = { text: string; ids: number[]; texts: string[]; kinds: string[]; tokens: number; template: string };
export type Session = { ok: boolean; version: string; runs_folder: string; root: string; features: { jobs: boolean; chat: boolean; upload: boolean } };
