// What every page shares: the session, the machine's load, and short messages for screen readers and eyes.
import { ApiError, api, get, words } from "./api";
import type { Session, System } from "./types";

class Studio {
  session = $state.raw<Session | null>(null);
  /** Set when the browser has no session: what to do about it. */
  locked = $state<string | null>(null);
  failed = $state<string | null>(null);
  system = $state.raw<System | null>(null);
  said = $state("");
  private timer: ReturnType<typeof setTimeout> | undefined;

  async start(): Promise<void> {
    try {
      this.session = await get<Session>(api("session"));
      this.locked = null;
      this.failed = null;
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) this.locked = error.hint ?? "Open the link that `luthier studio` printed.";
      else this.failed = words(error);
      return;
    }
    void this.beat();
  }

  private async beat(): Promise<void> {
    try {
      if (!document.hidden) this.system = await get<System>(api("system"));
    } catch {
      this.system = null;
    }
    setTimeout(() => void this.beat(), 10_000);
  }

  /** A short message: announced, shown for some seconds. */
  say(text: string): void {
    this.said = text;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => (this.said = ""), 6000);
  }
}

export const studio = new Studio();

/** Put text on the clipboard and say so; without clipboard access, say that. */
export async function copy(text: string, what: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    studio.say(`${what} copied`);
  } catch {
    studio.say("The browser does not allow copying here; select the text instead");
  }
}
