// A long list loaded by pages as it is scrolled; holds at most `MOST` pages.
import { isAbort, words } from "./api";
import { pagesOf, type Window } from "./window";

const MOST = 60;
export type Answer<T> = { rows: T[]; total: number };

export class Rows<T> {
  total = $state(0);
  error = $state<string | null>(null);
  /** True until the first page is there. */
  fresh = $state(true);
  /** Counts up when a page arrives. */
  version = $state(0);
  private pages = new Map<number, T[]>();
  private asked = new Map<number, AbortController>();
  private epoch = 0;

  constructor(
    private readonly ask: (offset: number, limit: number, signal: AbortSignal) => Promise<Answer<T>>,
    readonly size = 100,
  ) {}

  /** Forget all and load the first page: for a new search or order. `keep` leaves the old rows up until the new ones are there. */
  async reset(keep = false): Promise<void> {
    this.epoch += 1;
    for (const control of this.asked.values()) control.abort();
    this.asked.clear();
    if (!keep) {
      this.pages.clear();
      this.fresh = true;
    }
    await this.load(0, keep);
  }

  at(index: number): T | undefined {
    void this.version;
    return this.pages.get(Math.floor(index / this.size))?.[index % this.size];
  }

  /** Ask for what a window needs and is not there. */
  need(window: Window): void {
    for (const page of pagesOf(window, this.size)) if (!this.pages.has(page) && !this.asked.has(page)) void this.load(page);
  }

  /** Replace the loaded rows that `pick` names; true if any was there. */
  replace(pick: (row: T) => T | undefined): boolean {
    let found = false;
    for (const page of this.pages.values()) {
      page.forEach((row, index) => {
        const next = pick(row);
        if (next !== undefined) {
          page[index] = next;
          found = true;
        }
      });
    }
    if (found) this.version += 1;
    return found;
  }

  private async load(page: number, clear = false): Promise<void> {
    const control = new AbortController();
    const epoch = this.epoch;
    this.asked.set(page, control);
    try {
      const answer = await this.ask(page * this.size, this.size, control.signal);
      if (epoch !== this.epoch) return;
      if (clear) this.pages.clear();
      this.pages.set(page, answer.rows);
      if (this.pages.size > MOST) this.pages.delete(this.pages.keys().next().value!);
      this.total = answer.total;
      this.error = null;
      this.fresh = false;
      this.version += 1;
    } catch (error) {
      if (isAbort(error) || epoch !== this.epoch) return;
      this.error = words(error);
      this.fresh = false;
    } finally {
      if (this.asked.get(page) === control) this.asked.delete(page);
    }
  }
}
