// The address bar as state.
import { parse, to, type Route } from "./route";

class Router {
  path = $state(location.pathname);
  search = $state(location.search);
  route: Route = $derived(parse(this.path));
  query = $derived(new URLSearchParams(this.search));

  constructor() {
    addEventListener("popstate", () => this.read());
    addEventListener("click", (event) => this.follow(event));
  }

  private read(): void {
    this.path = location.pathname;
    this.search = location.search;
  }

  /** Go to an address made by `to`. */
  go(address: string, { replace = false } = {}): void {
    const before = this.path;
    if (replace) history.replaceState(null, "", address);
    else history.pushState(null, "", address);
    this.read();
    if (before !== this.path) {
      scrollTo(0, 0);
      // The new page is announced and the keyboard starts at its content.
      queueMicrotask(() => document.getElementById("main")?.focus({ preventScroll: true }));
    }
  }

  get(key: string, otherwise = ""): string {
    return this.query.get(key) ?? otherwise;
  }

  /** Change parts of the query and keep the rest; an empty value removes the key. */
  set(changes: Record<string, string | number | boolean | null | undefined>, { replace = true } = {}): void {
    const next: Record<string, string | number | boolean | null | undefined> = Object.fromEntries(this.query);
    Object.assign(next, changes);
    this.go(to("", next).replace("/studio/", this.path), { replace });
  }

  /** Links inside the studio change the page without loading it anew. */
  private follow(event: MouseEvent): void {
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = (event.target as Element | null)?.closest?.("a[href]");
    if (!(link instanceof HTMLAnchorElement) || link.target || link.origin !== location.origin || link.hasAttribute("download")) return;
    if (!link.pathname.startsWith("/studio/") || link.pathname.startsWith("/studio/api/") || (link.hash && link.pathname === location.pathname)) return;
    event.preventDefault();
    this.go(link.pathname + link.search);
  }
}

export const router = new Router();
