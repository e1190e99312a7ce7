// Streams of pages that nobody looks at are closed: a browser opens only six connections to one server over HTTP/1.1.

/** Calls `open` now and when the page comes into sight, `close` when it goes out of sight; returns what ends both. */
export function whileSeen(open: () => void, close: () => void): () => void {
  let on = false;
  const turn = (): void => {
    if (document.hidden === !on) return;
    on = !document.hidden;
    if (on) open();
    else close();
  };
  document.addEventListener("visibilitychange", turn);
  turn();
  return () => {
    document.removeEventListener("visibilitychange", turn);
    if (on) close();
    on = false;
  };
}
