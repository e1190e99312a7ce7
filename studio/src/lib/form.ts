// The short form: which keys it shows, and how what is typed becomes a value of the recipe.
export type Field = { key: string; label: string; kind: "text" | "number" | "choice"; list?: "models" };

export const FIELDS: readonly Field[] = [
  { key: "name", label: "Title", kind: "text" },
  { key: "output_dir", label: "Run folder", kind: "text" },
  { key: "model.name_or_path", label: "Base model", kind: "text", list: "models" },
  { key: "data.train.0.path", label: "Training rows (file)", kind: "text" },
  { key: "data.max_length", label: "Longest row, tokens", kind: "number" },
  { key: "method.name", label: "Method", kind: "choice" },
  { key: "method.r", label: "LoRA rank", kind: "number" },
  { key: "train.num_train_epochs", label: "Epochs", kind: "number" },
  { key: "train.learning_rate", label: "Learning rate", kind: "number" },
  { key: "train.per_device_train_batch_size", label: "Rows per micro-batch", kind: "number" },
  { key: "train.seed", label: "Seed", kind: "number" },
];

/** The value at a dotted key; numbers are places in lists. Undefined when it is not written. */
export function read(recipe: unknown, key: string): unknown {
  let value: unknown = recipe;
  for (const part of key.split(".")) {
    if (value === null || typeof value !== "object") return undefined;
    value = (value as Record<string, unknown>)[part];
  }
  return value;
}

/** What was typed, as a value: a number where it is one, else the text; empty removes the key. */
export function typed(text: string, kind: Field["kind"]): unknown {
  const trimmed = text.trim();
  if (trimmed === "") return null;
  if (kind !== "number") return trimmed;
  const value = Number(trimmed);
  return Number.isFinite(value) ? value : trimmed;
}

/** A value as it stands in an input: numbers of the recipe as people write them (0.0002 as 2e-4). */
export function shown(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "number" && value !== 0 && Math.abs(value) < 0.001) return value.toExponential();
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
