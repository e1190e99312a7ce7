// Which rows of a long list are drawn: those in sight and a few beside.
/** Rows drawn at once at most. */
const MOST = 400;
export type Window = { first: number; last: number };

/**
 * The rows [first, last) to draw.
 * @param top scroll offset in px @param height of the viewport in px @param row height of a row in px @param spare rows drawn beyond each edge
 */
export function windowOf(top: number, height: number, row: number, total: number, spare = 8): Window {
  const first = Math.max(0, Math.min(total, Math.floor(top / row)) - spare);
  // A frame that lost its bounds must not draw the whole list.
  const last = Math.min(total, Math.ceil((top + height) / row) + spare, first + MOST);
  return { first, last: Math.max(first, last) };
}

/** The pages (by number) that hold rows [first, last). */
export function pagesOf(window: Window, size: number): number[] {
  if (window.last <= window.first) return [];
  const pages: number[] = [];
  for (let page = Math.floor(window.first / size); page <= Math.floor((window.last - 1) / size); page += 1) pages.push(page);
  return pages;
}

/** The scroll offset that brings row `index` fully into sight, moved as little as possible. */
export function scrollTo(index: number, top: number, height: number, row: number): number {
  if (index * row < top) return index * row;
  if ((index + 1) * row > top + height) return (index + 1) * row - height;
  return top;
}
