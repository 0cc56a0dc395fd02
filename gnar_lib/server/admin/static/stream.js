// One stream of the server's events (EventSource), which comes back by itself. Knows no page.

import { Refused, pageKey, server } from "./api.js";

const FIRST_RETRY_S = 1;
const MAX_RETRY_S = 15;
const SILENCE_S = 15; // the server sends something every second
const HIDDEN_S = 30; // a page at which nobody looks gives its connection back

/**
 * Calls `on.state(data, isFirst)`, `on.happened(event, text)`, `on.status(status, waitSeconds)` and `on.locked()`.
 * The status is "live", "connecting" or "lost". `on.locked` means that a password is needed; the stream is closed then.
 */
export class Stream {
  #path;
  #on;
  #source = null;
  #isFirst = true;
  #failures = 0;
  #isClosed = false;
  #timers = { retry: 0, silence: 0, hidden: 0 };
  #whenLookedAt = () => this.#look();
  #whenOnline = () => this.retry();

  constructor(path, on) {
    this.#path = path;
    this.#on = on;
    document.addEventListener("visibilitychange", this.#whenLookedAt);
    window.addEventListener("online", this.#whenOnline);
    this.#open();
  }

  close() {
    this.#isClosed = true;
    document.removeEventListener("visibilitychange", this.#whenLookedAt);
    window.removeEventListener("online", this.#whenOnline);
    this.#end();
  }

  /** Tries again now instead of at the end of the pause. */
  retry() {
    if (!this.#source && !this.#isClosed) this.#open();
  }

  #open() {
    this.#end();
    this.#isFirst = true;
    this.#on.status("connecting");
    this.#source = new EventSource(`api/v1/live${this.#path}${this.#path ? "&" : "?"}page=${pageKey}`);
    this.#source.onerror = () => this.#lost();
    this.#source.addEventListener("state", (event) => this.#receive(event));
    this.#source.addEventListener("happened", (event) => this.#on.happened?.(JSON.parse(event.data), event.data));
    this.#expectSomething();
  }

  #receive(event) {
    this.#expectSomething();
    this.#failures = 0;
    this.#on.state(JSON.parse(event.data), this.#isFirst);
    if (this.#isFirst) this.#on.status("live");
    this.#isFirst = false;
  }

  #expectSomething() {
    clearTimeout(this.#timers.silence);
    this.#timers.silence = setTimeout(() => this.#lost(), SILENCE_S * 1000);
  }

  // EventSource does not say why it failed, so the API is asked.
  async #lost() {
    this.#end();
    const pause = Math.min(FIRST_RETRY_S * 2 ** this.#failures, MAX_RETRY_S) * (0.8 + 0.4 * Math.random());
    this.#failures += 1;
    this.#on.status("lost", pause);
    this.#timers.retry = setTimeout(() => this.#open(), pause * 1000);
    try {
      await server();
    } catch (error) {
      if (error instanceof Refused && error.status === 401 && !this.#isClosed) {
        this.close();
        this.#on.locked();
      }
    }
  }

  #look() {
    clearTimeout(this.#timers.hidden);
    if (document.hidden) this.#timers.hidden = setTimeout(() => this.#end(), HIDDEN_S * 1000);
    else this.retry();
  }

  #end() {
    clearTimeout(this.#timers.retry);
    clearTimeout(this.#timers.silence);
    this.#source?.close();
    this.#source = null;
  }
}
