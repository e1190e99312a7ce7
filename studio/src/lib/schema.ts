// The recipe's JSON Schema: what a key means, which keys and values may stand at a place.
export type Schema = {
  $ref?: string; $defs?: Record<string, Schema>; type?: string | string[]; description?: string; default?: unknown; enum?: unknown[]; const?: unknown;
  anyOf?: Schema[]; oneOf?: Schema[]; allOf?: Schema[]; properties?: Record<string, Schema>; required?: string[]; items?: Schema; minimum?: number; maximum?: number; exclusiveMinimum?: number; exclusiveMaximum?: number;
  additionalProperties?: boolean | Schema;
};

function follow(root: Schema, node: Schema | undefined): Schema[] {
  if (!node) return [];
  if (node.$ref) return follow(root, root.$defs?.[node.$ref.replace("#/$defs/", "")]);
  const branches = [...(node.anyOf ?? []), ...(node.oneOf ?? []), ...(node.allOf ?? [])];
  return branches.length ? branches.flatMap((branch) => follow(root, branch)) : [node];
}

/** The schema nodes at a path of keys; lists are passed through. */
export function at(root: Schema, path: readonly string[]): { node: Schema | null; forms: Schema[] } {
  let node: Schema = root;
  let forms = follow(root, root);
  for (const key of path) {
    const inside = forms.flatMap((form) => (form.type === "array" || form.items ? follow(root, form.items) : [form]));
    const next = inside.map((form) => form.properties?.[key]).find((found) => found !== undefined);
    if (!next) return { node: null, forms: [] };
    node = next;
    forms = follow(root, next);
  }
  return { node, forms };
}

/** Keys that may stand below a path, with their one-line meaning. */
export function keysAt(root: Schema, path: readonly string[]): { key: string; description: string; required: boolean }[] {
  const forms = at(root, path).forms.flatMap((form) => (form.items ? follow(root, form.items) : [form]));
  const found = new Map<string, { key: string; description: string; required: boolean }>();
  for (const form of forms) {
    for (const [key, node] of Object.entries(form.properties ?? {})) {
      if (!found.has(key)) found.set(key, { key, description: node.description ?? "", required: form.required?.includes(key) ?? false });
    }
  }
  return [...found.values()];
}

/** Values that a key takes when they can be listed: enums, constants, booleans, null. */
export function valuesAt(root: Schema, path: readonly string[]): string[] {
  const texts = at(root, path).forms.flatMap((form) => {
    if (form.enum) return form.enum.map(text);
    if (form.const !== undefined) return [text(form.const)];
    if (form.type === "boolean") return ["true", "false"];
    return form.type === "null" ? ["null"] : [];
  });
  return texts.some((one) => one !== "null") ? [...new Set(texts)] : [];
}

/** What a value may be, in words: "number, more than 0, or auto". */
export function allowed(root: Schema, path: readonly string[]): string {
  const words = at(root, path).forms.map((form) => {
    if (form.enum) return form.enum.map(text).join(" | ");
    if (form.const !== undefined) return text(form.const);
    const type = Array.isArray(form.type) ? form.type.join(" or ") : form.type ?? "object";
    const bounds: [number | undefined, string][] = [[form.minimum, "at least"], [form.exclusiveMinimum, "more than"], [form.maximum, "at most"], [form.exclusiveMaximum, "less than"]];
    const limits = bounds.filter(([value]) => value !== undefined).map(([value, word]) => `${word} ${value}`);
    return [type === "object" ? "a section" : type === "array" ? "a list" : type, ...limits].join(", ");
  });
  return [...new Set(words)].join(" or ");
}

function text(value: unknown): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}
