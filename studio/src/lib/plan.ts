// Parts of a memory plan, in the order they are drawn.
export type Part = { key: string; label: string; bytes: number; colour: string };

const LABELS: Record<string, [string, string]> = {
  weights: ["model weights", "s2"], adapters: ["adapters", "s1"], masters: ["32-bit copies", "s6"], gradients: ["gradients", "s4"], optimizer: ["optimizer", "s3"],
  activations: ["activations", "s5"], logits: ["logits", "raw"], transient: ["unpacked layer", "special"], gathered: ["gathered shards", "before"],
  workspace: ["workspace", "none"], recordings: ["graph recordings", "warn"], outside: ["others on the device", "edge"], rest: ["found by earlier runs here", "line"],
};

/** The parts that take memory, largest groups in a fixed order; unknown ones keep their own name. */
export function parts(memory: Record<string, number>, total: number): Part[] {
  const order = Object.keys(LABELS);
  const rest = total - Object.values(memory).reduce((sum, bytes) => sum + bytes, 0);
  // What the plan adds on top of its parts (its calibration by earlier runs on this machine) is shown, so that the bar adds up.
  return Object.entries(rest > 0 ? { ...memory, rest } : memory)
    .filter(([, bytes]) => bytes > 0)
    .map(([key, bytes]) => ({ key, bytes, label: LABELS[key]?.[0] ?? key, colour: LABELS[key]?.[1] ?? "edge" }))
    .sort((a, b) => (order.indexOf(a.key) + 1 || 99) - (order.indexOf(b.key) + 1 || 99));
}
