// A run as it goes on: a snapshot first, then what is new; a lost connection goes on where it ended (Last-Event-ID).
import { ofRun } from "./api";
import { append, appendNumbered } from "./append";
import type { Event, MetricRow, RunLine, Sample, Snapshot, Stage, System } from "./types";

export type Link = "connecting" | "open" | "lost";
export class Live {
  run = $state.raw<RunLine | null>(null);
  stages = $state.raw<Stage[]>([]);
  rows = $state.raw<MetricRow[]>([]);
  thinned = $state(false);
  events = $state.raw<Event[]>([]);
  samples = $state.raw<Sample[]>([]);
  system = $state.raw<System | null>(null);
  link = $state<Link>("connecting");
  private source: EventSource | null = null;
  private retry: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly id: string) {}

  open(): void {
    const source = new EventSource(ofRun(this.id, "stream"));
    this.source = source;
    const on = <T>(name: string, take: (data: T) => void): void => source.addEventListener(name, (event) => take(JSON.parse((event as MessageEvent<string>).data) as T));
    source.onopen = () => (this.link = "open");
    source.onerror = () => {
      this.link = "lost";
      // The browser reconnects by itself unless the server refused; then a new stream starts with a snapshot.
      if (source.readyState === EventSource.CLOSED) this.retry = setTimeout(() => this.open(), 3000);
    };
    on<Snapshot>("snapshot", (all) => {
      this.run = all.run;
      this.stages = all.stages;
      this.rows = all.metrics.rows;
      this.thinned = all.metrics.thinned;
      this.events = all.events;
      this.samples = all.samples;
      this.system = all.system;
      this.link = "open";
    });
    on<{ rows: MetricRow[] }>("metrics", ({ rows }) => (this.rows = append(this.rows, rows)));
    on<{ events: Event[] }>("events", ({ events }) => (this.events = appendNumbered(this.events, events, 500)));
    on<{ samples: Sample[] }>("samples", ({ samples }) => (this.samples = appendNumbered(this.samples, samples, 200)));
    on<{ run: RunLine; stages: Stage[] }>("run", ({ run, stages }) => {
      this.run = run;
      this.stages = stages;
    });
    on<System>("system", (system) => (this.system = system));
  }

  close(): void {
    clearTimeout(this.retry);
    this.source?.close();
  }
}
