// What has been recorded, kept up to date from the stream of changes. Knows no page.

const RETRY_MS = 2000;

/** Calls `on.changed()` and `on.status("live" | "connecting" | "lost")`. */
export class Exchanges {
  rows = new Map(); // by id, the oldest first
  #on;
  #isFirst = true;

  constructor(on) {
    this.#on = on;
    this.#open();
  }

  #open() {
    this.#on.status("connecting");
    const source = new EventSource("api/live");
    source.onopen = () => (this.#isFirst = true);
    source.addEventListener("changes", (event) => {
      this.#apply(JSON.parse(event.data));
      this.#on.status("live");
    });
    source.onerror = () => {
      this.#on.status("lost");
      if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
      source.close();
      setTimeout(() => this.#open(), RETRY_MS);
    };
  }

  #apply({ first, exchanges }) {
    if (this.#isFirst) this.rows.clear(); // the client may be another process now
    this.#isFirst = false;
    for (const row of exchanges) this.rows.set(row.id, row);
    for (const id of this.rows.keys()) if (id < first) this.rows.delete(id);
    this.#on.changed();
  }
}
