// Light, dark, or as the system has it; the choice stays in this browser.
export type Theme = "system" | "light" | "dark";

function stored(): Theme {
  try {
    const kept = localStorage.getItem("luthier-theme");
    return kept === "light" || kept === "dark" ? kept : "system";
  } catch {
    return "system";
  }
}

class ThemeState {
  choice = $state<Theme>(stored());
  /** Counts up when colours change, so that canvases draw anew. */
  version = $state(0);

  constructor() {
    this.apply();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (this.version += 1));
  }

  pick(choice: Theme): void {
    this.choice = choice;
    try {
      localStorage.setItem("luthier-theme", choice);
    } catch {
      // A browser without storage keeps the choice until the page is left.
    }
    this.apply();
    this.version += 1;
  }

  private apply(): void {
    if (this.choice === "system") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = this.choice;
  }
}

export const theme = new ThemeState();

/** The value of a colour variable, as a canvas takes it. */
export function colour(name: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
