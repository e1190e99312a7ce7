// One thing loaded from the server: loading, there, or failed. A newer request ends an older one.
import { isAbort, words } from "./api";

export class Loaded<T> {
  value = $state.raw<T | null>(null);
  error = $state<string | null>(null);
  loading = $state(false);
  private control: AbortController | null = null;

  async run(ask: (signal: AbortSignal) => Promise<T>, { keep = true } = {}): Promise<void> {
    this.control?.abort();
    const control = new AbortController();
    this.control = control;
    this.loading = true;
    if (!keep) this.value = null;
    try {
      const value = await ask(control.signal);
      if (control.signal.aborted) return;
      this.value = value;
      this.error = null;
    } catch (error) {
      if (isAbort(error) || control.signal.aborted) return;
      this.error = words(error);
    } finally {
      if (this.control === control) this.loading = false;
    }
  }

  stop(): void {
    this.control?.abort();
  }
}
